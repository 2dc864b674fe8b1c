//! What was found in the rings of a VM and not yet taken.

use std::ops::Range;

use migration::pages::{MemoryLayout, PageSet};

use super::entry::Place;

/// What was read since it was last taken.
#[derive(Debug)]
pub struct Found {
    /// The pages of each memory slot, by page index.
    slots: Vec<Range<u64>>,
    pages: PageSet,
    /// Those of them that were read since the rings were handed back last: they are not protected yet.
    open: PageSet,
    /// Pages of each vCPU since the log was started.
    written: Vec<u64>,
    /// Pages may be missing in all of that.
    lost: bool,
    told: bool,
}

impl Found {
    /// Nothing yet, in the rings of so many vCPUs.
    pub fn new(layout: &MemoryLayout, vcpus: usize) -> Self {
        Self {
            slots: layout.ranges().map(|(_, pages)| pages).collect(),
            pages: PageSet::empty(layout.pages()),
            open: PageSet::empty(layout.pages()),
            written: vec![0; vcpus],
            lost: false,
            told: false,
        }
    }

    /// An entry of a vCPU's ring. A page counts once until it is taken or forgotten, for who was the first to write it:
    /// a KVM that emulates guest code makes an entry of each write, and a vCPU that writes one page all the time does
    /// not write much.
    pub fn note(&mut self, vcpu: usize, Place { slot, offset }: Place) {
        let pages = usize::try_from(slot)
            .ok()
            .and_then(|slot| self.slots.get(slot));
        match pages {
            Some(pages) if offset < pages.end - pages.start => {
                let page = pages.start + offset;
                if !self.pages.contains(page)
                    && let Some(written) = self.written.get_mut(vcpu)
                {
                    *written += 1;
                }
                self.pages.insert(page);
                self.open.insert(page);
            }
            _ => self.lose(&format!(
                "the dirty ring of vCPU {vcpu} names page {offset} of memory slot {slot:#x}, which is not there"
            )),
        }
    }

    /// Everything counts as written up to the next take, and a person is told why, once.
    pub fn lose(&mut self, what: &str) {
        self.lost = true;
        if !std::mem::replace(&mut self.told, true) {
            tracing::warn!(
                "{what}: all memory counts as written; where this KVM does that often, start the guest with --dirty-tracking bitmap"
            );
        }
    }

    /// A vCPU's ring was full.
    pub fn overflowed(&mut self, vcpu: usize) {
        self.lose(&format!(
            "the dirty ring of vCPU {vcpu} was full to its last entry, and KVM may have left writes out"
        ));
    }

    /// Whether everything counts as written.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// Adds the pages to a set, and keeps them.
    pub fn peek(&self, into: &mut PageSet) {
        match self.lost {
            true => into.fill(),
            false => into.union(&self.pages),
        }
    }

    /// All that was read so far has been handed back: it is protected again.
    pub fn handed_back(&mut self) {
        self.open.clear();
    }

    /// Forgets the pages of `set` within `range` that are protected again: they are about to be read, and what is
    /// written to them after that makes an entry. Nothing is forgotten where pages may be missing.
    pub fn rearm(&mut self, set: &PageSet, range: Range<u64>) {
        if !self.lost {
            self.pages.subtract_within(range, set, &self.open);
        }
    }

    /// Adds the pages to a set.
    pub fn take(&mut self, into: &mut PageSet) {
        self.peek(into);
        self.lost = false;
        self.pages.clear();
        self.open.clear();
    }

    /// Pages of each vCPU since all was forgotten.
    pub fn written(&self) -> &[u64] {
        &self.written
    }

    /// Begins anew.
    pub fn forget(&mut self) {
        self.pages.clear();
        self.open.clear();
        self.written.fill(0);
        self.lost = false;
    }
}
