//! What the bare guest `pulse` tells of moves, and `ferry` beside it, where no more than bounds of many seconds are
//! kept: these tests do not mind one another, so several at a time share the wait.
#![allow(clippy::unwrap_used)]

mod announce;
mod balloon;
mod bounds;
mod chain;
mod control;
mod disk;
mod faults;
mod fuzzing;
mod lab;
mod local;
mod network;
mod offline;
mod package;
mod page;
mod pulse;
mod ring;
mod sandbox;
mod serial;
mod snapshot;
mod speaker;
mod systemd;
mod tls;
mod verify;
