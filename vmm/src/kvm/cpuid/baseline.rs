//! CPUs with a name that several hosts share: the micro-architecture levels of the x86-64 psABI (its section 3.1.1), as
//! guests see them.
//!
//! A guest with a baseline gets the same CPUID on every host of one vendor, whatever else that host's processor has:
//! the features of its level, what every such processor and KVM have beside them, and made-up values where processors
//! merely describe themselves (model, brand, caches, address width). A host that lacks one of the features does not
//! start the guest, and does not take it.
//!
//! Not in a baseline, so that the next host need not have it: everything against speculative execution that came
//! with microcode (spec_ctrl, md_clear and the like). The guest's kernel takes its own, slower measures instead.

use std::fmt;
use std::str::FromStr;

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use serde::{Deserialize, Serialize};

use super::features::{Register, WORDS};
use super::vendor;

/// The CPU that a guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub enum Baseline {
    /// All that this host has and a move can carry: neither nested virtualization nor performance counters.
    #[default]
    Host,
    /// x86-64-v1: every 64-bit processor.
    V1,
    /// x86-64-v2: SSE4.2; Nehalem, Bulldozer and later.
    V2,
    /// x86-64-v3: AVX2; Haswell, Zen and later.
    V3,
    /// x86-64-v4: AVX-512; Skylake servers, Zen 4 and later.
    V4,
}

impl Baseline {
    /// The word that stands for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::V1 => "v1",
            Self::V2 => "v2",
            Self::V3 => "v3",
            Self::V4 => "v4",
        }
    }

    /// The levels, the largest first.
    pub const LEVELS: [Self; 4] = [Self::V4, Self::V3, Self::V2, Self::V1];
}

impl fmt::Display for Baseline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Baseline {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut all = [Self::Host].into_iter().chain(Self::LEVELS);
        all.find(|baseline| baseline.word() == text)
            .ok_or_else(|| "take host, v1, v2, v3 or v4".into())
    }
}

/// What each level adds to the ones below. First the level itself, then what its processors all have besides and
/// kernels want (a clock, an APIC, protection of the kernel from itself).
const FEATURES: [(Baseline, &str); 4] = [
    (
        Baseline::V1,
        "cmov cx8 fpu fxsr mmx syscall sse sse2 \
         de pse tsc msr pae mce apic sep mtrr pge mca pat pse36 clflush nx lm \
         x2apic tsc_deadline_timer hypervisor kvmclock kvm_nopiodelay kvmclock2 kvm_pv_eoi kvmclock_stable",
    ),
    (
        Baseline::V2,
        "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3 rdtscp",
    ),
    (
        Baseline::V3,
        "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave xcr0:x87 xcr0:sse xcr0:avx \
         aes pclmulqdq rdrand fsgsbase smep xsaveopt",
    ),
    (
        Baseline::V4,
        "avx512f avx512bw avx512cd avx512dq avx512vl xcr0:opmask xcr0:zmm_hi256 xcr0:hi16_zmm smap adx rdseed clflushopt",
    ),
];

/// Performance counters and what hangs on them (PEBS, last branches): counts would not go on after a move. A guest that
/// has none knows it, and its perf takes time instead.
const COUNTERS: &str = "pdcm dts dtes64 ds_cpl arch_lbr arch_perfmon_ext perfctr_core perfctr_nb perfctr_llc ptsc irperf brs";
/// Their leaves: architectural performance monitoring (Intel SDM vol. 2A), its last branches, its extension; AMD's
/// (APM vol. 3, appendix E).
const COUNTER_LEAVES: [u32; 4] = [0xa, 0x1c, 0x23, 0x8000_0022];

/// Kept where the host has it: a TSC that never stops. A guest that was told so is refused by a host without it.
const OPTIONAL: &str = "nonstop_tsc";

/// Physical address bits: enough for 1 TiB, which is more than a guest has here, and had by every server.
const ADDRESS_BITS: u32 = 40;

/// The CPUID of a baseline on a host that offers `host`; of [`Baseline::Host`], all of it but the performance counters.
///
/// # Errors
/// The features that this host lacks.
pub fn apply(
    baseline: Baseline,
    host: &[kvm_cpuid_entry2],
) -> Result<Vec<kvm_cpuid_entry2>, Vec<String>> {
    if baseline == Baseline::Host {
        return Ok(without_counters(host));
    }
    let allowed = |name: &str| {
        let mut levels = FEATURES.iter().filter(|(level, _)| *level <= baseline);
        levels.any(|(_, names)| is_in(names, name))
    };
    let optional = |name: &str| is_in(OPTIONAL, name);
    let amd = vendor(host).is_some_and(|vendor| vendor != *b"GenuineIntel");
    let mut cpuid: Vec<_> = host
        .iter()
        .filter_map(|entry| described(baseline, amd, entry))
        .collect();
    if !amd {
        cpuid.extend(CACHES);
    }
    let mut wanted = Vec::new();
    for word in WORDS {
        let (needed, kept) = (word.bits(allowed), word.bits(optional));
        let needed_here = needed & !word.copies();
        wanted.push(only(word.function, word.index, word.register, needed_here));
        for entry in cpuid.iter_mut().filter(|entry| word.is_of(entry)) {
            *word.register.of_mut(entry) &= needed | kept;
        }
    }
    let mut missing = lacking(&wanted, host);
    if address_bits(host).is_some_and(|bits| bits < ADDRESS_BITS) {
        missing.push(format!("{ADDRESS_BITS} bits of physical addresses"));
    }
    if !missing.is_empty() {
        return Err(missing);
    }
    size_xsave(&mut cpuid);
    Ok(cpuid)
}

/// Whether a list of names has this one.
fn is_in(names: &str, name: &str) -> bool {
    names.split_whitespace().any(|other| other == name)
}

fn without_counters(host: &[kvm_cpuid_entry2]) -> Vec<kvm_cpuid_entry2> {
    let mut cpuid = host.to_vec();
    cpuid.retain(|entry| !COUNTER_LEAVES.contains(&entry.function));
    for word in WORDS {
        let counters = word.bits(|name| is_in(COUNTERS, name));
        for entry in cpuid.iter_mut().filter(|entry| word.is_of(entry)) {
            *word.register.of_mut(entry) &= !counters;
        }
    }
    cpuid
}

/// What `host` lacks of `wanted`, which has an entry a word.
fn lacking(wanted: &[kvm_cpuid_entry2], host: &[kvm_cpuid_entry2]) -> Vec<String> {
    let words = WORDS.iter().zip(wanted);
    let lost = words.flat_map(|(word, wanted)| {
        let lost = word.register.of(wanted) & !word.in_cpuid(host) & !word.ignore;
        word.names_of(lost)
    });
    lost.collect()
}

/// Physical address bits that a CPUID tells.
pub fn address_bits(cpuid: &[kvm_cpuid_entry2]) -> Option<u32> {
    let entry = cpuid.iter().find(|entry| entry.function == 0x8000_0008)?;
    Some(entry.eax & 0xff)
}

/// The best level that a host offers, for whoever has to choose one.
pub fn best(host: &[kvm_cpuid_entry2]) -> Option<Baseline> {
    let mut levels = Baseline::LEVELS.into_iter();
    levels.find(|&level| apply(level, host).is_ok())
}

/// An entry with one register.
fn only(function: u32, index: u32, register: Register, value: u32) -> kvm_cpuid_entry2 {
    let mut entry = kvm_cpuid_entry2 {
        function,
        index,
        ..Default::default()
    };
    *register.of_mut(&mut entry) = value;
    entry
}

/// An entry with what processors say of themselves made alike. Leaves that are not named here are left out: they
/// describe what a baseline has not (performance counters, AMX tiles, SGX, tracing).
fn described(baseline: Baseline, amd: bool, entry: &kvm_cpuid_entry2) -> Option<kvm_cpuid_entry2> {
    let mut entry = *entry;
    match entry.function {
        // The vendor stays: a guest's kernel goes by it. The last leaf is that of XSAVE, or of the topology.
        0 => entry.eax = if baseline >= Baseline::V3 { 0xd } else { 0xb },
        // The signature of QEMU's kvm64 and qemu64, which guests have been told for years: family 15.
        1 => {
            entry.eax = if amd { 0x0006_0fb1 } else { 0x0000_0f61 };
            // CLFLUSH lines of 64 bytes; the rest is a vCPU's own.
            entry.ebx = 8 << 8;
        }
        // APIC timer that runs always.
        6 => entry = only(6, 0, Register::Eax, entry.eax & 1 << 2),
        7 if entry.index == 0 => {
            entry.eax = 0;
        }
        // Made anew for each vCPU.
        0xb => {}
        0xd if baseline < Baseline::V3 => return None,
        0xd => {
            let states = state_components(baseline);
            if entry.index >= 2 && (entry.index >= 32 || states >> entry.index & 1 == 0) {
                return None;
            }
            if entry.index == 1 {
                (entry.ebx, entry.ecx, entry.edx) = (0, 0, 0);
            }
        }
        0x4000_0000 => entry.eax = 0x4000_0001,
        0x4000_0001 => entry.edx = 0,
        0x8000_0000 => entry.eax = 0x8000_0008,
        0x8000_0001 => (entry.eax, entry.ebx) = (0, 0),
        0x8000_0002..=0x8000_0004 => entry = brand(baseline, entry.function),
        // AMD's caches: L1 of 64 KiB each; L2 512 KiB, L3 16 MiB, as QEMU tells them.
        0x8000_0005 => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0x4002_0140, 0x4002_0140)
        }
        0x8000_0006 => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0x0200_8140, 0x0080_8140)
        }
        0x8000_0007 => (entry.eax, entry.ebx, entry.ecx) = (0, 0, 0),
        // Linear addresses of 48 bits.
        0x8000_0008 => (entry.eax, entry.ecx, entry.edx) = (48 << 8 | ADDRESS_BITS, 0, 0),
        _ => return None,
    }
    Some(entry)
}

/// Bits of XCR0 that belong to a baseline.
fn state_components(baseline: Baseline) -> u32 {
    let (avx, avx512) = (0b0000_0111, 0b1110_0111);
    if baseline >= Baseline::V4 {
        avx512
    } else {
        avx
    }
}

/// A cache in leaf 4 (Intel SDM vol. 2A): type and level, ways, sets; lines of 64 bytes, self-initializing.
const fn cache(index: u32, kind: u32, level: u32, ways: u32, sets: u32) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: 4,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: 1 << 8 | level << 5 | kind,
        ebx: (ways - 1) << 22 | 63,
        ecx: sets - 1,
        edx: 0,
        padding: [0; 3],
    }
}

/// Intel's caches: 32 KiB for data and for code, 1 MiB, 16 MiB. C libraries choose by their sizes how to copy memory,
/// and would take none for very small ones.
const CACHES: [kvm_cpuid_entry2; 4] = [
    cache(0, 1, 1, 8, 64),
    cache(1, 2, 1, 8, 64),
    cache(2, 3, 2, 16, 1024),
    cache(3, 3, 3, 16, 16384),
];

/// A third of the brand string.
fn brand(baseline: Baseline, function: u32) -> kvm_cpuid_entry2 {
    let mut text = [0; 48];
    let name = format!("Ferry x86-64-{baseline} processor");
    for (to, from) in text.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    let part = usize::try_from(function & 0xf).unwrap_or(2) - 2;
    let register = |number: usize| {
        let at = part * 16 + number * 4;
        let bytes = text.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        u32::from_le_bytes(bytes.unwrap_or_default())
    };
    kvm_cpuid_entry2 {
        function,
        eax: register(0),
        ebx: register(1),
        ecx: register(2),
        edx: register(3),
        ..Default::default()
    }
}

/// Leaf 0xd, 0: how large the XSAVE area is with the components that are left. Where each lies is the vendor's.
fn size_xsave(cpuid: &mut [kvm_cpuid_entry2]) {
    let end = |entry: &kvm_cpuid_entry2| entry.eax.saturating_add(entry.ebx);
    let components = cpuid
        .iter()
        .filter(|entry| entry.function == 0xd && entry.index >= 2);
    // The legacy region and the header.
    let bytes = components.map(end).fold(576, u32::max);
    for entry in cpuid
        .iter_mut()
        .filter(|entry| (entry.function, entry.index) == (0xd, 0))
    {
        (entry.ebx, entry.ecx, entry.edx) = (bytes, bytes, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::features::has;
    use super::super::testing::entry;
    use super::*;

    /// A processor that has every bit there is a name for, and describes itself at length.
    fn rich(vendor: &[u8; 12]) -> Vec<kvm_cpuid_entry2> {
        let mut cpuid = vec![entry(0, 0)];
        let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
        (cpuid[0].eax, cpuid[0].ebx, cpuid[0].edx, cpuid[0].ecx) =
            (0x20, word(0), word(4), word(8));
        for word in WORDS {
            if !cpuid.iter().any(|entry| word.is_of(entry)) {
                cpuid.push(entry(word.function, word.index));
            }
            let place = cpuid.iter_mut().find(|entry| word.is_of(entry)).unwrap();
            *word.register.of_mut(place) = u32::MAX;
        }
        for (function, index) in [
            (4, 0),
            (6, 0),
            (0xa, 0),
            (0x14, 0),
            (0x1d, 0),
            (0x8000_0002, 0),
            (0x8000_0003, 0),
            (0x8000_0004, 0),
            (0x8000_001e, 0),
        ] {
            let mut entry = entry(function, index);
            (entry.eax, entry.ebx) = (u32::MAX, 77);
            cpuid.push(entry);
        }
        for (index, bytes, at) in [
            (2, 256, 576),
            (5, 64, 1088),
            (6, 512, 1152),
            (7, 1024, 1664),
            (9, 8, 2688),
            (18, 8192, 2816),
        ] {
            let mut entry = entry(0xd, index);
            (entry.eax, entry.ebx) = (bytes, at);
            cpuid.push(entry);
        }
        let sizes = cpuid
            .iter_mut()
            .find(|e| e.function == 0x8000_0008)
            .unwrap();
        sizes.eax = 57 << 8 | 52;
        cpuid
    }

    #[test]
    fn each_level_has_its_features_and_no_others() {
        let host = rich(b"GenuineIntel");
        for (level, with, without) in [
            (Baseline::V1, "sse2", "pni"),
            (Baseline::V2, "sse4_2", "avx"),
            (Baseline::V3, "avx2", "avx512f"),
            (Baseline::V4, "avx512vl", "amx_tile"),
        ] {
            let cpuid = apply(level, &host).unwrap();
            assert!(has(&cpuid, with) && !has(&cpuid, without), "{level}");
            assert_eq!(has(&cpuid, "xsave"), level >= Baseline::V3, "{level}");
            for hidden in [
                "spec_ctrl",
                "vmx",
                "arch_capabilities",
                "kvm_asyncpf",
                "xsaves",
            ] {
                assert!(!has(&cpuid, hidden), "{level}: {hidden}");
            }
            // Only leaves that are the same everywhere, and none of counters or tiles.
            assert!(
                cpuid
                    .iter()
                    .all(|e| !matches!(e.function, 0xa | 0x14 | 0x1d | 0x8000_001e)),
                "{level}"
            );
            assert_eq!(address_bits(&cpuid), Some(40));
        }
    }

    #[test]
    fn a_guest_with_all_that_its_host_has_has_no_counters() {
        let host = rich(b"GenuineIntel");
        let guest = apply(Baseline::Host, &host).unwrap();
        for hidden in COUNTERS.split_whitespace() {
            assert!(has(&host, hidden) && !has(&guest, hidden), "{hidden}");
        }
        let leaf = |cpuid: &[kvm_cpuid_entry2], function| {
            cpuid.iter().any(|entry| entry.function == function)
        };
        assert!(leaf(&host, 0xa) && !leaf(&guest, 0xa));
        for kept in ["spec_ctrl", "amx_tile", "avx512vl", "arch_capabilities"] {
            assert!(has(&guest, kept), "{kept}");
        }
        assert_eq!(apply(Baseline::Host, &guest).unwrap(), guest);
    }

    /// Two hosts of which one has much more, and other values everywhere, make the same CPU of it.
    #[test]
    fn hosts_that_differ_make_the_same_cpu() {
        for vendor in [b"GenuineIntel", b"AuthenticAMD"] {
            let rich = rich(vendor);
            let mut poor = rich.clone();
            poor.retain(|e| !matches!((e.function, e.index), (0x1d | 0x14, _) | (0xd, 9 | 18)));
            for entry in &mut poor {
                match (entry.function, entry.index) {
                    (1, 0) => (entry.eax, entry.ebx) = (0x906ed, 1),
                    (7, 0) => (entry.ecx, entry.edx) = (0, 0),
                    (7, 1) | (0xa, 0) => entry.eax = 0,
                    (0x8000_0008, 0) => (entry.eax, entry.ebx) = (48 << 8 | 46, 0),
                    (0x8000_0002..=0x8000_0004, 0) => entry.eax = 1,
                    _ => {}
                }
            }
            for level in Baseline::LEVELS {
                assert_eq!(
                    apply(level, &rich).unwrap(),
                    apply(level, &poor).unwrap(),
                    "{level}"
                );
            }
        }
    }

    #[test]
    fn what_a_host_lacks_is_named_and_its_best_level_known() {
        let mut host = rich(b"GenuineIntel");
        assert_eq!(best(&host), Some(Baseline::V4));
        let leaf = host
            .iter_mut()
            .find(|e| (e.function, e.index) == (7, 0))
            .unwrap();
        leaf.ebx &= !(1 << 16 | 1 << 31);
        assert_eq!(
            apply(Baseline::V4, &host).unwrap_err(),
            ["avx512f", "avx512vl"]
        );
        assert_eq!(best(&host), Some(Baseline::V3));
        let sizes = host.iter_mut().find(|e| e.function == 0x8000_0008).unwrap();
        sizes.eax = 48 << 8 | 39;
        assert_eq!(
            apply(Baseline::V1, &host).unwrap_err(),
            ["40 bits of physical addresses"]
        );
        assert_eq!(best(&host), None);
        assert!(
            apply(Baseline::V1, &[])
                .unwrap_err()
                .contains(&"sse2".to_owned())
        );
    }

    #[test]
    fn the_xsave_area_has_the_size_of_what_is_left() {
        let host = rich(b"GenuineIntel");
        for (level, bytes, components) in [
            (Baseline::V3, 832, vec![2]),
            (Baseline::V4, 2688, vec![2, 5, 6, 7]),
        ] {
            let cpuid = apply(level, &host).unwrap();
            let of = |index| {
                cpuid
                    .iter()
                    .find(|e| (e.function, e.index) == (0xd, index))
                    .unwrap()
            };
            assert_eq!(
                (of(0).ebx, of(0).ecx, of(0).edx),
                (bytes, bytes, 0),
                "{level}"
            );
            let rest = cpuid.iter().filter(|e| e.function == 0xd && e.index >= 2);
            assert_eq!(
                rest.map(|e| e.index).collect::<Vec<_>>(),
                components,
                "{level}"
            );
            assert_eq!(of(1).eax, 1, "{level}");
        }
        assert!(
            apply(Baseline::V2, &host)
                .unwrap()
                .iter()
                .all(|e| e.function != 0xd)
        );
    }

    #[test]
    fn the_brand_says_what_it_is() {
        let cpuid = apply(Baseline::V2, &rich(b"AuthenticAMD")).unwrap();
        let parts = cpuid
            .iter()
            .filter(|e| (0x8000_0002..=0x8000_0004).contains(&e.function));
        let bytes: Vec<u8> = parts
            .flat_map(|e| [e.eax, e.ebx, e.ecx, e.edx])
            .flat_map(u32::to_le_bytes)
            .collect();
        assert_eq!(
            std::str::from_utf8(&bytes).unwrap().trim_end_matches('\0'),
            "Ferry x86-64-v2 processor"
        );
    }

    /// Every feature of a level is in one word, or a mistyped one would be asked of nobody.
    #[test]
    fn every_feature_of_a_level_is_known() {
        for name in FEATURES
            .iter()
            .flat_map(|(_, names)| names.split_whitespace())
            .chain(OPTIONAL.split_whitespace())
            .chain(COUNTERS.split_whitespace())
        {
            assert!(WORDS.iter().any(|word| word.bit(name).is_some()), "{name}");
        }
    }

    #[test]
    fn baselines_are_read_as_they_are_shown() {
        for baseline in [Baseline::Host].into_iter().chain(Baseline::LEVELS) {
            assert_eq!(baseline.to_string().parse(), Ok(baseline));
        }
        assert!("v5".parse::<Baseline>().is_err());
    }
}
