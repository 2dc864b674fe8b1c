//! The bare guest straight on this machine's `/dev/kvm`: what a move leaves of its memory and its pulse.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use guest_images::verify::{self, Mode};
use integration_tests::ferry::{Ferry, World};

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
