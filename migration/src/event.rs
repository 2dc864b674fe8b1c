//! What a move says of itself while it goes on; the VMM turns it into lines, bars or JSON.

use std::time::Duration;

use serde::Serialize;

use crate::report::Round;

/// Something that happened on the source's side. In JSON: `{"event": "round_finished", …}`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The destination has accepted and all streams are there.
    Connected {
        /// The peer's address.
        peer: String,
        /// Guest memory, in bytes.
        memory_bytes: u64,
    },
    /// A round begins.
    RoundStarted {
        /// Its number; 0 sends all memory.
        index: u32,
        /// The pages that it has to deal with.
        pages: u64,
    },
    /// Where the round is now; about ten a second.
    Progress {
        /// The round's number.
        index: u32,
        /// Pages dealt with so far.
        pages_done: u64,
        /// Pages to deal with in all.
        pages: u64,
        /// Bytes on the wire since the move began.
        wire_bytes: u64,
    },
    /// A round is over and has arrived.
    RoundFinished {
        /// What it did.
        #[serde(flatten)]
        round: Round,
    },
    /// The vCPUs are slowed down more, or less.
    ThrottleChanged {
        /// Per vCPU, in percent.
        percent: Vec<u8>,
        /// Why.
        reason: String,
    },
    /// The guest is about to be stopped.
    SwitchingOver {
        /// Why now.
        reason: String,
        /// How long it is expected to be stopped, in milliseconds.
        predicted_blackout_ms: f64,
    },
    /// GO was sent: from here the destination decides.
    Go,
    /// The guest runs on the destination.
    Live {
        /// How long it stood still, in milliseconds.
        blackout_ms: f64,
    },
    /// The move did not happen; the report says what became of the guest.
    Failed {
        /// Why.
        reason: String,
    },
}

/// Something that happened on the destination's side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Arrival {
    /// A guest was accepted and has its memory.
    Accepted {
        /// The peer's address.
        peer: String,
        /// Guest memory, in bytes.
        memory_bytes: u64,
        /// Its vCPUs.
        vcpus: u32,
    },
    /// A round has arrived.
    RoundFinished {
        /// Its number.
        index: u32,
        /// Pages with bytes.
        pages: u64,
        /// Pages of zeros.
        zero_pages: u64,
    },
    /// State is in; the source is told READY.
    Ready,
    /// The guest runs here.
    Live {
        /// From the state's last byte to the guest being able to run.
        restore: Duration,
        /// From GO to its first vCPU running.
        resume: Duration,
    },
}
