//! Third phase: the guest stands still; the last pages and the state go over.

use std::time::{Duration, Instant};

use super::brake::{Brake, Slowed};
use super::connecting::Link;
use super::courier::{Counts, Load};
use super::error::MoveError;
use super::handover::Handover;
use super::pacer::Pacer;
use super::precopy::chunk_pages;
use super::streams::carry;
use super::trip::{Failed, Trip, give_back, per_second, resume};
use super::verify;
use crate::clock::{boottime_ns, millis};
use crate::event::Event;
use crate::guest::{PausedGuest, RunningGuest, survive};
use crate::pages::PageSet;
use crate::report::Round;
use crate::state::VmState;
use crate::wire::frame::Frame;

/// The guest runs; what is left to send is small enough, or it is switched over regardless.
pub(super) struct StopAndCopy<G> {
    pub guest: G,
    pub link: Link,
    pub pacer: Pacer,
    /// Pages known to be left.
    pub todo: PageSet,
    pub round: u32,
    pub predicted: Duration,
    pub brake: Brake,
    /// The guest keeps something elsewhere: to pause and to save it may wait for disks.
    pub settled: bool,
    pub reason: String,
}

/// Where the time of the blackout went on this side.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spent {
    /// When the first vCPU was told to stop, on the clock of this process.
    pub began: Instant,
    /// The same in nanoseconds of CLOCK_BOOTTIME.
    pub began_ns: u64,
    pub stop: Duration,
    pub sync: Duration,
    pub pages: Duration,
    pub save: Duration,
    pub verify: Duration,
}

impl<G: RunningGuest> StopAndCopy<G> {
    pub fn run(self, trip: &mut Trip<'_>) -> Result<Handover<G>, Box<Failed<G>>> {
        trip.tell(Event::SwitchingOver {
            reason: self.reason.clone(),
            predicted_blackout_ms: millis(self.predicted),
        });
        trip.report.reason = self.reason;
        trip.report.predicted_blackout_ms = Some(millis(self.predicted));
        let mut spent = Spent {
            began: Instant::now(),
            began_ns: boottime_ns(),
            stop: Duration::ZERO,
            sync: Duration::ZERO,
            pages: Duration::ZERO,
            save: Duration::ZERO,
            verify: Duration::ZERO,
        };
        let brownout = trip.brownout_began.map(|began| spent.began - began);
        trip.report.brownout_ms = brownout.map(millis);
        let mut link = self.link;
        let pause = || self.guest.pause();
        let (paused, heard) = match self.settled {
            true => link.main.while_alive(pause),
            false => (pause(), Ok(())),
        };
        let paused = match paused {
            Ok(paused) => paused,
            Err(failed) => return Err(give_back(failed.guest, Some(link), failed.error.into())),
        };
        spent.stop = spent.began.elapsed();
        trip.stopped = Some(spent.began);
        let patience = link.main.channel.patience();
        let bytes = trip.options.verify.then_some(trip.report.memory_bytes);
        let mut last = LastPages {
            paused,
            link,
            pacer: self.pacer,
            todo: self.todo,
            round: self.round,
            brake: self.brake,
            settled: self.settled,
            allowed: standstill(patience, self.predicted, bytes),
        };
        let sent = heard.and_then(|()| survive(|| last.send(&mut spent, trip)));
        last.link.account(&mut trip.report);
        trip.heartbeat = last.paused.heartbeat();
        // Now, while the destination loads the state: in a move by descriptor the counts soon go on there.
        trip.work_at_pause = last.paused.work();
        match sent {
            Ok(()) => Ok(Handover {
                paused: last.paused,
                link: last.link,
                spent,
            }),
            Err(error) => Err(resume(last.paused, Some(last.link), error, trip)),
        }
    }
}

/// How long the guest may stand still until READY. A destination that takes a byte now and then is not silent, and
/// would hold the guest for hours: it gets four times what was expected, a peer's `patience`, and that again for every
/// GiB to be `verified`.
fn standstill(patience: Duration, expected: Duration, verified: Option<u64>) -> Duration {
    let parts = verified.map_or(1, |bytes| 2 + bytes.div_ceil(1 << 30));
    patience.saturating_mul(u32::try_from(parts).unwrap_or(u32::MAX)) + expected * 4
}

/// A paused guest whose last pages are to be sent.
struct LastPages<P> {
    paused: P,
    link: Link,
    pacer: Pacer,
    todo: PageSet,
    round: u32,
    brake: Brake,
    /// As of [`StopAndCopy`].
    settled: bool,
    /// How long all this may take, but for what this side waits for itself.
    allowed: Duration,
}

impl<P: PausedGuest> LastPages<P> {
    /// Pages, state, and the pages that saving the state may have written; STATE last.
    fn send(&mut self, spent: &mut Spent, trip: &mut Trip<'_>) -> Result<(), MoveError> {
        let log = self.paused.dirty_log();
        let sent_before = self.link.sent_bytes();
        let mut counts = Counts::default();
        let index = self.round;
        let shared = self.link.by_descriptor;
        self.link
            .hurry(spent.began + spent.stop, Some(self.allowed));
        if !shared {
            timed(&mut spent.sync, || log.take(&mut self.todo))?;
            timed(&mut spent.pages, || self.carry(&mut counts))?;
        }

        let state = timed(&mut spent.save, || self.save())?;
        let own = spent.stop + spent.save;
        self.link.hurry(spent.began + own, Some(self.allowed));

        self.todo.clear();
        if !shared {
            timed(&mut spent.sync, || log.take(&mut self.todo))?;
        }
        if !self.todo.is_empty() {
            timed(&mut spent.pages, || self.carry(&mut counts))?;
        }
        let wire_bytes = self.link.sent_bytes() - sent_before;
        if trip.options.verify {
            let compared = timed(&mut spent.verify, || {
                verify::compare(self.paused.ram(), &mut self.link)
            });
            trip.report.verify_ms = Some(millis(spent.verify));
            compared?;
        }
        trip.report.zero_pages += counts.zero_pages;
        let Slowed {
            percent,
            throttled_ms,
        } = self.brake.round_over(self.paused.throttled(), trip);
        let duration = spent.sync + spent.pages;
        trip.report.rounds.push(Round {
            index,
            duration_ms: millis(duration),
            dirty_pages: counts.sent_pages + counts.zero_pages,
            sent_pages: counts.sent_pages,
            zero_pages: counts.zero_pages,
            rewritten_pages: 0,
            wire_bytes,
            bandwidth_bytes_per_s: per_second(wire_bytes, duration.as_secs_f64()),
            dirty_bytes_per_s: 0,
            throttle_percent: percent,
            throttled_ms,
            predicted_blackout_ms: trip.report.predicted_blackout_ms.unwrap_or(0.0),
        });
        Ok(self.link.main.channel.send(&Frame::State(state))?)
    }

    /// All state besides memory. The destination waits for this side's disks, where there are any, however slow they
    /// are.
    fn save(&mut self) -> Result<VmState, MoveError> {
        if !self.settled {
            return Ok(self.paused.save()?);
        }
        self.link.hurry(Instant::now(), None);
        let (saved, heard) = self.link.main.while_alive(|| self.paused.save());
        let state = saved?;
        heard.map(|()| state)
    }

    /// Sends `todo` as a round of its own. The pages are re-armed here too: what is listed by the next take
    /// was then written after this.
    fn carry(&mut self, counts: &mut Counts) -> Result<(), MoveError> {
        let log = self.paused.dirty_log();
        let layout = self.link.description.layout.clone();
        let load = Load {
            ram: self.paused.ram(),
            layout: &layout,
            log: &*log,
            pacer: &self.pacer,
            set: &self.todo,
            round: self.round,
            streams: self.link.streams(),
            ahead: 0,
        };
        // The guest stands still, so there is no reason for small chunks but that all streams have work.
        let chunk = chunk_pages(u64::MAX);
        let done = carry(load, chunk, &mut self.link, &mut |_| Ok(()))?;
        counts.sent_pages += done.sent_pages;
        counts.zero_pages += done.zero_pages;
        let end = Frame::RoundEnd {
            round: self.round,
            pages: done.named(),
        };
        self.round += 1;
        Ok(self.link.main.channel.send(&end)?)
    }
}

/// Adds to `sum` how long `act` takes.
fn timed<T>(sum: &mut Duration, act: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let result = act();
    *sum += began.elapsed();
    result
}
