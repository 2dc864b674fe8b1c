//! The CPU model as it travels, in all its versions.

use kvm_bindings::kvm_cpuid_entry2;
use migration::guest::GuestError;
use migration::state::{Kind, StateError, VmState};
use serde::{Deserialize, Serialize};

use crate::kvm::cpuid::baseline::Baseline;

/// Version of the CPU model. Of those that are still read, version 1 has no baseline and no MSRs, and guests of
/// versions 1 and 2 have their host's performance counters and may have been told anything of its mitigations.
pub const CPU_VERSION: u32 = 3;
/// A guest has no more MSRs than KVM takes in one call.
const MAX_MSRS: usize = kvm_bindings::KVM_MAX_MSR_ENTRIES;
/// More CPUID entries than KVM itself takes are not looked at.
const MAX_CPUID_ENTRIES: usize = kvm_bindings::KVM_MAX_CPUID_ENTRIES;

/// The CPU model as it travels.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct CpuModel {
    pub cpuid: Vec<kvm_cpuid_entry2>,
    pub tsc_khz: Option<u32>,
    pub baseline: Baseline,
    pub msrs: Vec<u32>,
    pub arch_capabilities: Option<u64>,
    pub counters: bool,
}

/// Its second version.
#[derive(Debug, Serialize, Deserialize)]
struct CpuModelV2 {
    cpuid: Vec<kvm_cpuid_entry2>,
    tsc_khz: Option<u32>,
    baseline: Baseline,
    msrs: Vec<u32>,
}

/// Its first version.
#[derive(Debug, Serialize, Deserialize)]
struct CpuModelV1 {
    cpuid: Vec<kvm_cpuid_entry2>,
    tsc_khz: Option<u32>,
}

impl From<CpuModelV2> for CpuModel {
    fn from(model: CpuModelV2) -> Self {
        let CpuModelV2 {
            cpuid,
            tsc_khz,
            baseline,
            msrs,
        } = model;
        Self {
            cpuid,
            tsc_khz,
            baseline,
            msrs,
            arch_capabilities: None,
            counters: true,
        }
    }
}

impl From<CpuModelV1> for CpuModelV2 {
    fn from(CpuModelV1 { cpuid, tsc_khz }: CpuModelV1) -> Self {
        Self {
            cpuid,
            tsc_khz,
            baseline: Baseline::Host,
            msrs: Vec::new(),
        }
    }
}

impl CpuModel {
    /// That of a description, of whatever version.
    pub fn read(sections: &VmState) -> Result<Self, StateError> {
        let second = match sections.section(Kind::CPU_MODEL, 0)?.version {
            1 => sections
                .get::<CpuModelV1>(Kind::CPU_MODEL, 0, 1)
                .map(CpuModelV2::from)?,
            2 => sections.get(Kind::CPU_MODEL, 0, 2)?,
            _ => return sections.get(Kind::CPU_MODEL, 0, CPU_VERSION),
        };
        Ok(second.into())
    }
    /// As far as it can be judged without KVM.
    ///
    /// # Errors
    /// It has more than any host can have, or nothing.
    pub fn check(&self) -> Result<(), GuestError> {
        let (entries, msrs) = (self.cpuid.len(), self.msrs.len());
        if !(1..=MAX_CPUID_ENTRIES).contains(&entries) {
            return Err(GuestError::bare(format!(
                "the guest's CPU model has {entries} CPUID entries; 1 to {MAX_CPUID_ENTRIES} are accepted"
            )));
        }
        if msrs > MAX_MSRS {
            return Err(GuestError::bare(format!(
                "the guest's CPU model has {msrs} MSRs; at most {MAX_MSRS} are accepted"
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A description of an older version has no mitigations, of the first neither baseline nor MSRs, and both are read.
    #[test]
    fn cpu_models_of_all_versions_are_read() {
        let newest = CpuModel {
            cpuid: vec![kvm_cpuid_entry2::default()],
            tsc_khz: Some(5),
            baseline: Baseline::V2,
            msrs: vec![0x10, 0x6e0],
            arch_capabilities: None,
            counters: false,
        };
        let mut described = VmState::default();
        described
            .put(Kind::CPU_MODEL, 0, CPU_VERSION, &newest)
            .unwrap();
        let now = CpuModel::read(&described).unwrap();
        assert_eq!((now.baseline, now.msrs), (Baseline::V2, vec![0x10, 0x6e0]));
        assert!(!now.counters);
        let model = CpuModelV1 {
            cpuid: vec![kvm_cpuid_entry2::default()],
            tsc_khz: Some(5),
        };
        let mut newer = VmState::default();
        newer.put(Kind::CPU_MODEL, 0, 4, &model).unwrap();
        let text = CpuModel::read(&newer).unwrap_err().to_string();
        assert!(
            text.contains("version 4, this build reads up to 3"),
            "{text}"
        );
        let mut first = VmState::default();
        first.put(Kind::CPU_MODEL, 0, 1, &model).unwrap();
        let read = CpuModel::read(&first).unwrap();
        assert_eq!(
            (read.tsc_khz, read.baseline, read.msrs.len(), read.counters),
            (Some(5), Baseline::Host, 0, true)
        );
        let mut second = VmState::default();
        let model = CpuModelV2 {
            baseline: Baseline::V3,
            msrs: vec![0x10],
            ..CpuModelV2::from(model)
        };
        second.put(Kind::CPU_MODEL, 0, 2, &model).unwrap();
        let read = CpuModel::read(&second).unwrap();
        assert_eq!(
            (read.baseline, read.msrs, read.arch_capabilities),
            (Baseline::V3, vec![0x10], None)
        );
        assert!(read.counters);
    }
}
