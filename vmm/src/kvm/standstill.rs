//! How long a guest has stood still, told anew whenever it is asked: loading a state takes time as well, and a clock
//! that is set late by some milliseconds stays behind by these for good.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A standstill may be so much longer than this host has seen of it. Two hosts whose clocks differ by more are
/// misconfigured, and the guest's time had better not jump.
const LONGEST: Duration = Duration::from_secs(60);

/// Wall time in nanoseconds since 1970.
pub fn wall_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

/// The time since the guest's clocks were read, by the wall clocks of both hosts; what this host has seen of it itself
/// where they contradict each other.
#[derive(Debug, Clone, Copy)]
pub struct Standstill {
    /// What it was when this was made, and when that was; from there on the monotonic clock counts.
    before: (Duration, Instant),
}

impl Standstill {
    /// Since the wall time `wall_ns`, nanoseconds since 1970 by the clock of the host that read the guest's; that it
    /// had been read was known here at `read_by`. Between the two little time passes; behind them a large memory may
    /// have been compared, for minutes.
    pub fn since(wall_ns: u64, read_by: Instant) -> Self {
        let now = (self::wall_ns(), Instant::now());
        let seen = now.1.saturating_duration_since(read_by);
        let elapsed = Duration::from_nanos(now.0.saturating_sub(wall_ns));
        let fits = elapsed >= seen && elapsed - seen <= LONGEST;
        Self {
            before: (if fits { elapsed } else { seen }, now.1),
        }
    }

    /// Up to now.
    pub fn so_far(&self) -> Duration {
        let (elapsed, then) = self.before;
        elapsed + then.elapsed()
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
        let standstill = Standstill::since(wall_ns() - 1_000_000_000, Instant::now());
        let first = standstill.so_far();
        assert!(first >= second && first < 30 * second, "{first:?}");
        std::thread::sleep(Duration::from_millis(5));
        assert!(standstill.so_far() >= first + Duration::from_millis(5));
    }

    #[test]
    fn of_clocks_that_contradict_each_other_only_our_own_counts() {
        // The other host is behind, or ahead: it cannot be told how long, but the load is on our own clock.
        for since in [0, wall_ns() - 91_000_000_000, wall_ns() + 3_000_000_000] {
            let standstill = Standstill::since(since, Instant::now());
            assert!(standstill.so_far() < Duration::from_secs(30));
        }
    }

    #[test]
    fn a_standstill_may_be_as_long_as_it_was_seen_to_be() {
        let seen = Instant::now() - Duration::from_secs(300);
        // The guest's clocks had been read a moment before, or as long before as may be; the others are told by wall
        // clocks that are wrong.
        for (told, expected) in [(301, 301), (330, 330), (250, 300), (0, 300), (400, 300)] {
            let standstill = Standstill::since(wall_ns() - told * 1_000_000_000, seen);
            let late = standstill
                .so_far()
                .checked_sub(Duration::from_secs(expected));
            assert!(
                late.is_some_and(|late| late < Duration::from_secs(20)),
                "{standstill:?}, {told} s were told"
            );
        }
    }

    #[test]
    fn cycles_of_a_standstill() {
        let time = Duration::from_micros(1500);
        assert_eq!(tsc_cycles(time, Some(2_000_000)), 3_000_000);
        assert_eq!(tsc_cycles(time, None), 0);
    }
}
