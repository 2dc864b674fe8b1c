//! Kernels made by hand, whole and broken, and what becomes of them in guest memory.

mod broken;
mod loaded;

use std::io::Write;

use migration::guest::GuestRam;
use migration::pages::MemoryLayout;
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, Entry, Kernel, Machine, load};
use crate::layout::{self, Transport};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Sets bytes of a hand-made file.
fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    bytes[offset..offset + value.len()].copy_from_slice(value);
}

/// A bzImage of one setup sector, with `payload` as its protected-mode part, that runs at 2 MiB in 1 MiB.
/// Offsets are those of Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
fn bzimage(payload: &[u8]) -> Vec<u8> {
    assert_eq!(payload.len() % 16, 0);
    let paragraphs = u32::try_from(payload.len() / 16).unwrap();
    let mut file = vec![0; 2 * 512];
    put(&mut file, 0x1f1, &[1]);
    put(&mut file, 0x1f4, &paragraphs.to_le_bytes());
    put(&mut file, 0x1fe, &[0x55, 0xaa]);
    put(&mut file, 0x200, &[0xeb, 0x6a]);
    put(&mut file, 0x202, b"HdrS");
    put(&mut file, 0x206, &0x20fu16.to_le_bytes());
    put(&mut file, 0x211, &[1]);
    put(&mut file, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut file, 0x236, &1u16.to_le_bytes());
    put(&mut file, 0x238, &2047u32.to_le_bytes());
    put(&mut file, 0x258, &(2 * MIB).to_le_bytes());
    put(&mut file, 0x260, &0x10_0000u32.to_le_bytes());
    file.extend_from_slice(payload);
    file
}

/// Where `elf` puts its segment, and how many bytes of memory it has in all.
const ELF_START: u64 = 2 * MIB;
const ELF_MEMORY: u64 = 0x8000;

/// An ELF file with one segment and one note segment with the PVH entry, both of 32-bit or of 64-bit layout.
fn elf(wide: bool, payload: &[u8]) -> Vec<u8> {
    let word = |value: u64| -> Vec<u8> {
        let bytes = value.to_le_bytes();
        bytes[..if wide { 8 } else { 4 }].to_vec()
    };
    let (header, entry) = if wide { (64u16, 56u16) } else { (52, 32) };
    let note_at = u64::from(header + 2 * entry);
    let note = {
        let mut note = Vec::new();
        let sizes = [4u32, if wide { 8 } else { 4 }, 18];
        note.extend(sizes.iter().flat_map(|size| size.to_le_bytes()));
        note.extend(b"Xen\0");
        note.extend(word(ELF_START + 0x10));
        note
    };
    let payload_at = note_at + note.len() as u64;

    let mut file = vec![0x7f, b'E', b'L', b'F', if wide { 2 } else { 1 }, 1, 1];
    file.resize(16, 0);
    file.extend(2u16.to_le_bytes());
    file.extend(if wide { 62u16 } else { 3 }.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    file.extend(word(ELF_START));
    file.extend(word(u64::from(header)));
    file.extend(word(0));
    file.extend(0u32.to_le_bytes());
    for half in [header, entry, 2, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let mut segment = |kind: u32, offset: u64, gpa: u64, bytes: u64, memory: u64| {
        file.extend(kind.to_le_bytes());
        if wide {
            file.extend(5u32.to_le_bytes());
        }
        for value in [offset, gpa, gpa, bytes, memory] {
            file.extend(word(value));
        }
        if !wide {
            file.extend(5u32.to_le_bytes());
        }
        file.extend(word(4));
    };
    let bytes = payload.len() as u64;
    segment(1, payload_at, ELF_START, bytes, ELF_MEMORY);
    segment(4, note_at, 0, note.len() as u64, note.len() as u64);
    file.extend(note);
    file.extend(payload);
    file
}

fn machine() -> Machine {
    Machine {
        vcpus: 2,
        virtio_slots: vec![0, 15],
        transport: Transport::Mmio,
        serial: true,
        pvpanic: true,
    }
}

fn memory(bytes: u64) -> (MemoryLayout, GuestRam) {
    let layout = layout::memory_layout(bytes).unwrap();
    let ranges: Vec<_> = layout
        .regions()
        .iter()
        .map(|r| (GuestAddress(r.gpa), usize::try_from(r.bytes).unwrap()))
        .collect();
    let ram = GuestRam::from_ranges(&ranges).unwrap();
    (layout, ram)
}

fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn kernel(bytes: Vec<u8>) -> Result<Kernel, BootError> {
    Kernel::from_bytes("test", bytes)
}

/// Boots with an initramfs of so many bytes 0xcd, if any.
fn boot(
    bytes: u64,
    image: Vec<u8>,
    initramfs: Option<usize>,
    cmdline: &str,
) -> (GuestRam, Result<Entry, BootError>) {
    let (layout, ram) = memory(bytes);
    let initramfs = initramfs.map(|bytes| file(&vec![0xcd; bytes]));
    let initramfs = initramfs.as_ref().map(NamedTempFile::path);
    let entry = kernel(image)
        .and_then(|kernel| load(&ram, &layout, &kernel, initramfs, cmdline, &machine()));
    (ram, entry)
}

fn read(ram: &GuestRam, gpa: u64, bytes: usize) -> Vec<u8> {
    let mut buffer = vec![0; bytes];
    ram.read_slice(&mut buffer, GuestAddress(gpa)).unwrap();
    buffer
}

fn read_u32(ram: &GuestRam, gpa: u64) -> u32 {
    u32::from_le_bytes(read(ram, gpa, 4).try_into().unwrap())
}

fn read_u64(ram: &GuestRam, gpa: u64) -> u64 {
    u64::from_le_bytes(read(ram, gpa, 8).try_into().unwrap())
}
