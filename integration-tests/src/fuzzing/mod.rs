//! What hostile bytes must not do: one plain function a target, that takes any bytes and panics where a promise
//! is broken.
//!
//! The same functions run three times: over the corpus in the tree and over bytes that proptest makes of it
//! (`tests/together/fuzzing.rs`, stable Rust, some seconds), and under libFuzzer with AddressSanitizer (`../fuzz`, nightly,
//! as long as one likes). So every finding becomes a file in `fuzz/corpus`, and from then on a test.
//!
//! | target | what is hostile | what must hold |
//! |---|---|---|
//! | `wire_frames` | preamble and frames | what is understood is said again in the same bytes |
//! | `wire_session` | a whole source, a whole destination | one guest at most, and the source's comes back unless GO was said |
//! | `snapshot_file` | a snapshot, or a chain of two | a guest only out of files that are what was written, and it does not run by itself |
//! | `unpack` | packed pages, deltas | only the pages named are written, each as a whole or not at all |
//! | `state_sections` | every section of a state | refused, or a state that is saved as the same bytes |
//! | `virtio_net`, `virtio_rng`, `virtio_blk` | the guest: rings, registers, its network | bounded work; only its buffers are written, and every such page is marked |
//! | `virtio_balloon` | the guest: lists and reports of pages as well | as above; besides its buffers only whole pages of its memory are given away |
//! | `bus` | accesses to ports and registers | no panic |
//! | `control_api` | requests on the control socket | understood in one way, however they trickle in |
//! | `kernel_file` | kernels and initramfs | refused before memory is touched, or loaded within it |
//! | `sweep_file` | files for `ferry study` | a bounded number of moves |
//! | `cli_units` | the command line's words, pulse's, dirty curves | what is shown is read as the same |
#![allow(clippy::unwrap_used, reason = "a panic is the finding")]

mod bus;
mod control;
mod input;
mod kernel;
mod parts;
mod run;
mod session;
mod state;
mod texts;
mod unpack;
mod virtio;
mod wire;

pub use run::{Figures, corpus, fuzz_all, write_seeds};

/// One thing to fuzz.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, that of its corpus and of its program in `../fuzz`.
    pub name: &'static str,
    /// Takes any bytes; panics if a promise is broken.
    pub run: fn(&[u8]),
    /// Well-formed inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// The longest input that is tried.
    pub max_len: usize,
    /// The most that may be allocated at a time, in MiB.
    pub malloc_mb: u32,
}

/// All of them. What a target may allocate at a time is what its inputs may ask for, rounded up: a packed batch and a
/// step of a long frame are 1 MiB each, a study's list of moves a few more.
pub const TARGETS: [Target; 14] = [
    target("wire_frames", wire::run, wire::seeds, 4096, 2),
    target("wire_session", session::run, session::seeds, 1024, 8),
    target(
        "snapshot_file",
        session::file::run,
        session::file::seeds,
        1024,
        8,
    ),
    target("unpack", unpack::run, unpack::seeds, 4096, 8),
    target("state_sections", state::run, state::seeds, 8192, 2),
    target("virtio_net", virtio::run_net, virtio::seeds_net, 4096, 2),
    target("virtio_rng", virtio::run_rng, virtio::seeds_rng, 4096, 2),
    target("virtio_blk", virtio::run_blk, virtio::seeds_blk, 4096, 2),
    target(
        "virtio_balloon",
        virtio::run_balloon,
        virtio::seeds_balloon,
        4096,
        2,
    ),
    target("bus", bus::run, bus::seeds, 1024, 2),
    target("control_api", control::run, control::seeds, 10_240, 2),
    target("kernel_file", kernel::run, kernel::seeds, 16_384, 8),
    target("sweep_file", texts::run_sweep, texts::seeds_sweep, 4096, 64),
    target("cli_units", texts::run_units, texts::seeds_units, 1024, 2),
];

const fn target(
    name: &'static str,
    run: fn(&[u8]),
    seeds: fn() -> Vec<Vec<u8>>,
    max_len: usize,
    malloc_mb: u32,
) -> Target {
    Target {
        name,
        run,
        seeds,
        max_len,
        malloc_mb,
    }
}

/// Runs the target of that name; for the programs of `../fuzz`.
///
/// # Panics
/// A promise is broken, or there is no such target.
pub fn run(name: &str, input: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    (target.run)(input);
}
