//! `pulse` on this machine's /dev/kvm: it beats, starts its vCPUs, stamps what it should, and every kind
//! of damage to its memory is found from outside.

#![allow(missing_docs, clippy::unwrap_used)]
#![allow(clippy::cast_possible_truncation, reason = "small test values")]

mod runner;

use guest_images::pulse::{Phase, VCPU_GPA};
use guest_images::verify::{self, Mode, Summary, VerifyError};
use runner::{Guest, Stopped, reader};

fn at_work(mib: u64, cpus: u8, line: &str) -> Guest {
    let guest = Guest::start(mib, cpus, &format!("cpus={cpus} {line}"));
    guest.wait_until("heartbeats", |g| g.beat() > 20);
    guest
}

fn check(stopped: &Stopped) -> Result<Summary, VerifyError> {
    verify::check(&reader(&stopped.memory), Mode::Stopped)
}

fn written(guest: &Guest, vcpu: u32) -> u64 {
    verify::vcpu(&reader(&guest.memory), vcpu).map_or(0, |v| v.pages_written)
}

/// A guest that has written its 8 MiB several times over, and stands still.
fn well_worn(pattern: &str) -> Stopped {
    let guest = at_work(64, 1, &format!("ws=16:8 rate=max pattern={pattern}"));
    guest.wait_until("page writes", |g| written(g, 0) > 20_000);
    guest.stop()
}

#[test]
fn an_idle_guest_beats_and_says_ready() {
    let guest = at_work(32, 1, "beat=1 tsc_khz=2600000");
    assert_eq!(
        guest.serial(),
        "pulse: READY cpus=1 beat=1 tsc_khz=2600000\n"
    );
    let seen = guest.beat();
    let stopped = guest.stop();
    let summary = check(&stopped).unwrap();
    assert!(summary.beat() >= seen && summary.beat() >= stopped.beat);
    assert_eq!(summary.status.phase, Phase::Running);
    assert_eq!(summary.pages_checked, 0);
    let vcpu = verify::vcpu(&reader(&stopped.memory), 0).unwrap();
    assert!(vcpu.halts > 0, "an idle vCPU sleeps");
}

#[test]
fn spinning_needs_no_interrupt_and_the_frequency_is_measured() {
    let stopped = at_work(32, 1, "wait=spin").stop();
    assert!(check(&stopped).unwrap().status.tsc_khz > 100_000);
}

#[test]
fn four_vcpus_do_each_their_own() {
    let guest = at_work(
        64,
        4,
        "ws=8:8 rate=5000 cpu1.ws=16:8 cpu1.rate=max cpu2.ws=24:8 cpu2.rate=max cpu2.pattern=sweep cpu3.role=compute",
    );
    guest.wait_until("page writes of three vCPUs", |g| {
        (0..3).all(|v| written(g, v) > 3000)
    });
    let first = verify::check(&reader(&guest.memory), Mode::Running).unwrap();
    assert_eq!(first.pages_checked, 3 * 2048);
    guest.wait_until("loops", |g| {
        verify::vcpu(&reader(&g.memory), 3).unwrap().loops > first.vcpus[3].loops
    });
    let second = verify::check(&reader(&guest.memory), Mode::Running).unwrap();
    second.follows(&first).unwrap();
    assert!(matches!(
        first.follows(&second),
        Err(VerifyError::Backwards { .. })
    ));
    let last = check(&guest.stop()).unwrap();
    last.follows(&second).unwrap();
    assert!(last.pages_written() > first.pages_written());
}

#[test]
fn a_guest_stopped_anywhere_verifies() {
    for pattern in ["uniform", "sweep"] {
        for _ in 0..5 {
            let stopped = well_worn(pattern);
            let summary = check(&stopped).unwrap();
            assert_eq!(summary.pages_checked, 2048);
        }
    }
}

#[test]
fn a_page_lost_or_stale_is_found() {
    for pattern in ["uniform", "sweep"] {
        let stopped = well_worn(pattern);
        let page = |number: u64| (16 << 20) + number * 4096;
        // Some page that was not being written when the guest was stopped.
        let done = stopped.get(VCPU_GPA + 32);
        let table = u64::from(stopped.get(VCPU_GPA + 24));
        let number = (0..2048)
            .find(|n| stopped.get(table + n * 4) <= done)
            .unwrap();
        let old = stopped.get(page(number));
        for (what, offset, value) in [
            ("head", 0, old - 1),
            ("tail", 4092, old - 1),
            ("head", 0, 0),
            ("head", 0, old + 1),
        ] {
            let before = stopped.get(page(number) + offset);
            stopped.put(page(number) + offset, &value.to_le_bytes());
            assert!(
                matches!(check(&stopped), Err(VerifyError::Stale { gpa, vcpu: 0, .. }) if gpa == page(number)),
                "{pattern}: a wrong {what}"
            );
            stopped.put(page(number) + offset, &before.to_le_bytes());
        }
        check(&stopped).unwrap();

        let mut other = [0; 4096];
        reader(&stopped.memory)(page(number + 1), &mut other).unwrap();
        stopped.put(page(number), &other);
        assert!(matches!(
            check(&stopped),
            Err(VerifyError::Identity { gpa, found, .. }) if gpa == page(number) && found == page(number + 1)
        ));
        stopped.put(page(number), &[0; 4096]);
        assert!(matches!(check(&stopped), Err(VerifyError::Identity { .. })));
    }
}

#[test]
fn a_stale_table_or_counter_is_found() {
    let stopped = well_worn("uniform");
    let (counter, table) = (VCPU_GPA + 32, u64::from(stopped.get(VCPU_GPA + 24)));
    let (done, last) = (stopped.get(counter), stopped.get(table + 2047 * 4));

    stopped.put(counter, &(done - 5000).to_le_bytes());
    assert!(matches!(check(&stopped), Err(VerifyError::Future { .. })));
    stopped.put(counter, &(done + 5000).to_le_bytes());
    assert!(matches!(
        check(&stopped),
        Err(VerifyError::NewestMissing { .. })
    ));
    stopped.put(counter, &done.to_le_bytes());

    stopped.put(table + 2047 * 4, &(last - 1).to_le_bytes());
    assert!(matches!(check(&stopped), Err(VerifyError::Stale { .. })));
    stopped.put(table + 2047 * 4, &last.to_le_bytes());
    check(&stopped).unwrap();

    stopped.put(VCPU_GPA + 20, &u32::MAX.to_le_bytes());
    assert!(matches!(check(&stopped), Err(VerifyError::Parse { .. })));
}

#[test]
fn a_page_lost_while_it_runs_is_found() {
    let guest = at_work(64, 1, "ws=16:8 rate=100");
    // One page in ten thousand is written in the meantime; a few at once are enough.
    for number in 100..110u64 {
        let gpa = (16 << 20) + number * 4096 + 4;
        vm_memory::Bytes::write_slice(&guest.memory, &[0; 4], vm_memory::GuestAddress(gpa))
            .unwrap();
    }
    assert!(verify::check(&reader(&guest.memory), Mode::Running).is_err());
    guest.stop();
}

#[test]
fn what_pulse_does_not_understand_it_says() {
    for (line, says) in [
        ("tempo=3", "pulse: bad parameter tempo=3\n"),
        (
            "ws=16:64",
            "pulse: bad parameter ws (not all of it is memory)\n",
        ),
        (
            "rate=1",
            "pulse: bad parameter rate (without ws, or with role=compute)\n",
        ),
        (
            "cpus=2",
            "pulse: a vCPU did not start, fewer than cpus= asks for\n",
        ),
        (
            "cpu1.role=compute",
            "pulse: bad parameter cpuN (no such vCPU, see cpus=)\n",
        ),
        (
            "cpus=2 ws=8:9 cpu1.ws=16:1",
            "pulse: bad parameter ws (two of them overlap)\n",
        ),
    ] {
        // A TSC that is said to be slow makes it give up soon on a vCPU that is not there.
        let guest = Guest::start(64, 1, &format!("tsc_khz=10000 {line}"));
        guest.wait_until(says, |g| g.serial() == says);
        let stopped = guest.stop();
        assert_eq!(stopped.beat, 0);
        assert!(check(&stopped).is_err());
    }
}
