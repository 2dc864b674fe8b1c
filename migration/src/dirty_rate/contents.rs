//! A dirty log that asks nothing of the guest: pages are read, and those that hold something else than before have been
//! written.
//!
//! KVM's logs cost a fault for each page armed, and huge pages for all of memory as long as they are on, which a guest
//! on an emulated processor feels most. This costs the time of a processor beside the guest's, so it is for samples. A
//! page written with what it held is not seen.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::dirty::DirtyLog;
use crate::guest::{GuestError, GuestRam};
use crate::pages::{MemoryLayout, PageSet};
use crate::ram::RamView;
use crate::verify::Memory;

/// The log: for [`measure`](super::measure), of a sample.
#[derive(Debug)]
pub struct Contents<'a> {
    ram: &'a GuestRam,
    layout: &'a MemoryLayout,
    state: Mutex<State<'a>>,
}

#[derive(Debug, Default)]
struct State<'a> {
    /// The next look names every page.
    all: bool,
    /// Memory as it was at the last look. To see which of it was touched takes a while in a large guest, so pages are
    /// armed by the same: one that is touched in between has been written.
    memory: Option<Memory<'a>>,
    /// Pages that were armed and are as they were then, with their digests.
    armed: Vec<(u64, u64)>,
    /// None was ever armed from here on.
    end: u64,
}

impl<'a> Contents<'a> {
    /// Of this memory.
    pub fn new(ram: &'a GuestRam, layout: &'a MemoryLayout) -> Self {
        Self {
            ram,
            layout,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State<'a>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DirtyLog for Contents<'_> {
    fn start(&self) -> Result<(), GuestError> {
        *self.state() = State {
            all: true,
            ..State::default()
        };
        Ok(())
    }

    fn take(&self, into: &mut PageSet) -> Result<(), GuestError> {
        let mut state = self.state();
        if std::mem::take(&mut state.all) {
            into.union(&PageSet::full(self.layout.pages()));
        }
        let view = RamView::new(self.ram, self.layout)?;
        let memory = Memory::new(self.ram, self.layout)?;
        state.armed.retain(|&(page, before)| {
            // Memory that nobody has touched is not touched by this.
            let same = memory.page(&view, page) == before;
            if !same {
                into.insert(page);
            }
            same
        });
        state.memory = Some(memory);
        Ok(())
    }

    fn peek(&self, _: &mut PageSet) -> Result<bool, GuestError> {
        Ok(false)
    }

    fn rearm(&self, set: &PageSet, range: Range<u64>) -> Result<(), GuestError> {
        let view = RamView::new(self.ram, self.layout)?;
        let mut state = self.state();
        let State {
            memory, armed, end, ..
        } = &mut *state;
        let memory = match memory {
            Some(memory) => memory,
            None => memory.insert(Memory::new(self.ram, self.layout)?),
        };
        let again = |page: &u64| range.contains(page) && set.contains(*page);
        // The first time one piece comes behind the other, and all need not be looked through each time.
        if range.start < *end {
            armed.retain(|(page, _)| !again(page));
        }
        *end = range.end.max(*end);
        let pages = set.runs(range.clone(), u64::MAX).flatten();
        armed.extend(pages.map(|page| (page, memory.page(&view, page))));
        Ok(())
    }

    fn stop(&self) -> Result<(), GuestError> {
        *self.state() = State::default();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::pages::{PAGE_SIZE, REGION_ALIGN, Region};
    use crate::touched::touched;

    #[test]
    fn a_page_is_written_when_it_holds_something_else() {
        let bytes = REGION_ALIGN;
        let len = usize::try_from(bytes).unwrap();
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), len)]).unwrap();
        let layout = MemoryLayout::new(vec![Region { gpa: 0, bytes }]).unwrap();
        let write = |page: u64, value: u64| {
            let at = GuestAddress(page * PAGE_SIZE + 1000);
            ram.write_obj(value, at).unwrap();
        };
        write(3, 1);
        let there = touched(&ram, &layout).unwrap();
        let log = Contents::new(&ram, &layout);
        log.start().unwrap();
        let look = || {
            let mut seen = PageSet::empty(layout.pages());
            log.take(&mut seen).unwrap();
            seen.runs(0..layout.pages(), u64::MAX).flatten().collect()
        };
        let all: Vec<u64> = look();
        assert_eq!(all.len() as u64, layout.pages());
        let mut armed = PageSet::empty(layout.pages());
        for page in [3, 4, 5, 100] {
            armed.insert(page);
        }
        log.rearm(&armed, 0..layout.pages()).unwrap();
        assert_eq!(touched(&ram, &layout).unwrap(), there);
        // The same again; one touched for the first time; one that is not armed; and zeros where nobody was.
        write(3, 1);
        write(4, 2);
        write(6, 3);
        write(5, 0);
        assert_eq!(look(), [4]);
        // Once is enough.
        write(4, 7);
        write(3, 2);
        assert_eq!(look(), [3]);
        log.rearm(&armed, 0..layout.pages()).unwrap();
        write(4, 8);
        assert_eq!(look(), [4]);
        log.stop().unwrap();
        write(100, 1);
        assert_eq!(look(), Vec::<u64>::new());
    }
}
