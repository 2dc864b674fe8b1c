//! The control socket: how a running `ferry` is asked and told things from outside.
//!
//! HTTP/1.1 and JSON over a Unix socket, one request a connection, so that curl is a client:
//!
//! ```text
//! curl --unix-socket /run/guest.sock http://localhost/v1/status
//! curl --unix-socket /run/guest.sock -X PUT http://localhost/v1/pause
//! ```
//!
//! Only root and the user that runs the VMM may use it: the socket's mode is 0600, and the peer's user id is
//! checked as well. What there is to ask is written in `vmm/openapi.json`, which a test keeps true and which the
//! server hands out itself.
//!
//! `GET /metrics` is for Prometheus: the same VM in numbers ([`Metrics`]).
//!
//! Moves, measurements of the dirty rate and predictions answer line by line while they go on.
//!
//! A connection's thread parses the request and hands a [`Call`] to the VM's main thread, the only one that
//! changes the VM; its [`Reply`] becomes the response.
//!
//! ```text
//! client ──HTTP──▶ connection thread ──Call──▶ main thread (woken by an eventfd)
//!        ◀─────────                  ◀─Reply──
//! ```

pub mod client;
mod command;
mod event;
mod footprint;
mod http;
mod metrics;
mod passed;
mod request;
mod router;
mod server;
mod snapshot;
pub(crate) mod socket;
mod status;

pub use command::{Call, CallReceiver, CallSender, Command, Reply, calls};
pub use event::{Happening, MoveEvent, PredictEvent, RateEvent};
pub use footprint::{Footprint, Resident};
pub use http::{MAX_BODY, ReadError, Refusal, Request, read_request};
pub use metrics::{LastFigures, Metrics, MoveCounts};
pub use passed::PassedFile;
pub use request::{
    BalloonRequest, Compress, DirtyRateRequest, MigrateRequest, OnTimeout, PredictRequest,
    RequestError, Throttle,
};
pub use router::{Asked, OPENAPI, route, routes};
pub use server::{ControlError, ControlServer};
pub use snapshot::{SnapshotName, SnapshotRequest};
pub use status::{
    BalloonStatus, DeviceStatus, DirtyLogStatus, HeartbeatStatus, IF_PAUSED, IF_UNKNOWN, LastMove,
    MemoryRegion, MoveProgress, State, Status,
};

#[cfg(test)]
mod tests;
