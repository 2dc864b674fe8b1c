//! What the peer says: frames, none larger than what may come, and guest memory behind them, straight to where it
//! belongs.

use std::io;
use std::time::Instant;

use super::{BUFFER, Channel, ChannelError, READ_AHEAD};
use crate::wire::codec::{self, FrameError, HEADER, Header};
use crate::wire::frame::Frame;
use crate::wire::iov::{In, Waits, advance_in};
use crate::wire::transport::Wait;

impl Channel {
    /// Waits, for as long as it takes, until a frame has begun to come; what a stream does that has nothing to
    /// carry for now. A cancel or an alarm ends it.
    ///
    /// # Errors
    /// As [`receive`](Self::receive), but for silence.
    pub fn wait_for_frame(&mut self) -> Result<(), ChannelError> {
        while self.start == self.end && !self.look(Waits::Yes)? {
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
        if self.start == self.end && !self.look(Waits::No)? {
            return Ok(None);
        }
        self.receive().map(Some)
    }

    /// Whether bytes come into the empty buffer, without waiting or after a little of it.
    fn look(&mut self, waits: Waits) -> Result<bool, ChannelError> {
        self.make_room(READ_AHEAD);
        let into = &mut [In::bytes(&mut self.buffer[self.end..self.end + READ_AHEAD])];
        match self.transport.receive(into, waits) {
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
        self.alarm = None;
        self.due = None;
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
            if !rest.is_empty() {
                self.in_time("sent too little")?;
            }
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

    /// Waits until `count` bytes, at most [`BUFFER`], are in the buffer. A peer that sends a byte now and then is never
    /// waited for, since the transport waits for that a little itself, so the time is looked at besides; but not before
    /// what is there has been taken: this side may have been held up.
    fn need(&mut self, count: usize, deadline: Instant) -> Result<(), ChannelError> {
        while self.end - self.start < count {
            self.receive_some(count, deadline)?;
            if self.end - self.start < count && deadline <= Instant::now() {
                return Err(self.late("sent too little"));
            }
        }
        Ok(())
    }

    /// Receives at least one byte more into the buffer, which is to hold `count` of them.
    pub(super) fn receive_some(
        &mut self,
        count: usize,
        deadline: Instant,
    ) -> Result<(), ChannelError> {
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

    /// One receive that brings at least one byte. Behind a peer that sends without end there is never a wait in which a
    /// cancel would be noticed.
    fn receive_pieces(
        &mut self,
        into: &mut [In<'_>],
        deadline: Instant,
    ) -> Result<usize, ChannelError> {
        loop {
            self.interrupted()?;
            match self.transport.receive(into, Waits::Yes) {
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
}
