//! For a process that gives up rights once it is set up: what of the engine has to be done before, and in every thread
//! that the engine starts later.
//!
//! The engine itself knows no sandbox. A VMM that has none needs nothing of this.

use std::io;
use std::sync::OnceLock;

use crate::{clock, touched};

/// What a thread of the engine's is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Carries pages, or fillers of a probe, over a connection that is there.
    Stream,
    /// Computes digests of guest memory.
    Verify,
    /// Connects to the destination, and joins the move there.
    Dial,
    /// Looks up a name.
    Resolve,
    /// Has what the guest has written elsewhere brought to where it lasts.
    Settle,
}

static AT_START: OnceLock<fn(Role)> = OnceLock::new();

/// Has `act` done first in every thread that the engine starts from now on, by that thread. The first call counts.
pub fn at_start(act: fn(Role)) {
    let _ = AT_START.set(act);
}

/// To be called by each thread of the engine's before anything else.
pub(crate) fn started(role: Role) {
    if let Some(act) = AT_START.get() {
        act(role);
    }
}

/// Opens and reads now what the engine otherwise would at each move, all of it in /proc.
///
/// # Errors
/// /proc/self/pagemap does not open.
pub fn open_files() -> io::Result<()> {
    // Without it the two ends merely do not know that they share a clock.
    let _ = clock::boot_id();
    touched::open_map()
}
