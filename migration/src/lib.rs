//! Ferry's live migration engine. It knows pages, rounds, policy, wire, handover and report; no KVM, no
//! device, no VMM.
//!
//! A VMM implements the traits of [`guest`] and calls [`source::migrate`] on the one side and
//! [`destination::receive`] on the other. What goes between the two is described in [`wire`].
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod cancel;
pub mod clock;
pub mod confined;
pub mod destination;
pub mod dirty;
pub mod dirty_rate;
pub mod event;
pub mod guest;
pub mod handover;
pub mod marks;
pub mod options;
pub mod pack;
pub mod pages;
mod placement;
pub mod policy;
pub mod predict;
pub mod probe;
pub mod ram;
pub mod report;
pub mod source;
pub mod state;
pub mod touched;
pub mod verify;
pub mod wire;
pub mod work;
