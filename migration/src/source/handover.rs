//! Last phase: who runs the guest? READY, GO, LIVE. What is to be done is decided by [`crate::handover`]; here it is
//! done, and what comes of it is told there.

use std::time::{Duration, Instant};

use super::After;
use super::connecting::Link;
use super::error::MoveError;
use super::stop_and_copy::Spent;
use super::trip::{Failed, Trip, instead_of, resume};
use crate::clock::{boottime_ns, millis};
use crate::event::Event;
use crate::guest::{GuestError, PausedGuest, RunningGuest, survive};
use crate::handover::{Source, SourceAct, SourceEvent};
use crate::report::{Blackout, BlackoutClock};
use crate::wire::frame::{Figures, Frame, Live};

/// So long at most the destination's last figures are waited for. It has them with the guest's first heartbeat there,
/// which it waits for a second.
const FIGURES: Duration = Duration::from_secs(2);

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

/// Something that has happened, with what came with it.
struct News {
    event: SourceEvent,
    /// What LIVE says.
    live: Live,
    /// Why it is not LIVE.
    error: Option<MoveError>,
}

impl News {
    fn of(event: SourceEvent) -> Self {
        Self {
            event,
            live: Live::default(),
            error: None,
        }
    }

    fn bad(event: SourceEvent, error: impl Into<MoveError>) -> Self {
        Self {
            error: Some(error.into()),
            ..Self::of(event)
        }
    }

    /// What `act` brings; `event`, if it panics.
    fn unless_panicked(event: SourceEvent, act: impl FnOnce() -> Self) -> Self {
        survive(|| Ok(act())).unwrap_or_else(|error: MoveError| Self::bad(event, error))
    }
}

impl<G: RunningGuest> Handover<G> {
    pub fn run(mut self, trip: &mut Trip<'_>) -> Result<Delivered<G>, Box<Failed<G>>> {
        let mut state = Source::default();
        let mut news = News::unless_panicked(SourceEvent::Over, || self.hear_ready(trip));
        let mut error = None;
        loop {
            let act;
            (state, act) = state.on(news.event);
            error = news.error.or(error);
            news = match act {
                // How much of GO was said is not known then.
                SourceAct::SayGo => News::unless_panicked(SourceEvent::Torn, || self.say_go(trip)),
                SourceAct::Wait => News::unless_panicked(SourceEvent::Over, || self.hear_verdict()),
                SourceAct::Free => return Ok(self.delivered(&news.live, trip)),
                SourceAct::Resume => {
                    // Behind FAILED there is nobody to be told anything.
                    let link = (news.event != SourceEvent::Failed).then_some(self.link);
                    return Err(resume(self.paused, link, because(error), trip));
                }
                SourceAct::Keep => {
                    return Err(Box::new(Failed {
                        guest: After::Unknown(self.paused),
                        error: MoveError::Unknown(Box::new(because(error))),
                    }));
                }
            };
        }
    }

    /// Waits for READY. It counts only if nobody has cancelled the move by then; from there on nobody can.
    fn hear_ready(&mut self, trip: &Trip<'_>) -> News {
        match self.link.main.answer() {
            Ok(Frame::Ready) => match trip.cancel.commit() {
                Ok(()) => {
                    // From here on hurry does not help: an answer that is waited for decides whose the guest is.
                    self.link.hurry(self.spent.began, None);
                    News::of(SourceEvent::Ready)
                }
                Err(cancelled) => News::bad(SourceEvent::Cancelled, cancelled),
            },
            Ok(frame) => self.other("READY", &frame),
            Err(error @ MoveError::Cancelled(_)) => News::bad(SourceEvent::Cancelled, error),
            Err(error) => News::bad(SourceEvent::Over, error),
        }
    }

    /// Lets go of the guest's fence first: whoever hears GO must be able to take it. From there on the guest is resumed
    /// here only with the fence taken back, which [`PausedGuest::resume`] sees to.
    fn say_go(&mut self, trip: &mut Trip<'_>) -> News {
        if let Err(error) = self.paused.let_go() {
            return News::bad(SourceEvent::Unsaid, error);
        }
        let channel = &mut self.link.main.channel;
        let before = channel.sent_bytes();
        let said = channel.send(&Frame::Go);
        let begun = channel.sent_bytes() != before;
        if begun {
            trip.tell(Event::Go);
        }
        match said {
            Ok(()) => News::of(SourceEvent::Said),
            Err(error) if begun => News::bad(SourceEvent::Torn, error),
            Err(error) => News::bad(SourceEvent::Unsaid, error),
        }
    }

    /// Waits for LIVE or FAILED.
    fn hear_verdict(&mut self) -> News {
        match self.link.main.channel.receive() {
            Ok(Frame::Live(live)) => News {
                live,
                ..News::of(SourceEvent::Live)
            },
            Ok(frame) => self.other("LIVE", &frame),
            Err(error) => News::bad(SourceEvent::Over, error),
        }
    }

    /// A frame other than the one expected. REFUSE is no FAILED: it belongs before the first page.
    fn other(&self, expected: &'static str, frame: &Frame) -> News {
        let event = match frame {
            Frame::Failed(_) => SourceEvent::Failed,
            _ => SourceEvent::Over,
        };
        News::bad(event, instead_of(expected, frame, &self.link.main.channel))
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
        // The guest is gone: nothing but these figures is left to wait for, whatever the peer timeout is.
        let channel = &mut self.link.main.channel;
        channel.hurry(Instant::now(), Some(FIGURES));
        let heard = channel.be_patient(FIGURES);
        let figures = match heard.and_then(|()| channel.receive()) {
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

/// Why the guest is not on the destination. Every way that ends so begins with an error; were one to come without,
/// that is still no reason to panic with a guest in hand.
fn because(error: Option<MoveError>) -> MoveError {
    error.unwrap_or_else(|| GuestError::bare("the handover ended without a reason").into())
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
    let verify_ms = part(spent.verify);
    let restore_ms = part(Duration::from_nanos(live.restore_ns));
    let resume_ms = part(Duration::from_nanos(live.resume_ns));
    Blackout {
        stop_vcpus_ms,
        final_dirty_sync_ms,
        final_pages_ms,
        save_state_ms,
        verify_ms,
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
            verify: ms(20),
        };
        for (restore_ns, send) in [(5_000_000, 64.0), (u64::MAX, 0.0)] {
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
                + parts.verify_ms
                + parts.send_state_ms
                + parts.restore_ms
                + parts.resume_ms;
            assert!((sum - 100.0).abs() < 1e-6, "{parts:?}");
            assert!((parts.send_state_ms - send).abs() < 1e-6, "{parts:?}");
        }
    }
}
