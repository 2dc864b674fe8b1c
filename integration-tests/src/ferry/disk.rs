//! A file for a guest's disk, and its lock as anybody else finds it.

use std::fs::{File, OpenOptions};

use nix::fcntl::{FcntlArg, fcntl};
use tempfile::NamedTempFile;

use crate::Error;

/// A file of zeros, gone when dropped.
#[derive(Debug)]
pub struct DiskImage(NamedTempFile);

impl DiskImage {
    /// One of so many bytes.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(bytes: u64) -> Result<Self, Error> {
        let failed = |e| Error::file("make", "(a disk)".as_ref(), e);
        let file = NamedTempFile::with_prefix("ferry-disk-").map_err(failed)?;
        file.as_file().set_len(bytes).map_err(failed)?;
        Ok(Self(file))
    }

    /// Where it lies.
    pub fn path(&self) -> &str {
        self.0.path().to_str().unwrap_or_default()
    }

    /// Whether nobody holds any lock on it.
    pub fn is_free(&self) -> bool {
        self.hold().is_some()
    }

    /// Whether nobody holds it for writing.
    pub fn can_be_read_locked(&self) -> bool {
        self.lock(libc_kind(false)).is_some()
    }

    /// Takes the lock for writing, as a Ferry does, if nobody has it. It goes with the file.
    pub fn hold(&self) -> Option<File> {
        self.lock(libc_kind(true))
    }

    fn lock(&self, kind: i16) -> Option<File> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).open(self.0.path()).ok()?;
        let whole = nix::libc::flock {
            l_type: kind,
            l_whence: 0, // SEEK_SET
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        fcntl(&file, FcntlArg::F_OFD_SETLK(&whole))
            .ok()
            .map(|_| file)
    }
}

fn libc_kind(write: bool) -> i16 {
    let kind = match write {
        true => nix::libc::F_WRLCK,
        false => nix::libc::F_RDLCK,
    };
    i16::try_from(kind).unwrap_or_default()
}
