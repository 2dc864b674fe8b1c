//! A guest of a few dozen instructions that uses its first virtio device and speaks: what `pulse`, which knows no
//! virtio and prints one line, cannot show.

use std::fs;
use std::path::Path;

use integration_tests::ferry::{Ferry, Netns};

/// Where the image lies in the guest's memory, as kernels do.
const LOAD: u32 = 1 << 20;
/// The first virtio-mmio slot.
const SLOT: u32 = 0xd000_0000;
/// Registers of a slot (virtio 1.2, 4.2.2).
const DRIVER_FEATURES: u32 = 0x20;
const DRIVER_FEATURES_SEL: u32 = 0x24;
const STATUS: u32 = 0x70;
/// What a driver writes until its device is in use (3.1.1): ACKNOWLEDGE, DRIVER, the one feature VERSION_1 in the upper
/// half of the features, FEATURES_OK, DRIVER_OK. No queue is made ready, so no frame comes in or goes out, and without
/// GUEST_ANNOUNCE the host alone announces the guest.
const DRIVE: [(u32, u32); 6] = [
    (STATUS, 1),
    (STATUS, 1 | 2),
    (DRIVER_FEATURES_SEL, 1),
    (DRIVER_FEATURES, 1),
    (STATUS, 1 | 2 | 8),
    (STATUS, 1 | 2 | 8 | 4),
];
/// What it says is numbers from 0 on, each as four bytes with the least first; so what is missing in it or comes twice
/// is seen. It waits for so many turns between two: some hundred microseconds on a processor, some milliseconds where
/// each instruction is emulated.
const SPEAK: [u8; 33] = [
    0x31, 0xc9, // xor ecx, ecx
    0xba, 0xf8, 0x03, 0, 0, // mov edx, 0x3f8: the serial port, which takes a byte at any time
    0x89, 0xc8, // 1: mov eax, ecx
    0xee, // out dx, al
    0xc1, 0xe8, 8, 0xee, // shr eax, 8; out dx, al
    0xc1, 0xe8, 8, 0xee, // the same
    0xc1, 0xe8, 8, 0xee, // the same
    0x41, // inc ecx
    0xbb, 0x10, 0x27, 0, 0,    // mov ebx, 10000
    0x4b, // 2: dec ebx
    0x75, 0xfd, // jnz 2b
    0xeb, 0xe6, // jmp 1b
];
/// Sizes of the headers of a 32-bit ELF file.
const FILE_HEADER: u32 = 52;
const SEGMENT_HEADER: u32 = 32;

/// The image: an ELF file with a PVH entry in its one note (Xen: docs/misc/pvh.pandoc), entered in flat 32-bit
/// protected mode.
fn image() -> Vec<u8> {
    let mut code = Vec::new();
    for (register, value) in DRIVE {
        code.extend([0xc7, 0x05]); // mov dword [address], value
        code.extend((SLOT + register).to_le_bytes());
        code.extend(value.to_le_bytes());
    }
    code.extend(SPEAK);
    let mut note = Vec::new();
    for word in [4, 4, 18] {
        // Bytes of the name, bytes of what it says, XEN_ELFNOTE_PHYS32_ENTRY.
        note.extend(u32::to_le_bytes(word));
    }
    note.extend(b"Xen\0");
    note.extend(LOAD.to_le_bytes());

    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap();
    let (note_bytes, code_bytes) = (length(&note), length(&code));
    let note_at = FILE_HEADER + 2 * SEGMENT_HEADER;
    let code_at = note_at + note_bytes;
    let mut image = b"\x7fELF\x01\x01\x01".to_vec(); // 32-bit, little-endian, version 1
    image.resize(16, 0);
    let halves = |image: &mut Vec<u8>, all: &[u16]| {
        (all.iter()).for_each(|half| image.extend(half.to_le_bytes()));
    };
    let words = |image: &mut Vec<u8>, all: &[u32]| {
        (all.iter()).for_each(|word| image.extend(word.to_le_bytes()));
    };
    halves(&mut image, &[2, 3]); // an executable, for the 80386
    words(&mut image, &[1, LOAD, FILE_HEADER, 0, 0]);
    halves(&mut image, &[52, 32, 2, 0, 0, 0]);
    // Type, place in the file, virtual and physical address, bytes there and in memory, flags, alignment.
    let load = [1, code_at, LOAD, LOAD, code_bytes, code_bytes, 5, 1];
    words(&mut image, &load);
    words(
        &mut image,
        &[4, note_at, 0, 0, note_bytes, note_bytes, 4, 4],
    );
    image.extend(note);
    image.extend(code);
    image
}

/// Starts it, its image in `folder`, with more words for `ferry run`.
pub fn start(netns: &Netns, folder: &Path, more: &[&str]) -> Ferry {
    let path = folder.join("speaker");
    fs::write(&path, image()).unwrap();
    let args = [
        "run",
        path.to_str().unwrap(),
        "--memory",
        "128M",
        "--virtio",
        "mmio",
    ];
    Ferry::start(Some(netns), &[&args, more].concat()).unwrap()
}
