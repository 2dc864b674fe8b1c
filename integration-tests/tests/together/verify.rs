//! Moves of the bare guest whose memories are compared before the handover, straight on this machine's `/dev/kvm`: what
//! is right is let through, by every way that pages can take, and what nobody touched stays untouched.

use integration_tests::ferry::{Ferry, PulseGuest};

const SEED: u64 = 0x7e51_f7a1;

const GUEST: PulseGuest<'_> = PulseGuest {
    words: "beat=1 ws=16:64 rate=5000 cpu1.ws=128:32 cpu1.rate=2000 cpu1.pattern=sweep",
    cpus: 2,
    mib: 1024,
};

#[test]
fn a_verified_guest_arrives_whole_by_every_way() {
    let mut ferry = GUEST.boot(None).unwrap();
    let filled = std::slice::from_ref(&(512 << 20..768 << 20));
    ferry.fill(SEED, filled).unwrap();
    let mut last = ferry.check_pulse().unwrap();
    let ways: [&[&str]; 3] = [
        &["--verify"],
        &["--verify", "--streams", "4", "--compress", "lz4"],
        &["--verify", "--compress", "zstd", "--delta"],
    ];
    for (port, way) in (4760..).zip(ways) {
        let target = format!("tcp:127.0.0.1:{port}");
        let next = Ferry::receive(None, &target, &[]).unwrap();
        let before = ferry.resident().unwrap();
        let moved = ferry.migrate(&target, way).unwrap().completed().unwrap();
        let report = &moved.report;
        let ms = |value: &serde_json::Value| value.as_f64().unwrap();
        let (verify, blackout) = (ms(&report["verify_ms"]), ms(&report["blackout_ms"]));
        println!(
            "{way:?}: verified in {verify:.1} ms of a blackout of {blackout:.1} ms, predicted {} ms without it; {before} bytes of memory here, {} there",
            report["predicted_blackout_ms"],
            next.resident().unwrap()
        );
        assert!(verify > 0.0 && verify <= blackout);
        assert!((ms(&report["blackout"]["verify_ms"]) - verify).abs() < 0.01);
        assert!(moved.stdout.contains("nor predicted"), "{}", moved.stdout);
        // More than half of the guest was never touched, and is not there now either.
        assert!(next.resident().unwrap() < 768 << 20);
        next.wait_beats(50).unwrap();
        let now = next.check_pulse().unwrap();
        now.follows(&last).unwrap();
        next.check_fill(SEED, filled).unwrap();
        (ferry, last) = (next, now);
    }
}

#[test]
fn memory_that_both_ends_map_is_not_compared() {
    let small = PulseGuest {
        words: "beat=1 ws=16:16 rate=1000",
        cpus: 1,
        mib: 64,
    };
    let ferry = small.boot_in_memfd(&[]).unwrap();
    let asked = ["unix:/nonexistent/ferry", "--verify"];
    let refused = ferry.command("migrate", &asked).unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("no two to compare"), "{said}");
    ferry.wait_beats(50).unwrap();
}
