//! The policies against tables: no clock, no thread. What they come to is in `convergence.rs`.

use std::time::Duration;

use migration::guest::ThrottlePercent;
use migration::options::{OnTimeout, Options, ThrottlePolicy};
use migration::policy::{Decision, Facts, Limits, Look, Throttle, decide, throttling};
use migration::predict::{Costs, transfer};

const GBIT: u64 = 118_000_000;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn limits() -> Limits {
    Limits::from(&Options::default())
}

fn costs() -> Costs {
    Costs {
        bandwidth: GBIT,
        round_trip: ms(1),
        sync: ms(1),
        stop: ms(1),
        save: ms(2),
        restore: ms(4),
        resume: ms(1),
        state_bytes: 118_000,
    }
}

/// A round of so many pages that left so many behind, at line speed, with a throttle of so many percent.
fn round(pages: u64, remainder: u64, throttle: u8) -> Facts {
    Facts {
        pages,
        remainder,
        duration: transfer(pages * 4096, GBIT),
        throttle: ThrottlePercent::new(throttle),
    }
}

/// What a row of a table expects.
#[derive(Debug)]
enum Expect {
    Next,
    Switch(&'static str),
    GiveUp(&'static str),
}

fn check(name: &str, decision: &Decision, expect: &Expect) {
    let holds = match (decision, expect) {
        (Decision::NextRound, Expect::Next) => true,
        (Decision::SwitchOver(why), Expect::Switch(part)) => why.contains(part),
        (Decision::GiveUp(why), Expect::GiveUp(part)) => why.contains(part),
        _ => false,
    };
    assert!(holds, "{name}: expected {expect:?}, got {decision:?}");
}

#[test]
fn what_is_done_at_the_end_of_a_round() {
    let gib = 262_144;
    let few_rounds = Limits {
        rounds: 2,
        ..limits()
    };
    let switch = Limits {
        on_timeout: OnTimeout::SwitchOver,
        ..few_rounds
    };
    let patient = Limits {
        on_timeout: OnTimeout::SwitchOver,
        ..limits()
    };
    let tight = Limits {
        downtime: ms(5),
        ..limits()
    };
    let no_throttle = Limits {
        throttle: ThrottlePercent::default(),
        ..limits()
    };
    let r = round;
    let short_at_last = |throttle| {
        vec![
            r(gib, 3_328, throttle),
            r(3_328, 600, throttle),
            r(600, 150, throttle),
            r(150, 170, throttle),
        ]
    };
    let stuck = || vec![r(gib, 60_000, 99); 7];
    let rows: Vec<(&str, Vec<Facts>, u64, Limits, Expect)> = vec![
        ("nothing known", vec![], 0, limits(), Expect::Next),
        (
            "nothing left",
            vec![r(gib, 0, 0)],
            0,
            limits(),
            Expect::Switch("no page is left"),
        ),
        // 100 pages take 3.5 ms; the next round would leave a page or so.
        (
            "small, but another round pays",
            vec![r(gib, 100, 0)],
            0,
            limits(),
            Expect::Next,
        ),
        (
            "small and steady",
            vec![r(gib, 100, 0), r(100, 96, 0)],
            0,
            limits(),
            Expect::Switch("hardly"),
        ),
        (
            "half is left",
            vec![r(gib, gib / 2, 0)],
            0,
            limits(),
            Expect::Next,
        ),
        (
            "all is left",
            vec![r(gib, gib, 0)],
            0,
            limits(),
            Expect::Next,
        ),
        (
            "does not shrink",
            vec![r(gib, 131_072, 0), r(131_072, 131_072, 0)],
            0,
            limits(),
            Expect::Next,
        ),
        (
            "nor at half speed",
            vec![r(gib, 131_072, 0), r(131_072, 131_072, 50)],
            0,
            limits(),
            Expect::Next,
        ),
        (
            "nor nearly stopped",
            stuck(),
            0,
            limits(),
            Expect::GiveUp("at a throttle of 99 %"),
        ),
        (
            "may not throttle",
            vec![r(gib, 131_072, 0), r(131_072, 131_072, 0)],
            0,
            no_throttle,
            Expect::Next,
        ),
        (
            "rounds are over",
            vec![r(gib, gib / 2, 0), r(gib / 2, gib / 4, 0)],
            0,
            few_rounds,
            Expect::GiveUp("2 rounds are over"),
        ),
        (
            "rounds are over, switch",
            vec![r(gib, gib / 2, 0), r(gib / 2, gib / 4, 0)],
            0,
            switch,
            Expect::Switch("as asked"),
        ),
        (
            "time is over",
            vec![r(gib, gib / 2, 0)],
            3600,
            limits(),
            Expect::GiveUp("3600.0 s are over"),
        ),
        (
            "time is over but it fits",
            vec![r(gib, 1000, 0)],
            3600,
            limits(),
            Expect::Switch("within the limit"),
        ),
        (
            "no remainder is small enough",
            vec![r(gib, 10, 0)],
            0,
            tight,
            Expect::GiveUp("even with no page"),
        ),
        // The blackout would be 12 ms shorter; but at 90 % that costs more than three times as much.
        (
            "throttled, and another round costs more than it gains",
            vec![r(gib, 2_000, 90), r(2_000, 1_460, 90)],
            0,
            limits(),
            Expect::Switch("hardly"),
        ),
        // Of the last 50 ms the guest wrote in 5 ms as if it were not held down, and little before.
        (
            "held down, a short round says nothing by itself",
            short_at_last(97),
            0,
            limits(),
            Expect::Next,
        ),
        (
            "not held down, it does",
            short_at_last(0),
            0,
            limits(),
            Expect::Switch("hardly"),
        ),
        (
            "throttled less, it pays",
            vec![r(gib, 2_000, 50), r(2_000, 1_300, 50)],
            0,
            limits(),
            Expect::Next,
        ),
        (
            "there was less to send just before",
            vec![r(gib, 4_000, 0), r(4_000, 100, 0), r(100, 900, 0)],
            0,
            limits(),
            Expect::Next,
        ),
        (
            "and it comes back to that",
            vec![
                r(gib, 4_000, 0),
                r(4_000, 100, 0),
                r(100, 900, 0),
                r(900, 110, 0),
            ],
            0,
            limits(),
            Expect::Switch("110 pages"),
        ),
        (
            "or does not",
            vec![
                r(gib, 4_000, 0),
                r(4_000, 100, 0),
                r(100, 900, 0),
                r(900, 900, 0),
                r(900, 900, 0),
                r(900, 900, 0),
            ],
            0,
            limits(),
            Expect::Switch("900 pages"),
        ),
        (
            "hopeless, but not for long yet",
            vec![r(gib, 60_000, 98); 7],
            0,
            limits(),
            Expect::Next,
        ),
        (
            "hopeless, to be switched over, but at its worst",
            vec![
                r(gib, 50_000, 99),
                r(50_000, 50_000, 99),
                r(50_000, 50_000, 99),
                r(50_000, 50_000, 99),
                r(50_000, 50_000, 99),
                r(50_000, 50_000, 99),
                r(50_000, 60_000, 99),
            ],
            0,
            patient,
            Expect::Next,
        ),
        (
            "hopeless, to be switched over",
            stuck(),
            0,
            patient,
            Expect::Switch("as asked"),
        ),
    ];
    for (name, rounds, seconds, limits, expect) in rows {
        let elapsed = Duration::from_secs(seconds);
        check(name, &decide(&rounds, elapsed, &costs(), &limits), &expect);
    }
}

/// So many seconds into a move, and so many milliseconds into a round of so many pages.
#[derive(Debug, Clone, Copy)]
struct At {
    elapsed_ms: u64,
    round: u32,
    duration_ms: u64,
    pages: u64,
    unsent: u64,
    written: u64,
    over: bool,
}

/// What a policy makes of one look after another, in percent.
fn percents(policy: ThrottlePolicy, downtime: Duration, looks: &[At]) -> Vec<u8> {
    let mut policy = throttling(policy);
    let limits = Limits {
        downtime,
        ..limits()
    };
    let (mut throttle, mut sent_before) = (Throttle::default(), 0);
    let one = |at: &At| {
        let sent = at.pages - at.unsent;
        let look = Look {
            elapsed: ms(at.elapsed_ms),
            round: at.round,
            duration: ms(at.duration_ms),
            pages: at.pages,
            unsent: at.unsent,
            written: at.written,
            rewritten: 0,
            written_by_vcpu: Vec::new(),
            wire_bytes: (sent_before + sent) * 4096,
            over: at.over,
            throttle: throttle.clone(),
        };
        sent_before += if at.over { sent } else { 0 };
        throttle = policy.decide(&look, &costs(), &limits);
        assert!(throttle.slice <= downtime.max(ms(990)), "{throttle:?}");
        throttle.percents.strongest().get()
    };
    looks.iter().map(one).collect()
}

/// The end of a round.
fn end(elapsed_ms: u64, round: u32, duration_ms: u64, pages: u64, written: u64) -> At {
    At {
        elapsed_ms,
        round,
        duration_ms,
        pages,
        unsent: 0,
        written,
        over: true,
    }
}

/// The middle of a round.
fn mid(round: u32, duration_ms: u64, pages: u64, sent: u64, written: u64) -> At {
    At {
        elapsed_ms: 60_000 + duration_ms,
        round,
        duration_ms,
        pages,
        unsent: pages - sent,
        written,
        over: false,
    }
}

#[test]
fn off_is_off() {
    let looks = [
        end(9_000, 0, 9_000, 262_144, 262_144),
        end(18_000, 1, 9_000, 262_144, 262_144),
    ];
    assert_eq!(percents(ThrottlePolicy::Off, ms(50), &looks), [0, 0]);
}

#[test]
fn auto_converge_goes_by_qemus_book() {
    // A round of 2 s that leaves all of its pages, over and over: every second period is one step.
    let looks: Vec<_> = (1..=20)
        .map(|n| end(n * 2_000, 1, 2_000, 57_000, 57_000))
        .collect();
    let steps = [
        0, 20, 20, 30, 30, 40, 40, 50, 50, 60, 60, 70, 70, 80, 80, 90, 90, 99, 99, 99,
    ];
    let policy = ThrottlePolicy::AutoConverge;
    assert_eq!(percents(policy, ms(50), &looks), steps);
    // Half of what is sent is not more than half; and the count is not begun anew by a period that is low.
    let looks = [
        end(2_000, 0, 2_000, 1_000, 501),
        end(4_000, 1, 2_000, 1_000, 500),
        end(6_000, 2, 2_000, 1_000, 501),
    ];
    assert_eq!(percents(policy, ms(50), &looks), [0, 0, 20]);
    // Rounds of a second and less are taken together: here 1.2 s at a time.
    let looks: Vec<_> = (1..=8)
        .map(|n| end(n * 600, 1, 600, 1_000, 1_000))
        .collect();
    let steps = [0, 0, 0, 20, 20, 20, 20, 30];
    assert_eq!(percents(policy, ms(50), &looks), steps);
}

#[test]
fn auto_converge_syncs_every_five_seconds_from_the_second_pass_on() {
    let at = |elapsed_ms, round, written| At {
        elapsed_ms,
        round,
        duration_ms: elapsed_ms % 20_000,
        pages: 262_144,
        unsent: 262_144 - (elapsed_ms % 20_000) * 10,
        written,
        over: false,
    };
    let looks = [
        at(5_000, 0, 50_000),
        at(10_000, 0, 100_000),
        end(20_000, 0, 20_000, 262_144, 200_000),
        // 3 s, then 5, 5 and 4: what is counted once is not counted again.
        at(23_000, 1, 30_000),
        at(25_000, 1, 50_000),
        at(30_000, 1, 51_000),
        at(35_000, 1, 101_000),
    ];
    let policy = ThrottlePolicy::AutoConverge;
    assert_eq!(percents(policy, ms(50), &looks), [0, 0, 0, 0, 20, 20, 20]);
}

#[test]
fn sdps_keeps_a_guest_just_below_the_link() {
    // The link carries 28,725 pages a second.
    let looks = [
        end(9_000, 0, 9_000, 262_144, 100_000),
        // Twice the link, then four fifths of it, then nothing: it is let go of a tenth of its speed at a time.
        mid(1, 100, 100_000, 2_872, 5_745),
        mid(1, 200, 100_000, 5_745, 8_043),
        mid(1, 300, 100_000, 8_617, 8_043),
        mid(1, 400, 100_000, 11_490, 8_043),
    ];
    let policy = ThrottlePolicy::Sdps;
    assert_eq!(percents(policy, ms(50), &looks), [0, 60, 60, 56, 52]);
}

#[test]
fn auto_slows_down_late_strongly_and_lets_go() {
    let policy = ThrottlePolicy::Auto;
    // All is left after the first round: nothing is known yet. The second gets ahead at first, and then writes
    // as much as is sent.
    let looks = [
        end(9_000, 0, 9_000, 131_072, 131_072),
        mid(1, 1_000, 131_072, 28_725, 14_000),
        mid(1, 1_100, 131_072, 31_597, 17_000),
        mid(1, 2_000, 131_072, 57_450, 42_000),
        // An eighth of the link at a sixteenth of its speed: a 32nd is what makes a sixteenth of the link.
        mid(1, 3_000, 131_072, 86_175, 45_500),
        mid(1, 3_100, 131_072, 89_047, 45_680),
        // It has stopped writing: in half a second its speed is doubled, in two more it has nearly all of it.
        mid(1, 3_600, 131_072, 103_410, 45_680),
        mid(1, 4_600, 131_072, 131_000, 45_680),
        mid(1, 5_600, 131_072, 131_010, 45_680),
    ];
    let seen = percents(policy, ms(50), &looks);
    assert_eq!(seen, [0, 0, 0, 94, 97, 97, 94, 76, 4]);
}

/// As much is written as is sent, and yet there is less left from round to round.
#[test]
fn auto_waits_as_long_as_that_leaves_less_and_less() {
    let policy = ThrottlePolicy::Auto;
    let mut looks = vec![end(3_000, 0, 2_000, 65_536, 32_768)];
    // A third, a quarter and so on of the 32,768, and the time that the rounds take.
    let mut elapsed = 3_000;
    for round in 1..12 {
        let (pages, left) = (32_768 / u64::from(round), 32_768 / u64::from(round + 1));
        elapsed += pages * 1000 / 28_725;
        looks.push(end(elapsed, round, pages * 1000 / 28_725, pages, left));
    }
    let seen = percents(policy, ms(50), &looks);
    assert_eq!(seen[..8], [0; 8], "{seen:?}");
    // It rises: it is slowed down at once.
    looks.truncate(7);
    looks.push(end(elapsed, 7, 200, 5_500, 5_600));
    let seen = percents(policy, ms(50), &looks);
    assert!(seen[6] == 0 && seen[7] >= 75, "{seen:?}");
}

#[test]
fn auto_leaves_a_guest_alone_that_gets_on_by_itself() {
    let policy = ThrottlePolicy::Auto;
    // 64 MiB are rewritten all the time. Where that fits the blackout it is none of our business, however fast.
    let hot = [
        end(9_000, 0, 9_000, 262_144, 16_384),
        mid(1, 300, 16_384, 8_600, 8_500),
        end(9_600, 1, 570, 16_384, 16_384),
    ];
    assert_eq!(percents(policy, ms(700), &hot), [0, 0, 0]);
    let tight = percents(policy, ms(50), &hot);
    assert!(tight[2] >= 75, "{tight:?}");
    // A hot spot passes: what comes after it is quiet.
    let spot = [
        end(9_000, 0, 9_000, 262_144, 100_000),
        mid(1, 1_000, 100_000, 28_725, 28_000),
        end(12_500, 1, 3_500, 100_000, 28_100),
    ];
    assert_eq!(percents(policy, ms(50), &spot)[2], 0);
}

#[test]
fn slices_are_as_short_as_they_can_be() {
    for (times, downtime, percent, slice) in [
        // It keeps a 16th of its speed and writes a 16th of the link, then a 32nd of it and up to a quarter.
        (1.0, ms(50), 94, Duration::from_nanos(3_133_333)),
        (1.0, ms(16), 94, ms(2)),
        (4.0, ms(50), 97, Duration::from_micros(6_250)),
        (8.0, ms(50), 97, Duration::from_micros(6_250)),
        (100.0, ms(50), 99, Duration::from_micros(6_250)),
        (100.0, ms(300), 99, Duration::from_micros(19_800)),
    ] {
        // As much is left after a round as before it, however short it is made.
        let written = times * 28_725.0 / 10.0;
        #[expect(clippy::cast_possible_truncation)]
        let written = written as u64;
        let look = Look {
            elapsed: ms(20_000),
            round: 3,
            duration: ms(100),
            pages: 2_872,
            unsent: 0,
            written,
            rewritten: 0,
            written_by_vcpu: Vec::new(),
            wire_bytes: 2 << 30,
            over: true,
            throttle: Throttle::default(),
        };
        let limits = Limits {
            downtime,
            ..limits()
        };
        // No room for a page: it is slowed down all the same.
        let full = Costs {
            stop: downtime,
            round_trip: Duration::ZERO,
            sync: Duration::ZERO,
            ..costs()
        };
        let throttle = throttling(ThrottlePolicy::Auto).decide(&look, &full, &limits);
        assert_eq!(throttle.percents.strongest().get(), percent);
        assert_eq!(throttle.slice, slice);
    }
}

/// What `dirty-limit` makes of one look after another at three vCPUs, in percent.
fn limited(looks: &[(At, [u64; 3])]) -> Vec<[u8; 3]> {
    let mut policy = throttling(ThrottlePolicy::DirtyLimit);
    let mut throttle = Throttle::default();
    let one = |(at, counts): &(At, [u64; 3])| {
        let look = Look {
            elapsed: ms(at.elapsed_ms),
            round: at.round,
            duration: ms(at.duration_ms),
            pages: at.pages,
            unsent: at.unsent,
            written: at.written,
            rewritten: 0,
            written_by_vcpu: counts.to_vec(),
            wire_bytes: 0,
            over: at.over,
            throttle: throttle.clone(),
        };
        throttle = policy.decide(&look, &costs(), &limits());
        [0, 1, 2].map(|vcpu| throttle.percents.of(vcpu).get())
    };
    looks.iter().map(one).collect()
}

/// 1 Gbit/s carries 28,725 pages a second, so all vCPUs together may write 14,362.
#[test]
fn dirty_limit_slows_down_those_above_it() {
    // At most half is dirtied: not needed. More: from now on it holds, even when there is little left.
    let looks = [
        (mid(0, 500, 100_000, 10_000, 5_000), [50, 5_000, 0]),
        (end(5_000, 0, 4_000, 100_000, 50_000), [100, 50_000, 0]),
        (end(7_000, 1, 2_000, 50_000, 25_500), [200, 76_000, 0]),
        (mid(2, 20, 25_500, 100, 300), [201, 76_300, 0]),
        (mid(2, 1_000, 25_500, 20_000, 12_750), [250, 90_000, 0]),
        (end(8_000, 2, 1_100, 25_500, 14_000), [260, 91_000, 0]),
    ];
    let percents = limited(&looks);
    assert_eq!(percents[..2], [[0, 0, 0]; 2], "{percents:?}");
    assert_eq!(percents[2], [0, 0, 0], "12,750 a second is below it");
    let percents = limited(&[
        looks[1],
        (end(7_000, 1, 1_000, 50_000, 40_000), [300, 93_000, 0]),
        (mid(2, 1_000, 40_000, 28_000, 14_362), [350, 106_000, 0]),
        (end(8_000, 2, 100, 500, 3), [360, 106_003, 0]),
    ]);
    // 40,000 a second by the second vCPU alone.
    assert_eq!(percents[1], [0, 64, 0]);
    assert_eq!(
        percents[2],
        [0, 64, 0],
        "it writes at its limit and stays there"
    );
    assert!(percents[3][1] > 0, "it holds to the end: {percents:?}");
    // Two that write too much, one more than the other, and one that writes less than a third of the limit.
    let percents = limited(&[(
        end(7_000, 1, 1_000, 90_000, 62_000),
        [2_000, 20_000, 40_000],
    )]);
    assert_eq!(percents, [[0, 69, 85]]);
}

/// A page that was written again before its turn was different on the other end all the time: nothing was in vain.
#[test]
fn what_is_left_to_the_next_round_slows_nobody_down() {
    let limits = Limits {
        downtime: ms(50),
        ..limits()
    };
    let costs = costs();
    let throttle = |rewritten| {
        let look = Look {
            elapsed: ms(20_000),
            round: 2,
            duration: ms(250),
            pages: 29_000,
            unsent: 22_000,
            written: 7_000,
            rewritten,
            written_by_vcpu: Vec::new(),
            wire_bytes: 2 << 30,
            over: false,
            throttle: Throttle::default(),
        };
        throttling(ThrottlePolicy::Auto).decide(&look, &costs, &limits)
    };
    assert!(throttle(0).is_on());
    assert!(!throttle(6_000).is_on());
}
