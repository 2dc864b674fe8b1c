//! What the bare guest `pulse` tells of moves, and `ferry` beside it, where no more than bounds of many seconds are
//! kept: these tests do not mind one another, so several at a time share the wait.
#![allow(clippy::unwrap_used)]

mod balloon;
mod chain;
mod control;
mod disk;
mod faults;
mod fuzzing;
mod lab;
mod local;
mod network;
mod package;
mod pulse;
mod ring;
mod sandbox;
mod snapshot;
mod systemd;
mod tls;
mod verify;
