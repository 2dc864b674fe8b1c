//! Guests that come: by a move, or out of snapshots.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use migration::options::LEAST_PATIENCE;
use migration::pages::REGION_ALIGN;

use super::net::check_cards;
use super::target::check_peer;
use super::{
    ConfigError, DirtyTracking, DiskFile, Listen, MIN_PULSE_MEMORY, SerialConfig, TapConfig,
    Target, check_memory, disk,
};
use crate::sandbox::Mode;

/// The memory that a receiver gives a guest at most, if not told otherwise: 8 GiB.
pub const DEFAULT_MAX_MEMORY: u64 = 8 << 30;
/// How long the other end of a move may do nothing before it is taken for dead.
pub const PEER_TIMEOUT: RangeInclusive<Duration> = LEAST_PATIENCE..=Duration::from_secs(3600);

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
    /// It is taken from the huge pages that this host has set aside.
    pub huge_pages: bool,
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
        if self.huge_pages && self.prefault > 0 {
            return Err(ConfigError::PrefaultInHugePages);
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

    /// Refuses to wait there without encryption; for a socket that was passed, whose address shows late.
    ///
    /// # Errors
    /// [`ConfigError::Plaintext`].
    pub fn check_plaintext(&self, target: &Target) -> Result<(), ConfigError> {
        target.check_plaintext(self.insecure_plaintext || self.tls.is_some())
    }
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
