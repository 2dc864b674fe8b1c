//! What a person asked for, checked: the plain values that the command line (or anything else) hands to the VMM.
//!
//! No flag, no string to be parsed later: whoever holds one of these holds something that makes sense by
//! itself. Whether the host can do it (the file is there, the tap is free) shows when it is tried.

mod balloon;
mod disk;
mod error;
mod guest;
mod incoming;
mod memory;
mod net;
mod target;

use std::path::PathBuf;
use std::str::FromStr;

use migration::pages::{MAX_MEMORY, REGION_ALIGN};

use crate::kvm::ring::{DEFAULT_ENTRIES, MIN_ENTRIES};

pub use balloon::BalloonConfig;
pub use disk::{DiskConfig, DiskFile, MAX_DISKS};
pub use error::ConfigError;
pub use guest::{
    GuestConfig, KernelConfig, MAX_CMDLINE, MAX_CPUS, MIN_LINUX_MEMORY, MIN_PULSE_MEMORY,
};
pub use incoming::{DEFAULT_MAX_MEMORY, PEER_TIMEOUT, ReceiveConfig, RestoreConfig};
pub use memory::{MemoryBacking, MemoryConfig};
pub use net::{MAX_NETS, MAX_TAP_NAME, NET_MTU, NetConfig, TapConfig, display_mac, parse_mac};
pub(crate) use target::check_peer;
pub use target::{Listen, Target};

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

fn check_memory(bytes: u64, least: u64) -> Result<(), ConfigError> {
    if bytes < least || bytes > MAX_MEMORY || !bytes.is_multiple_of(REGION_ALIGN) {
        return Err(ConfigError::Memory { bytes, least });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
