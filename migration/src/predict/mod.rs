//! What a move will cost, said before it is made.
//!
//! [`costs`] is the reckoning that the engine itself uses during a move: how long the guest would stand still if it
//! were stopped now. Beside it stands a whole move without a guest and without a link: a [`model`] of what the guest
//! writes, and a [`simulation`] of the rounds over it, with the very policies that decide in a real move
//! ([`crate::policy`]), and neither clock nor thread. [`predict()`] makes an answer of several of them, to a
//! [`Question`]: a guest, known as such or by its measured [`curve`], its memory, a link, and what is wanted of the
//! move.

pub mod costs;
pub mod curve;
pub mod model;
mod nnls;
pub mod prediction;
pub mod question;
mod random;
pub mod simulation;
mod survey;
mod trials;

pub(crate) use costs::RUN_HEADER;
pub use costs::{Costs, blackout, transfer};
pub use curve::{Curve, CurveError, Writes};
pub use model::{Bursts, GuestModel, Part, Writing};
pub use prediction::{Estimate, Prediction, Verdict, predict};
pub use question::{LinkModel, Memory, Question, Spread};
pub use simulation::{Setting, Simulated, simulate};
pub use survey::{Survey, survey};
