//! `auto-converge`: what QEMU does, as the yardstick.
//!
//! After a sync of the dirty bitmap that comes more than a second after the last one that counted, QEMU
//! compares what was dirtied since with what was sent since. The second time that it is more than half (not
//! necessarily in a row), all vCPUs are slowed down: by 20 %, later by 10 % more each time, by 99 % at most
//! (migration/ram.c, `migration_trigger_throttle` and `mig_throttle_guest_down`; the figures are the defaults
//! of `throttle-trigger-threshold`, `cpu-throttle-initial`, `cpu-throttle-increment`, `max-cpu-throttle`).
//! It is never lowered. A vCPU runs 10 ms at a time and sleeps as long as the percentage then asks for, up to
//! 990 ms (cpu-throttle.c).
//!
//! QEMU syncs when what is left would fit the downtime limit, and since 9.2, from the second pass on, if there
//! was no other sync for 5 s. Here a round ends when nothing of it is left, and pages found in the middle of a
//! round wait for the next one. And a vCPU that is idle for a part of the time sleeps less here than there.

use std::time::Duration;

use super::{Limits, Look, Percents, Throttle, Throttling};
use crate::guest::ThrottlePercent;
use crate::pages::PAGE_SIZE;
use crate::predict::Costs;

/// Periods are longer than that (migration/ram.c, `migration_bitmap_sync`).
const PERIOD: Duration = Duration::from_secs(1);
/// `CPU_THROTTLE_DIRTY_SYNC_TIMESLICE_MS`.
const SYNC: Duration = Duration::from_secs(5);
/// `throttle-trigger-threshold`, in percent.
const THRESHOLD: u64 = 50;
/// `cpu-throttle-initial`.
const INITIAL: u8 = 20;
/// `cpu-throttle-increment`.
const INCREMENT: u8 = 10;
/// `CPU_THROTTLE_TIMESLICE_NS`.
const RUNS: Duration = Duration::from_millis(10);

/// QEMU's auto-converge.
#[derive(Debug, Clone, Copy, Default)]
pub struct AutoConverge {
    percent: u8,
    /// Periods in which too much was dirtied, since the last step.
    high: u8,
    /// When the last period ended.
    period_began: Duration,
    /// Bytes sent until then.
    sent_before: u64,
    /// Pages dirtied in this period.
    dirtied: u64,
    /// Those of the round that were counted already.
    counted: u64,
    last_sync: Duration,
}

impl AutoConverge {
    fn sync(&mut self, look: &Look) {
        self.last_sync = look.elapsed;
        self.dirtied += look.undone().saturating_sub(self.counted);
        self.counted = if look.over { 0 } else { look.undone() };
        if look.elapsed <= self.period_began + PERIOD {
            return;
        }
        let sent = look.wire_bytes.saturating_sub(self.sent_before);
        if self.dirtied * PAGE_SIZE > sent * THRESHOLD / 100 {
            self.high += 1;
            if self.high >= 2 {
                self.high = 0;
                self.percent = match self.percent {
                    0 => INITIAL,
                    percent => percent + INCREMENT,
                };
                // So that the sum above never leaves a byte.
                self.percent = ThrottlePercent::new(self.percent).get();
            }
        }
        self.period_began = look.elapsed;
        self.sent_before = look.wire_bytes;
        self.dirtied = 0;
    }
}

impl Throttling for AutoConverge {
    fn pace(&self) -> Option<Duration> {
        Some(SYNC)
    }

    fn decide(&mut self, look: &Look, _: &Costs, limits: &Limits) -> Throttle {
        let overdue = look.round > 0 && look.elapsed >= self.last_sync + SYNC;
        if look.over || overdue {
            self.sync(look);
        }
        let percent = ThrottlePercent::new(self.percent).min(limits.throttle);
        Throttle {
            percents: Percents::All(percent),
            slice: RUNS * u32::from(percent.get()) / u32::from(100 - percent.get()),
        }
    }
}
