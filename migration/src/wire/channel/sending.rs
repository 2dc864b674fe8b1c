//! What this side says: frames, guest memory behind them, descriptors beside them.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use super::{Channel, ChannelError, GRACE};
use crate::wire::codec;
use crate::wire::frame::Frame;
use crate::wire::iov::{Out, Waits, advance_out};
use crate::wire::transport::Wait;

impl Channel {
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

    pub(super) fn send_frame(
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
    pub(super) fn write_all(
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
            let waits = match grace {
                None => Waits::Yes,
                Some(_) => Waits::No,
            };
            let result = match rest.is_empty() {
                false => self.transport.send(rest, waits),
                true => self.transport.flush().map(|()| 0),
            };
            match result {
                Ok(_) if rest.is_empty() => return Ok(()),
                Ok(count) => {
                    self.sent += u64::try_from(count).unwrap_or(0);
                    rest = advance_out(rest, count);
                    deadline = self.deadline();
                    // What is taken at once is never waited for, but may be too little all the same.
                    if !rest.is_empty() {
                        self.in_time("took too little")?;
                    }
                    continue;
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
}
