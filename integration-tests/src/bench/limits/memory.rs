//! Fresh memory of our own, in huge pages where the host gives them.
#![allow(
    unsafe_code,
    reason = "memory that nobody has touched yet can only be had from mmap, and be populated by madvise"
)]

use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::slice;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

/// A huge page of x86-64: what threads divide a buffer by.
const HUGE: usize = 2 << 20;

/// An anonymous mapping of zeros, not touched yet, for which huge pages were asked. Goes when dropped.
#[derive(Debug)]
pub struct Buffer {
    address: NonNull<c_void>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone, and no thread is special to it: sharing and sending it is
// like sharing and sending a Vec of bytes.
unsafe impl Send for Buffer {}
// SAFETY: as above; through a shared reference it can only be read.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Maps `len` bytes.
    ///
    /// # Errors
    /// There is not so much address space, or `len` is 0.
    pub fn fresh(len: usize) -> io::Result<Self> {
        let length = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        let (rights, flags) = (
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
            MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE,
        );
        // SAFETY: a new mapping at an address that the kernel chooses replaces nothing.
        let address = unsafe { mmap_anonymous(None, length, rights, flags) }?;
        let this = Self { address, len };
        // SAFETY: the range is exactly our mapping, and MADV_HUGEPAGE changes no contents. A kernel without
        // huge pages refuses it, and is measured as it is.
        let _ = unsafe { madvise(this.address, len, MmapAdvise::MADV_HUGEPAGE) };
        Ok(this)
    }

    /// Touches all of it, by so many threads.
    ///
    /// # Errors
    /// The host has not enough memory.
    pub fn populate(&mut self, threads: usize) -> io::Result<()> {
        let share = self.len.div_ceil(threads).next_multiple_of(HUGE);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (self.bytes_mut().chunks_mut(share))
                .map(|part| {
                    scope.spawn(|| {
                        let address = NonNull::from(&mut *part).cast();
                        // SAFETY: the range is this thread's part of our mapping (shares are multiples of 2 MiB,
                        // so it begins at a page); MADV_POPULATE_WRITE changes no contents.
                        unsafe { madvise(address, part.len(), MmapAdvise::MADV_POPULATE_WRITE) }
                    })
                })
                .collect();
            for worker in workers {
                let ended = worker.join();
                ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            Ok(())
        })
    }

    /// The bytes; reading fresh ones maps the page of zeros.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is readable for `len` bytes, initialised (zeros, or what was written), lives as
        // long as `self`, and is written only through `&mut self`.
        unsafe { slice::from_raw_parts(self.address.as_ptr().cast(), self.len) }
    }

    /// The bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; the mapping is writable and `self` is borrowed alone.
        unsafe { slice::from_raw_parts_mut(self.address.as_ptr().cast(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the range is exactly our mapping, and no reference into it outlives `self`.
        let _ = unsafe { munmap(self.address, self.len) };
    }
}
