//! What a network card is plugged into: descriptors that give and take one frame a call, each with the
//! 12-byte header of virtio 1.2, 5.1.6 in front of it.
#![allow(unsafe_code, reason = "readv and writev on guest memory, and poll")]

use std::io;
use std::os::fd::RawFd;

use vm_memory::GuestMemoryError;

use super::features::Offloads;
use crate::GuestRam;
use crate::virtio::chain::{self, Segment};

/// Bytes of `struct virtio_net_hdr_v1` before every frame.
pub const HEADER: usize = 12;
/// The most bytes of a frame with its header: 64 KiB of TSO payload and what is before it (5.1.6.3.1).
pub const MAX_FRAME: usize = 65_562;

/// Whether a backend takes a frame right now. If it does not, whoever watches it is told once it does: a tap promises
/// that to who has asked, and not to who was refused (`tun_chr_poll` of Linux's drivers/net/tun.c).
pub fn has_room(fd: RawFd) -> bool {
    let mut ask = libc::pollfd {
        fd,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one pollfd, which is ours until the call has returned; a descriptor that is none is only reported.
    let answered = unsafe { libc::poll(&raw mut ask, 1, 0) };
    answered == 1 && ask.revents & libc::POLLOUT != 0
}

/// A tap, or what behaves like one.
pub trait NetBackend: Send {
    /// A descriptor for each of its queues, at least one: non-blocking; a read or write is one frame.
    fn fds(&self) -> Vec<RawFd>;
    /// Divides the frames to the guest among the first `count` queues, and gives none to the others. Called again after
    /// every move.
    ///
    /// # Errors
    /// The backend cannot do that.
    fn use_queues(&mut self, count: usize) -> io::Result<()>;
    /// What it can do at most.
    fn offloads(&self) -> Offloads;
    /// Says which frames the guest takes; called again whenever that changes and after every move.
    ///
    /// # Errors
    /// The backend cannot do that.
    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()>;
}

/// Reusable I/O vector: pieces of guest memory, then perhaps a piece of our own.
#[derive(Debug)]
pub struct Iovecs<'a> {
    ram: &'a GuestRam,
    vectors: Vec<libc::iovec>,
}

impl<'a> Iovecs<'a> {
    /// An empty vector over `ram`.
    pub fn new(ram: &'a GuestRam) -> Self {
        Self {
            ram,
            vectors: Vec::new(),
        }
    }

    /// Begins anew.
    pub fn clear(&mut self) {
        self.vectors.clear();
    }

    /// Adds guest memory. The result is how many pieces that made.
    ///
    /// # Errors
    /// It is not there.
    pub fn push(&mut self, segments: &[Segment]) -> Result<usize, GuestMemoryError> {
        let before = self.vectors.len();
        chain::push_iovecs(self.ram, segments, &mut self.vectors)?;
        Ok(self.vectors.len() - before)
    }

    /// Takes the first pieces away.
    pub fn remove_first(&mut self, pieces: usize) {
        self.vectors.drain(..pieces.min(self.vectors.len()));
    }

    fn count(&self, vectors: usize) -> libc::c_int {
        libc::c_int::try_from(vectors).unwrap_or(libc::c_int::MAX)
    }

    /// Writes everything as one frame.
    ///
    /// # Errors
    /// As writev(2).
    pub fn write(&self, fd: RawFd) -> io::Result<usize> {
        // SAFETY: every vector names memory inside a mapping of `self.ram`, which outlives `self`: they come from
        // `chain::push_iovecs` alone, which takes them from bounds-checked volatile slices. The kernel copies from
        // it as from any shared memory, so that vCPUs writing to it meanwhile do no harm. The count is the number
        // of vectors.
        retry(|| unsafe { libc::writev(fd, self.vectors.as_ptr(), self.count(self.vectors.len())) })
    }

    /// Reads one frame into the guest memory, and what does not fit there into `overflow`. The result is how
    /// many bytes were read in all. No page is marked as dirty.
    ///
    /// # Errors
    /// As readv(2).
    pub fn read(&mut self, fd: RawFd, overflow: &mut [u8]) -> io::Result<usize> {
        let guest = self.vectors.len();
        self.vectors.push(libc::iovec {
            iov_base: overflow.as_mut_ptr().cast(),
            iov_len: overflow.len(),
        });
        // SAFETY: every vector but the last names memory inside a mapping of `self.ram`, as in `write`; nobody has
        // a Rust reference to guest memory, so writing to it aliases none. The last is `overflow`, borrowed
        // mutably for the call, and it is taken out again below. The count is the number of vectors.
        let read =
            retry(|| unsafe { libc::readv(fd, self.vectors.as_ptr(), self.count(guest + 1)) });
        self.vectors.truncate(guest);
        read
    }
}

/// Writes one frame from our own memory.
///
/// # Errors
/// As write(2).
pub fn write_frame(fd: RawFd, frame: &[u8]) -> io::Result<usize> {
    // SAFETY: pointer and length are those of a slice that is borrowed for the call.
    retry(|| unsafe { libc::write(fd, frame.as_ptr().cast(), frame.len()) })
}

fn retry(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(bytes) => return Ok(bytes),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
