//! IA32_ARCH_CAPABILITIES: the attacks against speculative execution that a processor is immune to, and its means
//! against others. A guest's kernel reads it once, as it boots, and leaves out what it need not do; so a host that says
//! less must not take such a guest. KVM would: it lets a VMM write any value.

use super::msr;

/// The MSR's number.
pub const MSR_IA32_ARCH_CAPABILITIES: u32 = 0x10a;

/// Names of the bits (Intel SDM vol. 4, table 2-2; arch/x86/include/asm/msr-index.h).
const NAMES: [(u32, &str); 28] = [
    (0, "RDCL_NO"),
    (1, "IBRS_ALL"),
    (2, "RSBA"),
    (3, "SKIP_L1DFL_VMENTRY"),
    (4, "SSB_NO"),
    (5, "MDS_NO"),
    (6, "IF_PSCHANGE_MC_NO"),
    (7, "TSX_CTRL"),
    (8, "TAA_NO"),
    (9, "MCU_CONTROL"),
    (10, "MISC_PACKAGE_CTLS"),
    (11, "ENERGY_FILTERING_CTL"),
    (12, "DOITM"),
    (13, "SBDR_SSDP_NO"),
    (14, "FBSDP_NO"),
    (15, "PSDP_NO"),
    (17, "FB_CLEAR"),
    (18, "FB_CLEAR_CTRL"),
    (19, "RRSBA"),
    (20, "BHI_NO"),
    (21, "XAPIC_DISABLE_STATUS"),
    (23, "OVERCLOCKING_STATUS"),
    (24, "PBRSB_NO"),
    (25, "GDS_CTRL"),
    (26, "GDS_NO"),
    (27, "RFDS_NO"),
    (28, "RFDS_CLEAR"),
    (62, "ITS_NO"),
];

/// RSBA and RRSBA say what a processor does worse: the guest has to know of it.
const WORSE: u64 = 1 << 2 | 1 << 19;

/// Why a guest that was told `guest` cannot run where KVM says `host`; None where it can.
pub fn refusal(guest: u64, host: u64) -> Option<String> {
    let promised = names(guest & !host & !WORSE);
    let unknown = names(host & !guest & WORSE);
    let mut why = Vec::new();
    if !promised.is_empty() {
        why.push(format!(
            "the guest was told of {promised}, which is not so here"
        ));
    }
    if !unknown.is_empty() {
        why.push(format!(
            "here is {unknown}, of which the guest was not told"
        ));
    }
    (!why.is_empty()).then(|| {
        format!(
            "{}: {} (guest {guest:#x}, here {host:#x}), so its kernel does less against speculative execution than this host's processor wants: choose a host with the source's processor, microcode and kernel, or start guests that are to come here with a baseline (--cpu v2)",
            msr::name(MSR_IA32_ARCH_CAPABILITIES),
            why.join("; "),
        )
    })
}

fn names(bits: u64) -> String {
    let set = (0..u64::BITS).filter(|bit| bits >> bit & 1 == 1);
    let name = |bit| match NAMES.iter().find(|(other, _)| *other == bit) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("bit {bit}"),
    };
    set.map(name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_is_less_immune_than_a_guest_was_told_refuses_it() {
        // RDCL_NO, MDS_NO, FB_CLEAR.
        let guest = 0x2_0021;
        assert_eq!(refusal(guest, guest), None);
        assert_eq!(refusal(guest, guest | 1 << 8 | 1 << 63), None);
        assert_eq!(refusal(0, !WORSE), None);
        let text = refusal(guest, 1 << 5).unwrap();
        assert!(text.starts_with("IA32_ARCH_CAPABILITIES (0x10a): the guest was told of RDCL_NO, FB_CLEAR, which is not so here"), "{text}");
        let text = refusal(1 << 63, 0).unwrap();
        assert!(
            text.contains("bit 63") && text.contains("--cpu v2"),
            "{text}"
        );
    }

    #[test]
    fn what_a_processor_does_worse_the_guest_has_to_know() {
        assert_eq!(refusal(1 << 19, 0), None);
        let text = refusal(0, 1 << 19).unwrap();
        assert!(
            text.contains("here is RRSBA, of which the guest was not told"),
            "{text}"
        );
    }
}
