//! What a guest finds in memory. Offsets are those of the documents, not of the types that were written.

use super::*;
use crate::boot::{DEFAULT_CMDLINE, Protocol};
use crate::layout::{ACPI_START, BOOT_PARAMS, CMDLINE, KERNEL_START, PVH_START_INFO};

const PAYLOAD: [u8; 64] = [0xab; 64];

/// Entries of an e820 table or a PVH memory map: (start, bytes, type).
fn map(ram: &GuestRam, gpa: u64, entries: u64, stride: u64) -> Vec<(u64, u64, u32)> {
    (0..entries)
        .map(|i| gpa + i * stride)
        .map(|at| {
            (
                read_u64(ram, at),
                read_u64(ram, at + 8),
                read_u32(ram, at + 16),
            )
        })
        .collect()
}

fn expected_map(low: u64, high: u64) -> Vec<(u64, u64, u32)> {
    let mut map = vec![
        (0, 0x9_fc00, 1),
        (0x9_fc00, 0x6_0400, 2),
        (0x10_0000, low - 0x10_0000, 1),
        (0xfffb_c000, 0x4000, 2),
    ];
    if high > 0 {
        map.push((4 * GIB, high, 1));
    }
    map
}

#[test]
fn a_bzimage_finds_its_boot_params() {
    for (bytes, low, high) in [
        (128 * MIB, 128 * MIB, 0),
        (3 * GIB, 3 * GIB, 0),
        (3 * GIB + 2 * MIB, 3 * GIB, 2 * MIB),
        (8 * GIB, 3 * GIB, 5 * GIB),
    ] {
        let (ram, entry) = boot(bytes, bzimage(&PAYLOAD), Some(5000), DEFAULT_CMDLINE);
        let entry = entry.unwrap();
        assert_eq!(entry.protocol, Protocol::Linux64);
        assert_eq!((entry.rip, entry.info), (KERNEL_START + 0x200, BOOT_PARAMS));
        assert_eq!(read(&ram, KERNEL_START, 64), PAYLOAD);
        // zero-page.rst and boot.rst.
        let params = |offset| read_u32(&ram, BOOT_PARAMS + offset);
        assert_eq!(read_u64(&ram, BOOT_PARAMS + 0x70), ACPI_START);
        assert_eq!(read(&ram, BOOT_PARAMS + 0x202, 4), b"HdrS");
        assert_eq!(read(&ram, BOOT_PARAMS + 0x210, 1), [0xff]);
        assert_eq!(u64::from(params(0x228)), CMDLINE);
        let entries = u64::from(read(&ram, BOOT_PARAMS + 0x1e8, 1)[0]);
        let found = map(&ram, BOOT_PARAMS + 0x2d0, entries, 20);
        assert_eq!(found, expected_map(low, high), "{bytes:#x}");
        // The initramfs ends in the last page below both 2 GiB, the kernel's limit, and the end of low RAM.
        let initramfs = u64::from(params(0x218));
        assert_eq!(params(0x21c), 5000);
        assert_eq!(initramfs, low.min(2 * GIB) - 0x2000);
        assert_eq!(
            read(&ram, initramfs, 5001),
            [&[0xcd; 5000][..], &[0]].concat()
        );
        let cmdline = [DEFAULT_CMDLINE.as_bytes(), b"\0"].concat();
        assert_eq!(read(&ram, CMDLINE, cmdline.len()), cmdline);
        assert_eq!(read(&ram, ACPI_START, 8), b"RSD PTR ");
    }
}

#[test]
fn the_header_is_cut_where_it_says_itself() {
    let mut image = bzimage(&PAYLOAD);
    // It ends at 0x202 + 0x5e = 0x260, before init_size.
    image[0x201] = 0x5e;
    let (ram, entry) = boot(16 * MIB, image, None, "");
    entry.unwrap();
    assert_eq!(read_u64(&ram, BOOT_PARAMS + 0x258), 2 * MIB);
    assert_eq!(read_u32(&ram, BOOT_PARAMS + 0x260), 0);
}

#[test]
fn an_elf_kernel_finds_its_start_info() {
    for wide in [false, true] {
        for (bytes, low, high) in [(16 * MIB, 16 * MIB, 0), (5 * GIB, 3 * GIB, 2 * GIB)] {
            let (ram, entry) = boot(bytes, elf(wide, &PAYLOAD), Some(5000), "a=b");
            let entry = entry.unwrap();
            assert_eq!(entry.protocol, Protocol::Pvh);
            assert_eq!((entry.rip, entry.info), (ELF_START + 0x10, PVH_START_INFO));
            assert_eq!(read(&ram, ELF_START, 64), PAYLOAD);
            assert_eq!(read(&ram, ELF_START + 64, 64), [0; 64]);
            // start_info.h.
            let info = |offset| read_u64(&ram, PVH_START_INFO + offset);
            assert_eq!(read_u32(&ram, PVH_START_INFO), 0x336e_c578);
            assert_eq!(read_u32(&ram, PVH_START_INFO + 4), 1);
            assert_eq!(read_u32(&ram, PVH_START_INFO + 12), 1);
            let module = info(16);
            assert_eq!(read_u64(&ram, module), low - 0x2000);
            assert_eq!(read_u64(&ram, module + 8), 5000);
            assert_eq!(read(&ram, low - 0x2000, 5000), [0xcd; 5000]);
            assert_eq!(read(&ram, info(24), 4), b"a=b\0");
            assert_eq!(info(32), ACPI_START);
            let entries = u64::from(read_u32(&ram, PVH_START_INFO + 48));
            assert_eq!(map(&ram, info(40), entries, 24), expected_map(low, high));
        }
    }
}

#[test]
fn without_initramfs_there_is_none() {
    let (ram, entry) = boot(16 * MIB, bzimage(&PAYLOAD), None, "");
    entry.unwrap();
    assert_eq!(read_u64(&ram, BOOT_PARAMS + 0x218), 0);
    let (ram, entry) = boot(16 * MIB, elf(false, &PAYLOAD), None, "");
    entry.unwrap();
    assert_eq!(read_u32(&ram, PVH_START_INFO + 12), 0);
    assert_eq!(read_u64(&ram, PVH_START_INFO + 16), 0);
}

#[test]
fn a_file_and_the_same_bytes_are_one_kernel() {
    let (layout, ram) = memory(16 * MIB);
    let on_disk = file(&bzimage(&PAYLOAD));
    let kernel = Kernel::open(on_disk.path()).unwrap();
    assert!(kernel.is_linux());
    let entry = load(&ram, &layout, &kernel, None, "", &machine()).unwrap();
    let (built_in, same) = boot(16 * MIB, bzimage(&PAYLOAD), None, "");
    assert_eq!(entry, same.unwrap());
    let all = 4 << 20;
    assert!(read(&ram, 0, all) == read(&built_in, 0, all));
}

#[test]
fn a_bios_reset_ends_at_the_reset_register() {
    let (ram, entry) = boot(16 * MIB, bzimage(&PAYLOAD), None, "");
    entry.unwrap();
    // F000:FFF0: mov dx, 0x602; mov al, 1; out dx, al; hlt; jmp $-1
    let code = [0xba, 0x02, 0x06, 0xb0, 0x01, 0xee, 0xf4, 0xeb, 0xfd];
    assert_eq!(read(&ram, 0xf_fff0, 9), code);
}
