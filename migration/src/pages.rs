//! Pages by number, and sets of them.
//!
//! A page is named by its index: guest memory counted in 4 KiB pages, region after region, holes left out.
//! Every region is a multiple of 2 MiB, so each begins at a multiple of 512 in the index and one word of a
//! bitmap never spans two regions.

use std::ops::Range;

use thiserror::Error;

/// Bytes in a page. KVM's dirty log counts in these, whatever backs the guest's memory.
pub const PAGE_SIZE: u64 = 4096;
/// Every region's size and start are multiples of this (2 MiB, one huge page).
pub const REGION_ALIGN: u64 = 2 << 20;
/// The most guest memory that is accepted from anywhere: 16 TiB.
pub const MAX_MEMORY: u64 = 16 << 40;
/// The most regions in a layout. Ferry makes at most two.
pub const MAX_REGIONS: usize = 16;

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

/// A set of pages out of `0..pages`. The one bitmap type of Ferry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageSet {
    /// Bit `i % 64` of word `i / 64` is page `i`; bits beyond the last page are never set.
    words: Vec<u64>,
    pages: u64,
}

impl PageSet {
    /// The empty set out of `pages` pages.
    ///
    /// # Panics
    /// If a set of so many pages cannot be addressed on this machine; a [`MemoryLayout`] never asks for that.
    pub fn empty(pages: u64) -> Self {
        let words = usize::try_from(pages.div_ceil(64)).expect("a page set fits the address space");
        Self {
            words: vec![0; words],
            pages,
        }
    }

    /// The set of all `pages` pages.
    pub fn full(pages: u64) -> Self {
        let mut set = Self::empty(pages);
        set.words.fill(u64::MAX);
        set.trim();
        set
    }

    fn trim(&mut self) {
        let tail = self.pages % 64;
        if tail != 0
            && let Some(last) = self.words.last_mut()
        {
            *last &= (1 << tail) - 1;
        }
    }

    /// How many pages there could be: one more than the highest index.
    pub fn capacity(&self) -> u64 {
        self.pages
    }

    /// How many pages are in the set.
    pub fn len(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    /// Whether no page is in the set.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&w| w == 0)
    }

    /// Takes every page out.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Whether a page is in the set; `false` beyond the last page.
    pub fn contains(&self, page: u64) -> bool {
        let word = usize::try_from(page / 64)
            .ok()
            .and_then(|i| self.words.get(i));
        word.is_some_and(|w| w >> (page % 64) & 1 == 1)
    }

    /// Puts a page in; pages beyond the last are ignored.
    pub fn insert(&mut self, page: u64) {
        if page < self.pages
            && let Some(word) = usize::try_from(page / 64)
                .ok()
                .and_then(|i| self.words.get_mut(i))
        {
            *word |= 1 << (page % 64);
        }
    }

    /// Puts a run of pages in; those beyond the last are ignored.
    pub fn insert_run(&mut self, run: Range<u64>) {
        let end = run.end.min(self.pages);
        let mut page = run.start;
        while page < end {
            let next = (page & !63) + 64;
            let upto = u64::MAX >> (64 - (end.min(next) - (page & !63)));
            let Some(word) = usize::try_from(page / 64)
                .ok()
                .and_then(|i| self.words.get_mut(i))
            else {
                return;
            };
            *word |= upto & (u64::MAX << (page % 64));
            page = next;
        }
    }

    /// Puts in what the words say from page `first` on, which is a multiple of 64; bits beyond the last
    /// page are ignored. KVM hands its log over in this form, region by region.
    pub fn insert_words(&mut self, first: u64, words: &[u64]) {
        debug_assert_eq!(first % 64, 0);
        let start = usize::try_from(first / 64)
            .unwrap_or(usize::MAX)
            .min(self.words.len());
        for (mine, theirs) in self.words[start..].iter_mut().zip(words) {
            *mine |= theirs;
        }
        self.trim();
    }

    /// The words that hold the pages of `range`, whose start is a multiple of 64; clipped to the set.
    pub fn words(&self, range: Range<u64>) -> &[u64] {
        debug_assert_eq!(range.start % 64, 0);
        let at = |page: u64| {
            usize::try_from(page)
                .unwrap_or(usize::MAX)
                .min(self.words.len())
        };
        let (start, end) = (at(range.start / 64), at(range.end.div_ceil(64)));
        &self.words[start..end.max(start)]
    }

    /// Adds all pages of another set of the same capacity.
    pub fn union(&mut self, other: &PageSet) {
        self.insert_words(0, &other.words);
    }

    /// Takes out all pages of another set of the same capacity.
    pub fn subtract(&mut self, other: &PageSet) {
        for (mine, theirs) in self.words.iter_mut().zip(&other.words) {
            *mine &= !theirs;
        }
    }

    /// The runs of neighbouring pages within `range`, each at most `max` pages long.
    pub fn runs(&self, range: Range<u64>, max: u64) -> Runs<'_> {
        Runs {
            set: self,
            next: range.start,
            end: range.end.min(self.pages),
            max: max.max(1),
        }
    }
}

/// Iterator over runs of neighbouring pages; made by [`PageSet::runs`].
#[derive(Debug)]
pub struct Runs<'a> {
    set: &'a PageSet,
    next: u64,
    end: u64,
    max: u64,
}

impl Runs<'_> {
    /// The first page from `from` on whose membership is `wanted`, or the end.
    fn seek(&self, from: u64, wanted: bool) -> u64 {
        let mut page = from;
        while page < self.end {
            let word = self
                .set
                .words(page & !63..(page & !63) + 1)
                .first()
                .copied()
                .unwrap_or(0);
            let word = if wanted { word } else { !word } & (u64::MAX << (page % 64));
            if word != 0 {
                return ((page & !63) + u64::from(word.trailing_zeros())).min(self.end);
            }
            page = (page & !63) + 64;
        }
        self.end
    }
}

impl Iterator for Runs<'_> {
    type Item = Range<u64>;

    fn next(&mut self) -> Option<Range<u64>> {
        let start = self.seek(self.next, true);
        if start >= self.end {
            return None;
        }
        let end = self.seek(start, false).min(start.saturating_add(self.max));
        self.next = end;
        Some(start..end)
    }
}
