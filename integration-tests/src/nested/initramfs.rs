//! The first files of the nested host: its init program and the modules, as a cpio archive ("newc").
//!
//! Everything else is seen through 9p once these are loaded. The archive is made in memory at every boot:
//! that takes milliseconds and nothing can go stale.

use std::fs;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::Error;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// Builds the archive. The descriptor is inherited by the child that it is meant for.
///
/// # Errors
/// A file cannot be read, or the program is not statically linked.
pub fn build(init: &Path, modules: &[PathBuf]) -> Result<Initramfs, Error> {
    let program = fs::read(init).map_err(|e| Error::file("read", init, e))?;
    if !is_static(&program) {
        return Err(Error::NotStatic(init.to_owned()));
    }
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "modules", "host", "cow", "new"] {
        archive.add(folder, DIRECTORY, &[]);
    }
    // The kernel opens it for init before anything is mounted.
    archive.add("dev/console", CHARACTER_DEVICE, &[]);
    archive.add("init", PROGRAM, &program);
    for module in modules {
        let bytes = fs::read(module).map_err(|e| Error::file("read", module, e))?;
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        archive.add(&format!("modules/{name}"), PROGRAM, &bytes);
    }
    let bytes = archive.finish();

    let whole = |e: std::io::Error| Error::file("write", Path::new("(initramfs)"), e);
    let fd = memfd_create(c"initramfs", MFdFlags::empty()).map_err(|e| whole(e.into()))?;
    let mut file = fs::File::from(fd);
    file.write_all(&bytes).map_err(whole)?;
    Ok(Initramfs(file.into()))
}

/// An archive in memory.
#[derive(Debug)]
pub struct Initramfs(OwnedFd);

impl Initramfs {
    /// A name by which a child process opens it, as long as this lives until then.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// Whether an ELF program asks for no dynamic linker: no program header of type PT_INTERP (3). Offsets are
/// those of the 64-bit ELF header (e_phoff 32, e_phentsize 54, e_phnum 56).
fn is_static(program: &[u8]) -> bool {
    let word = |at: usize| {
        let bytes = program.get(at..at + 2)?;
        Some(usize::from(u16::from_le_bytes(bytes.try_into().ok()?)))
    };
    let parse = || {
        let table = u64::from_le_bytes(program.get(32..40)?.try_into().ok()?);
        let table = usize::try_from(table).ok()?;
        let (size, count) = (word(54)?, word(56)?);
        let mut types = (0..count).map(|i| word(table.checked_add(i * size)?));
        types.all(|kind| kind.is_some_and(|k| k != 3)).then_some(())
    };
    program.starts_with(b"\x7fELF") && parse().is_some()
}

/// The "newc" format: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let device = if mode == CHARACTER_DEVICE {
            (5, 1)
        } else {
            (0, 0)
        };
        let fields: [u64; 13] = [
            self.entries.into(),   // inode
            mode.into(),           //
            0,                     // owner
            0,                     // group
            1,                     // links
            0,                     // time
            content.len() as u64,  //
            0,                     // device, major
            0,                     // device, minor
            device.0,              // of a device file, major
            device.1,              // and minor
            name.len() as u64 + 1, // with the zero byte
            0,                     // checksum, unused in this variant
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn cpio_reads_the_archive() {
        let mut archive = Archive::default();
        archive.add("dir", DIRECTORY, &[]);
        archive.add("dir/file", PROGRAM, b"hello");
        let mut cpio = Command::new("cpio")
            .args(["-itv", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        cpio.stdin
            .take()
            .unwrap()
            .write_all(&archive.finish())
            .unwrap();
        let output = cpio.wait_with_output().unwrap();
        let listing = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<_> = listing.lines().collect();
        assert_eq!(lines.len(), 2, "{listing}");
        assert!(lines[0].starts_with("drwxr-xr-x") && lines[0].ends_with(" dir"));
        assert!(lines[1].starts_with("-rwxr-xr-x") && lines[1].ends_with(" dir/file"));
        assert!(lines[1].contains(" 5 "), "{listing}");
    }

    #[test]
    fn dynamic_programs_are_told_apart() {
        let ours = fs::read("/proc/self/exe").unwrap();
        assert_eq!(is_static(&ours), cfg!(target_feature = "crt-static"));
        assert!(!is_static(b"#!/bin/sh\n"));
        assert!(!is_static(b"\x7fELF"));
    }
}
