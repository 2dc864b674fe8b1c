//! A tap interface as a card's backend (kernel: Documentation/networking/tuntap.rst).
#![allow(unsafe_code, reason = "ioctls on /dev/net/tun")]

use std::ffi::{CStr, CString};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use thiserror::Error;

use super::backend::{HEADER, NetBackend};
use super::features::Offloads;

/// Why there is no tap.
#[derive(Debug, Error)]
pub enum TapError {
    /// Not a name that an interface can have.
    #[error("{0:?} is no interface name: 1 to 15 bytes without '/' and white space")]
    Name(String),
    /// No interface has the name.
    #[error(
        "there is no interface {0}: make it with `ip tuntap add {0} mode tap`, or let ferry make one"
    )]
    Missing(String),
    /// An interface with the name exists already.
    #[error(
        "cannot make tap {0}: an interface of that name exists already, choose another name or use that one"
    )]
    Exists(String),
    /// Another process has it.
    #[error(
        "tap {0} is in use by another process: give each guest a tap of its own, or end the process that has it"
    )]
    InUse(String),
    /// Not allowed.
    #[error(
        "no permission for tap {0}: run as root or with CAP_NET_ADMIN, or make it with `ip tuntap add {0} mode tap user $USER`"
    )]
    Permission(String),
    /// The kernel has no taps at all.
    #[error("cannot open tap {0}: there is no /dev/net/tun; load the module (`modprobe tun`)")]
    NoDriver(String),
    /// An interface, but not a tap that can be used.
    #[error("interface {0} is not a single-queue tap: make one with `ip tuntap add NAME mode tap`")]
    NotATap(String),
    /// A descriptor that is no tap, or one without the virtio header.
    #[error("descriptor {fd} is not a tap with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR: {why}")]
    Descriptor {
        /// The descriptor's number.
        fd: RawFd,
        /// What it is instead.
        why: String,
    },
    /// Anything else that the kernel refuses.
    #[error("cannot {act} tap {name}")]
    System {
        /// What was attempted.
        act: &'static str,
        /// The tap.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// A tap with the virtio header, non-blocking.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    name: String,
}

/// Flags of a tap that is used here. Without IFF_NO_PI there would be four bytes more before each frame.
const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

impl Tap {
    /// Takes an interface that exists.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn open(name: &str) -> Result<Self, TapError> {
        let request = request(name)?;
        if !exists(name) {
            return Err(TapError::Missing(name.into()));
        }
        Self::attach(name, request)
    }

    /// Makes an interface, brings it up, and takes it; it vanishes when dropped. A `%d` in the name stands for the first
    /// number that is free.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn create(name: &str) -> Result<Self, TapError> {
        let request = request(name)?;
        if exists(name) {
            return Err(TapError::Exists(name.into()));
        }
        let tap = Self::attach(name, request)?;
        tap.bring_up().map_err(|source| TapError::System {
            act: "bring up",
            name: tap.name.clone(),
            source,
        })?;
        Ok(tap)
    }

    /// Takes a tap that somebody else opened and attached.
    ///
    /// # Errors
    /// It is no tap, or one without the virtio header.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, TapError> {
        let number = fd.as_raw_fd();
        let wrong = |why: String| TapError::Descriptor { fd: number, why };
        let request = flags_of(&fd).map_err(|error| wrong(error.to_string()))?;
        // SAFETY: TUNGETIFF filled in the flags.
        let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        if flags & FLAGS != FLAGS {
            return Err(wrong(format!("it has the flags {flags:#x}")));
        }
        nix::fcntl::fcntl(
            &fd,
            nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK),
        )
        .map_err(|error| wrong(error.to_string()))?;
        let tap = Self {
            name: name_of(&request),
            fd,
        };
        tap.set_header_size()?;
        Ok(tap)
    }

    /// The same tap as a backend of its own, without the frames that have come while nobody read them.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn fresh(&self) -> Result<Self, TapError> {
        let system = |source| TapError::System {
            act: "duplicate",
            name: self.name.clone(),
            source,
        };
        let fd = self.fd.try_clone().map_err(system)?;
        // No more than a tap's queue holds as a rule (1000): on a busy network there would be no end.
        let mut frame = [0; 64];
        for _ in 0..1024 {
            // What does not fit the buffer goes with it.
            match nix::unistd::read(&fd, &mut frame) {
                Ok(_) => {}
                Err(_) => break,
            }
        }
        Ok(Self {
            fd,
            name: self.name.clone(),
        })
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn attach(name: &str, mut request: libc::ifreq) -> Result<Self, TapError> {
        let system = |act, source| TapError::System {
            act,
            name: name.into(),
            source,
        };
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun");
        let fd: OwnedFd = match opened {
            Ok(file) => file.into(),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(TapError::Permission(name.into()));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(TapError::NoDriver(name.into()));
            }
            Err(error) => return Err(system("open /dev/net/tun for", error)),
        };
        // The flags fit: all are below 2^15.
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(FLAGS).unwrap_or(0);
        // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is, for the duration of the call.
        let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        if done < 0 {
            let error = io::Error::last_os_error();
            return Err(match error.raw_os_error() {
                Some(libc::EBUSY) => TapError::InUse(name.into()),
                Some(libc::EPERM | libc::EACCES) => TapError::Permission(name.into()),
                Some(libc::EINVAL) => TapError::NotATap(name.into()),
                _ => system("attach to", error),
            });
        }
        let tap = Self {
            fd,
            name: name_of(&request),
        };
        tap.set_header_size()?;
        Ok(tap)
    }

    /// The header of virtio 1.0 and later has 12 bytes; a tap starts with 10.
    fn set_header_size(&self) -> Result<(), TapError> {
        let size = libc::c_int::try_from(HEADER).unwrap_or(0);
        // SAFETY: TUNSETVNETHDRSZ reads one int, which `size` is, for the duration of the call.
        let done =
            unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) };
        if done < 0 {
            let source = io::Error::last_os_error();
            return Err(TapError::System {
                act: "set the header size of",
                name: self.name.clone(),
                source,
            });
        }
        Ok(())
    }

    fn bring_up(&self) -> io::Result<()> {
        // SAFETY: creates a descriptor and takes no pointer.
        let socket =
            unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        let mut request = request(&self.name).map_err(io::Error::other)?;
        // SAFETY: SIOCGIFFLAGS reads and writes one ifreq, which `request` is, for the duration of the call.
        if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: SIOCGIFFLAGS filled in the flags.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        request.ifr_ifru.ifru_flags = flags | libc::c_short::try_from(libc::IFF_UP).unwrap_or(0);
        // SAFETY: SIOCSIFFLAGS reads one ifreq, which `request` is, for the duration of the call.
        if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl NetBackend for Tap {
    fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    fn offloads(&self) -> Offloads {
        Offloads::ALL
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        // SAFETY: TUNSETOFFLOAD takes a number, no pointer.
        let done = unsafe {
            libc::ioctl(
                self.fd.as_raw_fd(),
                libc::TUNSETOFFLOAD,
                libc::c_ulong::from(offloads.bits()),
            )
        };
        if done < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

/// A request about the interface `name`, if that can be one.
fn request(name: &str) -> Result<libc::ifreq, TapError> {
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

fn empty_request() -> libc::ifreq {
    // SAFETY: an ifreq is plain numbers and a union of such (its pointer is only read by the kernel for requests that
    // are not made here), for all of which zero is a value.
    unsafe { std::mem::zeroed() }
}

/// The interface's name, as the kernel wrote it.
fn name_of(request: &libc::ifreq) -> String {
    let bytes: Vec<u8> = request
        .ifr_name
        .iter()
        .map(|&c| c.to_le_bytes()[0])
        .take_while(|&c| c != 0)
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn flags_of(fd: &OwnedFd) -> io::Result<libc::ifreq> {
    let mut request = empty_request();
    // SAFETY: TUNGETIFF writes one ifreq, which `request` is, for the duration of the call. On what is no tap the ioctl
    // is unknown and nothing is written.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(request)
    }
}

fn exists(name: &str) -> bool {
    let exists = |name: &CStr| nix::net::if_::if_nametoindex(name).is_ok();
    CString::new(name).is_ok_and(|name| exists(&name))
}

#[cfg(test)]
mod tests;
