//! What must hold in every state.

use std::fmt;

use super::world::{self, Guest, Step, World};
use super::{Person, Setting};
use crate::handover::Source;

/// What must never happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The guest runs on both sides.
    TwoGuests,
    /// It runs nowhere for good, though no process died, and it is not kept for a person either.
    NoGuest,
    /// The source resumed it by itself after GO, without FAILED.
    TakenBack,
    /// The source freed it without LIVE.
    FreedUnasked,
    /// GO was said twice.
    GoTwice,
    /// The destination runs it without GO.
    RunWithoutGo,
    /// The destination said FAILED and still has it.
    FailedWithGuest,
    /// A side waits for ever.
    Endless,
    /// A person who keeps to the rule can never end an unknown outcome.
    NoWayOut,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rule::TwoGuests => "two guests run",
            Rule::NoGuest => "no guest runs, and none is kept for a person",
            Rule::TakenBack => "the source resumed the guest by itself after GO, without FAILED",
            Rule::FreedUnasked => "the source freed the guest without LIVE",
            Rule::GoTwice => "the source said GO twice",
            Rule::RunWithoutGo => "the destination runs the guest without GO",
            Rule::FailedWithGuest => "the destination said FAILED and still has the guest",
            Rule::Endless => "a side waits for ever",
            Rule::NoWayOut => "the outcome is unknown, and no command ends that",
        })
    }
}

/// The rule that a state breaks, given what may happen next.
pub(super) fn broken(world: &World, next: &[(Step, World)], setting: Setting) -> Option<Rule> {
    let (source, destination) = (&world.source, &world.destination);
    let said = &world.said;
    let runs = |guest: Guest| guest == Guest::Running;
    let died = !source.alive || !destination.alive;
    let kept =
        source.guest == Guest::Paused && matches!(source.state, Source::Unknown | Source::Stuck);
    let leads_on = |matters: fn(Step) -> bool| {
        let mut next = next.iter().filter(|(_, next)| next != world);
        next.any(|(step, _)| matters(step))
    };
    let rules = [
        (
            runs(source.guest) && runs(destination.guest),
            Rule::TwoGuests,
        ),
        (
            runs(source.guest) && said.go > 0 && !said.failed_heard && !said.forced,
            Rule::TakenBack,
        ),
        (
            source.alive && source.guest == Guest::None && !said.live_heard && !said.stopped,
            Rule::FreedUnasked,
        ),
        (said.go > 1, Rule::GoTwice),
        (
            runs(destination.guest) && !said.go_heard,
            Rule::RunWithoutGo,
        ),
        (
            said.failed && destination.guest != Guest::None,
            Rule::FailedWithGuest,
        ),
        (
            world.is_settled() && !died && !kept && !runs(source.guest) && !runs(destination.guest),
            Rule::NoGuest,
        ),
        (
            !world.is_settled() && !leads_on(|step| !world::is_fault(step)),
            Rule::Endless,
        ),
        (
            world.is_settled()
                && setting.person == Person::Careful
                && source.alive
                && kept
                && !leads_on(world::is_order),
            Rule::NoWayOut,
        ),
    ];
    let broken = rules.into_iter().find(|(broken, _)| *broken);
    broken.map(|(_, rule)| rule)
}
