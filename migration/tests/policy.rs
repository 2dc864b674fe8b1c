//! The policy against tables, and against a simulated guest on a simulated link: no clock, no thread.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use migration::guest::ThrottlePercent;
use migration::options::{OnTimeout, Options};
use migration::policy::{Decision, Facts, Limits, decide};
use migration::predict::{self, Costs, transfer};

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
    Throttle(u8),
    GiveUp(&'static str),
}

fn check(name: &str, decision: &Decision, expect: &Expect) {
    let holds = match (decision, expect) {
        (Decision::NextRound, Expect::Next) => true,
        (Decision::SwitchOver(why), Expect::Switch(part)) => why.contains(part),
        (Decision::GiveUp(why), Expect::GiveUp(part)) => why.contains(part),
        (Decision::Throttle(percent, why), Expect::Throttle(wanted)) => {
            percent.get() == *wanted && !why.is_empty()
        }
        _ => false,
    };
    assert!(holds, "{name}: expected {expect:?}, got {decision:?}");
}

#[test]
fn table() {
    let gib = 262_144;
    let few_rounds = Limits {
        rounds: 2,
        ..limits()
    };
    let switch = Limits {
        on_timeout: OnTimeout::SwitchOver,
        ..few_rounds
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
            Expect::Throttle(50),
        ),
        // Half of it again: the rate is only known to be at least that of the link.
        (
            "does not shrink",
            vec![r(gib, 131_072, 0), r(131_072, 131_072, 0)],
            0,
            limits(),
            Expect::Throttle(50),
        ),
        (
            "nor at half speed",
            vec![r(gib, 131_072, 0), r(131_072, 131_072, 50)],
            0,
            limits(),
            Expect::Throttle(75),
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
        // At a tenth of its speed it writes 5 % of the link, at full speed half of it.
        (
            "throttled too much",
            vec![
                r(gib, 100_000, 90),
                r(100_000, 20_000, 90),
                r(20_000, 1_000, 90),
            ],
            0,
            limits(),
            Expect::Throttle(0),
        ),
    ];
    for (name, rounds, seconds, limits, expect) in rows {
        let elapsed = Duration::from_secs(seconds);
        check(name, &decide(&rounds, elapsed, &costs(), &limits), &expect);
    }
}

/// A guest that writes the pages of its working set in turn.
#[derive(Debug, Clone, Copy)]
struct Guest {
    pages: u64,
    working_set: u64,
    pages_per_s: f64,
}

#[derive(Debug)]
struct End {
    rounds: Vec<Facts>,
    took: Duration,
    predicted: Duration,
    decision: Decision,
}

/// Moves a simulated guest until the policy ends it.
fn simulate(guest: Guest, costs: &Costs, limits: &Limits) -> End {
    let (mut todo, mut throttle) = (guest.pages, ThrottlePercent::default());
    let (mut rounds, mut took) = (Vec::new(), Duration::ZERO);
    loop {
        let duration = transfer(todo * 4096, costs.bandwidth) + costs.round_trip * 2;
        let speed = guest.pages_per_s * f64::from(100 - throttle.get()) / 100.0;
        let written = (speed * duration.as_secs_f64()).min(guest.working_set as f64);
        #[expect(clippy::cast_possible_truncation)]
        let remainder = written as u64;
        rounds.push(Facts {
            pages: todo,
            remainder,
            duration,
            throttle,
        });
        took += duration;
        todo = remainder;
        match decide(&rounds, took, costs, limits) {
            Decision::NextRound => {}
            Decision::Throttle(percent, _) => throttle = percent,
            decision => {
                let predicted = predict::blackout(todo, costs);
                return End {
                    rounds,
                    took,
                    predicted,
                    decision,
                };
            }
        }
        assert!(rounds.len() < 1000);
    }
}

fn mib(mib: u64) -> u64 {
    mib * 256
}

#[test]
fn an_idle_guest_stops_for_no_longer_than_it_must() {
    let guest = Guest {
        pages: mib(1024),
        working_set: mib(64),
        pages_per_s: 500.0,
    };
    let end = simulate(guest, &costs(), &limits());
    let least = predict::blackout(0, &costs());
    assert!(end.predicted < least + ms(2), "{end:?}");
    assert!(end.rounds.len() <= 5, "{end:?}");
    assert!(end.rounds.iter().all(|round| round.throttle.get() == 0));
}

#[test]
fn a_guest_that_writes_400_mb_per_s_converges_on_a_gigabit() {
    for downtime in [50, 300] {
        for working_set in [64, 256, 512, 900] {
            let guest = Guest {
                pages: mib(1024),
                working_set: mib(working_set),
                pages_per_s: 400e6 / 4096.0,
            };
            let limits = Limits {
                downtime: ms(downtime),
                ..limits()
            };
            let end = simulate(guest, &costs(), &limits);
            assert!(matches!(end.decision, Decision::SwitchOver(_)), "{end:?}");
            assert!(end.predicted <= ms(downtime), "{end:?}");
            assert!(end.took < Duration::from_secs(60), "{end:?}");
            assert!(end.rounds.len() <= 25, "{end:?}");
        }
    }
}

#[test]
fn whatever_the_guest_does_the_policy_ends_and_keeps_its_word() {
    for rate in [0.0, 1e3, 3e4, 1e5, 1e6, 1e7] {
        for working_set in [1, 16, 512, 4096] {
            for downtime in [15, 50, 300, 2000] {
                for bandwidth in [GBIT / 10, GBIT, GBIT * 10, GBIT * 40] {
                    let guest = Guest {
                        pages: mib(4096),
                        working_set: mib(working_set),
                        pages_per_s: rate,
                    };
                    let limits = Limits {
                        downtime: ms(downtime),
                        ..limits()
                    };
                    let costs = Costs {
                        bandwidth,
                        ..costs()
                    };
                    let end = simulate(guest, &costs, &limits);
                    match &end.decision {
                        Decision::SwitchOver(_) => {
                            assert!(end.predicted <= limits.downtime, "{guest:?} {end:?}");
                        }
                        decision => assert!(matches!(decision, Decision::GiveUp(_)), "{end:?}"),
                    }
                }
            }
        }
    }
}
