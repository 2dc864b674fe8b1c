//! The source panics in the middle of a move: an error in the engine or in a VMM, and no reason for the guest to end.

use crate::support;

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use migration::cancel::CancelToken;
use migration::event::Event;
use migration::guest::PausedGuest;
use migration::options::Options;
use migration::report::Outcome;
use migration::source::{After, Moved, migrate};
use migration::wire::{Connected, TcpTarget};
use support::run::{back, options, receiving, receiving_streams, travel, verify};
use support::{Faults, Holder, Panic, Running, World, Writer, boot};

const WHY: &str = "ferry panicked";

/// The move has failed, and the guest is whole where it was, and can be moved.
fn fails_and_moves_on(world: &Arc<World>, moved: Moved<Running>) {
    assert_eq!(moved.report.outcome, Outcome::Failed);
    let reason = &moved.report.reason;
    assert!(reason.contains(WHY), "{reason}");
    let guest = back(world, moved.guest);
    let (moved, arrived) = travel(world, guest, &options());
    assert_eq!(moved.report.outcome, Outcome::Completed);
    verify(world, arrived.unwrap());
}

#[test]
fn in_the_thread_of_a_stream_it_fails_the_move() {
    let writer = Writer {
        pages: 0..12_000,
        per_ms: 400,
    };
    let world = World::new(&[64, 32], writer, Faults::default());
    world.panics.set(Panic::Stream);
    let (address, receiving) = receiving_streams(&world);
    let options = Options {
        streams: 3,
        ..options()
    };
    let cancel = CancelToken::new().unwrap();
    let target = TcpTarget::new(address);
    let moved = migrate(boot(&world), &target, &options, &cancel, &mut |_| {});
    // Whichever it hears first: the reason, on the first stream, or the end of another.
    let there = receiving.join().unwrap().unwrap_err().to_string();
    let heard = there.contains(WHY) || there.ends_with(" of the move failed");
    assert!(heard, "{there}");
    fails_and_moves_on(&world, moved);
}

#[test]
fn while_a_paused_guest_is_saved_it_fails_the_move() {
    let world = World::idle(&[4]);
    world.panics.set(Panic::Save);
    let (moved, arrived) = travel(&world, boot(&world), &options());
    let there = arrived.unwrap_err().to_string();
    assert!(there.contains(WHY), "{there}");
    assert!(moved.report.blackout_ms.is_some());
    fails_and_moves_on(&world, moved);
}

/// Moves a guest, and panics as soon as such a thing is told.
fn panicking(world: &Arc<World>, at: fn(&Event) -> bool) -> (Moved<Running>, Option<Running>) {
    let (a, b) = UnixStream::pair().unwrap();
    let receiving = receiving(world, b);
    let cancel = CancelToken::new().unwrap();
    let target = Connected::new(a, "pair");
    let moved = migrate(boot(world), &target, &options(), &cancel, &mut |event| {
        assert!(!at(&event), "panics on purpose");
    });
    (moved, receiving.join().unwrap().ok())
}

#[test]
fn before_or_in_a_round_it_fails_the_move() {
    let at: [fn(&Event) -> bool; 2] = [
        |event| matches!(event, Event::Connected { .. }),
        |event| matches!(event, Event::RoundStarted { .. }),
    ];
    for at in at {
        let world = World::idle(&[4]);
        let (moved, arrived) = panicking(&world, at);
        assert!(arrived.is_none());
        fails_and_moves_on(&world, moved);
    }
}

/// The destination has been told to run the guest, and does; the source cannot know.
#[test]
fn behind_go_nobody_knows_whose_the_guest_is() {
    let world = World::idle(&[4]);
    let (moved, arrived) = panicking(&world, |event| matches!(event, Event::Go));
    assert_eq!(moved.report.outcome, Outcome::Unknown);
    let reason = &moved.report.reason;
    assert!(reason.contains(WHY), "{reason}");
    let After::Unknown(kept) = moved.guest else {
        panic!("the source has decided whose the guest is");
    };
    assert_eq!(world.holder(), Some(Holder::Destination));
    assert!(kept.resume().is_err());
    verify(&world, arrived.unwrap());
}
