//! Moves in trouble, and moves without end: faults of all kinds done to real moves of the bare guest, and what a long
//! life leaves behind in processes. `make soak` runs all of it, `make test` a sample.
//!
//! A [`fault`](fault::Fault) is a plain value that a seed and a number stand for ([`draw`](draw::draw)); the
//! [`injector`] does it to a move; the [`lab`] waits for what comes of it, and asks the guest, not the VMM.

pub mod clock;
pub mod draw;
mod ends;
pub mod endurance;
pub mod fault;
pub mod faults;
pub mod footprint;
pub mod injector;
mod judge;
pub mod lab;
pub mod linux;
pub mod outcome;
pub mod peers;
pub mod summary;
mod targets;
pub mod witness;
