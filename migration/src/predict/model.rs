//! What a guest writes, as few numbers: its memory as parts, each written in one way.

use std::time::Duration;

/// A guest, as far as a move can tell it from another.
#[derive(Debug, Clone, PartialEq)]
pub struct GuestModel {
    /// Its memory, in the order in which it is sent.
    pub parts: Vec<Part>,
    /// The share of its time that the busiest vCPU runs at full speed, above 0 and at most 1. A guest that has idle
    /// time works on at full speed under a throttle that takes no more than that from it.
    pub busy: f64,
    /// The share of its usual processor time that such a vCPU has left while streams send, above 0 and at most 1: less
    /// than 1 where the move works on processors that the guest runs on.
    pub left: f64,
}

/// Pages that are written alike.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part {
    /// How many.
    pub pages: u64,
    /// The share of them that hold nothing but zeros before the move, 0 to 1. What is written is no zero.
    pub zero: f64,
    /// How they are written at full speed.
    pub writing: Writing,
    /// When; all the time if not said.
    pub bursts: Option<Bursts>,
    /// The vCPU that writes them.
    pub vcpu: u8,
}

/// How pages are written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Writing {
    /// Not at all.
    Never,
    /// One after the other is picked by chance.
    Random {
        /// How often a second each of them is, on average.
        per_page_per_s: f64,
    },
    /// In their order, round and round.
    Sweep {
        /// Pages a second.
        pages_per_s: f64,
        /// Where it stands when the move begins, as a share of the pages; by chance if not said.
        from: Option<f64>,
    },
}

/// Writing that comes and goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bursts {
    /// How long it lasts.
    pub on: Duration,
    /// From the beginning of one to that of the next.
    pub every: Duration,
    /// So much of that is over when the move begins.
    pub since: Duration,
}

impl GuestModel {
    /// A guest of these parts, busy all the time.
    pub fn new(parts: Vec<Part>) -> Self {
        Self {
            parts,
            busy: 1.0,
            left: 1.0,
        }
    }

    /// All its pages.
    pub fn pages(&self) -> u64 {
        let pages = self.parts.iter().map(|part| part.pages);
        pages.fold(0, u64::saturating_add)
    }

    /// How many vCPUs it has: up to the last that any part names. One of them that no part names, or that never writes,
    /// computes and nothing else.
    pub fn vcpus(&self) -> usize {
        let last = self.parts.iter().map(|part| part.vcpu).max();
        usize::from(last.unwrap_or(0)) + 1
    }

    /// How fast a vCPU of it works under a throttle that leaves that `share` of its time, compared with no throttle at
    /// all.
    pub(super) fn speed(&self, share: f64) -> f64 {
        let busy = if self.busy > 0.0 { self.busy } else { 1.0 };
        (share / busy).clamp(0.0, 1.0)
    }

    /// What the move's own use of processors leaves of that `speed`. Who sleeps for a throttle does so while others
    /// work, and loses nothing more until less than the throttle's share is left.
    pub(super) fn crowded(&self, speed: f64) -> f64 {
        let left = if self.left > 0.0 { self.left } else { 1.0 };
        if speed > left { left / speed } else { 1.0 }
    }
}

impl Part {
    /// Pages without zeros, that nobody writes.
    pub fn still(pages: u64) -> Self {
        Self {
            pages,
            zero: 0.0,
            writing: Writing::Never,
            bursts: None,
            vcpu: 0,
        }
    }

    /// Pages of which any is written, `writes_per_s` in all.
    pub fn random(pages: u64, writes_per_s: f64) -> Self {
        let per_page_per_s = writes_per_s / pages.max(1) as f64;
        Self {
            writing: Writing::Random { per_page_per_s },
            ..Self::still(pages)
        }
    }

    /// Pages that are written one after the other, beginning anywhere.
    pub fn sweep(pages: u64, pages_per_s: f64) -> Self {
        Self {
            writing: Writing::Sweep {
                pages_per_s,
                from: None,
            },
            ..Self::still(pages)
        }
    }

    /// The same in bursts.
    pub fn in_bursts(self, on: Duration, every: Duration) -> Self {
        Self {
            bursts: Some(Bursts {
                on,
                every,
                since: Duration::ZERO,
            }),
            ..self
        }
    }

    /// The same by another vCPU than the first.
    pub fn by_vcpu(self, vcpu: u8) -> Self {
        Self { vcpu, ..self }
    }

    /// Keeps so many of its pages, each written as often as before.
    pub(super) fn cut(&mut self, pages: u64) {
        let share = pages as f64 / self.pages.max(1) as f64;
        self.pages = pages;
        if let Writing::Sweep { pages_per_s, .. } = &mut self.writing {
            *pages_per_s *= share;
        }
    }

    /// Writes a second while it is written; 0 for a rate that is no number.
    pub fn writes_per_s(&self) -> f64 {
        let rate = match self.writing {
            Writing::Never => 0.0,
            Writing::Random { per_page_per_s } => per_page_per_s * self.pages as f64,
            Writing::Sweep { pages_per_s, .. } => pages_per_s,
        };
        if rate.is_finite() { rate.max(0.0) } else { 0.0 }
    }
}

impl Bursts {
    /// Of the time from the beginning of the move until `at`, the seconds in which there was writing.
    pub(super) fn written_until(&self, at: f64) -> f64 {
        let (on, every) = (self.on.as_secs_f64(), self.every.as_secs_f64());
        if every <= on {
            return at;
        }
        let of = |time: f64| {
            let bursts = (time / every).floor();
            bursts * on + (time - bursts * every).min(on)
        };
        let since = self.since.as_secs_f64();
        of(since + at) - of(since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bursts_add_up() {
        let seconds = Duration::from_secs;
        let third = Bursts {
            on: seconds(1),
            every: seconds(3),
            since: seconds(0),
        };
        let table = [(0.0, 0.0), (0.5, 0.5), (2.0, 1.0), (3.5, 1.5), (30.0, 10.0)];
        for (at, written) in table {
            assert!((third.written_until(at) - written).abs() < 1e-9, "{at}");
        }
        let late = Bursts {
            since: Duration::from_millis(2500),
            ..third
        };
        for (at, written) in [(0.5, 0.0), (1.0, 0.5), (3.0, 1.0), (4.0, 1.5)] {
            assert!((late.written_until(at) - written).abs() < 1e-9, "{at}");
        }
        let always = Bursts {
            on: seconds(3),
            every: seconds(0),
            since: seconds(1),
        };
        assert_eq!(always.written_until(7.0), 7.0);
    }

    #[test]
    fn a_guest_with_idle_time_takes_a_throttle_lightly() {
        let mut guest = GuestModel::new(vec![Part::random(10, 5.0)]);
        assert_eq!(guest.speed(0.25), 0.25);
        guest.busy = 0.25;
        assert_eq!((guest.speed(0.5), guest.speed(0.125)), (1.0, 0.5));
        guest.left = 0.5;
        assert_eq!(guest.crowded(1.0), 0.5);
        assert_eq!(guest.crowded(0.8) * 0.8, 0.5);
        assert_eq!(guest.crowded(0.25), 1.0);
        guest.left = f64::NAN;
        assert_eq!(guest.crowded(1.0), 1.0);
        guest.busy = 0.0;
        assert_eq!(guest.speed(0.5), 0.5);
        assert_eq!(guest.parts[0].writes_per_s(), 5.0);
        assert_eq!(Part::random(0, f64::NAN).writes_per_s(), 0.0);
    }
}
