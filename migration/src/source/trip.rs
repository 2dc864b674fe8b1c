//! What all phases of one move share: what was asked for, whom to tell, and the report as it grows. Also the
//! way back: how a guest is returned when a phase fails.

use std::time::{Duration, Instant};

use super::After;
use super::connecting::Link;
use super::error::MoveError;
use crate::cancel::CancelToken;
use crate::clock::millis;
use crate::event::Event;
use crate::guest::{self, PausedGuest, RunningGuest};
use crate::options::Options;
use crate::report::{Outcome, Report};
use crate::wire::Connect;
use crate::wire::channel::{Channel, ChannelError};
use crate::wire::frame::{Figures, Frame};
use crate::work::{Baseline, VcpuWork};

/// How long a destination's last words are waited for.
const PARTING: Duration = Duration::from_millis(500);

/// The context of one move.
pub(super) struct Trip<'a> {
    pub target: &'a dyn Connect,
    pub options: &'a Options,
    pub cancel: &'a CancelToken,
    pub events: &'a mut dyn FnMut(Event),
    pub report: Report,
    pub started: Instant,
    /// When the dirty log was started.
    pub brownout_began: Option<Instant>,
    /// The last heartbeat on this side and the largest gap so far; ns of CLOCK_BOOTTIME.
    pub heartbeat: Option<guest::Heartbeat>,
    /// What the guest did before the move, and when that was read.
    pub baseline: Option<(Baseline, Instant)>,
    /// What it had done when it was paused.
    pub work_at_pause: Option<Vec<VcpuWork>>,
    /// When it was stopped.
    pub stopped: Option<Instant>,
}

impl<'a> Trip<'a> {
    pub fn new(
        target: &'a dyn Connect,
        options: &'a Options,
        cancel: &'a CancelToken,
        events: &'a mut dyn FnMut(Event),
    ) -> Self {
        Self {
            target,
            options,
            cancel,
            events,
            report: Report::begun(options),
            started: Instant::now(),
            brownout_began: None,
            heartbeat: None,
            baseline: None,
            work_at_pause: None,
            stopped: None,
        }
    }

    /// How long the dirty log has been on.
    pub fn brownout(&self) -> Duration {
        self.brownout_began
            .map_or(Duration::ZERO, |began| began.elapsed())
    }

    pub fn tell(&mut self, event: Event) {
        (self.events)(event);
    }

    /// The report of a move that ended well; its totals were set at LIVE.
    pub fn completed(self, figures: &Figures) -> Report {
        let mut report = self.report;
        report.heartbeats(self.heartbeat.unwrap_or_default(), figures);
        report.outcome = Outcome::Completed;
        report
    }

    /// The report of a move that did not.
    pub fn failed<G: RunningGuest>(mut self, failed: &Failed<G>) -> Report {
        let mut reason = failed.error.in_full();
        if let After::Stuck(_, error) = &failed.guest {
            let why = super::chain(error);
            reason = format!("{reason}; and the guest, paused for that, does not go on: {why}");
        }
        self.tell(Event::Failed {
            reason: reason.clone(),
        });
        self.set_totals();
        // Given up before its end.
        let until_now = self.brownout_began.map(|began| millis(began.elapsed()));
        self.report.brownout_ms = self.report.brownout_ms.or(until_now);
        self.report.outcome = match (&failed.guest, &failed.error) {
            (After::Unknown(_), _) => Outcome::Unknown,
            (After::Stuck(..), _) => Outcome::Paused,
            (_, MoveError::Cancelled(_)) => Outcome::Cancelled,
            _ => Outcome::Failed,
        };
        self.report.reason = reason;
        self.report
    }

    /// What the guest got done less, now that it is known when it ran again.
    pub fn account_work(&mut self, ran_again: Instant) {
        if let (Some((baseline, begun)), Some(at_pause)) = (&self.baseline, &self.work_at_pause) {
            let took = ran_again.saturating_duration_since(*begun);
            self.report.work(baseline.lost(at_pause, took));
        }
    }

    /// The figures that are over the whole time.
    pub fn set_totals(&mut self) {
        self.report.total_ms = millis(self.started.elapsed());
        if let Some(began) = self.brownout_began {
            let seconds = began.elapsed().as_secs_f64();
            self.report.mean_bandwidth_bytes_per_s = per_second(self.report.wire_bytes, seconds);
        }
    }
}

/// So many of something over so much time; 0 for no time.
pub(super) fn per_second(count: u64, seconds: f64) -> u64 {
    if seconds <= 0.0 {
        return 0;
    }
    // A rate for people: whole numbers, and beyond 2^53 no last digits.
    #[expect(clippy::cast_possible_truncation)]
    let rate = (count as f64 / seconds) as u64;
    rate
}

/// A move that ended early, with the guest wherever it could be brought.
pub(super) struct Failed<G: RunningGuest> {
    pub guest: After<G>,
    pub error: MoveError,
}

/// Gives a running guest back: at full speed, without a log, and with the destination told why.
pub(super) fn give_back<G: RunningGuest>(
    guest: G,
    link: Option<Link>,
    error: MoveError,
) -> Box<Failed<G>> {
    guest.throttle(&[], Duration::ZERO);
    if let Err(error) = guest.dirty_log().stop() {
        tracing::warn!("the dirty log stays on: {}", super::chain(&error));
    }
    Box::new(Failed {
        guest: After::Running(guest),
        error: part(link, error),
    })
}

/// Resumes a paused guest and gives it back. How long it stood still is in the report, though nobody gained by it.
pub(super) fn resume<G: RunningGuest>(
    paused: G::Paused,
    link: Option<Link>,
    error: MoveError,
    trip: &mut Trip<'_>,
) -> Box<Failed<G>> {
    // The guest first: it stands still.
    match paused.resume() {
        Ok(guest) => {
            trip.report.blackout_ms = trip.stopped.map(|stopped| millis(stopped.elapsed()));
            give_back(guest, link, error)
        }
        Err(stuck) => Box::new(Failed {
            guest: After::Stuck(stuck.guest, stuck.error),
            error: part(link, error),
        }),
    }
}

/// Parts from the destination: hears why it went, or tells it why we go.
fn part(link: Option<Link>, error: MoveError) -> MoveError {
    let Some(mut link) = link.filter(|link| !link.main.kept) else {
        return error;
    };
    // The further streams close behind what is said here.
    let channel = &mut link.main.channel;
    if let MoveError::Channel(ChannelError::Io { .. } | ChannelError::Closed { .. }) = error {
        return last_words(channel).unwrap_or(error);
    }
    channel.farewell(&Frame::Abort(error.in_full()), Duration::ZERO);
    error
}

/// The reason that the destination gave before it went away, if it did. It is said on the first stream, and
/// may come a little after another stream's end.
fn last_words(channel: &mut Channel) -> Option<MoveError> {
    let deadline = Instant::now() + PARTING;
    // Only answers to PINGs can lie before it, as many as were under way.
    for _ in 0..1024 {
        let frame = channel.overhear(deadline)?;
        if let Some(error) = complaint(&frame, channel.peer()) {
            return Some(error);
        }
    }
    None
}

/// The error behind a frame that says that the destination does not go on.
pub(super) fn complaint(frame: &Frame, peer: &str) -> Option<MoveError> {
    let peer = peer.to_owned();
    match frame.clone() {
        Frame::Refuse(reason) => Some(MoveError::Refused { peer, reason }),
        Frame::Failed(reason) => Some(MoveError::Peer { peer, reason }),
        _ => None,
    }
}

/// The error for a frame other than the one expected: what it complains of, or that it does not belong here.
pub(super) fn instead_of(expected: &'static str, frame: &Frame, channel: &Channel) -> MoveError {
    complaint(frame, channel.peer()).unwrap_or_else(|| MoveError::Unexpected {
        peer: channel.peer().to_owned(),
        frame: frame.name(),
        expected,
    })
}
