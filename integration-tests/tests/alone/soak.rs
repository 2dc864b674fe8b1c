//! A sample of `make soak`: faults on real moves, moves there and back, attempts that fail.

use std::net::SocketAddr;
use std::time::Duration;

use integration_tests::ferry::frames::Kind;
use integration_tests::ferry::{Ferry, Netns, PulseGuest};
use integration_tests::soak::endurance;
use integration_tests::soak::fault::{Act, Compress, Cut, Fault, Place, Setting, Span};
use integration_tests::soak::faults::Campaign;
use integration_tests::soak::injector::{Injector, Orders};
use integration_tests::soak::lab::Lab;
use integration_tests::soak::outcome::Violation;
use integration_tests::soak::peers::Peers;
use integration_tests::soak::summary::DRIFT_US;
use integration_tests::soak::witness::Witness;

/// After so many ms a silent peer is dead. A busy machine may be silent for a while.
const PEER_TIMEOUT_MS: u32 = 1500;

fn peers() -> Peers {
    Peers::of(PEER_TIMEOUT_MS).unwrap()
}

#[test]
fn faults_leave_one_guest_and_a_second_try_that_succeeds() {
    const FAULTS: u32 = 24;
    let campaign = Campaign {
        seed: 20,
        first: 0,
        faults: FAULTS,
        until: None,
        pairs: 3,
        peers: peers(),
    };
    let tally = campaign
        .run(|fault, outcome, _| println!("{fault}: {outcome:?}"))
        .unwrap();
    println!("{}", serde_json::to_string_pretty(&tally).unwrap());
    assert!(tally.is_clean(), "{:#?}", tally.violations);
    assert!(tally.faults >= FAULTS);
}

/// A fault that does no harm.
fn pause(index: u32) -> Fault {
    Fault {
        seed: 0,
        index,
        place: Place::Connecting,
        act: Act::Stall(Span::Ms(1)),
        setting: Setting {
            streams: 1,
            rounds: false,
            compress: Compress::None,
            delta: false,
            verify: false,
            tls: false,
        },
    }
}

/// Of the checks above: a bit that is wrong in one page of the guest is found.
#[test]
fn a_wrong_page_is_seen() {
    let mut lab = Lab::new(0, 3, peers()).unwrap();
    let outcome = lab.run(&pause(0)).unwrap();
    assert_eq!((outcome.status, outcome.violations), (Some(0), vec![]));
    let memory = lab.memory().unwrap().unwrap();
    memory.write(17 << 20 | 0x800, &[0xff; 8]).unwrap();
    let outcome = lab.run(&pause(1)).unwrap();
    let found: Vec<_> = outcome.violations.iter().map(|(what, _)| *what).collect();
    assert_eq!(found, [Violation::Corrupted], "{outcome:?}");
    assert!(outcome.violations[0].1.contains("0x1100000"), "{outcome:?}");
}

/// Of the checks above: who forces the source to resume although the destination runs the guest has two, and that is
/// seen.
#[test]
fn a_second_guest_is_seen() {
    const MIB: u64 = 32;
    let guest = PulseGuest {
        words: "beat=1",
        cpus: 1,
        mib: MIB,
    };
    let host = Netns::new("two").unwrap();
    let source = guest.boot(Some(&host)).unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], 4700));
    let receiver = Ferry::receive(Some(&host), &format!("tcp:{address}"), &[]).unwrap();
    let orders = Orders {
        place: Place::Frame {
            kind: Kind::LIVE,
            round: None,
            nth: 1,
            stream: Some(0),
        },
        act: Act::Cut {
            how: Cut::Reset,
            whole: true,
            behind: false,
        },
        sealed: false,
        beyond: Duration::ZERO,
        signal: Box::new(|| ()),
    };
    let watch = || Witness::start(source.memory().unwrap(), receiver.pid(), MIB << 20);
    let injector = Injector::start(&host, address, orders).unwrap();
    let witness = watch();
    let moved = source.migrate(&injector.target(), &[]).unwrap();
    assert_eq!(moved.status, 4, "{moved:?}");
    receiver.wait_beats(50).unwrap();
    let seen = witness.finish();
    assert!(seen.arrived && seen.double.is_none(), "{seen:?}");

    let witness = watch();
    receiver.wait_beats(50).unwrap();
    let output = source.command("resume", &["--force"]).unwrap();
    assert!(output.status.success(), "{output:?}");
    source.wait_beats(50).unwrap();
    let seen = witness.finish();
    assert!(seen.arrived && seen.double.is_some(), "{seen:?}");
}

#[test]
fn moves_there_and_back_leave_nothing_behind() {
    let done = endurance::back_and_forth(20, &peers(), &mut |_| ()).unwrap();
    println!("{done:#?}");
    assert_eq!(done.moves, 20);
    assert_eq!(done.leaks, Vec::<String>::new());
    // A clock that stands still during a blackout, or goes on from another host's, is off by more than the least.
    assert!(done.drift_us_a_move.abs() < DRIFT_US, "{done:?}");
    assert!(done.pages_checked > 0);
}

#[test]
fn attempts_that_fail_leave_nothing_behind() {
    let done = endurance::attempts(24, &peers(), &mut |_| ()).unwrap();
    println!("{done:#?}");
    let by_end = [done.nobody, done.refused, done.cut, done.cancelled];
    assert_eq!(by_end, [6; 4]);
    assert_eq!(done.leaks, Vec::<String>::new());
}
