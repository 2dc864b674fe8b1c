//! Moves with compression and differences: every page is what it must be, in fewer bytes where that can be.

use crate::support;

use std::sync::Arc;
use std::time::Duration;

use migration::cancel::CancelToken;
use migration::options::{OnTimeout, Options, ThrottlePolicy};
use migration::pack::{Codec, Compress};
use migration::report::{Outcome, Report};
use migration::source::migrate;
use migration::wire::TcpTarget;
use support::run::{options, receiving_streams, travel, verify};
use support::{Content, Faults, World, Writer, boot};

const MIB: u64 = support::MIB;

/// Moves a guest over streams of its own; gives the report, once all pages were found right.
fn moved(world: &Arc<World>, options: &Options) -> Report {
    let (address, receiving) = receiving_streams(world);
    let target = TcpTarget::new(address);
    let cancel = CancelToken::new().unwrap();
    let moved = migrate(boot(world), &target, options, &cancel, &mut |_| {});
    let report = moved.report;
    assert_eq!(report.outcome, Outcome::Completed, "{}", report.reason);
    verify(world, receiving.join().unwrap().unwrap());
    report
}

fn idle(content: Content) -> Arc<World> {
    World::of(content, &[24, 8], Writer::default(), Faults::default())
}

fn compressed(compress: Compress) -> Options {
    Options {
        compress,
        ..options()
    }
}

/// Bytes of the pages that were sent with bytes.
fn page_bytes(report: &Report) -> u64 {
    let sent = report.rounds.iter().map(|round| round.sent_pages);
    sent.sum::<u64>() * 4096
}

#[test]
fn text_takes_less_than_a_third_and_noise_not_a_byte_more() {
    for codec in Codec::ALL {
        let options = compressed(Compress::Always(codec));
        let text = moved(&idle(Content::Text), &options);
        assert!(text.wire_bytes * 3 < page_bytes(&text), "{text:?}");
        assert!(text.compressed_bytes > 0 && text.compressed_bytes < text.wire_bytes);
        let noise = moved(&idle(Content::Noise), &options);
        assert_eq!(noise.compressed_bytes, 0);
        let plain = moved(&idle(Content::Noise), &compressed(Compress::None));
        let signs = plain.wire_bytes / 100;
        assert!(noise.wire_bytes.abs_diff(plain.wire_bytes) < signs);
        // A third of the pages is stamped; half of these is text.
        let mixed = moved(&idle(Content::Mixed), &options);
        let half = page_bytes(&mixed) / 2;
        assert!(mixed.wire_bytes < half * 3 / 2, "{mixed:?}");
        assert!(mixed.wire_bytes > half, "{mixed:?}");
        for report in [text, noise, mixed] {
            assert_eq!(report.delta_bytes, 0);
        }
    }
}

#[test]
fn a_guest_that_writes_arrives_whole_however_it_is_packed() {
    let writer = Writer {
        pages: 100..1500,
        per_ms: 20,
    };
    let every = [
        Compress::None,
        Compress::Auto,
        Compress::Always(Codec::Lz4),
        Compress::Always(Codec::Zstd),
    ];
    for compress in every {
        for delta_cache in [None, Some(MIB)] {
            for (streams, content) in [
                (1, Content::Counter),
                (3, Content::Blinking),
                (2, Content::Mixed),
            ] {
                let world = World::of(content, &[8, 4], writer.clone(), Faults::default());
                let options = Options {
                    compress,
                    delta_cache,
                    streams,
                    ..options()
                };
                moved(&world, &options);
            }
        }
    }
}

/// Rounds without end on a link that is slow, over which the guest writes the same pages again and again.
fn many_rounds(pages: u64) -> (Arc<World>, Options) {
    let writer = Writer {
        pages: 0..pages,
        per_ms: 64,
    };
    let world = World::of(Content::Counter, &[4], writer, Faults::default());
    let options = Options {
        bandwidth: Some(16_000_000),
        downtime_limit: Duration::from_millis(2),
        max_rounds: 8,
        throttle: ThrottlePolicy::Off,
        on_timeout: OnTimeout::SwitchOver,
        ..options()
    };
    (world, options)
}

/// What went over in all rounds but the first: bytes of the pages, and on the wire.
fn resent(report: &Report) -> (u64, u64) {
    let again = &report.rounds[1..];
    let pages: u64 = again.iter().map(|round| round.sent_pages).sum();
    let wire = again.iter().map(|round| round.wire_bytes).sum();
    assert!(pages > 0, "{report:?}");
    (pages * 4096, wire)
}

#[test]
fn counters_in_pages_go_again_in_less_than_a_tenth_of_the_bytes() {
    let (world, options) = many_rounds(64);
    let plain = moved(&world, &options);
    let (pages, wire) = resent(&plain);
    assert!(wire > pages, "{plain:?}");
    for streams in [1, 2] {
        let (world, options) = many_rounds(64);
        let options = Options {
            streams,
            delta_cache: Some(MIB),
            ..options
        };
        let report = moved(&world, &options);
        let (pages, wire) = resent(&report);
        assert!(wire * 10 <= pages, "{wire} bytes for {pages}: {report:?}");
        assert!(report.delta_bytes > 0 && report.delta_bytes < wire);
        assert_eq!(report.compressed_bytes, 0);
    }
}

/// A working set of which the cache holds a quarter.
#[test]
fn a_cache_that_is_too_small_helps_a_little_and_harms_nothing() {
    let (world, options) = many_rounds(1000);
    let options = Options {
        delta_cache: Some(MIB),
        ..options
    };
    let report = moved(&world, &options);
    let (pages, wire) = resent(&report);
    assert!(wire < pages, "{report:?}");
    assert!(report.delta_bytes > 0);
}

#[test]
fn auto_compresses_what_a_slow_link_is_glad_of_and_nothing_else() {
    let slow = |content| {
        let world = World::of(content, &[96], Writer::default(), Faults::default());
        let options = Options {
            // So slow that packing pays on a busy machine too.
            bandwidth: Some(8_000_000),
            streams: 1,
            ..compressed(Compress::Auto)
        };
        moved(&world, &options)
    };
    let text = slow(Content::Text);
    assert!(text.compressed_bytes > 0, "{text:?}");
    assert!(text.wire_bytes < page_bytes(&text) * 3 / 4, "{text:?}");
    let noise = slow(Content::Noise);
    assert_eq!(noise.compressed_bytes, 0, "{noise:?}");
}

#[test]
fn a_second_attempt_begins_with_an_empty_cache() {
    let writer = Writer {
        pages: 0..200,
        per_ms: 50,
    };
    let faults = Faults {
        load: true,
        ..Faults::default()
    };
    let world = World::of(Content::Counter, &[4], writer.clone(), faults);
    let options = Options {
        compress: Compress::Always(Codec::Lz4),
        delta_cache: Some(MIB),
        ..options()
    };
    let (failed, _) = travel(&world, boot(&world), &options);
    assert_eq!(failed.report.outcome, Outcome::Failed);
    let guest = support::run::back(&world, failed.guest);
    // To a destination that has nothing of the first attempt, and then back and forth.
    let (failed, _) = travel(&world, guest, &options);
    verify(&world, support::run::back(&world, failed.guest));
    let world = World::of(Content::Counter, &[4], writer, Faults::default());
    let mut guest = boot(&world);
    for _ in 0..3 {
        let (moved, arrived) = travel(&world, guest, &options);
        assert_eq!(
            moved.report.outcome,
            Outcome::Completed,
            "{}",
            moved.report.reason
        );
        guest = arrived.unwrap();
    }
    verify(&world, guest);
}
