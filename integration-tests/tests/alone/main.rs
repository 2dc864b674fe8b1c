//! Tests with the bare guest `pulse` that hold figures against each other: what a link carries, what was predicted,
//! what work was lost, what does not converge. Whatever else the machine does shows in these, so they have it to
//! themselves, one after another.
#![allow(clippy::unwrap_used)]

mod link;
mod predict;
mod soak;
mod study;
mod work;
mod writers;
