//! The two machines tried out in every order of events: a search through all states that two ends, what is under way
//! between them, and a person can get into. It ends at the first that breaks a rule, with the way that led there.
//!
//! What can happen at any point: a message arrives; the connection is cut, and of what is under way in each direction
//! some arrives and the rest does not; GO is handed over whole, in part, or not at all; either side loses patience; a
//! move is cancelled, more than once, on either side; loading or resuming fails; either process dies; and afterwards a
//! person resumes or frees what is paused at the source. Streams keep their order, so nothing overtakes.
//!
//! The rules are those of [`Rule`]. That a person who resumes the source by force looks at the destination first is
//! one of them (see [`Person`]): no machine can know what became of a host that does not answer. A fence can, and
//! with one ([`Setting::fence`]) even a careless person gets no second guest.

mod rules;
mod world;

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;

use self::world::World;
use super::{Destination, DestinationAct, DestinationEvent, Source, SourceAct, SourceEvent};

pub use rules::Rule;

/// The machines under test. Those that are wrong on purpose show that the search finds what is wrong.
#[derive(Debug, Clone, Copy)]
pub struct Machines {
    /// The source's.
    pub source: fn(Source, SourceEvent) -> (Source, SourceAct),
    /// The destination's.
    pub destination: fn(Destination, DestinationEvent) -> (Destination, DestinationAct),
}

impl Machines {
    /// Those that moves are made with.
    pub fn real() -> Self {
        Self {
            source: Source::on,
            destination: Destination::on,
        }
    }
}

/// Who decides about a guest of which nobody knows whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Person {
    /// Looks at the destination first. Frees the source's guest when it runs there. Resumes it by force when the
    /// destination says that it has none, is dead, or has let its time for GO run out without having taken it; else
    /// waits.
    Careful,
    /// Resumes by force without looking.
    Careless,
}

/// What is assumed of the world besides.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// The person.
    pub person: Person,
    /// There is a lock that one side alone can hold, as of a disk that both can reach: the source lets go of it before
    /// it says GO, and nobody resumes a guest without having taken it.
    pub fence: bool,
}

impl Setting {
    /// Those in which the rules have to hold.
    pub const SAFE: [Setting; 3] = [
        Setting {
            person: Person::Careful,
            fence: false,
        },
        Setting {
            person: Person::Careful,
            fence: true,
        },
        Setting {
            person: Person::Careless,
            fence: true,
        },
    ];
}

/// What a search has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Explored {
    /// States of the whole: both ends, what is under way, the connection, and what was said so far.
    pub states: usize,
    /// Steps between them.
    pub steps: usize,
    /// Different pairs of the source's and the destination's state.
    pub pairs: usize,
    /// States in which nothing more happens by itself.
    pub settled: usize,
    /// Those among them in which it is unknown whose the guest is.
    pub unknown: usize,
}

/// How a rule was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CounterExample {
    /// Which.
    pub rule: Rule,
    /// What happened, in order; no shorter way leads there.
    pub trace: Vec<&'static str>,
    /// Where that has led.
    pub end: String,
}

impl fmt::Display for CounterExample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}:", self.rule)?;
        for (number, step) in (1..).zip(&self.trace) {
            writeln!(f, "{number:4}. {step}")?;
        }
        write!(f, "      {}", self.end)
    }
}

/// Visits every state that the machines can get into.
///
/// # Errors
/// The first state that breaks a rule, as near to the beginning as there is one.
pub fn explore(machines: &Machines, setting: Setting) -> Result<Explored, CounterExample> {
    let begin = World::begin(setting);
    let mut explored = Explored::default();
    let mut pairs = HashSet::new();
    // Each state, with the one it was first reached from and by which step.
    let mut seen: HashMap<World, Option<(World, &'static str)>> = HashMap::new();
    let mut queue = VecDeque::from([begin.clone()]);
    seen.insert(begin, None);
    while let Some(world) = queue.pop_front() {
        let steps = world.steps(machines, setting);
        if let Some(rule) = rules::broken(&world, &steps, setting) {
            return Err(CounterExample {
                rule,
                trace: way(&seen, &world),
                end: world.to_string(),
            });
        }
        explored.states += 1;
        explored.steps += steps.len();
        explored.settled += usize::from(world.is_settled());
        explored.unknown += usize::from(world.is_settled() && world.is_unknown());
        pairs.insert(world.pair());
        for (step, next) in steps {
            seen.entry(next.clone()).or_insert_with(|| {
                queue.push_back(next);
                Some((world.clone(), step))
            });
        }
    }
    explored.pairs = pairs.len();
    Ok(explored)
}

/// Tries the machines that moves are made with in every setting in which they have to hold. The states of all are
/// counted together.
///
/// # Errors
/// A rule can be broken.
pub fn prove() -> Result<Explored, CounterExample> {
    let mut all = Explored::default();
    for setting in Setting::SAFE {
        let explored = explore(&Machines::real(), setting)?;
        all.states += explored.states;
        all.steps += explored.steps;
        all.pairs = all.pairs.max(explored.pairs);
        all.settled += explored.settled;
        all.unknown += explored.unknown;
    }
    Ok(all)
}

/// The steps from the beginning to `world`.
fn way(seen: &HashMap<World, Option<(World, &'static str)>>, world: &World) -> Vec<&'static str> {
    let mut steps = Vec::new();
    let mut at = world;
    while let Some(Some((before, step))) = seen.get(at) {
        steps.push(*step);
        at = before;
    }
    steps.reverse();
    steps
}
