//! `pulse` on this machine's /dev/kvm: it beats, starts its vCPUs, stamps what it should, and every kind
//! of damage to its memory is found from outside.

#![allow(missing_docs, clippy::unwrap_used)]
#![allow(clippy::cast_possible_truncation, reason = "small test values")]

mod runner;

use guest_images::pulse::{Pattern, Phase, Phases, VCPU_GPA, page_of_rank};
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
    for pattern in ["uniform", "sweep", "zipf"] {
        for _ in 0..5 {
            let stopped = well_worn(pattern);
            let summary = check(&stopped).unwrap();
            assert_eq!(summary.pages_checked, 2048);
        }
    }
}

/// By how long ago each page was written, in writes, since stamps are numbers of writes.
#[test]
fn a_hot_spot_is_hot_as_zipf_says_and_scattered() {
    // No power of two: octaves have no round ends.
    let guest = at_work(64, 1, "ws=16:9 rate=max pattern=zipf");
    guest.wait_until("page writes", |g| written(g, 0) > 60_000);
    let stopped = guest.stop();
    let vcpu = verify::vcpu(&reader(&stopped.memory), 0).unwrap();
    assert_eq!((vcpu.pattern, vcpu.ws_pages), (Pattern::Zipf, 2304));
    let done = stopped.get(VCPU_GPA + 32);
    let median_age = |ranks: std::ops::Range<u32>| {
        let mut ages: Vec<u32> = ranks
            .map(|rank| {
                let entry = u64::from(page_of_rank(rank, vcpu.ws_pages)) * 4;
                done.saturating_sub(stopped.get(u64::from(vcpu.table_gpa) + entry))
            })
            .collect();
        ages.sort_unstable();
        ages[ages.len() / 2]
    };
    // Twelve octaves: a page of an octave of n pages is written every 12 n writes, the median 0.69 of that ago.
    for (octave, expected) in [(36..72, 299), (288..576, 2395), (1152..2304, 9580)] {
        let age = median_age(octave.clone());
        assert!(
            (expected / 2..expected * 2).contains(&age),
            "ranks {octave:?}: median age {age}, expected {expected}"
        );
    }
    let neighbours = (0..1000).filter(|&rank| {
        page_of_rank(rank, vcpu.ws_pages).abs_diff(page_of_rank(rank + 1, vcpu.ws_pages)) < 16
    });
    assert_eq!(neighbours.count(), 0, "hot pages lie apart");
}

#[test]
fn every_page_has_one_rank() {
    for pages in [1, 2, 255, 256, 2304, 65_536, 915_456] {
        let mut seen = vec![false; pages as usize];
        for rank in 0..pages {
            let page = page_of_rank(rank, pages) as usize;
            assert!(!std::mem::replace(&mut seen[page], true), "{pages}: {page}");
        }
    }
}

/// Beats and steps come out of the same loop, so that many beats without a step are a calm, however slow the host is.
#[test]
fn bursts_and_calm_take_turns() {
    for rate in ["20000", "max"] {
        let line = format!("ws=16:8 rate={rate} phases=40:120 cpu1.role=compute");
        let guest = at_work(64, 2, &line);
        let vcpu = verify::vcpu(&reader(&guest.memory), 0).unwrap();
        let phases = Phases {
            on_ms: 40,
            off_ms: 120,
        };
        assert_eq!(vcpu.phases, Some(phases));
        let loops = || verify::vcpu(&reader(&guest.memory), 1).unwrap().loops;
        let begun = loops();
        for _ in 0..3 {
            let seen = std::cell::Cell::new((0, 0));
            guest.wait_until("calm", |g| {
                let (beat, now) = (g.beat(), written(g, 0));
                if now != seen.get().1 {
                    seen.set((beat, now));
                }
                beat - seen.get().0 > 50
            });
            let rested = written(&guest, 0);
            guest.wait_until("burst", |g| written(g, 0) > rested);
        }
        assert!(loops() > begun, "the other vCPU knows no calm");
        check(&guest.stop()).unwrap();
    }
}

/// Such a guest, and a page that was not being written when it was stopped, before any that was: of two that disagree
/// the first is told of. Where the very first page was in flight, as a hot one may be, it takes another guest.
fn worn_before_what_is_in_flight(pattern: &str) -> (Stopped, u64) {
    loop {
        let stopped = well_worn(pattern);
        let done = stopped.get(VCPU_GPA + 32);
        let table = u64::from(stopped.get(VCPU_GPA + 24));
        let stamp = |number: u64| stopped.get(table + number * 4);
        let page = |number: u64| (16 << 20) + number * 4096;
        let landed = |&number: &u64| {
            [0, 4092]
                .iter()
                .all(|word| stopped.get(page(number) + word) == stamp(number))
        };
        let found = (0..2048)
            .take_while(landed)
            .find(|&n| (1..=done).contains(&stamp(n)));
        if let Some(number) = found {
            return (stopped, number);
        }
    }
}

#[test]
fn a_page_lost_or_stale_is_found() {
    for pattern in ["uniform", "sweep", "zipf"] {
        let page = |number: u64| (16 << 20) + number * 4096;
        let (stopped, number) = worn_before_what_is_in_flight(pattern);
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
            "ws=16:8 phases=10:10",
            "pulse: bad parameter phases (without rate)\n",
        ),
        (
            "ws=16:8 rate=1 phases=10:0",
            "pulse: bad parameter phases=10:0\n",
        ),
        ("pattern=zipfel", "pulse: bad parameter pattern=zipfel\n"),
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
