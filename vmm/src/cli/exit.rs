//! Every exit status of `ferry`, in one place.
//!
//! | status | `run`, `receive`, `restore` | `migrate`, `snapshot` | `check` | `predict` | the others |
//! |---|---|---|---|---|---|
//! | 0 | powered off, stopped, or moved away | completed, saved | everything works here | the move would converge | done |
//! | 1 | error | failed: the guest runs on the source | some guests or features do not work here | error | error |
//! | 2 | usage | usage | usage | usage | usage |
//! | 3 | | cancelled: the guest runs on the source | no guest can run here | | |
//! | 4 | | unknown: look at both ends | | | |
//! | 5 | | failed or cancelled, and the guest is paused here | | the move would not converge | |
//! | 10 | the guest reset itself (reboot) | | | | |
//! | 11 | the guest crashed (its kernel panicked) | | | | |

use migration::report::Outcome;

use crate::machine::End;

/// Done; or a guest that powered off, was stopped, or moved away.
pub const OK: u8 = 0;
/// Tried, and it went wrong. For `migrate`: the guest runs on the source. For `check`: something is missing.
pub const ERROR: u8 = 1;
/// Asked for something that makes no sense. The same number as clap's.
pub const USAGE: u8 = 2;
/// `migrate`: cancelled in time, the guest runs on the source.
pub const CANCELLED: u8 = 3;
/// `check`: no guest at all can run here.
pub const NO_GUESTS: u8 = 3;
/// `migrate`, `snapshot`: nobody here knows where the guest is, or whether it runs.
pub const UNKNOWN: u8 = 4;
/// `migrate`, `snapshot`: it failed or was cancelled, and the guest could not go on: it is paused here and runs
/// nowhere.
pub const PAUSED: u8 = 5;
/// `predict`: the move would not converge.
pub const NOT_CONVERGING: u8 = 5;
/// `run`, `receive`, `restore`: the guest asked for a reset (reboot, triple fault); start it again if it is to go on.
pub const RESET: u8 = 10;
/// `run`, `receive`, `restore`: the guest crashed.
pub const PANIC: u8 = 11;

/// What the end of a guest is to the caller of `ferry run`, `ferry receive` or `ferry restore`.
pub fn of_end(end: &End) -> u8 {
    match end {
        End::PowerOff | End::Stopped | End::Unused { .. } | End::Moved { .. } => OK,
        End::NoGuest { .. } | End::NoMemory { .. } => ERROR,
        End::Reset => RESET,
        End::Panic => PANIC,
    }
}

/// What the outcome of a move is to the caller of `ferry migrate`.
pub fn of_outcome(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Completed => OK,
        Outcome::Failed => ERROR,
        Outcome::Cancelled => CANCELLED,
        Outcome::Unknown => UNKNOWN,
        Outcome::Paused => PAUSED,
    }
}
