//! The bits of CPUID that are features, by the names that Linux shows in /proc/cpuinfo, and what a host lacks of a
//! guest's.

use kvm_bindings::kvm_cpuid_entry2;

/// One of the four registers that a leaf fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    /// Its value in an entry.
    pub fn of(self, entry: &kvm_cpuid_entry2) -> u32 {
        match self {
            Self::Eax => entry.eax,
            Self::Ebx => entry.ebx,
            Self::Ecx => entry.ecx,
            Self::Edx => entry.edx,
        }
    }

    /// The same, to be changed.
    pub fn of_mut(self, entry: &mut kvm_cpuid_entry2) -> &mut u32 {
        match self {
            Self::Eax => &mut entry.eax,
            Self::Ebx => &mut entry.ebx,
            Self::Ecx => &mut entry.ecx,
            Self::Edx => &mut entry.edx,
        }
    }
}

/// A register of a leaf whose bits are features that a guest may rely on.
#[derive(Debug)]
pub struct Word {
    pub function: u32,
    pub index: u32,
    pub register: Register,
    /// Bits that are no features (mirrors of a control register) or that we set ourselves.
    pub ignore: u32,
    /// From bit 0 on; "-" has none.
    names: &'static str,
}

const fn word(
    function: u32,
    index: u32,
    register: Register,
    ignore: u32,
    names: &'static str,
) -> Word {
    Word {
        function,
        index,
        register,
        ignore,
        names,
    }
}

/// The registers that are compared before a move. Names: arch/x86/include/asm/cpufeatures.h; bits: Intel SDM vol. 2A,
/// AMD APM vol. 3 appendix E, Documentation/virt/kvm/x86/cpuid.rst.
pub const WORDS: &[Word] = &[
    word(
        1,
        0,
        Register::Ecx,
        // OSXSAVE mirrors CR4; we set the hypervisor bit.
        1 << 27 | 1 << 31,
        "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca sse4_1 sse4_2 \
         x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand hypervisor",
    ),
    word(
        1,
        0,
        Register::Edx,
        // HTT goes with the number of vCPUs.
        1 << 28,
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts acpi mmx fxsr sse \
         sse2 ss ht tm ia64 pbe",
    ),
    word(
        7,
        0,
        Register::Ebx,
        0,
        "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm zero_fcs_fds mpx rdt_a \
         avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni \
         avx512bw avx512vl",
    ),
    word(
        7,
        0,
        Register::Ecx,
        // OSPKE mirrors CR4.
        1 << 4,
        "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni \
         avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect cldemote - movdiri movdir64b enqcmd \
         sgx_lc pks",
    ),
    word(
        7,
        0,
        Register::Edx,
        0,
        "- - avx512_4vnniw avx512_4fmaps fsrm - - - avx512_vp2intersect srbds_ctrl md_clear rtm_always_abort - \
         tsx_force_abort serialize hybrid_cpu tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 \
         spec_ctrl intel_stibp flush_l1d arch_capabilities core_capabilities spec_ctrl_ssbd",
    ),
    word(
        7,
        1,
        Register::Eax,
        0,
        "sha512 sm3 sm4 - avx_vnni avx512_bf16 lass cmpccxadd arch_perfmon_ext - fzrm fsrs fsrc - - - - fred lkgs wrmsrns - \
         amx_fp16 hreset avx_ifma - - lam",
    ),
    word(
        7,
        1,
        Register::Edx,
        0,
        "- - - - avx_vnni_int8 avx_ne_convert - - amx_complex - avx_vnni_int16 - - - prefetchi - - - - avx10",
    ),
    word(
        7,
        2,
        Register::Edx,
        0,
        "intel_psfd ipred_ctrl rrsba_ctrl ddpd_u bhi_ctrl mcdt_no",
    ),
    word(
        0xd,
        0,
        Register::Eax,
        0,
        "xcr0:x87 xcr0:sse xcr0:avx xcr0:bndregs xcr0:bndcsr xcr0:opmask xcr0:zmm_hi256 xcr0:hi16_zmm - xcr0:pkru - - - - \
         - - - xcr0:xtile_cfg xcr0:xtile_data",
    ),
    word(
        0xd,
        1,
        Register::Eax,
        0,
        "xsaveopt xsavec xgetbv1 xsaves xfd",
    ),
    word(
        0x4000_0001,
        0,
        Register::Eax,
        0,
        "kvmclock kvm_nopiodelay kvm_mmu_op kvmclock2 kvm_asyncpf kvm_steal_time kvm_pv_eoi kvm_pv_unhalt - \
         kvm_pv_tlb_flush kvm_asyncpf_vmexit kvm_pv_send_ipi kvm_poll_control kvm_pv_sched_yield kvm_asyncpf_int \
         kvm_msi_ext_dest_id kvm_hc_map_gpa_range kvm_migration_control - - - - - - kvmclock_stable",
    ),
    word(
        0x8000_0001,
        0,
        Register::Ecx,
        0,
        "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp fma4 \
         tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx",
    ),
    word(
        0x8000_0001,
        0,
        Register::Edx,
        0,
        "fpu vme de pse tsc msr pae mce cx8 apic - syscall mtrr pge mca cmov pat pse36 - mp nx - mmxext mmx fxsr fxsr_opt \
         pdpe1gb rdtscp - lm 3dnowext 3dnow",
    ),
    word(
        0x8000_0007,
        0,
        Register::Edx,
        0,
        "- - - - - - - hw_pstate nonstop_tsc cpb",
    ),
    word(
        0x8000_0008,
        0,
        Register::Ebx,
        0,
        "clzero irperf xsaveerptr - rdpru - - - - wbnoinvd - - ibpb - ibrs stibp - stibp_always_on - ibrs_same_mode - - - \
         amd_ppin ssbd virt_ssbd ssb_no cppc psfd btc_no ibpb_ret brs",
    ),
    word(
        0x8000_0021,
        0,
        Register::Eax,
        0,
        "no_nested_data_bp - lfence_rdtsc - - verw_clear null_sel_clr_base - autoibrs no_smm_ctl_msr - - - - - - - - - - - - \
         - - - - - sbpb ibpb_brtype srso_no",
    ),
];

impl Word {
    /// What a CPUID has of it; a leaf that is not there has nothing.
    pub fn in_cpuid(&self, cpuid: &[kvm_cpuid_entry2]) -> u32 {
        cpuid
            .iter()
            .find(|entry| self.is_of(entry))
            .map_or(0, |entry| self.register.of(entry))
    }

    /// Whether it is in this entry.
    pub fn is_of(&self, entry: &kvm_cpuid_entry2) -> bool {
        entry.function == self.function && entry.index == self.index
    }

    /// The bit of a feature.
    pub fn bit(&self, name: &str) -> Option<u32> {
        let place = self
            .names
            .split_whitespace()
            .position(|other| other == name);
        place.and_then(|bit| u32::try_from(bit).ok())
    }

    /// The bits whose names are wanted.
    pub fn bits(&self, wanted: impl Fn(&str) -> bool) -> u32 {
        let named = (0u32..).zip(self.names.split_whitespace());
        named
            .filter(|(_, name)| wanted(name))
            .fold(0, |bits, (bit, _)| bits | 1 << bit)
    }

    /// Bits that AMD has twice, here and in leaf 1, and others have there alone.
    pub fn copies(&self) -> u32 {
        match (self.function, self.register) {
            (0x8000_0001, Register::Edx) => 0x0183_f3ff,
            _ => 0,
        }
    }

    /// The names of bits that are set.
    pub fn names_of(&self, bits: u32) -> impl Iterator<Item = String> {
        let set = (0..32).filter(move |bit| bits >> bit & 1 == 1);
        set.map(|bit| self.name(bit))
    }

    /// The name of a bit; where Linux has none, where it is.
    fn name(&self, bit: u32) -> String {
        let place = usize::try_from(bit).unwrap_or(usize::MAX);
        match self.names.split_whitespace().nth(place) {
            Some(name) if name != "-" => name.to_owned(),
            _ => {
                let register = format!("{:?}", self.register).to_uppercase();
                format!(
                    "CPUID.{:#x}.{}:{register} bit {bit}",
                    self.function, self.index
                )
            }
        }
    }
}

/// Features of `guest` that `host` cannot offer, by name.
pub fn missing(guest: &[kvm_cpuid_entry2], host: &[kvm_cpuid_entry2]) -> Vec<String> {
    let mut missing = Vec::new();
    for word in WORDS {
        let lost = word.in_cpuid(guest) & !word.in_cpuid(host) & !word.ignore;
        for name in word.names_of(lost) {
            // AMD has some bits twice.
            if !missing.contains(&name) {
                missing.push(name);
            }
        }
    }
    missing
}

/// Whether a CPUID has a feature.
pub fn has(cpuid: &[kvm_cpuid_entry2], name: &str) -> bool {
    let word_has = |word: &Word| {
        word.bit(name)
            .is_some_and(|bit| word.in_cpuid(cpuid) >> bit & 1 == 1)
    };
    WORDS.iter().any(word_has)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::testing::entry;
    use super::*;

    #[test]
    fn what_a_host_lacks_has_the_names_of_linux() {
        let mut guest = [
            entry(1, 0),
            entry(7, 0),
            entry(0x8000_0001, 0),
            entry(0xd, 0),
        ];
        guest[0].ecx = 1 << 12 | 1 << 28 | 1 << 16 | 1 << 27;
        guest[1].ebx = 1 << 16;
        guest[2].edx = 1;
        guest[3].eax = 7;
        let mut host = guest;
        assert!(missing(&guest, &host).is_empty());
        host[0].ecx = 1 << 12;
        host[1].ebx = 0;
        host[3].eax = 3;
        assert_eq!(
            missing(&guest, &host),
            ["CPUID.0x1.0:ECX bit 16", "avx", "avx512f", "xcr0:avx"]
        );
        let all = missing(&guest, &[]);
        assert!(
            all.contains(&"fma".to_owned()) && all.contains(&"fpu".to_owned()),
            "{all:?}"
        );
    }

    /// Every word has 32 names at most, and a name stands for one bit (AMD's copies of leaf 1 apart).
    #[test]
    fn names_are_in_their_places() {
        let mut seen = HashMap::new();
        for word in WORDS {
            let names: Vec<_> = word.names.split_whitespace().collect();
            assert!(names.len() <= 32, "{word:?}");
            let copies = (word.function, word.register) == (0x8000_0001, Register::Edx);
            for name in names.iter().filter(|name| **name != "-" && !copies) {
                assert_eq!(seen.insert(*name, word.function), None, "{name}");
            }
        }
        let bit = |function, index, register, name| {
            let word = WORDS
                .iter()
                .find(|w| (w.function, w.index, w.register) == (function, index, register));
            word.unwrap().bit(name)
        };
        for (function, index, register, name, expected) in [
            (1, 0, Register::Ecx, "avx", 28),
            (1, 0, Register::Edx, "sse2", 26),
            (7, 0, Register::Ebx, "avx512vl", 31),
            (7, 0, Register::Ebx, "avx2", 5),
            (7, 0, Register::Ecx, "pks", 31),
            (7, 0, Register::Ecx, "rdpid", 22),
            (7, 0, Register::Edx, "spec_ctrl", 26),
            (7, 0, Register::Edx, "amx_tile", 24),
            (7, 1, Register::Eax, "lam", 26),
            (0xd, 0, Register::Eax, "xcr0:xtile_data", 18),
            (0x4000_0001, 0, Register::Eax, "kvmclock_stable", 24),
            (0x8000_0001, 0, Register::Ecx, "abm", 5),
            (0x8000_0001, 0, Register::Ecx, "mwaitx", 29),
            (0x8000_0001, 0, Register::Edx, "lm", 29),
            (0x8000_0007, 0, Register::Edx, "nonstop_tsc", 8),
            (0x8000_0008, 0, Register::Ebx, "btc_no", 29),
            (0x8000_0021, 0, Register::Eax, "srso_no", 29),
        ] {
            assert_eq!(
                bit(function, index, register, name),
                Some(expected),
                "{name}"
            );
        }
    }
}
