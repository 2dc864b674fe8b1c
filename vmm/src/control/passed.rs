//! A file that comes with a request: opened by the client, whose right to do so it is, and handed over the socket.
//! A confined VMM opens nothing itself.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use migration::wire::iov::{In, Waits};
use migration::wire::{Local, Transport};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// An open file, shared by those that it is handed on to.
#[derive(Debug, Clone)]
pub struct PassedFile(Arc<File>);

impl PassedFile {
    /// The file.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn file(&self) -> io::Result<File> {
        self.0.try_clone()
    }

    /// Whether it is a regular file that may be written: writing to anything else could wait for ever.
    pub fn is_writable_file(&self) -> bool {
        let regular = self.0.metadata().is_ok_and(|meta| meta.is_file());
        let flags = fcntl(&*self.0, FcntlArg::F_GETFL).map(OFlag::from_bits_truncate);
        let mode = flags.map(|flags| flags & OFlag::O_ACCMODE);
        regular && mode.is_ok_and(|mode| mode == OFlag::O_WRONLY || mode == OFlag::O_RDWR)
    }
}

impl From<File> for PassedFile {
    fn from(file: File) -> Self {
        Self(Arc::new(file))
    }
}

/// The same file, not an equal one.
impl PartialEq for PassedFile {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for PassedFile {}

/// Reads from a connection for so long at most, all reads together, and keeps the file that comes along.
#[derive(Debug)]
pub struct Incoming {
    stream: Local,
    until: Instant,
}

impl Incoming {
    /// Reads from `stream` for at most `time`.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new(stream: &UnixStream, time: Duration) -> io::Result<Self> {
        let stream = Local::from(stream.try_clone()?);
        let until = Instant::now() + time;
        Ok(Self { stream, until })
    }

    /// The first file that has come, if one has; others are closed.
    pub fn file(&mut self) -> Option<PassedFile> {
        self.stream.take_files().into_iter().next().map(Into::into)
    }

    fn wait(&self) -> io::Result<()> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let millis = left.as_nanos().div_ceil(1_000_000);
        let slice = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.stream.poll_fd(), PollFlags::POLLIN)];
        poll(&mut fds, slice)?;
        Ok(())
    }
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.wait()?;
            match self.stream.receive(&mut [In::bytes(buffer)], Waits::No) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }
}
