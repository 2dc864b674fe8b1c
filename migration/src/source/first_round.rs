//! Before the first round: which pages it has to send, and which of them are likely to go again.

use std::sync::Arc;
use std::time::Duration;

use super::error::MoveError;
use super::line::Line;
use super::trip::Trip;
use crate::cancel::CancelToken;
use crate::dirty::DirtyLog;
use crate::guest::GuestRam;
use crate::pack::packer::Resent;
use crate::pack::{MANY_MORE, WATCH};
use crate::pages::{MemoryLayout, PAGE_SIZE, PageSet};
use crate::touched::{PAGEMAP, touched};

/// Pages never touched are armed in the log so many at a time: 64 MiB, while which vCPUs cannot fault pages in.
const UNTOUCHED_CHUNK: u64 = 16_384;

/// Where differences are asked for: sees for a moment which pages the guest writes, so that they are kept
/// from the first round on. What it sees is to be sent, whether it was before or not.
pub(super) fn watch(
    todo: &mut PageSet,
    layout: &MemoryLayout,
    log: &dyn DirtyLog,
    main: &mut Line,
    trip: &Trip<'_>,
) -> Result<Option<Arc<Resent>>, MoveError> {
    let Some(cache) = trip.options.delta_cache else {
        return Ok(None);
    };
    for (_, range) in layout.ranges() {
        log.rearm(todo, range)?;
    }
    let (slice, times) = WATCH;
    let mut hot = PageSet::empty(layout.pages());
    for _ in 0..times {
        let before = hot.len();
        trip.cancel.sleep(slice)?;
        main.ask()?;
        log.take(&mut hot)?;
        let more = hot.len() - before;
        if more < MANY_MORE.max(before / 5) || hot.len() >= cache / PAGE_SIZE {
            break;
        }
    }
    todo.union(&hot);
    Ok(Some(Arc::new(Resent::new(cache, hot))))
}

/// Takes pages that nobody has ever touched out of the first round; says how many. Their log is armed
/// before the last look, so that a first touch is in that look or in the next take.
pub(super) fn leave_out_untouched(
    todo: &mut PageSet,
    ram: &GuestRam,
    layout: &MemoryLayout,
    log: &dyn DirtyLog,
    cancel: &CancelToken,
) -> Result<u64, MoveError> {
    let look = || {
        let touched = touched(ram, layout);
        touched.inspect_err(|error| {
            tracing::info!("untouched pages are looked at one by one: {PAGEMAP}: {error}");
        })
    };
    let Ok(before) = look() else {
        return Ok(0);
    };
    let mut untouched = todo.clone();
    untouched.subtract(&before);
    if untouched.is_empty() {
        return Ok(0);
    }
    for piece in untouched.pieces(layout, UNTOUCHED_CHUNK) {
        cancel.sleep(Duration::ZERO)?;
        log.rearm(&untouched, piece)?;
    }
    let Ok(now) = look() else {
        return Ok(0);
    };
    untouched.subtract(&now);
    todo.subtract(&untouched);
    Ok(untouched.len())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ops::Range;
    use std::sync::Mutex;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::guest::GuestError;
    use crate::pages::{REGION_ALIGN, Region};

    /// A log that is armed while the guest touches two pages for the first time: one just before the log forgets what
    /// it has, one just after.
    struct Raced<'a> {
        ram: &'a GuestRam,
        before: u64,
        after: u64,
        written: Mutex<BTreeSet<u64>>,
    }

    impl Raced<'_> {
        fn touch(&self, page: u64) {
            let at = GuestAddress(page * PAGE_SIZE);
            self.ram.write_obj(1u8, at).unwrap();
            self.written.lock().unwrap().insert(page);
        }
    }

    impl DirtyLog for Raced<'_> {
        fn start(&self) -> Result<(), GuestError> {
            unreachable!("it is on")
        }

        fn take(&self, _: &mut PageSet) -> Result<(), GuestError> {
            unreachable!("nobody asks yet")
        }

        fn peek(&self, _: &mut PageSet) -> Result<bool, GuestError> {
            unreachable!("nobody asks yet")
        }

        fn rearm(&self, set: &PageSet, range: Range<u64>) -> Result<(), GuestError> {
            self.touch(self.before);
            let stays = |page: &u64| !(range.contains(page) && set.contains(*page));
            self.written.lock().unwrap().retain(stays);
            self.touch(self.after);
            Ok(())
        }

        fn stop(&self) -> Result<(), GuestError> {
            unreachable!("it stays on")
        }
    }

    #[test]
    fn a_first_touch_while_untouched_pages_are_armed_is_in_the_round_or_in_the_log() {
        let bytes = 4 * REGION_ALIGN;
        let len = usize::try_from(bytes).unwrap();
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), len)]).unwrap();
        let layout = MemoryLayout::new(vec![Region { gpa: 0, bytes }]).unwrap();
        let old = 7;
        ram.write_obj(1u8, GuestAddress(old * PAGE_SIZE)).unwrap();
        let log = Raced {
            ram: &ram,
            before: 600,
            after: 1200,
            written: Mutex::default(),
        };
        let mut todo = PageSet::full(layout.pages());
        let cancel = CancelToken::new().unwrap();
        let left_out = leave_out_untouched(&mut todo, &ram, &layout, &log, &cancel).unwrap();
        // The kernel may have used huge pages, of which there are four.
        assert!(left_out > 0 && left_out + todo.len() == layout.pages());
        let written = log.written.lock().unwrap();
        for page in [old, log.before, log.after] {
            assert!(todo.contains(page) || written.contains(&page), "{page}");
        }
    }
}
