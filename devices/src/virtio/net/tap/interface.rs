//! The interface that a tap is, by its name: whether it is there, up, and how long its frames may be.
#![allow(unsafe_code, reason = "ioctls on a socket, about an interface")]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::TapError;

/// A request about the interface `name`, if that can be one.
pub fn request(name: &str) -> Result<libc::ifreq, TapError> {
    let sane = |byte: &u8| byte.is_ascii_graphic() && *byte != b'/';
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || !name.as_bytes().iter().all(sane) {
        return Err(TapError::Name(name.into()));
    }
    let mut request = empty_request();
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        // ASCII, checked above.
        *to = libc::c_char::try_from(from).unwrap_or(0);
    }
    Ok(request)
}

/// A request without a name.
pub fn empty_request() -> libc::ifreq {
    // SAFETY: an ifreq is plain numbers and a union of such (its pointer is only read by the kernel for requests that
    // are not made here), for all of which zero is a value.
    unsafe { std::mem::zeroed() }
}

/// The interface's name, as the kernel wrote it.
pub fn name_of(request: &libc::ifreq) -> String {
    let bytes: Vec<u8> = request
        .ifr_name
        .iter()
        .map(|&c| c.to_le_bytes()[0])
        .take_while(|&c| c != 0)
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether there is an interface of that name.
pub fn exists(name: &str) -> bool {
    let exists = |name: &CStr| nix::net::if_::if_nametoindex(name).is_ok();
    CString::new(name).is_ok_and(|name| exists(&name))
}

/// Lets it carry frames.
pub fn bring_up(name: &str) -> io::Result<()> {
    let mut request = request(name).map_err(io::Error::other)?;
    ask(libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: SIOCGIFFLAGS filled in the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::c_short::try_from(libc::IFF_UP).unwrap_or(0);
    ask(libc::SIOCSIFFLAGS, &mut request)
}

/// Its MTU; None where that cannot be known: no interface of the name can be seen from here.
pub fn mtu(name: &str) -> Option<u32> {
    let mut request = request(name).ok()?;
    ask(libc::SIOCGIFMTU, &mut request).ok()?;
    // SAFETY: SIOCGIFMTU filled in the MTU.
    u32::try_from(unsafe { request.ifr_ifru.ifru_mtu }).ok()
}

/// Sets its MTU.
pub fn set_mtu(name: &str, mtu: u16) -> io::Result<()> {
    let mut request = request(name).map_err(io::Error::other)?;
    request.ifr_ifru.ifru_mtu = mtu.into();
    ask(libc::SIOCSIFMTU, &mut request)
}

/// One of the requests above.
fn ask(what: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: creates a descriptor and takes no pointer.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: the requests made here read and write at most one ifreq, which `request` is, for the duration of the
    // call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), what, std::ptr::from_mut(request)) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
