//! `ferry receive`: waits for a guest to be moved here, and is its VMM from then on.

use std::path::PathBuf;

use super::disk::NumberedFlag;
use super::error::Failure;
use super::net::SlotFlag;
use super::serial::{self, SerialFlag};
use super::{exit, file, log, sandbox};
use crate::config::{ConfigError, DirtyTracking, Listen, ReceiveConfig};
use crate::machine::End;
use crate::sandbox::Mode;
use crate::units::{Size, Span};

/// Wait for a guest that is moved here, then stay with it until it ends or has moved on
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  On this machine:
    ferry receive --listen tcp:127.0.0.1:7000
  With the network of the guest that will come, able to send it on:
    ferry receive --listen tcp:127.0.0.1:7000 --net 0=tap=tap1 --control /tmp/b.sock
  With its disk, which lies where both hosts can reach it:
    ferry receive --listen tcp:127.0.0.1:7000 --disk 0=/shared/guest.img
  Encrypted, from any host with a certificate of the same CA (`ferry certs`), or from one alone:
    ferry receive --listen tcp:10.0.0.2:7000 --tls /etc/ferry/tls
    ferry receive --listen tcp:10.0.0.2:7000 --tls /etc/ferry/tls --peer alpha.example.org
  The same over a network that only you can read:
    ferry receive --listen tcp:10.0.0.2:7000 --insecure-plaintext
  As the services of ferry-receive.socket do:
    ferry receive --config /etc/ferry/receive.toml --listen systemd --control /run/ferry/guest.sock

Kernel, memory, vCPUs and devices come with the guest.

Exit status: 0 powered off, stopped or moved on, 1 error, or no guest came, 2 usage, 10 the guest
reset itself, 11 the guest crashed.")]
pub struct Args {
    /// Where to wait: tcp:HOST:PORT, tcp:[IPv6]:PORT or unix:PATH; systemd: the socket that the service manager passes
    /// (LISTEN_FDS), for one move; once it has begun, the next receiver has the socket
    #[arg(long, value_name = "ADDRESS")]
    listen: Listen,

    /// The tap for a network device of the guest, by its number: 0=tap=NAME, 0=create=NAME or 0=fd=N. It has to have as
    /// many queues as the guest's device
    #[arg(long, value_name = "SLOT=TAP")]
    net: Vec<SlotFlag>,

    /// Where this host has a disk of the guest, by its number: 0=PATH, optionally with ,ro and ,direct=on. It is the
    /// same disk, on storage that both hosts can reach: its contents are not moved
    #[arg(long, value_name = "NUMBER=PATH")]
    disk: Vec<NumberedFlag>,

    #[arg(long, value_name = "WHERE", default_value = "stdio", help = serial::HELP)]
    serial: SerialFlag,

    /// The most memory that a guest may have here
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "8G",
        allow_hyphen_values = true
    )]
    max_memory: Size,

    /// Touch so much memory before a guest comes, and give it to the one that does. Memory that has rested is slow at
    /// its first touch, and a move waits for it otherwise; all of it is taken from the host at once. A source that
    /// comes earlier gets what is touched by then
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    prefault: Option<Size>,

    /// The guest's memory is taken from the huge pages of 2 MiB that this host has set aside (vm.nr_hugepages), all at
    /// once when it comes
    #[arg(long, conflicts_with = "prefault")]
    hugepages: bool,

    /// How written pages are found when the guest is moved on from here: bitmap, ring or ring,entries=N, as of `ferry
    /// run`
    #[arg(long, value_name = "HOW", default_value = "bitmap")]
    dirty_tracking: DirtyTracking,

    /// Take a source for dead when it does nothing for so long, 500ms to 1h
    #[arg(long, value_name = "TIME", default_value = "5s")]
    peer_timeout: Span,

    /// End when the first attempt fails, instead of waiting for another
    #[arg(long)]
    once: bool,

    /// Listen on this Unix socket for `ferry status`, `ferry migrate` and the like
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,

    /// Take guests over TLS alone, from hosts of one CA: the folder with this host's certificate, key and CA, as `ferry
    /// certs host` makes it. The guest can be moved on with it, too
    #[arg(long, value_name = "DIR", conflicts_with = "insecure_plaintext")]
    tls: Option<PathBuf>,

    /// A name that the source's certificate may have, instead of any name; may be given several times
    #[arg(long, value_name = "NAME", requires = "tls")]
    peer: Vec<String>,

    /// Listen beyond this machine although nothing is encrypted: whoever can read the network can read the guest's
    /// memory
    #[arg(long)]
    insecure_plaintext: bool,

    #[arg(long, value_name = "HOW", default_value = "kill", help = sandbox::HELP)]
    sandbox: Mode,

    #[command(flatten)]
    pub(super) log: log::Flags,

    #[command(flatten)]
    _file: file::Flag,
}

impl Args {
    /// The flags as checked values.
    pub fn config(self) -> Result<ReceiveConfig, ConfigError> {
        ReceiveConfig {
            listen: self.listen,
            nets: self
                .net
                .into_iter()
                .map(|SlotFlag(slot, tap)| (slot, tap))
                .collect(),
            disks: self
                .disk
                .into_iter()
                .map(|NumberedFlag(number, file)| (number, file))
                .collect(),
            serial: self.serial.0,
            max_memory: self.max_memory.0,
            prefault: self.prefault.map_or(0, |Size(bytes)| bytes),
            huge_pages: self.hugepages,
            dirty_tracking: self.dirty_tracking,
            peer_timeout: self.peer_timeout.0,
            once: self.once,
            control: self.control,
            tls: self.tls,
            peers: self.peer,
            insecure_plaintext: self.insecure_plaintext,
            sandbox: self.sandbox,
        }
        .checked()
    }

    pub(super) fn run(self) -> Result<u8, Failure> {
        let config = self.config().map_err(Failure::usage)?;
        let end = crate::machine::receive(config).map_err(Failure::error)?;
        tell(&end);
        Ok(exit::of_end(&end))
    }
}

/// Says how the guest ended, on standard error: standard output is the guest's.
pub(super) fn tell(end: &End) {
    crate::log::say(&end.to_string());
}
