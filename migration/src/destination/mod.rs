//! The receiving side of a move: a guest is made, filled, and run once the source says GO. Until then the
//! source owns it, and whatever goes wrong here costs nothing but the attempt.

mod alarm;
mod handover;
mod intake;
mod lazy;
mod probed;
mod receiver;
mod restore;
mod streams;
mod verify;

pub use lazy::{Install, Lazy, restore_lazily};
pub use restore::{RestoreError, Restored, Snapshot, hex, restore};
pub use streams::Accept;

use std::time::{Duration, Instant};

use thiserror::Error;

use self::alarm::Alarm;
use self::handover::take_over;
use self::receiver::{Means, Receiver};
use crate::cancel::{CancelToken, Cancelled};
use crate::event::Arrival;
use crate::guest::{BlankGuest, GuestError, Heartbeat, Host, PausedGuest};
use crate::handover::{Destination, DestinationAct, DestinationEvent};
use crate::options::MAX_STREAMS;
use crate::pack::unpacker::UnpackError;
use crate::source::chain;
use crate::wire::Transport;
use crate::wire::channel::{Channel, ChannelError};
use crate::wire::frame::{Figures, Frame};

/// The running guest that a [`Host`] ends up with.
pub type Arrived<H> = <Paused<H> as PausedGuest>::Running;
type Paused<H> = <<H as Host>::Blank as BlankGuest>::Paused;

/// How long the source may take to hear why this side does not go on.
const LINGER: Duration = Duration::from_secs(1);
/// How often the guest's heartbeats are looked at after LIVE. They bear their own times.
const GLANCE: Duration = Duration::from_millis(5);

/// What a receiver allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiveOptions {
    /// A peer from which nothing comes, or that takes nothing, for so long is dead.
    pub peer_timeout: Duration,
    /// How long the first heartbeat is waited for after LIVE, at most.
    pub heartbeat_timeout: Duration,
    /// The most streams that a source is granted. Each costs a thread while the guest comes in.
    pub streams: u16,
}

impl Default for ReceiveOptions {
    fn default() -> Self {
        Self {
            peer_timeout: Duration::from_secs(5),
            heartbeat_timeout: Duration::from_secs(1),
            streams: MAX_STREAMS,
        }
    }
}

/// Why there is no guest.
#[derive(Debug, Error)]
pub enum ReceiveError {
    /// Somebody cancelled it here.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// The connection failed. The guest is still the source's.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The source ended the move.
    #[error("{peer} ended the move: {reason}")]
    Aborted {
        /// The source.
        peer: String,
        /// Its reason.
        reason: String,
    },
    /// The source said something that does not belong there.
    #[error(
        "{peer} sent {frame} while the receiver was waiting for {expected}; run the same ferry on both ends"
    )]
    Unexpected {
        /// The source.
        peer: String,
        /// What it said.
        frame: &'static str,
        /// What was expected.
        expected: &'static str,
    },
    /// Pages that do not exist, or of another round.
    #[error("{peer} broke the protocol; run the same ferry on both ends: {what}")]
    Pages {
        /// The source.
        peer: String,
        /// What is wrong, with the values.
        what: String,
    },
    /// A further stream failed.
    #[error("stream {index} of the move failed")]
    Stream {
        /// Its number, from 1.
        index: usize,
        /// What happened to it.
        source: Box<ReceiveError>,
    },
    /// Packed pages that cannot be put into memory.
    #[error("{peer} broke the protocol; run the same ferry on both ends")]
    Packed {
        /// The source.
        peer: String,
        /// What is wrong with them.
        source: UnpackError,
    },
    /// There is no guest: somebody measured the link, and that went well.
    #[error("{peer} measured the link, and sent no guest")]
    Probed {
        /// Who.
        peer: String,
    },
    /// This host does not take the guest, or could not make it run.
    #[error(transparent)]
    Guest(#[from] GuestError),
}

/// A guest that has arrived, and runs.
#[derive(Debug)]
pub struct Received<G> {
    /// The guest. It is this side's from now on, whatever becomes of the connection.
    pub guest: G,
    /// What is left to be said.
    pub finish: Finish,
}

/// What a receiver still owes the source after LIVE: figures for its report. Dropping it is fine too.
#[derive(Debug)]
pub struct Finish {
    channel: Channel,
    timeout: Duration,
}

impl Finish {
    /// Waits for the guest's first heartbeat, for as long as the options say, and tells the source of it;
    /// without delay for a guest that reports none (`None`). Best run on a thread of its own.
    pub fn run(mut self, mut heartbeat: impl FnMut() -> Option<Heartbeat>) {
        let deadline = Instant::now() + self.timeout;
        let seen = loop {
            match heartbeat() {
                None => break Heartbeat::default(),
                Some(seen) if seen.count > 0 || Instant::now() >= deadline => break seen,
                Some(_) => std::thread::sleep(GLANCE),
            }
        };
        let figures = Figures {
            first_heartbeat_ns: seen.first_ns,
            largest_gap_ns: seen.largest_gap_ns,
        };
        self.channel.farewell(&Frame::Figures(figures), LINGER);
    }
}

/// Receives one guest over a connection just made, or has the link to its source measured
/// ([`ReceiveError::Probed`], after a few seconds at most); `peer` is what people call the other end, and further
/// streams come in at `accept`, if at all. Returns as soon as the guest runs.
///
/// # Errors
/// There is no guest here, and none is left half-made. The source was told why where it could be.
pub fn receive<H: Host>(
    host: &mut H,
    transport: Box<dyn Transport>,
    peer: &str,
    accept: Option<&mut dyn Accept>,
    options: &ReceiveOptions,
    cancel: &CancelToken,
    events: &mut dyn FnMut(Arrival),
) -> Result<Received<Arrived<H>>, ReceiveError> {
    let mut channel = Channel::new(transport, peer, options.peer_timeout, cancel)?;
    let alarm = Alarm::new()?;
    channel.listen_to(&alarm.token);
    let mut means = Means {
        host,
        // Match, so that the reference's lifetime may shrink.
        accept: match accept {
            Some(accept) => Some(accept),
            None => None,
        },
        options,
        alarm: &alarm,
        events,
    };
    let mut accepted = false;
    let mut stand = Destination::default();
    match converse(&mut means, &mut channel, &mut accepted, &mut stand) {
        Ok(guest) => Ok(Received {
            guest,
            finish: Finish {
                channel,
                timeout: options.heartbeat_timeout,
            },
        }),
        Err(error) => {
            let error = alarm.cause(error);
            // What there was of the guest has gone with the conversation.
            let (stand, _) = stand.on(DestinationEvent::Over);
            if let (_, DestinationAct::SayFailed) = stand.on(DestinationEvent::Freed) {
                explain(&mut channel, accepted, &error);
            }
            Err(error)
        }
    }
}

/// Tells the source why this side does not go on, if somebody is there to hear it. By now nothing is left of
/// the guest here, so the source may take that as leave to resume.
fn explain(channel: &mut Channel, accepted: bool, error: &ReceiveError) {
    use ChannelError::{Closed, Io};
    if let ReceiveError::Aborted { .. }
    | ReceiveError::Probed { .. }
    | ReceiveError::Channel(Closed { .. } | Io { .. }) = error
    {
        return;
    }
    let reason = chain(error);
    let frame = if accepted {
        Frame::Failed(reason)
    } else {
        Frame::Refuse(reason)
    };
    channel.farewell(&frame, LINGER);
}

/// The whole exchange, up to LIVE. After an error nothing of the guest is left.
fn converse<H: Host>(
    means: &mut Means<'_, H>,
    channel: &mut Channel,
    accepted: &mut bool,
    stand: &mut Destination,
) -> Result<Arrived<H>, ReceiveError> {
    channel.greet()?;
    let mut receiver = Receiver::Waiting;
    loop {
        let frame = channel.receive_up_to(receiver.largest())?;
        receiver = receiver.take(frame, means, channel)?;
        *accepted = true;
        if let Receiver::Filled(filled) = receiver {
            return take_over(*filled, means, channel, stand);
        }
    }
}
