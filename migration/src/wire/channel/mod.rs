//! A connection that speaks frames: waits with a deadline, can be cancelled, and never loses a reason that
//! the peer gave before it went away.

mod greeting;
mod receiving;
mod sending;

use std::io;
use std::net::Shutdown;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;

use super::codec::FrameError;
use super::frame::Frame;
use super::preamble::PreambleError;
use super::tls::TlsError;
use super::transport::{Kept, Transport, Wait};
use crate::cancel::{CancelToken, Cancelled};

/// Most of a header and a body of runs comes with one call; more would only be copied once more.
const READ_AHEAD: usize = 1 << 10;
/// Own buffer of a receiver. Bodies beyond it (HELLO, STATE) are gathered as they come, where they are wanted.
const BUFFER: usize = 32 << 10;
/// How long a frame that is half sent may take to be finished after a cancel.
const GRACE: Duration = Duration::from_millis(50);
/// How long a peer with which no handshake came about may take to hear why.
const TURNED_AWAY: Duration = Duration::from_secs(1);

/// What ended the use of a connection.
#[derive(Debug, Error)]
pub enum ChannelError {
    /// The move was cancelled on this side.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// The peer's end is closed.
    #[error("{peer} closed the connection; what it printed itself says why")]
    Closed {
        /// The peer.
        peer: String,
    },
    /// The system says that the connection is no more.
    #[error("cannot {act} {peer}; check what is printed there, and the network between")]
    Io {
        /// "send to" or "receive from".
        act: &'static str,
        /// The peer.
        peer: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The connection is to be encrypted, and cannot be, or not with this peer.
    #[error("no TLS with {peer}")]
    Tls {
        /// The peer.
        peer: String,
        /// Why, and what to do.
        source: TlsError,
    },
    /// Nothing came, or nothing was taken, for too long.
    #[error(
        "{peer} {does} for {seconds:.1} s: it is dead, stopped, unreachable or not Ferry; check that end and the network between"
    )]
    Silent {
        /// The peer.
        peer: String,
        /// "sent nothing" or "took nothing".
        does: &'static str,
        /// How long it was waited for.
        seconds: f64,
    },
    /// It did something now and then, but all in all it took too long.
    #[error(
        "{peer} kept the guest standing still for {seconds:.1} s: it or the network is slower than it was; look at both, or allow more by --peer-timeout"
    )]
    Overdue {
        /// The peer.
        peer: String,
        /// How long it had.
        seconds: f64,
    },
    /// The bytes are not a frame.
    #[error("{peer} broke the protocol; run the same ferry on both ends")]
    Frame {
        /// The peer.
        peer: String,
        /// What is wrong with them.
        source: FrameError,
    },
    /// A frame of this side cannot be sent.
    #[error("cannot send a frame")]
    Encode(#[source] FrameError),
    /// The other end is not Ferry, or of another version.
    #[error(transparent)]
    Preamble(#[from] PreambleError),
    /// Another stream of the move failed, and with it the move. That stream's error says why.
    #[error("another stream of the move failed")]
    Alarm,
}

/// A connection to a peer.
#[derive(Debug)]
pub struct Channel {
    transport: Box<dyn Transport>,
    peer: String,
    timeout: Duration,
    /// What both ends speak; 0 before they have greeted each other.
    version: u16,
    cancel: CancelToken,
    /// `buffer[start..end]` has come and was not taken yet.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    scratch: Vec<u8>,
    sent: u64,
    received: u64,
    /// A frame was sent in part: nothing that is sent now would be understood.
    torn: bool,
    /// Set off when another stream of the same move fails.
    alarm: Option<CancelToken>,
    /// Until when all must be done that the peer is waited for, and how long that was.
    due: Option<(Instant, Duration)>,
}

impl Channel {
    /// Takes a transport. `timeout` is how long the peer may do nothing where something is expected of it.
    ///
    /// # Errors
    /// The transport cannot be made ready.
    pub fn new(
        transport: Box<dyn Transport>,
        peer: impl Into<String>,
        timeout: Duration,
        cancel: &CancelToken,
    ) -> Result<Self, ChannelError> {
        let peer = peer.into();
        transport
            .prepare(timeout)
            .map_err(|source| ChannelError::Io {
                act: "prepare the connection to",
                peer: peer.clone(),
                source,
            })?;
        Ok(Self {
            transport,
            peer,
            timeout,
            version: 0,
            cancel: cancel.clone(),
            buffer: vec![0; BUFFER],
            start: 0,
            end: 0,
            scratch: Vec::new(),
            sent: 0,
            received: 0,
            torn: false,
            alarm: None,
            due: None,
        })
    }

    /// The peer's name.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// How long the peer may do nothing where something is expected of it.
    pub fn patience(&self) -> Duration {
        self.timeout
    }

    /// From now on the peer may do nothing for so long.
    ///
    /// # Errors
    /// The transport cannot be made ready for that.
    pub fn be_patient(&mut self, timeout: Duration) -> Result<(), ChannelError> {
        self.timeout = timeout;
        let prepared = self.transport.prepare(timeout);
        prepared.map_err(|error| self.io("prepare the connection to", error))
    }

    /// The version of the protocol that both ends speak; 0 before they have greeted each other.
    pub fn version(&self) -> u16 {
        self.version
    }

    /// The processor on which bytes come in, over loopback.
    pub(crate) fn shared_processor(&self) -> Option<usize> {
        self.transport.shared_processor()
    }

    /// Both ends run on one processor from now on; see [`Transport::share_processor`].
    pub(crate) fn share_processor(&self) {
        self.transport.share_processor();
    }

    /// Little waits in the kernel from now on; see [`Transport::limit_unsent`].
    pub(crate) fn limit_unsent(&self, bytes: u32) {
        self.transport.limit_unsent(bytes);
    }

    /// Bytes that the kernel has taken so far.
    pub fn sent_bytes(&self) -> u64 {
        self.sent
    }

    /// Bytes that were understood so far, or at least taken: where the next frame begins.
    pub fn position(&self) -> u64 {
        self.received - u64::try_from(self.end - self.start).unwrap_or(0)
    }

    /// Where all is kept in a file: how much there is so far, and its digest; see [`Transport::kept`].
    pub fn kept(&self) -> Option<Kept> {
        self.transport.kept()
    }

    /// Makes what was sent so far last, where it is kept in a file.
    ///
    /// # Errors
    /// It does not.
    pub fn settle(&mut self) -> Result<(), ChannelError> {
        self.interrupted()?;
        self.transport
            .settle()
            .map_err(|error| self.io("keep what was sent to", error))
    }

    /// The shared switch of the move.
    pub fn cancel_token(&self) -> &CancelToken {
        &self.cancel
    }

    /// From now on a wait also ends, with [`ChannelError::Alarm`], when `alarm` is cancelled.
    pub fn listen_to(&mut self, alarm: &CancelToken) {
        self.alarm = Some(alarm.clone());
    }

    /// From now on waits end, with [`ChannelError::Overdue`], when `allowed` is over from `since` on, however much the
    /// peer did by then: a peer that takes a byte now and then is never silent. `None` ends that.
    pub fn hurry(&mut self, since: Instant, allowed: Option<Duration>) {
        self.due = allowed.map(|allowed| (since + allowed, allowed));
    }

    /// Until when the peer must do something, from now.
    fn deadline(&self) -> Instant {
        let silent = Instant::now() + self.timeout;
        self.due.map_or(silent, |(due, _)| due.min(silent))
    }

    /// Whether there is time left of what [`hurry`](Self::hurry) allowed.
    ///
    /// # Errors
    /// [`ChannelError::Overdue`].
    pub fn in_time(&self, does: &'static str) -> Result<(), ChannelError> {
        match self.due {
            Some((due, _)) if due <= Instant::now() => Err(self.late(does)),
            _ => Ok(()),
        }
    }

    /// The error of a wait that is over.
    fn late(&self, does: &'static str) -> ChannelError {
        let peer = self.peer.clone();
        match self.due {
            Some((due, allowed)) if due <= Instant::now() => ChannelError::Overdue {
                peer,
                seconds: allowed.as_secs_f64(),
            },
            _ => ChannelError::Silent {
                peer,
                does,
                seconds: self.timeout.as_secs_f64(),
            },
        }
    }

    /// Whether the move is cancelled, or over for another stream's sake.
    ///
    /// # Errors
    /// That it is.
    pub fn interrupted(&self) -> Result<(), ChannelError> {
        if self.cancel.is_cancelled() {
            return Err(Cancelled.into());
        }
        match &self.alarm {
            Some(alarm) if alarm.is_cancelled() => Err(ChannelError::Alarm),
            _ => Ok(()),
        }
    }

    /// Waits until the transport is ready; without a deadline for as long as it takes.
    fn wait(
        &self,
        what: Wait,
        deadline: Option<Instant>,
        cancellable: bool,
    ) -> Result<(), ChannelError> {
        let (flags, act, does) = match what {
            Wait::Send => (PollFlags::POLLOUT, "send to", "took nothing"),
            Wait::Receive => (PollFlags::POLLIN, "receive from", "sent nothing"),
        };
        let alarm = self.alarm.as_ref().unwrap_or(&self.cancel);
        loop {
            if cancellable {
                self.interrupted()?;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(self.late(does));
            }
            let mut fds = [
                PollFd::new(self.transport.poll_fd(), flags),
                PollFd::new(self.cancel.wake_fd(), PollFlags::POLLIN),
                PollFd::new(alarm.wake_fd(), PollFlags::POLLIN),
            ];
            let count = if cancellable { 3 } else { 1 };
            let slice = left.map_or(PollTimeout::NONE, |left| {
                // Rounded up, lest the last fraction of a millisecond be spent spinning.
                let millis = left.as_nanos().div_ceil(1_000_000);
                PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
            });
            match poll(&mut fds[..count], slice) {
                Ok(_) if fds[0].any().unwrap_or(true) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(self.io(act, error.into())),
            }
        }
    }

    /// Says a last frame, if the peer can still understand one, and ends the connection. Waits at most
    /// `linger` for the peer to take it: closing a socket with unread bytes in it would reset the connection
    /// and destroy what was said.
    pub fn farewell(&mut self, frame: &Frame, linger: Duration) {
        if self.send_frame(frame, &[], true).is_ok() {
            self.part(Instant::now() + linger, false);
        }
        self.transport.shutdown(Shutdown::Both);
    }

    /// Sends no more, and throws away what comes until the peer closes or the time is over.
    fn part(&mut self, deadline: Instant, cancellable: bool) {
        self.transport.shutdown(Shutdown::Write);
        let mut sink = vec![0; 256 << 10];
        loop {
            match self.transport.discard(&mut sink) {
                Ok(0) => return,
                Ok(_) if Instant::now() < deadline => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self
                        .wait(Wait::Receive, Some(deadline), cancellable)
                        .is_err()
                    {
                        return;
                    }
                }
                _ => return,
            }
        }
    }

    fn closed(&self) -> ChannelError {
        ChannelError::Closed {
            peer: self.peer.clone(),
        }
    }

    fn io(&self, act: &'static str, source: io::Error) -> ChannelError {
        let peer = self.peer.clone();
        match source.downcast::<TlsError>() {
            Ok(source) => ChannelError::Tls { peer, source },
            Err(source) => ChannelError::Io { act, peer, source },
        }
    }

    fn broken(&self, source: FrameError) -> ChannelError {
        ChannelError::Frame {
            peer: self.peer.clone(),
            source,
        }
    }
}
