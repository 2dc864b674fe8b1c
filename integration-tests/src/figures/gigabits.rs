//! Hyper-V over 1 and 10 Gbit/s: Windows Server 2008 R2, guests of 4 to 32 GB, idle and under a simulated database load
//! (IBM, NetApp and Intel, June 2011). The link carried nothing else, one guest moved at a time.

use migration::options::ThrottlePolicy;
use vmm::study::store::Record;

use super::{Load, link, study};
use crate::Error;

/// Published: memory in GB, and seconds in all: idle and loaded at 1 Gbit/s, idle and loaded at 10 Gbit/s.
pub const PUBLISHED: [(u64, [f64; 4]); 4] = [
    (4, [40.0, 47.5, 8.8, 15.6]),
    (8, [84.0, 93.0, 16.0, 25.0]),
    (16, [171.0, 182.0, 35.0, 54.0]),
    (32, [351.0, 362.0, 61.0, 107.0]),
];
/// Guests that are moved here.
const MEASURED: [u64; 2] = [4, 8];
/// What the load writes to; not published.
const WORKING_SET_MIB: u64 = 512;

/// One row of the table.
#[derive(Debug, Clone)]
pub struct Row {
    /// Guest memory in GB (published) or GiB (here).
    pub gib: u64,
    /// Published seconds, in the order of [`PUBLISHED`].
    pub published: [f64; 4],
    /// Seconds measured here, where the guest fits.
    pub measured: Option<[f64; 4]>,
    /// Seconds predicted.
    pub predicted: [f64; 4],
    /// The share of the link's goodput that was used, idle at 1 and 10 Gbit/s, where measured.
    pub used: Option<[f64; 2]>,
}

/// All of it.
#[derive(Debug, Clone)]
pub struct Gigabits {
    /// The dirty rate that was fitted, in bytes a second.
    pub bytes_per_s: f64,
    /// By guest.
    pub rows: Vec<Row>,
}

/// Measures and predicts.
///
/// # Errors
/// A move fails.
pub fn run() -> Result<Gigabits, Error> {
    let bytes_per_s = fitted();
    let megabytes = (bytes_per_s / 1e6).round();
    let sizes = MEASURED.map(|gib| format!("\"{gib}G\"")).join(", ");
    let sweep = format!(
        "title = \"Guests of 4 and 8 GiB over 1 and 10 Gbit/s\"\n[[sweep]]\nname = \"gigabits\"\nmemory = [{sizes}]\nworking_set = \"{WORKING_SET_MIB}M\"\nlink = [\"1Gbit\", \"10Gbit\"]\ndirty_rate = [0, \"{megabytes}MB/s\"]\ntimeout = \"10m\"\n"
    );
    let records = study("gigabits", &sweep)?;
    let rows = PUBLISHED.iter().map(|(gib, published)| Row {
        gib: *gib,
        published: *published,
        measured: four(|gbit, loaded| {
            let record = find(&records, *gib, gbit, loaded)?;
            Some(record.completed()?.total_ms / 1000.0)
        }),
        predicted: four(|gbit, loaded| Some(predicted(*gib, gbit, loaded, bytes_per_s)))
            .unwrap_or_default(),
        used: used(&records, *gib),
    });
    Ok(Gigabits {
        bytes_per_s,
        rows: rows.collect(),
    })
}

/// Idle and loaded at 1 Gbit/s, idle and loaded at 10 Gbit/s.
fn four(mut figure: impl FnMut(u32, bool) -> Option<f64>) -> Option<[f64; 4]> {
    let cases = [(1, false), (1, true), (10, false), (10, true)];
    let mut all = [0.0; 4];
    for (place, (gbit, loaded)) in all.iter_mut().zip(cases) {
        *place = figure(gbit, loaded)?;
    }
    Some(all)
}

fn find(records: &[Record], gib: u64, gbit: u32, loaded: bool) -> Option<&Record> {
    records.iter().find(|record| {
        let case = &record.case;
        case.memory_bytes == gib << 30
            && case.link.to_string() == format!("{gbit}Gbit")
            && case.dirty_rate.is_zero() != loaded
    })
}

fn used(records: &[Record], gib: u64) -> Option<[f64; 2]> {
    let of = |gbit: u32| {
        let report = find(records, gib, gbit, false)?.completed()?;
        let seconds = report.total_ms / 1000.0;
        let carried = f64::from(gbit) * 125e6 * super::SHAPED * seconds;
        Some(report.wire_bytes as f64 / carried)
    };
    Some([of(1)?, of(10)?])
}

fn predicted(gib: u64, gbit: u32, loaded: bool, bytes_per_s: f64) -> f64 {
    let load = Load {
        mib: gib << 10,
        working_set_mib: WORKING_SET_MIB,
        bytes_per_s: if loaded { bytes_per_s } else { 0.0 },
        busy: 1.0,
    };
    let prediction = load.predicted(link(f64::from(gbit)), ThrottlePolicy::Auto);
    prediction.total_ms.expected / 1000.0
}

/// How fast the load writes was not published: fast enough to make the move of 4 GB over 1 Gbit/s longer by as much as
/// it was.
fn fitted() -> f64 {
    let [idle, loaded, ..] = PUBLISHED[0].1;
    let wanted = loaded / idle;
    let idle = predicted(4, 1, false, 0.0);
    let (mut low, mut high) = (0.0, 125e6);
    for _ in 0..12 {
        let middle = (low + high) / 2.0;
        match predicted(4, 1, true, middle) / idle < wanted {
            true => low = middle,
            false => high = middle,
        }
    }
    (low + high) / 2.0
}
