//! What ring a KVM has, and giving a VM one.

use kvm_bindings::{KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL};
use kvm_ioctls::{Kvm, VmFd};

use super::DEFAULT_ENTRIES;
use super::entry::Entry;
use crate::kvm::{KvmError, enable_capability};

/// The ring that a KVM has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    capability: u32,
    /// The most entries a vCPU; a power of two.
    pub entries: u32,
}

impl Offer {
    /// Looks which of the two capabilities there is, by a function that says what KVM_CHECK_EXTENSION answers: the size
    /// of the largest ring in bytes. ACQ_REL (Linux 6.1) promises the order of memory accesses that is kept here; the
    /// other, Linux 5.11, exists on x86 alone, which has that order anyway.
    pub fn find(check: impl Fn(u32) -> i32) -> Option<Self> {
        let offer = |capability| {
            let bytes = u32::try_from(check(capability)).unwrap_or(0);
            let entries = bytes / u32::try_from(size_of::<Entry>()).unwrap_or(u32::MAX);
            (entries > 0).then(|| Self {
                capability,
                entries: 1 << entries.ilog2(),
            })
        };
        offer(KVM_CAP_DIRTY_LOG_RING_ACQ_REL).or_else(|| offer(KVM_CAP_DIRTY_LOG_RING))
    }

    fn of(kvm: &Kvm) -> Result<Self, KvmError> {
        Self::find(|capability| kvm.check_extension_raw(u64::from(capability)))
            .ok_or(KvmError::NoRing)
    }
}

/// How many entries a ring will have: as many as wanted, else [`DEFAULT_ENTRIES`] or the most that there are.
///
/// # Errors
/// This KVM has no ring, or none so large.
pub fn entries(kvm: &Kvm, wanted: Option<u32>) -> Result<u32, KvmError> {
    choose(Offer::of(kvm)?, wanted)
}

fn choose(offer: Offer, wanted: Option<u32>) -> Result<u32, KvmError> {
    match wanted {
        None => Ok(offer.entries.min(DEFAULT_ENTRIES)),
        Some(wanted) if wanted <= offer.entries => Ok(wanted),
        Some(wanted) => Err(KvmError::RingTooLarge {
            wanted,
            offered: offer.entries,
        }),
    }
}

/// Gives the vCPUs of a VM rings of so many entries. Before its first vCPU; from then on KVM_GET_DIRTY_LOG is not to be
/// used.
///
/// Manual protection stays off: with KVM_DIRTY_LOG_INITIALLY_SET, KVM protects nothing when the log starts
/// (`kvm_mmu_slot_apply_flags` in arch/x86/kvm/x86.c) and leaves it to KVM_CLEAR_DIRTY_LOG, which does not exist
/// beside a ring; pages that are mapped writable by then would never be logged.
///
/// # Errors
/// KVM's refusal.
pub fn enable(kvm: &Kvm, vm: &VmFd, entries: u32) -> Result<(), KvmError> {
    let bytes = u64::from(entries) * size_of::<Entry>() as u64;
    let act = "give the VM's vCPUs dirty rings";
    enable_capability(vm, Offer::of(kvm)?.capability, bytes, act)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(acq_rel: i32, plain: i32) -> Option<Offer> {
        Offer::find(|capability| match capability {
            KVM_CAP_DIRTY_LOG_RING_ACQ_REL => acq_rel,
            KVM_CAP_DIRTY_LOG_RING => plain,
            _ => 0,
        })
    }

    #[test]
    fn the_ordered_ring_is_preferred_and_sizes_are_powers_of_two() {
        let offer = found(1 << 20, 1 << 20).unwrap();
        assert_eq!(
            (offer.capability, offer.entries),
            (KVM_CAP_DIRTY_LOG_RING_ACQ_REL, 65_536)
        );
        let offer = found(0, 3 << 18).unwrap();
        assert_eq!(
            (offer.capability, offer.entries),
            (KVM_CAP_DIRTY_LOG_RING, 32_768)
        );
        assert_eq!([found(0, 0), found(-1, 15)], [None, None]);
    }

    #[test]
    fn as_many_entries_as_wanted_and_given() {
        let offer = |entries| Offer {
            capability: KVM_CAP_DIRTY_LOG_RING,
            entries,
        };
        assert_eq!(choose(offer(1 << 20), None).unwrap(), DEFAULT_ENTRIES);
        assert_eq!(choose(offer(4096), None).unwrap(), 4096);
        assert_eq!(choose(offer(65_536), Some(1024)).unwrap(), 1024);
        let refusal = choose(offer(4096), Some(8192)).unwrap_err().to_string();
        assert!(
            refusal.contains("8192") && refusal.contains("4096"),
            "{refusal}"
        );
        let refusal = KvmError::NoRing.to_string();
        assert!(refusal.contains("--dirty-tracking bitmap"), "{refusal}");
    }
}
