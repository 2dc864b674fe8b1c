//! From STATE to LIVE: may the guest run here? What is to be done is decided by [`crate::handover`]; here it is done,
//! and what comes of it is told there.

use std::time::{Duration, Instant};

use super::receiver::{Filled, Means};
use super::{Arrived, Paused, ReceiveError};
use crate::clock::boottime_ns;
use crate::event::Arrival;
use crate::guest::{BlankGuest, GuestError, Host, PausedGuest};
use crate::handover::{Destination, DestinationAct, DestinationEvent};
use crate::source::chain;
use crate::state::VmState;
use crate::wire::channel::Channel;
use crate::wire::frame::{Frame, Live};

/// Something that has happened, with why it does not go on, if it does not.
type News = (DestinationEvent, Option<ReceiveError>);

/// What there is of the guest.
enum Held<H: Host> {
    Nothing,
    Paused(Paused<H>),
    Running(Arrived<H>),
}

/// A handover under way.
struct Handover<'a, H: Host> {
    held: Held<H>,
    channel: &'a mut Channel,
    events: &'a mut dyn FnMut(Arrival),
    restore: Duration,
    resume: Duration,
    /// When READY was said, on CLOCK_BOOTTIME: a host that was suspended has been away as well.
    ready_ns: u64,
}

/// Loads the state, and runs the guest if the source says so in time. `state` stands, when this returns, where the
/// attempt has ended.
pub(super) fn take_over<H: Host>(
    filled: Filled<H::Blank>,
    means: &mut Means<'_, H>,
    channel: &mut Channel,
    stand: &mut Destination,
) -> Result<Arrived<H>, ReceiveError> {
    let Filled {
        blank,
        streams,
        state,
        saved_by,
    } = filled;
    let mut handover = Handover::<H> {
        held: Held::Nothing,
        channel,
        events: &mut *means.events,
        restore: Duration::ZERO,
        resume: Duration::ZERO,
        ready_ns: 0,
    };
    let mut news = handover.load(blank, &state, saved_by);
    drop(state);
    let mut error = None;
    loop {
        let act;
        (*stand, act) = stand.on(news.0);
        error = news.1.or(error);
        news = match act {
            DestinationAct::SayReady => match handover.say_ready() {
                Ok(()) => handover.hear_go(),
                Err(error) => (DestinationEvent::Over, Some(error)),
            },
            DestinationAct::Resume => handover.resume(),
            DestinationAct::SayLive => {
                handover.say_live();
                // They end only now: the guest should not wait for them.
                drop(streams);
                return match handover.held {
                    Held::Running(guest) => Ok(guest),
                    _ => Err(because(None)),
                };
            }
            // It goes with this function; the caller then says FAILED.
            DestinationAct::Drop | DestinationAct::SayFailed | DestinationAct::Wait => {
                handover.held = Held::Nothing;
                return Err(because(error));
            }
        };
    }
}

impl<H: Host> Handover<'_, H> {
    /// Makes the filled guest one that can run.
    fn load(&mut self, blank: H::Blank, state: &VmState, saved_by: Instant) -> News {
        let began = Instant::now();
        match blank.load(state, saved_by) {
            Ok(paused) => {
                self.restore = began.elapsed();
                self.held = Held::Paused(paused);
                (DestinationEvent::Loaded, None)
            }
            Err(error) => (DestinationEvent::Over, Some(error.into())),
        }
    }

    fn say_ready(&mut self) -> Result<(), ReceiveError> {
        self.ready_ns = boottime_ns();
        self.channel.send(&Frame::Ready)?;
        (self.events)(Arrival::Ready);
        Ok(())
    }

    /// Waits for GO. It counts only if nobody has cancelled the move by then, and only within the peer's time: a
    /// process that was stopped meanwhile finds GO in its socket long after a person has given it up.
    fn hear_go(&mut self) -> News {
        match self.channel.receive() {
            Ok(Frame::Go) => {}
            Ok(Frame::Abort(reason)) => {
                let peer = self.channel.peer().to_owned();
                return over(ReceiveError::Aborted { peer, reason });
            }
            Ok(frame) => {
                return over(ReceiveError::Unexpected {
                    peer: self.channel.peer().to_owned(),
                    frame: frame.name(),
                    expected: "GO",
                });
            }
            Err(error) => return over(error),
        }
        let waited = Duration::from_nanos(boottime_ns().saturating_sub(self.ready_ns));
        if waited > self.channel.patience() {
            let error = GuestError::bare(format!(
                "GO came {:.1} s after READY, and {:.1} s were left for it: this side was stopped, or the network was; the guest does not run here",
                waited.as_secs_f64(),
                self.channel.patience().as_secs_f64()
            ));
            return (DestinationEvent::LateGo, Some(error.into()));
        }
        match self.channel.cancel_token().commit() {
            Ok(()) => (DestinationEvent::Go, None),
            Err(cancelled) => (DestinationEvent::Cancelled, Some(cancelled.into())),
        }
    }

    fn resume(&mut self) -> News {
        let began = Instant::now();
        let Held::Paused(paused) = std::mem::replace(&mut self.held, Held::Nothing) else {
            return (DestinationEvent::NotResumed, None);
        };
        match paused.resume() {
            Ok(guest) => {
                self.resume = began.elapsed();
                self.held = Held::Running(guest);
                (DestinationEvent::Resumed, None)
            }
            Err(failed) => {
                self.held = Held::Paused(failed.guest);
                (DestinationEvent::NotResumed, Some(failed.error.into()))
            }
        }
    }

    /// Whether that can be heard does not matter any more: the guest runs here.
    fn say_live(&mut self) {
        let live = Live {
            restore_ns: nanos(self.restore),
            resume_ns: nanos(self.resume),
            resumed_at_ns: boottime_ns(),
        };
        if let Err(error) = self.channel.send(&Frame::Live(live)) {
            tracing::warn!(
                "the guest runs here, but the source could not be told: {}",
                chain(&error)
            );
        }
        (self.events)(Arrival::Live {
            restore: self.restore,
            resume: self.resume,
        });
    }
}

fn over(error: impl Into<ReceiveError>) -> News {
    (DestinationEvent::Over, Some(error.into()))
}

/// Why the guest is not here. Every way that ends so has an error; were one to come without, that is still no reason to
/// panic.
fn because(error: Option<ReceiveError>) -> ReceiveError {
    error.unwrap_or_else(|| GuestError::bare("the handover ended without a reason").into())
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
