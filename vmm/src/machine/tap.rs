//! From what the user said about a tap to the open tap.
#![allow(
    unsafe_code,
    reason = "takes over a file descriptor that was passed to this process"
)]

use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use devices::virtio::net::Tap;
use migration::guest::GuestError;

use crate::config::TapConfig;

/// Opens the tap.
///
/// # Errors
/// It is missing, in use, not allowed, or the descriptor is not a tap.
pub fn open(tap: &TapConfig) -> Result<Tap, GuestError> {
    match tap {
        TapConfig::Existing(name) => {
            Tap::open(name).map_err(|e| GuestError::new(format!("cannot open tap {name}"), e))
        }
        TapConfig::Create(name) => {
            Tap::create(name).map_err(|e| GuestError::new(format!("cannot make tap {name}"), e))
        }
        TapConfig::Fd(fd) => {
            let act = || {
                format!(
                    "cannot use file descriptor {fd} as a tap, which has to be passed open and attached"
                )
            };
            let owned = duplicate(*fd).map_err(|e| GuestError::new(act(), e))?;
            Tap::from_fd(owned).map_err(|e| GuestError::new(act(), e))
        }
    }
}

/// A descriptor of our own for one that was passed: the passed one stays open for another attempt.
fn duplicate(fd: RawFd) -> std::io::Result<OwnedFd> {
    // SAFETY: fcntl takes any number; it only looks whether it is an open descriptor.
    if fd < 0 || unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(std::io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the descriptor is open (checked above), and it is the user's who passed it: nothing in this
    // process closes it. It is borrowed for the duplication alone.
    unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()
}
