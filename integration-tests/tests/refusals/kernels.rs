//! Files that are no kernels, kernels cut short, and what else does not go into a guest.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use integration_tests::ferry::{Ferry, Image};
use tempfile::TempDir;

use super::support::{STEP, ferry, refuses, text};

const ERROR: i32 = 1;

/// A file with these bytes.
fn file(folder: &TempDir, name: &str, bytes: &[u8]) -> String {
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    text(&path).to_owned()
}

fn run(kernel: &str) -> Command {
    ferry(&["run", kernel])
}

#[test]
fn what_is_not_a_kernel() {
    let folder = TempDir::new().unwrap();
    let written = |name, bytes: &[u8]| file(&folder, name, bytes);
    for (path, parts) in [
        (written("empty", b""), ["is not a kernel", "an empty file"]),
        (
            written("text", b"# ferry\n\nA VMM"),
            ["is not a kernel", "text"],
        ),
        (
            written("gz", b"\x1f\x8b\x08\0\0\0\0\0"),
            ["is not a kernel", "unpack it"],
        ),
        (
            written("zeros", &[0; 4096]),
            ["is not a kernel", "begins with zeros"],
        ),
        (
            written("cpio", b"070701000000"),
            ["is not a kernel", "an initramfs?"],
        ),
        (
            text(folder.path()).to_owned(),
            ["not a regular file", "give the path"],
        ),
        (
            "/dev/zero".to_owned(),
            ["not a regular file", "give the path"],
        ),
        (
            "/nowhere/vmlinuz".to_owned(),
            ["cannot read kernel", "check the path"],
        ),
        (
            "/bin/sh".to_owned(),
            ["without a PVH entry", "give an x86-64 bzImage"],
        ),
    ] {
        refuses(run(&path), ERROR, &parts);
    }
}

#[test]
fn kernels_cut_short() {
    let folder = TempDir::new().unwrap();
    let vmlinuz = fs::read(Image::built("cloud").unwrap().kernel).unwrap();
    for (kernel, name) in [(&vmlinuz[..], "vmlinuz"), (guest_images::PULSE, "vmlinux")] {
        for bytes in [3, 100, 600, 1000, kernel.len() / 2, kernel.len() * 9 / 10] {
            let cut = file(
                &folder,
                &format!("{name}-{bytes}"),
                &kernel[..bytes.min(kernel.len())],
            );
            // Cut before what tells a bzImage, it may be anything.
            let part = match (name, bytes) {
                ("vmlinuz", ..0x206) | (_, ..4) => "too few for a kernel",
                _ => "is cut short",
            };
            refuses(run(&cut), ERROR, &[part, &cut, &format!("{bytes} bytes")]);
        }
    }
}

/// The bare guest's image takes an initramfs like any ELF kernel.
#[test]
fn what_does_not_go_in_with_a_kernel() {
    let folder = TempDir::new().unwrap();
    let kernel = file(&folder, "vmlinux", guest_images::PULSE);
    let large = folder.path().join("large");
    File::create(&large).unwrap().set_len(1 << 30).unwrap();
    for (initramfs, parts) in [
        (
            file(&folder, "empty", b""),
            ["is empty", "give a cpio archive"],
        ),
        (
            "/nowhere/initrd".to_owned(),
            ["cannot read initramfs", "check the path"],
        ),
        (
            text(folder.path()).to_owned(),
            ["not a regular file", "give the path"],
        ),
        (
            text(&large).to_owned(),
            ["memory is too small", "give more memory"],
        ),
    ] {
        let args = [
            "run",
            &kernel,
            "--memory",
            "128M",
            "--initramfs",
            &initramfs,
        ];
        refuses(ferry(&args), ERROR, &parts);
    }
    let args = ["run", &kernel, "--cmdline", &"x".repeat(2048)];
    refuses(ferry(&args), 2, &["command line of 2048 bytes"]);
}

/// On a KVM that emulates, Linux would hang without a word; elsewhere it speaks.
#[test]
fn linux_hangs_nowhere_silently() {
    let kernel = Image::built("cloud").unwrap().kernel;
    let check = ferry(&["check", "--json"]).output().unwrap();
    let check: serde_json::Value = serde_json::from_slice(&check.stdout).unwrap();
    match check["facts"]["guest_execution"]["kind"].as_str().unwrap() {
        "emulated" => refuses(
            run(text(&kernel)),
            ERROR,
            &["hangs silently", "ferry check", text(&kernel)],
        ),
        "native" => speaks(&kernel),
        other => panic!("guests are executed in a way that is {other}: {check:#}"),
    }
}

fn speaks(kernel: &Path) {
    let mut guest = Ferry::start(None, &["run", text(kernel)]).unwrap();
    let limit = STEP.max(Duration::from_secs(180));
    guest
        .wait_console("Linux", limit, |line| line.contains("Linux version"))
        .unwrap();
}
