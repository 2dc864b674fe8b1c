//! Guests to test migration with.
//!
//! - [`PULSE`] is a bare guest of a few kilobytes that runs on every /dev/kvm, also on one that emulates each
//!   instruction. It beats, and writes stamps into working sets at given rates; [`pulse`] describes what it leaves in
//!   memory, [`config`] its command line. [`verify`] reads its memory from outside and finds lost and stale
//!   pages without asking the VMM; [`fill`] does the same for memory that the guest leaves alone.
//! - `guest-images/build` (a script) makes kernel and initramfs of a stock Debian kernel with the agent of
//!   `guest-images/agent` in it. [`traffic`] is what that and the bench of networks talk with each other.

pub mod config;
pub mod fill;
pub mod procmem;
pub mod pulse;
pub mod traffic;
pub mod verify;

/// The bare guest: an ELF file with 32-bit code and a PVH note, for any loader of PVH kernels.
pub static PULSE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pulse.elf"));

/// Reads guest memory: fills the buffer from the guest-physical address. How it gets at the memory is its
/// own affair ([`procmem::ProcMem`], a memory mapping, a file).
pub trait ReadGuest {
    /// Fills `into` with the bytes from `gpa` on.
    ///
    /// # Errors
    /// Some of it is not the guest's memory, or cannot be read.
    fn read(&self, gpa: u64, into: &mut [u8]) -> std::io::Result<()>;
}

impl<F: Fn(u64, &mut [u8]) -> std::io::Result<()>> ReadGuest for F {
    fn read(&self, gpa: u64, into: &mut [u8]) -> std::io::Result<()> {
        self(gpa, into)
    }
}
