//! The port to which the bare test guest writes its heartbeat, so that a gap in its life can be measured from
//! the outside, on a clock that both ends of a move on one machine share.

use migration::state::{Kind, Snapshot};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::bus::{Action, BusDevice};

/// Bytes of port space: one 32-bit register.
pub const HEARTBEAT_LEN: u64 = 4;

/// What was seen of a guest's heartbeats in this process. Times are of CLOCK_BOOTTIME, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HeartbeatRecord {
    /// How many were seen.
    pub count: u64,
    /// When the first was seen; 0 before it.
    pub first_ns: u64,
    /// When the last was seen; 0 before it.
    pub last_ns: u64,
    /// The largest distance between two neighbours since the start or [`HeartbeatPort::forget_gap`].
    pub largest_gap_ns: u64,
    /// The last counter that the guest wrote, also across a move; 0 before the first.
    pub counter: u32,
}

/// The heartbeat port. The guest writes its counter; reading gives the last one.
#[derive(Debug, Default)]
pub struct HeartbeatPort {
    record: HeartbeatRecord,
}

/// What of the heartbeat moves with the guest. The times do not: they belong to the process that saw them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HeartbeatState {
    /// The last counter written.
    pub counter: u32,
}

impl HeartbeatPort {
    /// A port to which nothing was written yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What was seen so far.
    pub fn record(&self) -> HeartbeatRecord {
        self.record
    }

    /// Begins the search for the largest gap anew.
    pub fn forget_gap(&mut self) {
        self.record.largest_gap_ns = 0;
    }

    fn beat(&mut self, counter: u32, now_ns: u64) {
        let record = &mut self.record;
        if record.count == 0 {
            record.first_ns = now_ns;
        } else {
            let gap = now_ns.saturating_sub(record.last_ns);
            record.largest_gap_ns = record.largest_gap_ns.max(gap);
        }
        record.count += 1;
        record.last_ns = now_ns;
        record.counter = counter;
    }
}

/// CLOCK_BOOTTIME in nanoseconds. The clock exists on every Linux that has KVM; 0 if it did not.
fn boottime_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .ok()
        .and_then(|now| {
            let seconds = u64::try_from(now.tv_sec()).ok()?;
            let nanos = u64::try_from(now.tv_nsec()).ok()?;
            seconds.checked_mul(1_000_000_000)?.checked_add(nanos)
        })
        .unwrap_or(0)
}

impl BusDevice for HeartbeatPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let counter = self.record.counter.to_le_bytes();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, from) in data.iter_mut().zip(counter.iter().skip(start)) {
            *to = *from;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        if let (0, Ok(counter)) = (offset, data.try_into()) {
            self.beat(u32::from_le_bytes(counter), boottime_ns());
        }
        Action::None
    }
}

impl Snapshot for HeartbeatPort {
    const KIND: Kind = Kind::HEARTBEAT;
    const VERSION: u32 = 1;
    type State = HeartbeatState;
    type Parts = ();

    fn save(&self) -> HeartbeatState {
        let Self { record } = self;
        let HeartbeatRecord {
            count: _,
            first_ns: _,
            last_ns: _,
            largest_gap_ns: _,
            counter,
        } = *record;
        HeartbeatState { counter }
    }

    fn restore(state: HeartbeatState, (): ()) -> Result<Self, String> {
        let HeartbeatState { counter } = state;
        Ok(Self {
            record: HeartbeatRecord {
                counter,
                ..HeartbeatRecord::default()
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use migration::state::VmState;

    #[test]
    fn beats_are_counted_and_the_largest_gap_is_kept() {
        let mut port = HeartbeatPort::new();
        for (counter, now) in [(1, 100), (2, 110), (3, 150), (4, 155)] {
            port.beat(counter, now);
        }
        let record = HeartbeatRecord {
            count: 4,
            first_ns: 100,
            last_ns: 155,
            largest_gap_ns: 40,
            counter: 4,
        };
        assert_eq!(port.record(), record);
        port.forget_gap();
        port.beat(5, 170);
        assert_eq!(port.record().largest_gap_ns, 15);
    }

    #[test]
    fn the_counter_moves_and_the_times_do_not() {
        let mut port = HeartbeatPort::new();
        assert_eq!(port.write(0, &77u32.to_le_bytes()), Action::None);
        assert_ne!(port.record().first_ns, 0);
        let mut state = VmState::default();
        state.save(0, &port).unwrap();
        let mut port: HeartbeatPort = state.restore(0, ()).unwrap();
        assert_eq!(
            port.record(),
            HeartbeatRecord {
                counter: 77,
                ..Default::default()
            }
        );
        let mut data = [0; 4];
        port.read(0, &mut data);
        assert_eq!(u32::from_le_bytes(data), 77);
    }

    #[test]
    fn other_accesses_are_no_heartbeat() {
        let mut port = HeartbeatPort::new();
        assert_eq!(port.write(0, &[1]), Action::None);
        assert_eq!(port.write(1, &[1; 4]), Action::None);
        assert_eq!(port.write(0, &[1; 8]), Action::None);
        assert_eq!(port.record(), HeartbeatRecord::default());
    }
}
