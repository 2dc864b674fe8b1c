//! KVM's dirty rings: each vCPU writes down which pages it has written, and only its own thread waits when the
//! list is full. Reading them costs what was written, however large the guest
//! (Documentation/virt/kvm/api.rst, 8.29 in Linux 6.1).
//!
//! The rooms: [`entry`] and [`mapping`] (what KVM shares with us), [`reader`] (one ring), [`hand_back`] (giving what
//! was read back to KVM), [`rings`] (those of a VM) with [`found`] (what was read in them), [`log`] (the dirty log that
//! stands on them), [`offer`] (what a KVM has).
//!
//! # The way of an entry
//! A page that is protected is written to: KVM lets go of the protection and writes an entry. It is read here, the page
//! goes into the set, and the entry is marked as read. When KVM is told (KVM_RESET_DIRTY_RINGS) it takes all marked
//! entries back and protects their pages again. A write after that makes a new entry; one before it makes none, but
//! comes before the page's bytes are read, as these are read only after KVM was told. So nothing is lost in the order:
//! read the ring, hand back, read the pages.
//!
//! In the middle of a round the same is done every few milliseconds for pages that are yet to be sent: what was written
//! to one that is protected again by now is in the bytes that are read, and it need not go once more.
//!
//! A processor with page-modification logging keeps up to 512 pages to itself until the vCPU leaves the guest. They are
//! in the ring when the vCPU has stopped, so the last look at a guest that stands still sees all; looks before that may
//! see a page one look later.

mod entry;
mod found;
mod hand_back;
pub mod log;
mod mapping;
pub mod offer;
mod reader;
mod rings;
#[cfg(test)]
mod tests;

/// Entries of a ring if nothing else is asked for: the most that Linux gives (KVM_DIRTY_RING_MAX_ENTRIES in
/// include/linux/kvm_dirty_ring.h). It takes 1 MiB a vCPU and holds 256 MiB of written pages.
pub const DEFAULT_ENTRIES: u32 = 65_536;
/// The fewest that can be asked for. KVM keeps 64 of them in reserve, and 512 more for page-modification logging.
pub const MIN_ENTRIES: u32 = 1024;
