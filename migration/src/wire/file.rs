//! A file in the place of a connection: what a source says is kept, and read later as if it were being said.
//!
//! Nobody answers from a file, so whoever writes or reads one asks nothing. Both directions compute the digest of the
//! bytes as they pass, up to the end mark: the last frame of the file, which says how many bytes are before it, and
//! their digest. A file that does not end with it was never finished, or is cut.

use std::fmt;
use std::fs::File;
use std::hash::Hasher;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use twox_hash::XxHash3_64;

use super::codec::{self, HEADER, Header};
use super::frame::Frame;
use super::iov::{In, Out, Place, Waits, gather, scatter};
use super::transport::{Kept, Transport};

/// So much is copied at a time: guest memory changes while it is looked at, and the digest has to be that of the bytes
/// that are written.
const ROOM: usize = 1 << 20;
/// Bytes of an end mark.
const END_MARK: usize = HEADER + 16;

/// The digest of all that passes.
struct Passing {
    bytes: u64,
    digest: XxHash3_64,
}

impl Passing {
    fn new() -> Self {
        let digest = XxHash3_64::with_seed(0);
        Self { bytes: 0, digest }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.bytes += u64::try_from(bytes.len()).unwrap_or(0);
        self.digest.write(bytes);
    }

    fn kept(&self) -> Kept {
        Kept {
            bytes: self.bytes,
            digest: self.digest.finish(),
        }
    }
}

impl fmt::Debug for Passing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes)
    }
}

/// A file that is written.
#[derive(Debug)]
pub struct FileSink {
    file: File,
    passing: Passing,
    room: Vec<u8>,
}

impl FileSink {
    /// Writes to `file`, from where it stands.
    pub fn new(file: File) -> Self {
        Self {
            file,
            passing: Passing::new(),
            room: vec![0; ROOM],
        }
    }
}

impl Transport for FileSink {
    fn prepare(&self, _peer_timeout: Duration) -> io::Result<()> {
        Ok(())
    }

    fn send(&mut self, from: &[Out<'_>], _waits: Waits) -> io::Result<usize> {
        let count = gather(from, &mut Place::default(), &mut self.room);
        let count = match self.file.write(&self.room[..count])? {
            0 if count > 0 => return Err(io::ErrorKind::WriteZero.into()),
            count => count,
        };
        self.passing.add(&self.room[..count]);
        Ok(count)
    }

    /// Nobody says anything.
    fn receive(&mut self, _into: &mut [In<'_>], _waits: Waits) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn settle(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn kept(&self) -> Option<Kept> {
        Some(self.passing.kept())
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn shutdown(&mut self, _how: Shutdown) {}
}

/// A file that is read.
#[derive(Debug)]
pub struct FileSource {
    file: File,
    /// Bytes in front of the end mark; the digest is theirs.
    before_end: u64,
    passing: Passing,
    room: Vec<u8>,
}

/// Why a file is not read at all.
#[derive(Debug)]
pub enum NotWhole {
    /// It cannot be read.
    Io(io::Error),
    /// It has no end mark for its length: so many bytes are there.
    NoEnd(u64),
}

impl FileSource {
    /// Reads `file`, from where it stands, which is its beginning. Its end is looked at first.
    ///
    /// # Errors
    /// It cannot be read, or was not finished, or cut.
    pub fn new(file: File) -> Result<Self, NotWhole> {
        let len = file.metadata().map_err(NotWhole::Io)?.len();
        let before_end = len
            .checked_sub(END_MARK as u64)
            .ok_or(NotWhole::NoEnd(len))?;
        let mut mark = [0; END_MARK];
        file.read_exact_at(&mut mark, before_end)
            .map_err(NotWhole::Io)?;
        match end_mark(&mark) {
            Some(bytes) if bytes == before_end => Ok(Self {
                file,
                before_end,
                passing: Passing::new(),
                room: vec![0; ROOM],
            }),
            _ => Err(NotWhole::NoEnd(len)),
        }
    }
}

/// How many bytes an end mark says there are before it.
fn end_mark(mark: &[u8]) -> Option<u64> {
    let (header, body) = mark.split_first_chunk::<HEADER>()?;
    match codec::parse(Header::parse(*header).ok()?, body) {
        Ok(Frame::End { bytes, .. }) => Some(bytes),
        _ => None,
    }
}

impl Transport for FileSource {
    fn prepare(&self, _peer_timeout: Duration) -> io::Result<()> {
        Ok(())
    }

    /// Nobody hears it.
    fn send(&mut self, from: &[Out<'_>], _waits: Waits) -> io::Result<usize> {
        Ok(from.iter().map(Out::len).sum())
    }

    fn receive(&mut self, into: &mut [In<'_>], _waits: Waits) -> io::Result<usize> {
        let wanted: usize = into.iter().map(In::len).sum();
        // Never across the end mark, so that the digest stops there.
        let left = self.before_end.saturating_sub(self.passing.bytes);
        let most = match usize::try_from(left).unwrap_or(usize::MAX) {
            0 => wanted,
            left => wanted.min(left),
        };
        let most = most.min(ROOM);
        let count = self.file.read(&mut self.room[..most])?;
        if left > 0 {
            self.passing.add(&self.room[..count]);
        }
        scatter(into, &mut Place::default(), &self.room[..count]);
        Ok(count)
    }

    fn kept(&self) -> Option<Kept> {
        Some(self.passing.kept())
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn shutdown(&mut self, _how: Shutdown) {}
}
