//! What a person asked for in the way of disks.

use std::path::PathBuf;

use devices::virtio::block::{DiskOptions, MAX_QUEUES};

use super::ConfigError;

/// The most disks in a guest: with eight network devices and an entropy source all slots are taken.
pub const MAX_DISKS: usize = 7;

/// The host's end of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFile {
    /// A raw file, or a block device.
    pub path: PathBuf,
    /// How it is opened.
    pub options: DiskOptions,
}

/// A disk of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskConfig {
    /// The host's end.
    pub file: DiskFile,
    /// How many queues the guest has to it, 1 to [`MAX_QUEUES`].
    pub queues: u16,
}

/// Checks the disks of a guest to be started.
pub(super) fn check_disks(disks: &[DiskConfig]) -> Result<(), ConfigError> {
    if disks.len() > MAX_DISKS {
        return Err(ConfigError::Disks(disks.len()));
    }
    for DiskConfig { queues, .. } in disks {
        if !(1..=MAX_QUEUES).contains(queues) {
            return Err(ConfigError::DiskQueues(*queues));
        }
    }
    check_files(disks.iter().map(|disk| &disk.file))
}

/// Checks the disks of a receiver, by the numbers that they have in the guest that may come.
pub(super) fn check_numbered(disks: &[(u32, DiskFile)]) -> Result<(), ConfigError> {
    for (index, (number, _)) in disks.iter().enumerate() {
        if usize::try_from(*number).map_or(true, |number| number >= MAX_DISKS) {
            return Err(ConfigError::DiskNumber(*number));
        }
        if disks[..index].iter().any(|(other, _)| other == number) {
            return Err(ConfigError::DiskNumberTwice(*number));
        }
    }
    check_files(disks.iter().map(|(_, file)| file))
}

/// Two disks may be one file if nobody writes to it. Files that only turn out to be the same by their locks are refused
/// there.
fn check_files<'a>(files: impl Iterator<Item = &'a DiskFile>) -> Result<(), ConfigError> {
    let mut seen: Vec<&DiskFile> = Vec::new();
    for file in files {
        let same = |other: &&DiskFile| {
            other.path == file.path && !(other.options.read_only && file.options.read_only)
        };
        if seen.iter().any(same) {
            return Err(ConfigError::DiskTwice(file.path.clone()));
        }
        seen.push(file);
    }
    Ok(())
}
