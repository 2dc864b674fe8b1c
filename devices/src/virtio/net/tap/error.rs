//! Why a tap cannot be had, and what to do.

use std::io;
use std::os::fd::RawFd;

use thiserror::Error;

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
    /// An interface, but not a tap.
    #[error("interface {0} is not a tap: make one with `ip tuntap add NAME mode tap`")]
    NotATap(String),
    /// It has fewer queues than the card has pairs.
    #[error(
        "tap {name} has {have} of the {wanted} queues of the card: make it with `ip tuntap add {name} mode tap multi_queue`, or pass a descriptor for each queue (fd=N:N…)"
    )]
    Queues {
        /// The tap.
        name: String,
        /// How many it has here.
        have: usize,
        /// How many queue pairs the card has.
        wanted: u16,
    },
    /// Its frames are shorter than the card's.
    #[error(
        "tap {name} has an MTU of {have}, the card of {wanted}: `ip link set {name} mtu {wanted}`"
    )]
    Mtu {
        /// The tap.
        name: String,
        /// Its MTU.
        have: u32,
        /// The card's.
        wanted: u16,
    },
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
