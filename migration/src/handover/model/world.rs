//! Two ends and what lies between them, and everything that may happen next.

use std::fmt;

use super::{Machines, Person, Setting};
use crate::handover::{
    Destination, DestinationAct, DestinationEvent, Source, SourceAct, SourceEvent,
};

/// A step, in words.
pub(super) type Step = &'static str;

const CUT: Step = "the connection is cut; of what is under way some arrives, the rest does not";
const SOURCE_DIES: Step = "the source dies";
const DESTINATION_DIES: Step = "the destination dies";
const CANCELLED_HERE: Step = "somebody cancels at the source";
const CANCELLED_THERE: Step = "somebody cancels at the destination";
const FORCED: Step = "a person resumes the guest at the source by force";
const STOPPED: Step = "a person stops the guest at the source";

/// How often a move is cancelled on each side: twice is more than once, and a third time is like the second.
const CANCELS: u8 = 2;

/// Whether a step is one that need not happen, so that nobody may wait for it.
pub(super) fn is_fault(step: Step) -> bool {
    [
        CUT,
        SOURCE_DIES,
        DESTINATION_DIES,
        CANCELLED_HERE,
        CANCELLED_THERE,
    ]
    .contains(&step)
        || is_order(step)
}

/// Whether it is a person's command about a guest that is paused at the source.
pub(super) fn is_order(step: Step) -> bool {
    [FORCED, STOPPED].contains(&step)
}

/// A guest, as one end has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Guest {
    None,
    Paused,
    Running,
}

/// What the source says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum There {
    State,
    Go,
    Close,
}

/// What the destination says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Back {
    Ready,
    Live,
    Failed,
    Close,
}

/// Whose the fence's lock is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Holder {
    Source,
    Destination,
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct End<S, A> {
    pub state: S,
    /// What it has to do next, before it hears anything.
    act: Option<A>,
    pub alive: bool,
    pub guest: Guest,
    /// Its end of the connection.
    open: bool,
    cancels: u8,
}

/// What was said and heard, for the rules.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Said {
    /// How often GO may have been handed over.
    pub go: u8,
    pub go_heard: bool,
    pub live_heard: bool,
    pub failed: bool,
    pub failed_heard: bool,
    pub forced: bool,
    pub stopped: bool,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub source: End<Source, SourceAct>,
    pub destination: End<Destination, DestinationAct>,
    pub said: Said,
    /// What is under way, in order.
    there: Vec<There>,
    back: Vec<Back>,
    /// What is said now does not arrive.
    cut: bool,
    /// The time that the destination gives GO is over.
    late: bool,
    /// Who holds the fence's lock. Nobody asks where there is none.
    lock: Option<Holder>,
}

impl World {
    /// The guest stands still at the source, and all of it is under way.
    pub fn begin(setting: Setting) -> Self {
        Self {
            source: End::new(Guest::Paused),
            destination: End::new(Guest::Paused),
            said: Said::default(),
            there: vec![There::State],
            back: Vec::new(),
            cut: false,
            late: false,
            lock: setting.fence.then_some(Holder::Source),
        }
    }

    /// Nothing more happens but by a person, or a death.
    pub fn is_settled(&self) -> bool {
        let source =
            !self.source.alive || self.source.act.is_none() && self.source.state.is_settled();
        let destination = !self.destination.alive
            || self.destination.act.is_none() && self.destination.state.is_settled();
        source && destination
    }

    /// The source keeps a guest of which nobody knows whose it is.
    pub fn is_unknown(&self) -> bool {
        self.source.alive && self.source.state == Source::Unknown
    }

    /// Where both ends stand; a dead one stands nowhere.
    pub fn pair(&self) -> (Option<Source>, Option<Destination>) {
        let source = self.source.alive.then_some(self.source.state);
        (
            source,
            self.destination.alive.then_some(self.destination.state),
        )
    }

    /// All that may happen next.
    pub fn steps(&self, machines: &Machines, setting: Setting) -> Vec<(Step, World)> {
        let mut next = Next {
            from: self,
            machines,
            setting,
            steps: Vec::new(),
        };
        next.source();
        next.destination();
        next.line();
        next.deaths();
        next.steps
    }

    fn say_there(&mut self, message: There) {
        if !self.cut && self.destination.open && self.source.open {
            self.there.push(message);
        }
    }

    fn say_back(&mut self, message: Back) {
        if !self.cut && self.source.open && self.destination.open {
            self.back.push(message);
        }
    }

    /// The source is done with the connection: what it has not read is lost.
    fn close_source(&mut self) {
        self.say_there(There::Close);
        self.source.open = false;
        self.back.clear();
    }

    fn close_destination(&mut self) {
        self.say_back(Back::Close);
        self.destination.open = false;
        self.there.clear();
    }

    /// Takes the fence's lock for somebody who is about to run the guest; whether that went well.
    fn take_lock(&mut self, holder: Holder, setting: Setting) -> bool {
        if setting.fence && self.lock.is_some_and(|lock| lock != holder) {
            return false;
        }
        self.lock = setting.fence.then_some(holder);
        true
    }

    fn let_go(&mut self, holder: Holder) {
        if self.lock == Some(holder) {
            self.lock = None;
        }
    }
}

impl<S: Default, A> End<S, A> {
    fn new(guest: Guest) -> Self {
        Self {
            state: S::default(),
            act: None,
            alive: true,
            guest,
            open: true,
            cancels: CANCELS,
        }
    }

    fn dies(&mut self) {
        self.alive = false;
        self.open = false;
        self.act = None;
        self.guest = Guest::None;
    }
}

/// Gathers what may follow on a state.
struct Next<'a> {
    from: &'a World,
    machines: &'a Machines,
    setting: Setting,
    steps: Vec<(Step, World)>,
}

impl Next<'_> {
    /// Something happens to the source, after the world was changed by it.
    fn at_source(&mut self, step: Step, event: SourceEvent, change: impl FnOnce(&mut World)) {
        let mut world = self.from.clone();
        world.source.act = None;
        change(&mut world);
        let (state, act) = (self.machines.source)(world.source.state, event);
        world.source.state = state;
        world.source.act = (act != SourceAct::Wait).then_some(act);
        self.steps.push((step, world));
    }

    fn at_destination(
        &mut self,
        step: Step,
        event: DestinationEvent,
        change: impl FnOnce(&mut World),
    ) {
        let mut world = self.from.clone();
        world.destination.act = None;
        change(&mut world);
        let (state, act) = (self.machines.destination)(world.destination.state, event);
        world.destination.state = state;
        world.destination.act = (act != DestinationAct::Wait).then_some(act);
        self.steps.push((step, world));
    }

    /// Something happens that no machine is told of.
    fn silently(&mut self, step: Step, change: impl FnOnce(&mut World)) {
        let mut world = self.from.clone();
        change(&mut world);
        self.steps.push((step, world));
    }

    fn source(&mut self) {
        let source = &self.from.source;
        match source.act {
            _ if !source.alive => {}
            Some(act) => self.source_acts(act),
            None if source.state.is_settled() => self.person(),
            None => self.source_hears(),
        }
    }

    fn source_acts(&mut self, act: SourceAct) {
        let setting = self.setting;
        let go = |world: &mut World| {
            world.said.go = (world.said.go + 1).min(2);
            world.let_go(Holder::Source);
        };
        match act {
            SourceAct::Wait => {}
            SourceAct::SayGo => {
                self.at_source("the source says GO", SourceEvent::Said, |world| {
                    go(world);
                    world.say_there(There::Go);
                });
                self.at_source("the source says GO in part", SourceEvent::Torn, |world| {
                    go(world);
                    world.cut = true;
                });
                let step = "the source cannot say GO, not one byte of it";
                self.at_source(step, SourceEvent::Unsaid, |world| {
                    world.let_go(Holder::Source);
                    world.cut = true;
                });
            }
            SourceAct::Resume => {
                let mut trial = self.from.clone();
                if trial.take_lock(Holder::Source, setting) {
                    let step = "the source resumes the guest, and leaves";
                    self.at_source(step, SourceEvent::Resumed, |world| {
                        world.take_lock(Holder::Source, setting);
                        world.source.guest = Guest::Running;
                        world.close_source();
                    });
                }
                let step = "the source cannot resume the guest, and leaves";
                self.at_source(step, SourceEvent::NotResumed, World::close_source);
            }
            SourceAct::Keep => {
                self.silently("the source keeps the guest paused, and leaves", |w| {
                    w.source.act = None;
                    w.close_source();
                })
            }
            SourceAct::Free => self.silently("the source frees its guest, and leaves", |world| {
                world.source.act = None;
                world.source.guest = Guest::None;
                world.let_go(Holder::Source);
                world.close_source();
            }),
        }
    }

    fn source_hears(&mut self) {
        match self.from.back.first() {
            None => {}
            Some(Back::Ready) => self.at_source("READY arrives", SourceEvent::Ready, hear_back),
            Some(Back::Live) => self.at_source("LIVE arrives", SourceEvent::Live, |world| {
                hear_back(world);
                world.said.live_heard = true;
            }),
            Some(Back::Failed) => self.at_source("FAILED arrives", SourceEvent::Failed, |world| {
                hear_back(world);
                world.said.failed_heard = true;
            }),
            Some(Back::Close) => {
                let step = "the source sees that the destination has left";
                self.at_source(step, SourceEvent::Over, hear_back);
            }
        }
        self.at_source("the source waits no longer", SourceEvent::Over, |_| {});
        if self.from.source.cancels > 0 {
            self.at_source(CANCELLED_HERE, SourceEvent::Cancelled, |world| {
                world.source.cancels -= 1;
            });
        }
    }

    /// What a person does about a guest that is paused at the source.
    fn person(&mut self) {
        let World {
            source,
            destination,
            said,
            late,
            ..
        } = self.from;
        if source.guest != Guest::Paused {
            return;
        }
        let theirs = destination.alive && destination.guest == Guest::Running;
        let never = match destination.state {
            _ if !destination.alive => true,
            Destination::Dropped => true,
            Destination::Filling | Destination::Ready => *late,
            _ => false,
        };
        let ours = source.state == Source::Stuck;
        let careless = self.setting.person == Person::Careless;
        if ours || never || careless {
            self.at_source(FORCED, SourceEvent::Force, |world| world.said.forced = true);
        }
        if source.state == Source::Unknown && said.go > 0 && theirs {
            self.at_source(STOPPED, SourceEvent::Stop, |world| {
                world.said.stopped = true;
            });
        }
    }

    fn destination(&mut self) {
        let destination = &self.from.destination;
        match destination.act {
            _ if !destination.alive => {}
            Some(act) => self.destination_acts(act),
            None if destination.state.is_settled() => {}
            None => self.destination_hears(),
        }
    }

    fn destination_acts(&mut self, act: DestinationAct) {
        let setting = self.setting;
        match act {
            DestinationAct::Wait => {}
            DestinationAct::SayReady => {
                self.silently("the destination says READY", |world| {
                    world.destination.act = None;
                    world.say_back(Back::Ready);
                });
                let step = "the destination cannot say READY";
                self.at_destination(step, DestinationEvent::Over, |world| world.cut = true);
            }
            DestinationAct::Resume => {
                let mut trial = self.from.clone();
                if trial.take_lock(Holder::Destination, setting) {
                    let step = "the destination resumes the guest";
                    self.at_destination(step, DestinationEvent::Resumed, |world| {
                        world.take_lock(Holder::Destination, setting);
                        world.destination.guest = Guest::Running;
                    });
                }
                let step = "the destination cannot resume the guest";
                self.at_destination(step, DestinationEvent::NotResumed, |_| {});
            }
            DestinationAct::SayLive => self.silently("the destination says LIVE", |world| {
                world.destination.act = None;
                world.say_back(Back::Live);
                world.close_destination();
            }),
            DestinationAct::Drop => {
                let step = "the destination frees what it has of the guest";
                self.at_destination(step, DestinationEvent::Freed, |world| {
                    world.destination.guest = Guest::None;
                    world.let_go(Holder::Destination);
                });
            }
            DestinationAct::SayFailed => self.silently("the destination says FAILED", |world| {
                world.destination.act = None;
                world.said.failed = true;
                world.say_back(Back::Failed);
                world.close_destination();
            }),
        }
    }

    fn destination_hears(&mut self) {
        match self.from.there.first() {
            None => {}
            Some(There::State) => {
                self.at_destination("the state arrives", DestinationEvent::Loaded, hear_there);
                let step = "the state arrives and cannot be loaded";
                self.at_destination(step, DestinationEvent::Over, hear_there);
            }
            Some(There::Go) => {
                let (step, event) = match self.from.late {
                    false => ("GO arrives", DestinationEvent::Go),
                    true => ("GO arrives too late", DestinationEvent::LateGo),
                };
                self.at_destination(step, event, |world| {
                    hear_there(world);
                    world.said.go_heard = true;
                });
            }
            Some(There::Close) => {
                let step = "the destination sees that the source has left";
                self.at_destination(step, DestinationEvent::Over, hear_there);
            }
        }
        let step = "the destination waits no longer";
        self.at_destination(step, DestinationEvent::Over, |_| {});
        if self.from.destination.state == Destination::Ready && !self.from.late {
            self.silently(
                "the destination is stopped until its time for GO is over",
                |w| {
                    w.late = true;
                },
            );
        }
        if self.from.destination.cancels > 0 {
            let step = CANCELLED_THERE;
            self.at_destination(step, DestinationEvent::Cancelled, |world| {
                world.destination.cancels -= 1;
            });
        }
    }

    /// The connection is cut: of what is under way a beginning arrives.
    fn line(&mut self) {
        if self.from.cut {
            return;
        }
        for there in 0..=self.from.there.len() {
            for back in 0..=self.from.back.len() {
                self.silently(CUT, |world| {
                    world.cut = true;
                    world.there.truncate(there);
                    world.back.truncate(back);
                });
            }
        }
    }

    fn deaths(&mut self) {
        if self.from.source.alive {
            self.silently(SOURCE_DIES, |world| {
                world.close_source();
                world.source.dies();
                world.let_go(Holder::Source);
            });
        }
        if self.from.destination.alive {
            self.silently(DESTINATION_DIES, |world| {
                world.close_destination();
                world.destination.dies();
                world.let_go(Holder::Destination);
            });
        }
    }
}

fn hear_there(world: &mut World) {
    world.there.remove(0);
}

fn hear_back(world: &mut World) {
    world.back.remove(0);
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn end<S: fmt::Debug, A>(
            f: &mut fmt::Formatter<'_>,
            name: &str,
            end: &End<S, A>,
        ) -> fmt::Result {
            match end.alive {
                true => write!(f, "{name}: {:?}, guest {:?}; ", end.state, end.guest),
                false => write!(f, "{name}: dead; "),
            }
        }
        end(f, "source", &self.source)?;
        end(f, "destination", &self.destination)?;
        let (there, back) = (&self.there, &self.back);
        write!(f, "under way there {there:?}, back {back:?}")
    }
}
