//! The lock of a disk: who holds it may run the guest that writes there.
//!
//! It is an open file description lock over the whole file (fcntl(2), F_OFD_SETLK): it is this opening's, not the
//! process's, goes with the last descriptor of it, however the process ends, and is passed on between hosts by the file
//! systems that can (NFS, CephFS, GFS2, OCFS2). A disk that is only read is locked against writers alone. The lock of a
//! block device's node is known on its own host alone.

use std::io;
use std::path::PathBuf;

use nix::fcntl::{FcntlArg, fcntl};
use thiserror::Error;

use super::Disk;

/// Why a disk's lock is not held.
#[derive(Debug, Error)]
pub enum LockError {
    /// Somebody has it.
    #[error(
        "disk {} is in use: another guest, here or on another host, holds its lock; end that one first, or let it be moved here",
        .0.display()
    )]
    InUse(PathBuf),
    /// It cannot be locked, or not let go of.
    #[error(
        "cannot {act} disk {}: it has to lie on a file system with locks, or two guests could write to it", path.display()
    )]
    System {
        /// What was attempted.
        act: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Disk {
    /// Takes the lock, for writing unless the disk is read-only; nothing new where it is held already.
    ///
    /// # Errors
    /// Somebody else has it, or there are no locks.
    pub fn lock(&self) -> Result<(), LockError> {
        let kind = match self.read_only() {
            true => libc::F_RDLCK,
            false => libc::F_WRLCK,
        };
        self.set(kind, "lock")
    }

    /// Lets go of the lock.
    ///
    /// # Errors
    /// The file system cannot tell the others.
    pub fn unlock(&self) -> Result<(), LockError> {
        self.set(libc::F_UNLCK, "unlock")
    }

    fn set(&self, kind: libc::c_int, act: &'static str) -> Result<(), LockError> {
        let path = || self.path.clone();
        let system = |source| LockError::System {
            act,
            path: path(),
            source,
        };
        let narrow = |value: libc::c_int| {
            libc::c_short::try_from(value).map_err(|e| system(io::Error::other(e)))
        };
        let whole = libc::flock {
            l_type: narrow(kind)?,
            l_whence: narrow(libc::SEEK_SET)?,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        loop {
            match fcntl(&self.file, FcntlArg::F_OFD_SETLK(&whole)) {
                Ok(_) => return Ok(()),
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN | nix::Error::EACCES) => {
                    return Err(LockError::InUse(path()));
                }
                Err(error) => return Err(system(error.into())),
            }
        }
    }
}
