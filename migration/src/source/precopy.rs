//! Second phase: rounds of pages while the guest runs, until the rest is small enough, or it is given up.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connecting::Link;
use super::courier::{Counts, Load};
use super::error::MoveError;
use super::pacer::Pacer;
use super::stop_and_copy::StopAndCopy;
use super::streams::{Tally, carry};
use super::trip::{Failed, Trip, give_back, per_second};
use crate::clock::millis;
use crate::dirty::DirtyLog;
use crate::event::Event;
use crate::guest::{RunningGuest, ThrottlePercent};
use crate::options::OnTimeout;
use crate::pack::packer::Resent;
use crate::pack::{MANY_MORE, WATCH};
use crate::pages::{PAGE_SIZE, PageSet};
use crate::policy::{self, Decision, Facts, Limits};
use crate::predict::{self, Costs};
use crate::report::Round;
use crate::touched::{PAGEMAP, touched};
use crate::wire::frame::{Frame, MAX_VCPUS};

/// How much of the link's time is re-armed at once. The sooner a page is read after it was armed, the fewer
/// are written in between and have to be sent again; but each re-arming costs a system call and a flush of
/// the vCPUs' TLBs.
const CHUNK_TIME: Duration = Duration::from_millis(20);
/// Bounds of that in pages: 1 MiB, and 8 MiB, so that all streams come to an end together. Powers of two, so that
/// from 2 MiB on no two streams send parts of one huge page, which both would touch first on the destination.
const CHUNK_PAGES: Range<u64> = 256..2048;
/// Over fewer bytes than the first, the time is all latency and says nothing of the bandwidth. Over fewer
/// than the second it is partly that of the socket's own buffer, and does not replace a better measurement.
const TELLING_BYTES: (u64, u64) = (256 << 10, 8 << 20);
/// The longest that a vCPU sleeps in one piece while throttled, however long the blackout may be.
const LONGEST_SLICE: Duration = Duration::from_millis(20);
/// Pages never touched are armed in the log so many at a time: 64 MiB, while which vCPUs cannot fault pages in.
const UNTOUCHED_CHUNK: u64 = 16_384;
/// Progress is told so often at most.
const PROGRESS: Duration = Duration::from_millis(100);

/// The guest runs, its dirty log is on, the destination has made room for it.
pub(super) struct Precopy<G> {
    guest: G,
    link: Link,
    pacer: Pacer,
    /// Pages of the round that comes next.
    todo: PageSet,
    facts: Vec<Facts>,
    costs: Costs,
    throttle: ThrottlePercent,
    /// The most bytes that one measurement of the bandwidth stands on.
    measured_bytes: u64,
}

/// What the policy's decision comes to.
enum Step {
    Again,
    Stop { reason: String },
}

impl<G: RunningGuest> Precopy<G> {
    pub fn new(guest: G, link: Link) -> Self {
        Self {
            todo: PageSet::empty(link.description.layout.pages()),
            guest,
            link,
            pacer: Pacer::new(None),
            facts: Vec::new(),
            costs: Costs::default(),
            throttle: ThrottlePercent::default(),
            measured_bytes: 0,
        }
    }

    pub fn run(mut self, trip: &mut Trip<'_>) -> Result<StopAndCopy<G>, Box<Failed<G>>> {
        match self.rounds(trip) {
            Ok(reason) => Ok(StopAndCopy {
                predicted: predict::blackout(self.todo.len(), &self.costs),
                round: self.next_round(),
                guest: self.guest,
                link: self.link,
                pacer: self.pacer,
                todo: self.todo,
                throttle: self.throttle,
                reason,
            }),
            Err(error) => {
                self.link.account(&mut trip.report);
                Err(give_back(self.guest, Some(self.link), error))
            }
        }
    }

    /// All rounds; gives the reason to switch over.
    fn rounds(&mut self, trip: &mut Trip<'_>) -> Result<String, MoveError> {
        self.pacer = Pacer::new(trip.options.bandwidth);
        self.costs = expected_costs(trip, self.link.round_trip);
        if self.link.by_descriptor {
            return Ok("both ends map the same memory: there are no pages to send".into());
        }
        let log = self.guest.dirty_log();
        log.take(&mut self.todo)?;
        // Before that: looking takes writes of the VMM out of the log, and only pages known to be touched are sure
        // to be sent after it.
        let resent = self.watch(&*log, trip)?;
        self.link.pack(trip.options.compress, resent.as_ref());
        trip.report.untouched_pages = self.leave_out_untouched()?;
        loop {
            let mut round = self.round(trip)?;
            let began = Instant::now();
            self.todo.clear();
            log.take(&mut self.todo)?;
            self.costs.sync = began.elapsed();
            self.note(&mut round, trip);
            if let Step::Stop { reason } = self.step(trip)? {
                return Ok(reason);
            }
        }
    }

    /// Where differences are asked for: sees for a moment which pages the guest writes, so that they are kept
    /// from the first round on. All pages that anybody has touched are still to be sent, so nothing that is seen
    /// here is lost.
    fn watch(&self, log: &dyn DirtyLog, trip: &Trip<'_>) -> Result<Option<Arc<Resent>>, MoveError> {
        let Some(cache) = trip.options.delta_cache else {
            return Ok(None);
        };
        let layout = &self.link.description.layout;
        for (_, range) in layout.ranges() {
            log.rearm(&self.todo, range)?;
        }
        let (slice, times) = WATCH;
        let mut hot = PageSet::empty(layout.pages());
        for _ in 0..times {
            let before = hot.len();
            trip.cancel.sleep(slice)?;
            log.take(&mut hot)?;
            let more = hot.len() - before;
            if more < MANY_MORE.max(before / 5) || hot.len() >= cache / PAGE_SIZE {
                break;
            }
        }
        Ok(Some(Arc::new(Resent::new(cache, hot))))
    }

    /// Takes pages that nobody has ever touched out of the first round; says how many. Their log is armed
    /// before the last look, so that a first touch is in that look or in the next take.
    fn leave_out_untouched(&mut self) -> Result<u64, MoveError> {
        let (ram, layout) = (self.guest.ram(), &self.link.description.layout);
        let look = || {
            let touched = touched(ram, layout);
            touched.inspect_err(|error| {
                tracing::info!("untouched pages are looked at one by one: {PAGEMAP}: {error}");
            })
        };
        let Ok(before) = look() else {
            return Ok(0);
        };
        let mut untouched = self.todo.clone();
        untouched.subtract(&before);
        if untouched.is_empty() {
            return Ok(0);
        }
        let log = self.guest.dirty_log();
        for piece in untouched.pieces(layout, UNTOUCHED_CHUNK) {
            log.rearm(&untouched, piece)?;
        }
        let Ok(now) = look() else {
            return Ok(0);
        };
        untouched.subtract(&now);
        self.todo.subtract(&untouched);
        Ok(untouched.len())
    }

    fn next_round(&self) -> u32 {
        u32::try_from(self.facts.len()).unwrap_or(u32::MAX)
    }

    /// Sends all pages of `todo` and waits until they have arrived.
    fn round(&mut self, trip: &mut Trip<'_>) -> Result<Round, MoveError> {
        let index = self.next_round();
        let pages = self.todo.len();
        trip.tell(Event::RoundStarted { index, pages });
        let began = Instant::now();
        let sent_before = self.link.sent_bytes();
        let counts = self.carry(index, pages, sent_before, trip)?;
        let main = &mut self.link.main;
        main.channel.send(&Frame::RoundEnd {
            round: index,
            pages: counts.named(),
        })?;
        // The first answer says that all has arrived, the second how long a message takes on an idle link.
        let drained = main.ping(2 * u64::from(index) + 100)?;
        let duration = began.elapsed();
        let idle = main.ping(2 * u64::from(index) + 101)?;
        // The quickest so far: what one answer took longer is this host's load, not the way to the peer.
        self.link.round_trip = self.link.round_trip.min(idle);
        self.costs.round_trip = self.link.round_trip;
        let wire_bytes = self.link.sent_bytes() - sent_before;
        let sending = counts.sending + drained.saturating_sub(idle);
        self.measure(wire_bytes, counts.sent_pages, sending, trip);
        Ok(Round {
            index,
            duration_ms: millis(duration),
            dirty_pages: counts.sent_pages + counts.zero_pages,
            sent_pages: counts.sent_pages,
            zero_pages: counts.zero_pages,
            wire_bytes,
            bandwidth_bytes_per_s: per_second(wire_bytes, duration.as_secs_f64()),
            dirty_bytes_per_s: 0,
            throttle_percent: self.throttles(),
            predicted_blackout_ms: 0.0,
        })
    }

    /// Sends all pages of `todo`, telling how far it is.
    fn carry(
        &mut self,
        index: u32,
        pages: u64,
        sent_before: u64,
        trip: &mut Trip<'_>,
    ) -> Result<Counts, MoveError> {
        let log = self.guest.dirty_log();
        let layout = self.link.description.layout.clone();
        let load = Load {
            ram: self.guest.ram(),
            layout: &layout,
            log: &*log,
            pacer: &self.pacer,
            set: &self.todo,
            round: index,
        };
        let chunk = chunk_pages(self.costs.bandwidth);
        let mut told = Instant::now();
        let mut look = |tally: &Tally| {
            if told.elapsed() < PROGRESS {
                return Ok(());
            }
            told = Instant::now();
            let (pages_done, bytes) = tally.so_far();
            trip.tell(Event::Progress {
                index,
                pages_done,
                pages,
                wire_bytes: sent_before + bytes,
            });
            check_time(trip)
        };
        carry(load, chunk, &mut self.link, &mut look)
    }

    /// Remembers the bandwidth that a round showed, if it says more than what is known. What counts is how soon
    /// pages are there: where they go packed, it is the bandwidth that would carry them as they are.
    fn measure(&mut self, bytes: u64, pages: u64, time: Duration, trip: &Trip<'_>) {
        let (least, enough) = TELLING_BYTES;
        let packed = self.link.main.packer.is_used();
        let (bytes, enough) = match packed {
            // What pages shrink to is different each time: the last round says most of the next.
            true => (bytes.max(pages * PAGE_SIZE), least),
            false => (bytes, enough),
        };
        if bytes >= self.measured_bytes.clamp(least, enough) {
            self.measured_bytes = bytes;
            let seconds = time.as_secs_f64().max(1e-6);
            let cap = trip.options.bandwidth.filter(|_| !packed);
            let cap = cap.unwrap_or(u64::MAX);
            self.costs.bandwidth = per_second(bytes, seconds).min(cap).max(1);
        }
    }

    /// Completes a round's entry with what was written meanwhile, and records it.
    fn note(&mut self, round: &mut Round, trip: &mut Trip<'_>) {
        let remainder = self.todo.len();
        let duration = Duration::from_secs_f64(round.duration_ms / 1000.0);
        round.dirty_bytes_per_s = per_second(remainder * PAGE_SIZE, duration.as_secs_f64());
        round.predicted_blackout_ms = millis(predict::blackout(remainder, &self.costs));
        self.facts.push(Facts {
            pages: round.dirty_pages,
            remainder,
            duration,
            throttle: self.throttle,
        });
        trip.report.zero_pages += round.zero_pages;
        self.link.account(&mut trip.report);
        trip.report.rounds.push(round.clone());
        trip.tell(Event::RoundFinished {
            round: round.clone(),
        });
    }

    /// Does what the policy says.
    fn step(&mut self, trip: &mut Trip<'_>) -> Result<Step, MoveError> {
        let limits = Limits::from(trip.options);
        let elapsed = trip.started.elapsed();
        match policy::decide(&self.facts, elapsed, &self.costs, &limits) {
            Decision::NextRound => Ok(Step::Again),
            Decision::SwitchOver(reason) => Ok(Step::Stop { reason }),
            Decision::GiveUp(reason) => Err(MoveError::GaveUp(reason)),
            Decision::Throttle(percent, reason) => {
                self.throttle = percent;
                let percents: Vec<_> = (self.throttles().into_iter())
                    .map(ThrottlePercent::new)
                    .collect();
                let longest = trip.options.downtime_limit.min(LONGEST_SLICE);
                self.guest.throttle(&percents, longest);
                trip.tell(Event::ThrottleChanged {
                    percent: self.throttles(),
                    reason,
                });
                Ok(Step::Again)
            }
        }
    }

    /// The throttle of each vCPU.
    fn throttles(&self) -> Vec<u8> {
        per_vcpu(self.link.description.vcpus, self.throttle)
    }
}

/// One figure for each vCPU, as reports have it.
pub(super) fn per_vcpu(vcpus: u32, throttle: ThrottlePercent) -> Vec<u8> {
    vec![throttle.get(); usize::try_from(vcpus.min(MAX_VCPUS)).unwrap_or(0)]
}

fn expected_costs(trip: &Trip<'_>, round_trip: Duration) -> Costs {
    let known = trip.options.costs;
    Costs {
        bandwidth: 0,
        round_trip,
        sync: Duration::ZERO,
        stop: known.stop,
        save: known.save,
        restore: known.restore,
        resume: known.resume,
        state_bytes: known.state_bytes,
    }
}

/// Ends a long round when the time is over and the guest would not be switched over anyway.
fn check_time(trip: &Trip<'_>) -> Result<(), MoveError> {
    let (elapsed, allowed) = (trip.started.elapsed(), trip.options.max_total);
    if trip.options.on_timeout == OnTimeout::GiveUp && elapsed >= allowed {
        return Err(MoveError::GaveUp(format!(
            "{:.1} s are over in the middle of a round, {:.1} s were allowed: allow more time",
            elapsed.as_secs_f64(),
            allowed.as_secs_f64()
        )));
    }
    Ok(())
}

/// Pages to be re-armed at once on a link of that many bytes a second; 0 for not known yet.
pub(super) fn chunk_pages(bandwidth: u64) -> u64 {
    let per_second = 1000 / u64::try_from(CHUNK_TIME.as_millis()).unwrap_or(1000);
    let pages = (bandwidth / per_second / PAGE_SIZE).clamp(CHUNK_PAGES.start, CHUNK_PAGES.end);
    1 << pages.ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_follow_the_bandwidth() {
        assert_eq!(chunk_pages(0), 256);
        assert_eq!(chunk_pages(125_000_000), 512);
        assert_eq!(chunk_pages(u64::MAX), 2048);
        assert!((0..100).all(|gb| chunk_pages(gb * 100_000_000).is_power_of_two()));
    }
}
