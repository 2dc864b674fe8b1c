//! A file for a guest's disk, and its lock as anybody else finds it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use tempfile::NamedTempFile;

use crate::Error;

/// Bytes that are looked at together when a file is copied: what is zero in all of them stays a hole.
const CHUNK: usize = 1 << 20;

/// A file, gone when dropped.
#[derive(Debug)]
pub struct DiskImage(NamedTempFile);

impl DiskImage {
    /// One of so many bytes, all zero.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(bytes: u64) -> Result<Self, Error> {
        let failed = |e| Error::file("make", "(a disk)".as_ref(), e);
        let file = NamedTempFile::with_prefix("ferry-disk-").map_err(failed)?;
        file.as_file().set_len(bytes).map_err(failed)?;
        Ok(Self(file))
    }

    /// A copy of a file, which takes the room of what is not zero in it.
    ///
    /// # Errors
    /// The one cannot be read, or the other not made.
    pub fn copy_of(original: &Path) -> Result<Self, Error> {
        let read = |e| Error::file("read", original, e);
        let mut from = File::open(original).map_err(read)?;
        let copy = Self::new(from.metadata().map_err(read)?.len())?;
        copy_data(&mut from, copy.0.as_file()).map_err(|e| Error::file("copy", original, e))?;
        Ok(copy)
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

/// Writes what is not zero to the same places. The file system that is read may not know where its holes are.
fn copy_data(from: &mut File, to: &File) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    loop {
        let count = from.read(&mut chunk)?;
        if count == 0 {
            return Ok(());
        }
        if chunk[..count].iter().any(|&byte| byte != 0) {
            to.write_all_at(&chunk[..count], at)?;
        }
        at += count as u64;
    }
}

fn libc_kind(write: bool) -> i16 {
    let kind = match write {
        true => nix::libc::F_WRLCK,
        false => nix::libc::F_RDLCK,
    };
    i16::try_from(kind).unwrap_or_default()
}
