//! Why a guest cannot be booted, in one line each: the act, the values, the remedy.

use std::io;

use thiserror::Error;
use vm_memory::GuestMemoryError;

/// Why a guest cannot be booted.
#[derive(Debug, Error)]
pub enum BootError {
    /// A file that could not be opened or read.
    #[error("cannot read {what} {path}; check the path and its permissions")]
    Read {
        /// "kernel" or "initramfs".
        what: &'static str,
        /// The file.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// A path that names a directory, a pipe or a device.
    #[error("{what} {path} is not a regular file: give the path of an image")]
    NotAFile {
        /// "kernel" or "initramfs".
        what: &'static str,
        /// The path.
        path: String,
    },
    /// Neither a bzImage nor an ELF file.
    #[error(
        "{path} is not a kernel: it is {found}; give a bzImage (vmlinuz) or an ELF kernel with a PVH entry (vmlinux)"
    )]
    NotAKernel {
        /// The file.
        path: String,
        /// What it seems to be instead.
        found: String,
    },
    /// A kernel, but none that can be started here.
    #[error(
        "kernel {path} cannot be booted: {why}; give an x86-64 bzImage with boot protocol 2.12 or later, or an ELF kernel with a PVH entry"
    )]
    Unsupported {
        /// The file.
        path: String,
        /// What it lacks.
        why: String,
    },
    /// A kernel whose headers promise more bytes than the file has.
    #[error(
        "kernel {path} is cut short: it has {bytes} bytes, its headers say at least {needed}; copy it again"
    )]
    CutShort {
        /// The file.
        path: String,
        /// How many bytes it has.
        bytes: u64,
        /// How many it should have.
        needed: u64,
    },
    /// Kernel and initramfs do not fit into the RAM below the 32-bit gap.
    #[error(
        "guest memory is too small: kernel and initramfs ({initramfs} bytes) need {needed} MiB below 3 GiB, there are {available} MiB; give more memory"
    )]
    MemoryTooSmall {
        /// Bytes of the initramfs.
        initramfs: u64,
        /// What is needed, in MiB, rounded up.
        needed: u64,
        /// What there is, in MiB.
        available: u64,
    },
    /// More than any guest memory could hold where kernels and initramfs lie.
    #[error(
        "kernel and initramfs ({initramfs} bytes) need {needed} MiB below 3 GiB, more than any guest has: give smaller ones"
    )]
    TooLarge {
        /// Bytes of the initramfs.
        initramfs: u64,
        /// What is needed, in MiB, rounded up.
        needed: u64,
    },
    /// The kernel takes its initramfs only below an address, and it does not fit there.
    #[error(
        "initramfs {path} of {bytes} bytes does not fit: this kernel takes it between {start:#x} and {end:#x}; give a smaller one"
    )]
    InitramfsTooLarge {
        /// The file.
        path: String,
        /// Its size.
        bytes: u64,
        /// Where the kernel ends.
        start: u64,
        /// Where the initramfs has to end.
        end: u64,
    },
    /// An initramfs of no bytes.
    #[error("initramfs {path} is empty: give a cpio archive, or none")]
    InitramfsEmpty {
        /// The file.
        path: String,
    },
    /// The command line is longer than the kernel keeps.
    #[error(
        "the kernel command line has {bytes} bytes, this kernel takes at most {max}: shorten it"
    )]
    CmdlineTooLong {
        /// Its length in bytes.
        bytes: u64,
        /// The most that the kernel takes.
        max: u64,
    },
    /// The command line contains a zero byte, where the kernel would end it.
    #[error("the kernel command line has a zero byte at offset {at}: remove it")]
    CmdlineZero {
        /// Where.
        at: usize,
    },
    /// Guest memory took no write; it does not have the layout that was given.
    #[error("cannot write {what} into guest memory")]
    Write {
        /// What was to be written.
        what: &'static str,
        /// The cause.
        source: GuestMemoryError,
    },
}

impl BootError {
    pub(super) fn write(what: &'static str, source: GuestMemoryError) -> Self {
        Self::Write { what, source }
    }

    /// The error for memory that should reach `end` but does not, with the remedy that helps.
    pub(super) fn memory(end: u64, low_end: u64, initramfs: u64) -> Self {
        const MIB: u64 = 1 << 20;
        let needed = end.div_ceil(MIB);
        if end > crate::layout::LOW_RAM_END {
            return Self::TooLarge { initramfs, needed };
        }
        Self::MemoryTooSmall {
            initramfs,
            needed,
            available: low_end / MIB,
        }
    }
}
