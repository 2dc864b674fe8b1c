//! Memory whose pages are put in as they are touched: userfaultfd(2), for anonymous memory and missing pages alone.
//!
//! Whoever touches a page that is not there waits, vCPUs inside KVM included, until it is put in. What is put in is
//! seen whole or not at all. The bindings know neither structures nor numbers; both are those of
//! include/uapi/linux/userfaultfd.h.
#![allow(
    unsafe_code,
    reason = "a system call and ioctls that libraries do not wrap"
)]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};

use nix::errno::Errno;

/// Version of the interface.
const UFFD_API: u64 = 0xaa;
const MODE_MISSING: u64 = 1;
const EVENT_PAGEFAULT: u8 = 0x12;
const PAGE: u64 = 4096;

/// `struct uffdio_api`.
#[repr(C)]
#[derive(Debug)]
pub struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_range`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Range {
    start: u64,
    len: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
#[derive(Debug)]
pub struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_copy`.
#[repr(C)]
#[derive(Debug)]
pub struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

/// `struct uffdio_zeropage`.
#[repr(C)]
#[derive(Debug)]
pub struct ZeroPage {
    range: Range,
    mode: u64,
    zeroed: i64,
}

/// `struct uffd_msg`, as the kernel writes it.
const MESSAGE: usize = 32;

mod raw {
    nix::ioctl_readwrite!(api, 0xaa, 0x3f, super::Api);
    nix::ioctl_readwrite!(register, 0xaa, 0x00, super::Register);
    nix::ioctl_read!(unregister, 0xaa, 0x01, super::Range);
    nix::ioctl_read!(wake, 0xaa, 0x02, super::Range);
    nix::ioctl_readwrite!(copy, 0xaa, 0x03, super::Copy);
    nix::ioctl_readwrite!(zero_page, 0xaa, 0x04, super::ZeroPage);
}

/// Faults of this process, in the ranges that were [watched](Self::watch). When it goes, nobody waits any more, and
/// what is missing is zeros.
#[derive(Debug)]
pub struct UserFaults(File);

impl UserFaults {
    /// Asks the kernel for it, without any range yet.
    ///
    /// # Errors
    /// It has none, or not for this user: faults of KVM need CAP_SYS_PTRACE, or the sysctl vm.unprivileged_userfaultfd.
    pub fn new() -> io::Result<Self> {
        // SAFETY: userfaultfd(2) takes flags alone and touches no memory of ours.
        let fd =
            unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
        let fd = match i32::try_from(fd) {
            Ok(fd) if fd >= 0 => fd,
            _ => return Err(io::Error::last_os_error()),
        };
        // SAFETY: the call succeeded, so the descriptor is open, and nobody else has seen its number.
        let file = unsafe { File::from_raw_fd(fd) };
        let mut asked = Api {
            api: UFFD_API,
            features: 0,
            ioctls: 0,
        };
        // SAFETY: the descriptor is a userfaultfd; the kernel reads and writes the structure, which lives that long.
        unsafe { raw::api(file.as_raw_fd(), &mut asked) }?;
        Ok(Self(file))
    }

    /// From now on whoever touches a page that is not there yet waits for it. `start` and `len` are of a mapping of
    /// anonymous memory of this process, in whole pages.
    ///
    /// # Errors
    /// It is no such mapping.
    pub fn watch(&self, start: u64, len: u64) -> io::Result<()> {
        let mut register = Register {
            range: Range { start, len },
            mode: MODE_MISSING,
            ioctls: 0,
        };
        // SAFETY: as above. Watching changes when memory gets its pages, not which bytes anybody may touch.
        unsafe { raw::register(self.0.as_raw_fd(), &mut register) }?;
        Ok(())
    }

    /// Whoever waits in that range goes on; what is missing in it is zeros.
    ///
    /// # Errors
    /// It was not watched.
    pub fn let_be(&self, start: u64, len: u64) -> io::Result<()> {
        let mut range = Range { start, len };
        // SAFETY: as above.
        unsafe { raw::unregister(self.0.as_raw_fd(), &mut range) }?;
        Ok(())
    }

    /// The address of a page that somebody waits for, if anybody does. The same may be told again until it is put in.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn waited_for(&mut self) -> io::Result<Option<u64>> {
        let mut message = [0; MESSAGE];
        loop {
            match self.0.read(&mut message) {
                Ok(MESSAGE) if message[0] == EVENT_PAGEFAULT => {
                    let mut address = [0; 8];
                    address.copy_from_slice(&message[16..24]);
                    return Ok(Some(u64::from_le_bytes(address) & !(PAGE - 1)));
                }
                // No other event was asked for.
                Ok(_) => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Puts whole pages in at `at`, which is watched, and of which none is there yet; whoever waits for them goes on.
    ///
    /// # Errors
    /// One was there already, or is not watched.
    pub fn put(&self, at: u64, pages: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while done < pages.len() {
            let left = &pages[done..];
            let mut copy = Copy {
                dst: at + done as u64,
                src: left.as_ptr() as u64,
                len: left.len() as u64,
                mode: 0,
                copied: 0,
            };
            // SAFETY: the kernel reads `len` bytes at `src`, which are the slice's, and writes pages that were missing,
            // in ranges that `watch` has been given: nobody has seen bytes there that could change under them.
            let result = unsafe { raw::copy(self.0.as_raw_fd(), &mut copy) };
            match (result, usize::try_from(copy.copied)) {
                (Ok(_), _) => return Ok(()),
                // A part of it; the mapping was busy.
                (Err(Errno::EAGAIN), copied) => done += copied.unwrap_or(0),
                (Err(error), _) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Puts a page of zeros in, as [`put`](Self::put) does.
    ///
    /// # Errors
    /// As there.
    pub fn put_zeros(&self, at: u64) -> io::Result<()> {
        loop {
            let mut zeros = ZeroPage {
                range: Range {
                    start: at,
                    len: PAGE,
                },
                mode: 0,
                zeroed: 0,
            };
            // SAFETY: as in `put`, without bytes of ours.
            match unsafe { raw::zero_page(self.0.as_raw_fd(), &mut zeros) } {
                Ok(_) => return Ok(()),
                Err(Errno::EAGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Who waits for a page that is there by now goes on.
    ///
    /// # Errors
    /// It is not watched.
    pub fn wake(&self, at: u64) -> io::Result<()> {
        let mut range = Range {
            start: at,
            len: PAGE,
        };
        // SAFETY: as above.
        unsafe { raw::wake(self.0.as_raw_fd(), &mut range) }?;
        Ok(())
    }
}

impl std::os::fd::AsFd for UserFaults {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::thread;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::memory::{Backing, host_addresses, map};

    #[test]
    fn who_touches_a_page_waits_until_it_is_there() {
        let layout = crate::layout::memory_layout(16 << 20).unwrap();
        let ram = map(&layout, Backing::Anonymous).unwrap();
        let start = host_addresses(&ram)[0];
        let mut faults = UserFaults::new().unwrap();
        faults.watch(start, 16 << 20).unwrap();
        assert_eq!(faults.waited_for().unwrap(), None);
        thread::scope(|scope| {
            let touch = |at: u64| ram.read_obj::<u64>(GuestAddress(at)).unwrap();
            let two = scope.spawn(move || (touch(0x5008), touch(0x9000)));
            let wait = |faults: &UserFaults| {
                let fd = std::os::fd::AsFd::as_fd(faults);
                poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::NONE).unwrap();
            };
            wait(&faults);
            assert_eq!(faults.waited_for().unwrap(), Some(start + 0x5000));
            faults.put(start + 0x5000, &[7; 8192]).unwrap();
            wait(&faults);
            assert_eq!(faults.waited_for().unwrap(), Some(start + 0x9000));
            faults.put_zeros(start + 0x9000).unwrap();
            assert_eq!(two.join().unwrap(), (0x0707_0707_0707_0707, 0));
        });
        // There is one already.
        assert!(faults.put(start + 0x6000, &[8; 4096]).is_err());
        faults.wake(start + 0x6000).unwrap();
        assert!(faults.put(start + (16 << 20), &[8; 4096]).is_err());
        faults.let_be(start, 16 << 20).unwrap();
        assert_eq!(ram.read_obj::<u8>(GuestAddress(0x6fff)).unwrap(), 7);
        assert_eq!(ram.read_obj::<u8>(GuestAddress(0xff_ffff)).unwrap(), 0);
        assert_eq!(faults.waited_for().unwrap(), None);
    }
}
