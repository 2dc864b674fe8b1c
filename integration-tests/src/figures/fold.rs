//! vMotion over 10 and 40 Gbit/s: a guest of 128 or 256 GB that goes on writing was moved 38 times faster by the link that
//! is four times as fast (vSphere 6.0, Linux under FileIO), since its dirty rate lies near or above what the slower link
//! carries.

use migration::options::ThrottlePolicy;

use super::{Load, link, study};
use crate::Error;

/// The published ratio.
pub const PUBLISHED: f64 = 38.0;
/// Here: a tenth of the speeds, 1 GiB that writes 2 Gbit/s anywhere in half of it.
const SLOW: f64 = 1.0;
const FAST: f64 = 4.0;
const HERE: Load = Load {
    gib: 1,
    working_set_mib: 512,
    bytes_per_s: 250e6,
};
/// There: 256 GiB that writes 20 Gbit/s anywhere in half of it.
pub const THERE: Load = Load {
    gib: 256,
    working_set_mib: 128 << 10,
    bytes_per_s: 2.5e9,
};
/// The policies compared, slowest first, and what each is called.
const POLICIES: [(&str, ThrottlePolicy); 3] = [
    ("auto-converge", ThrottlePolicy::AutoConverge),
    ("sdps", ThrottlePolicy::Sdps),
    ("auto", ThrottlePolicy::Auto),
];

/// One policy's times.
#[derive(Debug, Clone)]
pub struct Row {
    /// The policy.
    pub policy: &'static str,
    /// Seconds here, over the slow and the fast link.
    pub measured: Option<[f64; 2]>,
    /// Seconds predicted of the same.
    pub predicted: [f64; 2],
    /// Seconds predicted at 256 GiB over 10 and 40 Gbit/s.
    pub there: [f64; 2],
}

/// Measures and predicts.
///
/// # Errors
/// A move fails.
pub fn run() -> Result<Vec<Row>, Error> {
    let policies = POLICIES.map(|(name, _)| format!("\"{name}\"")).join(", ");
    let sweep = format!(
        "title = \"A dirty rate between the speeds of two links\"\n[[sweep]]\nname = \"fold\"\nmemory = \"{}G\"\nworking_set = \"{}M\"\ndirty_rate = \"{}MB/s\"\nlink = [\"{SLOW}Gbit\", \"{FAST}Gbit\"]\nthrottle = [{policies}]\ntimeout = \"10m\"\n",
        HERE.gib,
        HERE.working_set_mib,
        HERE.bytes_per_s / 1e6
    );
    let records = study("fold", &sweep)?;
    let seconds = |policy: &str, gbits: f64| {
        let record = records.iter().find(|record| {
            record.case.policy() == policy && record.case.link.to_string() == format!("{gbits}Gbit")
        });
        Some(record?.completed()?.total_ms / 1000.0)
    };
    let both = |load: Load, throttle, slow, fast| {
        [slow, fast].map(|gbits| load.predicted(link(gbits), throttle).total_ms.expected / 1000.0)
    };
    let row = |(policy, throttle): (&'static str, ThrottlePolicy)| Row {
        policy,
        measured: seconds(policy, SLOW)
            .zip(seconds(policy, FAST))
            .map(|(slow, fast)| [slow, fast]),
        predicted: both(HERE, throttle, SLOW, FAST),
        there: both(THERE, throttle, 10.0, 40.0),
    };
    Ok(POLICIES.map(row).to_vec())
}
