//! The life of a VM in this process: `ferry run`, `ferry receive` and `ferry restore`.
//!
//! The main thread is the only one that changes the VM's phase. It waits for control calls, vCPU events,
//! console input, signals, and for the migration thread, which owns the VM during a move and gives it back
//! (or not) when the move is over.

mod activation;
mod announce;
mod calls;
mod disk;
mod error;
mod gate;
mod incoming;
mod measuring;
mod news;
mod outgoing;
mod pager;
mod paths;
mod predicting;
mod restoring;
mod saving;
mod start;
mod status;
mod supervisor;
mod supplies;
mod tap;

use std::fmt;

pub use error::MachineError;
pub use incoming::receive;
pub use restoring::restore;
pub use start::run;

/// How a process that had, or waited for, a guest comes to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The guest switched itself off.
    PowerOff,
    /// Someone here stopped it: `ferry stop`, the console's quit key, SIGTERM.
    Stopped,
    /// Someone here stopped it before a guest was here.
    Unused {
        /// Whether one was on its way, which its source has then, or has given up.
        receiving: bool,
    },
    /// The guest runs elsewhere now.
    Moved {
        /// Where.
        to: String,
    },
    /// The guest asked for a reset, or its processor shut down. Ferry does not start it again.
    Reset,
    /// The guest's kernel panicked, and then reset.
    Panic,
    /// A receiver that was to wait for one guest, and did not get it.
    NoGuest {
        /// Why.
        reason: String,
    },
    /// A guest that ran while its memory was read from snapshots, and could not have all of it.
    NoMemory {
        /// Why.
        reason: String,
    },
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::PowerOff => f.write_str("the guest powered off"),
            End::Stopped => f.write_str("the guest was stopped"),
            End::Unused { receiving: false } => f.write_str("stopped before a guest came"),
            End::Unused { receiving: true } => {
                f.write_str("stopped while a guest came: its source says where it is")
            }
            End::Moved { to } => write!(f, "the guest runs on {to} now"),
            End::Reset => f.write_str("the guest reset itself"),
            End::Panic => f.write_str("the guest crashed"),
            End::NoGuest { reason } => write!(f, "no guest came: {reason}"),
            End::NoMemory { reason } => write!(
                f,
                "the guest was ended, since not all of its memory could be read: {reason}"
            ),
        }
    }
}
