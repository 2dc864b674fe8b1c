//! What keeps everybody else from running a guest goes over with GO, and nobody resumes without it.

use crate::support;

use migration::guest::PausedGuest;
use migration::report::Outcome;
use migration::source::After;
use support::run::{back, options, travel, verify};
use support::{Faults, Holder, World, Writer, boot};

#[test]
fn it_is_the_destinations_after_a_move() {
    let world = World::idle(&[2]);
    let guest = boot(&world);
    assert_eq!(world.holder(), Some(Holder::Source));
    let (moved, arrived) = travel(&world, guest, &options());
    assert_eq!(moved.report.outcome, Outcome::Completed);
    assert_eq!(world.holder(), Some(Holder::Destination));
    verify(&world, arrived.unwrap());
}

#[test]
fn a_destination_that_cannot_run_the_guest_gives_it_back() {
    let faults = Faults {
        resume_there: true,
        ..Faults::default()
    };
    let world = World::new(&[2], Writer::default(), faults);
    let (moved, arrived) = travel(&world, boot(&world), &options());
    assert!(arrived.is_err());
    let guest = back(&world, moved.guest);
    assert_eq!(world.holder(), Some(Holder::Source));
    verify(&world, guest);
}

/// A source that cannot let go of it has said nothing yet.
#[test]
fn without_letting_go_there_is_no_go() {
    let faults = Faults {
        let_go: true,
        ..Faults::default()
    };
    let world = World::new(&[2], Writer::default(), faults);
    let (moved, arrived) = travel(&world, boot(&world), &options());
    let reason = &moved.report.reason;
    assert!(reason.contains("cannot let go on purpose"), "{reason}");
    assert!(arrived.is_err());
    let guest = back(&world, moved.guest);
    assert_eq!(world.holder(), Some(Holder::Source));
    verify(&world, guest);
}

/// Whoever else takes it in between stops both sides: neither runs the guest, and the source keeps it.
#[test]
fn a_third_that_has_it_stops_both() {
    let faults = Faults {
        thief: true,
        ..Faults::default()
    };
    let world = World::new(&[2], Writer::default(), faults);
    let (moved, arrived) = travel(&world, boot(&world), &options());
    let refused = arrived.unwrap_err().to_string();
    assert!(refused.contains("Thief holds the fence"), "{refused}");
    assert_eq!(moved.report.outcome, Outcome::Paused);
    // Why it failed, and why the guest does not go on.
    let reason = &moved.report.reason;
    assert_eq!(
        reason.matches("Thief holds the fence").count(),
        2,
        "{reason}"
    );
    assert_eq!(moved.report.blackout_ms, None);
    let After::Stuck(paused, error) = moved.guest else {
        panic!("the source resumed without the fence");
    };
    assert!(error.to_string().contains("Thief holds"), "{error}");
    assert_eq!(world.running(), 0);
    world.give_back();
    verify(&world, paused.resume().unwrap());
}
