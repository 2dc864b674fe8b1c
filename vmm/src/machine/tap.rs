//! From what the user said about a tap to the open tap.
#![allow(
    unsafe_code,
    reason = "takes over a file descriptor that was passed to this process"
)]

use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use devices::virtio::net::{MAX_PAIRS, Tap};
use migration::guest::GuestError;

use crate::config::{NetConfig, TapConfig};

/// Opens the tap of a card that is to be made.
///
/// # Errors
/// It is missing, in use, not allowed, has too few queues or too short frames; or a descriptor is not a tap.
pub fn open(net: &NetConfig) -> Result<Tap, GuestError> {
    let queues = net.pairs();
    match &net.tap {
        TapConfig::Existing(name) => Tap::open(name, queues)
            .and_then(|tap| tap.carries(net.mtu).map(|()| tap))
            .map_err(|e| GuestError::new(format!("cannot open tap {name}"), e)),
        TapConfig::Create(name) => {
            let made = Tap::create(name, queues).and_then(|mut tap| {
                net.mtu.map_or(Ok(()), |mtu| tap.set_mtu(mtu))?;
                Ok(tap)
            });
            made.map_err(|e| GuestError::new(format!("cannot make tap {name}"), e))
        }
        TapConfig::Fds(fds) => passed(fds),
    }
}

/// Opens the tap of a card that is to come: with all queues it can have, since later nothing can be opened.
///
/// # Errors
/// As [`open`].
pub fn open_for_any(tap: &TapConfig) -> Result<Tap, GuestError> {
    match tap {
        TapConfig::Existing(name) => {
            Tap::open_all(name).map_err(|e| GuestError::new(format!("cannot open tap {name}"), e))
        }
        TapConfig::Create(name) => Tap::create(name, MAX_PAIRS)
            .map_err(|e| GuestError::new(format!("cannot make tap {name}"), e)),
        TapConfig::Fds(fds) => passed(fds),
    }
}

fn passed(fds: &[RawFd]) -> Result<Tap, GuestError> {
    let act = |fd: RawFd| {
        format!(
            "cannot use file descriptor {fd} as a tap, which has to be passed open and attached"
        )
    };
    let mut owned = Vec::new();
    for &fd in fds {
        owned.push(duplicate(fd).map_err(|e| GuestError::new(act(fd), e))?);
    }
    let first = fds.first().copied().unwrap_or(-1);
    Tap::from_fds(owned).map_err(|e| GuestError::new(act(first), e))
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
