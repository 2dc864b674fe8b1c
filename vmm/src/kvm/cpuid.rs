//! The guest's CPUID: what KVM supports, less what Ferry does not carry over in a move, with each vCPU's
//! place in the topology; and the check that another host can offer as much.

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
/// Leaf 0x8000_0001 ECX: SVM (AMD APM vol. 3, appendix E).
const ECX80000001_SVM: u32 = 1 << 2;

/// What this host offers to guests.
///
/// Nested virtualization is masked (VMX, SVM): its state does not travel.
///
/// # Errors
/// KVM_GET_SUPPORTED_CPUID failed.
pub fn supported(kvm: &Kvm) -> Result<Vec<kvm_cpuid_entry2>, KvmError> {
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(ioctl("get the supported CPUID"))?;
    let mut entries = cpuid.as_slice().to_vec();
    for entry in &mut entries {
        match entry.function {
            1 => {
                entry.ecx &= !ECX1_VMX;
                entry.ecx |= ECX1_HYPERVISOR;
                // KVM leaves this bit to the VMM: it depends on the in-kernel local APIC, which we have.
                if kvm.check_extension(Cap::TscDeadlineTimer) {
                    entry.ecx |= ECX1_TSC_DEADLINE;
                }
            }
            0x8000_0001 => entry.ecx &= !ECX80000001_SVM,
            _ => {}
        }
    }
    Ok(entries)
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

/// One register of one leaf whose bits are features that a guest may rely on.
struct FeatureWord {
    function: u32,
    index: u32,
    name: &'static str,
    register: fn(&kvm_cpuid_entry2) -> u32,
    /// Bits that are no features (counts, OS state) or that we set ourselves.
    ignore: u32,
}

const fn word(
    function: u32,
    index: u32,
    name: &'static str,
    register: fn(&kvm_cpuid_entry2) -> u32,
    ignore: u32,
) -> FeatureWord {
    FeatureWord {
        function,
        index,
        name,
        register,
        ignore,
    }
}

/// The registers that are compared before a move. 1.ECX bit 27 is OSXSAVE, a mirror of CR4.
const FEATURE_WORDS: &[FeatureWord] = &[
    word(1, 0, "CPUID.1:ECX", |e| e.ecx, 1 << 27 | ECX1_HYPERVISOR),
    word(1, 0, "CPUID.1:EDX", |e| e.edx, EDX1_HTT),
    word(7, 0, "CPUID.7.0:EBX", |e| e.ebx, 0),
    word(7, 0, "CPUID.7.0:ECX", |e| e.ecx, 1 << 4),
    word(7, 0, "CPUID.7.0:EDX", |e| e.edx, 0),
    word(7, 1, "CPUID.7.1:EAX", |e| e.eax, 0),
    word(0xd, 0, "CPUID.13.0:EAX (XCR0)", |e| e.eax, 0),
    word(0xd, 1, "CPUID.13.1:EAX", |e| e.eax, 0),
    word(0x4000_0001, 0, "CPUID.0x40000001:EAX (KVM)", |e| e.eax, 0),
    word(0x8000_0001, 0, "CPUID.0x80000001:ECX", |e| e.ecx, 0),
    word(0x8000_0001, 0, "CPUID.0x80000001:EDX", |e| e.edx, 0),
    word(0x8000_0007, 0, "CPUID.0x80000007:EDX", |e| e.edx, 0),
    word(0x8000_0008, 0, "CPUID.0x80000008:EBX", |e| e.ebx, 0),
];

/// Features in `guest` that `host` cannot offer, a register at a time, as `register bit 3` or `register bits 3, 5`; empty when the guest fits.
pub fn missing(guest: &[kvm_cpuid_entry2], host: &[kvm_cpuid_entry2]) -> Vec<String> {
    let find = |entries: &[kvm_cpuid_entry2], word: &FeatureWord| {
        entries
            .iter()
            .find(|e| e.function == word.function && e.index == word.index)
            .map_or(0, word.register)
    };
    let mut missing = Vec::new();
    for word in FEATURE_WORDS {
        let lost = find(guest, word) & !find(host, word) & !word.ignore;
        let bits: Vec<String> = (0..32)
            .filter(|bit| lost >> bit & 1 == 1)
            .map(|bit: u32| bit.to_string())
            .collect();
        match &bits[..] {
            [] => {}
            [bit] => missing.push(format!("{} bit {bit}", word.name)),
            bits => missing.push(format!("{} bits {}", word.name, bits.join(", "))),
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, ecx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            ecx,
            ..Default::default()
        }
    }

    #[test]
    fn a_host_with_less_is_named_bit_by_bit() {
        let guest = [entry(1, 0, 1 << 12 | 1 << 28), entry(0x8000_0001, 0, 1)];
        let host = [entry(1, 0, 1 << 12), entry(0x8000_0001, 0, 3)];
        assert_eq!(missing(&guest, &host), ["CPUID.1:ECX bit 28"]);
        assert!(missing(&host, &host).is_empty());
        let all = missing(&guest, &[]);
        assert_eq!(all.len(), 2);
        assert_eq!(all[0], "CPUID.1:ECX bits 12, 28");
    }

    #[test]
    fn each_vcpu_has_its_own_apic_id() {
        let entries = [entry(1, 0, 0), entry(0xb, 0, 0), entry(0xb, 1, 0)];
        let cpuid = for_vcpu(&entries, 3, 4).unwrap();
        let cpuid = cpuid.as_slice();
        assert_eq!(cpuid[0].ebx >> 24, 3);
        assert_eq!(cpuid[0].ebx >> 16 & 0xff, 4);
        assert_eq!((cpuid[1].eax, cpuid[1].ebx, cpuid[1].edx), (0, 1, 3));
        assert_eq!((cpuid[2].eax, cpuid[2].ebx, cpuid[2].edx), (2, 4, 3));
    }
}
