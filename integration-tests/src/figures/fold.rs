//! vMotion over 10 and 40 Gbit/s: a guest of 128 or 256 GB that goes on writing was moved 38 times faster by the link
//! that is four times as fast (vSphere 6.0, Linux under FileIO), since its dirty rate lies near or above what the
//! slower link carries.

use migration::options::ThrottlePolicy;

use vmm::study::case::Link;

use super::{Load, link, study};
use crate::Error;

/// The published ratio.
pub const PUBLISHED: f64 = 38.0;
/// Here: a tenth of the speeds, 1 GiB that writes 2 Gbit/s anywhere in half of it.
const HERE: Load = Load {
    mib: 1024,
    working_set_mib: 512,
    bytes_per_s: 250e6,
    busy: 0.25,
};
/// There: 256 GiB that writes 20 Gbit/s anywhere in half of it.
pub const THERE: Load = Load {
    mib: 256 << 10,
    working_set_mib: 128 << 10,
    bytes_per_s: 2.5e9,
    busy: 1.0,
};
/// Smaller still, over a twentieth of the speeds: a guest that writes in three quarters of its memory. How fast,
/// between the two links, is [`chosen`].
const SMALL: Load = Load {
    mib: 128,
    working_set_mib: 96,
    bytes_per_s: 0.0,
    busy: 0.0,
};
/// The bare guest writes about so much here when it does nothing else.
const FULL_TILT: f64 = 1e9;
/// The policies compared, slowest first, and what each is called.
const POLICIES: [(&str, ThrottlePolicy); 3] = [
    ("auto-converge", ThrottlePolicy::AutoConverge),
    ("sdps", ThrottlePolicy::Sdps),
    ("auto", ThrottlePolicy::Auto),
];

/// All of it.
#[derive(Debug, Clone)]
pub struct Folds {
    /// Of [`HERE`] and [`THERE`].
    pub rows: Vec<Row>,
    /// Seconds predicted of [`THERE`] over 10 and 40 Gbit/s, by policy.
    pub there: Vec<[f64; 2]>,
    /// Of the small guest.
    pub small: Vec<Row>,
    /// What that writes, in Gbit/s.
    pub small_gbits: f64,
}

/// One policy's times.
#[derive(Debug, Clone)]
pub struct Row {
    /// The policy.
    pub policy: &'static str,
    /// Seconds here, over the slow and the fast link.
    pub measured: Option<[f64; 2]>,
    /// Seconds predicted of the same.
    pub predicted: [f64; 2],
}

/// Measures and predicts.
///
/// # Errors
/// A move fails.
pub fn run() -> Result<Folds, Error> {
    let small = chosen();
    Ok(Folds {
        rows: rows("fold", HERE, [1000, 4000])?,
        there: (POLICIES.iter())
            .map(|(_, throttle)| predicted(THERE, *throttle, [10_000, 40_000]))
            .collect(),
        small: rows("fold-small", small, SMALL_LINKS)?,
        small_gbits: small.bytes_per_s / 125e6,
    })
}

/// The links of the small guest, in Mbit/s.
pub const SMALL_LINKS: [u32; 2] = [500, 2000];

/// The small guest with the dirty rate, between what the two links carry, at which auto-converge is predicted to take
/// [`PUBLISHED`] times as long over the slow one, as nearly as can be.
fn chosen() -> Load {
    let [slow, fast] = SMALL_LINKS.map(|mbits| f64::from(mbits) * 125e3);
    let steps = (1..20).map(|step| slow + (fast - slow) * f64::from(step) / 20.0);
    let off = |load: &Load| {
        let [slow, fast] = predicted(*load, ThrottlePolicy::AutoConverge, SMALL_LINKS);
        (slow / fast / PUBLISHED).ln().abs()
    };
    let loads = steps.map(|bytes_per_s| Load {
        bytes_per_s,
        busy: bytes_per_s / FULL_TILT,
        ..SMALL
    });
    loads
        .min_by(|one, other| off(one).total_cmp(&off(other)))
        .unwrap_or(SMALL)
}

fn predicted(load: Load, throttle: ThrottlePolicy, links: [u32; 2]) -> [f64; 2] {
    let link = |mbits| link(f64::from(mbits) / 1000.0);
    links.map(|mbits| load.predicted(link(mbits), throttle).total_ms.expected / 1000.0)
}

/// Each policy's times of a guest over two links.
fn rows(name: &str, load: Load, links: [u32; 2]) -> Result<Vec<Row>, Error> {
    let [slow, fast] = links;
    let policies = POLICIES.map(|(name, _)| format!("\"{name}\"")).join(", ");
    let sweep = format!(
        "title = \"A dirty rate between the speeds of two links\"\n[[sweep]]\nname = \"{name}\"\nmemory = \"{}M\"\nworking_set = \"{}M\"\ndirty_rate = \"{}MB/s\"\nlink = [\"{slow}Mbit\", \"{fast}Mbit\"]\nthrottle = [{policies}]\ntimeout = \"10m\"\n",
        load.mib,
        load.working_set_mib,
        (load.bytes_per_s / 1e6).round()
    );
    let records = study(name, &sweep)?;
    let seconds = |policy: &str, mbits: u32| {
        let link = Link::Shaped(u64::from(mbits) * 125_000);
        let mut records = records.iter();
        let record =
            records.find(|record| record.case.policy() == policy && record.case.link == link);
        Some(record?.completed()?.total_ms / 1000.0)
    };
    let row = |(policy, throttle): (&'static str, ThrottlePolicy)| Row {
        policy,
        measured: seconds(policy, slow)
            .zip(seconds(policy, fast))
            .map(|(slow, fast)| [slow, fast]),
        predicted: predicted(load, throttle, links),
    };
    Ok(POLICIES.map(row).to_vec())
}
