//! What a person asked for, checked: the plain values that the command line (or anything else) hands to the VMM.
//!
//! No flag, no string to be parsed later: whoever holds one of these holds something that makes sense by
//! itself. Whether the host can do it (the file is there, the tap is free) shows when it is tried.

mod balloon;
mod disk;
mod memory;

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use devices::virtio::block::MAX_QUEUES;
use devices::virtio::net::MAX_PAIRS;
use migration::pages::{MAX_MEMORY, REGION_ALIGN};
use thiserror::Error;

use crate::boot::DEFAULT_CMDLINE;
use crate::kvm::cpuid::baseline::Baseline;
use crate::kvm::ring::{DEFAULT_ENTRIES, MIN_ENTRIES};
use crate::layout::{LOW_RAM_END, VIRTIO_SLOTS};
use crate::sandbox::Mode;
use crate::units::{Size, Span};

pub use balloon::BalloonConfig;
pub use disk::{DiskConfig, DiskFile, MAX_DISKS};
pub use memory::{MemoryBacking, MemoryConfig};

/// The most vCPUs a guest has.
pub const MAX_CPUS: u8 = 16;
/// The least memory for a Linux kernel with an initramfs: 128 MiB.
pub const MIN_LINUX_MEMORY: u64 = 128 << 20;
/// The least memory for the bare test guest: 16 MiB.
pub const MIN_PULSE_MEMORY: u64 = 16 << 20;
/// The MTU of a network device: the least of IPv4, and the most that a Linux tap can have.
pub const NET_MTU: RangeInclusive<u16> = 68..=65521;
/// The most network devices in a guest.
pub const MAX_NETS: usize = 8;
/// The memory that a receiver gives a guest at most, if not told otherwise: 8 GiB.
pub const DEFAULT_MAX_MEMORY: u64 = 8 << 30;
/// How long the other end of a move may do nothing before it is taken for dead.
pub const PEER_TIMEOUT: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(3600);
/// The longest kernel command line: what the x86-64 Linux kernel keeps of it (COMMAND_LINE_SIZE), with its
/// closing zero.
pub const MAX_CMDLINE: usize = 2048;
/// The longest name of a network interface: IFNAMSIZ without its closing zero.
pub const MAX_TAP_NAME: usize = 15;

/// A value that makes no sense, with what would.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// Nobody could let it run.
    #[error(
        "--paused without --control: the guest would stay paused for good; give a control socket, for `ferry resume`"
    )]
    PausedForGood,
    /// Out of range.
    #[error("a peer timeout of {}: take 100ms to 1h", Span(*.0))]
    PeerTimeout(Duration),
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

/// What the guest runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelConfig {
    /// A kernel image: bzImage, or ELF with a PVH entry.
    File(PathBuf),
    /// The embedded bare test guest, with its parameters.
    Pulse(String),
}

/// Where the serial port of the guest goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SerialConfig {
    /// This process's standard input and output.
    Stdio,
    /// Output into a file, which is made anew; no input.
    File(PathBuf),
    /// A listening Unix socket, one client at a time.
    Socket(PathBuf),
    /// Output thrown away; no input.
    None,
}

/// The host's end of a network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TapConfig {
    /// A tap interface that exists.
    Existing(String),
    /// A tap interface that Ferry makes, and that is gone with the process.
    Create(String),
    /// A tap that was passed to this process, by an open descriptor for each of its queues.
    Fds(Vec<RawFd>),
}

/// A network device of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConfig {
    /// Its other end.
    pub tap: TapConfig,
    /// Its MAC address; None makes one up.
    pub mac: Option<[u8; 6]>,
    /// How many queue pairs the guest has, 1 to [`MAX_PAIRS`]; None means one, or one a descriptor.
    pub queues: Option<u16>,
    /// The MTU that the guest is told of, in [`NET_MTU`]; None leaves it alone.
    pub mtu: Option<u16>,
}

impl NetConfig {
    /// Its queue pairs.
    pub fn pairs(&self) -> u16 {
        let passed = match &self.tap {
            TapConfig::Fds(fds) => u16::try_from(fds.len()).unwrap_or(u16::MAX),
            TapConfig::Existing(_) | TapConfig::Create(_) => 1,
        };
        self.queues.unwrap_or(passed)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let queues = self.pairs();
        if !(1..=MAX_PAIRS).contains(&queues) {
            return Err(ConfigError::NetQueues(queues));
        }
        if let TapConfig::Fds(fds) = &self.tap
            && fds.len() != usize::from(queues)
        {
            let fds = fds.len();
            return Err(ConfigError::NetDescriptors { fds, queues });
        }
        if let Some(mtu) = self.mtu
            && !NET_MTU.contains(&mtu)
        {
            return Err(ConfigError::NetMtu(mtu));
        }
        self.mac.map_or(Ok(()), check_mac)
    }
}

/// A guest to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestConfig {
    /// What it runs.
    pub kernel: KernelConfig,
    /// Its first file system.
    pub initramfs: Option<PathBuf>,
    /// The kernel command line; None means [`DEFAULT_CMDLINE`].
    pub cmdline: Option<String>,
    /// Added to the kernel command line, after a blank.
    pub append: Option<String>,
    /// Its memory.
    pub memory: MemoryConfig,
    /// How its written pages are found while it is moved.
    pub dirty_tracking: DirtyTracking,
    /// vCPUs, 1 to [`MAX_CPUS`].
    pub cpus: u8,
    /// The CPU that they are.
    pub cpu: Baseline,
    /// Network devices; the index is the slot.
    pub nets: Vec<NetConfig>,
    /// Disks, in the slots behind those.
    pub disks: Vec<DiskConfig>,
    /// A balloon, in the last slot.
    pub balloon: Option<BalloonConfig>,
    /// The serial port.
    pub serial: SerialConfig,
    /// Where to listen for commands.
    pub control: Option<PathBuf>,
    /// The folder with the host's certificate, for moves over TLS.
    pub tls: Option<PathBuf>,
    /// How the process is confined.
    pub sandbox: Mode,
}

/// How a guest's written pages are found while it is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DirtyTracking {
    /// By KVM's bitmap.
    #[default]
    Bitmap,
    /// By a ring a vCPU.
    Ring {
        /// Its entries, a power of two; None takes [`DEFAULT_ENTRIES`](crate::kvm::ring::DEFAULT_ENTRIES), or the
        /// most that KVM has.
        entries: Option<u32>,
    },
}

impl FromStr for DirtyTracking {
    type Err = String;

    /// `bitmap`, `ring` or `ring,entries=N`.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "bitmap" {
            return Ok(Self::Bitmap);
        }
        if text == "ring" {
            return Ok(Self::Ring { entries: None });
        }
        let Some(number) = text.strip_prefix("ring,entries=") else {
            return Err("take bitmap, ring or ring,entries=N".into());
        };
        let entries = number.parse().ok().filter(|&entries: &u32| {
            entries.is_power_of_two() && (MIN_ENTRIES..=DEFAULT_ENTRIES).contains(&entries)
        });
        match entries {
            Some(_) => Ok(Self::Ring { entries }),
            None => Err(format!(
                "\"{number}\" entries: take a power of two from {MIN_ENTRIES} to {DEFAULT_ENTRIES}"
            )),
        }
    }
}

/// A receiver of guests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiveConfig {
    /// Where to wait for the source.
    pub listen: Listen,
    /// The host's end for each network device of the guest that may come, by slot.
    pub nets: Vec<(u32, TapConfig)>,
    /// The host's end for each disk of the guest that may come, by number.
    pub disks: Vec<(u32, DiskFile)>,
    /// The serial port.
    pub serial: SerialConfig,
    /// The most memory a guest may have, in bytes.
    pub max_memory: u64,
    /// How much of it is touched before a guest comes, in bytes.
    pub prefault: u64,
    /// How the guest's written pages are found when it is moved on.
    pub dirty_tracking: DirtyTracking,
    /// A source that does nothing for so long is dead.
    pub peer_timeout: Duration,
    /// End when the first attempt failed, instead of waiting for the next.
    pub once: bool,
    /// Where to listen for commands.
    pub control: Option<PathBuf>,
    /// The folder with the host's certificate: guests come over TLS, and may go on so.
    pub tls: Option<PathBuf>,
    /// The names that a source's certificate may have; any, if there is none.
    pub peers: Vec<String>,
    /// Listen beyond loopback without encryption.
    pub insecure_plaintext: bool,
    /// How the process is confined.
    pub sandbox: Mode,
}

/// Where a receiver waits for guests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// At an address.
    At(Target),
    /// On the socket that a service manager has passed: for one guest, and not beyond its streams.
    Passed,
}

/// A guest out of snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreConfig {
    /// A snapshot that is whole by itself, and those that stand on it, in their order.
    pub files: Vec<PathBuf>,
    /// The host's end for each network device of the guest, by slot.
    pub nets: Vec<(u32, TapConfig)>,
    /// The serial port.
    pub serial: SerialConfig,
    /// The most memory the guest may have, in bytes.
    pub max_memory: u64,
    /// How the guest's written pages are found when it is moved, or saved again.
    pub dirty_tracking: DirtyTracking,
    /// It stays paused.
    pub paused: bool,
    /// It runs while its memory is read.
    pub lazy: bool,
    /// Where to listen for commands.
    pub control: Option<PathBuf>,
    /// The folder with the host's certificate: the guest may be moved over TLS.
    pub tls: Option<PathBuf>,
    /// How the process is confined.
    pub sandbox: Mode,
}

/// Where a guest goes to, or is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Host (a name or an address, IPv6 without brackets) and port.
    Tcp(String, u16),
    /// A Unix socket.
    Unix(PathBuf),
}

impl KernelConfig {
    /// The least memory it takes, in bytes.
    pub fn least_memory(&self) -> u64 {
        match self {
            KernelConfig::File(_) => MIN_LINUX_MEMORY,
            KernelConfig::Pulse(_) => MIN_PULSE_MEMORY,
        }
    }
}

impl GuestConfig {
    /// Checks every value, and those that must fit each other.
    ///
    /// # Errors
    /// The first value that makes no sense.
    pub fn checked(self) -> Result<Self, ConfigError> {
        let least = self.kernel.least_memory();
        check_memory(self.memory.bytes, least)?;
        if self.cpus == 0 || self.cpus > MAX_CPUS {
            return Err(ConfigError::Cpus(self.cpus));
        }
        if self.nets.len() > MAX_NETS {
            return Err(ConfigError::Nets(self.nets.len()));
        }
        check_taps(self.nets.iter().map(|net| &net.tap))?;
        disk::check_disks(&self.disks)?;
        if let Some(balloon) = self.balloon {
            balloon.check(self.memory.bytes)?;
            let others = self.nets.len() + self.disks.len();
            if others + 2 > VIRTIO_SLOTS as usize {
                return Err(ConfigError::Slots(others));
            }
        }
        self.nets.iter().try_for_each(NetConfig::check)?;
        let line = self.kernel_cmdline();
        if line.len() >= MAX_CMDLINE || line.contains('\0') {
            return Err(ConfigError::Cmdline(line.len()));
        }
        if let KernelConfig::Pulse(_) = self.kernel {
            check_pulse(&line, self.cpus, self.memory.bytes)?;
        }
        Ok(self)
    }

    /// The vCPUs that the bare test guest's own parameters ask for; None where they leave it open, or for another guest.
    ///
    /// # Errors
    /// It is a number that no guest has, or none.
    pub fn cpus_of_pulse(&self) -> Result<Option<u8>, ConfigError> {
        let KernelConfig::Pulse(_) = self.kernel else {
            return Ok(None);
        };
        let asked = guest_images::config::cpus_asked_for(&self.kernel_cmdline())?;
        Ok(asked.map(|cpus| u8::try_from(cpus).unwrap_or(u8::MAX)))
    }

    /// The whole command line that the kernel gets.
    pub fn kernel_cmdline(&self) -> String {
        let base = match (&self.cmdline, &self.kernel) {
            (Some(line), _) => line.as_str(),
            (None, KernelConfig::Pulse(parameters)) => parameters.as_str(),
            (None, KernelConfig::File(_)) => DEFAULT_CMDLINE,
        };
        match &self.append {
            Some(more) if base.is_empty() => more.clone(),
            Some(more) => format!("{base} {more}"),
            None => base.to_owned(),
        }
    }
}

impl ReceiveConfig {
    /// Checks every value, and those that must fit each other.
    ///
    /// # Errors
    /// The first value that makes no sense.
    pub fn checked(self) -> Result<Self, ConfigError> {
        check_memory(self.max_memory, MIN_PULSE_MEMORY)?;
        if self.prefault > self.max_memory || !self.prefault.is_multiple_of(REGION_ALIGN) {
            return Err(ConfigError::Prefault {
                bytes: self.prefault,
                most: self.max_memory,
            });
        }
        if !PEER_TIMEOUT.contains(&self.peer_timeout) {
            return Err(ConfigError::PeerTimeout(self.peer_timeout));
        }
        check_cards(&self.nets)?;
        disk::check_numbered(&self.disks)?;
        for peer in &self.peers {
            check_peer(peer)?;
        }
        if let Listen::At(target) = &self.listen {
            self.check_plaintext(target)?;
        }
        Ok(self)
    }
}

impl ReceiveConfig {
    /// Refuses to wait there without encryption; for a socket that was passed, whose address shows late.
    ///
    /// # Errors
    /// [`ConfigError::Plaintext`].
    pub fn check_plaintext(&self, target: &Target) -> Result<(), ConfigError> {
        target.check_plaintext(self.insecure_plaintext || self.tls.is_some())
    }
}

impl FromStr for Listen {
    type Err = ConfigError;

    /// A [`Target`], or `systemd`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text {
            "systemd" => Ok(Self::Passed),
            _ => text.parse().map(Self::At),
        }
    }
}

impl RestoreConfig {
    /// Checks every value, and those that must fit each other.
    ///
    /// # Errors
    /// The first value that makes no sense.
    pub fn checked(self) -> Result<Self, ConfigError> {
        check_memory(self.max_memory, MIN_PULSE_MEMORY)?;
        check_cards(&self.nets)?;
        if self.paused && self.control.is_none() {
            return Err(ConfigError::PausedForGood);
        }
        Ok(self)
    }
}

/// The taps of cards that come with a guest.
fn check_cards(nets: &[(u32, TapConfig)]) -> Result<(), ConfigError> {
    check_taps(nets.iter().map(|(_, tap)| tap))?;
    for (index, (slot, _)) in nets.iter().enumerate() {
        if usize::try_from(*slot).is_ok_and(|slot| slot >= MAX_NETS) {
            return Err(ConfigError::Slot(*slot));
        }
        if nets[..index].iter().any(|(other, _)| other == slot) {
            return Err(ConfigError::SlotTwice(*slot));
        }
    }
    Ok(())
}

impl Target {
    /// Whether what is sent there never leaves this machine.
    pub fn is_local(&self) -> bool {
        match self {
            Target::Unix(_) => true,
            // RFC 6761, 6.3: localhost is loopback, whatever a name server says. Any other name may lead anywhere.
            Target::Tcp(host, _) => {
                host.eq_ignore_ascii_case("localhost")
                    || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
            }
        }
    }

    /// Refuses to go beyond this machine without encryption, unless that was asked for.
    ///
    /// # Errors
    /// [`ConfigError::Plaintext`].
    pub fn check_plaintext(&self, insecure_plaintext: bool) -> Result<(), ConfigError> {
        if insecure_plaintext || self.is_local() {
            Ok(())
        } else {
            Err(ConfigError::Plaintext {
                target: self.clone(),
            })
        }
    }
}

impl FromStr for Target {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let refused = || ConfigError::Target(text.to_owned());
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() && !path.contains('\0') => {
                Ok(Target::Unix(PathBuf::from(path)))
            }
            Some(("tcp", rest)) => {
                let (host, port) = rest.rsplit_once(':').ok_or_else(refused)?;
                let port = parse_port(port).ok_or_else(refused)?;
                let host = match host.strip_prefix('[') {
                    Some(inner) => {
                        let inner = inner.strip_suffix(']').ok_or_else(refused)?;
                        inner.parse::<std::net::Ipv6Addr>().map_err(|_| refused())?;
                        inner
                    }
                    None => host,
                };
                let bare_ipv6 = host.contains(':') && !rest.starts_with('[');
                let odd = |c: char| c.is_whitespace() || c.is_control() || c == '/';
                if host.is_empty() || host.len() > 253 || bare_ipv6 || host.contains(odd) {
                    return Err(refused());
                }
                Ok(Target::Tcp(host.to_owned(), port))
            }
            _ => Err(refused()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Tcp(host, port) if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Target::Tcp(host, port) => write!(f, "tcp:{host}:{port}"),
            Target::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Digits alone: `u16::from_str` would take a plus sign, too. Port 0 (any free one) is for listeners.
fn parse_port(text: &str) -> Option<u16> {
    (text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
}

/// A name that a certificate can have.
pub(crate) fn check_peer(name: &str) -> Result<(), ConfigError> {
    match migration::wire::tls::peer_name(name) {
        Ok(_) => Ok(()),
        Err(_) => Err(ConfigError::Peer(name.to_owned())),
    }
}

fn check_memory(bytes: u64, least: u64) -> Result<(), ConfigError> {
    if bytes < least || bytes > MAX_MEMORY || !bytes.is_multiple_of(REGION_ALIGN) {
        return Err(ConfigError::Memory { bytes, least });
    }
    Ok(())
}

/// Asks for what the bare test guest would refuse, and then hang: it has no other way to say no than its console.
fn check_pulse(line: &str, cpus: u8, memory: u64) -> Result<(), ConfigError> {
    if let Some(words) = guest_images::config::cpus_asked_for(line)?
        && words != u32::from(cpus)
    {
        return Err(ConfigError::PulseCpus { words, cpus });
    }
    let config: guest_images::config::Config = format!("{line} cpus={cpus}").parse()?;
    let memory_mib = memory.min(LOW_RAM_END) >> 20;
    for (vcpu, config) in config.vcpus.iter().enumerate() {
        let end_mib = config
            .ws
            .map_or(0, |ws| u64::from(ws.base_mib) + u64::from(ws.mib));
        if end_mib > memory_mib {
            return Err(ConfigError::PulseWorkingSet {
                vcpu,
                end_mib,
                memory_mib,
            });
        }
    }
    Ok(())
}

fn check_taps<'a>(taps: impl Iterator<Item = &'a TapConfig>) -> Result<(), ConfigError> {
    let (mut names, mut descriptors) = (Vec::new(), Vec::new());
    for tap in taps {
        match tap {
            TapConfig::Existing(name) | TapConfig::Create(name) => {
                check_tap_name(name)?;
                if names.contains(&name) {
                    return Err(ConfigError::TapTwice(name.clone()));
                }
                names.push(name);
            }
            TapConfig::Fds(fds) => {
                for fd in fds {
                    if descriptors.contains(fd) {
                        return Err(ConfigError::DescriptorTwice(*fd));
                    }
                    descriptors.push(*fd);
                }
            }
        }
    }
    Ok(())
}

/// The rules of the kernel's `dev_valid_name`, and no '%', which it would take for a pattern.
fn check_tap_name(name: &str) -> Result<(), ConfigError> {
    let bad = |c: char| c == '/' || c == ':' || c == '%' || c == '\0' || c.is_whitespace();
    if name.is_empty()
        || name.len() > MAX_TAP_NAME
        || name == "."
        || name == ".."
        || name.contains(bad)
    {
        return Err(ConfigError::TapName(name.to_owned()));
    }
    Ok(())
}

fn check_mac(mac: [u8; 6]) -> Result<(), ConfigError> {
    if mac == [0; 6] || mac[0] & 1 == 1 {
        return Err(ConfigError::Mac(display_mac(mac)));
    }
    Ok(())
}

/// Six hex pairs with colons.
pub fn display_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Parses six hex pairs with colons.
///
/// # Errors
/// [`ConfigError::Mac`] for anything else, also for an address that no single station may have.
pub fn parse_mac(text: &str) -> Result<[u8; 6], ConfigError> {
    let refused = || ConfigError::Mac(text.to_owned());
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().ok_or_else(refused)?;
        if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(refused());
        }
        *byte = u8::from_str_radix(part, 16).map_err(|_| refused())?;
    }
    if parts.next().is_some() {
        return Err(refused());
    }
    check_mac(mac)?;
    Ok(mac)
}

#[cfg(test)]
mod tests;
