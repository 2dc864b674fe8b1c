//! Never two guests, never none: the machines that decide who runs the guest, tried in every order of events, losses
//! and deaths; and machines that are wrong on purpose, which that must find.

use std::sync::Mutex;

use migration::handover::model::{CounterExample, Machines, Person, Rule, Setting, explore, prove};
use migration::handover::{
    Destination, DestinationAct, DestinationEvent, Source, SourceAct, SourceEvent,
};

#[test]
fn the_rules_hold_in_every_state() {
    let explored = prove().unwrap_or_else(|example| panic!("{example}"));
    println!("{explored:?}");
    println!("{{\"model_states\": {}}}", explored.states);
    // Fewer than that would mean that something no longer happens in the model.
    assert!(explored.states > 1000, "{explored:?}");
    assert!(explored.unknown > 0, "{explored:?}");
}

/// What the search has asked of the machines.
static SOURCE: Mutex<Vec<(Source, SourceEvent)>> = Mutex::new(Vec::new());
static DESTINATION: Mutex<Vec<(Destination, DestinationEvent)>> = Mutex::new(Vec::new());

/// A model that no longer comes to some transition would prove nothing about it.
#[test]
fn every_transition_is_tried() {
    use {Destination as D, DestinationEvent as DE, Source as S, SourceEvent as SE};
    let machines = Machines {
        source: |state, event| {
            SOURCE.lock().unwrap().push((state, event));
            state.on(event)
        },
        destination: |state, event| {
            DESTINATION.lock().unwrap().push((state, event));
            state.on(event)
        },
    };
    for setting in Setting::SAFE {
        explore(&machines, setting).unwrap();
    }
    let source = SOURCE.lock().unwrap();
    let destination = DESTINATION.lock().unwrap();
    for state in [
        S::Asking,
        S::Committing,
        S::Committed,
        S::Returning,
        S::Back,
        S::Stuck,
        S::Unknown,
        S::Forced,
        S::Gone,
    ] {
        for event in [
            SE::Ready,
            SE::Cancelled,
            SE::Said,
            SE::Torn,
            SE::Unsaid,
            SE::Live,
            SE::Failed,
            SE::Over,
            SE::Resumed,
            SE::NotResumed,
            SE::Force,
            SE::Stop,
        ] {
            let matters = state.on(event) != (state, SourceAct::Wait);
            assert!(
                !matters || source.contains(&(state, event)),
                "{state:?} {event:?}"
            );
        }
    }
    for state in [
        D::Filling,
        D::Ready,
        D::Starting,
        D::Running,
        D::Dropping,
        D::Dropped,
    ] {
        for event in [
            DE::Loaded,
            DE::Go,
            DE::LateGo,
            DE::Resumed,
            DE::NotResumed,
            DE::Cancelled,
            DE::Over,
            DE::Freed,
        ] {
            let matters = state.on(event) != (state, DestinationAct::Wait);
            assert!(
                !matters || destination.contains(&(state, event)),
                "{state:?} {event:?}"
            );
        }
    }
}

fn caught(machines: &Machines) -> CounterExample {
    let example = explore(machines, Setting::SAFE[0]).unwrap_err();
    println!("{example}\n");
    example
}

fn source(wrong: fn(Source, SourceEvent) -> (Source, SourceAct)) -> Machines {
    Machines {
        source: wrong,
        ..Machines::real()
    }
}

fn destination(
    wrong: fn(Destination, DestinationEvent) -> (Destination, DestinationAct),
) -> Machines {
    Machines {
        destination: wrong,
        ..Machines::real()
    }
}

#[test]
fn a_source_that_resumes_when_live_is_lost_is_caught() {
    let example = caught(&source(|state, event| match (state, event) {
        (Source::Committed, SourceEvent::Over) => (Source::Returning, SourceAct::Resume),
        _ => state.on(event),
    }));
    assert_eq!(example.rule, Rule::TakenBack);
    assert!(example.trace.contains(&"the source says GO"), "{example}");
}

#[test]
fn a_source_that_resumes_after_half_a_go_is_caught() {
    let example = caught(&source(|state, event| match (state, event) {
        (Source::Committing, SourceEvent::Torn) => (Source::Returning, SourceAct::Resume),
        _ => state.on(event),
    }));
    assert_eq!(example.rule, Rule::TakenBack);
}

#[test]
fn a_source_that_says_go_again_is_caught() {
    let example = caught(&source(|state, event| match (state, event) {
        (Source::Committed, SourceEvent::Over) => (Source::Committing, SourceAct::SayGo),
        _ => state.on(event),
    }));
    assert_eq!(example.rule, Rule::GoTwice);
}

#[test]
fn a_source_that_frees_its_guest_at_go_is_caught() {
    let example = caught(&source(|state, event| match (state, event) {
        (Source::Committing, SourceEvent::Said) => (Source::Gone, SourceAct::Free),
        _ => state.on(event),
    }));
    assert_eq!(example.rule, Rule::FreedUnasked);
}

#[test]
fn a_source_that_a_late_cancel_brings_back_is_caught() {
    let example = caught(&source(|state, event| match (state, event) {
        (Source::Committed, SourceEvent::Cancelled) => (Source::Returning, SourceAct::Resume),
        _ => state.on(event),
    }));
    assert_eq!(example.rule, Rule::TakenBack);
}

#[test]
fn a_source_that_waits_for_ever_is_caught() {
    let example = caught(&source(|state, event| match (state, event) {
        (Source::Committed, SourceEvent::Over) => (state, SourceAct::Wait),
        _ => state.on(event),
    }));
    assert_eq!(example.rule, Rule::Endless);
}

#[test]
fn a_destination_that_runs_without_go_is_caught() {
    let example = caught(&destination(|state, event| match (state, event) {
        (Destination::Ready, DestinationEvent::Over) => {
            (Destination::Starting, DestinationAct::Resume)
        }
        _ => state.on(event),
    }));
    assert_eq!(example.rule, Rule::RunWithoutGo);
}

#[test]
fn a_destination_that_says_failed_before_its_guest_is_gone_is_caught() {
    let example = caught(&destination(|state, event| match (state, event) {
        (Destination::Starting, DestinationEvent::NotResumed) => {
            (Destination::Dropped, DestinationAct::SayFailed)
        }
        _ => state.on(event),
    }));
    assert_eq!(example.rule, Rule::FailedWithGuest);
}

#[test]
fn a_destination_that_obeys_go_however_late_is_caught() {
    let example = caught(&destination(|state, event| match (state, event) {
        (Destination::Ready, DestinationEvent::LateGo) => {
            (Destination::Starting, DestinationAct::Resume)
        }
        _ => state.on(event),
    }));
    // A person has seen its time run out and resumed the source.
    assert_eq!(example.rule, Rule::TwoGuests);
    assert!(example.to_string().contains("by force"), "{example}");
}

#[test]
fn a_destination_that_keeps_a_cancelled_guest_is_caught() {
    let example = caught(&destination(|state, event| match (state, event) {
        (Destination::Ready, DestinationEvent::Cancelled) => {
            (Destination::Dropped, DestinationAct::SayFailed)
        }
        _ => state.on(event),
    }));
    assert_eq!(example.rule, Rule::FailedWithGuest);
}

/// No machine helps against somebody who does not look; a fence does, and is among the settings that hold.
#[test]
fn without_a_fence_a_careless_person_can_make_two_guests() {
    let setting = Setting {
        person: Person::Careless,
        fence: false,
    };
    let example = explore(&Machines::real(), setting).unwrap_err();
    println!("{example}");
    assert_eq!(example.rule, Rule::TwoGuests);
}
