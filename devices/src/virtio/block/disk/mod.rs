//! The host's end of a disk: a file or a block device, open, with what is known of it.
//!
//! Shared by the device, which reads and writes it, and by whoever pauses and resumes the VM, who brings everything to
//! the disk and passes its [lock](Disk::lock) on.

mod lock;
mod transfer;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};
use thiserror::Error;

use super::features::SECTOR;

pub use lock::LockError;
pub use transfer::{Area, Bounce, Transfer, TransferError};

/// The largest block that a disk with direct I/O may need, in bytes.
pub const MAX_ALIGNMENT: u32 = 4096;

/// Why a disk cannot be used.
#[derive(Debug, Error)]
pub enum DiskError {
    /// There is nothing.
    #[error("disk {} does not exist: make it (`truncate -s 8G {}`), or name another", .0.display(), .0.display())]
    Missing(PathBuf),
    /// Not for this user.
    #[error("this user may not {access} disk {}: change its owner or mode, or add ,ro to read it alone", path.display())]
    Permission {
        /// The file.
        path: PathBuf,
        /// What was wanted.
        access: &'static str,
    },
    /// A folder, a socket, a terminal.
    #[error("{} is neither a file nor a block device, and cannot be a disk", .0.display())]
    Kind(PathBuf),
    /// Not a whole number of sectors, or none.
    #[error("disk {} has {bytes} bytes: a disk has a multiple of {SECTOR}, and at least that (`truncate -s` makes it so)", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// How large it is.
        bytes: u64,
    },
    /// O_DIRECT is refused.
    #[error("disk {} lies where nothing can be read past the page cache: leave direct=on out", .0.display())]
    NoDirect(PathBuf),
    /// Anything else that the kernel refuses.
    #[error("cannot {act} disk {}", path.display())]
    System {
        /// What was attempted.
        act: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// How a disk is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskOptions {
    /// For reading alone.
    pub read_only: bool,
    /// Past the host's page cache (O_DIRECT).
    pub direct: bool,
}

/// An open disk.
#[derive(Debug)]
pub struct Disk {
    file: File,
    path: PathBuf,
    bytes: u64,
    options: DiskOptions,
    /// What offsets, lengths and addresses of its reads and writes are multiples of, in bytes.
    alignment: u32,
    /// Something that was written did not reach the disk. The kernel says so once, and takes the pages for clean from
    /// then on: a later success would be a lie.
    lost_writes: AtomicBool,
}

impl Disk {
    /// Opens a disk, without its lock.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn open(path: &Path, options: DiskOptions) -> Result<Self, DiskError> {
        let named = || path.to_owned();
        let system = |act, source| DiskError::System {
            act,
            path: path.to_owned(),
            source,
        };
        let refused = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => DiskError::Missing(named()),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                DiskError::Permission {
                    path: named(),
                    access: if options.read_only { "read" } else { "write" },
                }
            }
            _ if options.direct && error.raw_os_error() == Some(libc::EINVAL) => {
                DiskError::NoDirect(named())
            }
            _ => system("open", error),
        };
        // Before it is opened: a pipe would wait for its other end.
        let kind = std::fs::metadata(path).map_err(refused)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(DiskError::Kind(named()));
        }
        let direct = if options.direct { libc::O_DIRECT } else { 0 };
        let file = OpenOptions::new()
            .read(true)
            .write(!options.read_only)
            .custom_flags(direct | libc::O_NONBLOCK)
            .open(path)
            .map_err(refused)?;
        let alignment = match options.direct {
            true => alignment(&file).map_err(|error| system("read directly from", error))?,
            false => 512,
        };
        // Of a block device the metadata say nothing.
        let bytes = io::Seek::seek(&mut &file, io::SeekFrom::End(0))
            .map_err(|error| system("measure", error))?;
        if bytes == 0 || !bytes.is_multiple_of(alignment.into()) {
            return Err(DiskError::Size {
                path: named(),
                bytes,
            });
        }
        Ok(Self {
            file,
            path: named(),
            bytes,
            options,
            alignment,
            lost_writes: AtomicBool::new(false),
        })
    }

    /// Where it was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How large it was when it was opened, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether it can be read alone.
    pub fn read_only(&self) -> bool {
        self.options.read_only
    }

    /// What offsets and lengths of requests must be multiples of, in bytes: 512 to [`MAX_ALIGNMENT`].
    pub fn alignment(&self) -> u32 {
        self.alignment
    }

    /// Brings everything that was written to the disk; returns when it is there (fdatasync). Once something was lost on
    /// the way it fails for good.
    ///
    /// # Errors
    /// Something written may not be there.
    pub fn sync(&self) -> io::Result<()> {
        if self.read_only() {
            return Ok(());
        }
        if self.lost_writes.load(Ordering::Acquire) {
            return Err(io::Error::other(
                "what was written before did not reach the disk",
            ));
        }
        self.file
            .sync_data()
            .inspect_err(|_| self.lost_writes.store(true, Ordering::Release))
    }

    /// Forgets what of it is in this host's page cache: another host may have written it since. After a
    /// [`sync`](Self::sync), or before anything was written here.
    pub fn forget(&self) {
        let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        if let Err(error) = posix_fadvise(&self.file, 0, 0, advice) {
            let path = self.path.display();
            tracing::warn!("what this host has cached of disk {path} stays: {error}");
        }
    }

    /// Gives a range back. Where that cannot be done the range stays as it is, which a discard allows (5.2.6.2).
    ///
    /// # Errors
    /// The disk fails.
    pub fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.punch(offset, bytes).map(|_done| ())
    }

    /// Zeroes a range, as a hole if it `may` be one.
    ///
    /// # Errors
    /// The disk fails; a part of the range may be zero.
    pub fn zero(&self, offset: u64, bytes: u64, may_unmap: bool) -> io::Result<()> {
        if may_unmap && self.punch(offset, bytes)? {
            return Ok(());
        }
        if self.fallocate(FallocateFlags::FALLOC_FL_ZERO_RANGE, offset, bytes)? {
            return Ok(());
        }
        let mut zeros = Bounce::default();
        let mut done = 0;
        while done < bytes {
            let zeros = zeros.room(bytes - done, self.alignment);
            zeros.fill(0);
            self.file.write_all_at(zeros, offset + done)?;
            done += zeros.len() as u64;
        }
        Ok(())
    }

    /// As if something written had been lost.
    #[cfg(test)]
    pub(crate) fn lose_writes(&self) {
        self.lost_writes.store(true, Ordering::Release);
    }

    fn punch(&self, offset: u64, bytes: u64) -> io::Result<bool> {
        self.fallocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE, offset, bytes)
    }

    /// Whether the file system, or the block device, has done it.
    fn fallocate(&self, how: FallocateFlags, offset: u64, bytes: u64) -> io::Result<bool> {
        let at = |number: u64| libc::off_t::try_from(number).map_err(io::Error::other);
        let how = how | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match fallocate(&self.file, how, at(offset)?, at(bytes)?) {
            Ok(()) => Ok(true),
            // EINVAL: a block device with larger blocks than the range is of.
            Err(nix::Error::EOPNOTSUPP | nix::Error::ENOSYS | nix::Error::EINVAL) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// What direct reads need, found by trying: the disk itself knows best.
fn alignment(file: &File) -> io::Result<u32> {
    let mut bounce = Bounce::default();
    for alignment in [512, 1024, 2048] {
        match file.read_at(bounce.just(alignment), 0) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok(alignment),
        }
    }
    file.read_at(bounce.just(MAX_ALIGNMENT), 0)
        .map(|_| MAX_ALIGNMENT)
}

#[cfg(test)]
mod tests;
