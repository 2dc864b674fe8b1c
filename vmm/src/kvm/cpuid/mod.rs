//! The guest's CPUID: what KVM supports, less what Ferry does not carry over in a move or what a baseline leaves out,
//! with each vCPU's place in the topology; and the check that another host can offer as much.

pub mod baseline;
pub(super) mod features;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use super::{KvmError, ioctl};

/// Leaf 1 ECX: VMX (Intel SDM vol. 2A, CPUID).
const ECX1_VMX: u32 = 1 << 5;
/// Leaf 1 ECX: local APIC timer in TSC-deadline mode.
const ECX1_TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: running under a hypervisor.
const ECX1_HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: several logical processors in the package.
const EDX1_HTT: u32 = 1 << 28;
/// Leaf 7.0 ECX: shadow stacks (SDM vol. 1, 17.3).
const ECX7_SHSTK: u32 = 1 << 7;
/// Leaf 0x8000_0001 ECX: SVM (AMD APM vol. 3, appendix E).
const ECX80000001_SVM: u32 = 1 << 2;

/// What this host offers to guests.
///
/// Nested virtualization is masked (VMX, SVM): its state does not travel. Shadow stacks are, for their pointer, which
/// is no MSR (KVM_REG_GUEST_SSP).
///
/// # Errors
/// KVM_GET_SUPPORTED_CPUID failed.
pub fn supported(kvm: &Kvm) -> Result<Vec<kvm_cpuid_entry2>, KvmError> {
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(ioctl("get the supported CPUID"))?;
    let mut entries = cpuid.as_slice().to_vec();
    offer(&mut entries, kvm.check_extension(Cap::TscDeadlineTimer));
    Ok(entries)
}

/// Makes of what KVM supports what Ferry offers.
fn offer(entries: &mut [kvm_cpuid_entry2], tsc_deadline: bool) {
    for entry in entries {
        match entry.function {
            1 => {
                entry.ecx &= !ECX1_VMX;
                entry.ecx |= ECX1_HYPERVISOR;
                // KVM leaves this bit to the VMM: it depends on the in-kernel local APIC, which we have.
                if tsc_deadline {
                    entry.ecx |= ECX1_TSC_DEADLINE;
                }
            }
            7 if entry.index == 0 => entry.ecx &= !ECX7_SHSTK,
            0x8000_0001 => entry.ecx &= !ECX80000001_SVM,
            _ => {}
        }
    }
}

/// The CPUID of one vCPU out of `vcpus`: one package, a core a vCPU, one thread a core.
///
/// # Errors
/// More entries than KVM takes.
pub fn for_vcpu(entries: &[kvm_cpuid_entry2], index: u8, vcpus: u8) -> Result<CpuId, String> {
    let id = u32::from(index);
    let count = u32::from(vcpus);
    // Bits of the APIC id that number cores: ceil(log2(vcpus)).
    let core_bits = u32::from(vcpus).next_power_of_two().trailing_zeros();
    let mut entries = entries.to_vec();
    for entry in &mut entries {
        match entry.function {
            1 => {
                // EBX 31..24 initial APIC id, 23..16 logical processors in the package.
                entry.ebx = (entry.ebx & 0x0000_ffff) | id << 24 | count << 16;
                if vcpus > 1 {
                    entry.edx |= EDX1_HTT;
                } else {
                    entry.edx &= !EDX1_HTT;
                }
            }
            // Deterministic cache parameters: EAX 31..26 cores in the package less 1, 25..14 threads that
            // share the cache less 1.
            4 if entry.eax & 0x1f != 0 => {
                let shared = if entry.eax >> 5 & 7 == 3 {
                    count - 1
                } else {
                    0
                };
                entry.eax = (entry.eax & 0x3fff) | (count - 1) << 26 | shared << 14;
            }
            // Extended topology: a level of threads (type 1), a level of cores (type 2), then none.
            0xb | 0x1f => {
                let (shift, processors, kind) = match entry.index {
                    0 => (0, 1, 1),
                    1 => (core_bits, count, 2),
                    _ => (0, 0, 0),
                };
                entry.eax = shift;
                entry.ebx = processors;
                entry.ecx = kind << 8 | entry.index;
                entry.edx = id;
            }
            // AMD: ECX 15..12 bits of the APIC id that number cores, 7..0 cores less 1.
            0x8000_0008 => entry.ecx = core_bits << 12 | (count - 1),
            // AMD: extended APIC id, core id with one thread a core, node 0 of 1.
            0x8000_001e => {
                entry.eax = id;
                entry.ebx = id;
                entry.ecx = 0;
            }
            _ => {}
        }
    }
    CpuId::from_entries(&entries)
        .map_err(|e| format!("{} CPUID entries are refused: {e:?}", entries.len()))
}

/// The vendor's twelve letters, of leaf 0.
pub fn vendor(cpuid: &[kvm_cpuid_entry2]) -> Option<[u8; 12]> {
    let leaf = cpuid.iter().find(|entry| entry.function == 0)?;
    let registers = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
    registers.concat().try_into().ok()
}

/// Why a guest with this CPUID cannot run on a host that offers `host`; None where it can.
pub fn refusal(guest: &[kvm_cpuid_entry2], host: &[kvm_cpuid_entry2]) -> Option<String> {
    let letters = |cpuid| {
        let vendor: Option<[u8; 12]> = vendor(cpuid);
        vendor.map_or("no vendor".to_owned(), |v| v.escape_ascii().to_string())
    };
    let (theirs, ours) = (letters(guest), letters(host));
    if theirs != ours {
        return Some(format!(
            "the guest was started on a processor of {theirs}, this host's is of {ours}: kernels and programs choose by that what they do, so choose a host with a processor of {theirs}"
        ));
    }
    let missing = features::missing(guest, host);
    if !missing.is_empty() {
        let advice = match baseline::best(host) {
            Some(level) => format!(
                "choose a host with a newer CPU, or start guests that are to come here with --cpu {level}"
            ),
            None => "choose a host with a newer CPU, or start the guest on this one".to_owned(),
        };
        return Some(format!(
            "this host's CPU lacks what the guest was started with ({}): {advice}",
            missing.join(", ")
        ));
    }
    match (baseline::address_bits(guest), baseline::address_bits(host)) {
        (Some(theirs), Some(ours)) if theirs > ours => Some(format!(
            "the guest was told that physical addresses have {theirs} bits, this host's have {ours}: start it with --cpu v1 or higher, which says 40"
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::testing::entry;
    use super::*;

    #[test]
    fn a_host_that_cannot_take_a_guest_says_why_and_what_to_do() {
        let mut guest = vec![entry(0, 0), entry(1, 0), entry(0x8000_0008, 0)];
        (guest[0].ebx, guest[0].edx, guest[0].ecx) = (0x756e_6547, 0x4965_6e69, 0x6c65_746e);
        guest[1].ecx = 1 << 12 | 1 << 28;
        guest[2].eax = 46;
        assert_eq!(refusal(&guest, &guest), None);
        let mut host = guest.clone();
        host[2].eax = 39;
        assert!(
            refusal(&guest, &host)
                .unwrap()
                .contains("have 46 bits, this host's have 39")
        );
        host[1].ecx = 1 << 12;
        let text = refusal(&guest, &host).unwrap();
        assert!(
            text.contains("(avx)") && text.contains("a newer CPU"),
            "{text}"
        );
        host[0].ebx = 0x6874_7541;
        let text = refusal(&guest, &host).unwrap();
        assert!(
            text.contains("of GenuineIntel, this host's is of AuthineIntel"),
            "{text}"
        );
    }

    /// By the numbers of the manuals, not by the constants above: these could be wrong, too.
    #[test]
    fn what_does_not_travel_is_not_offered_and_all_else_is() {
        let leaves = [
            (0, 0),
            (1, 0),
            (7, 0),
            (7, 1),
            (0xd, 1),
            (0x8000_0001, 0),
            (0x8000_000a, 0),
        ];
        let full = leaves.map(|(function, index)| kvm_cpuid_entry2 {
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..entry(function, index)
        });
        let mut expected = full;
        expected[1].ecx ^= 1 << 5;
        expected[2].ecx ^= 1 << 7;
        expected[5].ecx ^= 1 << 2;
        let mut offered = full;
        offer(&mut offered, false);
        assert_eq!(offered, expected);
        assert!(features::has(&full, "vmx") && features::has(&offered, "aes"));
        for name in ["vmx", "svm", "shstk"] {
            assert!(!features::has(&offered, name), "{name}");
        }
    }

    #[test]
    fn what_kvm_leaves_to_us_is_added_to_leaf_1_alone() {
        for (tsc_deadline, ecx) in [(false, 1 << 31), (true, 1 << 31 | 1 << 24)] {
            let mut offered = [entry(1, 0), entry(7, 0), entry(0x8000_0001, 0)];
            let mut expected = offered;
            expected[0].ecx = ecx;
            offer(&mut offered, tsc_deadline);
            assert_eq!(offered, expected);
        }
    }

    #[test]
    fn each_vcpu_has_its_own_apic_id() {
        let entries = [entry(1, 0), entry(0xb, 0), entry(0xb, 1)];
        let cpuid = for_vcpu(&entries, 3, 4).unwrap();
        let cpuid = cpuid.as_slice();
        assert_eq!(cpuid[0].ebx >> 24, 3);
        assert_eq!(cpuid[0].ebx >> 16 & 0xff, 4);
        assert_eq!((cpuid[1].eax, cpuid[1].ebx, cpuid[1].edx), (0, 1, 3));
        assert_eq!((cpuid[2].eax, cpuid[2].ebx, cpuid[2].edx), (2, 4, 3));
    }
}

#[cfg(test)]
mod testing {
    use kvm_bindings::kvm_cpuid_entry2;

    /// An entry with nothing in it.
    pub fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            ..Default::default()
        }
    }
}
