//! Disks that cannot be used, here or where the guest is to go: it does not start, or stays and notices nothing.

use integration_tests::ferry::{DiskImage, Ferry, Netns};

use super::support::{beating, ferry, refuses, text, ticks_on};

const USAGE: i32 = 2;
const ERROR: i32 = 1;
const MIB: u64 = 1 << 20;

fn run(disk: &str) -> std::process::Command {
    ferry(&[
        "run", "--pulse", "beat=1", "--memory", "64M", "--disk", disk,
    ])
}

#[test]
fn disks_that_cannot_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let none = folder.path().join("none.img");
    refuses(
        run(text(&none)),
        ERROR,
        &["none.img does not exist", "truncate -s"],
    );
    refuses(
        run(text(folder.path())),
        ERROR,
        &["is neither a file nor a block device"],
    );
    for bytes in [0, 1000, MIB + 1] {
        let disk = DiskImage::new(bytes).unwrap();
        let said = format!("has {bytes} bytes: a disk has a multiple of 512");
        refuses(run(disk.path()), ERROR, &[&said]);
    }
    let disk = DiskImage::new(MIB).unwrap();
    for (options, part) in [
        ("queues=0", "\"0\" queues: take 1 to 8"),
        ("queues=9", "\"9\" queues: take 1 to 8"),
        ("rw", "there are ro, direct=on and queues=N"),
    ] {
        refuses(run(&format!("{},{options}", disk.path())), USAGE, &[part]);
    }
    let twice = ["--disk", disk.path(), "--disk", disk.path()];
    let twice = [&["run", "--pulse", "beat=1"], &twice[..]].concat();
    refuses(ferry(&twice), USAGE, &["is given twice"]);
}

#[test]
fn a_disk_has_one_guest() {
    let disk = DiskImage::new(MIB).unwrap();
    let guest = beating(None, &["--disk", disk.path()]);
    for options in ["", ",ro", ",direct=on"] {
        let again = run(&format!("{}{options}", disk.path()));
        refuses(
            again,
            ERROR,
            &["is in use", disk.path(), "end that one first"],
        );
    }
    ticks_on(&guest);
    drop(guest);
    // Readers are many.
    let shared = format!("{},ro", disk.path());
    let _one = beating(None, &["--disk", &shared]);
    let _other = beating(None, &["--disk", &shared]);
    refuses(run(disk.path()), ERROR, &["is in use"]);
}

#[test]
fn a_destination_without_the_guests_disk() {
    let netns = Netns::new("disks").unwrap();
    let disk = DiskImage::new(MIB).unwrap();
    let (smaller, larger) = (DiskImage::new(MIB - 512), DiskImage::new(2 * MIB));
    let (smaller, larger) = (smaller.unwrap(), larger.unwrap());
    let guest = beating(Some(&netns), &["--disk", disk.path()]);
    let target = "tcp:127.0.0.1:4700";
    let numbered = |number: u32, path: &str| format!("{number}={path}");
    for (named, parts) in [
        (None, vec!["disk 0 has no path here", "--disk 0=PATH"]),
        (
            Some(numbered(1, disk.path())),
            vec!["disk 0 has no path here"],
        ),
        (
            Some(numbered(0, smaller.path())),
            vec!["disk 0 has 1048576 bytes", "here has 1048064"],
        ),
        (
            Some(numbered(0, larger.path())),
            vec!["disk 0 has 1048576 bytes", "here has 2097152"],
        ),
        (
            Some(numbered(0, disk.path()) + ",ro"),
            vec!["disk 0 is writable", "here is read-only"],
        ),
    ] {
        let args: Vec<&str> = named.iter().flat_map(|disk| ["--disk", disk]).collect();
        let mut receiver = Ferry::receive(Some(&netns), target, &args).unwrap();
        let moved = guest.migrate(target, &[]).unwrap();
        assert_eq!(moved.status, 1, "{moved:?}");
        assert_eq!(moved.report["outcome"], "failed");
        assert_eq!(moved.report["rounds"].as_array().unwrap().len(), 0);
        for part in parts {
            assert!(moved.stderr.contains(part), "{named:?}: {}", moved.stderr);
        }
        println!("{}", moved.stderr.trim());
        receiver.wait_end(super::support::STEP).unwrap();
        ticks_on(&guest);
        assert!(!disk.is_free());
    }
    let gone = numbered(0, "/nowhere/disk.img");
    let missing = ["receive", "--listen", "unix:/tmp/ferry-no", "--disk", &gone];
    refuses(
        ferry(&missing),
        ERROR,
        &["/nowhere/disk.img does not exist"],
    );
}
