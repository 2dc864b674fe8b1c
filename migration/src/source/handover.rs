//! Last phase: who runs the guest? READY, GO, LIVE: at every moment exactly one side may run it, and only
//! between GO and LIVE this side does not know which.
//!
//! Before GO this side owns the guest and resumes it if anything goes wrong. From GO on it never does so by
//! itself: either LIVE says that the guest runs there, or FAILED gives it back, or nobody knows, and the
//! guest stays paused here until a person decides.

use std::time::Duration;

use super::After;
use super::connecting::Link;
use super::error::MoveError;
use super::stop_and_copy::Spent;
use super::trip::{Failed, Trip, instead_of, resume};
use crate::clock::{boottime_ns, millis};
use crate::event::Event;
use crate::guest::RunningGuest;
use crate::report::{Blackout, BlackoutClock};
use crate::wire::frame::{Figures, Frame, Live};

/// The guest is paused; everything of it was sent.
pub(super) struct Handover<G: RunningGuest> {
    pub paused: G::Paused,
    pub link: Link,
    pub spent: Spent,
}

/// The guest runs on the destination.
pub(super) struct Delivered<G: RunningGuest> {
    /// What is left here.
    pub guest: G::Paused,
    /// What the destination saw since; zeros if it did not say.
    pub figures: Figures,
}

impl<G: RunningGuest> Handover<G> {
    pub fn run(mut self, trip: &mut Trip<'_>) -> Result<Delivered<G>, Box<Failed<G>>> {
        let sent = match self.commit(trip) {
            Ok(sent) => sent,
            Err(error) => return Err(resume(self.paused, Some(self.link), error)),
        };
        trip.tell(Event::Go);
        match sent.and_then(|()| Ok(self.link.main.channel.receive()?)) {
            Ok(Frame::Live(live)) => Ok(self.delivered(&live, trip)),
            Ok(frame @ Frame::Failed(_)) => {
                let error = instead_of("LIVE", &frame, &self.link.main.channel);
                Err(resume(self.paused, None, error))
            }
            Ok(frame) => {
                let error = instead_of("LIVE", &frame, &self.link.main.channel);
                Err(self.unknown(error))
            }
            Err(error) => Err(self.unknown(error)),
        }
    }

    /// Waits for READY and says GO. An error means that GO cannot have arrived; an inner error that it may
    /// have.
    fn commit(&mut self, trip: &mut Trip<'_>) -> Result<Result<(), MoveError>, MoveError> {
        match self.link.main.answer()? {
            Frame::Ready => {}
            frame => return Err(instead_of("READY", &frame, &self.link.main.channel)),
        }
        let channel = &mut self.link.main.channel;
        trip.cancel.commit()?;
        let before = channel.sent_bytes();
        match channel.send(&Frame::Go) {
            Ok(()) => Ok(Ok(())),
            // Not one byte of GO was taken, so the destination never gets it.
            Err(error) if channel.sent_bytes() == before => Err(error.into()),
            Err(error) => Ok(Err(error.into())),
        }
    }

    fn unknown(self, error: MoveError) -> Box<Failed<G>> {
        Box::new(Failed {
            guest: After::Unknown(self.paused),
            error: MoveError::Unknown(Box::new(error)),
        })
    }

    fn delivered(mut self, live: &Live, trip: &mut Trip<'_>) -> Delivered<G> {
        let (total, clock) = self.blackout(live);
        trip.report.blackout_ms = Some(millis(total));
        trip.report.blackout = Some(break_down(total, &self.spent, live));
        trip.report.blackout_clock = Some(clock);
        trip.account_work(self.spent.began + total);
        self.link.account(&mut trip.report);
        trip.set_totals();
        trip.tell(Event::Live {
            blackout_ms: millis(total),
        });
        let figures = match self.link.main.channel.receive() {
            Ok(Frame::Figures(figures)) => figures,
            other => {
                tracing::debug!("no figures from the destination: {other:?}");
                Figures::default()
            }
        };
        Delivered {
            guest: self.paused,
            figures,
        }
    }

    /// How long the guest stood still. The destination's time counts only if it can be true: a shared boot
    /// does not rule out another time namespace.
    fn blackout(&self, live: &Live) -> (Duration, BlackoutClock) {
        let now = boottime_ns();
        let by_boottime = live.resumed_at_ns.checked_sub(self.spent.began_ns);
        match by_boottime {
            Some(ns) if self.link.shared_clock && live.resumed_at_ns <= now => {
                (Duration::from_nanos(ns), BlackoutClock::Shared)
            }
            _ => (self.spent.began.elapsed(), BlackoutClock::Bounded),
        }
    }
}

/// Splits the blackout. What neither side accounts for was spent between them. The destination's figures are
/// believed as far as they fit in.
fn break_down(total: Duration, spent: &Spent, live: &Live) -> Blackout {
    let mut rest = total;
    let mut part = |time: Duration| {
        let time = time.min(rest);
        rest -= time;
        millis(time)
    };
    let stop_vcpus_ms = part(spent.stop);
    let final_dirty_sync_ms = part(spent.sync);
    let final_pages_ms = part(spent.pages);
    let save_state_ms = part(spent.save);
    let restore_ms = part(Duration::from_nanos(live.restore_ns));
    let resume_ms = part(Duration::from_nanos(live.resume_ns));
    Blackout {
        stop_vcpus_ms,
        final_dirty_sync_ms,
        final_pages_ms,
        save_state_ms,
        send_state_ms: millis(rest),
        restore_ms,
        resume_ms,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn the_parts_add_up_even_if_the_peer_lies() {
        let ms = Duration::from_millis;
        let spent = Spent {
            began: Instant::now(),
            began_ns: 0,
            stop: ms(1),
            sync: ms(2),
            pages: ms(3),
            save: ms(4),
        };
        for (restore_ns, send) in [(5_000_000, 84.0), (u64::MAX, 0.0)] {
            let live = Live {
                restore_ns,
                resume_ns: 1_000_000,
                resumed_at_ns: 0,
            };
            let parts = break_down(ms(100), &spent, &live);
            let sum = parts.stop_vcpus_ms
                + parts.final_dirty_sync_ms
                + parts.final_pages_ms
                + parts.save_state_ms
                + parts.send_state_ms
                + parts.restore_ms
                + parts.resume_ms;
            assert!((sum - 100.0).abs() < 1e-6, "{parts:?}");
            assert!((parts.send_state_ms - send).abs() < 1e-6, "{parts:?}");
        }
    }
}
