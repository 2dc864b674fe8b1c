//! One entry of a dirty ring, as KVM and we share it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use kvm_bindings::kvm_dirty_gfn;

/// The entry names a page that was written (`KVM_DIRTY_GFN_F_DIRTY`, include/uapi/linux/kvm.h).
const DIRTY: u32 = 1;
/// The entry was read, and waits to be taken back (`KVM_DIRTY_GFN_F_RESET`).
const RESET: u32 = 2;

/// `struct kvm_dirty_gfn`. KVM writes to it while we look.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Entry {
    flags: AtomicU32,
    slot: AtomicU32,
    offset: AtomicU64,
}

const _: () = assert!(
    size_of::<Entry>() == size_of::<kvm_dirty_gfn>()
        && align_of::<Entry>() == align_of::<kvm_dirty_gfn>()
);

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing; KVM may write to it.
    Unused,
    /// It names a page, and nobody has read it.
    Written,
    /// It was read; KVM may take it back.
    Read,
}

/// The page that an entry names, as KVM names pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The memory slot in the low half, its address space in the high half.
    pub slot: u32,
    /// The page within the slot.
    pub offset: u64,
}

impl Entry {
    /// What it is now.
    pub fn state(&self) -> State {
        #[cfg(test)]
        super::tests::model::somebody_looks();
        // Acquire, with KVM's release: an entry that is seen as written has its page in it. KVM promises that order
        // under KVM_CAP_DIRTY_LOG_RING_ACQ_REL; x86 has it anyway.
        match self.flags.load(Ordering::Acquire) {
            flags if flags & RESET != 0 => State::Read,
            flags if flags & DIRTY != 0 => State::Written,
            _ => State::Unused,
        }
    }

    /// Reads it, if it is written, and marks it as read.
    pub fn read(&self) -> Option<Place> {
        if self.state() != State::Written {
            return None;
        }
        let place = Place {
            slot: self.slot.load(Ordering::Relaxed),
            offset: self.offset.load(Ordering::Relaxed),
        };
        // Release: KVM may overwrite what is marked, and we have read it by then.
        self.flags.store(RESET, Ordering::Release);
        Some(place)
    }

    /// Marks it as read although nothing is in it, so that KVM goes past it: KVM then protects the page that was in it
    /// last, which does no harm. `false`: KVM has written to it meanwhile, and that stays.
    pub fn pass_over(&self) -> bool {
        self.flags
            .compare_exchange(0, RESET, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Takes that mark off again. `false`: KVM has come past meanwhile. Only where KVM is not writing to the ring.
    pub fn unmark(&self) -> bool {
        self.flags
            .compare_exchange(RESET, 0, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

#[cfg(test)]
impl Entry {
    /// KVM's side: writes a page into it, whatever it is.
    pub fn write(&self, place: Place) {
        self.slot.store(place.slot, Ordering::Relaxed);
        self.offset.store(place.offset, Ordering::Relaxed);
        self.flags.store(DIRTY, Ordering::Release);
    }

    /// KVM's side: takes it back, if it is marked.
    pub fn take_back(&self) -> Option<Place> {
        (self.state() == State::Read).then(|| {
            self.flags.store(0, Ordering::Release);
            Place {
                slot: self.slot.load(Ordering::Relaxed),
                offset: self.offset.load(Ordering::Relaxed),
            }
        })
    }
}
