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
use crate::pages::Pieces;
use crate::wire::channel::ChannelError;

/// A further stream is worth its thread from so many pages on.
const WORTHWHILE: u64 = 2 * BATCH;
/// A stream that waits for the others says so often that it lives: well within any peer's patience.
const SIGN: Duration = Duration::from_millis(500);

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

/// The ranges of a round that nobody has taken yet.
struct WorkList<'a>(Mutex<Pieces<'a>>);

impl WorkList<'_> {
    /// The next range that has pages in it.
    fn take(&self) -> Option<Range<u64>> {
        let mut pieces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pieces.next()
    }
}

/// Carries all pages of `load` in pieces of `chunk` pages; `look` is called between them, and may end it.
///
/// The first error sets off the alarm, which ends all streams.
pub(super) fn carry(
    load: Load<'_>,
    chunk: u64,
    link: &mut Link,
    look: &mut dyn FnMut(&Tally) -> Result<(), MoveError>,
) -> Result<Counts, MoveError> {
    let work = WorkList(Mutex::new(load.set.pieces(load.layout, chunk)));
    let tally = Tally::default();
    let helpers = usize::try_from(load.set.len() / WORTHWHILE).unwrap_or(usize::MAX);
    let Link {
        main,
        others,
        alarm,
        ..
    } = link;
    let (told, ends) = mpsc::channel();
    let toil = |line: &mut Line, look: &mut dyn FnMut(&Tally) -> Result<(), MoveError>| {
        let mut courier = Courier::new(load, line, &tally)?;
        while let Some(range) = work.take() {
            courier.carry(&range)?;
            look(&tally)?;
        }
        Ok(courier.finish())
    };
    thread::scope(|scope| {
        let alarm = &*alarm;
        for line in others.iter_mut().take(helpers) {
            let (told, toil) = (told.clone(), &toil);
            let thread = thread::Builder::new().name("stream".into());
            // Without a thread the work is done by those that are there.
            let spawned = thread.spawn_scoped(scope, move || {
                let done = toil(line, &mut |_| Ok(()));
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
        let mut all = toil(main, look);
        loop {
            if all.is_err() {
                // They end by themselves now.
                let _ = alarm.cancel();
            }
            match ends.recv_timeout(SIGN) {
                Ok(one) => all = together(all, one),
                Err(RecvTimeoutError::Timeout) if all.is_ok() => {
                    if let Err(error) = look(&tally)
                        .and_then(|()| main.listen())
                        .and_then(|()| main.ask())
                    {
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
