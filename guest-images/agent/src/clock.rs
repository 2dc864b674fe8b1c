//! The guest's clocks, as a person or a test outside compares them before and after a move.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

fn read(clock: ClockId) -> Duration {
    // These two clocks exist on every Linux; a zero would show in the first tick.
    clock_gettime(clock).map_or(Duration::ZERO, Duration::from)
}

/// CLOCK_MONOTONIC.
pub fn monotonic() -> Duration {
    read(ClockId::CLOCK_MONOTONIC)
}

/// Time since boot, what `uptime` and /proc/uptime show (CLOCK_BOOTTIME).
pub fn uptime() -> Duration {
    read(ClockId::CLOCK_BOOTTIME)
}

/// Wakes its caller once a period, without drift.
#[derive(Debug)]
pub struct Pace {
    period: Duration,
    next: Instant,
}

impl Pace {
    /// The first wait ends a period from now.
    pub fn new(period: Duration) -> Self {
        Self {
            period,
            next: Instant::now() + period,
        }
    }

    /// Sleeps until the next beat. Beats that were missed are not made up for.
    pub fn wait(&mut self) {
        let now = Instant::now();
        if self.next > now {
            std::thread::sleep(self.next - now);
        } else {
            self.next = now;
        }
        self.next += self.period;
    }
}
