//! A connection that speaks frames: waits with a deadline, can be cancelled, and never loses a reason that
//! the peer gave before it went away.

use std::fs::File;
use std::io;
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;

use super::codec::{self, FrameError, HEADER, Header};
use super::frame::Frame;
use super::iov::{In, Out, advance_in, advance_out};
use super::preamble::{self, PREAMBLE, PreambleError};
use super::tls::TlsError;
use super::transport::{Identity, Kept, Transport, Wait};
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

    /// Who the peer has proved to be, where the transport asks for that; known once both have greeted each other.
    pub fn identity(&self) -> Option<&Identity> {
        self.transport.identity()
    }

    /// Makes sure who the peer is, where the transport asks for that.
    fn shake_hands(&mut self) -> Result<(), ChannelError> {
        let deadline = self.deadline();
        let error = loop {
            match self.transport.handshake() {
                Ok(None) => break None,
                Ok(Some(what)) => self.wait(what, Some(deadline), true)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Some(error),
            }
        };
        match error {
            None => {
                if let Some(identity) = self.transport.identity()
                    && !self.peer.contains(&identity.name)
                {
                    self.peer = format!("{} ({})", self.peer, identity.name);
                }
                Ok(())
            }
            Some(error) => {
                let error = self.io("shake hands with", error);
                self.part(Instant::now() + TURNED_AWAY, true);
                Err(error)
            }
        }
    }

    /// Makes sure who the peer is, and exchanges preambles.
    ///
    /// # Errors
    /// The peer is not Ferry, of another version, silent or gone, or not who it should be.
    pub fn greet(&mut self) -> Result<u16, ChannelError> {
        self.shake_hands()?;
        self.begin()?;
        self.hear_beginning()
    }

    /// Says the preamble, to whom nobody answers.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn begin(&mut self) -> Result<(), ChannelError> {
        let ours = preamble::ours();
        self.write_all(&mut [Out::bytes(&ours)], false)
    }

    /// Hears the other end's preamble.
    ///
    /// # Errors
    /// As [`greet`](Self::greet).
    pub fn hear_beginning(&mut self) -> Result<u16, ChannelError> {
        let deadline = self.deadline();
        while self.end - self.start < PREAMBLE {
            // A peer that trickles its bytes does not get more time for it.
            let more = self.receive_some(PREAMBLE, deadline);
            preamble::check_magic(&self.buffer[self.start..self.end], &self.peer)?;
            more?;
        }
        let mut theirs = [0; PREAMBLE];
        theirs.copy_from_slice(&self.buffer[self.start..self.start + PREAMBLE]);
        self.start += PREAMBLE;
        self.version = preamble::agree(theirs, &self.peer)?;
        Ok(self.version)
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// The connection is of no more use, or the move was cancelled before the first byte.
    pub fn send(&mut self, frame: &Frame) -> Result<(), ChannelError> {
        self.send_with(frame, &[])
    }

    /// Sends one frame and the guest memory that belongs behind it, in as few system calls as it takes.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn send_with(&mut self, frame: &Frame, data: &[Out<'_>]) -> Result<(), ChannelError> {
        self.send_frame(frame, data, false)
    }

    /// Sends one frame together with descriptors.
    ///
    /// # Errors
    /// As [`send`](Self::send); also where the peer is not surely on this host.
    pub fn send_files(
        &mut self,
        frame: &Frame,
        files: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        let mut bytes = Vec::new();
        codec::encode(frame, &mut bytes).map_err(ChannelError::Encode)?;
        let deadline = self.deadline();
        let count = loop {
            self.interrupted()?;
            match self.transport.send_files(&bytes, files) {
                Ok(count) => break count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(Wait::Send, Some(deadline), true)?;
                }
                Err(error) => return Err(self.io("hand guest memory to", error)),
            }
        };
        self.sent += u64::try_from(count).unwrap_or(0);
        self.write_all(&mut [Out::bytes(&bytes[count..])], false)
    }

    /// The descriptors that have come with what was received so far.
    pub fn take_files(&mut self) -> Vec<File> {
        self.transport.take_files()
    }

    fn send_frame(
        &mut self,
        frame: &Frame,
        data: &[Out<'_>],
        even_if_cancelled: bool,
    ) -> Result<(), ChannelError> {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        let encoded = codec::encode(frame, &mut scratch).map_err(ChannelError::Encode);
        let result = encoded.and_then(|()| {
            let mut pieces = Vec::with_capacity(data.len() + 1);
            pieces.push(Out::bytes(&scratch));
            pieces.extend_from_slice(data);
            self.write_all(&mut pieces, even_if_cancelled)
        });
        self.scratch = scratch;
        result
    }

    /// Sends all pieces. A cancel is obeyed before the first byte; once a part is out, the rest has
    /// [`GRACE`] to follow, so that last words can still be understood.
    fn write_all(
        &mut self,
        pieces: &mut [Out<'_>],
        even_if_cancelled: bool,
    ) -> Result<(), ChannelError> {
        if !even_if_cancelled {
            self.interrupted()?;
        }
        if self.torn {
            return Err(self.io("send to", io::ErrorKind::BrokenPipe.into()));
        }
        let before = self.sent;
        let sent = self.write(pieces, even_if_cancelled.then(|| Instant::now() + GRACE));
        if sent.is_err() {
            self.torn |= self.sent != before;
        }
        sent
    }

    /// Sends pieces, until `grace` where there is one.
    fn write(
        &mut self,
        pieces: &mut [Out<'_>],
        mut grace: Option<Instant>,
    ) -> Result<(), ChannelError> {
        let mut rest = pieces;
        let mut deadline = self.deadline();
        let before = self.sent;
        loop {
            let result = match rest.is_empty() {
                false => self.transport.send(rest),
                true => self.transport.flush().map(|()| 0),
            };
            match result {
                Ok(_) if rest.is_empty() => return Ok(()),
                Ok(count) => {
                    self.sent += u64::try_from(count).unwrap_or(0);
                    rest = advance_out(rest, count);
                    deadline = self.deadline();
                    // What is taken at once is never waited for, but may be too little all the same.
                    match self.due {
                        Some((due, _)) if due <= Instant::now() && !rest.is_empty() => {
                            return Err(self.late("took too little"));
                        }
                        _ => continue,
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    return Err(self.io("send to", error));
                }
                Err(_) => {}
            }
            let until = grace.map_or(deadline, |grace| grace.min(deadline));
            match self.wait(Wait::Send, Some(until), grace.is_none()) {
                Ok(()) => {}
                Err(ChannelError::Cancelled(_) | ChannelError::Alarm) if self.sent != before => {
                    grace = Some(Instant::now() + GRACE);
                }
                Err(error) => {
                    self.interrupted()?;
                    return Err(error);
                }
            }
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

    /// Waits, for as long as it takes, until a frame has begun to come; what a stream does that has nothing to
    /// carry for now. A cancel or an alarm ends it.
    ///
    /// # Errors
    /// As [`receive`](Self::receive), but for silence.
    pub fn wait_for_frame(&mut self) -> Result<(), ChannelError> {
        while self.start == self.end && !self.look()? {
            self.wait(Wait::Receive, None, true)?;
        }
        Ok(())
    }

    /// Receives one frame; none that is larger than all but HELLO and STATE ever are.
    ///
    /// # Errors
    /// The connection is of no more use, or the move was cancelled.
    pub fn receive(&mut self) -> Result<Frame, ChannelError> {
        self.receive_up_to(0)
    }

    /// Receives one frame whose body may have so many bytes, also beyond what all but HELLO and STATE have.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub fn receive_up_to(&mut self, max: u32) -> Result<Frame, ChannelError> {
        if self.start == self.end {
            self.receive_some(HEADER, self.deadline())?;
        }
        // A peer that trickles the bytes of a frame does not get more time for it.
        let deadline = self.deadline();
        self.need(HEADER, deadline)?;
        let mut header = [0; HEADER];
        header.copy_from_slice(&self.buffer[self.start..self.start + HEADER]);
        let header = Header::parse(header).map_err(|source| self.broken(source))?;
        self.start += HEADER;
        let len = usize::try_from(header.len).unwrap_or(usize::MAX);
        let frame = if len <= BUFFER {
            self.need(len, deadline)?;
            let frame = codec::parse(header, &self.buffer[self.start..self.start + len]);
            self.start += len;
            frame
        } else if header.len > max {
            return Err(self.broken(FrameError::Unwanted {
                kind: header.name(),
                len: header.len,
            }));
        } else {
            let body = self.receive_large(len)?;
            codec::parse(header, &body)
        };
        frame.map_err(|source| self.broken(source))
    }

    /// A frame if one has begun to come, without waiting for that.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub fn poll_frame(&mut self) -> Result<Option<Frame>, ChannelError> {
        if self.start == self.end && !self.look()? {
            return Ok(None);
        }
        self.receive().map(Some)
    }

    /// Whether bytes come into the empty buffer without waiting.
    fn look(&mut self) -> Result<bool, ChannelError> {
        self.make_room(READ_AHEAD);
        let into = &mut self.buffer[self.end..self.end + READ_AHEAD];
        match self.transport.receive(&mut [In::bytes(into)]) {
            Ok(0) => Err(self.closed()),
            Ok(count) => {
                self.end += count;
                self.received += u64::try_from(count).unwrap_or(0);
                Ok(true)
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(self.io("receive from", error)),
        }
    }

    /// A frame that comes before `deadline`, if one does, whatever became of the move meanwhile.
    pub fn overhear(&mut self, deadline: Instant) -> Option<Frame> {
        loop {
            if let Some(frame) = self.poll_frame().ok()? {
                return Some(frame);
            }
            self.wait(Wait::Receive, Some(deadline), false).ok()?;
        }
    }

    /// Receives the bytes behind a frame, straight to where they belong.
    ///
    /// # Errors
    /// As [`receive`](Self::receive); some of the memory may have been written.
    pub fn receive_data(&mut self, into: &mut [In<'_>]) -> Result<(), ChannelError> {
        let mut rest = into;
        while let Some(first) = rest.first_mut() {
            if self.start == self.end {
                break;
            }
            self.start += first.fill(&self.buffer[self.start..self.end]);
            if first.is_empty() {
                rest = &mut rest[1..];
            }
        }
        while !rest.is_empty() {
            let deadline = self.deadline();
            let count = self.receive_pieces(rest, deadline)?;
            rest = advance_in(rest, count);
        }
        Ok(())
    }

    /// A body larger than the buffer. It is gathered in steps, so that a peer has to send what it makes this
    /// side allocate.
    fn receive_large(&mut self, len: usize) -> Result<Vec<u8>, ChannelError> {
        const STEP: usize = 1 << 20;
        let mut body = Vec::new();
        while body.len() < len {
            let have = body.len();
            // No more than that: growing by doubling would hold twice what was sent.
            body.reserve_exact(len.min(have + STEP) - have);
            body.resize(len.min(have + STEP), 0);
            self.receive_data(&mut [In::bytes(&mut body[have..])])?;
        }
        Ok(body)
    }

    /// Waits until `count` bytes, at most [`BUFFER`], are in the buffer.
    fn need(&mut self, count: usize, deadline: Instant) -> Result<(), ChannelError> {
        while self.end - self.start < count {
            self.receive_some(count, deadline)?;
        }
        Ok(())
    }

    /// Receives at least one byte more into the buffer, which is to hold `count` of them.
    fn receive_some(&mut self, count: usize, deadline: Instant) -> Result<(), ChannelError> {
        self.make_room(count);
        let limit = (self.start + count + READ_AHEAD).min(BUFFER);
        let mut buffer = std::mem::take(&mut self.buffer);
        let into = &mut buffer[self.end..limit];
        let received = self.receive_pieces(&mut [In::bytes(into)], deadline);
        self.buffer = buffer;
        self.end += received?;
        Ok(())
    }

    /// Moves what is in the buffer to its front where `count` bytes would not fit otherwise.
    fn make_room(&mut self, count: usize) {
        if self.start == self.end || self.start + count > BUFFER {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }

    /// One receive that brings at least one byte.
    fn receive_pieces(
        &mut self,
        into: &mut [In<'_>],
        deadline: Instant,
    ) -> Result<usize, ChannelError> {
        loop {
            match self.transport.receive(into) {
                Ok(0) => return Err(self.closed()),
                Ok(count) => {
                    self.received += u64::try_from(count).unwrap_or(0);
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(Wait::Receive, Some(deadline), true)?;
                }
                Err(error) => return Err(self.io("receive from", error)),
            }
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
