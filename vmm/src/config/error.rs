//! What is wrong with what a person asked for.

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use devices::virtio::block::MAX_QUEUES;
use devices::virtio::net::MAX_PAIRS;
use migration::pages::MAX_MEMORY;
use thiserror::Error;

use super::{MAX_CMDLINE, MAX_CPUS, MAX_DISKS, MAX_NETS, MAX_TAP_NAME, NET_MTU, Target};
use crate::layout::VIRTIO_SLOTS;
use crate::units::{Size, Span};

/// A value that makes no sense, with what would.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// Nobody could let it run.
    #[error(
        "--paused without --control: the guest would stay paused for good; give a control socket, for `ferry resume`"
    )]
    PausedForGood,
    /// Out of range.
    #[error("a peer timeout of {}: take 500ms to 1h", Span(*.0))]
    PeerTimeout(Duration),
    /// A guest that would find none of its devices.
    #[error(
        "the kernel's command line has pci=off, and the guest's devices are on PCI: leave it out, or take --virtio mmio"
    )]
    PciOff,
    /// Too little, too much, or not a multiple of 2 MiB.
    #[error(
        "{} of guest memory: take a multiple of 2M from {} to {}", Size(*.bytes), Size(*.least), Size(MAX_MEMORY)
    )]
    Memory {
        /// What was asked for.
        bytes: u64,
        /// The least that this kind of guest takes.
        least: u64,
    },
    /// More than a guest may have, or not a multiple of 2 MiB.
    #[error(
        "--prefault {}: take a multiple of 2M up to --max-memory, which is {}", Size(*.bytes), Size(*.most)
    )]
    Prefault {
        /// What was asked for.
        bytes: u64,
        /// The most that a guest may have.
        most: u64,
    },
    /// Two ways to have memory beforehand.
    #[error(
        "--prefault with --hugepages: huge pages that were set aside are there already; leave one of them out"
    )]
    PrefaultInHugePages,
    /// More in the balloon than there is.
    #[error(
        "a balloon of {} is larger than the guest's memory of {}: take less", Size(*.bytes), Size(*.memory)
    )]
    Balloon {
        /// What was asked for.
        bytes: u64,
        /// All of the guest's memory.
        memory: u64,
    },
    /// Each by itself would do, all together would not.
    #[error(
        "{0} network devices and disks beside an entropy source and a balloon: a guest has {VIRTIO_SLOTS} virtio devices at most"
    )]
    Slots(usize),
    /// No vCPU, or too many.
    #[error("{0} vCPUs: take 1 to {MAX_CPUS}")]
    Cpus(u8),
    /// Too many network devices.
    #[error("{0} network devices: take at most {MAX_NETS}")]
    Nets(usize),
    /// No queue pair, or too many.
    #[error("{0} queues of a network device: take 1 to {MAX_PAIRS}")]
    NetQueues(u16),
    /// A passed tap has another number of queues than the device.
    #[error(
        "{fds} descriptors for {queues} queues of a network device: pass one for each, as fd=7:8, or leave queues= out"
    )]
    NetDescriptors {
        /// How many were given.
        fds: usize,
        /// How many queue pairs are wanted.
        queues: u16,
    },
    /// An MTU that no interface has.
    #[error("a network device with an MTU of {0}: take {least} to {most}", least = NET_MTU.start(), most = NET_MTU.end())]
    NetMtu(u16),
    /// Too many disks.
    #[error("{0} disks: take at most {MAX_DISKS}")]
    Disks(usize),
    /// No queue, or too many.
    #[error("{0} queues of a disk: take 1 to {MAX_QUEUES}")]
    DiskQueues(u16),
    /// One file for two disks.
    #[error("disk {} is given twice: two disks of a guest need a file each, unless both are read-only (,ro)", .0.display())]
    DiskTwice(PathBuf),
    /// The same number twice.
    #[error("disk {0} is given twice: name each number once")]
    DiskNumberTwice(u32),
    /// A disk that no guest has.
    #[error("disk {0}: a guest has at most {MAX_DISKS}, counted from 0")]
    DiskNumber(u32),
    /// The bare test guest would not take its parameters.
    #[error(transparent)]
    Pulse(#[from] guest_images::config::ConfigError),
    /// The bare test guest is told of more vCPUs than it has, or of fewer.
    #[error(
        "pulse parameter \"cpus={words}\" and --cpus {cpus}: the guest has one number of vCPUs; give it once"
    )]
    PulseCpus {
        /// By its parameters.
        words: u32,
        /// By the configuration.
        cpus: u8,
    },
    /// The bare test guest is to write to what is no memory.
    #[error(
        "pulse parameters of vCPU {vcpu}: its working set ends at {end_mib} MiB, guest memory below the 32-bit gap at \
         {memory_mib} MiB; take a smaller one, or more --memory"
    )]
    PulseWorkingSet {
        /// The vCPU.
        vcpu: usize,
        /// Where its working set ends, in MiB.
        end_mib: u64,
        /// Where memory ends that it can write to, in MiB.
        memory_mib: u64,
    },
    /// The kernel command line is too long, or has a zero byte in it.
    #[error(
        "a kernel command line of {0} bytes: it must be shorter than {MAX_CMDLINE} bytes and have no zero byte in it"
    )]
    Cmdline(usize),
    /// Not a name that Linux lets an interface have.
    #[error(
        "tap name {0:?}: take 1 to {MAX_TAP_NAME} characters without '/', ':', '%' or white space, and not '.' or '..'"
    )]
    TapName(String),
    /// The same tap twice.
    #[error("tap {0} is given to two network devices: each needs its own")]
    TapTwice(String),
    /// The same descriptor twice.
    #[error("descriptor {0} is given twice: each queue of each network device needs its own")]
    DescriptorTwice(RawFd),
    /// The same slot twice.
    #[error("network device {0} is given twice: name each slot once")]
    SlotTwice(u32),
    /// A slot that no guest has.
    #[error("network device {0}: a guest has at most {MAX_NETS}, counted from 0")]
    Slot(u32),
    /// Not a MAC address of one station.
    #[error(
        "MAC address {0}: take six hex pairs like 52:54:00:12:34:56 that are neither all zero nor multicast"
    )]
    Mac(String),
    /// Not something to connect to or listen on.
    #[error("{0:?} is no address: take tcp:HOST:PORT, tcp:[IPv6]:PORT or unix:PATH")]
    Target(String),
    /// Not something that a certificate is made for.
    #[error("peer {0:?}: take a host name or an address, as it stands in the certificate")]
    Peer(String),
    /// Guest memory would cross a network readable by all.
    #[error(
        "{target} is not on this machine and the connection is not encrypted: guest memory, keys and passwords in it, would be readable \
         on the way; give --tls DIR (`ferry certs` makes it), or --insecure-plaintext if the network is yours alone"
    )]
    Plaintext {
        /// Where to.
        target: Target,
    },
}
