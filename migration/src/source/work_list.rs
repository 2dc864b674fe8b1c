//! The list of work that all streams of a round take from: pieces of memory whose pages are armed in the dirty log, and
//! are sent a little later.
//!
//! Why later: a page that was written again between the two has to be sent with the next round whatever is sent now, so
//! it is left to that. Of a guest that writes anywhere in its memory this saves as much of the link as it leaves to the
//! next round. But a page that is written all the time, a stack or a counter, would otherwise go with each round, in
//! vain, and the shorter rounds get, the more of them are nothing else. (Xen's live migration passes over pages that
//! are dirty again for the same reason: Clark et al., Live Migration of Virtual Machines, NSDI 2005, 5.1.)

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::error::MoveError;
use crate::dirty::DirtyLog;
use crate::pages::{MemoryLayout, PageSet, Pieces};

/// How much of the link's time pages are armed before they are sent. Each that is written again within it costs the guest
/// a fault more; with 100 ms a guest that writes eight times what the link carries lost a quarter more work, and one at
/// the link's own speed no less than with this.
pub(crate) const AHEAD_TIME: Duration = Duration::from_millis(20);
/// And the most of them: 64 MiB.
pub(crate) const AHEAD_PAGES: u64 = 16_384;
/// The log is looked at so often at most: where KVM has the processor keep a log (Intel's PML), each look stops all
/// vCPUs for some microseconds.
pub(crate) const LOOK: Duration = Duration::from_millis(10);
/// And for one part of the time in so many at most, as a look reads the marks of all of the guest.
const LOOKING: u32 = 200;

/// How a round stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stand {
    /// Pages of the round that are yet to be sent.
    pub unsent: u64,
    /// Pages written that are armed, or do not belong to the round: the next one has to send them.
    pub written: u64,
    /// Those of them whose turn is yet to come, and which are left out then.
    pub left_out: u64,
}

/// What a stream sends next.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Lies in one region, starts at a multiple of 64, and is armed.
    pub range: Range<u64>,
    /// Words, from its first page on: pages written again since then. The next round has them. Empty where nobody
    /// looked.
    again: Vec<u64>,
}

impl Piece {
    /// Whether a page of the piece is left to the next round.
    pub fn is_written_again(&self, page: u64) -> bool {
        let at = page.checked_sub(self.range.start);
        let word = at.and_then(|at| self.again.get(usize::try_from(at / 64).ok()?));
        word.is_some_and(|word| word >> (page % 64) & 1 == 1)
    }
}

/// The pieces of a round that nobody has taken yet.
pub(super) struct WorkList<'a> {
    set: &'a PageSet,
    log: &'a dyn DirtyLog,
    /// So many pages are armed before their turn, if there are as many.
    ahead: u64,
    left: Mutex<Left<'a>>,
}

/// What is left of a round.
struct Left<'a> {
    pieces: Pieces<'a>,
    /// Pieces that are armed and wait for their turn, and their pages in all.
    waiting: VecDeque<(Range<u64>, u64)>,
    waiting_pages: u64,
    /// All pages of the round below this one are armed, and none from it on. A multiple of 64, or the end.
    armed: u64,
    /// The last look at the log.
    look: Look,
}

/// What the log said.
struct Look {
    seen: PageSet,
    /// All pages of the round below this one were armed before it; of the others it says nothing.
    armed: u64,
    /// Not again before this; `None` where the log does not say.
    due: Option<Instant>,
    /// What one costs: the least so far, as what a busy processor adds is nobody's fault.
    cost: Duration,
}

impl<'a> WorkList<'a> {
    /// The pages of `set`, in pieces of `chunk` pages of memory. Without pages `ahead` each piece is armed when it is
    /// taken, and nobody looks.
    pub fn new(
        set: &'a PageSet,
        log: &'a dyn DirtyLog,
        layout: &MemoryLayout,
        chunk: u64,
        ahead: u64,
    ) -> Self {
        let looks = ahead > 0;
        Self {
            set,
            log,
            ahead,
            left: Mutex::new(Left {
                pieces: set.pieces(layout, chunk),
                waiting: VecDeque::new(),
                waiting_pages: 0,
                armed: 0,
                look: Look {
                    seen: PageSet::empty(if looks { set.capacity() } else { 0 }),
                    armed: 0,
                    due: looks.then(|| Instant::now() + LOOK),
                    cost: Duration::MAX,
                },
            }),
        }
    }

    /// The next piece that has pages in it, armed: what is written to it from now on is in the next take. (KVM
    /// arms for one caller at a time anyway, so nobody waits longer for the lock than for it.)
    pub fn take(&self) -> Result<Option<Piece>, MoveError> {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let left = &mut *left;
        while left.waiting.is_empty() || left.waiting_pages < self.ahead {
            let Some(range) = left.pieces.next() else {
                left.armed = self.set.capacity();
                break;
            };
            self.log.rearm(self.set, range.clone())?;
            left.armed = range.end;
            let pages = count(self.set.words(range.clone()));
            left.waiting.push_back((range, pages));
            left.waiting_pages += pages;
        }
        left.look.again(self.log, left.armed)?;
        // Before the first look those that have waited least: it is too soon to say anything of them, and what is
        // written all the time has to be somewhere.
        let next = match left.look.armed {
            0 => left.waiting.pop_back(),
            _ => left.waiting.pop_front(),
        };
        let Some((range, pages)) = next else {
            return Ok(None);
        };
        left.waiting_pages -= pages;
        let again = left.look.written_again(&range);
        Ok(Some(Piece { range, again }))
    }

    /// Looks at the log without taking anything from it; `None` where it cannot be looked at. `seen` is room for
    /// that.
    pub fn stand(&self, seen: &mut PageSet) -> Result<Option<Stand>, MoveError> {
        seen.clear();
        // What is armed must not change while the log is read.
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.log.peek(seen)? {
            return Ok(None);
        }
        let outside = |here: &PageSet, there: &PageSet, pages: Range<u64>| -> u64 {
            let words = here.words(pages.clone()).iter().zip(there.words(pages));
            words
                .map(|(here, there)| u64::from((here & !there).count_ones()))
                .sum()
        };
        let waiting = left.waiting.iter();
        let waiting = waiting.map(|(range, _)| outside(self.set, seen, range.clone()));
        let waiting: u64 = waiting.sum();
        // Pages not armed may be marked or not: they are yet to be sent in this round.
        let rest = left.armed..self.set.capacity();
        Ok(Some(Stand {
            unsent: waiting + count(self.set.words(rest.clone())),
            written: count(seen.words(0..left.armed)) + outside(seen, self.set, rest),
            left_out: left.waiting_pages - waiting,
        }))
    }
}

impl Look {
    /// Looks once more, if it is time. All pages of the round below `armed` are armed.
    fn again(&mut self, log: &dyn DirtyLog, armed: u64) -> Result<(), MoveError> {
        let began = Instant::now();
        if self.due.is_some_and(|due| began >= due) {
            self.seen.clear();
            let says = log.peek(&mut self.seen)?;
            self.armed = if says { armed } else { 0 };
            self.cost = self.cost.min(began.elapsed());
            self.due = says.then(|| began + LOOK.max(self.cost * LOOKING));
        }
        Ok(())
    }

    /// The words of a piece's pages that were written since they were armed, as far as was looked. A page that was seen
    /// before it was armed is not one of them: what was written to it then is in what is sent now.
    fn written_again(&self, piece: &Range<u64>) -> Vec<u64> {
        match piece.end <= self.armed {
            true => self.seen.words(piece.clone()).to_vec(),
            false => Vec::new(),
        }
    }
}

/// How many pages the words have.
fn count(words: &[u64]) -> u64 {
    words.iter().map(|w| u64::from(w.count_ones())).sum()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::guest::GuestError;
    use crate::pages::{PAGE_SIZE, REGION_ALIGN, Region};

    /// Marks as KVM keeps them with manual protect.
    struct Marks(Mutex<PageSet>);

    impl Marks {
        fn write(&self, page: u64) {
            self.0.lock().unwrap().insert(page);
        }
    }

    impl DirtyLog for Marks {
        fn start(&self) -> Result<(), GuestError> {
            Ok(())
        }

        fn take(&self, into: &mut PageSet) -> Result<(), GuestError> {
            into.union(&self.0.lock().unwrap());
            Ok(())
        }

        fn peek(&self, into: &mut PageSet) -> Result<bool, GuestError> {
            self.take(into).map(|()| true)
        }

        fn rearm(&self, set: &PageSet, range: Range<u64>) -> Result<(), GuestError> {
            let mut part = PageSet::empty(set.capacity());
            part.insert_words(range.start, set.words(range.clone()));
            self.0.lock().unwrap().subtract(&part);
            Ok(())
        }

        fn stop(&self) -> Result<(), GuestError> {
            Ok(())
        }
    }

    #[test]
    fn what_is_written_counts_once_it_was_sent() {
        let region = |gpa, bytes| Region { gpa, bytes };
        let layout = MemoryLayout::new(vec![region(0, 4 * REGION_ALIGN)]).unwrap();
        let mut set = PageSet::empty(layout.pages());
        set.insert(700);
        set.insert(1700);
        set.insert(1701);
        let log = Marks(Mutex::new(set.clone()));
        let work = WorkList::new(&set, &log, &layout, 512, 0);
        let mut seen = PageSet::empty(layout.pages());
        let mut stand = || {
            let stand = work.stand(&mut seen).unwrap().unwrap();
            (stand.unsent, stand.written)
        };
        assert_eq!(stand(), (3, 0));
        // Not of the round; and of the round, but not sent yet.
        log.write(3);
        log.write(1700);
        assert_eq!(stand(), (3, 1));
        // Ranges without pages are nobody's work.
        let take = || work.take().unwrap().map(|piece| piece.range);
        assert_eq!(take(), Some(512..1024));
        assert_eq!(stand(), (2, 1));
        log.write(700);
        log.write(2000);
        assert_eq!(stand(), (2, 3));
        assert_eq!(take(), Some(1536..2048));
        assert_eq!(stand(), (0, 3));
        log.write(1701);
        assert_eq!(take(), None);
        assert_eq!(stand(), (0, 4));
        // Looking has taken nothing away.
        let mut taken = PageSet::empty(layout.pages());
        log.take(&mut taken).unwrap();
        assert_eq!(taken.len(), 4);
    }

    impl WorkList<'_> {
        /// Has the next take look.
        fn look_now(&self) {
            self.left.lock().unwrap().look.due = Some(Instant::now());
        }
    }

    fn layout(pages: u64) -> MemoryLayout {
        let bytes = pages * PAGE_SIZE;
        MemoryLayout::new(vec![Region { gpa: 0, bytes }]).unwrap()
    }

    #[test]
    fn what_is_written_again_before_its_turn_is_left_to_the_next_round() {
        let layout = layout(2048);
        let mut set = PageSet::empty(layout.pages());
        for page in [5, 70, 600, 1100, 1600] {
            set.insert(page);
        }
        let log = Marks(Mutex::new(set.clone()));
        let work = WorkList::new(&set, &log, &layout, 512, 4);
        // Before anybody has looked, what has waited least.
        let first = work.take().unwrap().unwrap();
        assert_eq!((first.range.clone(), first.again.len()), (1024..1536, 0));
        // Two that wait, and one that is not armed yet: what is written to it now is in what is sent.
        for page in [5, 600, 1600] {
            log.write(page);
        }
        work.look_now();
        let mut left_out = Vec::new();
        while let Some(piece) = work.take().unwrap() {
            let pages = set.runs(piece.range.clone(), u64::MAX).flatten();
            left_out.extend(pages.filter(|&page| piece.is_written_again(page)));
        }
        assert_eq!(left_out, [5, 600]);
        let mut next = PageSet::empty(layout.pages());
        log.take(&mut next).unwrap();
        assert_eq!(next.len(), 2);
    }

    /// What a guest and a round do, in any order.
    #[derive(Debug, Clone)]
    enum Act {
        Write(u64),
        Take,
        Look,
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            4 => (0..1024u64).prop_map(Act::Write),
            2 => Just(Act::Take),
            1 => Just(Act::Look),
        ]
    }

    proptest! {
        /// Whatever is written when: a page arrives as it is, or the next take has it.
        #[test]
        fn nothing_written_is_lost(
            written in prop::collection::vec(0..1024u64, 1..200),
            acts in prop::collection::vec(act(), 0..300),
            ahead in 0..300u64,
        ) {
            let layout = layout(1024);
            let mut set = PageSet::empty(layout.pages());
            // What was written last, by its number.
            let (mut here, mut there) = (BTreeMap::new(), BTreeMap::new());
            for page in written {
                set.insert(page);
                here.insert(page, 0);
            }
            let log = Marks(Mutex::new(set.clone()));
            let work = WorkList::new(&set, &log, &layout, 64, ahead);
            let all = acts.into_iter().chain((0..17).map(|_| Act::Take));
            for (number, act) in (1..).zip(all) {
                match act {
                    Act::Write(page) => {
                        here.insert(page, number);
                        log.write(page);
                    }
                    Act::Look => work.look_now(),
                    Act::Take => {
                        let Some(piece) = work.take().unwrap() else { continue };
                        let pages = set.runs(piece.range.clone(), u64::MAX).flatten();
                        for page in pages.filter(|&page| !piece.is_written_again(page)) {
                            there.insert(page, here[&page]);
                        }
                    }
                }
            }
            prop_assert_eq!(work.take().unwrap(), None);
            let mut next = PageSet::empty(layout.pages());
            log.take(&mut next).unwrap();
            let lost = here.keys().filter(|page| here.get(page) != there.get(page) && !next.contains(**page));
            prop_assert_eq!(lost.count(), 0);
        }
    }
}
