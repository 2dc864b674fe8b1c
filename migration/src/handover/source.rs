//! The source's half: whether the guest is still its own.

/// Where the source stands, from the moment when all of the guest is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Source {
    /// The guest is this side's and stands still; READY is waited for.
    #[default]
    Asking,
    /// READY has come, nothing can be cancelled any more, GO is being said.
    Committing,
    /// GO may have arrived: whose the guest is, the destination has to say.
    Committed,
    /// The guest is this side's, and about to be resumed.
    Returning,
    /// It runs here.
    Back,
    /// It is this side's, but could not be resumed. It stands still, whole.
    Stuck,
    /// Nobody has said whose it is. It stands still, whole, and waits for a person.
    Unknown,
    /// A person says that it is this side's; it is about to be resumed.
    Forced,
    /// It is not this side's any more.
    Gone,
}

/// What happens to the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SourceEvent {
    /// READY has come, and nobody had cancelled the move by then.
    Ready,
    /// Somebody cancelled the move.
    Cancelled,
    /// GO was handed over whole.
    Said,
    /// GO was handed over in part, and the rest cannot follow.
    Torn,
    /// Not one byte of GO was handed over: it can never arrive.
    Unsaid,
    /// LIVE has come.
    Live,
    /// FAILED has come: the guest does not run there and will not.
    Failed,
    /// Nothing more can be learnt: the connection ended, was silent for too long, or said what does not belong there.
    Over,
    /// The guest runs here again.
    Resumed,
    /// It could not be resumed.
    NotResumed,
    /// A person has it resumed here (`ferry resume --force`).
    Force,
    /// A person has what is here freed (`ferry stop`).
    Stop,
}

/// What the source has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SourceAct {
    /// Nothing but to wait for what happens next.
    Wait,
    /// Say GO.
    SayGo,
    /// Resume the guest.
    Resume,
    /// Leave it paused, with everything kept.
    Keep,
    /// Free what is here of it.
    Free,
}

impl Source {
    /// What an event makes of it, and what has to be done now. An event that means nothing in a state changes nothing.
    #[must_use]
    pub fn on(self, event: SourceEvent) -> (Self, SourceAct) {
        use {Source as S, SourceAct as Act, SourceEvent as E};
        match (self, event) {
            (S::Asking, E::Ready) => (S::Committing, Act::SayGo),
            (S::Asking, E::Cancelled | E::Failed | E::Over) => (S::Returning, Act::Resume),

            (S::Committing, E::Said) => (S::Committed, Act::Wait),
            (S::Committing, E::Torn) => (S::Unknown, Act::Keep),
            (S::Committing, E::Unsaid) => (S::Returning, Act::Resume),

            (S::Committed, E::Live) => (S::Gone, Act::Free),
            (S::Committed, E::Failed) => (S::Returning, Act::Resume),
            (S::Committed, E::Over) => (S::Unknown, Act::Keep),

            (S::Returning, E::Resumed) => (S::Back, Act::Wait),
            (S::Returning, E::NotResumed) => (S::Stuck, Act::Keep),

            (S::Stuck, E::Force) => (S::Returning, Act::Resume),
            (S::Unknown, E::Force) => (S::Forced, Act::Resume),
            (S::Forced, E::Resumed) => (S::Back, Act::Wait),
            // Nobody has learnt whose it is by that.
            (S::Forced, E::NotResumed) => (S::Unknown, Act::Keep),
            (S::Unknown, E::Stop) => (S::Gone, Act::Free),

            (state, _) => (state, Act::Wait),
        }
    }

    /// Whether the attempt is over: nothing happens any more but by a person.
    pub fn is_settled(self) -> bool {
        matches!(self, Self::Back | Self::Stuck | Self::Unknown | Self::Gone)
    }
}
