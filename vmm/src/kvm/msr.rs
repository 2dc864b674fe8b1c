//! Which MSRs travel, and how they are read and written without a silent skip.

use std::ops::RangeInclusive;

use kvm_bindings::{Msrs, kvm_cpuid_entry2, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

use super::cpuid::features;
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

/// MSRs that a guest has only with one of these features of its CPUID: KVM has some of them for every guest, but one
/// that cannot use them need not find them on its next host.
const GATED: &[(RangeInclusive<u32>, &[&str])] = &[
    // IA32_TSC_ADJUST. Written from the host it is kept and shifts no TSC (arch/x86/kvm/x86.c, kvm_set_msr_common).
    (0x3b..=0x3b, &["tsc_adjust"]),
    // IA32_SPEC_CTRL.
    (
        0x48..=0x48,
        &[
            "spec_ctrl",
            "intel_stibp",
            "spec_ctrl_ssbd",
            "ibrs",
            "stibp",
            "ssbd",
        ],
    ),
    // IA32_CORE_CAPABILITIES, IA32_UMWAIT_CONTROL, IA32_ARCH_CAPABILITIES.
    (0xcf..=0xcf, &["core_capabilities"]),
    (0xe1..=0xe1, &["waitpkg"]),
    (0x10a..=0x10a, &["arch_capabilities"]),
    // IA32_TSX_CTRL.
    (0x122..=0x122, &["rtm", "hle"]),
    // IA32_XFD, IA32_XFD_ERR.
    (0x1c4..=0x1c5, &["xfd"]),
    // VMX; and SVM's host save area.
    (0x480..=0x493, &["vmx"]),
    (0xc001_0117..=0xc001_0117, &["svm"]),
    // IA32_PERF_CAPABILITIES.
    (0x345..=0x345, &["pdcm"]),
    // Intel PT.
    (0x560..=0x587, &["intel_pt"]),
    // Shadow stacks.
    (0x6a0..=0x6a8, &["shstk", "ibt"]),
    // IA32_BNDCFGS, IA32_XSS.
    (0xd90..=0xd90, &["mpx"]),
    (0xda0..=0xda0, &["xsaves"]),
    // IA32_TSC_AUX.
    (0xc000_0103..=0xc000_0103, &["rdtscp", "rdpid"]),
];

/// Whether a guest with this CPUID has the MSR, as far as that goes by features.
fn is_for(msr: u32, cpuid: &[kvm_cpuid_entry2]) -> bool {
    let mut gates = GATED.iter().filter(|(msrs, _)| msrs.contains(&msr));
    gates.all(|(_, names)| names.iter().any(|name| features::has(cpuid, name)))
}

/// What people call an MSR: Intel's names, or KVM's.
pub fn name(msr: u32) -> String {
    let name = match msr {
        0x10 => "IA32_TSC",
        0x1b => "IA32_APIC_BASE",
        0x3a => "IA32_FEATURE_CONTROL",
        0x48 => "IA32_SPEC_CTRL",
        0x8b => "IA32_BIOS_SIGN_ID",
        0xcf => "IA32_CORE_CAPABILITIES",
        0xe1 => "IA32_UMWAIT_CONTROL",
        0x10a => "IA32_ARCH_CAPABILITIES",
        0x122 => "IA32_TSX_CTRL",
        0x174 => "IA32_SYSENTER_CS",
        0x175 => "IA32_SYSENTER_ESP",
        0x176 => "IA32_SYSENTER_EIP",
        0x1a0 => "IA32_MISC_ENABLE",
        0x1c4 => "IA32_XFD",
        0x1c5 => "IA32_XFD_ERR",
        0x277 => "IA32_PAT",
        0x6e0 => "IA32_TSC_DEADLINE",
        0xd90 => "IA32_BNDCFGS",
        0xda0 => "IA32_XSS",
        0xc000_0080 => "EFER",
        0xc000_0081 => "STAR",
        0xc000_0103 => "IA32_TSC_AUX",
        0x4b56_4d01 => "KVM_SYSTEM_TIME_NEW",
        0x4b56_4d02 => "KVM_ASYNC_PF_EN",
        0x4b56_4d03 => "KVM_STEAL_TIME",
        0x4b56_4d04 => "KVM_PV_EOI_EN",
        0x4b56_4d05 => "KVM_POLL_CONTROL",
        0x4b56_4d06 => "KVM_ASYNC_PF_INT",
        0x4b56_4d07 => "KVM_ASYNC_PF_ACK",
        0x4b56_4d08 => "KVM_MIGRATION_CONTROL",
        _ => return format!("{msr:#x}"),
    };
    format!("{name} ({msr:#x})")
}

/// The MSRs of a guest with this CPUID, which `probe` has: KVM's list and the MTRRs, less the denied ones, those of
/// features that it has not, and those that cannot be read on this vCPU (the list is the kernel's, not the vCPU's).
/// IA32_TSC first, IA32_TSC_DEADLINE last.
///
/// # Errors
/// KVM_GET_MSR_INDEX_LIST failed.
pub fn list(kvm: &Kvm, probe: &VcpuFd, cpuid: &[kvm_cpuid_entry2]) -> Result<Vec<u32>, KvmError> {
    let listed = kvm
        .get_msr_index_list()
        .map_err(ioctl("get the list of MSRs"))?;
    let mut msrs: Vec<u32> = listed
        .as_slice()
        .iter()
        .chain(&MTRRS)
        .copied()
        .filter(|msr| !DENIED.contains(msr) && !is_pmu(*msr) && is_for(*msr, cpuid))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn msrs_of_features_that_a_guest_has_not_stay_behind() {
        let mut cpuid = [kvm_cpuid_entry2 {
            function: 7,
            ..Default::default()
        }];
        assert!(is_for(0x10, &cpuid) && is_for(0x1b, &cpuid));
        assert!(!is_for(0x48, &cpuid) && !is_for(0x10a, &cpuid));
        cpuid[0].edx = 1 << 27;
        assert!(is_for(0x48, &cpuid) && !is_for(0x10a, &cpuid));
        assert!(!is_for(0x3b, &cpuid));
        cpuid[0].ebx = 1 << 1;
        assert!(is_for(0x3b, &cpuid) && !DENIED.contains(&0x3b));
        let known = |name| features::WORDS.iter().any(|word| word.bit(name).is_some());
        for name in GATED.iter().flat_map(|(_, names)| *names) {
            assert!(known(name), "{name}");
        }
    }

    #[test]
    fn msrs_have_names_or_numbers() {
        assert_eq!(name(0x48), "IA32_SPEC_CTRL (0x48)");
        assert_eq!(name(0x1234), "0x1234");
    }
}
