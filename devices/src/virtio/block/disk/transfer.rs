//! Data between a disk and guest memory: straight, as the kernel copies it, or over a buffer of our own where the disk
//! wants addresses and lengths that the guest's buffers do not have.
#![allow(unsafe_code, reason = "preadv and pwritev on guest memory")]

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use thiserror::Error;
use vm_memory::GuestMemoryError;

use super::{Disk, MAX_ALIGNMENT};
use crate::GuestRam;
use crate::virtio::chain::{self, Segment};

/// The most bytes that go over the buffer at once, 1 MiB.
const BOUNCE_BYTES: u64 = 1 << 20;

/// Why data was not moved, or not all of it.
#[derive(Debug, Error)]
pub enum TransferError {
    /// The disk fails.
    #[error(transparent)]
    Disk(#[from] io::Error),
    /// The buffers are not guest memory after all.
    #[error(transparent)]
    Memory(#[from] GuestMemoryError),
}

/// The part of a request's buffers that holds data.
#[derive(Debug, Clone, Copy)]
pub struct Area<'a> {
    /// The buffers.
    pub segments: &'a [Segment],
    /// How many of their bytes come before the data.
    pub skip: u64,
    /// Bytes of data.
    pub bytes: u64,
}

/// A buffer at an address that suits a disk; grows when it is used.
#[derive(Debug, Default)]
pub struct Bounce(Vec<u8>);

impl Bounce {
    /// Room for `bytes`, or for as many as go at once.
    pub fn room(&mut self, bytes: u64, alignment: u32) -> &mut [u8] {
        let bytes = usize::try_from(bytes.min(BOUNCE_BYTES)).unwrap_or(0);
        self.at(alignment, 0, bytes)
    }

    /// As many bytes as the alignment, at an address that is a multiple of no more than that.
    pub fn just(&mut self, alignment: u32) -> &mut [u8] {
        let bytes = usize::try_from(alignment).unwrap_or(0);
        self.at(2 * MAX_ALIGNMENT, bytes, bytes)
    }

    /// `bytes` that begin `behind` a multiple of `alignment`.
    fn at(&mut self, alignment: u32, behind: usize, bytes: usize) -> &mut [u8] {
        let alignment = usize::try_from(alignment).unwrap_or(1);
        let most = behind + bytes + alignment;
        if self.0.len() < most {
            self.0.resize(most, 0);
        }
        let start = self.0.as_ptr().align_offset(alignment) + behind;
        &mut self.0[start..start + bytes]
    }
}

/// The way that data goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    FromDisk,
    ToDisk,
}

/// The means of moving data for one burst of requests.
#[derive(Debug)]
pub struct Transfer<'a> {
    ram: &'a GuestRam,
    disk: &'a Disk,
    bounce: &'a mut Bounce,
    vectors: Vec<libc::iovec>,
    pieces: Vec<Segment>,
}

impl<'a> Transfer<'a> {
    /// Between `disk` and `ram`.
    pub fn new(ram: &'a GuestRam, disk: &'a Disk, bounce: &'a mut Bounce) -> Self {
        Self {
            ram,
            disk,
            bounce,
            vectors: Vec::new(),
            pieces: Vec::new(),
        }
    }

    /// Reads what is on the disk at `offset`, and marks the pages.
    ///
    /// # Errors
    /// A part may have been read.
    pub fn read(&mut self, area: Area<'_>, offset: u64) -> Result<(), TransferError> {
        let done = self.go(Way::FromDisk, area, offset);
        // Whatever came of it: nobody knows how far a read got that failed.
        chain::mark_dirty(self.ram, area.segments, area.skip + area.bytes)?;
        done
    }

    /// Writes to the disk at `offset`.
    ///
    /// # Errors
    /// A part may have been written.
    pub fn write(&mut self, area: Area<'_>, offset: u64) -> Result<(), TransferError> {
        self.go(Way::ToDisk, area, offset)
    }

    fn go(&mut self, way: Way, area: Area<'_>, offset: u64) -> Result<(), TransferError> {
        self.name(area, 0)?;
        if self.disk.options.direct && !self.is_aligned() {
            return self.over_bounce(way, area, offset);
        }
        let mut done = 0;
        while done < area.bytes {
            if done > 0 {
                self.name(area, done)?;
            }
            match self.call(way, offset + done) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(moved) => done += moved,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Makes the I/O vector of what is left behind `done` bytes.
    fn name(&mut self, area: Area<'_>, done: u64) -> Result<(), GuestMemoryError> {
        let left = chain::pieces(area.segments, area.skip + done, area.bytes - done);
        self.pieces.clear();
        self.pieces.extend(left);
        self.vectors.clear();
        chain::push_iovecs(self.ram, &self.pieces, &mut self.vectors)
    }

    fn is_aligned(&self) -> bool {
        let Ok(alignment) = usize::try_from(self.disk.alignment) else {
            return false;
        };
        self.vectors.iter().all(|vector| {
            vector.iov_base.addr().is_multiple_of(alignment)
                && vector.iov_len.is_multiple_of(alignment)
        })
    }

    /// One call of the kernel for the vector; how many bytes it has moved.
    fn call(&self, way: Way, offset: u64) -> io::Result<u64> {
        let fd = self.disk.file.as_raw_fd();
        let offset = libc::off64_t::try_from(offset).map_err(io::Error::other)?;
        let count = libc::c_int::try_from(self.vectors.len()).map_err(io::Error::other)?;
        let vectors = self.vectors.as_ptr();
        let moved = match way {
            // SAFETY: every vector names memory inside a mapping of `self.ram`, which outlives `self`: they come from
            // `chain::push_iovecs` alone, which takes them from bounds-checked volatile slices. Nobody has a Rust
            // reference to guest memory, so writing to it aliases none. The count is the number of vectors.
            Way::FromDisk => unsafe { libc::preadv64(fd, vectors, count, offset) },
            // SAFETY: as above; the kernel copies from it as from any shared memory, so that vCPUs writing to it
            // meanwhile do no harm.
            Way::ToDisk => unsafe { libc::pwritev64(fd, vectors, count, offset) },
        };
        u64::try_from(moved).map_err(|_| io::Error::last_os_error())
    }

    fn over_bounce(&mut self, way: Way, area: Area<'_>, offset: u64) -> Result<(), TransferError> {
        let file = &self.disk.file;
        let mut done = 0;
        while done < area.bytes {
            let buffer = (self.bounce).room(area.bytes - done, self.disk.alignment);
            let skip = area.skip + done;
            match way {
                Way::FromDisk => {
                    file.read_exact_at(buffer, offset + done)?;
                    chain::write(self.ram, area.segments, skip, buffer)?;
                }
                Way::ToDisk => {
                    chain::read(self.ram, area.segments, skip, buffer)?;
                    file.write_all_at(buffer, offset + done)?;
                }
            }
            done += buffer.len() as u64;
        }
        Ok(())
    }
}
