//! How large a balloon is to be and is, shared between the device and whoever asks for it: the VMM sets the target,
//! the driver says how far it is, and both may be looked at without the device's lock.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use super::features::PAGE;

/// The numbers of one balloon.
#[derive(Debug, Default)]
pub struct Levels {
    target: AtomicU32,
    actual: AtomicU32,
    inflated: AtomicU64,
    reported: AtomicU64,
}

impl Levels {
    /// How large the balloon is to be, in bytes.
    pub fn target(&self) -> u64 {
        u64::from(self.target.load(Relaxed)) * PAGE
    }

    /// How large the driver says that it is, in bytes. A hostile guest says what it likes.
    pub fn actual(&self) -> u64 {
        u64::from(self.actual.load(Relaxed)) * PAGE
    }

    /// Bytes given back in this process that the guest put into the balloon; each time it did.
    pub fn inflated(&self) -> u64 {
        self.inflated.load(Relaxed)
    }

    /// Bytes given back in this process that the guest reported as free; each time it did.
    pub fn reported(&self) -> u64 {
        self.reported.load(Relaxed)
    }

    /// Wants another size, in bytes, rounded down to pages. The driver has to be told
    /// ([`VirtioMmio::config_changed`](crate::virtio::VirtioMmio::config_changed)). `false` where no balloon is that
    /// large; nothing is changed then.
    pub fn want(&self, bytes: u64) -> bool {
        let pages = u32::try_from(bytes / PAGE);
        pages.map(|pages| self.target.store(pages, Relaxed)).is_ok()
    }

    /// The target in pages, as the driver reads it.
    pub(super) fn target_pages(&self) -> u32 {
        self.target.load(Relaxed)
    }

    /// What the driver has last said, in pages.
    pub(super) fn actual_pages(&self) -> u32 {
        self.actual.load(Relaxed)
    }

    /// Takes both over, in pages.
    pub(super) fn set(&self, target: u32, actual: u32) {
        self.target.store(target, Relaxed);
        self.set_actual(actual);
    }

    /// The driver says how far it is, in pages.
    pub(super) fn set_actual(&self, pages: u32) {
        self.actual.store(pages, Relaxed);
    }

    pub(super) fn count_inflated(&self, bytes: u64) {
        self.inflated.fetch_add(bytes, Relaxed);
    }

    pub(super) fn count_reported(&self, bytes: u64) {
        self.reported.fetch_add(bytes, Relaxed);
    }
}
