//! Memory that is filled while its guest runs, and what of it need not be any more.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use migration::guest::GuestRam;
use migration::pages::{PAGE_SIZE, PageSet};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

/// The pages that are not to be filled any more: they were, or the guest has given them away before it came to that.
/// Shared by who fills memory and who gives it back to the host. Of memory that nobody fills it holds nothing.
///
/// Who fills a page holds the lock from his look until the page is in; who gives it back takes the lock before it goes.
/// So what was given away is not filled afterwards.
#[derive(Debug, Clone)]
pub struct Filled(Arc<Mutex<PageSet>>);

impl Default for Filled {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(PageSet::empty(0))))
    }
}

impl Filled {
    /// From now on so many pages are to be filled.
    pub fn begin(&self, pages: u64) {
        *self.lock() = PageSet::empty(pages);
    }

    /// Everything is filled.
    pub fn end(&self) {
        self.begin(0);
    }

    /// The pages. Guest memory must not be touched under this lock: whoever touches it may wait for who fills it.
    pub fn lock(&self) -> MutexGuard<'_, PageSet> {
        // Whoever panicked with it has put pages in, each of them whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The whole pages from the first of these guest-physical addresses, in a region of `ram`, to the last are about to
    /// be given back.
    pub fn give_up(&self, ram: &GuestRam, bytes: &Range<u64>) {
        // Pages are counted through all regions.
        let mut first = 0;
        for region in ram.iter() {
            let start = region.start_addr().raw_value();
            if region.to_region_addr(GuestAddress(bytes.start)).is_some() {
                let from = (bytes.start - start).div_ceil(PAGE_SIZE);
                let to = bytes.end.saturating_sub(start).min(region.len()) / PAGE_SIZE;
                self.lock().insert_run(first + from..first + to);
                return;
            }
            first += region.len() / PAGE_SIZE;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::memory::{Backing, map};

    #[test]
    fn what_is_given_up_is_found_by_its_page() {
        // Below and above the 32-bit gap.
        let layout = crate::layout::memory_layout((3 << 30) + (512 << 20)).unwrap();
        let ram = map(&layout, Backing::Anonymous).unwrap();
        let high = layout.regions()[1].gpa;
        let filled = Filled::default();
        filled.give_up(&ram, &(0..0x1000));
        assert!(filled.lock().is_empty(), "nobody fills it");
        filled.begin(layout.pages());
        let given = [
            0x3000..0x5000,
            high..high + 0x1000,
            // No whole page, and nothing that is memory.
            0x7001..0x8fff,
            high - 0x1000..high,
            u64::MAX - 0xfff..u64::MAX,
        ];
        given.iter().for_each(|bytes| filled.give_up(&ram, bytes));
        let of_high = layout.page(high).unwrap();
        let pages = filled.lock().clone();
        let runs: Vec<_> = pages.runs(0..layout.pages(), u64::MAX).collect();
        assert_eq!(runs, [3..5, of_high..of_high + 1]);
        filled.end();
        assert_eq!(filled.lock().capacity(), 0);
    }
}
