//! Keeps the bytes on the wire below the bandwidth that was asked for.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::streams::SIGN;
use crate::cancel::{CancelToken, Cancelled};
use crate::options::MIN_BANDWIDTH;
use crate::pages::PAGE_SIZE;
use crate::predict::transfer;

/// What may be sent at once after a pause, in time at the given bandwidth: enough to even out a late wake-up,
/// too little to fill a queue in the network.
const BURST: Duration = Duration::from_millis(5);
/// A batch leaves so often at least: a window of 100 ms is then even to 1 %.
const BATCH: Duration = Duration::from_millis(1);

/// Spaces batches of bytes evenly, those of all streams together. Without a bandwidth it does nothing.
#[derive(Debug)]
pub(crate) struct Pacer {
    bandwidth: Option<u64>,
    /// When the next byte is due.
    due: Mutex<Instant>,
}

impl Pacer {
    pub fn new(bandwidth: Option<u64>) -> Self {
        Self {
            bandwidth: bandwidth.map(|bandwidth| bandwidth.max(MIN_BANDWIDTH)),
            due: Mutex::new(Instant::now()),
        }
    }

    /// The bandwidth that it keeps to.
    pub fn bandwidth(&self) -> Option<u64> {
        self.bandwidth
    }

    /// How many streams are opened of `most` that are wanted: no more than can each send a page within [`SIGN`]. With
    /// more of them the first would wait for its turn longer than the destination waits for it, and none would carry
    /// anything sooner.
    pub fn streams(&self, most: u16) -> u16 {
        let most = most.max(1);
        u16::try_from(self.pages(SIGN)).map_or(most, |pages| pages.clamp(1, most))
    }

    /// Waits until `bytes` may be sent, and counts them.
    pub fn pace(&self, bytes: u64, cancel: &CancelToken) -> Result<(), Cancelled> {
        let Some(bandwidth) = self.bandwidth else {
            return Ok(());
        };
        let now = Instant::now();
        let wait = self.admit(bytes, bandwidth, now);
        if wait.is_zero() {
            return Ok(());
        }
        cancel.sleep(wait)
    }

    /// How long to wait from `now` before `bytes` may go.
    fn admit(&self, bytes: u64, bandwidth: u64, now: Instant) -> Duration {
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let mut next = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let due = next.max(earliest);
        *next = due + transfer(bytes, bandwidth);
        due.saturating_duration_since(now)
    }

    /// The most pages to be sent at once, out of `most`.
    pub fn batch(&self, most: u64) -> u64 {
        self.pages(BATCH).clamp(1, most)
    }

    /// How many pages may be sent in so much time, as they are.
    pub fn pages(&self, time: Duration) -> u64 {
        self.bandwidth.map_or(u64::MAX, |bandwidth| {
            let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            bandwidth.saturating_mul(millis) / 1000 / PAGE_SIZE
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_spaced_by_the_bandwidth() {
        let pacer = Pacer::new(Some(1 << 20));
        let start = *pacer.due.lock().unwrap();
        let quarter = 1 << 18;
        let mut now = start;
        for step in 0..8u32 {
            now += pacer.admit(quarter, 1 << 20, now);
            assert_eq!(now - start, Duration::from_millis(250) * step);
        }
    }

    #[test]
    fn a_pause_earns_no_more_than_a_burst() {
        let pacer = Pacer::new(Some(1 << 20));
        let late = *pacer.due.lock().unwrap() + Duration::from_secs(60);
        assert_eq!(pacer.admit(1 << 20, 1 << 20, late), Duration::ZERO);
        let wait = pacer.admit(1, 1 << 20, late);
        assert_eq!(wait, Duration::from_secs(1) - BURST);
    }

    #[test]
    fn batches_fit_the_bandwidth() {
        assert_eq!(Pacer::new(None).batch(256), 256);
        assert_eq!(Pacer::new(Some(1)).batch(256), 1);
        assert_eq!(Pacer::new(Some(125_000_000)).batch(1024), 30);
        assert_eq!(Pacer::new(Some(u64::MAX)).batch(256), 256);
    }

    #[test]
    fn streams_are_as_many_as_have_something_to_say() {
        assert_eq!(Pacer::new(None).streams(16), 16);
        assert_eq!(Pacer::new(None).streams(0), 1);
        assert_eq!(Pacer::new(Some(1)).streams(16), 1);
        assert_eq!(Pacer::new(Some(200_000)).streams(16), 4);
        assert_eq!(Pacer::new(Some(200_000)).streams(2), 2);
        assert_eq!(Pacer::new(Some(u64::MAX)).streams(16), 16);
    }
}
