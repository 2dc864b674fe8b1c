//! How long a guest has stood still, told anew whenever it is asked: loading a state takes time as well, and a clock
//! that is set late by some milliseconds stays behind by these for good.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The longest standstill that is added to the guest's time. Two hosts whose clocks differ by more are
/// misconfigured, and the guest's time had better not jump.
const LONGEST: Duration = Duration::from_secs(60);

/// Wall time in nanoseconds since 1970.
pub fn wall_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

/// The time since the guest's clocks were read, by the wall clocks of both hosts; none where they contradict each
/// other.
#[derive(Debug, Clone, Copy)]
pub struct Standstill {
    /// What it was when this was made, and when that was; from there on the monotonic clock counts.
    before: Option<(Duration, Instant)>,
}

impl Standstill {
    /// Since the wall time `wall_ns`, nanoseconds since 1970 by the clock of the host that read the guest's.
    pub fn since(wall_ns: u64) -> Self {
        let now = (self::wall_ns(), Instant::now());
        let elapsed = Duration::from_nanos(now.0.saturating_sub(wall_ns));
        let before = (elapsed <= LONGEST).then_some((elapsed, now.1));
        Self { before }
    }

    /// Up to now.
    pub fn so_far(&self) -> Duration {
        self.before
            .map_or(Duration::ZERO, |(elapsed, then)| elapsed + then.elapsed())
    }
}

/// TSC cycles in a stretch of time; 0 where the frequency is not known.
pub fn tsc_cycles(time: Duration, khz: Option<u32>) -> u64 {
    let cycles = time.as_nanos() * u128::from(khz.unwrap_or(0)) / 1_000_000;
    u64::try_from(cycles).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standstill_grows_while_the_state_is_loaded() {
        let second = Duration::from_secs(1);
        let standstill = Standstill::since(wall_ns() - 1_000_000_000);
        let first = standstill.so_far();
        assert!(first >= second && first < 30 * second, "{first:?}");
        std::thread::sleep(Duration::from_millis(5));
        assert!(standstill.so_far() >= first + Duration::from_millis(5));
    }

    #[test]
    fn clocks_that_contradict_each_other_add_nothing() {
        for since in [0, wall_ns() - 61_000_000_000] {
            assert_eq!(Standstill::since(since).so_far(), Duration::ZERO);
        }
        // The other host is ahead: it cannot be told how long, but the load is on our own clock.
        let ahead = Standstill::since(wall_ns() + 3_000_000_000);
        assert!(ahead.so_far() < Duration::from_secs(1));
    }

    #[test]
    fn cycles_of_a_standstill() {
        let time = Duration::from_micros(1500);
        assert_eq!(tsc_cycles(time, Some(2_000_000)), 3_000_000);
        assert_eq!(tsc_cycles(time, None), 0);
    }
}
