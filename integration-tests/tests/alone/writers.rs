//! A guest of which one vCPU writes more than the link carries and the other computes, moved by the dirty ring, which
//! knows which is which: only the writer pays.

use std::time::Duration;

use integration_tests::ferry::{Ferry, PulseGuest, World};
use serde_json::Value;
use vmm::units::Rate;

const STEP: Duration = Duration::from_secs(60);
const SEED: u64 = 11;
const LIMIT_MS: f64 = 300.0;
const GUEST: PulseGuest<'_> = PulseGuest {
    words: "beat=1 cpu0.role=compute cpu1.ws=16:192 cpu1.rate=27000 cpu1.pattern=sweep",
    cpus: 2,
    mib: 256,
};

fn numbers(value: &Value) -> Vec<f64> {
    let values = value.as_array().unwrap().iter();
    values.map(|value| value.as_f64().unwrap()).collect()
}

/// Moves the guest over 300 Mbit/s, a third of what vCPU 1 writes, checks it, and that vCPU 0 was left alone.
fn only_the_writer_pays(throttle: &str) {
    let world = World::new(0).unwrap();
    world.a.shape(World::LINK, Rate(37_500_000)).unwrap();
    let ring = ["--dirty-tracking", "ring"];
    let mut source = GUEST.boot_with(Some(&world.a), &ring).unwrap();
    let filled = [GUEST.fillable()];
    source.fill(SEED, &filled).unwrap();
    source.wait_beats(20).unwrap();
    let before = source.check_pulse().unwrap();

    let target = format!("tcp:{}:4700", World::B);
    let plain = ["--insecure-plaintext"];
    let destination = Ferry::receive(Some(&world.b), &target, &plain).unwrap();
    let asked = ["--downtime", "300ms", "--throttle", throttle];
    let moved = source
        .migrate(&target, &[&plain[..], &asked].concat())
        .unwrap();
    let report = moved.completed().unwrap();
    assert_eq!(source.wait_end(STEP).unwrap().code(), Some(0));

    destination.wait_beats(100).unwrap();
    let after = destination.check_pulse().unwrap();
    after.follows(&before).unwrap();
    assert!(after.beat() > before.beat());
    destination.check_fill(SEED, &filled).unwrap();

    println!("{}", report.stdout);
    println!("{}", source.messages().text());
    let report = report.report;
    assert_eq!(report["dirty_tracking"], "ring");
    let predicted = report["predicted_blackout_ms"].as_f64().unwrap();
    assert!(predicted <= LIMIT_MS, "{report}");
    let slept = numbers(&report["throttled_ms"]);
    assert_eq!(
        slept[0], 0.0,
        "a vCPU that computes was slowed down: {report}"
    );
    assert!(slept[1] > 0.0, "never throttled: {report}");
    let rounds = report["rounds"].as_array().unwrap();
    assert!(rounds.len() <= 40, "{report}");
    for round in rounds {
        let percents = numbers(&round["throttle_percent"]);
        assert_eq!(percents[0], 0.0, "{round}");
    }
    let first = numbers(&rounds[0]["throttle_percent"]);
    assert_eq!(first[1], 0.0, "throttled in round 0: {report}");
}

#[test]
fn under_auto() {
    only_the_writer_pays("auto");
}

#[test]
fn under_dirty_limit() {
    only_the_writer_pays("dirty-limit");
}

#[test]
fn dirty_limit_is_refused_where_nobody_knows_who_writes() {
    let guest = PulseGuest {
        words: "beat=1",
        cpus: 1,
        mib: 32,
    };
    let ferry = guest.boot(None).unwrap();
    let target = "tcp:127.0.0.1:4709";
    let moved = ferry
        .migrate(target, &["--throttle", "dirty-limit"])
        .unwrap();
    assert_eq!(moved.status, 1);
    let reason = moved.report["reason"].to_string();
    assert!(reason.contains("--dirty-tracking ring"), "{reason}");
    assert!(reason.contains("--throttle auto"), "{reason}");
    ferry.wait_beats(20).unwrap();
}
