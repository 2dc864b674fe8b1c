//! The VMM's own half of the dirty log: which pages it wrote itself. KVM's log only knows what vCPUs write.

use std::num::NonZeroUsize;

use vm_memory::bitmap::{AtomicBitmap, Bitmap, NewBitmap, RefSlice, WithBitmapSlice};

use crate::pages::PageSet;

/// Bytes in a page; [`PAGE_SIZE`](crate::pages::PAGE_SIZE), as lengths in memory have it.
const PAGE: NonZeroUsize = NonZeroUsize::new(4096).expect("not 0");
/// Bytes that share a mark in the upper level.
const GROUP: NonZeroUsize = NonZeroUsize::new(64 * 4096).expect("not 0");
/// Pages in them.
const GROUP_PAGES: usize = 64;

/// Marks of written pages of one region of guest memory, in two levels: taking them costs what was written, and next to
/// nothing for what was not.
#[derive(Debug, Default)]
pub struct Marks {
    pages: AtomicBitmap,
    groups: AtomicBitmap,
}

impl Marks {
    /// Takes all marks off, and adds their pages to a set in which the region begins at page `first`.
    ///
    /// A page whose mark is taken has been written before that: whoever reads it afterwards reads what was
    /// written, or finds it marked again.
    pub fn take(&self, first: u64, into: &mut PageSet) {
        let groups = self.groups.get_and_reset();
        for (word, bits) in (0usize..).zip(groups).filter(|(_, bits)| *bits != 0) {
            for group in (0..64).filter(|bit| bits >> bit & 1 == 1) {
                for page in self.marked(word * 64 + group) {
                    self.pages.reset_bit(page);
                    into.insert(first + page as u64);
                }
            }
        }
    }

    /// Adds the marked pages to a set as [`take`](Self::take) does, and leaves the marks where they are.
    pub fn peek(&self, first: u64, into: &mut PageSet) {
        for group in (0..self.groups.len()).filter(|group| self.groups.is_bit_set(*group)) {
            for page in self.marked(group) {
                into.insert(first + page as u64);
            }
        }
    }

    /// The marked pages of a group.
    fn marked(&self, group: usize) -> impl Iterator<Item = usize> + '_ {
        let start = group * GROUP_PAGES;
        (start..start + GROUP_PAGES).filter(|page| self.pages.is_bit_set(*page))
    }
}

impl<'a> WithBitmapSlice<'a> for Marks {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for Marks {
    fn mark_dirty(&self, offset: usize, len: usize) {
        // The page first: whoever takes the group's mark finds it.
        self.pages.mark_dirty(offset, len);
        self.groups.mark_dirty(offset, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.pages.dirty_at(offset)
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

impl NewBitmap for Marks {
    fn with_len(len: usize) -> Self {
        Self {
            pages: AtomicBitmap::new(len, PAGE),
            groups: AtomicBitmap::new(len, GROUP),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use proptest::prelude::*;

    use super::*;
    use crate::pages::PAGE_SIZE;

    const PAGES: u64 = 70 * 64;

    fn marks() -> Marks {
        Marks::with_len(usize::try_from(PAGES * PAGE_SIZE).unwrap())
    }

    fn taken(marks: &Marks) -> PageSet {
        let mut set = PageSet::empty(512 + PAGES);
        marks.take(512, &mut set);
        set
    }

    proptest! {
        #[test]
        fn what_is_marked_is_taken_once(
            writes in proptest::collection::vec((0..PAGES * PAGE_SIZE, 1u64..300_000), 0..20)
        ) {
            let marks = marks();
            let mut expected = PageSet::empty(512 + PAGES);
            for (offset, len) in writes {
                let len = len.min(PAGES * PAGE_SIZE - offset);
                marks.mark_dirty(usize::try_from(offset).unwrap(), usize::try_from(len).unwrap());
                let last = (offset + len - 1) / PAGE_SIZE;
                expected.insert_run(512 + offset / PAGE_SIZE..512 + last + 1);
            }
            let mut seen = PageSet::empty(512 + PAGES);
            marks.peek(512, &mut seen);
            prop_assert_eq!(&seen, &expected);
            prop_assert_eq!(taken(&marks), expected);
            prop_assert!(taken(&marks).is_empty());
        }
    }

    #[test]
    fn no_mark_is_lost_while_others_are_taken() {
        let (marks, done) = (marks(), AtomicBool::new(false));
        let mut seen = PageSet::empty(512 + PAGES);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for page in 0..PAGES {
                    marks.mark_dirty(usize::try_from(page * PAGE_SIZE).unwrap(), 1);
                }
                done.store(true, Ordering::Release);
            });
            while !done.load(Ordering::Acquire) {
                seen.union(&taken(&marks));
            }
        });
        seen.union(&taken(&marks));
        assert_eq!(seen.len(), PAGES);
    }
}
