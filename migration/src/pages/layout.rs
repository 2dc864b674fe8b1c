//! Where a guest's memory lies, and which page of the index is where.

use std::ops::Range;

use thiserror::Error;

use super::{MAX_MEMORY, MAX_REGIONS, PAGE_SIZE, REGION_ALIGN};

/// A piece of guest-physical memory without holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Guest-physical address of its first byte.
    pub gpa: u64,
    /// Its size in bytes.
    pub bytes: u64,
}

/// Where a guest's memory lies. Checked when made: aligned, ascending, not overlapping, bounded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryLayout {
    regions: Vec<Region>,
}

/// Why a list of regions is not a memory layout.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LayoutError {
    /// No region, or more than [`MAX_REGIONS`].
    #[error("a memory layout has 1 to {MAX_REGIONS} regions, not {0}")]
    Count(usize),
    /// A region's start or size is not a multiple of 2 MiB, or its size is zero.
    #[error(
        "memory region at {gpa:#x} of {bytes:#x} bytes: start and size must be multiples of 2 MiB and the size not zero"
    )]
    Align {
        /// Its start.
        gpa: u64,
        /// Its size in bytes.
        bytes: u64,
    },
    /// A region begins before the one before it ends, or ends beyond the address space.
    #[error(
        "memory region at {gpa:#x} of {bytes:#x} bytes overlaps the one before it or ends beyond 64 bits"
    )]
    Overlap {
        /// Its start.
        gpa: u64,
        /// Its size in bytes.
        bytes: u64,
    },
    /// More than [`MAX_MEMORY`] in all.
    #[error("{0:#x} bytes of guest memory are more than the 16 TiB that are supported")]
    TooLarge(u64),
}

impl MemoryLayout {
    /// Checks and takes a list of regions.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn new(regions: Vec<Region>) -> Result<Self, LayoutError> {
        if regions.is_empty() || regions.len() > MAX_REGIONS {
            return Err(LayoutError::Count(regions.len()));
        }
        let mut end = 0u64;
        let mut total = 0u64;
        for &Region { gpa, bytes } in &regions {
            if bytes == 0 || gpa % REGION_ALIGN != 0 || bytes % REGION_ALIGN != 0 {
                return Err(LayoutError::Align { gpa, bytes });
            }
            let next = gpa
                .checked_add(bytes)
                .ok_or(LayoutError::Overlap { gpa, bytes })?;
            if gpa < end {
                return Err(LayoutError::Overlap { gpa, bytes });
            }
            end = next;
            total = total.saturating_add(bytes);
        }
        if total > MAX_MEMORY {
            return Err(LayoutError::TooLarge(total));
        }
        Ok(Self { regions })
    }

    /// The regions, ascending.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Bytes in all.
    pub fn bytes(&self) -> u64 {
        self.regions.iter().map(|r| r.bytes).sum()
    }

    /// Pages in all: indices run from 0 to here.
    pub fn pages(&self) -> u64 {
        self.bytes() / PAGE_SIZE
    }

    /// The page indices of each region, beside it.
    pub fn ranges(&self) -> impl Iterator<Item = (Region, Range<u64>)> + '_ {
        let mut start = 0;
        self.regions.iter().map(move |&region| {
            let range = start..start + region.bytes / PAGE_SIZE;
            start = range.end;
            (region, range)
        })
    }

    /// The guest-physical address of a page; `None` beyond the last.
    pub fn gpa(&self, page: u64) -> Option<u64> {
        self.ranges()
            .find(|(_, range)| range.contains(&page))
            .map(|(region, range)| region.gpa + (page - range.start) * PAGE_SIZE)
    }

    /// The page that holds a guest-physical address; `None` in a hole.
    pub fn page(&self, gpa: u64) -> Option<u64> {
        self.ranges()
            .find(|(region, _)| gpa >= region.gpa && gpa - region.gpa < region.bytes)
            .map(|(region, range)| range.start + (gpa - region.gpa) / PAGE_SIZE)
    }
}
