//! Whether pages go quicker lent or copied: numbers in, a way out. No clock and no socket is in here.
//!
//! Which it is depends on the machine, and on nothing that it would tell: lending spares the sender a copy, but what the
//! receiver copies then does not come out of a processor's cache. docs/performance.md has machines of both kinds. So
//! both are done in turn for some megabytes, and the quicker one after that, until it is time to look again.

use std::time::{Duration, Instant};

/// How bytes get to a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// The kernel is given the pages that they are in.
    Lent,
    /// The kernel copies them.
    Copied,
}

/// Bytes in each turn that are ignored: what lies in a socket's buffer (up to 4 MiB, tcp_wmem) went the other way.
const SETTLE: usize = 4 << 20;
/// Bytes in each turn that are timed.
const TIMED: usize = 8 << 20;
/// Turns of each way; the median counts, since a turn takes no more than a processor's other work does.
const TURNS: usize = 3;
/// Bytes that go the quicker way then.
const HOLD: usize = 1 << 30;
/// Copying has to be quicker by this part of its time: lending takes less of the processors, and leaves more to guests.
const WORTH: u32 = 32;

/// What one stream has found out.
#[derive(Debug)]
pub(super) struct Trial {
    way: Way,
    /// Bytes that went this way since the last change or look.
    bytes: usize,
    /// When timing began in this turn.
    began: Option<Instant>,
    lent: Vec<Duration>,
    copied: Vec<Duration>,
    /// Whether it is settled for now.
    settled: bool,
}

impl Trial {
    pub fn new() -> Self {
        Self {
            way: Way::Lent,
            bytes: 0,
            began: None,
            lent: Vec::with_capacity(TURNS),
            copied: Vec::with_capacity(TURNS),
            settled: false,
        }
    }

    /// How the next bytes go.
    pub fn way(&self) -> Way {
        self.way
    }

    /// So many bytes have gone that way, until now.
    pub fn sent(&mut self, bytes: usize, now: Instant) {
        self.bytes += bytes;
        if self.settled {
            if self.bytes >= HOLD {
                *self = Self::new();
            }
            return;
        }
        match self.began {
            None if self.bytes >= SETTLE => {
                self.began = Some(now);
                self.bytes = 0;
            }
            Some(began) if self.bytes >= TIMED => self.turn(now.saturating_duration_since(began)),
            _ => {}
        }
    }

    fn turn(&mut self, took: Duration) {
        self.began = None;
        self.bytes = 0;
        self.way = match self.way {
            Way::Lent => {
                self.lent.push(took);
                Way::Copied
            }
            Way::Copied => {
                self.copied.push(took);
                Way::Lent
            }
        };
        if self.copied.len() == TURNS {
            let [lent, copied] = [&mut self.lent, &mut self.copied].map(|turns| {
                turns.sort_unstable();
                turns[TURNS / 2]
            });
            self.settled = true;
            if copied + copied / WORTH < lent {
                self.way = Way::Copied;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends `bytes` in frames of a MiB that take so long by each way; says how many went lent.
    fn send(trial: &mut Trial, now: &mut Instant, bytes: usize, micros: [u64; 2]) -> usize {
        let mut lent = 0;
        for _ in 0..bytes >> 20 {
            let way = trial.way();
            lent += usize::from(way == Way::Lent) << 20;
            *now += Duration::from_micros(micros[usize::from(way == Way::Copied)]);
            trial.sent(1 << 20, *now);
        }
        lent
    }

    const TRIED: usize = 2 * TURNS * (SETTLE + TIMED);

    #[test]
    fn the_quicker_way_is_taken_once_both_were_tried() {
        for (micros, way) in [
            ([100, 130], Way::Lent),
            ([130, 100], Way::Copied),
            ([100, 100], Way::Lent),
            ([102, 100], Way::Lent),
        ] {
            let (mut trial, mut now) = (Trial::new(), Instant::now());
            assert_eq!(send(&mut trial, &mut now, TRIED, micros), TRIED / 2);
            let lent = send(&mut trial, &mut now, HOLD, micros);
            assert_eq!(lent, if way == Way::Lent { HOLD } else { 0 }, "{micros:?}");
        }
    }

    #[test]
    fn one_turn_that_was_interrupted_decides_nothing() {
        let (mut trial, mut now) = (Trial::new(), Instant::now());
        send(&mut trial, &mut now, SETTLE + (1 << 20), [100, 130]);
        now += Duration::from_millis(20);
        send(&mut trial, &mut now, TRIED - SETTLE - (1 << 20), [100, 130]);
        assert_eq!(trial.way(), Way::Lent);
    }

    #[test]
    fn what_was_found_is_looked_at_again() {
        let (mut trial, mut now) = (Trial::new(), Instant::now());
        send(&mut trial, &mut now, TRIED + HOLD, [100, 130]);
        let lent = send(&mut trial, &mut now, TRIED, [130, 100]);
        assert_eq!(lent, TRIED / 2);
        assert_eq!(trial.way(), Way::Copied);
    }

    #[test]
    fn a_frame_larger_than_a_turn_is_a_turn() {
        let (mut trial, mut now) = (Trial::new(), Instant::now());
        for _ in 0..4 * TURNS {
            now += Duration::from_millis(1);
            trial.sent(TIMED, now);
        }
        assert!(trial.settled);
    }
}
