//! A round over all streams of a move: one list of work that every stream takes from, so that none stands
//! idle while another has pages left.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use super::connecting::Link;
use super::courier::{BATCH, Counts, Courier, Load};
use super::error::MoveError;
use super::line::Line;
use super::work_list::{Stand, WorkList};
use crate::confined::{self, Role};
use crate::guest::survive;
#[cfg(doc)]
use crate::options::LEAST_PATIENCE;
use crate::pages::PageSet;
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
    left_out: AtomicU64,
}

impl Tally {
    pub fn add(&self, pages: u64, wire_bytes: u64) {
        self.pages.fetch_add(pages, Ordering::Relaxed);
        self.wire_bytes.fetch_add(wire_bytes, Ordering::Relaxed);
    }

    /// Pages that are done with, since they are left to the next round.
    pub fn leave_out(&self, pages: u64) {
        self.pages.fetch_add(pages, Ordering::Relaxed);
        self.left_out.fetch_add(pages, Ordering::Relaxed);
    }

    /// How many pages were left to the next round so far.
    pub fn left_out(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }

    /// Pages and bytes so far.
    pub fn so_far(&self) -> (u64, u64) {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (read(&self.pages), read(&self.wire_bytes))
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
    let work = WorkList::new(load.set, load.log, load.layout, chunk, load.ahead);
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
        while let Some(piece) = work.take()? {
            courier.carry(&piece)?;
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
