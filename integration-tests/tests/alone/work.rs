//! How much less a guest gets done in a move, as the report has it: counted from outside, it is the same.

use std::thread;
use std::time::{Duration, Instant};

use guest_images::procmem::ProcMem;
use guest_images::verify;
use integration_tests::ferry::{Ferry, PulseGuest, World};
use serde_json::Value;

const STEP: Duration = Duration::from_secs(60);
const SEED: u64 = 7;
/// As far back as Ferry looks for a baseline, and a little more: both shall look at the same time.
const UNDISTURBED: Duration = Duration::from_millis(4250);

/// The count of a vCPU; None once its process is gone.
fn done(memory: &ProcMem, vcpu: u32) -> Option<u64> {
    let vcpu = verify::vcpu(memory, vcpu).ok()?;
    Some(vcpu.pages_written + vcpu.loops)
}

/// What each vCPU lost in a move, in percent, counted from outside: its rate of the time before, and the last count
/// seen in the source's memory over the time that Ferry says the move took.
fn counted_outside(
    guest: &Ferry,
    vcpus: u32,
    migrate: impl FnOnce() -> Value,
) -> (Value, Vec<f64>) {
    let memory = guest.memory().unwrap();
    let all = || -> Option<Vec<u64>> { (0..vcpus).map(|vcpu| done(&memory, vcpu)).collect() };
    let (first, since) = (all().unwrap(), Instant::now());
    thread::sleep(UNDISTURBED);
    let (begun, before) = (all().unwrap(), since.elapsed().as_secs_f64());
    let (report, last) = thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut last = begun.clone();
            while let Some(now) = all() {
                last = now;
                thread::sleep(Duration::from_millis(2));
            }
            last
        });
        (migrate(), watch.join().unwrap())
    });
    let took = report["total_ms"].as_f64().unwrap() / 1e3;
    let lost = (0..vcpus as usize).map(|vcpu| {
        let usual = (begun[vcpu] - first[vcpu]) as f64 / before;
        100.0 * (1.0 - (last[vcpu] - begun[vcpu]) as f64 / took / usual)
    });
    (report, lost.collect())
}

fn moved(guest: &PulseGuest<'_>, counted: u32, args: &[&str]) -> (Value, Vec<f64>) {
    let world = World::new(0).unwrap();
    let mut source = guest.boot(Some(&world.a)).unwrap();
    let filled = [guest.fillable()];
    source.fill(SEED, &filled).unwrap();
    let target = format!("tcp:{}:4700", World::B);
    let plain = ["--insecure-plaintext"];
    let destination = Ferry::receive(Some(&world.b), &target, &plain).unwrap();
    let args = [&plain, args].concat();
    let (report, lost) = counted_outside(&source, counted, || {
        let moved = source.migrate(&target, &args).unwrap();
        if moved.status != 0 {
            // Nothing else ends the watch.
            source.act("stop").unwrap();
        }
        moved.completed().unwrap().report
    });
    assert_eq!(source.wait_end(STEP).unwrap().code(), Some(0));
    destination.wait_beats(20).unwrap();
    destination.check_pulse().unwrap();
    destination.check_fill(SEED, &filled).unwrap();
    println!(
        "lost: {} %, by vCPU {}, per CPU second {}; from outside {lost:.1?}; {} ms",
        report["guest_work_lost_percent"],
        report["vcpu_work_lost_percent"],
        report["vcpu_work_per_cpu_s_lost_percent"],
        report["total_ms"],
    );
    (report, lost)
}

fn percents(list: &Value) -> Vec<f64> {
    let list = list.as_array().unwrap().iter();
    list.map(|percent| percent.as_f64().unwrap()).collect()
}

#[test]
fn a_guest_held_down_to_the_link_loses_what_is_counted_from_outside() {
    let guest = PulseGuest {
        words: "role=compute cpu1.ws=16:64 cpu1.rate=40000",
        cpus: 2,
        mib: 128,
    };
    let args = [
        "--bandwidth",
        "200Mbit",
        "--throttle",
        "sdps",
        "--downtime",
        "40ms",
    ];
    let (report, outside) = moved(&guest, 2, &args);
    let told = percents(&report["vcpu_work_lost_percent"]);
    for (told, outside) in told.iter().zip(&outside) {
        assert!(
            (told - outside.max(0.0)).abs() < 10.0,
            "{told} against {outside}"
        );
    }
    // It writes six times what is sent, until it is held down to that; so little that it has the processor for that
    // also on a machine with other work.
    assert!(told[1] > 20.0, "{report}");
    let mean = report["guest_work_lost_percent"].as_f64().unwrap();
    assert!((mean - (told[0] + told[1]) / 2.0).abs() < 0.01, "{report}");
    // Who is kept asleep has no processor time either, so that in what it has it gets done what it always did.
    let per_cpu_s = percents(&report["vcpu_work_per_cpu_s_lost_percent"]);
    assert!(per_cpu_s[0] < 40.0, "{report}");
}

#[test]
fn a_guest_that_writes_little_loses_little() {
    let guest = PulseGuest {
        words: "ws=16:16 rate=2000",
        cpus: 1,
        mib: 256,
    };
    let (report, _) = moved(&guest, 1, &["--bandwidth", "1Gbit"]);
    let told = report["guest_work_lost_percent"].as_f64().unwrap();
    assert!((0.0..15.0).contains(&told), "{report}");
}

#[test]
fn nothing_is_known_of_a_guest_that_does_nothing_or_has_just_begun() {
    let idle = PulseGuest {
        words: "beat=1",
        cpus: 1,
        mib: 64,
    };
    let first = idle.boot(None).unwrap();
    thread::sleep(UNDISTURBED);
    let again = "tcp:127.0.0.1:4731";
    let second = Ferry::receive(None, again, &[]).unwrap();
    let report = first
        .migrate(again, &[])
        .unwrap()
        .completed()
        .unwrap()
        .report;
    assert_eq!(report["guest_work_lost_percent"], Value::Null);
    assert_eq!(report["vcpu_work_lost_percent"], serde_json::json!([null]));

    // No guest has a past on a host where it stood still a moment ago.
    second.act("pause").unwrap();
    second.act("resume").unwrap();
    let there = "tcp:127.0.0.1:4732";
    let _third = Ferry::receive(None, there, &[]).unwrap();
    let report = second
        .migrate(there, &[])
        .unwrap()
        .completed()
        .unwrap()
        .report;
    assert_eq!(report["guest_work_lost_percent"], Value::Null);
    assert_eq!(report["vcpu_work_lost_percent"], serde_json::json!([]));
}
