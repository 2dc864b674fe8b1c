//! A cancel in every phase before GO brings the guest back; after GO it is refused.

use crate::support;

use std::os::unix::net::UnixStream;
use std::time::Duration;

use migration::cancel::CancelToken;
use migration::event::Event;
use migration::options::Options;
use migration::report::Outcome;
use migration::source::After;
use support::run::{PATIENCE, back, options, receiving, receiving_with, send, verify};
use support::{Faults, World, Writer, boot};

fn busy() -> std::sync::Arc<World> {
    let writer = Writer {
        pages: 0..4000,
        per_ms: 200,
    };
    World::new(&[32], writer, Faults::default())
}

/// Cancels at the first event for which `when` holds.
fn cancelled_at(when: impl Fn(&Event) -> bool) {
    let world = busy();
    let (a, b) = UnixStream::pair().unwrap();
    // First, since it takes its time on a busy machine and the receiver is not patient for ever.
    let guest = boot(&world);
    let receiving = receiving(&world, b);
    let cancel = CancelToken::new().unwrap();
    let mut hits = 0;
    // Slow enough that the first round leaves work for a second.
    let slow = Options {
        bandwidth: Some(32 << 20),
        ..options()
    };
    let moved = send(guest, a, &slow, &cancel, &mut |event| {
        if when(&event) && !cancel.is_cancelled() {
            cancel.cancel().unwrap();
            hits += 1;
        }
    });
    assert_eq!(hits, 1);
    assert_eq!(
        moved.report.outcome,
        Outcome::Cancelled,
        "{}",
        moved.report.reason
    );
    let there = receiving.join().unwrap().unwrap_err().to_string();
    assert!(there.contains("cancelled"), "{there}");
    let guest = back(&world, moved.guest);
    // A second attempt goes through.
    let (moved, arrived) = support::run::travel(&world, guest, &options());
    assert_eq!(
        moved.report.outcome,
        Outcome::Completed,
        "{}",
        moved.report.reason
    );
    verify(&world, arrived.unwrap());
}

#[test]
fn when_connected() {
    cancelled_at(|event| matches!(event, Event::Connected { .. }));
}

#[test]
fn in_the_first_round_and_in_a_later_one() {
    cancelled_at(|event| matches!(event, Event::RoundStarted { index: 0, .. }));
    cancelled_at(|event| matches!(event, Event::RoundFinished { round } if round.index == 0));
    cancelled_at(|event| matches!(event, Event::RoundStarted { index: 1, .. }));
}

#[test]
fn while_switching_over() {
    cancelled_at(|event| matches!(event, Event::SwitchingOver { .. }));
}

#[test]
fn after_go_it_is_refused_and_the_move_completes() {
    let world = busy();
    let (a, b) = UnixStream::pair().unwrap();
    let receiving = receiving(&world, b);
    let cancel = CancelToken::new().unwrap();
    let mut refusals = Vec::new();
    let moved = send(boot(&world), a, &options(), &cancel, &mut |event| {
        if event == Event::Go {
            refusals.push(cancel.cancel().unwrap_err().to_string());
        }
    });
    assert_eq!(refusals.len(), 1);
    assert!(refusals[0].contains("committed"));
    assert!(matches!(moved.guest, After::Gone(_)));
    verify(&world, receiving.join().unwrap().unwrap());
}

/// Waits for the other end to be mute, then cancels. `peer` is kept open and says nothing.
fn cancelled_against(
    peer: impl FnOnce(UnixStream) -> UnixStream + Send + 'static,
    options: &Options,
) {
    let world = World::idle(&[8]);
    let (a, b) = UnixStream::pair().unwrap();
    let cancel = CancelToken::new().unwrap();
    let other = cancel.clone();
    let canceller = std::thread::spawn(move || {
        let mute = peer(b);
        other.cancel().unwrap();
        mute
    });
    let moved = send(boot(&world), a, options, &cancel, &mut |_| {});
    assert_eq!(
        moved.report.outcome,
        Outcome::Cancelled,
        "{}",
        moved.report.reason
    );
    verify(&world, back(&world, moved.guest));
    drop(canceller.join().unwrap());
}

/// So long that a test which waits for it fails by the runner's own limit.
fn patient() -> Options {
    Options {
        peer_timeout: Duration::from_secs(3600),
        ..options()
    }
}

#[test]
fn while_the_peer_is_silent_in_the_handshake() {
    cancelled_against(|peer| peer, &patient());
}

#[test]
fn while_the_peer_takes_no_more_pages() {
    use migration::wire::frame::Frame;
    use migration::wire::{codec, preamble};
    use std::io::{Read, Write};

    let mute = |mut peer: UnixStream| {
        let mut bytes = preamble::ours().to_vec();
        let boot = [0; 16];
        codec::encode(&Frame::Accept { boot, streams: 1 }, &mut bytes).unwrap();
        (0..3).for_each(|n| codec::encode(&Frame::Pong(n), &mut bytes).unwrap());
        peer.write_all(&bytes).unwrap();
        // Some of the pages, so that a frame is under way when nothing is taken any more.
        let mut some = vec![0; 300 << 10];
        peer.read_exact(&mut some).unwrap();
        peer
    };
    cancelled_against(mute, &patient());
}

#[test]
fn while_paced_to_a_crawl() {
    let world = busy();
    let (a, b) = UnixStream::pair().unwrap();
    let receiving = receiving(&world, b);
    let cancel = CancelToken::new().unwrap();
    let other = cancel.clone();
    let slow = Options {
        bandwidth: Some(1),
        ..options()
    };
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        other.cancel().unwrap();
    });
    let moved = send(boot(&world), a, &slow, &cancel, &mut |_| {});
    assert_eq!(
        moved.report.outcome,
        Outcome::Cancelled,
        "{}",
        moved.report.reason
    );
    thread.join().unwrap();
    assert!(receiving.join().unwrap().is_err());
    verify(&world, back(&world, moved.guest));
}

/// Cancels at the destination, when the source tells the first event for which `when` holds.
fn cancelled_there_at(when: impl Fn(&Event) -> bool) {
    let world = busy();
    let (a, b) = UnixStream::pair().unwrap();
    let there = CancelToken::new().unwrap();
    let guest = boot(&world);
    let receiving = receiving_with(&world, b, &there, PATIENCE);
    let cancel = CancelToken::new().unwrap();
    let mut hits = 0;
    // As slow as above: where everything is sent at once there is no second round.
    let slow = Options {
        bandwidth: Some(32 << 20),
        ..options()
    };
    let moved = send(guest, a, &slow, &cancel, &mut |event| {
        if when(&event) && !there.is_cancelled() {
            there.cancel().unwrap();
            hits += 1;
        }
    });
    assert_eq!(hits, 1);
    let reason = &moved.report.reason;
    assert_eq!(moved.report.outcome, Outcome::Failed, "{reason}");
    assert!(reason.contains("cancelled"), "{reason}");
    assert!(receiving.join().unwrap().is_err());
    verify(&world, back(&world, moved.guest));
}

#[test]
fn at_the_destination() {
    cancelled_there_at(|event| matches!(event, Event::Connected { .. }));
    cancelled_there_at(|event| matches!(event, Event::RoundStarted { index: 0, .. }));
    cancelled_there_at(|event| matches!(event, Event::RoundStarted { index: 1, .. }));
    cancelled_there_at(|event| matches!(event, Event::SwitchingOver { .. }));
}
