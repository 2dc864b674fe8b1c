//! Why a move did not happen.

use thiserror::Error;

use crate::cancel::Cancelled;
use crate::guest::GuestError;
use crate::wire::ConnectError;
use crate::wire::channel::ChannelError;

/// What ended a move before its time.
#[derive(Debug, Error)]
pub enum MoveError {
    /// Somebody cancelled it.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// There is no connection.
    #[error(transparent)]
    Connect(ConnectError),
    /// The connection failed.
    #[error(transparent)]
    Channel(ChannelError),
    /// The destination does not take the guest.
    #[error("{peer} refuses the guest: {reason}")]
    Refused {
        /// The destination.
        peer: String,
        /// Its reason.
        reason: String,
    },
    /// The destination could not go on.
    #[error("{peer} failed: {reason}")]
    Peer {
        /// The destination.
        peer: String,
        /// Its reason.
        reason: String,
    },
    /// The destination said something that does not belong there.
    #[error(
        "{peer} sent {frame} while the source was waiting for {expected}; run the same ferry on both ends"
    )]
    Unexpected {
        /// The destination.
        peer: String,
        /// What it said.
        frame: &'static str,
        /// What was expected.
        expected: &'static str,
    },
    /// The guest could not do what a move needs.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The policy needs to know who writes.
    #[error(
        "dirty-limit slows down the vCPUs that write, and the dirty log of this guest does not know which those are: start it with --dirty-tracking ring, or ask for --throttle auto"
    )]
    WritersUnknown,
    /// There are no two memories to compare.
    #[error(
        "a move over a Unix socket hands over the memory itself, so there are no two to compare: leave --verify out, or move over TCP (tcp:127.0.0.1:PORT)"
    )]
    NothingToVerify,
    /// The destination does not know how to compare.
    #[error(
        "{peer} speaks version {version} of the migration protocol, which cannot compare memories: use a newer ferry there, or leave --verify out"
    )]
    CannotVerify {
        /// The destination.
        peer: String,
        /// What it speaks.
        version: u16,
    },
    /// The memories differ.
    #[error(
        "the memory that arrived at {peer} is not the guest's: {what}; the memory or the network of one of the hosts is at fault, or ferry is"
    )]
    Differs {
        /// The destination.
        peer: String,
        /// Which pages.
        what: String,
    },
    /// Neither LIVE nor FAILED came after GO.
    #[error(
        "the destination was told to run the guest and nobody knows whether it does: the guest stays paused here until somebody decides"
    )]
    Unknown(#[source] Box<MoveError>),
    /// The snapshot's file takes no more.
    #[error(
        "cannot write the snapshot {name}, and the guest runs on; free space there, or take another place"
    )]
    File {
        /// Which file.
        name: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The policy gave it up.
    #[error("given up: {0}")]
    GaveUp(String),
}

impl From<ConnectError> for MoveError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Cancelled(cancelled) => Self::Cancelled(cancelled),
            error => Self::Connect(error),
        }
    }
}

impl From<ChannelError> for MoveError {
    fn from(error: ChannelError) -> Self {
        match error {
            ChannelError::Cancelled(cancelled) => Self::Cancelled(cancelled),
            error => Self::Channel(error),
        }
    }
}

impl MoveError {
    /// The error and all its causes on one line.
    pub fn in_full(&self) -> String {
        chain(self)
    }
}

/// An error and its causes, joined by colons.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
