//! A round over all streams of a move: one list of work that every stream takes from, so that none stands
//! idle while another has pages left.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::connecting::Link;
use super::courier::{BATCH, Counts, Courier, Load};
use super::error::MoveError;
use super::line::Line;
use crate::confined::{self, Role};
use crate::dirty::DirtyLog;
use crate::guest::survive;
#[cfg(doc)]
use crate::options::LEAST_PATIENCE;
use crate::pages::{MemoryLayout, PageSet, Pieces};
use crate::placement::Bound;
use crate::wire::channel::ChannelError;

/// A further stream is worth its thread from so many pages on.
const WORTHWHILE: u64 = 2 * BATCH;
/// A stream that waits for the others, or finds nothing to send, says so often that it lives: well within any peer's
/// patience ([`LEAST_PATIENCE`]).
pub(super) const SIGN: Duration = Duration::from_millis(100);

/// How far a round has come, seen from all its couriers.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pages: AtomicU64,
    wire_bytes: AtomicU64,
}

impl Tally {
    pub fn add(&self, pages: u64, wire_bytes: u64) {
        self.pages.fetch_add(pages, Ordering::Relaxed);
        self.wire_bytes.fetch_add(wire_bytes, Ordering::Relaxed);
    }

    /// Pages and bytes so far.
    pub fn so_far(&self) -> (u64, u64) {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (read(&self.pages), read(&self.wire_bytes))
    }
}

/// How a round stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stand {
    /// Pages of the round that are not armed, so nobody has read them.
    pub unsent: u64,
    /// Pages written that are armed, or do not belong to the round: the next one has to send them.
    pub written: u64,
}

/// The ranges of a round that nobody has taken yet.
struct WorkList<'a> {
    set: &'a PageSet,
    log: &'a dyn DirtyLog,
    left: Mutex<Left<'a>>,
}

/// What is left of a round.
struct Left<'a> {
    ranges: Pieces<'a>,
    /// All pages of the round below this one are armed, and none from it on. A multiple of 64, or the end.
    armed: u64,
}

impl<'a> WorkList<'a> {
    fn new(set: &'a PageSet, log: &'a dyn DirtyLog, layout: &MemoryLayout, chunk: u64) -> Self {
        let ranges = set.pieces(layout, chunk);
        Self {
            set,
            log,
            left: Mutex::new(Left { ranges, armed: 0 }),
        }
    }

    /// The next range that has pages in it, armed: what is written to it from now on is in the next take. (KVM
    /// arms for one caller at a time anyway, so nobody waits longer for the lock than for it.)
    fn take(&self) -> Result<Option<Range<u64>>, MoveError> {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(range) = left.ranges.next() else {
            left.armed = self.set.capacity();
            return Ok(None);
        };
        self.log.rearm(self.set, range.clone())?;
        left.armed = range.end;
        Ok(Some(range))
    }

    /// Looks at the log without taking anything from it; `None` where it cannot be looked at. `seen` is room for
    /// that.
    fn stand(&self, seen: &mut PageSet) -> Result<Option<Stand>, MoveError> {
        seen.clear();
        let armed = {
            // What is armed must not change while the log is read.
            let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
            if !self.log.peek(seen)? {
                return Ok(None);
            }
            left.armed
        };
        let count = |words: &[u64]| words.iter().map(|w| u64::from(w.count_ones())).sum::<u64>();
        let rest = armed..self.set.capacity();
        let unsent = self.set.words(rest.clone());
        // Pages not armed may be marked or not: they are yet to be sent in this round.
        let strangers = seen.words(rest).iter().zip(unsent);
        let strangers = strangers.map(|(seen, unsent)| u64::from((seen & !unsent).count_ones()));
        Ok(Some(Stand {
            unsent: count(unsent),
            written: count(seen.words(0..armed)) + strangers.sum::<u64>(),
        }))
    }
}

/// A round under way, for whoever looks at it.
pub(super) struct Midway<'a> {
    pub tally: &'a Tally,
    work: &'a WorkList<'a>,
}

impl Midway<'_> {
    /// How the round stands; `None` where the log does not say before its end. `seen` is room for the log.
    pub fn stand(&self, seen: &mut PageSet) -> Result<Option<Stand>, MoveError> {
        self.work.stand(seen)
    }
}

/// Carries all pages of `load` in pieces of `chunk` pages; `look` is called between them, and may end it.
///
/// The first error sets off the alarm, which ends all streams.
pub(super) fn carry(
    load: Load<'_>,
    chunk: u64,
    link: &mut Link,
    look: &mut dyn FnMut(&Midway<'_>) -> Result<(), MoveError>,
) -> Result<Counts, MoveError> {
    let work = WorkList::new(load.set, load.log, load.layout, chunk);
    let tally = Tally::default();
    let midway = Midway {
        tally: &tally,
        work: &work,
    };
    let helpers = usize::try_from(load.set.len() / WORTHWHILE).unwrap_or(usize::MAX);
    let Link {
        main,
        others,
        alarm,
        processors,
        ..
    } = link;
    // A stream alone runs wherever the scheduler has it.
    let processors = processors.clone().filter(|_| helpers > 0);
    let bind = |index| {
        let mut bound = Bound::new(processors.clone());
        bound.follow(|| Some(processors.as_ref()?.of_stream(index)));
        bound
    };
    let (told, ends) = mpsc::channel();
    let toil = |line: &mut Line, look: &mut dyn FnMut(&Midway<'_>) -> Result<(), MoveError>| {
        let mut courier = Courier::new(load, line, &tally)?;
        while let Some(range) = work.take()? {
            courier.carry(&range)?;
            look(&midway)?;
        }
        Ok(courier.finish())
    };
    thread::scope(|scope| {
        let alarm = &*alarm;
        for (index, line) in (1..).zip(others.iter_mut().take(helpers)) {
            let (told, toil, bind) = (told.clone(), &toil, &bind);
            let thread = thread::Builder::new().name("stream".into());
            // Without a thread the work is done by those that are there.
            let spawned = thread.spawn_scoped(scope, move || {
                // A thread that panics would have the scope panic, too.
                let done = survive(|| {
                    confined::started(Role::Stream);
                    let _bound = bind(index);
                    toil(line, &mut |_| Ok(()))
                });
                if done.is_err() {
                    // Cannot fail on a token that is never committed.
                    let _ = alarm.cancel();
                }
                let _ = told.send(done);
            });
            if let Err(error) = spawned {
                tracing::warn!("a stream stands idle: no thread for it: {error}");
            }
        }
        drop(told);
        let _bound = bind(0);
        let mut all = toil(main, look);
        loop {
            if all.is_err() {
                // They end by themselves now.
                let _ = alarm.cancel();
            }
            match ends.recv_timeout(SIGN) {
                Ok(one) => all = together(all, one),
                Err(RecvTimeoutError::Timeout) if all.is_ok() => {
                    if let Err(error) = look(&midway).and_then(|()| main.keep_alive()) {
                        all = Err(error);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return all,
            }
        }
    })
}

/// The sum of two results. Of two errors the one that says more than that there is another.
fn together(
    all: Result<Counts, MoveError>,
    one: Result<Counts, MoveError>,
) -> Result<Counts, MoveError> {
    match (all, one) {
        (Ok(all), Ok(one)) => Ok(all.beside(one)),
        (Err(MoveError::Channel(ChannelError::Alarm)) | Ok(_), Err(error)) => Err(error),
        (Err(error), _) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::GuestError;
    use crate::pages::{REGION_ALIGN, Region};

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
        let work = WorkList::new(&set, &log, &layout, 512);
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
        assert_eq!(work.take().unwrap(), Some(512..1024));
        assert_eq!(stand(), (2, 1));
        log.write(700);
        log.write(2000);
        assert_eq!(stand(), (2, 3));
        assert_eq!(work.take().unwrap(), Some(1536..2048));
        assert_eq!(stand(), (0, 3));
        log.write(1701);
        assert_eq!(work.take().unwrap(), None);
        assert_eq!(stand(), (0, 4));
        // Looking has taken nothing away.
        let mut taken = PageSet::empty(layout.pages());
        log.take(&mut taken).unwrap();
        assert_eq!(taken.len(), 4);
    }
}
