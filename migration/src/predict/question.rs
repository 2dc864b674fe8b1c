//! What a prediction is asked about: a guest, a link and what is wanted of the move.

use std::time::Duration;

use super::curve::Writes;
use super::model::{Bursts, GuestModel, Part};
use crate::dirty_rate::Rhythm;
use crate::options::{MIN_BANDWIDTH, Options};
use crate::pages::{MAX_MEMORY, PAGE_SIZE};

/// A guest's memory, before the move.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Memory {
    /// All of it, in bytes.
    pub bytes: u64,
    /// Pages that anybody ever touched. The others are not even looked at.
    pub touched: u64,
    /// The share of these that hold nothing but zeros, 0 to 1.
    pub zero: f64,
}

impl Memory {
    /// Memory that is touched to the last page, and holds no page of zeros.
    pub fn full(bytes: u64) -> Self {
        Self {
            bytes,
            touched: bytes / PAGE_SIZE,
            zero: 0.0,
        }
    }
}

/// A number that is not known exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spread {
    /// The least that it may be.
    pub low: u64,
    /// What is to be expected.
    pub expected: u64,
    /// The most.
    pub high: u64,
}

impl Spread {
    /// A number that is known to so many percent.
    pub fn within(expected: u64, percent: u64) -> Self {
        let off = expected / 100 * percent;
        Self {
            low: expected - off,
            expected,
            high: expected.saturating_add(off),
        }
    }
}

/// The way between the two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkModel {
    /// Bytes a second that all streams of the move carry together, and that arrive in the guest's new memory.
    pub bytes_per_s: Spread,
    /// A message there and its answer back.
    pub round_trip: Duration,
    /// To make one connection.
    pub connect: Duration,
}

impl LinkModel {
    /// A link of that many bytes a second, known to three percent.
    pub fn of(bytes_per_s: u64, round_trip: Duration) -> Self {
        Self {
            bytes_per_s: Spread::within(bytes_per_s, 3),
            round_trip,
            connect: round_trip,
        }
    }
}

/// Everything that a prediction stands on.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// The guest's memory.
    pub memory: Memory,
    /// What it writes.
    pub writes: Writes,
    /// Where in its memory it writes: the share of the pages that are never written which lie before those that are, 0
    /// to 1; `None` for not known. What is sent late in the first round is written less often behind it.
    pub before: Option<f64>,
    /// When it writes, if not all the time: `writes` is then what it does in its bursts. Where in one the move begins
    /// is up to chance.
    pub bursts: Option<Rhythm>,
    /// The share of its time that the busiest vCPU runs, above 0 and at most 1; see [`GuestModel::busy`].
    pub busy: f64,
    /// The share of its processor time that is left to it while streams send; see [`GuestModel::left`].
    pub left: f64,
    /// The way to the destination.
    pub link: LinkModel,
    /// What is wanted of the move. Compression and differences are not reckoned with: the prediction is that of a move
    /// without them.
    pub options: Options,
    /// The destination maps the guest's memory as it is (a move within one host), so no page is sent.
    pub by_descriptor: bool,
    /// Where chance begins: the same seed gives the same prediction.
    pub seed: u64,
}

impl Question {
    /// A guest that is busy all the time, to be moved over a link.
    pub fn new(memory: Memory, writes: Writes, link: LinkModel, options: Options) -> Self {
        Self {
            memory,
            writes,
            before: None,
            bursts: None,
            busy: 1.0,
            left: 1.0,
            link,
            options,
            by_descriptor: false,
            seed: 1,
        }
    }

    /// Touched pages, within what a guest can have.
    pub(super) fn touched(&self) -> u64 {
        let most = MAX_MEMORY / PAGE_SIZE;
        self.memory
            .touched
            .min(self.memory.bytes / PAGE_SIZE)
            .min(most)
    }

    /// Pages of zeros among them.
    pub(super) fn zero_pages(&self) -> u64 {
        super::simulation::whole(self.touched() as f64 * self.zero())
    }

    fn zero(&self) -> f64 {
        match self.memory.zero.is_finite() {
            true => self.memory.zero.clamp(0.0, 1.0),
            false => 0.0,
        }
    }

    /// What the link carries of this move.
    pub(super) fn bandwidth(&self) -> Spread {
        let cap = self
            .options
            .bandwidth
            .map_or(u64::MAX, |cap| cap.max(MIN_BANDWIDTH));
        let Spread {
            low,
            expected,
            high,
        } = self.link.bytes_per_s;
        let expected = expected.clamp(1, cap);
        Spread {
            low: low.clamp(1, expected),
            expected,
            high: high.clamp(expected, cap),
        }
    }

    /// The guest with these writes, so much of its memory that is never written before those pages: a share of all
    /// that is not, 0 to 1; and, if it writes in bursts, with so much of the time from one to the next over: likewise.
    pub(super) fn guest(&self, writes: &[Part], before: f64, since: f64) -> GuestModel {
        let bursts = self.bursts.and_then(|rhythm| {
            let span = |ms: f64| Duration::try_from_secs_f64(ms / 1e3).ok();
            Some(Bursts {
                on: span(rhythm.burst_ms)?,
                every: span(rhythm.every_ms)?,
                since: span(rhythm.every_ms * since)?,
            })
        });
        let touched = self.touched();
        let mut left = touched;
        let written: Vec<Part> = (writes.iter())
            .map(|part| {
                let pages = part.pages.min(left);
                left -= pages;
                let mut part = *part;
                // A class of which only a part fits is written as often, page by page.
                part.cut(pages);
                part.bursts = bursts;
                part
            })
            .filter(|part| part.pages > 0)
            .collect();
        // Who writes to a page leaves no zeros there: they are in the rest.
        let zero = (self.zero() * touched as f64 / (left.max(1)) as f64).min(1.0);
        let first = super::simulation::whole(left as f64 * before).min(left);
        let still = |pages| Part {
            zero,
            ..Part::still(pages)
        };
        let mut parts = vec![still(first)];
        parts.extend(written);
        parts.push(still(left - first));
        GuestModel {
            parts,
            busy: self.busy,
            left: self.left,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_shared_out_to_the_last_page() {
        let memory = Memory {
            bytes: 1000 * PAGE_SIZE,
            touched: 800,
            zero: 0.25,
        };
        let link = LinkModel::of(1000, Duration::ZERO);
        let writes = vec![Part::random(100, 50.0), Part::sweep(300, 30.0)];
        let mut question = Question::new(
            memory,
            Writes::known(writes.clone()),
            link,
            Options::default(),
        );
        let guest = question.guest(&writes, 0.25, 0.0);
        assert_eq!(guest.pages(), 800);
        assert_eq!(guest.parts[0].pages, 100);
        assert_eq!(guest.parts[0].zero, 0.5);
        assert_eq!(question.zero_pages(), 200);
        // More is written than there is.
        question.memory.touched = 200;
        let guest = question.guest(&writes, 0.5, 0.0);
        assert_eq!(guest.pages(), 200);
        let rates: Vec<_> = guest.parts.iter().map(Part::writes_per_s).collect();
        assert_eq!(rates, [0.0, 50.0, 10.0, 0.0]);
        question.memory = Memory {
            bytes: u64::MAX,
            touched: u64::MAX,
            zero: f64::NAN,
        };
        assert_eq!(question.touched(), MAX_MEMORY / PAGE_SIZE);
        assert_eq!(question.zero_pages(), 0);
    }

    #[test]
    fn the_link_carries_no_more_than_is_allowed() {
        let link = LinkModel::of(1_000_000, Duration::ZERO);
        let writes = Writes::known(vec![]);
        let mut question = Question::new(Memory::full(1 << 30), writes, link, Options::default());
        assert_eq!(question.bandwidth(), Spread::within(1_000_000, 3));
        question.options.bandwidth = Some(500_000);
        let capped = Spread {
            low: 500_000,
            expected: 500_000,
            high: 500_000,
        };
        assert_eq!(question.bandwidth(), capped);
        question.options.bandwidth = Some(1);
        assert_eq!(question.bandwidth().expected, MIN_BANDWIDTH);
        question.link.bytes_per_s.expected = 0;
        assert_eq!(question.bandwidth().expected, 1);
    }
}
