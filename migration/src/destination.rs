//! The receiving side of a move.

use std::time::Duration;

use crate::guest::{BlankGuest, Host, PausedGuest};

/// The running guest that a [`Host`] ends up with.
pub type Arrived<H> = <<<H as Host>::Blank as BlankGuest>::Paused as PausedGuest>::Running;

/// What a receiver allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiveOptions {
    /// A peer from which nothing comes, or that takes nothing, for so long is dead.
    pub peer_timeout: Duration,
    /// How long the source is told about the first heartbeat after LIVE, at most.
    pub heartbeat_timeout: Duration,
}

impl Default for ReceiveOptions {
    fn default() -> Self {
        Self {
            peer_timeout: Duration::from_secs(5),
            heartbeat_timeout: Duration::from_secs(1),
        }
    }
}
