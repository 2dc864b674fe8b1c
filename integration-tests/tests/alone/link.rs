//! Over a link of 1 Gbit/s: a guest of 1 GiB full of incompressible memory, idle and writing more than the
//! link carries. It arrives whole, and with its pulse.

use std::thread;
use std::time::Duration;

use integration_tests::ferry::{Ferry, NapWatch, Naps, PulseGuest, World};
use serde_json::Value;
use vmm::units::Rate;

const STEP: Duration = Duration::from_secs(60);
const SEED: u64 = 2;
const MIB: u64 = 1024;

fn ms(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

/// Moves a guest from A to B over the shaped link, and checks all that it is made of. Gives the report, and how
/// its vCPUs slept before they were stopped.
fn arrives_whole(guest: &PulseGuest<'_>, args: &[&str]) -> (Value, Naps) {
    let world = World::new(0).unwrap();
    world.a.shape(World::LINK, Rate(125_000_000)).unwrap();
    let mut source = guest.boot(Some(&world.a)).unwrap();
    let filled = [guest.fillable()];
    source.fill(SEED, &filled).unwrap();
    source.wait_beats(20).unwrap();
    let before = source.check_pulse().unwrap();

    let target = format!("tcp:{}:4700", World::B);
    let plain = ["--insecure-plaintext"];
    let destination = Ferry::receive(Some(&world.b), &target, &plain).unwrap();
    let watch = NapWatch::new(&source).unwrap();
    let (moved, naps) = thread::scope(|scope| {
        let watching = scope.spawn(|| watch.until_gone());
        let moved = source.migrate(&target, &[&plain, args].concat()).unwrap();
        if moved.status != 0 {
            // Nothing else ends the watch.
            source.act("stop").unwrap();
        }
        (moved, watching.join().unwrap())
    });
    let report = moved.completed().unwrap();
    assert_eq!(source.wait_end(STEP).unwrap().code(), Some(0));

    destination.wait_beats(100).unwrap();
    let after = destination.check_pulse().unwrap();
    after.follows(&before).unwrap();
    assert!(after.beat() > before.beat());
    assert_eq!(after.pages_checked, before.pages_checked);
    assert!(
        after.vcpus.iter().all(|v| v.tsc_backwards == 0),
        "{after:?}"
    );
    destination.check_fill(SEED, &filled).unwrap();

    println!("{}", report.stdout);
    let report = report.report;
    println!(
        "guest gap {} ms, reported blackout {} ms (clock {}), limit {} ms",
        report["guest_gap_ms"],
        report["blackout_ms"],
        report["blackout_clock"],
        report["downtime_limit_ms"],
    );
    println!("asleep before the blackout: {naps:?}");
    sane(&report, guest);
    (report, naps)
}

/// What must hold of every report, whatever its times are.
fn sane(report: &Value, guest: &PulseGuest<'_>) {
    let rounds = report["rounds"].as_array().unwrap();
    let total = |field: &str| rounds.iter().map(|round| count(&round[field])).sum::<u64>();
    assert_eq!(report["outcome"], "completed");
    assert_eq!(count(&report["memory_bytes"]), guest.mib << 20);
    assert!(rounds.len() >= 2, "{report}");
    let all = count(&rounds[0]["dirty_pages"]) + count(&report["untouched_pages"]);
    assert_eq!(all, guest.mib * 256);
    for (index, round) in (0u64..).zip(rounds) {
        assert_eq!(count(&round["index"]), index, "{round}");
        let (sent, zero) = (count(&round["sent_pages"]), count(&round["zero_pages"]));
        let left = count(&round["rewritten_pages"]);
        assert_eq!(count(&round["dirty_pages"]), sent + zero + left, "{round}");
        assert!(count(&round["wire_bytes"]) >= sent * 4096, "{round}");
        assert!(ms(&round["duration_ms"]) > 0.0, "{round}");
        assert!(ms(&round["predicted_blackout_ms"]) > 0.0, "{round}");
        let throttle = round["throttle_percent"].as_array().unwrap();
        assert_eq!(throttle.len(), usize::from(guest.cpus), "{round}");
        assert!(
            throttle.iter().all(|percent| count(percent) <= 99),
            "{round}"
        );
    }
    // What each vCPU slept in the rounds is what it slept in all.
    let slept = |of: &Value| -> Vec<f64> {
        of["throttled_ms"]
            .as_array()
            .unwrap()
            .iter()
            .map(ms)
            .collect()
    };
    let all = slept(report);
    assert_eq!(all.len(), usize::from(guest.cpus), "{report}");
    for (vcpu, all) in all.iter().enumerate() {
        let sum: f64 = rounds.iter().map(|round| slept(round)[vcpu]).sum();
        assert!((sum - all).abs() < 0.01, "{report}");
        assert!(*all <= ms(&report["total_ms"]), "{report}");
    }
    assert_eq!(count(&report["zero_pages"]), total("zero_pages"));
    assert!(
        count(&report["wire_bytes"]) >= total("wire_bytes"),
        "{report}"
    );
    // The fill leaves no page of zeros, so all memory but the first 8 MiB goes over the wire.
    assert!(total("sent_pages") >= (guest.mib - 8) * 256);
    let parts = report["blackout"].as_object().unwrap();
    let sum: f64 = parts.values().map(ms).sum();
    assert!((sum - ms(&report["blackout_ms"])).abs() < 0.01, "{report}");
    let whole = ms(&report["setup_ms"]) + ms(&report["brownout_ms"]) + ms(&report["blackout_ms"]);
    assert!(ms(&report["total_ms"]) >= whole - 0.01, "{report}");
    assert!(!report["reason"].as_str().unwrap().is_empty());
}

#[test]
fn an_idle_guest_over_one_gigabit() {
    let guest = PulseGuest {
        words: "beat=1",
        cpus: 1,
        mib: MIB,
    };
    let (report, naps) = arrives_whole(&guest, &[]);
    assert_eq!(report["blackout_clock"], "shared");
    let rounds = report["rounds"].as_array().unwrap();
    assert!(rounds.iter().all(|round| strongest(round) == 0), "{report}");
    assert_eq!(naps.count, 0, "put to sleep without being throttled");
    let slept = report["throttled_ms"].as_array().unwrap();
    assert!(slept.iter().all(|slept| ms(slept) == 0.0), "{report}");
}

/// Moves a guest whose vCPU 1 writes three times as fast as the link carries to so much memory, while vCPU 0 does
/// nothing but beat. Throttling has to make it converge, in slices of sleep not longer than the limit.
fn converges_within(limit_ms: u32, memory: &str) {
    let guest = PulseGuest {
        words: &format!("beat=1 cpu1.rate=100000 {memory}"),
        cpus: 2,
        mib: MIB,
    };
    let downtime = format!("{limit_ms}ms");
    let (report, naps) = arrives_whole(&guest, &["--downtime", &downtime]);
    let limit = f64::from(limit_ms);
    assert!((ms(&report["downtime_limit_ms"]) - limit).abs() < 0.01);
    assert!(ms(&report["predicted_blackout_ms"]) <= limit, "{report}");
    let rounds = report["rounds"].as_array().unwrap();
    let most = rounds.iter().map(strongest).max().unwrap();
    assert!(most > 0, "never throttled: {report}");
    assert_eq!(strongest(&rounds[0]), 0, "throttled in round 0: {report}");
    assert!(rounds.len() <= 40, "{report}");
    assert!(ms(&report["throttled_ms"][1]) > 0.0, "{report}");
    assert!(naps.count > 10, "throttled, but hardly ever asleep");
    assert!(naps.longest <= Duration::from_millis(limit_ms.into()));
}

fn strongest(round: &Value) -> u64 {
    let percents = round["throttle_percent"].as_array().unwrap();
    percents.iter().map(count).max().unwrap()
}

#[test]
fn a_guest_that_writes_400_mb_a_second_within_300_ms() {
    converges_within(300, "cpu1.ws=16:256 cpu1.pattern=sweep");
}

#[test]
fn a_guest_that_writes_400_mb_a_second_within_50_ms() {
    converges_within(50, "cpu1.ws=16:256 cpu1.pattern=sweep");
}

#[test]
fn a_guest_that_writes_400_mb_a_second_anywhere_in_512_mib_within_50_ms() {
    converges_within(50, "cpu1.ws=16:512 cpu1.pattern=uniform");
}
