//! What a move will cost, said before it is made.
//!
//! [`costs`] is the reckoning that the engine itself uses during a move: how long the guest would stand still if it
//! were stopped now. Beside it stands a whole move without a guest and without a link: a [`model`] of what the guest
//! writes, and a [`simulation`] of the rounds over it, with the very policies that decide in a real move
//! ([`crate::policy`]), and neither clock nor thread.

pub mod costs;
pub mod model;
mod random;
pub mod simulation;

pub(crate) use costs::RUN_HEADER;
pub use costs::{Costs, blackout, transfer};
pub use model::{Bursts, GuestModel, Part, Writing};
pub use simulation::{Setting, Simulated, simulate};
