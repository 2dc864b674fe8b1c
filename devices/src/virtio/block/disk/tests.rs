//! The file behind a disk: what is opened and refused, what lasts, and who holds its lock.

use std::io::Write;
use std::os::unix::fs::symlink;

use tempfile::{NamedTempFile, TempDir, tempdir};

use super::*;

const READ: DiskOptions = DiskOptions {
    read_only: true,
    direct: false,
};
const WRITE: DiskOptions = DiskOptions {
    read_only: false,
    direct: false,
};

fn file(bytes: u64) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes).unwrap();
    file
}

fn refusal(path: &Path, options: DiskOptions) -> String {
    Disk::open(path, options).unwrap_err().to_string()
}

#[test]
fn what_is_no_disk_is_refused_with_a_remedy() {
    let folder: TempDir = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let text = refusal(&at("none"), WRITE);
    assert!(
        text.contains("none does not exist") && text.contains("truncate -s"),
        "{text}"
    );
    assert!(refusal(folder.path(), READ).contains("neither a file nor a block device"));
    // Opening it would wait for a reader for ever.
    nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    symlink(at("pipe"), at("link")).unwrap();
    assert!(refusal(&at("link"), WRITE).contains("neither a file nor a block device"));
    for bytes in [0, 511, 513, 1_000_000] {
        let text = refusal(file(bytes).path(), WRITE);
        assert!(
            text.contains(&format!("has {bytes} bytes: a disk has a multiple of 512")),
            "{text}"
        );
    }
}

#[test]
fn one_opening_may_hold_the_lock_for_writing() {
    let file = file(4096);
    let open = |options| Disk::open(file.path(), options).unwrap();
    let (one, other, reader) = (open(WRITE), open(WRITE), open(READ));
    one.lock().unwrap();
    one.lock().unwrap();
    for disk in [&other, &reader] {
        let text = disk.lock().unwrap_err().to_string();
        assert!(
            text.contains("is in use") && text.contains("holds its lock"),
            "{text}"
        );
    }
    one.unlock().unwrap();
    other.lock().unwrap();
    assert!(one.lock().is_err());
    drop(other);
    // Readers share it, and keep writers out.
    reader.lock().unwrap();
    open(READ).lock().unwrap();
    assert!(one.lock().is_err());
    reader.unlock().unwrap();
    one.lock().unwrap();
}

#[test]
fn a_disk_that_has_lost_something_never_says_again_that_all_is_there() {
    let file = file(4096);
    let disk = Disk::open(file.path(), WRITE).unwrap();
    disk.sync().unwrap();
    disk.lose_writes();
    for _ in 0..2 {
        assert!(
            disk.sync()
                .unwrap_err()
                .to_string()
                .contains("did not reach")
        );
    }
}

#[test]
fn ranges_are_zeroed_or_given_back() {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&[7; 5 << 20]).unwrap();
    let disk = Disk::open(file.path(), WRITE).unwrap();
    let mut expected = vec![7; 5 << 20];
    for (offset, bytes, unmap) in [
        (512, 1024, false),
        (1 << 20, 3 << 20, true),
        (4096, 512, true),
    ] {
        disk.zero(offset, bytes, unmap).unwrap();
        let (offset, bytes) = (
            usize::try_from(offset).unwrap(),
            usize::try_from(bytes).unwrap(),
        );
        expected[offset..offset + bytes].fill(0);
        assert!(std::fs::read(file.path()).unwrap() == expected);
    }
    disk.discard(4 << 20, 1 << 20).unwrap();
    assert_eq!(std::fs::metadata(file.path()).unwrap().len(), 5 << 20);
    disk.forget();
}

#[test]
fn a_bounce_buffer_has_the_alignment_and_no_more() {
    let mut bounce = Bounce::default();
    for alignment in [512u32, 1024, 4096] {
        let wanted = usize::try_from(alignment).unwrap();
        let address = bounce.just(alignment).as_ptr().addr();
        assert_eq!(address % (2 * wanted), wanted);
        let room = bounce.room(u64::MAX, alignment);
        assert_eq!((room.len(), room.as_ptr().addr() % wanted), (1 << 20, 0));
    }
}
