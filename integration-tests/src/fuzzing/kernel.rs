//! Kernels and initramfs, loaded into a small guest.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use migration::guest::GuestRam;
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{Bytes, GuestAddress};
use vmm::boot::{BootError, Kernel, Machine, load};
use vmm::layout::{self, Transport, memory_layout};

use super::input::{Program, Written};

const MIB: u64 = 1 << 20;

/// The input: 4, 8, 16 or 32 MiB of memory; bytes of the initramfs, of which 255 are none; of the command line;
/// these two and the kernel.
pub fn run(input: &[u8]) {
    is_loaded(input);
}

fn is_loaded(input: &[u8]) -> bool {
    let mut program = Program::new(input);
    let bytes = (4 * MIB) << (program.u8() % 4);
    let (initramfs, words) = (program.u8(), program.u8());
    let initramfs = (initramfs < 255).then(|| program.bytes(initramfs.into()));
    let words = String::from_utf8_lossy(program.bytes(words.into()));
    let Ok(kernel) = Kernel::from_bytes("fuzz", program.rest().to_vec()) else {
        return false;
    };
    let _ = (kernel.protocol(), kernel.is_linux());
    let layout = memory_layout(bytes).unwrap();
    let range = (GuestAddress(0), usize::try_from(bytes).unwrap());
    let ram = GuestRam::from_ranges(&[range]).unwrap();
    let file = initramfs.map(memfd);
    let path =
        (file.as_ref()).map(|file| PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())));
    let machine = Machine {
        vcpus: 2,
        virtio_slots: vec![0, 15],
        transport: Transport::Mmio,
        serial: true,
        pvpanic: true,
    };
    let loaded = load(&ram, &layout, &kernel, path.as_deref(), &words, &machine);
    // The command line and the tables come last, so nothing of them is there if anything was wrong before.
    let untouched = !matches!(
        loaded,
        Ok(_) | Err(BootError::Read { .. } | BootError::Write { .. })
    );
    for start in [layout::CMDLINE, layout::ACPI_START] {
        let mut bytes = [0; 16];
        ram.read_slice(&mut bytes, GuestAddress(start)).unwrap();
        assert!(!untouched || bytes == [0; 16], "{start:#x} is written");
    }
    loaded.is_ok()
}

fn memfd(bytes: &[u8]) -> File {
    let mut file = File::from(memfd_create(c"initramfs", MFdFlags::MFD_CLOEXEC).unwrap());
    file.write_all(bytes).unwrap();
    file
}

/// The smallest kernels of each kind, as `vmm/src/boot` knows them, and pulse.
pub fn seeds() -> Vec<Vec<u8>> {
    let with = |kernel: &[u8]| {
        let seed = Written::default().u8(1).u8(6).u8(5);
        seed.bytes(b"070701").bytes(b"quiet").bytes(kernel).0
    };
    let mut bare = Written::default().u8(0).u8(255).u8(0);
    bare = bare.bytes(guest_images::PULSE);
    vec![
        with(&bzimage()),
        with(&elf()),
        bare.0,
        with(b"\x1f\x8bpacked"),
    ]
}

/// One setup sector and 64 bytes of kernel (Linux: Documentation/arch/x86/boot.rst).
fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 1024 + 64];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1f4, &4u32.to_le_bytes());
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS\x0f\x02");
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x236, &[1]);
    put(0x238, &2047u32.to_le_bytes());
    put(0x258, &(2 * MIB).to_le_bytes());
    put(0x260, &0x10_0000u32.to_le_bytes());
    file
}

/// A 64-bit ELF file with one segment, and a note with its PVH entry.
fn elf() -> Vec<u8> {
    let header = Written::default()
        .bytes(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0")
        .u16(2)
        .u16(62)
        .u32(1)
        .u64(2 * MIB)
        .u64(64)
        .u64(0)
        .u32(0);
    let header = [64, 56, 2, 0, 0, 0].into_iter().fold(header, Written::u16);
    let segment = |file: Written, kind: u32, offset: u64, gpa: u64, bytes: u64, memory: u64| {
        let file = file.u32(kind).u32(5).u64(offset).u64(gpa).u64(gpa);
        file.u64(bytes).u64(memory).u64(4)
    };
    let file = segment(header, 1, 200, 2 * MIB, 16, 0x8000);
    let file = segment(file, 4, 176, 0, 24, 24);
    file.u32(4)
        .u32(8)
        .u32(18)
        .bytes(b"Xen\0")
        .u64(2 * MIB)
        .bytes(&[0xf4; 16])
        .0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_are_kernels_and_something_else() {
        let loaded: Vec<_> = seeds().iter().map(|seed| is_loaded(seed)).collect();
        assert_eq!(loaded, [true, true, true, false]);
    }
}
