//! A vCPU's ring, mapped into this process.
#![allow(
    unsafe_code,
    reason = "memory that is shared with the kernel can only be had from mmap"
)]

use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::slice;

use kvm_ioctls::VcpuFd;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::entry::Entry;

/// Where the ring lies in a vCPU's descriptor, in bytes: page 64 (`KVM_DIRTY_LOG_PAGE_OFFSET` of x86,
/// arch/x86/include/uapi/asm/kvm.h).
const OFFSET: libc::off_t = 64 * 4096;

/// The entries of a ring. Unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    address: NonNull<c_void>,
    entries: NonZeroUsize,
}

// SAFETY: the mapping belongs to this value alone and no thread is special to it. All that can be reached
// through it are atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above; what is shared is a slice of atomics, which may be used by several threads.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the ring of a vCPU, which has so many entries: what KVM_CAP_DIRTY_LOG_RING was enabled with.
    ///
    /// # Errors
    /// There is no such ring.
    pub fn of(vcpu: &VcpuFd, entries: u32) -> io::Result<Self> {
        let entries = usize::try_from(entries).ok().and_then(NonZeroUsize::new);
        let bytes =
            entries.and_then(|entries| entries.checked_mul(NonZeroUsize::new(size_of::<Entry>())?));
        let (Some(entries), Some(bytes)) = (entries, bytes) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        // SAFETY: the descriptor is open as long as `vcpu`, which outlives this borrow.
        let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses replaces nothing. The kernel keeps the vCPU
        // as long as it is mapped.
        let address = unsafe { mmap(None, bytes, rights, MapFlags::MAP_SHARED, fd, OFFSET) }?;
        Ok(Self { address, entries })
    }
}

impl Deref for Mapping {
    type Target = [Entry];

    fn deref(&self) -> &[Entry] {
        // SAFETY: the mapping is readable and writable for `entries` entries, begins at a page (so it is aligned), is
        // zeroed by the kernel (so it is initialised; any bytes are valid in atomics), and lives as long as `self`. The
        // kernel changes it meanwhile, which atomics allow.
        unsafe { slice::from_raw_parts(self.address.cast().as_ptr(), self.entries.get()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let bytes = self.entries.get() * size_of::<Entry>();
        // SAFETY: the range is exactly our mapping, and no reference into it outlives `self`. The product did not
        // overflow when it was mapped.
        let _ = unsafe { munmap(self.address, bytes) };
    }
}
