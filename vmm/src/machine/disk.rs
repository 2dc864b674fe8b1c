//! From what the user said about a disk to the open disk.

use std::sync::Arc;

use devices::virtio::block::disk::Disk;
use migration::guest::GuestError;

use crate::config::{DiskConfig, DiskFile};
use crate::vm::{Backend, DiskShape};

/// Opens a disk, without its lock.
///
/// # Errors
/// It is missing, not allowed, or no disk.
pub fn open(file: &DiskFile) -> Result<Arc<Disk>, GuestError> {
    let disk = Disk::open(&file.path, file.options);
    disk.map(Arc::new)
        .map_err(|e| GuestError::new("cannot use a disk", e))
}

/// The backend of a guest's nth disk, which is the guest's alone from now on.
///
/// # Errors
/// As [`open`], or somebody else uses it.
pub fn backend(number: u32, config: &DiskConfig) -> Result<Backend, GuestError> {
    let disk = open(&config.file)?;
    disk.lock()
        .map_err(|e| GuestError::new("cannot use a disk", e))?;
    let shape = DiskShape {
        bytes: disk.bytes(),
        read_only: disk.read_only(),
        block_size: disk.alignment(),
        queues: config.queues,
    };
    Ok(Backend::Block {
        disk,
        shape,
        number,
    })
}
