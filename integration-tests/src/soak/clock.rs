//! The bare guest's clock beside the host's.
//!
//! At each heartbeat the guest writes its TSC into its memory. The host's TSC runs at the same rate, so the distance of
//! the two is the guest's time: by as much as it grows over a move, the guest's clocks have fallen behind.

use std::time::{Duration, Instant};

use guest_images::verify;
use nix::time::{ClockId, clock_gettime};

use crate::bench::tsc;
use crate::ferry::Ferry;
use crate::{Error, chain};

/// Heartbeats that are looked at. The one that is seen soonest tells the distance.
const LOOKS: u32 = 8;
const LIMIT: Duration = Duration::from_secs(10);

/// How far the host's TSC is ahead of the guest's, in cycles (modulo 2^64), plus what it takes to see a heartbeat: some
/// microseconds.
///
/// # Errors
/// No pulse beats there.
pub fn distance(ferry: &Ferry) -> Result<u64, Error> {
    let memory = ferry.memory()?;
    let read = || verify::status(&memory).map_err(|e| Error::Unexpected(chain(&e)));
    let began = Instant::now();
    let mut best: Option<u64> = None;
    let mut looks = 0;
    let mut last = read()?.beat;
    while looks < LOOKS {
        let status = read()?;
        let now = tsc::now();
        if status.beat != last {
            last = status.beat;
            looks += 1;
            let distance = now.wrapping_sub(status.beat_tsc);
            // The difference of two distances is small, whatever they are themselves.
            best = Some(match best {
                Some(best) if difference(distance, best) >= 0 => best,
                _ => distance,
            });
        }
        if began.elapsed() > LIMIT {
            return Err(Error::Unexpected(format!(
                "the guest's heart did not beat {LOOKS} times in {LIMIT:?}"
            )));
        }
    }
    best.ok_or_else(|| Error::Unexpected("no heartbeat was seen".into()))
}

/// By how many cycles `after` is more than `before`.
pub fn difference(after: u64, before: u64) -> i64 {
    after.wrapping_sub(before).cast_signed()
}

/// Tells cycles as time, by the host's clock of which time does not stand still (CLOCK_BOOTTIME).
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    tsc: u64,
    boottime: Duration,
}

impl Rate {
    /// Begins to measure.
    pub fn begin() -> Self {
        Self {
            tsc: tsc::now(),
            boottime: boottime(),
        }
    }

    /// Cycles as microseconds, from all of the time since.
    #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
    pub fn micros(&self, cycles: i64) -> f64 {
        let time = (boottime() - self.boottime).as_secs_f64() * 1e6;
        let ticks = tsc::now().wrapping_sub(self.tsc) as f64;
        cycles as f64 * time / ticks
    }
}

/// CLOCK_BOOTTIME, which every Linux has.
pub fn boottime() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}
