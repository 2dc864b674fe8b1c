//! The bare guest straight on this machine's `/dev/kvm`: what a move leaves of its memory and its pulse.

use std::time::Duration;

use guest_images::verify::{self, Mode};
use integration_tests::ferry::{Ferry, PulseGuest, World};
use vmm::kvm::cpuid::{self, baseline};

const STEP: Duration = Duration::from_secs(60);

#[test]
fn a_beating_guest_arrives_whole() {
    let world = World::new(0).unwrap();
    let parameters = "beat=1 ws=16:64 rate=5000";
    let run = ["run", "--pulse", parameters, "--memory", "256M"];
    let mut source = Ferry::start(Some(&world.a), &run).unwrap();
    source
        .wait_console("pulse's READY", STEP, |line| line.contains("pulse: READY"))
        .unwrap();
    let memory = source.memory().unwrap();
    let untouched = (128 << 20)..(256 << 20);
    guest_images::fill::write(1, untouched.clone(), |gpa, page| memory.write(gpa, page)).unwrap();
    let before = verify::check(&memory, Mode::Running).unwrap();

    let target = format!("tcp:{}:4700", World::B);
    let destination = Ferry::receive(Some(&world.b), &target, &["--insecure-plaintext"]).unwrap();
    let moved = source
        .migrate(&target, &["--insecure-plaintext"])
        .unwrap()
        .completed()
        .unwrap();
    println!("{}", moved.stdout);
    assert_eq!(source.wait_end(STEP).unwrap().code(), Some(0));

    assert!(destination.command("pause", &[]).unwrap().status.success());
    let memory = destination.memory().unwrap();
    let after = verify::check(&memory, Mode::Stopped).unwrap();
    after.follows(&before).unwrap();
    guest_images::fill::check(1, untouched, &memory).unwrap();
    println!(
        "blackout {} ms as reported, {} ms as the guest felt it",
        moved.report["blackout_ms"], moved.report["guest_gap_ms"]
    );
}

/// Of the largest level that KVM has here.
#[test]
fn a_guest_of_a_shared_cpu_goes_there_and_on() {
    let guest = PulseGuest {
        words: "beat=1 ws=16:32 rate=5000",
        cpus: 2,
        mib: 64,
    };
    let host = cpuid::supported(&kvm_ioctls::Kvm::new().unwrap()).unwrap();
    let level = baseline::best(&host).unwrap();
    println!("--cpu {level}");
    let mut ferry = guest.boot_with(None, &["--cpu", level.word()]).unwrap();
    let mut last = ferry.check_pulse().unwrap();
    for target in ["tcp:127.0.0.1:4741", "tcp:127.0.0.1:4742"] {
        let next = Ferry::receive(None, target, &[]).unwrap();
        ferry.migrate(target, &[]).unwrap().completed().unwrap();
        next.wait_beats(50).unwrap();
        let now = next.check_pulse().unwrap();
        now.follows(&last).unwrap();
        (ferry, last) = (next, now);
    }
}
