//! The bytes of a kernel or an initramfs: a file, or bytes that are built into the program.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use migration::guest::GuestRam;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::BootError;

/// Bytes that can be looked at, and read into guest memory without a copy in between.
#[derive(Debug)]
pub(super) struct Image {
    what: &'static str,
    path: String,
    bytes: u64,
    source: Source,
}

#[derive(Debug)]
enum Source {
    File(File),
    Bytes(Cow<'static, [u8]>),
}

impl Image {
    /// A kernel in a file.
    pub(super) fn kernel(path: &Path) -> Result<Self, BootError> {
        Self::open("kernel", path)
    }

    /// An initramfs in a file; not empty.
    pub(super) fn initramfs(path: &Path) -> Result<Self, BootError> {
        let image = Self::open("initramfs", path)?;
        if image.bytes == 0 {
            return Err(BootError::InitramfsEmpty { path: image.path });
        }
        Ok(image)
    }

    /// A kernel in memory; `name` stands for the path in messages.
    pub(super) fn built_in(name: &str, bytes: Cow<'static, [u8]>) -> Self {
        Self {
            what: "kernel",
            path: name.to_owned(),
            bytes: bytes.len() as u64,
            source: Source::Bytes(bytes),
        }
    }

    fn open(what: &'static str, path: &Path) -> Result<Self, BootError> {
        let name = path.display().to_string();
        let failed = |source| BootError::Read {
            what,
            path: name.clone(),
            source,
        };
        // Before opening: to open a pipe waits for its other end.
        if !fs::metadata(path).map_err(failed)?.is_file() {
            return Err(BootError::NotAFile { what, path: name });
        }
        let file = File::open(path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        Ok(Self {
            what,
            path: name,
            bytes,
            source: Source::File(file),
        })
    }

    /// Its name for messages.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Its size in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Fills `buffer` from `offset` on.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), BootError> {
        let end = offset.saturating_add(buffer.len() as u64);
        if end > self.bytes {
            return Err(self.cut_short(end));
        }
        match &self.source {
            Source::File(file) => file.read_exact_at(buffer, offset),
            Source::Bytes(bytes) => slice(bytes, offset, buffer.len() as u64)
                .map(|from| buffer.copy_from_slice(from))
                .ok_or_else(|| io::ErrorKind::UnexpectedEof.into()),
        }
        .map_err(|source| self.unreadable(source))
    }

    /// Reads `count` bytes from `offset` on into guest memory at `gpa`.
    pub(super) fn load(
        &self,
        ram: &GuestRam,
        offset: u64,
        gpa: u64,
        count: u64,
    ) -> Result<(), BootError> {
        if offset.saturating_add(count) > self.bytes {
            return Err(self.cut_short(offset.saturating_add(count)));
        }
        let failed = |source| BootError::write(self.what, source);
        match &self.source {
            Source::File(file) => {
                let mut file = file;
                file.seek(SeekFrom::Start(offset))
                    .map_err(|source| self.unreadable(source))?;
                let count = usize::try_from(count)
                    .map_err(|_| failed(GuestMemoryError::InvalidBackendAddress))?;
                ram.read_exact_volatile_from(GuestAddress(gpa), &mut file, count)
                    .map_err(failed)
            }
            Source::Bytes(bytes) => {
                let from = slice(bytes, offset, count).unwrap_or_default();
                ram.write_slice(from, GuestAddress(gpa)).map_err(failed)
            }
        }
    }

    /// The error for a file that should have `needed` bytes.
    pub(super) fn cut_short(&self, needed: u64) -> BootError {
        BootError::CutShort {
            path: self.path.clone(),
            bytes: self.bytes,
            needed,
        }
    }

    /// The error for a kernel that lacks something.
    pub(super) fn unsupported(&self, why: impl Into<String>) -> BootError {
        BootError::Unsupported {
            path: self.path.clone(),
            why: why.into(),
        }
    }

    fn unreadable(&self, source: io::Error) -> BootError {
        BootError::Read {
            what: self.what,
            path: self.path.clone(),
            source,
        }
    }
}

fn slice(bytes: &[u8], offset: u64, count: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    bytes.get(start..start.checked_add(usize::try_from(count).ok()?)?)
}
