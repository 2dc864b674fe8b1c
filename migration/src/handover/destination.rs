//! The destination's half: whether the guest may run here yet, and whether the source may be told that it never will.

/// Where the destination stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Destination {
    /// The guest is the source's; what there is of it here is being filled.
    #[default]
    Filling,
    /// All of it is here and could run. It is the source's until GO comes.
    Ready,
    /// GO has come in time: the guest is this side's, and about to be resumed.
    Starting,
    /// It runs here.
    Running,
    /// It will not run here; what there is of it is being freed.
    Dropping,
    /// Nothing of it is left, and the source may be told so.
    Dropped,
}

/// What happens to the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DestinationEvent {
    /// Memory and state are all here, and the guest could run.
    Loaded,
    /// GO has come, and nobody had cancelled the move by then.
    Go,
    /// GO has come, but so long after READY that the source may have been given up by a person since.
    LateGo,
    /// The guest runs.
    Resumed,
    /// It could not be resumed.
    NotResumed,
    /// Somebody cancelled the move here.
    Cancelled,
    /// It does not go on: the connection ended, was silent for too long, said what does not belong there or that the
    /// move is over, or the guest cannot be made here.
    Over,
    /// What there was of the guest is freed.
    Freed,
}

/// What the destination has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DestinationAct {
    /// Nothing but to wait for what happens next.
    Wait,
    /// Say READY.
    SayReady,
    /// Resume the guest.
    Resume,
    /// Say LIVE. Whether it is heard does not matter any more.
    SayLive,
    /// Free what there is of the guest.
    Drop,
    /// Say FAILED, if somebody is there to hear it.
    SayFailed,
}

impl Destination {
    /// What an event makes of it, and what has to be done now. An event that means nothing in a state changes nothing.
    #[must_use]
    pub fn on(self, event: DestinationEvent) -> (Self, DestinationAct) {
        use {Destination as D, DestinationAct as Act, DestinationEvent as E};
        match (self, event) {
            (D::Filling, E::Loaded) => (D::Ready, Act::SayReady),
            (D::Ready, E::Go) => (D::Starting, Act::Resume),
            (D::Starting, E::Resumed) => (D::Running, Act::SayLive),

            (D::Filling | D::Ready, E::Cancelled | E::Over) => (D::Dropping, Act::Drop),
            (D::Ready, E::LateGo) => (D::Dropping, Act::Drop),
            (D::Starting, E::NotResumed) => (D::Dropping, Act::Drop),
            // Gone before the source hears that it may resume its own.
            (D::Dropping, E::Freed) => (D::Dropped, Act::SayFailed),

            (state, _) => (state, Act::Wait),
        }
    }

    /// Whether the attempt is over: nothing happens any more.
    pub fn is_settled(self) -> bool {
        matches!(self, Self::Running | Self::Dropped)
    }
}
