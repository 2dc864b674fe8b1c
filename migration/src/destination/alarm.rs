//! How the failure of one stream ends a move: every wait of the others ends, and the first cause is kept for
//! whoever tells the source.

use std::sync::{Arc, Mutex, PoisonError};

use super::ReceiveError;
use crate::cancel::CancelToken;
use crate::guest::GuestError;
use crate::wire::channel::ChannelError;

/// Shared by all streams of a move.
#[derive(Debug, Clone)]
pub(super) struct Alarm {
    /// What channels listen to.
    pub token: CancelToken,
    cause: Arc<Mutex<Option<ReceiveError>>>,
}

impl Alarm {
    pub fn new() -> Result<Self, GuestError> {
        let token = CancelToken::new()
            .map_err(|error| GuestError::new("make the alarm of the move's streams", error))?;
        Ok(Self {
            token,
            cause: Arc::default(),
        })
    }

    /// Ends the waits of all streams.
    pub fn ring(&self) {
        // Cannot fail on a token that is never committed.
        let _ = self.token.cancel();
    }

    /// A stream has failed.
    pub fn raise(&self, error: ReceiveError) {
        if !is_echo(&error) {
            let mut cause = self.cause.lock().unwrap_or_else(PoisonError::into_inner);
            cause.get_or_insert(error);
            self.ring();
        }
    }

    /// The error of the stream that raised the alarm, where `error` says no more than that one did.
    pub fn cause(&self, error: ReceiveError) -> ReceiveError {
        if !is_echo(&error) {
            return error;
        }
        let mut cause = self.cause.lock().unwrap_or_else(PoisonError::into_inner);
        cause.take().unwrap_or(error)
    }
}

fn is_echo(error: &ReceiveError) -> bool {
    match error {
        ReceiveError::Stream { source, .. } => is_echo(source),
        error => matches!(error, ReceiveError::Channel(ChannelError::Alarm)),
    }
}
