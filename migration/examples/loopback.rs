//! How fast the engine moves pages on this machine: one fake guest to another over loopback TCP.
//!
//! `cargo run --release -p migration --example loopback -- [MiB] [zero pages in percent] [1: destination warm]
//! [streams]`
#![allow(clippy::unwrap_used)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::atomic::Ordering;

use migration::cancel::CancelToken;
use migration::guest::PausedGuest;
use migration::options::Options;
use migration::report::Outcome;
use migration::source::migrate;
use migration::wire::TcpTarget;
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};
use support::run::{options, receiving_streams, verify};
use support::{World, unbooted};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: u64| arguments.next().map_or(default, |n| n.parse().unwrap());
    let (mib, zeros, warm, streams) = (number(1024), number(0), number(0), number(2));
    let world = World::idle(&[mib]);
    world.warm.store(warm != 0, Ordering::SeqCst);
    let guest = unbooted(&world);
    for page in 0..world.layout.pages() {
        if page % 100 >= zeros {
            guest.0.stamp(page);
        }
    }
    let (address, receiving) = receiving_streams(&world);
    let options = Options {
        streams: u16::try_from(streams).unwrap(),
        ..options()
    };
    let cancel = CancelToken::new().unwrap();
    let cpu = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap();
    let target = TcpTarget::new(address);
    let moved = migrate(
        guest.resume().unwrap(),
        &target,
        &options,
        &cancel,
        &mut |_| {},
    );
    let cpu = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap() - cpu;
    let report = moved.report;
    assert_eq!(report.outcome, Outcome::Completed, "{}", report.reason);
    for round in &report.rounds {
        println!(
            "round {}: {:.1} ms, {} pages sent, {} zero, {:.2} GB/s",
            round.index,
            round.duration_ms,
            round.sent_pages,
            round.zero_pages,
            round.wire_bytes as f64 / round.duration_ms / 1e6,
        );
    }
    println!(
        "{} ms of CPU on both sides together, in {:.0} ms",
        cpu.num_milliseconds(),
        report.total_ms
    );
    println!(
        "blackout {:.2} ms (predicted {:.2}): {:?}",
        report.blackout_ms.unwrap(),
        report.predicted_blackout_ms.unwrap(),
        report.blackout.unwrap()
    );
    verify(&world, receiving.join().unwrap().unwrap());
}
