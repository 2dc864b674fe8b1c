//! Whole moves that arrive: every page is what it must be, and exactly one guest runs.

use crate::support;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use migration::cancel::CancelToken;
use migration::destination::{ReceiveOptions, receive};
use migration::event::{Arrival, Event};
use migration::guest::RunningGuest;
use migration::options::{OnTimeout, Options, StateCosts, ThrottlePolicy};
use migration::report::{BlackoutClock, Outcome, Report};
use migration::source::After;
use migration::work::{Baseline, VcpuWork};
use support::run::{
    PATIENCE, back, options, receiving, receiving_with, send, tcp_pair, travel, verify,
};
use support::{FakeHost, Faults, World, Writer, boot, unbooted};

fn assert_sums(report: &Report) {
    let parts = report.blackout.unwrap();
    let sum = parts.stop_vcpus_ms
        + parts.final_dirty_sync_ms
        + parts.final_pages_ms
        + parts.save_state_ms
        + parts.send_state_ms
        + parts.restore_ms
        + parts.resume_ms;
    assert!(
        (sum - report.blackout_ms.unwrap()).abs() < 0.01,
        "{parts:?}"
    );
    let zeros: u64 = report.rounds.iter().map(|round| round.zero_pages).sum();
    assert_eq!(report.zero_pages, zeros);
    for round in &report.rounds {
        let dealt_with = round.sent_pages + round.zero_pages + round.rewritten_pages;
        assert_eq!(round.dirty_pages, dealt_with);
    }
}

#[test]
fn an_idle_guest_arrives_whole() {
    let world = World::idle(&[8, 4]);
    let (moved, arrived) = travel(&world, boot(&world), &options());
    assert!(matches!(moved.guest, After::Gone(_)), "{:?}", moved.error);
    let report = moved.report;
    assert_eq!(report.outcome, Outcome::Completed);
    assert_eq!(report.memory_bytes, 12 << 20);
    // Of three pages one was stamped and one never touched.
    assert_eq!(report.rounds[0].sent_pages, 1024);
    assert_eq!(report.rounds[0].zero_pages, 1024);
    assert_eq!(report.untouched_pages, 1024);
    // Nothing is said of zeros either: the destination's memory begins with them.
    assert!(report.wire_bytes < (1024 + 64) * (4096 + 12));
    assert_eq!(report.blackout_clock, Some(BlackoutClock::Shared));
    assert!(report.guest_gap_ms.unwrap() > 0.0);
    assert_sums(&report);
    assert_eq!(world.running(), 1);
    verify(&world, arrived.unwrap());
}

/// The figures of the guest's first moments on the destination are waited for also where a peer may be silent for less.
#[test]
fn a_late_first_heartbeat_is_in_the_report() {
    let faults = Faults {
        quiet: Duration::from_millis(800),
        ..Faults::default()
    };
    let world = World::new(&[8], Writer::default(), faults);
    let (a, b) = tcp_pair();
    let cancel = CancelToken::new().unwrap();
    let receiving = receiving_with(&world, b, &cancel, PATIENCE);
    let options = Options {
        peer_timeout: Duration::from_millis(500),
        ..options()
    };
    let moved = send(boot(&world), a, &options, &cancel, &mut |_| {});
    let report = moved.report;
    assert_eq!(report.outcome, Outcome::Completed, "{}", report.reason);
    assert!(report.guest_gap_ms.is_some());
    assert!(report.largest_gap_ms >= report.guest_gap_ms);
    verify(&world, receiving.join().unwrap().unwrap());
}

/// Then its gap is not known, and with it not the largest one.
#[test]
fn a_guest_that_does_not_beat_at_the_destination_has_no_gap() {
    let faults = Faults {
        quiet: Duration::from_secs(3600),
        ..Faults::default()
    };
    let world = World::new(&[8], Writer::default(), faults);
    let (moved, arrived) = travel(&world, boot(&world), &options());
    assert_eq!(moved.report.outcome, Outcome::Completed);
    assert_eq!(moved.report.guest_gap_ms, None);
    assert_eq!(moved.report.largest_gap_ms, None);
    verify(&world, arrived.unwrap());
}

/// What is left is little enough when the time is over while disks are written back, or no round is left for what the
/// guest writes meanwhile: no reason to give up.
#[test]
fn disks_that_are_slow_near_a_bound_do_not_end_a_move() {
    for bound in [
        Options {
            max_total: Duration::from_millis(300),
            ..options()
        },
        Options {
            max_rounds: 1,
            ..options()
        },
    ] {
        let world = World::idle(&[8]);
        *world.settles.lock().unwrap() = vec![Duration::from_millis(600)];
        let (moved, arrived) = travel(&world, boot(&world), &bound);
        let report = moved.report;
        assert_eq!(report.outcome, Outcome::Completed, "{}", report.reason);
        assert_eq!(report.rounds.len(), 2, "{report:?}");
        verify(&world, arrived.unwrap());
    }
}

/// Longer than the other end would wait in silence; and it does not stand still for it. Disks that are written to all
/// the time are waited for three times.
#[test]
fn disks_are_written_back_while_the_guest_runs() {
    let options = Options {
        peer_timeout: Duration::from_secs(1),
        ..options()
    };
    let ms = Duration::from_millis;
    let mut rounds = Vec::new();
    // The first has no disks.
    for (settles, left) in [(vec![], 0), (vec![ms(1500)], 0), (vec![ms(20); 5], 2)] {
        let world = World::idle(&[8]);
        let took = settles.first().map_or(0.0, Duration::as_secs_f64);
        *world.settles.lock().unwrap() = settles;
        // Memory is filled before anybody has patience.
        let guest = boot(&world);
        let (a, b) = tcp_pair();
        let cancel = CancelToken::new().unwrap();
        let receiving = receiving_with(&world, b, &cancel, options.peer_timeout);
        let moved = send(guest, a, &options, &cancel, &mut |_| {});
        let report = moved.report;
        assert_eq!(report.outcome, Outcome::Completed, "{}", report.reason);
        assert!(report.brownout_ms.unwrap() >= took * 1000.0);
        assert_eq!(world.settles.lock().unwrap().len(), left);
        verify(&world, receiving.join().unwrap().unwrap());
        rounds.push(report.rounds.len());
    }
    // What was written meanwhile takes one round more, each time.
    assert_eq!(rounds[1..], [rounds[0] + 1, rounds[0] + 3], "{rounds:?}");
}

/// The last of them is written back while the guest stands still; that is no reason for the destination to give up.
#[test]
fn disks_may_be_slower_than_the_other_end_is_patient() {
    let options = Options {
        peer_timeout: Duration::from_millis(500),
        ..options()
    };
    let world = World::idle(&[8]);
    *world.settles.lock().unwrap() = vec![Duration::ZERO];
    *world.disks.lock().unwrap() = Duration::from_millis(1200);
    let guest = boot(&world);
    let (a, b) = tcp_pair();
    let cancel = CancelToken::new().unwrap();
    let receiving = receiving_with(&world, b, &cancel, options.peer_timeout);
    let moved = send(guest, a, &options, &cancel, &mut |_| {});
    let report = moved.report;
    assert_eq!(report.outcome, Outcome::Completed, "{}", report.reason);
    assert!(report.blackout_ms.unwrap() >= 2400.0);
    verify(&world, receiving.join().unwrap().unwrap());
}

#[test]
fn a_writing_guest_arrives_whole_over_tcp() {
    let writer = Writer {
        pages: 100..1500,
        per_ms: 20,
    };
    let world = World::new(&[16, 4], writer, Faults::default());
    let (a, b) = tcp_pair();
    let receiving = receiving(&world, b);
    let mut events = Vec::new();
    let cancel = CancelToken::new().unwrap();
    let moved = send(boot(&world), a, &options(), &cancel, &mut |e| {
        events.push(e)
    });
    assert_eq!(
        moved.report.outcome,
        Outcome::Completed,
        "{}",
        moved.report.reason
    );
    assert_sums(&moved.report);
    verify(&world, receiving.join().unwrap().unwrap());
    assert!(matches!(events.first(), Some(Event::Connected { .. })));
    assert!(matches!(events.last(), Some(Event::Live { .. })));
    let finished = |e: &&Event| matches!(e, Event::RoundFinished { .. });
    // The final copy is in the report's rounds, but is not announced as one.
    assert_eq!(
        events.iter().filter(finished).count() + 1,
        moved.report.rounds.len()
    );
    assert!(cancel.cancel().is_err());
}

#[test]
fn a_guest_of_zeros_is_hardly_sent_at_all() {
    let world = World::idle(&[32]);
    let guest = migration::guest::PausedGuest::resume(unbooted(&world)).unwrap();
    let (moved, arrived) = travel(&world, guest, &options());
    // Saving writes one page.
    assert_eq!(moved.report.rounds.last().unwrap().sent_pages, 1);
    assert!(moved.report.wire_bytes < 100_000);
    verify(&world, arrived.unwrap());
}

#[test]
fn there_and_back_again() {
    let writer = Writer {
        pages: 0..300,
        per_ms: 5,
    };
    let world = World::new(&[4], writer, Faults::default());
    let mut guest = boot(&world);
    for _ in 0..3 {
        let (moved, arrived) = travel(&world, guest, &options());
        assert_eq!(
            moved.report.outcome,
            Outcome::Completed,
            "{}",
            moved.report.reason
        );
        guest = arrived.unwrap();
        assert_eq!(world.running(), 1);
    }
    verify(&world, guest);
}

#[test]
fn dirty_limit_is_refused_where_the_log_does_not_know_who_writes() {
    let world = World::idle(&[4]);
    let options = Options {
        throttle: ThrottlePolicy::DirtyLimit,
        ..options()
    };
    let (moved, arrived) = travel(&world, boot(&world), &options);
    assert_eq!(moved.report.outcome, Outcome::Failed);
    let reason = &moved.report.reason;
    assert!(reason.contains("--dirty-tracking ring"), "{reason}");
    assert!(arrived.is_err());
    assert_eq!(world.running(), 1);
}

/// Writes all of its 4 MiB every 20 ms, 25 times what its link of 8 MB/s carries: more even where it hardly gets a
/// processor. At the strongest throttle that is a quarter of the link.
fn greedy() -> (std::sync::Arc<World>, Options) {
    let writer = Writer {
        pages: 0..1024,
        per_ms: 50,
    };
    let world = World::new(&[8], writer, Faults::default());
    let options = Options {
        bandwidth: Some(8_000_000),
        downtime_limit: Duration::from_millis(60),
        max_total: Duration::from_secs(120),
        costs: StateCosts::default(),
        ..options()
    };
    (world, options)
}

#[test]
fn a_guest_that_writes_faster_than_the_link_is_throttled_until_it_fits() {
    for throttle in [ThrottlePolicy::Auto, ThrottlePolicy::Sdps] {
        let (world, options) = greedy();
        let options = Options {
            throttle,
            ..options
        };
        let (moved, arrived) = travel(&world, boot(&world), &options);
        let report = &moved.report;
        assert_eq!(report.outcome, Outcome::Completed, "{}", report.reason);
        let throttles = world.throttles.lock().unwrap().clone();
        assert!(!throttles.is_empty(), "{report:#?}");
        let limit = options.downtime_limit;
        assert!(throttles.iter().all(|(_, slice)| *slice <= limit));
        // The first round is nobody's fault.
        assert_eq!(report.rounds[0].throttle_percent, [0, 0]);
        assert!(report.rounds.iter().any(|r| r.throttle_percent[0] > 0));
        assert!(report.predicted_blackout_ms.unwrap() <= 60.0);
        let slept: f64 = report.rounds.iter().map(|r| r.throttled_ms[1]).sum();
        assert!(slept > 0.0 && (report.throttled_ms[1] - slept).abs() < 0.01);
        verify(&world, arrived.unwrap());
    }
}

#[test]
fn what_a_guest_got_done_less_is_reported_where_it_counts() {
    let work = |done, cpu_ms| VcpuWork {
        done,
        cpu: Duration::from_millis(cpu_ms),
    };
    let baseline = Baseline {
        over: Duration::from_secs(1),
        before: vec![work(0, 0), work(0, 0), work(5, 0)],
        now: vec![work(1000, 500), work(1000, 1000), work(5, 0)],
    };
    // The first does nothing in a second of processor time, the second more than it can have; whatever the move takes.
    let at_pause = vec![work(1000, 1500), work(1 << 40, 2000), work(5, 0)];
    let world = World::idle(&[4]);
    *world.work.lock().unwrap() = Some((baseline.clone(), at_pause.clone()));
    let (moved, _arrived) = travel(&world, boot(&world), &options());
    let expected = [Some(100.0), Some(0.0), None];
    assert_eq!(moved.report.guest_work_lost_percent, Some(50.0));
    assert_eq!(moved.report.vcpu_work_lost_percent, expected);
    assert_eq!(moved.report.vcpu_work_per_cpu_s_lost_percent, expected);

    let not_there = Faults {
        load: true,
        ..Faults::default()
    };
    for (counts, faults) in [(true, not_there), (false, Faults::default())] {
        let world = World::new(&[4], Writer::default(), faults);
        *world.work.lock().unwrap() = counts.then(|| (baseline.clone(), at_pause.clone()));
        let (moved, _arrived) = travel(&world, boot(&world), &options());
        assert_eq!(moved.report.outcome == Outcome::Failed, counts);
        assert_eq!(moved.report.guest_work_lost_percent, None);
        assert!(moved.report.vcpu_work_lost_percent.is_empty());
        assert!(moved.report.vcpu_work_per_cpu_s_lost_percent.is_empty());
    }
}

#[test]
fn without_a_throttle_the_same_guest_is_given_up() {
    let (world, options) = greedy();
    let options = Options {
        throttle: ThrottlePolicy::Off,
        max_rounds: 4,
        ..options
    };
    let (moved, arrived) = travel(&world, boot(&world), &options);
    assert_eq!(moved.report.outcome, Outcome::Failed);
    assert!(
        moved.report.reason.contains("given up"),
        "{}",
        moved.report.reason
    );
    let rounds: f64 = moved.report.rounds.iter().map(|r| r.duration_ms).sum();
    let brownout = moved.report.brownout_ms.unwrap();
    assert!((rounds..=moved.report.total_ms).contains(&brownout));
    let refused = arrived.unwrap_err().to_string();
    assert!(refused.contains("given up"), "{refused}");
    let guest = back(&world, moved.guest);
    // Or switched over regardless, if that is asked for. A second attempt sends everything again.
    let options = Options {
        on_timeout: OnTimeout::SwitchOver,
        ..options
    };
    let (moved, arrived) = travel(&world, guest, &options);
    assert_eq!(
        moved.report.outcome,
        Outcome::Completed,
        "{}",
        moved.report.reason
    );
    let pages = moved.report.rounds[0].dirty_pages + moved.report.untouched_pages;
    assert_eq!(pages, world.layout.pages());
    verify(&world, arrived.unwrap());
}

#[test]
fn the_source_keeps_a_guest_that_cannot_do_its_part() {
    let faults = [
        (
            Faults {
                start_log: true,
                ..Faults::default()
            },
            "start the log",
        ),
        (
            Faults {
                take: true,
                ..Faults::default()
            },
            "take the log",
        ),
        (
            Faults {
                pause: true,
                ..Faults::default()
            },
            "pause",
        ),
        (
            Faults {
                save: true,
                ..Faults::default()
            },
            "save",
        ),
    ];
    for (faults, act) in faults {
        let world = World::new(&[4], Writer::default(), faults);
        let (moved, arrived) = travel(&world, boot(&world), &options());
        assert_eq!(moved.report.outcome, Outcome::Failed);
        assert!(moved.report.reason.contains(act), "{}", moved.report.reason);
        let there = arrived.unwrap_err().to_string();
        assert!(there.contains(act), "{there}");
        verify(&world, back(&world, moved.guest));
    }
}

#[test]
fn a_destination_that_cannot_do_its_part_gives_the_guest_back() {
    let faults = [
        (
            Faults {
                refuse: Some("no such CPU here"),
                ..Faults::default()
            },
            "no such CPU here",
        ),
        (
            Faults {
                load: true,
                ..Faults::default()
            },
            "load",
        ),
        // After GO.
        (
            Faults {
                resume_there: true,
                ..Faults::default()
            },
            "resume",
        ),
    ];
    for (faults, act) in faults {
        let world = World::new(&[4], Writer::default(), faults);
        let (moved, arrived) = travel(&world, boot(&world), &options());
        assert_eq!(moved.report.outcome, Outcome::Failed);
        assert!(moved.report.reason.contains(act), "{}", moved.report.reason);
        assert!(arrived.unwrap_err().to_string().contains(act));
        let guest = back(&world, moved.guest);
        assert!(guest.heartbeat().is_some());
        verify(&world, guest);
    }
}

/// The destination is stopped between READY and GO, and so long that a person may have given it up.
#[test]
fn go_that_is_found_too_late_runs_nothing() {
    let world = World::idle(&[4]);
    let (a, b) = UnixStream::pair().unwrap();
    let mut host = FakeHost(Arc::clone(&world));
    let impatient = ReceiveOptions {
        peer_timeout: Duration::from_millis(500),
        ..ReceiveOptions::default()
    };
    let receiving = std::thread::spawn(move || {
        let cancel = CancelToken::new().unwrap();
        let mut stop = |arrival| {
            if arrival == Arrival::Ready {
                std::thread::sleep(Duration::from_secs(1));
            }
        };
        let source = Box::new(b);
        receive(
            &mut host,
            source,
            "the source",
            None,
            &impatient,
            &cancel,
            &mut stop,
        )
    });
    let cancel = CancelToken::new().unwrap();
    let moved = send(boot(&world), a, &options(), &cancel, &mut |_| {});
    let error = receiving.join().unwrap().unwrap_err().to_string();
    assert!(error.contains("s after READY"), "{error}");
    // This source is patient, so it hears of it and has its guest back.
    assert_eq!(moved.report.outcome, Outcome::Failed);
    let reason = &moved.report.reason;
    assert!(reason.contains("s after READY"), "{reason}");
    verify(&world, back(&world, moved.guest));
}
