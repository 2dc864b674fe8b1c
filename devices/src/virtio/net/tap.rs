//! A tap interface as a card's backend (kernel: Documentation/networking/tuntap.rst): one descriptor a queue.
//!
//! A tap of several queues gives each frame to the queue that its flow's answers came by. So that none is given to a
//! queue that nobody reads, all but the first are detached until the driver uses them.
#![allow(unsafe_code, reason = "ioctls on /dev/net/tun")]

mod census;
mod error;
mod interface;

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use self::interface::{empty_request, name_of, request};
use super::MAX_PAIRS;
use super::backend::{HEADER, NetBackend};
use super::features::Offloads;

pub use error::TapError;

/// A tap with the virtio header, non-blocking.
#[derive(Debug)]
pub struct Tap {
    /// A descriptor for each queue, at least one.
    queues: Vec<OwnedFd>,
    name: String,
    /// The interface's, where it can be seen from here.
    mtu: Option<u32>,
}

/// Flags of a tap that is used here. Without IFF_NO_PI there would be four bytes more before each frame.
const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

impl Tap {
    /// Takes an interface that exists, for a card of so many queue pairs.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn open(name: &str, queues: u16) -> Result<Self, TapError> {
        match Self::open_single(name) {
            Ok(tap) => tap.with_queues(queues),
            // It may be one of several queues, which wants to be asked for as such.
            Err(TapError::NotATap(_)) => Self::attach(name, queues, libc::IFF_MULTI_QUEUE),
            Err(error) => Err(error),
        }
    }

    /// Takes an interface that exists, for a card of which it is not known yet how many queue pairs it has.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn open_all(name: &str) -> Result<Self, TapError> {
        match Self::open_single(name) {
            Err(TapError::NotATap(_)) => Self::attach(name, MAX_PAIRS, libc::IFF_MULTI_QUEUE),
            done => done,
        }
    }

    fn open_single(name: &str) -> Result<Self, TapError> {
        request(name)?;
        if !interface::exists(name) {
            return Err(TapError::Missing(name.into()));
        }
        Self::attach(name, 1, 0)
    }

    /// Makes an interface with so many queues, brings it up, and takes it; it vanishes when dropped. A `%d` in the name
    /// stands for the first number that is free.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn create(name: &str, queues: u16) -> Result<Self, TapError> {
        request(name)?;
        if interface::exists(name) {
            return Err(TapError::Exists(name.into()));
        }
        let multi = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
        let tap = Self::attach(name, queues, multi)?;
        interface::bring_up(&tap.name).map_err(|source| tap.cannot("bring up", source))?;
        Ok(tap)
    }

    /// Takes a tap that somebody else opened and attached, by a descriptor for each of its queues.
    ///
    /// # Errors
    /// One is no tap, or one without the virtio header, or not of the same tap.
    pub fn from_fds(fds: Vec<OwnedFd>) -> Result<Self, TapError> {
        let multi = if fds.len() > 1 {
            libc::IFF_MULTI_QUEUE
        } else {
            0
        };
        let mut name = String::new();
        if fds.is_empty() {
            let name = "without a descriptor".into();
            let (have, wanted) = (0, 1);
            return Err(TapError::Queues { name, have, wanted });
        }
        for fd in &fds {
            let wrong = |why: String| TapError::Descriptor {
                fd: fd.as_raw_fd(),
                why,
            };
            let request = flags_of(fd).map_err(|error| wrong(error.to_string()))?;
            // SAFETY: TUNGETIFF filled in the flags.
            let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
            if flags & FLAGS != FLAGS {
                return Err(wrong(format!("it has the flags {flags:#x}")));
            }
            if flags & multi != multi {
                return Err(wrong(
                    "of several descriptors each is one of IFF_MULTI_QUEUE".into(),
                ));
            }
            let its = name_of(&request);
            if !name.is_empty() && name != its {
                return Err(wrong(format!("it is of {its}, the first of {name}")));
            }
            name = its;
            nix::fcntl::fcntl(
                fd,
                nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK),
            )
            .map_err(|error| wrong(error.to_string()))?;
        }
        Self::ready(fds, name)
    }

    /// The same tap as a backend of its own for a card of so many queue pairs, without the frames that have come while
    /// nobody read them.
    ///
    /// # Errors
    /// It has not so many queues, or no file descriptor is left.
    pub fn fresh(&self, queues: u16) -> Result<Self, TapError> {
        let again = |fd: &OwnedFd| {
            fd.try_clone()
                .map_err(|source| self.cannot("duplicate", source))
        };
        let tap = Self {
            queues: self.queues.iter().map(again).collect::<Result<_, _>>()?,
            name: self.name.clone(),
            mtu: self.mtu,
        };
        let mut tap = tap.with_queues(queues)?;
        // An attempt before this one may have had more of them in use.
        tap.use_queues(1)
            .map_err(|source| self.cannot("detach queues of", source))?;
        // No more than a tap's queue holds as a rule (1000): on a busy network there would be no end.
        let mut frame = [0; 64];
        for fd in tap.queues.iter().take(1) {
            for _ in 0..1024 {
                // What does not fit the buffer goes with it.
                if nix::unistd::read(fd, &mut frame).is_err() {
                    break;
                }
            }
        }
        Ok(tap)
    }

    /// Whether frames of a card with this MTU fit through it.
    ///
    /// # Errors
    /// They do not.
    pub fn carries(&self, mtu: Option<u16>) -> Result<(), TapError> {
        match (mtu, self.mtu) {
            (Some(wanted), Some(have)) if have < wanted.into() => Err(TapError::Mtu {
                name: self.name.clone(),
                have,
                wanted,
            }),
            _ => Ok(()),
        }
    }

    /// Gives the interface another MTU.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_mtu(&mut self, mtu: u16) -> Result<(), TapError> {
        interface::set_mtu(&self.name, mtu)
            .map_err(|source| self.cannot("set the MTU of", source))?;
        self.mtu = Some(mtu.into());
        Ok(())
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Leaves those queues away that a card of so many pairs does not need.
    fn with_queues(mut self, wanted: u16) -> Result<Self, TapError> {
        let have = self.queues.len();
        if have < wanted.into() {
            return Err(TapError::Queues {
                name: self.name,
                have,
                wanted,
            });
        }
        self.queues.truncate(wanted.max(1).into());
        Ok(self)
    }

    /// Attaches so many queues to the interface, which is made if there is none.
    fn attach(name: &str, queues: u16, flags: libc::c_int) -> Result<Self, TapError> {
        let mut fds = Vec::new();
        // What the kernel made of a pattern.
        let mut name = name.to_owned();
        for _ in 0..queues.max(1) {
            let (fd, its) = attach_one(&name, FLAGS | flags)?;
            fds.push(fd);
            name = its;
        }
        // Of a tap of one queue the kernel looks that nobody else has it.
        if flags & libc::IFF_MULTI_QUEUE != 0
            && census::queues(&name).is_some_and(|all| all > queues.into())
        {
            return Err(TapError::InUse(name));
        }
        Self::ready(fds, name)
    }

    /// With the header of virtio 1.0 and later, which has 12 bytes; a tap starts with 10. Only the first queue is in
    /// use.
    fn ready(queues: Vec<OwnedFd>, name: String) -> Result<Self, TapError> {
        let mut tap = Self {
            mtu: interface::mtu(&name),
            queues,
            name,
        };
        let size = libc::c_int::try_from(HEADER).unwrap_or(0);
        // SAFETY: TUNSETVNETHDRSZ reads one int, which `size` is, for the duration of the call.
        let done = unsafe {
            libc::ioctl(
                tap.first().as_raw_fd(),
                libc::TUNSETVNETHDRSZ,
                &raw const size,
            )
        };
        if done < 0 {
            return Err(tap.cannot("set the header size of", io::Error::last_os_error()));
        }
        tap.use_queues(1)
            .map_err(|source| tap.cannot("detach queues of", source))?;
        Ok(tap)
    }

    fn cannot(&self, act: &'static str, source: io::Error) -> TapError {
        TapError::System {
            act,
            name: self.name.clone(),
            source,
        }
    }

    /// The queue that is always in use.
    fn first(&self) -> BorrowedFd<'_> {
        self.queues[0].as_fd()
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.first()
    }
}

impl NetBackend for Tap {
    fn fds(&self) -> Vec<RawFd> {
        self.queues.iter().map(AsRawFd::as_raw_fd).collect()
    }

    /// The kernel numbers queues as they are attached, and puts the last one where one was taken away. So they are
    /// taken from the end, and keep their order.
    fn use_queues(&mut self, count: usize) -> io::Result<()> {
        let further = self.queues.iter().enumerate().skip(1);
        for (_, queue) in further.clone().rev().filter(|(index, _)| *index >= count) {
            set_queue(queue, libc::IFF_DETACH_QUEUE)?;
        }
        for (_, queue) in further.filter(|(index, _)| *index < count) {
            set_queue(queue, libc::IFF_ATTACH_QUEUE)?;
        }
        Ok(())
    }

    fn offloads(&self) -> Offloads {
        Offloads::ALL
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        // SAFETY: TUNSETOFFLOAD takes a number, no pointer. It is the tap's, by whichever queue it is set.
        let done = unsafe {
            libc::ioctl(
                self.first().as_raw_fd(),
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

/// Opens a queue of the interface `name`; the result is the queue, and the interface's name as it is.
fn attach_one(name: &str, flags: libc::c_int) -> Result<(OwnedFd, String), TapError> {
    let mut request = request(name)?;
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
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap_or(0);
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
    Ok((fd, name_of(&request)))
}

/// Attaches or detaches one queue of a tap of several. The kernel needs no right for that but the descriptor.
fn set_queue(queue: &OwnedFd, how: libc::c_int) -> io::Result<()> {
    let mut request = empty_request();
    // The flags fit: both are below 2^15.
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(how).unwrap_or(0);
    // SAFETY: TUNSETQUEUE reads one ifreq, which `request` is, for the duration of the call.
    if unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) } < 0 {
        let error = io::Error::last_os_error();
        // The queue is so already.
        if error.raw_os_error() != Some(libc::EINVAL) {
            return Err(error);
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests;
