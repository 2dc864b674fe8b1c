//! The boots of both programs: target/bench-boot/summary.json, and the table.

use std::fmt;

use serde::Serialize;

use super::{Boot, Own};

/// The most that a Ferry with one vCPU may have in RAM beside the guest's memory: 5 MiB.
const OWN_LIMIT: u64 = 5 << 20;

/// Names are a contract.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Ferry's boots.
    pub ferry: Figures,
    /// Those of QEMU's microvm.
    pub qemu: Figures,
    /// Which QEMU that is.
    pub qemu_version: String,
    /// Ferry's median time as a part of QEMU's.
    pub time_of_qemu: f64,
    /// The most that Ferry had in RAM beside the guest's memory, in bytes.
    pub own_bytes: u64,
    /// Whether that is less than the limit of 5 MiB.
    pub own_within_limit: bool,
}

/// The boots of one program.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// From the start of the process to the first line of the guest's init, in milliseconds, in the order of the boots.
    pub boot_ms: Vec<f64>,
    /// The median of that.
    pub median_ms: f64,
    /// Resident memory beside the guest's at that time.
    pub own: Vec<Own>,
}

impl Figures {
    fn new(boots: &[Boot]) -> Self {
        let boot_ms: Vec<f64> = boots.iter().map(|b| b.time.as_secs_f64() * 1e3).collect();
        let mut sorted = boot_ms.clone();
        sorted.sort_by(f64::total_cmp);
        Self {
            median_ms: sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN),
            boot_ms,
            own: boots.iter().map(|boot| boot.own).collect(),
        }
    }
}

impl Summary {
    pub(super) fn new(ferry: &[Boot], qemu: &[Boot], qemu_version: String) -> Self {
        let (ferry, qemu) = (Figures::new(ferry), Figures::new(qemu));
        let own_bytes = ferry.own.iter().map(|own| own.bytes).max();
        let own_bytes = own_bytes.unwrap_or(u64::MAX);
        Self {
            time_of_qemu: ferry.median_ms / qemu.median_ms,
            own_bytes,
            own_within_limit: own_bytes < OWN_LIMIT,
            ferry,
            qemu,
            qemu_version,
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<8}{:>20}{:>8}{:>8}{:>23}{:>12}",
            "", "ms to init, median", "least", "most", "KiB beside the guest", "in files"
        )?;
        for (name, figures) in [("Ferry", &self.ferry), ("QEMU", &self.qemu)] {
            let own = figures.own.iter().max().copied().unwrap_or_default();
            let times = figures.boot_ms.iter().copied();
            writeln!(
                f,
                "{name:<8}{:>20.0}{:>8.0}{:>8.0}{:>23}{:>12}",
                figures.median_ms,
                times.clone().fold(f64::NAN, f64::min),
                times.fold(f64::NAN, f64::max),
                own.bytes >> 10,
                own.files >> 10
            )?;
        }
        writeln!(
            f,
            "Ferry takes {:.0} % of the time of {}",
            self.time_of_qemu * 100.0,
            self.qemu_version
        )?;
        let verdict = if self.own_within_limit {
            "ok  "
        } else {
            "FAIL"
        };
        write!(
            f,
            "{verdict}  Ferry has {:.2} MiB in RAM beside the guest's memory; {} MiB are the limit",
            self.own_bytes as f64 / f64::from(1 << 20),
            OWN_LIMIT >> 20
        )
    }
}
