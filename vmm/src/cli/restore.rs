//! `ferry restore`: a guest out of snapshots, and its VMM from then on.

use std::path::PathBuf;

use super::error::Failure;
use super::net::SlotFlag;
use super::serial::{self, SerialFlag};
use super::{exit, receive, sandbox};
use crate::config::{ConfigError, DirtyTracking, RestoreConfig};
use crate::sandbox::Mode;
use crate::units::Size;

/// Make a guest out of a snapshot and let it go on, then stay with it until it ends or has moved
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ferry restore /srv/a.snap --net 0=tap=tap0 --control /tmp/a.sock
  A chain: a whole snapshot, and what was written up to two later ones:
    ferry restore /srv/a.snap /srv/a1.snap /srv/a2.snap
  At once, however large it is:
    ferry restore /srv/a.snap --lazy --control /tmp/a.sock
  As it was, to look at before it runs:
    ferry restore /srv/a.snap --paused --control /tmp/a.sock

Kernel, memory, vCPUs and devices are in the snapshot. The guest's time goes on where it was: its
wall clock is behind by as long as the snapshot is old, until it asks a time server. The same file
may be restored any number of times; two guests of it at once have the same MAC addresses, keys and
random numbers. With --lazy a damaged file is found out only when all of it is read: the guest is
ended then, with status 1, since it has run on memory that may be wrong; and until then it cannot
be moved or saved. Exit status as of `ferry run`.")]
pub struct Args {
    /// The snapshot; of a chain all, the whole one first
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,

    /// The tap for a network device of the guest, by its number: 0=tap=NAME, 0=create=NAME or 0=fd=N
    #[arg(long, value_name = "SLOT=TAP")]
    net: Vec<SlotFlag>,

    #[arg(long, value_name = "WHERE", default_value = "stdio", help = serial::HELP)]
    serial: SerialFlag,

    /// The most memory that the guest may have here
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "8G",
        allow_hyphen_values = true
    )]
    max_memory: Size,

    /// How written pages are found when the guest is moved or saved: bitmap, ring or ring,entries=N, as of `ferry run`
    #[arg(long, value_name = "HOW", default_value = "bitmap")]
    dirty_tracking: DirtyTracking,

    /// Leave it paused; `ferry resume` lets it run
    #[arg(long)]
    paused: bool,

    /// Let it run at once, and read its memory as it is touched and in the background
    #[arg(long)]
    lazy: bool,

    /// Listen on this Unix socket for `ferry status`, `ferry snapshot` and the like
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,

    /// This host's certificate, key and CA, as `ferry certs host` makes them: the guest can be moved with it
    #[arg(long, value_name = "DIR")]
    tls: Option<PathBuf>,

    #[arg(long, value_name = "HOW", default_value = "kill", help = sandbox::HELP)]
    sandbox: Mode,
}

impl Args {
    /// The flags as checked values.
    pub fn config(self) -> Result<RestoreConfig, ConfigError> {
        let nets = self.net.into_iter();
        RestoreConfig {
            files: self.files,
            nets: nets.map(|SlotFlag(slot, tap)| (slot, tap)).collect(),
            serial: self.serial.0,
            max_memory: self.max_memory.0,
            dirty_tracking: self.dirty_tracking,
            paused: self.paused,
            lazy: self.lazy,
            control: self.control,
            tls: self.tls,
            sandbox: self.sandbox,
        }
        .checked()
    }

    pub(super) fn run(self) -> Result<u8, Failure> {
        let config = self.config().map_err(Failure::usage)?;
        let end = crate::machine::restore(config).map_err(Failure::error)?;
        receive::tell(&end);
        Ok(exit::of_end(&end))
    }
}
