//! Root's powers, given up: what was needed of them (a tap that is made, a device that only root may open) is over once
//! the process is set up.

use caps::{CapSet, Capability};
use nix::sys::prctl;
use thiserror::Error;

/// A capability that cannot be given up.
#[derive(Debug, Error)]
pub enum CapabilityError {
    /// The set cannot be emptied.
    #[error("cannot give up the {set} capabilities: {reason}")]
    Set {
        /// Which.
        set: &'static str,
        /// The kernel's answer.
        reason: String,
    },
    /// The process could still gain rights by a program that it starts.
    #[error("cannot set no_new_privs")]
    NoNewPrivileges(#[source] nix::Error),
}

/// Gives up all of them, and the way to new ones by programs with set-user-ID. The user stays who he is.
///
/// The bounding set can be emptied only by who has CAP_SETPCAP; to others it gives nothing, since with no_new_privs no
/// program that is started could take a capability out of it.
///
/// # Errors
/// See [`CapabilityError`].
pub fn give_up() -> Result<(), CapabilityError> {
    prctl::set_no_new_privs().map_err(CapabilityError::NoNewPrivileges)?;
    let failed = |set| {
        move |error: caps::errors::CapsError| CapabilityError::Set {
            set,
            reason: error.to_string(),
        }
    };
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)
        .map_err(failed("effective"))?
    {
        for capability in caps::runtime::thread_all_supported() {
            caps::drop(None, CapSet::Bounding, capability).map_err(failed("bounding"))?;
        }
    }
    caps::clear(None, CapSet::Ambient).map_err(failed("ambient"))?;
    caps::clear(None, CapSet::Effective).map_err(failed("effective"))?;
    caps::clear(None, CapSet::Inheritable).map_err(failed("inheritable"))?;
    caps::clear(None, CapSet::Permitted).map_err(failed("permitted"))
}
