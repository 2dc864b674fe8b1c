//! A sample of `make soak`: faults on real moves, moves there and back, attempts that fail, too little memory, full disks.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use guest_images::procmem::ProcMem;
use integration_tests::ferry::{Ferry, Lines, MemoryBound, Netns, PulseGuest};
use integration_tests::soak::draw::draw;
use integration_tests::soak::endurance;
use integration_tests::soak::fault::{Act, Fault, Place, Span};
use integration_tests::soak::faults::Campaign;
use integration_tests::soak::lab::Lab;
use integration_tests::soak::outcome::Violation;
use integration_tests::soak::peers::Peers;
use integration_tests::{linux_test, programs};

const STEP: Duration = Duration::from_secs(60);
/// After so many ms a silent peer is dead. A machine that is busy with other things may be silent for a while.
const PEER_TIMEOUT_MS: u32 = 1500;
const SEED: u64 = 20;
const FAULTS: u32 = 24;

#[test]
fn faults_leave_one_guest_and_a_second_try_that_succeeds() {
    let campaign = Campaign {
        seed: SEED,
        first: 0,
        faults: FAULTS,
        until: None,
        pairs: 3,
        peers: Peers::of(PEER_TIMEOUT_MS).unwrap(),
    };
    let tally = campaign
        .run(|fault, outcome, _| println!("{fault}: {outcome:?}"))
        .unwrap();
    println!("{}", serde_json::to_string_pretty(&tally).unwrap());
    assert!(tally.is_clean(), "{:#?}", tally.violations);
    assert!(tally.faults >= FAULTS);
}

/// The checks themselves: what they are there for, they see.
#[test]
fn a_wrong_page_and_a_second_guest_are_seen() {
    todo!()
}

#[test]
fn moves_there_and_back_leave_nothing_behind() {
    let peers = Peers::of(PEER_TIMEOUT_MS).unwrap();
    let done = endurance::back_and_forth(20, &peers, &mut |_| ()).unwrap();
    println!("{done:#?}");
    assert_eq!(done.moves, 20);
    assert_eq!(done.leaks, Vec::<String>::new());
    assert!(done.pages_checked > 0);
}

#[test]
fn attempts_that_fail_leave_nothing_behind() {
    let peers = Peers::of(PEER_TIMEOUT_MS).unwrap();
    let done = endurance::attempts(40, &peers, &mut |_| ()).unwrap();
    println!("{done:#?}");
    assert_eq!(
        (done.nobody, done.refused, done.cut, done.cancelled),
        (10, 10, 10, 10)
    );
    assert_eq!(done.leaks, Vec::<String>::new());
}
