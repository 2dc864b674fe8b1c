//! Files that are no kernels, or claim what is not so: an error that says what is wrong, and never a panic.

use proptest::prelude::*;

use super::*;

const PAYLOAD: [u8; 64] = [0xab; 64];

fn refusal(result: Result<impl Sized, BootError>) -> String {
    match result {
        Ok(_) => panic!("it was taken"),
        Err(error) => error.to_string(),
    }
}

/// A bzImage with a change.
fn changed(offset: usize, value: &[u8]) -> Vec<u8> {
    let mut image = bzimage(&PAYLOAD);
    put(&mut image, offset, value);
    image
}

#[test]
fn every_cut_is_noticed() {
    for image in [bzimage(&PAYLOAD), elf(false, &PAYLOAD), elf(true, &PAYLOAD)] {
        for length in 0..image.len() {
            let error = kernel(image[..length].to_vec()).unwrap_err();
            match error {
                BootError::CutShort { bytes, needed, .. } => {
                    assert_eq!(bytes, length as u64);
                    assert!(needed > bytes);
                }
                // Cut before the magic number that tells what it would have been.
                BootError::NotAKernel { .. } => assert!(length < 0x206),
                error => panic!("cut at {length}: {error}"),
            }
        }
        kernel(image).unwrap();
    }
}

#[test]
fn what_is_no_kernel_is_named() {
    for (bytes, found) in [
        (&b""[..], "an empty file"),
        (b"\x1f\x8b\x08\0\0", "gzip data"),
        (b"#!/bin/sh\n", "a script"),
        (b"070701000", "a cpio archive"),
        (b"hello\nworld\n", "text"),
        (b"\0\0\0\0", "begins with zeros"),
        (b"\x01\x02\xff", "begins with the bytes 01 02 ff"),
    ] {
        let text = refusal(kernel(bytes.to_vec()));
        assert!(text.contains(found), "{text}");
        assert!(text.contains("vmlinuz"), "{text}");
    }
}

#[test]
fn kernels_for_other_machines_are_refused() {
    let old = refusal(kernel(changed(0x206, &0x20bu16.to_le_bytes())));
    assert!(old.contains("boot protocol is 2.11"), "{old}");
    let narrow = refusal(kernel(changed(0x236, &[0])));
    assert!(narrow.contains("32-bit kernel"), "{narrow}");
    let low = refusal(kernel(changed(0x211, &[0])));
    assert!(low.contains("zImage"), "{low}");

    let mut arm = elf(true, &PAYLOAD);
    put(&mut arm, 18, &183u16.to_le_bytes());
    let arm = refusal(kernel(arm));
    assert!(arm.contains("machine 183"), "{arm}");
    let mut noteless = elf(true, &PAYLOAD);
    // The type of the second program header.
    put(&mut noteless, 64 + 56, &0u32.to_le_bytes());
    let noteless = refusal(kernel(noteless));
    assert!(noteless.contains("without a PVH entry"), "{noteless}");
    let mut big_endian = elf(true, &PAYLOAD);
    big_endian[5] = 2;
    refusal(kernel(big_endian));
}

#[test]
fn absurd_sizes_are_refused() {
    let text = refusal(kernel(changed(0x1f4, &u32::MAX.to_le_bytes())));
    assert!(text.contains("cut short"), "{text}");
    for (offset, value) in [(0x258, &u64::MAX.to_le_bytes()[..]), (0x260, &[0xff; 4])] {
        let (_, entry) = boot(16 * MIB, changed(offset, value), None, "");
        let text = refusal(entry);
        assert!(text.contains("more than any guest has"), "{text}");
    }

    // Fields of the first program header of a 64-bit file: offset, address, bytes in file and in memory.
    let field = |offset: usize, value: u64| {
        let mut image = elf(true, &PAYLOAD);
        put(&mut image, 64 + offset, &value.to_le_bytes());
        boot(16 * MIB, image, None, "").1
    };
    for (offset, value) in [
        (8, u64::MAX),
        (24, 0),
        (24, u64::MAX),
        (24, GIB),
        (32, u64::MAX),
        (32, ELF_MEMORY + 1),
        (40, u64::MAX),
        (40, 16 * MIB),
    ] {
        refusal(field(offset, value));
    }
    // The size of the notes, in the second program header.
    let mut image = elf(true, &PAYLOAD);
    put(&mut image, 64 + 56 + 32, &(1u64 << 40).to_le_bytes());
    assert!(refusal(kernel(image)).contains("ELF notes"));
    // The number of program headers.
    let mut image = elf(true, &PAYLOAD);
    put(&mut image, 56, &u16::MAX.to_le_bytes());
    assert!(refusal(kernel(image)).contains("65535 ELF program headers"));
}

#[test]
fn memory_that_is_too_small_is_left_alone() {
    // 4 MiB hold the kernel, which ends at 3 MiB, but not an initramfs of 2 MiB.
    let (ram, entry) = boot(4 * MIB, bzimage(&PAYLOAD), Some(2 << 20), "x");
    let text = refusal(entry);
    assert!(
        text.contains("need 5 MiB below 3 GiB, there are 4 MiB"),
        "{text}"
    );
    assert!(read(&ram, 0, 4 << 20).iter().all(|&byte| byte == 0));
    // More memory does not help where the kernel's own limit is the lower one.
    let image = changed(0x22c, &(4 * MIB - 1).to_le_bytes()[..4]);
    let text = refusal(boot(16 * MIB, image, Some(2 << 20), "").1);
    assert!(text.contains("between 0x300000 and 0x400000"), "{text}");
}

#[test]
fn command_lines_are_checked() {
    let long = "x".repeat(2048);
    for image in [bzimage(&PAYLOAD), elf(false, &PAYLOAD)] {
        let text = refusal(boot(16 * MIB, image.clone(), None, &long).1);
        assert!(
            text.contains("2048 bytes, this kernel takes at most 2047"),
            "{text}"
        );
        let text = refusal(boot(16 * MIB, image.clone(), None, "a\0b").1);
        assert!(text.contains("zero byte at offset 1"), "{text}");
        boot(16 * MIB, image, None, &long[1..]).1.unwrap();
    }
    let small = changed(0x238, &255u32.to_le_bytes());
    refusal(boot(16 * MIB, small, None, &long[..256]).1);
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let text = refusal(Kernel::open(&folder.path().join("none")));
    assert!(
        text.contains("cannot read kernel") && text.contains("none"),
        "{text}"
    );
    let text = refusal(Kernel::open(folder.path()));
    assert!(text.contains("not a regular file"), "{text}");

    let (layout, ram) = memory(16 * MIB);
    let kernel = kernel(bzimage(&PAYLOAD)).unwrap();
    let with = |path| load(&ram, &layout, &kernel, Some(path), "", &machine());
    let text = refusal(with(folder.path()));
    assert!(
        text.contains("initramfs") && text.contains("not a regular file"),
        "{text}"
    );
    let text = refusal(with(file(b"").path()));
    assert!(text.contains("is empty"), "{text}");
}

/// Parses and, if it is taken, loads: nothing may panic.
fn try_to_boot(image: Vec<u8>) {
    let (layout, ram) = memory(16 * MIB);
    if let Ok(kernel) = kernel(image) {
        let _ = load(&ram, &layout, &kernel, None, "x", &machine());
    }
}

proptest! {
    #[test]
    fn random_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        try_to_boot(bytes);
    }

    #[test]
    fn random_headers_do_no_harm(
        kind in 0..3,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..16),
    ) {
        let mut image = match kind {
            0 => bzimage(&PAYLOAD),
            kind => elf(kind == 1, &PAYLOAD),
        };
        // Behind the magic numbers, or nearly all of them would be refused for those.
        let first = if kind == 0 { 0x206 } else { 6 };
        for (at, value) in changes {
            let at = first + at.index(image.len() - first);
            image[at] = value;
        }
        try_to_boot(image);
    }
}
