//! What the asker of a move, a measurement or a prediction hears while it goes on: one JSON object a line, its end
//! last.

use migration::dirty_rate::{Bursts, Window};
use migration::event::Event;
use migration::predict::{Estimate, Prediction};
use migration::report::{Report, Round};
use serde::{Deserialize, Serialize};

/// One line of the answer to a migrate request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum MoveEvent {
    /// The last line, always: how it ended.
    Report {
        /// In numbers.
        report: Box<Report>,
    },
    /// Something on the way.
    Happened(Happening),
}

impl MoveEvent {
    /// Whether the next of its kind says all that it does, so that one who is late may miss it.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Happened(Happening::Progress { .. }))
    }
}

/// A step of a move. In JSON: `{"event": "round_finished", …}`. These names are the API's; they follow the
/// engine's [`Event`] but do not change when it does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Happening {
    /// The destination accepted.
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
    /// Where the round is.
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
    /// A round is over.
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
    /// From here the move can no longer be cancelled.
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
    /// A step that this build does not know, from a newer VMM.
    #[serde(other)]
    Other,
}

impl From<Report> for MoveEvent {
    fn from(report: Report) -> Self {
        MoveEvent::Report {
            report: Box::new(report),
        }
    }
}

impl From<Event> for MoveEvent {
    fn from(event: Event) -> Self {
        MoveEvent::Happened(event.into())
    }
}

impl From<Event> for Happening {
    fn from(event: Event) -> Self {
        match event {
            Event::Connected { peer, memory_bytes } => Self::Connected { peer, memory_bytes },
            Event::RoundStarted { index, pages } => Self::RoundStarted { index, pages },
            Event::Progress {
                index,
                pages_done,
                pages,
                wire_bytes,
            } => Self::Progress {
                index,
                pages_done,
                pages,
                wire_bytes,
            },
            Event::RoundFinished { round } => Self::RoundFinished { round },
            Event::ThrottleChanged { percent, reason } => Self::ThrottleChanged { percent, reason },
            Event::SwitchingOver {
                reason,
                predicted_blackout_ms,
            } => Self::SwitchingOver {
                reason,
                predicted_blackout_ms,
            },
            Event::Go => Self::Go,
            Event::Live { blackout_ms } => Self::Live { blackout_ms },
            Event::Failed { reason } => Self::Failed { reason },
        }
    }
}

/// One line of the answer to a dirty-rate request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum RateEvent {
    /// So much was written since the measurement began.
    Window {
        /// How much in which time.
        #[serde(flatten)]
        window: Window,
    },
    /// The last line: all windows were told.
    Done {
        /// Guest memory, in bytes.
        memory_bytes: u64,
        /// The bursts in which the guest writes; nothing if it writes all the time, or if that is not known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bursts: Option<Bursts>,
    },
    /// The last line: it came to nothing, or was cancelled. The guest runs on.
    Failed {
        /// Why.
        reason: String,
    },
    /// Something that this build does not know, from a newer VMM.
    #[serde(other)]
    Other,
}

/// What older VMMs, which do not look, leave out.
fn all() -> f64 {
    100.0
}

/// One line of the answer to a predict request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum PredictEvent {
    /// So much was written since the guest is watched.
    Window {
        /// How much in which time.
        #[serde(flatten)]
        window: Window,
    },
    /// The guest's memory was looked through.
    Memory {
        /// All of it, in bytes.
        memory_bytes: u64,
        /// Pages that anybody ever touched.
        touched_pages: u64,
        /// Those of them that hold nothing but zeros, in percent.
        zero_percent: f64,
        /// The share of its time that the busiest vCPU of those that write ran while the guest was watched, in percent.
        busy_percent: f64,
    },
    /// The link was measured.
    Link {
        /// Bytes a second that arrived.
        bandwidth_bytes_per_s: Estimate<u64>,
        /// A message there and its answer back, in milliseconds.
        round_trip_ms: f64,
        /// To make one connection, in milliseconds.
        connect_ms: f64,
        /// Connections that the destination granted.
        streams: u16,
        /// Bytes that were sent to find out.
        probe_bytes: u64,
        /// The processor time that the busiest vCPU of those that write had left meanwhile, of what it takes without,
        /// in percent: under 100 where the move works on processors that the guest runs on.
        #[serde(default = "all")]
        left_percent: f64,
    },
    /// The last line: what the move would cost.
    Prediction {
        /// In numbers.
        prediction: Box<Prediction>,
    },
    /// The last line: it came to nothing, or was cancelled. The guest runs on.
    Failed {
        /// Why.
        reason: String,
    },
    /// Something that this build does not know, from a newer VMM.
    #[serde(other)]
    Other,
}
