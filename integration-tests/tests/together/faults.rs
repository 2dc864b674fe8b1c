//! Moves that are killed or cut: exactly one end runs the guest afterwards, and it is whole.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Instant;

use integration_tests::ferry::{Fault, Ferry, Migration, Relay, Spot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::lab::{GUEST, Lab, STEP, goes_through};

/// A round of the whole working set takes longer than this move may stand still, so there is more than one.
const SEVERAL_ROUNDS: [&str; 4] = ["--bandwidth", "100MB", "--downtime", "50ms"];
/// Whatever is left after round 0 goes over with the guest standing still.
const ONE_ROUND: [&str; 4] = ["--max-rounds", "1", "--downtime", "20s"];

impl Lab {
    /// Moves the guest towards `address` with a fault on the way, and does `meanwhile` when it has come there.
    fn disturbed<T: Send>(
        &self,
        address: SocketAddr,
        (spot, fault): (Spot, Fault),
        args: &[&str],
        meanwhile: impl FnOnce(&Relay) -> T,
    ) -> (Migration, T) {
        let relay = Relay::start(&self.host, address, spot, fault).unwrap();
        goes_through(&self.guest, &relay, args, || meanwhile(&relay))
    }
}

/// Kills the receiver at a spot: the move fails, the guest stays, and a second try succeeds.
fn receiver_killed(lab: &mut Lab, spot: Spot, args: &[&str], in_blackout: bool) {
    let (mut receiver, address) = lab.receiver();
    let (moved, stood_still) = lab.disturbed(address, (spot, Fault::Hold), args, |relay| {
        // One that runs may be without a processor for a while.
        let stood_still = match in_blackout {
            true => lab.guest.stands_still().unwrap(),
            false => lab.guest.wait_beats(5).is_err(),
        };
        receiver.kill();
        relay.cut();
        stood_still
    });
    assert_eq!(stood_still, in_blackout, "{spot:?}");
    assert_eq!(moved.status, 1, "{moved:?}");
    assert_eq!(moved.report["outcome"], "failed", "{moved:?}");
    println!("{spot:?}: {}", moved.report["reason"]);
    lab.unharmed();
    let status = lab.guest.status().unwrap();
    assert_eq!(status["last_move"]["outcome"], "failed", "{status}");
    assert_eq!(status["dirty_log"]["on"], false, "{status}");
    lab.moves_on();
}

#[test]
fn a_receiver_killed_at_any_time_leaves_the_guest_at_home() {
    let mut lab = Lab::new();
    receiver_killed(&mut lab, Spot::ACCEPT, &[], false);
    receiver_killed(&mut lab, Spot::pages(0, 5), &[], false);
    receiver_killed(&mut lab, Spot::pages(1, 1), &SEVERAL_ROUNDS, false);
    receiver_killed(&mut lab, Spot::pages(1, 2), &ONE_ROUND, true);
    receiver_killed(&mut lab, Spot::STATE, &[], true);
    receiver_killed(&mut lab, Spot::READY, &[], true);
}

/// One that is stopped tells the source before it goes: nobody has to look for the guest, though GO is on its way.
#[test]
fn a_receiver_stopped_at_any_time_gives_the_guest_back() {
    let mut lab = Lab::new();
    for spot in [Spot::pages(0, 5), Spot::STATE, Spot::GO] {
        let (mut receiver, address) = lab.receiver();
        let (moved, ()) = lab.disturbed(address, (spot, Fault::Hold), &[], |_| {
            receiver.act("stop").unwrap();
            assert_eq!(receiver.wait_end(STEP).unwrap().code(), Some(0));
        });
        let said = receiver.messages().text();
        assert!(said.contains("stopped while a guest came"), "{said}");
        assert_eq!(moved.status, 1, "{spot:?}: {moved:?}");
        assert_eq!(moved.report["outcome"], "failed", "{moved:?}");
        println!("{spot:?}: {}", moved.report["reason"]);
        lab.unharmed();
    }
    lab.moves_on();
}

/// Questions that come too late to be answered keep a process that is about to end for a while.
#[test]
fn a_receiver_that_is_about_to_end_takes_no_guest() {
    let mut lab = Lab::new();
    // A question comes too late in some of the rounds; whenever the source does, its guest is at home.
    for _ in 0..20 {
        let (mut receiver, address) = lab.receiver();
        let ask = |_| {
            let mut asking = UnixStream::connect(receiver.control()).unwrap();
            asking.write_all(b"GET /v1/status HTTP/1.1\r\n").unwrap();
            asking
        };
        let mut asking: Vec<_> = (0..15).map(ask).collect();
        let pid = Pid::from_raw(i32::try_from(receiver.pid()).unwrap());
        let send = |signal| kill(pid, signal).unwrap();
        send(Signal::SIGSTOP);
        send(Signal::SIGTERM);
        for asking in &mut asking {
            asking.write_all(b"\r\n").unwrap();
        }
        send(Signal::SIGCONT);
        // By then the end is decided.
        let begun = Instant::now();
        while UnixStream::connect(receiver.control()).is_ok() {
            assert!(begun.elapsed() < STEP);
        }
        let moved = lab.guest.migrate(&format!("tcp:{address}"), &[]).unwrap();
        let met = receiver.ended().is_none();
        println!("met: {met}: {}", moved.report["reason"]);
        assert_eq!(receiver.wait_end(STEP).unwrap().code(), Some(0));
        assert_eq!(moved.status, 1, "{moved:?}");
        assert_eq!(moved.report["outcome"], "failed", "{moved:?}");
        let said = receiver.messages().text();
        assert!(said.contains("stopped before a guest came"), "{said}");
        lab.unharmed();
        if met {
            break;
        }
    }
    lab.moves_on();
}

#[test]
fn a_receiver_outlives_a_source_killed_in_mid_move() {
    let mut lab = Lab::new();
    let address = SocketAddr::from(([127, 0, 0, 1], 4699));
    let target = format!("tcp:{address}");
    let listen = ["receive", "--listen", &target];
    let mut receiver = Ferry::start(Some(&lab.host), &listen).unwrap();
    receiver.wait_control(STEP).unwrap();

    for spot in [Spot::ACCEPT, Spot::pages(0, 5), Spot::STATE, Spot::GO] {
        let mut doomed = GUEST.boot(Some(&lab.host)).unwrap();
        let relay = Relay::start(&lab.host, address, spot, Fault::Hold).unwrap();
        let mut moving = doomed.prepare("migrate", &[&relay.target()]).unwrap();
        let moving = moving.stdout(Stdio::piped()).stderr(Stdio::piped());
        let moving = moving.spawn().unwrap();
        relay.wait_reached(STEP).unwrap();
        assert_eq!(receiver.state().unwrap(), "receiving");
        let said = receiver.messages().count();
        doomed.kill();
        relay.cut();
        let line = receiver
            .messages()
            .wait(said, STEP, |line| line.contains("no guest came in"))
            .unwrap();
        println!("{spot:?}: {line}");
        let output = moving.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        receiver.wait_state("waiting", STEP).unwrap();
        assert_eq!(receiver.messages().since(said), [line]);
    }

    lab.guest
        .migrate(&target, &[])
        .unwrap()
        .completed()
        .unwrap();
    lab.guest = receiver;
    lab.unharmed();
}

/// The source of a move that was cut behind GO: it does nothing by itself, and says what to do.
fn source_knows_nothing(lab: &Lab, moved: &Migration) {
    assert_eq!(moved.status, 4, "{moved:?}");
    assert_eq!(moved.report["outcome"], "unknown", "{moved:?}");
    let status = lab.guest.status().unwrap();
    assert_eq!(status["state"], "unknown", "{status}");
    assert_eq!(status["last_move"]["outcome"], "unknown", "{status}");
    println!("{}", status["last_move"]["reason"]);
    assert!(lab.guest.stands_still().unwrap());
    let advice = lab.guest.refused("resume", &[]).unwrap();
    assert!(advice.contains("resume --force"), "{advice}");
    assert!(advice.contains("stop"), "{advice}");
    for act in ["pause", "cancel"] {
        lab.guest.refused(act, &[]).unwrap();
    }
    lab.guest.refused("migrate", &["tcp:127.0.0.1:1"]).unwrap();
    assert!(lab.guest.stands_still().unwrap());
}

#[test]
fn a_cut_before_go_arrives_leaves_the_guest_paused_until_told() {
    let mut lab = Lab::new();
    let (mut receiver, address) = lab.receiver();
    let cut = (Spot::GO, Fault::CutBefore);
    let (moved, ()) = lab.disturbed(address, cut, &[], |_| {});
    source_knows_nothing(&lab, &moved);
    // The destination has never run it, and has nothing of it left.
    assert_eq!(receiver.wait_end(STEP).unwrap().code(), Some(1));
    println!("{}", receiver.messages().tail());

    let output = lab.guest.command("resume", &["--force"]).unwrap();
    assert!(output.status.success(), "{output:?}");
    lab.unharmed();
    lab.moves_on();
}

#[test]
fn a_cut_behind_go_leaves_the_guest_with_the_destination() {
    for cut in [(Spot::GO, Fault::CutBehind), (Spot::LIVE, Fault::CutBefore)] {
        let mut lab = Lab::new();
        let (receiver, address) = lab.receiver();
        let (moved, ()) = lab.disturbed(address, cut, &[], |_| {});
        source_knows_nothing(&lab, &moved);

        let mut source = std::mem::replace(&mut lab.guest, receiver);
        // Told by nobody: the source does not know.
        lab.guest.wait_state("running", STEP).unwrap();
        lab.unharmed();
        source.act("stop").unwrap();
        assert_eq!(source.wait_end(STEP).unwrap().code(), Some(0));
        lab.moves_on();
    }
}
