//! Which MSRs travel, and how they are read and written without a silent skip.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

use super::vcpu_state::VcpuStateError;
use super::{KvmError, ioctl};

/// The time-stamp counter. Written first: deadlines are compared with it.
pub const MSR_IA32_TSC: u32 = 0x10;
/// The TSC deadline of the local APIC's timer. Written last.
const MSR_IA32_TSC_DEADLINE: u32 = 0x6e0;

/// MTRRs: KVM has them, but its index list does not name them. MTRRcap (0xfe) is read-only.
const MTRRS: [u32; 28] = {
    let mut list = [0; 28];
    let mut i = 0;
    // Variable ranges, base and mask each.
    let mut variable = 0x200;
    while i < 16 {
        list[i] = variable;
        variable += 1;
        i += 1;
    }
    // Fixed ranges: 64 KiB, 2 of 16 KiB, 8 of 4 KiB; then the default type.
    let fixed = [
        0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f, 0x2ff,
    ];
    let mut j = 0;
    while j < fixed.len() {
        list[i + j] = fixed[j];
        j += 1;
    }
    list
};

/// MSRs that are listed but do not travel, each for its reason.
const DENIED: &[u32] = &[
    // IA32_TSC_ADJUST moves with IA32_TSC: writing it would shift the TSC a second time.
    0x3b,
    // Performance counters and their controls: the destination's host has counters of its own.
    0x38d,
    0x38e,
    0x38f,
    0x390,
    0x3f1,
    // MSR_KVM_WALL_CLOCK_NEW and the old 0x11: writing them makes KVM write guest memory; the guest asks again.
    0x4b56_4d00,
    0x11,
];

/// Whether an MSR belongs to the performance monitoring unit: event selects, counters, fixed counters.
fn is_pmu(msr: u32) -> bool {
    matches!(msr, 0xc1..=0xc8 | 0x186..=0x18d | 0x309..=0x30c | 0x4c1..=0x4c8 | 0xc001_0000..=0xc001_0007 | 0xc001_0200..=0xc001_020b | 0xc000_0300..=0xc000_0303)
}

/// The MSRs that `probe` has: KVM's list and the MTRRs, less the denied ones and those that cannot be read
/// on this vCPU (the list is the kernel's, not the vCPU's). IA32_TSC first, IA32_TSC_DEADLINE last.
///
/// # Errors
/// KVM_GET_MSR_INDEX_LIST failed.
pub fn list(kvm: &Kvm, probe: &VcpuFd) -> Result<Vec<u32>, KvmError> {
    let listed = kvm
        .get_msr_index_list()
        .map_err(ioctl("get the list of MSRs"))?;
    let mut msrs: Vec<u32> = listed
        .as_slice()
        .iter()
        .chain(&MTRRS)
        .copied()
        .filter(|msr| !DENIED.contains(msr) && !is_pmu(*msr))
        .filter(|msr| matches!(read(probe, &[*msr]), Ok((1, _))))
        .collect();
    msrs.sort_unstable();
    msrs.dedup();
    msrs.sort_by_key(|&msr| match msr {
        MSR_IA32_TSC => 0,
        MSR_IA32_TSC_DEADLINE => 2,
        _ => 1,
    });
    Ok(msrs)
}

/// One KVM_GET_MSRS: how many were read, and the entries.
fn read(vcpu: &VcpuFd, msrs: &[u32]) -> Result<(usize, Msrs), kvm_ioctls::Error> {
    let entries: Vec<kvm_msr_entry> = msrs
        .iter()
        .map(|&index| kvm_msr_entry {
            index,
            ..Default::default()
        })
        .collect();
    let mut entries =
        Msrs::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
    let count = vcpu.get_msrs(&mut entries)?;
    Ok((count, entries))
}

/// Reads all of `msrs`.
///
/// # Errors
/// KVM stopped at one of them; the error names it.
pub fn get(vcpu: &VcpuFd, index: u8, msrs: &[u32]) -> Result<Vec<kvm_msr_entry>, VcpuStateError> {
    let (count, entries) = read(vcpu, msrs).map_err(|source| VcpuStateError::Ioctl {
        act: "get the MSRs",
        index,
        source,
    })?;
    match msrs.get(count) {
        None => Ok(entries.as_slice().to_vec()),
        Some(&msr) => Err(VcpuStateError::Msr {
            act: "get",
            msr,
            index,
            value: None,
        }),
    }
}

/// Writes all of `msrs`, in their order.
///
/// # Errors
/// KVM stopped at one of them; the error names it.
pub fn set(vcpu: &VcpuFd, index: u8, msrs: &[kvm_msr_entry]) -> Result<(), VcpuStateError> {
    let entries = Msrs::from_entries(msrs).map_err(|_| VcpuStateError::TooManyMsrs {
        index,
        count: msrs.len(),
    })?;
    let count = vcpu
        .set_msrs(&entries)
        .map_err(|source| VcpuStateError::Ioctl {
            act: "set the MSRs",
            index,
            source,
        })?;
    match msrs.get(count) {
        None => Ok(()),
        Some(entry) => Err(VcpuStateError::Msr {
            act: "set",
            msr: entry.index,
            index,
            value: Some(entry.data),
        }),
    }
}
