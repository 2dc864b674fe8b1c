//! Feature bits, queues and limits of a balloon (virtio 1.2, 5.5.2 and 5.5.3).
//!
//! Not offered are MUST_TELL_HOST (a page that the guest takes back is there as soon as it is touched, so nobody need
//! wait for a word), STATS_VQ, PAGE_POISON (with it free pages that are poisoned could not be given away), and
//! FREE_PAGE_HINT: docs/design.md says why reporting stands in its place.

/// STATS_VQ: the driver tells statistics of its memory.
const STATS_VQ: u64 = 1 << 1;
/// DEFLATE_ON_OOM: a guest that is out of memory may take pages back by itself.
pub const DEFLATE_ON_OOM: u64 = 1 << 2;
/// FREE_PAGE_HINT: the driver tells on demand which pages are free.
const FREE_PAGE_HINT: u64 = 1 << 3;
/// PAGE_REPORTING: the driver tells of free pages as they become free.
pub const PAGE_REPORTING: u64 = 1 << 5;

/// The queues that the specification has. The transport has all of them, whichever features are on offer, so that its
/// state keeps its form when a later version offers more.
pub const QUEUES: u16 = 5;
/// Entries of a queue. Linux wants at least 32 for reports, one a block of free pages.
pub const QUEUE_SIZE: u16 = 128;

/// Bytes of a page of the balloon, whatever the guest's own pages are (5.5.6).
pub const PAGE: u64 = 4096;
/// Bytes of a page's number, 32 bits, little-endian (5.5.6).
pub const NUMBER: u64 = 4;
/// The most pages that one request names. Drivers name 256 (Linux) or 1,024 (FreeBSD, Windows) at a time.
pub const MAX_PAGES: u64 = 16 << 10;
/// The most bytes that one report names, 1 GiB: Linux reports up to 32 blocks of 4 MiB.
pub const MAX_REPORT: u64 = 1 << 30;
/// A burst is over after so many pages: where none lie beside each other that is as many calls of the kernel, each of
/// which has every vCPU forget a mapping; some milliseconds in all. A pause waits for the burst.
pub const BURST_PAGES: u64 = 512;
/// A burst is over after so many bytes of reports, or one report: where the host has them in small pages, 128 MiB of
/// Linux's take it about ten milliseconds.
pub const BURST_REPORTS: u64 = 64 << 20;

/// What a balloon offers.
pub fn offered(reporting: bool, deflate_on_oom: bool) -> u64 {
    let bit = |on: bool, bit: u64| if on { bit } else { 0 };
    bit(reporting, PAGE_REPORTING) | bit(deflate_on_oom, DEFLATE_ON_OOM)
}

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Pages that the guest puts into the balloon.
    Inflate,
    /// Pages that it takes out.
    Deflate,
    /// Free pages.
    Report,
}

/// What queue `index` is for, with these features negotiated. Queues of features that are not are left out and the
/// others move up: that is how drivers number them, though the table of the specification (5.5.2) has fixed numbers.
pub fn role(features: u64, index: usize) -> Option<Role> {
    let optional = [
        (STATS_VQ, None),
        (FREE_PAGE_HINT, None),
        (PAGE_REPORTING, Some(Role::Report)),
    ];
    let always = [Some(Role::Inflate), Some(Role::Deflate)];
    let negotiated = optional
        .into_iter()
        .filter(|(bit, _)| features & bit != 0)
        .map(|(_, role)| role);
    always.into_iter().chain(negotiated).nth(index).flatten()
}
