//! The one switch that ends a move early, shared between the move and whoever may want to end it.
//!
//! A move can be cancelled until it is committed (GO sent on the source, GO taken on the destination), and
//! exactly one of the two happens first.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;

const OPEN: u8 = 0;
const CANCELLED: u8 = 1;
const COMMITTED: u8 = 2;

/// The answer to a cancel that comes too late.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error(
    "the move is committed: the destination was told to run the guest, so it can no longer be cancelled here"
)]
pub struct Committed;

/// The answer to a commit that comes too late.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("the move was cancelled")]
pub struct Cancelled;

#[derive(Debug)]
struct Inner {
    state: AtomicU8,
    /// Readable once cancelled, so that a poll(2) on it wakes up; nobody ever reads the byte.
    wake: UnixStream,
    ring: UnixStream,
}

/// Ends a move, from any thread, within 100 ms. Clones share one switch; one move uses one token.
#[derive(Debug, Clone)]
pub struct CancelToken(Arc<Inner>);

impl CancelToken {
    /// A token of a move not yet cancelled.
    ///
    /// # Errors
    /// The process is out of file descriptors (two are needed).
    pub fn new() -> std::io::Result<Self> {
        let (wake, ring) = UnixStream::pair()?;
        let state = AtomicU8::new(OPEN);
        Ok(Self(Arc::new(Inner { state, wake, ring })))
    }

    /// Cancels the move: it ends soon, with the guest running where it was. Cancelling twice is fine.
    ///
    /// # Errors
    /// [`Committed`]: the move is past the point of no return and goes on.
    pub fn cancel(&self) -> Result<(), Committed> {
        match self.turn(CANCELLED) {
            COMMITTED => Err(Committed),
            CANCELLED => Ok(()),
            _ => {
                // The pair is new and empty: one byte always fits. Should it not, a waiter still looks at
                // the state when its slice of time is over.
                let _ = (&self.0.ring).write(&[1]);
                Ok(())
            }
        }
    }

    /// Makes the move uncancellable from here on.
    ///
    /// # Errors
    /// [`Cancelled`]: somebody cancelled first; nothing may be committed.
    pub fn commit(&self) -> Result<(), Cancelled> {
        match self.turn(COMMITTED) {
            CANCELLED => Err(Cancelled),
            _ => Ok(()),
        }
    }

    /// Whether the move was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.state.load(Ordering::Acquire) == CANCELLED
    }

    /// Sleeps, but wakes up at once when cancelled.
    ///
    /// # Errors
    /// [`Cancelled`], before or during the sleep.
    pub fn sleep(&self, time: Duration) -> Result<(), Cancelled> {
        let mut fds = [PollFd::new(self.wake_fd(), PollFlags::POLLIN)];
        // Rounded up to a millisecond by poll(2)'s unit; an interrupted poll ends the sleep early.
        let millis = time.as_nanos().div_ceil(1_000_000);
        let _ = poll(
            &mut fds,
            PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX),
        );
        if self.is_cancelled() {
            Err(Cancelled)
        } else {
            Ok(())
        }
    }

    /// Becomes readable, for good, once the move is cancelled.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.0.wake.as_fd()
    }

    /// Goes from open to `to`, unless it is already elsewhere; gives the state before.
    fn turn(&self, to: u8) -> u8 {
        match (self.0.state).compare_exchange(OPEN, to, Ordering::AcqRel, Ordering::Acquire) {
            Ok(before) | Err(before) => before,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_comes_first_wins() {
        let token = CancelToken::new().unwrap();
        token.cancel().unwrap();
        token.cancel().unwrap();
        assert_eq!(token.commit(), Err(Cancelled));
        assert!(token.is_cancelled());
        assert_eq!(token.sleep(Duration::from_secs(3600)), Err(Cancelled));

        let token = CancelToken::new().unwrap();
        token.commit().unwrap();
        token.commit().unwrap();
        assert_eq!(token.cancel(), Err(Committed));
        assert!(!token.is_cancelled());
    }

    #[test]
    fn of_two_at_once_exactly_one_wins() {
        for _ in 0..200 {
            let token = CancelToken::new().unwrap();
            let other = token.clone();
            let thread = std::thread::spawn(move || other.cancel().is_ok());
            let committed = token.commit().is_ok();
            assert_ne!(thread.join().unwrap(), committed);
        }
    }
}
