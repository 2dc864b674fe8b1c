//! Predictions: against single simulated moves of other chance and of pages one by one, and what they say of guests
//! whose end is known beforehand.
#![allow(clippy::cast_possible_truncation)]

use std::time::{Duration, Instant};

use migration::options::{OnTimeout, Options, ThrottlePolicy};
use migration::predict::{
    Costs, Curve, GuestModel, LinkModel, Memory, Part, Prediction, Question, Setting, Verdict,
    Writes, predict, simulate,
};
use proptest::prelude::*;

const GBIT: u64 = 118_000_000;
const MIB: u64 = 256;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn options(throttle: ThrottlePolicy, downtime: u64) -> Options {
    Options {
        downtime_limit: ms(downtime),
        throttle,
        ..Options::default()
    }
}

/// A guest of so many MiB over 1 Gbit/s.
fn question(mib: u64, writes: Vec<Part>, throttle: ThrottlePolicy, downtime: u64) -> Question {
    Question::new(
        Memory::full(mib << 20),
        Writes::known(writes),
        LinkModel::of(GBIT, ms(1)),
        options(throttle, downtime),
    )
}

/// The curve that such parts have on average.
fn curve(parts: &[Part]) -> Curve {
    let written = |part: &Part, time: f64| {
        let (pages, per_s) = (part.pages as f64, part.writes_per_s());
        match part.writing {
            migration::predict::Writing::Sweep { .. } => (per_s * time).min(pages),
            _ => pages * (1.0 - (-per_s * time / pages).exp()),
        }
    };
    let times = [125, 250, 500, 1000, 2000, 4000, 8000].map(ms);
    let point = |time: Duration| {
        let pages = parts.iter().map(|part| written(part, time.as_secs_f64()));
        (time, pages.sum::<f64>() as u64)
    };
    Curve::new(times.into_iter().map(point).collect()).unwrap()
}

/// With 1 Gbit/s, 1 GiB takes 9.1 s. This guest writes 3.5 times the link.
fn heavy() -> Vec<Part> {
    vec![Part::random(512 * MIB, 100_000.0)]
}

/// A move that works on the guest's own processors takes its work, and the guest has the less to send.
#[test]
fn a_guest_that_is_crowded_out_writes_less_and_loses_work() {
    // Half of what the link carries.
    let writes = vec![Part::random(64 * MIB, 14_400.0)];
    let alone = question(256, writes, ThrottlePolicy::Auto, 300);
    let crowded = predict(&Question {
        left: 0.4,
        ..alone.clone()
    });
    let alone = predict(&alone);
    assert_eq!(alone.crowded_out_percent, 0.0);
    assert!((crowded.crowded_out_percent - 60.0).abs() < 1e-9);
    let lost = |told: &Prediction| told.guest_work_lost_percent.expected;
    assert!(lost(&alone) < 10.0, "{}", lost(&alone));
    assert!((55.0..65.0).contains(&lost(&crowded)), "{}", lost(&crowded));
    assert_eq!(crowded.throttled_ms.expected, 0.0);
    assert!(crowded.wire_bytes.expected < alone.wire_bytes.expected);
}

/// By single pages, and by a hundred cells; with other seeds: their means agree, and lie in the interval.
#[test]
fn the_mean_does_not_depend_on_the_grain() {
    for (throttle, writes) in [
        (ThrottlePolicy::Auto, heavy()),
        (ThrottlePolicy::Sdps, heavy()),
        (ThrottlePolicy::Auto, vec![Part::sweep(256 * MIB, 60_000.0)]),
        (ThrottlePolicy::Off, vec![Part::random(64 * MIB, 10_000.0)]),
    ] {
        let question = question(1024, writes.clone(), throttle, 100);
        let costs = Costs {
            bandwidth: GBIT,
            round_trip: ms(1),
            sync: Duration::from_micros(100),
            ..Costs::default()
        };
        let rest = 1024 * MIB - writes[0].pages;
        let parts = [
            vec![Part::still(rest / 2)],
            writes,
            vec![Part::still(rest - rest / 2)],
        ];
        let guest = GuestModel::new(parts.concat());
        let mean = |grain: u32| {
            let runs = (100..106).map(|seed| {
                let setting = Setting {
                    seed,
                    grain,
                    ..Setting::default()
                };
                simulate(&guest, &costs, &question.options, &setting)
            });
            let totals: Vec<f64> = runs.map(|run| run.total().as_secs_f64()).collect();
            totals.iter().sum::<f64>() / totals.len() as f64
        };
        let (fine, coarse) = (mean(u32::MAX), mean(100));
        assert!(
            (coarse / fine - 1.0).abs() < 0.03,
            "{throttle:?}: {fine} {coarse}"
        );
        let told = predict(&question);
        let expected = told.total_ms.expected / 1000.0;
        assert!(
            (expected / fine - 1.0).abs() < 0.05,
            "{throttle:?}: {fine} {told:?}"
        );
        assert!(told.total_ms.low / 1000.0 <= fine && fine <= told.total_ms.high / 1000.0);
    }
}

/// What a guest is known to do, and what its measured curve says of it, come to about the same.
#[test]
fn the_curve_says_about_what_the_guest_does() {
    for writes in [
        heavy(),
        vec![Part::sweep(512 * MIB, 100_000.0)],
        vec![
            Part::random(16 * MIB, 20_000.0),
            Part::random(400 * MIB, 4_000.0),
        ],
    ] {
        let known = question(1024, writes.clone(), ThrottlePolicy::Auto, 50);
        let seen = Question {
            writes: curve(&writes).fit(1024 * MIB),
            ..known.clone()
        };
        let (known, seen) = (predict(&known), predict(&seen));
        assert_eq!(known.verdict, seen.verdict);
        let off = seen.total_ms.expected / known.total_ms.expected;
        assert!((off - 1.0).abs() < 0.1, "{writes:?}: {known:?} {seen:?}");
        let bytes = seen.wire_bytes.expected as f64 / known.wire_bytes.expected as f64;
        assert!((bytes - 1.0).abs() < 0.1, "{writes:?}");
    }
}

#[test]
fn an_idle_guest_takes_the_time_of_its_memory() {
    let told = predict(&question(1024, vec![], ThrottlePolicy::Auto, 300));
    assert_eq!(told.verdict, Verdict::Converges);
    assert_eq!((told.certainty, told.throttle_percent.high), (1.0, 0));
    assert!(
        (told.total_ms.expected / 9_130.0 - 1.0).abs() < 0.02,
        "{told:?}"
    );
    assert_eq!(told.rounds.expected, 2);
    ordered(&told);
}

#[test]
fn zeros_and_untouched_pages_are_not_sent() {
    let mut question = question(4096, vec![], ThrottlePolicy::Auto, 300);
    question.memory.touched = 1024 * MIB;
    question.memory.zero = 0.5;
    let told = predict(&question);
    let half = 512.0 * f64::from(1 << 20);
    assert!(
        (told.wire_bytes.expected as f64 / half - 1.0).abs() < 0.02,
        "{told:?}"
    );
    assert_eq!(told.untouched_pages, 3072 * MIB);
    assert_eq!(told.zero_pages, 512 * MIB);
}

#[test]
fn a_guest_that_out_writes_the_link_has_to_be_throttled() {
    let off = predict(&question(1024, heavy(), ThrottlePolicy::Off, 50));
    assert_eq!(off.verdict, Verdict::DoesNotConverge);
    assert!(!off.converges && !off.completes);
    assert!(
        off.reason.contains("will not converge without throttling"),
        "{}",
        off.reason
    );
    assert!(
        off.reason.contains("with --throttle auto it would take"),
        "{}",
        off.reason
    );
    let auto = predict(&question(1024, heavy(), ThrottlePolicy::Auto, 50));
    assert_eq!(auto.verdict, Verdict::ConvergesThrottled);
    assert!(
        auto.converges && auto.throttle_percent.expected > 50,
        "{auto:?}"
    );
    assert!(auto.throttled_ms.expected > 1000.0, "{auto:?}");
    assert!(auto.blackout_ms.high <= 50.0, "{auto:?}");
    ordered(&auto);
    // Beyond the limit, as asked.
    let mut question = question(1024, heavy(), ThrottlePolicy::Off, 50);
    question.options.on_timeout = OnTimeout::SwitchOver;
    let switched = predict(&question);
    assert_eq!(switched.verdict, Verdict::DoesNotConverge);
    assert!(
        switched.completes && switched.blackout_ms.low > 1000.0,
        "{switched:?}"
    );
}

#[test]
fn a_limit_that_nothing_meets_is_said_to_be_one() {
    let mut question = question(1024, vec![], ThrottlePolicy::Auto, 1);
    question.link.round_trip = ms(100);
    let told = predict(&question);
    assert_eq!(told.verdict, Verdict::DoesNotConverge);
    assert!(
        told.reason.contains("even with no page left"),
        "{}",
        told.reason
    );
}

#[test]
fn within_one_host_no_page_is_sent() {
    let mut question = question(1 << 18, heavy(), ThrottlePolicy::Auto, 50);
    question.by_descriptor = true;
    let told = predict(&question);
    assert_eq!(told.verdict, Verdict::Converges);
    assert!(
        told.total_ms.high < 100.0 && told.rounds.expected == 1,
        "{told:?}"
    );
}

#[test]
fn the_same_question_has_the_same_answer_however_large_the_guest() {
    let mut question = question(256 << 10, curve_of_a_database(), ThrottlePolicy::Auto, 100);
    question.link = LinkModel::of(5_000_000_000, Duration::from_micros(100));
    let began = Instant::now();
    let first = predict(&question);
    println!("{:?} for {first:#?}", began.elapsed());
    assert_eq!(first, predict(&question));
    question.seed += 1;
    let other = predict(&question);
    assert_eq!(first.verdict, other.verdict);
    let off = first.total_ms.expected / other.total_ms.expected;
    assert!((off - 1.0).abs() < 0.05, "{first:?} {other:?}");
}

fn curve_of_a_database() -> Vec<Part> {
    vec![
        Part::random(2 << 10, 1_000_000.0),
        Part::random(4096 * MIB, 600_000.0),
        Part::sweep(65_536 * MIB, 100_000.0),
    ]
}

/// Every interval holds what is expected, and nothing is below nothing.
fn ordered(told: &Prediction) {
    let json = serde_json::to_value(told).unwrap();
    for (name, value) in json.as_object().unwrap() {
        let Some(expected) = value["expected"].as_f64() else {
            continue;
        };
        let (low, high) = (
            value["low"].as_f64().unwrap(),
            value["high"].as_f64().unwrap(),
        );
        assert!(
            0.0 <= low && low <= expected && expected <= high,
            "{name}: {value}"
        );
    }
    let again: Prediction = serde_json::from_value(json).unwrap();
    assert_eq!(again.verdict, told.verdict);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever is asked, there is an answer, and it makes sense.
    #[test]
    fn every_question_has_an_answer(
        bytes in 0u64..1 << 44,
        share in 0.0f64..1.5,
        zero in -1.0f64..2.0,
        points in proptest::collection::vec((1u64..4000, 0u64..1 << 30), 1..10),
        bandwidth in 0u64..20_000_000_000,
        rtt in 0u64..500_000,
        downtime in 1u64..3_000,
        policy in 0usize..4,
        seed in 0u64..u64::MAX,
    ) {
        let (mut time, mut pages) = (Duration::ZERO, 0);
        let points = points.into_iter().map(|(more, written)| {
            time += ms(more);
            pages += written;
            (time, pages)
        });
        let curve = Curve::new(points.collect()).unwrap();
        let memory = Memory {
            bytes,
            touched: (bytes as f64 / 4096.0 * share) as u64,
            zero,
        };
        let throttle = [
            ThrottlePolicy::Off,
            ThrottlePolicy::AutoConverge,
            ThrottlePolicy::Sdps,
            ThrottlePolicy::Auto,
        ][policy];
        let question = Question {
            seed,
            ..Question::new(
                memory,
                curve.fit(memory.touched),
                LinkModel::of(bandwidth, Duration::from_micros(rtt)),
                options(throttle, downtime),
            )
        };
        let told = predict(&question);
        ordered(&told);
        prop_assert!(told.certainty > 0.0 && told.certainty <= 1.0);
        prop_assert!(!told.reason.is_empty());
        prop_assert!(!told.converges || told.completes);
    }
}
