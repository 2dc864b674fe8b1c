//! Who may run the guest: the one decision of a move that must never be wrong, apart from all that carries it out.
//!
//! Each side is a machine: an event goes in, the next state and the one act to perform come out. There is no I/O in
//! here and no clock; [`crate::source`] and [`crate::destination`] turn frames, errors and timeouts into events, and
//! acts into frames and calls of the guest. So what they do is what [`model`] has tried in every order, with every
//! message lost and either process dead at any point.
//!
//! The source owns the guest until it says GO. From there on it never resumes the guest by itself: LIVE says that it
//! runs on the destination, FAILED gives it back, and where neither comes the guest stays paused here until a person
//! who has looked at the destination decides.

mod destination;
pub mod model;
mod source;

pub use destination::{Destination, DestinationAct, DestinationEvent};
pub use source::{Source, SourceAct, SourceEvent};
