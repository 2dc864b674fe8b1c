//! Pages by number, and sets of them.
//!
//! A page is named by its index: guest memory counted in 4 KiB pages, region after region, holes left out.
//! Every region is a multiple of 2 MiB, so each begins at a multiple of 512 in the index and one word of a
//! bitmap never spans two regions.

mod layout;
mod runs;
mod set;

pub use layout::{LayoutError, MemoryLayout, Region};
pub use runs::{Pieces, Runs};
pub use set::PageSet;

/// Bytes in a page. KVM's dirty log counts in these, whatever backs the guest's memory.
pub const PAGE_SIZE: u64 = 4096;
/// Every region's size and start are multiples of this (2 MiB, one huge page).
pub const REGION_ALIGN: u64 = 2 << 20;
/// The most guest memory that is accepted from anywhere: 16 TiB.
pub const MAX_MEMORY: u64 = 16 << 40;
/// The most regions in a layout. Ferry makes at most two.
pub const MAX_REGIONS: usize = 16;
