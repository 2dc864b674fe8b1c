//! Guests that are moved twice in a row, from A to B and back to a new Ferry on A, whole after each.

use std::ops::Range;
use std::time::Duration;

use integration_tests::ferry::{Ferry, Netns, PulseGuest};

const STEP: Duration = Duration::from_secs(60);
const SEED: u64 = 3;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Moves the guest on `ports` in turn, and checks it after each move.
fn twice(guest: &PulseGuest<'_>, filled: &[Range<u64>]) -> Ferry {
    let host = Netns::new("chain").unwrap();
    let mut ferry = guest.boot(Some(&host)).unwrap();
    ferry.fill(SEED, filled).unwrap();
    let mut last = ferry.check_pulse().unwrap();
    let devices = ferry.status().unwrap()["devices"].clone();
    for port in [4701, 4702] {
        let target = format!("tcp:127.0.0.1:{port}");
        let next = Ferry::receive(Some(&host), &target, &[]).unwrap();
        let moved = ferry.migrate(&target, &[]).unwrap().completed().unwrap();
        println!(
            "{} vCPUs, {} MiB: blackout {} ms, guest gap {} ms",
            guest.cpus, guest.mib, moved.report["blackout_ms"], moved.report["guest_gap_ms"]
        );
        assert_eq!(ferry.wait_end(STEP).unwrap().code(), Some(0));
        next.wait_beats(50).unwrap();
        let now = next.check_pulse().unwrap();
        now.follows(&last).unwrap();
        assert!(now.beat() > last.beat());
        assert_eq!(now.vcpus.len(), usize::from(guest.cpus));
        for (now, last) in now.vcpus.iter().zip(&last.vcpus) {
            assert!(now.tsc_backwards == 0, "{now:?}");
            let went_on = now.pages_written > last.pages_written || now.loops > last.loops;
            assert!(went_on, "a vCPU stood still: {now:?} after {last:?}");
        }
        next.check_fill(SEED, filled).unwrap();
        assert_eq!(next.status().unwrap()["devices"], devices);
        (ferry, last) = (next, now);
    }
    ferry
}

#[test]
fn one_vcpu_that_writes_and_beats() {
    let guest = PulseGuest {
        words: "beat=1 ws=16:64 rate=20000",
        cpus: 1,
        mib: 256,
    };
    twice(&guest, &[guest.fillable()]);
}

#[test]
fn two_vcpus() {
    let guest = PulseGuest {
        words: "beat=1 ws=16:32 rate=5000 cpu1.ws=64:64 cpu1.rate=5000 cpu1.pattern=sweep",
        cpus: 2,
        mib: 256,
    };
    twice(&guest, &[guest.fillable()]);
}

#[test]
fn four_vcpus() {
    let guest = PulseGuest {
        words: "beat=1 ws=16:16 rate=2000 cpu1.ws=32:16 cpu1.rate=2000 cpu1.pattern=sweep \
                cpu2.ws=48:16 cpu2.rate=2000 cpu3.role=compute",
        cpus: 4,
        mib: 256,
    };
    twice(&guest, &[guest.fillable()]);
}

/// Memory on both sides of the 32-bit gap: of every MiB a page is filled, at another place in each, and the
/// ends of the upper part whole.
#[test]
fn five_gigabytes() {
    let guest = PulseGuest {
        words: "beat=1 ws=16:64 rate=5000",
        cpus: 1,
        mib: 5 * 1024,
    };
    let upper = upper_memory(&guest);
    let everywhere = (8 * MIB..64 * MIB)
        .step_by(usize::try_from(MIB).unwrap())
        .chain((2 * GIB..2 * GIB + 64 * MIB).step_by(usize::try_from(MIB).unwrap()))
        .chain((upper.start..upper.end).step_by(usize::try_from(MIB).unwrap()));
    let mut filled: Vec<_> = (0u64..)
        .zip(everywhere)
        .map(|(index, start)| {
            let page = start + index % 256 * 4096;
            page..page + 4096
        })
        .collect();
    filled.push(upper.start..upper.start + MIB);
    filled.push(upper.end - MIB..upper.end);
    twice(&guest, &filled);
}

/// Where the guest's memory above 4 GiB lies.
fn upper_memory(guest: &PulseGuest<'_>) -> Range<u64> {
    let ferry = guest.boot(None).unwrap();
    let status = ferry.status().unwrap();
    let regions = status["memory_regions"].as_array().unwrap();
    let number = |field: &str| regions.last().unwrap()[field].as_u64().unwrap();
    let sum: u64 = regions.iter().map(|r| r["bytes"].as_u64().unwrap()).sum();
    assert_eq!(sum, guest.mib << 20, "{status}");
    assert_eq!(number("gpa"), 4 * GIB, "{status}");
    4 * GIB..4 * GIB + number("bytes")
}
