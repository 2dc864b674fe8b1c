//! The sending side of a move, as a list of phases. Each phase is a struct that owns the guest; running it
//! gives the next phase, or the failure with the guest brought back.

mod brake;
mod connecting;
mod courier;
mod error;
mod first_round;
mod handover;
mod line;
mod pacer;
mod precopy;
mod snapshot;
mod stop_and_copy;
mod streams;
mod trip;
mod verify;
mod work_list;

pub use error::MoveError;
pub(crate) use error::chain;
pub(crate) use pacer::Pacer;
pub use snapshot::{Hold, Keep, Kept, Snapshotted, snapshot};
pub(crate) use work_list::{AHEAD_PAGES, AHEAD_TIME, LOOK};

use self::connecting::Connecting;
use self::handover::Delivered;
use self::trip::{Failed, Trip};
use crate::cancel::CancelToken;
use crate::event::Event;
use crate::guest::{GuestError, RunningGuest};
use crate::options::Options;
use crate::report::Report;
use crate::wire::Connect;

/// Where the guest is after an attempt to move it.
pub enum After<G: RunningGuest> {
    /// It runs on the destination. What is left of it here is to be dropped.
    Gone(G::Paused),
    /// It runs here, at full speed, without a dirty log.
    Running(G),
    /// The connection was cut between GO and LIVE. It may run on the destination: here it stays paused until
    /// a person decides.
    Unknown(G::Paused),
    /// It belongs here, but could not be resumed.
    Stuck(G::Paused, GuestError),
}

/// An attempt to move a guest, over.
pub struct Moved<G: RunningGuest> {
    /// What it was like.
    pub report: Report,
    /// Where the guest is.
    pub guest: After<G>,
    /// Why it is not on the destination; `None` when it is.
    pub error: Option<MoveError>,
}

/// Moves a guest. It runs here until it is told to stop for good, and again if anything goes wrong before
/// the destination was told GO.
///
/// Returns once the destination has said LIVE and then, within a second or so, its figures; or once the
/// guest is back.
pub fn migrate<G: RunningGuest>(
    guest: G,
    target: &dyn Connect,
    options: &Options,
    cancel: &CancelToken,
    events: &mut dyn FnMut(Event),
) -> Moved<G> {
    let mut trip = Trip::new(target, options, cancel, events);
    match phases(guest, &mut trip) {
        Ok(delivered) => Moved {
            report: trip.completed(&delivered.figures),
            guest: After::Gone(delivered.guest),
            error: None,
        },
        Err(failed) => Moved {
            report: trip.failed(&failed),
            guest: failed.guest,
            error: Some(failed.error),
        },
    }
}

/// The order of a move.
fn phases<G: RunningGuest>(guest: G, trip: &mut Trip<'_>) -> Result<Delivered<G>, Box<Failed<G>>> {
    let precopy = Connecting { guest }.run(trip)?;
    let stop_and_copy = precopy.run(trip)?;
    let handover = stop_and_copy.run(trip)?;
    handover.run(trip)
}
