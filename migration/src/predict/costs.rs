//! How long a guest would stand still if it were stopped now: numbers in, a duration out.

use std::time::Duration;

use crate::pages::PAGE_SIZE;

/// What the parts of a blackout cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Costs {
    /// Bytes a second that reach the destination; 0 when nothing is known yet.
    pub bandwidth: u64,
    /// A message there and its answer back.
    pub round_trip: Duration,
    /// To read the dirty log once.
    pub sync: Duration,
    /// To stop vCPUs and devices.
    pub stop: Duration,
    /// To save the state.
    pub save: Duration,
    /// To restore it on the destination.
    pub restore: Duration,
    /// To resume on the destination.
    pub resume: Duration,
    /// Size of the state, in bytes.
    pub state_bytes: u64,
}

/// A page's share of its frame's header, in the worst case of runs one page long.
pub(crate) const RUN_HEADER: u64 = 12;

/// How long `bytes` take at `bandwidth` bytes a second. Without a bandwidth there is nothing to expect but
/// the time of everything else.
pub fn transfer(bytes: u64, bandwidth: u64) -> Duration {
    if bandwidth == 0 {
        return Duration::ZERO;
    }
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(bandwidth);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// The blackout with so many pages left to send, in the order in which it happens: stop the vCPUs, read the
/// log, send the pages, save, read the log once more, send the state, restore, resume. Three messages of one
/// way each lie between: STATE and READY and GO.
pub fn blackout(pages: u64, costs: &Costs) -> Duration {
    let page_bytes = pages.saturating_mul(PAGE_SIZE + RUN_HEADER);
    costs.stop
        + costs.sync * 2
        + transfer(page_bytes, costs.bandwidth)
        + costs.save
        + transfer(costs.state_bytes, costs.bandwidth)
        + costs.restore
        + costs.resume
        + costs.round_trip * 3 / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_counts() {
        let none = Costs::default();
        assert_eq!(blackout(1000, &none), Duration::ZERO);
        let ms = Duration::from_millis;
        let all = Costs {
            bandwidth: 4108 * 1000,
            round_trip: ms(10),
            sync: ms(3),
            stop: ms(1),
            save: ms(2),
            restore: ms(4),
            resume: ms(5),
            state_bytes: 4108 * 8,
        };
        // 20 pages of 1 ms each, 8 ms for the state, one and a half round trips, the log twice.
        assert_eq!(blackout(20, &all), ms(20 + 8 + 15 + 6 + 1 + 2 + 4 + 5));
    }

    #[test]
    fn huge_numbers_stay_numbers() {
        let slow = Costs {
            bandwidth: 1,
            ..Costs::default()
        };
        assert!(blackout(u64::MAX, &slow) > Duration::from_secs(1 << 30));
    }
}
