//! The engine, its wire and its policies from outside, with guests that are threads and memory: no test here needs KVM.
//! One program, so that they are linked once and may wait side by side.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod cancels;
mod convergence;
mod cuts;
mod fence;
mod golden;
mod handover_model;
mod moves;
mod packed;
mod packing;
mod pages;
mod panics;
mod peers;
mod policy;
mod predict;
mod probe;
mod report;
mod snapshots;
mod strangers;
mod streams;
mod tls;
mod verify;
mod wire;
