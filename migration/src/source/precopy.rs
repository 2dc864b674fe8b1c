//! Second phase: rounds of pages while the guest runs, until the rest is small enough, or it is given up.

use std::ops::Range;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use super::brake::{Brake, Slowed};
use super::connecting::Link;
use super::courier::{Counts, Load};
use super::error::MoveError;
use super::first_round;
use super::pacer::Pacer;
use super::stop_and_copy::StopAndCopy;
use super::streams::{Midway, SIGN, carry};
use super::trip::{Failed, Trip, give_back, per_second};
use super::work_list::{AHEAD_PAGES, AHEAD_TIME};
use crate::clock::millis;
use crate::confined::{self, Role};
use crate::event::Event;
use crate::guest::{GuestError, RunningGuest, survive};
use crate::options::{OnTimeout, Options};
use crate::pages::{PAGE_SIZE, PageSet};
use crate::policy::{self, Decision, Facts, Limits, Look};
use crate::predict::{self, Costs};
use crate::report::Round;
use crate::wire::frame::Frame;

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
/// If the guest's disks took so long, what it wrote to memory meanwhile is worth a round.
const SETTLED: Duration = Duration::from_millis(5);
/// So often they are waited for: as long as rounds go on behind that, the guest writes to them anew, and what it writes
/// last is written back while it stands still. One that writes all the time never has them settled.
const SETTLES: u32 = 3;
/// Progress is told so often at most.
const PROGRESS: Duration = Duration::from_millis(100);
/// Of the time of a round at most one part in so many is spent on looking at the log.
const LOOKING: u32 = 50;

/// The guest runs, its dirty log is on, the destination has made room for it.
pub(super) struct Precopy<G> {
    guest: G,
    link: Link,
    pacer: Pacer,
    /// Pages of the round that comes next.
    todo: PageSet,
    facts: Vec<Facts>,
    /// The number of the first round; 0, which brings all memory, but where that is kept elsewhere.
    first: u32,
    costs: Costs,
    brake: Brake,
    /// Room for a look at the log.
    seen: PageSet,
    /// The most bytes that one measurement of the bandwidth stands on.
    measured_bytes: u64,
    /// The guest keeps something elsewhere, which had to be brought there.
    settled: bool,
}

/// What the policy's decision comes to.
enum Step {
    Again,
    Stop { reason: String },
}

impl<G: RunningGuest> Precopy<G> {
    pub fn new(guest: G, link: Link, first: u32, options: &Options) -> Self {
        let none = PageSet::empty(link.description.layout.pages());
        Self {
            brake: Brake::new(options, link.description.vcpus, guest.throttled()),
            seen: none.clone(),
            todo: none,
            guest,
            link,
            pacer: Pacer::new(None),
            facts: Vec::new(),
            first,
            costs: Costs::default(),
            measured_bytes: 0,
            settled: false,
        }
    }

    pub fn run(mut self, trip: &mut Trip<'_>) -> Result<StopAndCopy<G>, Box<Failed<G>>> {
        match survive(|| self.rounds(trip)) {
            Ok(reason) => Ok(StopAndCopy {
                predicted: predict::blackout(self.todo.len(), &self.costs),
                round: self.next_round(),
                guest: self.guest,
                link: self.link,
                pacer: self.pacer,
                todo: self.todo,
                brake: self.brake,
                settled: self.settled,
                reason,
            }),
            Err(error) => {
                self.link.account(&mut trip.report);
                // Of the round that was cut short.
                self.brake.round_over(self.guest.throttled(), trip);
                Err(give_back(self.guest, Some(self.link), error))
            }
        }
    }

    /// All rounds; gives the reason to switch over.
    fn rounds(&mut self, trip: &mut Trip<'_>) -> Result<String, MoveError> {
        self.pacer = Pacer::new(trip.options.bandwidth);
        self.costs = expected_costs(trip, self.link.round_trip);
        if self.link.by_descriptor {
            self.settle()?;
            return Ok("both ends map the same memory: there are no pages to send".into());
        }
        let log = self.guest.dirty_log();
        log.take(&mut self.todo)?;
        // Before that: looking takes writes of the VMM out of the log, and only pages known to be touched are sure
        // to be sent after it.
        let layout = self.link.description.layout.clone();
        let main = &mut self.link.main;
        let resent = first_round::watch(&mut self.todo, &layout, &*log, main, trip)?;
        self.link.pack(trip.options.compress, resent.as_ref());
        let (ram, cancel) = (self.guest.ram(), trip.cancel);
        // What is missing in a later round is not zeros, but what it was.
        if self.first == 0 {
            // Of a guest of many hundred GiB that takes seconds.
            let todo = &mut self.todo;
            let (left_out, heard) = (self.link.main).while_alive(|| {
                first_round::leave_out_untouched(todo, ram, &layout, &*log, cancel)
            });
            trip.report.untouched_pages = left_out?;
            heard?;
        }
        let mut settles = 0;
        loop {
            let mut round = self.round(trip)?;
            let began = Instant::now();
            self.todo.clear();
            log.take(&mut self.todo)?;
            self.costs.sync = began.elapsed();
            self.note(&mut round, trip);
            if let Step::Stop { reason } = self.step(&round, trip)? {
                // At a bound there is no round more: it might leave more than the downtime allows, and the move that
                // was about to succeed would be given up.
                if settles == SETTLES || self.settle()? < SETTLED || self.is_bounded(trip) {
                    return Ok(reason);
                }
                settles += 1;
            }
        }
    }

    /// Has disks write back what they can while the guest runs: it stands still for the rest. Says how long that took;
    /// the destination hears meanwhile that this end lives.
    fn settle(&mut self) -> Result<Duration, MoveError> {
        let Some(settle) = self.guest.settle() else {
            return Ok(Duration::ZERO);
        };
        self.settled = true;
        let began = Instant::now();
        let (told, ended) = mpsc::channel();
        // On its own, so that nobody has to wait for it who does not want to move any more.
        let thread = thread::Builder::new().name("settle".into());
        let spawned = thread.spawn(move || {
            confined::started(Role::Settle);
            let _ = told.send(settle());
        });
        spawned.map_err(|error| GuestError::new("start a thread for the guest's disks", error))?;
        let main = &mut self.link.main;
        loop {
            match ended.recv_timeout(SIGN) {
                Ok(done) => {
                    done?;
                    let took = began.elapsed();
                    tracing::info!("the guest's disks were written back in {took:.1?}");
                    return Ok(took);
                }
                Err(RecvTimeoutError::Timeout) => {
                    main.channel.interrupted()?;
                    main.keep_alive()?;
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(GuestError::bare("write the guest's disks back: panicked").into());
                }
            }
        }
    }

    /// Whether the move has come to a bound on its time or its rounds.
    fn is_bounded(&self, trip: &Trip<'_>) -> bool {
        let limits = Limits::from(trip.options);
        policy::bound_reached(self.facts.len(), trip.started.elapsed(), &limits).is_some()
    }

    fn next_round(&self) -> u32 {
        let done = u32::try_from(self.facts.len()).unwrap_or(u32::MAX);
        self.first.saturating_add(done)
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
        let Slowed {
            percent,
            throttled_ms,
        } = self.brake.round_over(self.guest.throttled(), trip);
        Ok(Round {
            index,
            duration_ms: millis(duration),
            dirty_pages: counts.sent_pages + counts.zero_pages + counts.rewritten_pages,
            sent_pages: counts.sent_pages,
            zero_pages: counts.zero_pages,
            rewritten_pages: counts.rewritten_pages,
            wire_bytes,
            bandwidth_bytes_per_s: per_second(wire_bytes, duration.as_secs_f64()),
            dirty_bytes_per_s: 0,
            throttle_percent: percent,
            throttled_ms,
            predicted_blackout_ms: 0.0,
        })
    }

    /// Sends all pages of `todo`, telling how far it is, and slowing the guest down as the policy says.
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
            streams: self.link.streams(),
            ahead: ahead_pages(self.costs.bandwidth),
        };
        let chunk = chunk_pages(self.costs.bandwidth);
        let began = Instant::now();
        let (mut told, mut asked) = (began, began);
        let mut pace = self.brake.pace();
        let mut look = |midway: &Midway<'_>| {
            let (pages_done, bytes) = midway.tally.so_far();
            let wire_bytes = sent_before + bytes;
            if let Some(due) = pace.filter(|&due| asked.elapsed() >= due) {
                asked = Instant::now();
                let stand = midway.stand(&mut self.seen)?;
                // Not sooner again than is worth what it costs; never, where the log does not say.
                pace = stand.map(|_| due.max(asked.elapsed() * LOOKING));
                if let Some(stand) = stand {
                    let look = Look {
                        elapsed: trip.brownout(),
                        round: index,
                        duration: began.elapsed(),
                        pages,
                        unsent: stand.unsent,
                        written: stand.written,
                        rewritten: stand.left_out + midway.tally.left_out(),
                        written_by_vcpu: log.written_by_vcpu().unwrap_or_default(),
                        wire_bytes,
                        over: false,
                        throttle: self.brake.throttle(),
                    };
                    self.brake.apply(&look, &self.costs, &self.guest, trip);
                }
            }
            if told.elapsed() < PROGRESS {
                return Ok(());
            }
            told = Instant::now();
            trip.tell(Event::Progress {
                index,
                pages_done,
                pages,
                wire_bytes,
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
            self.link.limit_unsent(self.costs.bandwidth);
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
            throttle: self.brake.throttle().percents.strongest(),
        });
        trip.report.zero_pages += round.zero_pages;
        self.link.account(&mut trip.report);
        trip.report.rounds.push(round.clone());
        trip.tell(Event::RoundFinished {
            round: round.clone(),
        });
    }

    /// Does what the policies say behind that round.
    fn step(&mut self, round: &Round, trip: &mut Trip<'_>) -> Result<Step, MoveError> {
        let limits = Limits::from(trip.options);
        let elapsed = trip.started.elapsed();
        match policy::decide(&self.facts, elapsed, &self.costs, &limits) {
            Decision::SwitchOver(reason) => return Ok(Step::Stop { reason }),
            Decision::GiveUp(reason) => return Err(MoveError::GaveUp(reason)),
            Decision::NextRound => {}
        }
        if let Some(last) = self.facts.last() {
            let look = Look {
                elapsed: trip.brownout(),
                round: self.next_round().saturating_sub(1),
                duration: last.duration,
                pages: last.pages,
                unsent: 0,
                written: last.remainder,
                rewritten: round.rewritten_pages,
                written_by_vcpu: self.guest.dirty_log().written_by_vcpu().unwrap_or_default(),
                wire_bytes: self.link.sent_bytes(),
                over: true,
                throttle: self.brake.throttle(),
            };
            self.brake.apply(&look, &self.costs, &self.guest, trip);
        }
        Ok(Step::Again)
    }
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
    let pages = pages_in(CHUNK_TIME, bandwidth).clamp(CHUNK_PAGES.start, CHUNK_PAGES.end);
    1 << pages.ilog2()
}

/// Pages to be armed before their turn on such a link.
fn ahead_pages(bandwidth: u64) -> u64 {
    pages_in(AHEAD_TIME, bandwidth).min(AHEAD_PAGES)
}

/// How many pages such a link carries in that time, of less than a second.
fn pages_in(time: Duration, bandwidth: u64) -> u64 {
    bandwidth / 1000 * u64::from(time.subsec_millis()) / PAGE_SIZE
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

    #[test]
    fn nothing_is_armed_ahead_before_the_bandwidth_is_known() {
        assert_eq!(ahead_pages(0), 0);
        assert_eq!(ahead_pages(125_000_000), 610);
        assert_eq!(ahead_pages(u64::MAX), AHEAD_PAGES);
    }
}
