//! Builds `pulse`, the bare guest: 32-bit code from pulse/, linked to one ELF file that the library embeds.

#![allow(missing_docs)]

use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCES: [&str; 6] = [
    "entry.S", "main.c", "params.c", "serial.c", "time.c", "work.c",
];

/// General registers of an i486 only, so that instruction emulators run it; no library, no start files.
const FLAGS: [&str; 17] = [
    "-m32",
    "-march=i486",
    "-Os",
    "-ffreestanding",
    "-nostdinc",
    "-fno-builtin",
    "-fno-pic",
    "-fno-pie",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fcf-protection=none",
    "-mgeneral-regs-only",
    "-std=c11",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-c",
];

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program)
        .args(arguments)
        .status()
        .unwrap_or_else(|error| {
            panic!("pulse is built with {program}, which does not start ({error}): apt-get install gcc binutils")
        });
    assert!(
        status.success(),
        "{program} {} ended with {status}",
        arguments.join(" ")
    );
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of the build are UTF-8")
}

fn main() {
    println!("cargo::rerun-if-changed=pulse");
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let objects: Vec<PathBuf> = SOURCES
        .iter()
        .map(|name| {
            let object = out.join(name).with_extension("o");
            let source = Path::new("pulse").join(name);
            run(
                "gcc",
                &[&FLAGS[..], &["-o", text(&object), text(&source)]].concat(),
            );
            object
        })
        .collect();

    let elf32 = out.join("pulse32.elf");
    let mut link = vec![
        "-m",
        "elf_i386",
        "-static",
        "-z",
        "max-page-size=4096",
        "-z",
        "noexecstack",
        "--no-warn-rwx-segments",
        "--build-id=none",
        "-T",
        "pulse/pulse.ld",
        "-o",
        text(&elf32),
    ];
    link.extend(objects.iter().map(|object| text(object)));
    run("ld", &link);
    // Loaders of Linux kernels want a 64-bit ELF header, whatever code is inside.
    let elf = out.join("pulse.elf");
    run(
        "objcopy",
        &[
            "--strip-all",
            "-I",
            "elf32-i386",
            "-O",
            "elf64-x86-64",
            text(&elf32),
            text(&elf),
        ],
    );
}
