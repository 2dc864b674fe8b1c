//! Moves within one host, by the descriptors of guest memory: nothing is copied, and all of it is there.

use std::time::Duration;

use integration_tests::ferry::{Ferry, PulseGuest};

const STEP: Duration = Duration::from_secs(60);
const SEED: u64 = 0x10ca_1000;

const GUEST: PulseGuest<'_> = PulseGuest {
    words: "beat=1 ws=16:32 rate=20000 cpu1.ws=64:64 cpu1.rate=5000 cpu1.pattern=sweep",
    cpus: 2,
    mib: 4096,
};

/// A Unix socket that nobody else uses.
fn socket(name: &str) -> String {
    let file = format!("ferry-local-{}-{name}", std::process::id());
    format!("unix:{}", std::env::temp_dir().join(file).display())
}

#[test]
fn four_gigabytes_go_there_and_on_in_an_instant() {
    let mut ferry = GUEST.boot_in_memfd(&[]).unwrap();
    // Of the memory that the guest itself leaves alone: 64 MiB above its tables, in the first region.
    let filled = std::slice::from_ref(&(256 << 20..320 << 20));
    ferry.fill(SEED, filled).unwrap();
    let mut last = ferry.check_pulse().unwrap();
    for name in ["b", "c"] {
        let target = socket(name);
        let next = Ferry::receive(None, &target, &[]).unwrap();
        let moved = ferry.migrate(&target, &[]).unwrap().completed().unwrap();
        let report = moved.report;
        println!(
            "4 GiB by descriptor: {} ms in all, blackout {} ms, guest gap {} ms, {} bytes",
            report["total_ms"], report["blackout_ms"], report["guest_gap_ms"], report["wire_bytes"]
        );
        assert_eq!(ferry.wait_end(STEP).unwrap().code(), Some(0));
        assert!(report["wire_bytes"].as_u64().unwrap() < 1 << 20);
        next.wait_beats(50).unwrap();
        let now = next.check_pulse().unwrap();
        now.follows(&last).unwrap();
        assert!(now.beat() > last.beat() && now.pages_written() > last.pages_written());
        next.check_fill(SEED, filled).unwrap();
        (ferry, last) = (next, now);
    }
    // What came by descriptor leaves over TCP like any other guest; each stream looks for holes in its memory.
    let target = "tcp:127.0.0.1:4720";
    let next = Ferry::receive(None, target, &[]).unwrap();
    let moved = ferry.migrate(target, &["--streams", "2"]).unwrap();
    moved.completed().unwrap();
    next.wait_beats(50).unwrap();
    next.check_pulse().unwrap().follows(&last).unwrap();
    next.check_fill(SEED, filled).unwrap();
}

#[test]
fn refusals_leave_the_guest_where_it_is() {
    let small = PulseGuest {
        words: "beat=1 ws=16:16 rate=1000",
        cpus: 1,
        mib: 64,
    };
    for (guest, expected) in [
        (small.boot(None).unwrap(), "--memory SIZE,backing=memfd"),
        (small.boot_in_memfd(&[]).unwrap(), "--max-memory"),
    ] {
        let target = socket("refusals");
        let _receiver = Ferry::receive(None, &target, &["--max-memory", "32M"]).unwrap();
        let said = guest.refused("migrate", &[&target]).unwrap();
        assert!(said.contains(expected), "{said}");
        guest.wait_beats(20).unwrap();
        guest.check_pulse().unwrap();
    }
}
