//! What Ferry says to bad input: one line with act, values and remedy, an exit status that tells, and a guest that
//! goes on as if nothing had been.
//!
//! All of it runs straight on this machine's `/dev/kvm`, with the bare guest; it needs root.
#![allow(clippy::unwrap_used)]

mod control;
mod destinations;
mod disks;
mod kernels;
mod peer;
mod receive;
mod run;
mod sources;
mod support;
