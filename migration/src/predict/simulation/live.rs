//! A part of a guest's memory, as time goes by: which of its pages are clean, and until when.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use super::super::model::{Part, Writing};
use super::super::random::Random;

/// A part that lives.
pub(super) struct Live<'a> {
    pub part: &'a Part,
    /// The pages that are looked at.
    pub cells: u32,
    /// How many real pages each of them stands for.
    pub weight: f64,
    /// Seconds of writing at full speed so far.
    clock: f64,
    /// Where a sweep begins: a share of the part.
    start: f64,
    /// Pages that were sent, and when on that clock they are written next.
    clean: BinaryHeap<Reverse<Due>>,
    /// Pages written since they were sent.
    dirty: Vec<u32>,
}

/// When a page is written next.
#[derive(PartialEq)]
struct Due {
    at: f64,
    cell: u32,
}

impl Eq for Due {}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at.total_cmp(&other.at)).then(self.cell.cmp(&other.cell))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<'a> Live<'a> {
    pub fn new(part: &'a Part, grain: u32, random: &mut Random) -> Self {
        let cells = u32::try_from(part.pages).unwrap_or(u32::MAX).min(grain);
        Self {
            part,
            cells,
            weight: part.pages as f64 / f64::from(cells.max(1)),
            clock: 0.0,
            start: match part.writing {
                Writing::Sweep { from, .. } => from.unwrap_or_else(|| random.unit()),
                _ => 0.0,
            },
            clean: BinaryHeap::new(),
            dirty: Vec::new(),
        }
    }

    /// The page is sent now.
    pub fn send(&mut self, cell: u32, random: &mut Random) {
        let rate = self.part.writes_per_s();
        if rate <= 0.0 {
            return;
        }
        let pages = self.part.pages as f64;
        let wait = match self.part.writing {
            Writing::Never => return,
            Writing::Random { .. } => random.wait(rate / pages),
            Writing::Sweep { .. } => {
                let here = (f64::from(cell) + 0.5) / f64::from(self.cells.max(1));
                let there = self.start + self.clock * rate / pages;
                let ahead = (here - there).rem_euclid(1.0);
                // Where the sweep stands right now it has been; rounding may not have it back at once.
                let ahead = if ahead < 1e-9 { 1.0 } else { ahead };
                ahead * pages / rate
            }
        };
        let at = self.clock + wait;
        self.clean.push(Reverse(Due { at, cell }));
    }

    /// Lets the time between these two pass; says for how long of it, at full speed or not, there was writing.
    pub fn pass(&mut self, from: f64, to: f64, speed: f64) -> f64 {
        let active = match &self.part.bursts {
            Some(bursts) => bursts.written_until(to) - bursts.written_until(from),
            None => to - from,
        };
        self.clock += active * speed;
        while let Some(Reverse(due)) = self.clean.peek()
            && due.at <= self.clock
        {
            self.dirty.push(due.cell);
            self.clean.pop();
        }
        active
    }

    /// Real pages written since they were sent.
    pub fn written(&self) -> f64 {
        self.dirty.len() as f64 * self.weight
    }

    /// The pages written since they were sent, in their order; they are to be sent.
    pub fn take(&mut self) -> Vec<u32> {
        let mut taken = std::mem::take(&mut self.dirty);
        taken.sort_unstable();
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent<'a>(part: &'a Part, grain: u32, random: &mut Random) -> Live<'a> {
        let mut live = Live::new(part, grain, random);
        for cell in 0..live.cells {
            live.send(cell, random);
        }
        live
    }

    /// 1 - e^-1 of all pages are written once or more after as many writes as there are pages, whether each is
    /// looked at or one in ten.
    #[test]
    fn as_many_are_written_as_chance_has_it() {
        let part = Part::random(50_000, 100_000.0);
        let mut random = Random::new(3);
        for grain in [50_000, 5_000] {
            let mut live = sent(&part, grain, &mut random);
            assert_eq!(live.pass(0.0, 0.5, 0.5), 0.5);
            assert!((live.written() - 50_000.0 * 0.3935).abs() < 1000.0);
            live.pass(0.5, 1.0, 0.5);
            assert!((live.written() - 50_000.0 * 0.6321).abs() < 1000.0);
            let (taken, before) = (live.take(), live.written());
            assert!(taken.is_sorted() && before == 0.0);
        }
    }

    #[test]
    fn a_sweep_writes_each_page_once_a_turn() {
        let part = Part::sweep(1000, 100.0);
        let mut random = Random::new(3);
        let mut live = sent(&part, 1000, &mut random);
        for second in 0..10u32 {
            assert!((live.written() - f64::from(second) * 100.0).abs() <= 1.0);
            live.pass(f64::from(second), f64::from(second + 1), 1.0);
        }
        assert!((live.written() - 1000.0).abs() <= 1.0);
        // What is sent now is written again after one turn, and not before.
        let taken = live.take();
        for cell in taken {
            live.send(cell, &mut random);
        }
        live.pass(10.0, 15.0, 1.0);
        assert!((live.written() - 500.0).abs() <= 1.0);
    }

    #[test]
    fn nothing_is_written_where_nobody_writes() {
        let mut random = Random::new(3);
        let rates = [
            Part::still(10),
            Part::random(10, 0.0),
            Part::sweep(10, f64::NAN),
            Part::random(0, 5.0),
        ];
        for part in rates {
            let mut live = sent(&part, 4, &mut random);
            live.pass(0.0, 1e6, 1.0);
            assert!(live.take().is_empty(), "{part:?}");
        }
    }
}
