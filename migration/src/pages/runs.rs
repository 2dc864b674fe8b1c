//! Going through a set of pages: by runs of neighbours, and by pieces of memory.

use std::ops::Range;

use super::{MemoryLayout, PageSet};

/// Iterator over runs of neighbouring pages; made by [`PageSet::runs`].
#[derive(Debug)]
pub struct Runs<'a> {
    set: &'a PageSet,
    next: u64,
    end: u64,
    max: u64,
}

impl<'a> Runs<'a> {
    pub(super) fn new(set: &'a PageSet, range: Range<u64>, max: u64) -> Self {
        Self {
            set,
            next: range.start,
            end: range.end.min(set.capacity()),
            max: max.max(1),
        }
    }
}

impl Iterator for Runs<'_> {
    type Item = Range<u64>;

    fn next(&mut self) -> Option<Range<u64>> {
        let start = self
            .set
            .first_from(self.next)
            .filter(|&page| page < self.end)?;
        let most = self.end.min(start.saturating_add(self.max));
        let end = self.set.first_outside(start, most);
        self.next = end;
        Some(start..end)
    }
}

/// Iterator over pieces of memory with pages in them; made by [`PageSet::pieces`].
#[derive(Debug)]
pub struct Pieces<'a> {
    set: &'a PageSet,
    regions: Vec<Range<u64>>,
    pages: u64,
    next: u64,
}

impl<'a> Pieces<'a> {
    pub(super) fn new(set: &'a PageSet, layout: &MemoryLayout, pages: u64) -> Self {
        Self {
            set,
            regions: layout.ranges().map(|(_, range)| range).collect(),
            pages: pages.max(1),
            next: 0,
        }
    }
}

impl Iterator for Pieces<'_> {
    type Item = Range<u64>;

    fn next(&mut self) -> Option<Range<u64>> {
        let page = self.set.first_from(self.next)?;
        let region = self.regions.iter().find(|region| region.contains(&page))?;
        let start = page - (page - region.start) % self.pages;
        let end = region.end.min(start.saturating_add(self.pages));
        self.next = end;
        Some(start..end)
    }
}
