//! A part of a guest's memory, as time goes by: how much of it is clean, and where.
//!
//! It is cut into cells of neighbouring pages, which are sent one after the other. Of pages written at random only the
//! mean is kept, which is exact: of those that are clean, as many are written in the next moment whenever they were
//! sent, so one number a cell says all, and one for the whole part how many there are.

use super::super::model::{Part, Writing};
use super::super::random::Random;

/// A part that lives.
pub(super) struct Live<'a> {
    pub part: &'a Part,
    cells: u32,
    /// Pages in a cell.
    weight: f64,
    /// Seconds of writing at full speed so far.
    clock: f64,
    /// Pages of the round that nobody has sent yet.
    unsent: f64,
    state: State,
}

enum State {
    /// Written at random.
    Random {
        /// Writes a second of each page.
        rate: f64,
        /// Of each cell, the share that was clean when it was last looked at, and when on the clock that was.
        cells: Vec<(f64, f64)>,
        /// When the round began.
        began: f64,
        /// Clean pages now: of those sent, and of those that are not in the round.
        clean: f64,
    },
    /// Written in order.
    Sweep {
        /// Cells a second.
        rate: f64,
        /// How many cells the sweep has entered, from the first one on, turn after turn; with a fraction.
        position: f64,
        cells: Vec<Cell>,
        /// Cells written since they were sent.
        dirty: u32,
        /// The sweep stands in a cell that it found clean.
        fresh: bool,
    },
}

/// A cell that is swept.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cell {
    /// To be sent in this round; writing to it costs nothing.
    Unsent,
    Clean,
    Dirty,
}

impl<'a> Live<'a> {
    pub fn new(part: &'a Part, grain: u32, random: &mut Random) -> Self {
        let cells = u32::try_from(part.pages).unwrap_or(u32::MAX).min(grain);
        let weight = part.pages as f64 / f64::from(cells.max(1));
        let rate = part.writes_per_s();
        let state = match part.writing {
            Writing::Sweep { from, .. } if rate > 0.0 && cells > 0 => State::Sweep {
                rate: rate / weight,
                position: from.unwrap_or_else(|| random.unit()).rem_euclid(1.0) * f64::from(cells),
                cells: vec![Cell::Dirty; index(cells)],
                dirty: cells,
                fresh: false,
            },
            _ => State::Random {
                rate: rate / part.pages.max(1) as f64,
                cells: vec![(0.0, 0.0); index(cells)],
                began: 0.0,
                clean: 0.0,
            },
        };
        Self {
            part,
            cells,
            weight,
            clock: 0.0,
            unsent: 0.0,
            state,
        }
    }

    /// What is dirty now is to be sent; says how many pages that are.
    pub fn begin_round(&mut self) -> f64 {
        match &mut self.state {
            State::Random {
                rate,
                cells,
                began,
                clean,
            } => {
                *began = self.clock;
                let shares = cells
                    .iter()
                    .map(|&(share, at)| share * (-*rate * (self.clock - at)).exp());
                *clean = shares.sum::<f64>() * self.weight;
                self.unsent = (self.part.pages as f64 - *clean).max(0.0);
            }
            State::Sweep {
                cells,
                dirty,
                fresh,
                ..
            } => {
                for cell in cells.iter_mut().filter(|cell| **cell == Cell::Dirty) {
                    *cell = Cell::Unsent;
                }
                self.unsent = f64::from(*dirty) * self.weight;
                (*dirty, *fresh) = (0, false);
            }
        }
        self.unsent
    }

    /// Cells in their order.
    pub fn cells(&self) -> std::ops::Range<u32> {
        0..self.cells
    }

    /// Sends what is to be sent of a cell, but for what was written again in the last seconds of writing, where that is
    /// looked at; says how many pages that are, and how many it leaves.
    pub fn send(&mut self, cell: u32, (lately, looked): (f64, f64)) -> (f64, f64) {
        let (sent, left) = match &mut self.state {
            State::Random {
                rate,
                cells,
                began,
                clean,
            } => {
                let Some((share, at)) = cells.get_mut(index(cell)) else {
                    return (0.0, 0.0);
                };
                let then = *share * (-*rate * (*began - *at)).exp();
                let again = looked * (1.0 - (-*rate * lately).exp());
                let sent = (1.0 - then) * (1.0 - again);
                *share = sent + then * (-*rate * (self.clock - *began)).exp();
                *at = self.clock;
                *clean += self.weight * sent;
                (self.weight * sent, self.weight * (1.0 - then - sent))
            }
            State::Sweep { cells, .. } => match cells.get_mut(index(cell)) {
                Some(cell @ Cell::Unsent) => {
                    *cell = Cell::Clean;
                    (self.weight, 0.0)
                }
                _ => (0.0, 0.0),
            },
        };
        self.unsent = (self.unsent - sent - left).max(0.0);
        (sent, left)
    }

    /// For how long there was writing between these two times.
    pub fn active(&self, from: f64, to: f64) -> f64 {
        match &self.part.bursts {
            Some(bursts) => bursts.written_until(to) - bursts.written_until(from),
            None => to - from,
        }
    }

    /// Lets the time between these two pass; says for how long of it, at full speed or not, there was writing.
    pub fn pass(&mut self, from: f64, to: f64, speed: f64) -> f64 {
        let active = self.active(from, to);
        let time = active * speed;
        self.clock += time;
        match &mut self.state {
            State::Random { rate, clean, .. } => *clean *= (-*rate * time).exp(),
            State::Sweep {
                rate,
                position,
                cells,
                dirty,
                fresh,
            } => {
                let before = position.floor();
                *position += *rate * time;
                // After a whole turn there is nothing new to be found.
                let turn = f64::from(self.cells);
                let entered = (position.floor() - before).min(turn);
                for step in (0..whole(entered)).rev() {
                    let place = (position.floor() - f64::from(step)).rem_euclid(turn);
                    if let Some(cell) = cells.get_mut(index(whole(place))) {
                        *fresh = *cell == Cell::Clean;
                        if *fresh {
                            *cell = Cell::Dirty;
                            *dirty += 1;
                        }
                    }
                }
                *fresh &= entered < turn;
            }
        }
        active
    }

    /// Pages that the next round would have to send.
    pub fn written(&self) -> f64 {
        match &self.state {
            State::Random { clean, .. } => (self.part.pages as f64 - self.unsent - clean).max(0.0),
            State::Sweep {
                position,
                dirty,
                fresh,
                ..
            } => {
                let ahead = if *fresh { 1.0 - position.fract() } else { 0.0 };
                (f64::from(*dirty) - ahead) * self.weight
            }
        }
    }
}

fn index(cell: u32) -> usize {
    usize::try_from(cell).unwrap_or(usize::MAX)
}

/// A number of cells, which is whole and small already.
fn whole(cells: f64) -> u32 {
    // Saturates, and no number at all is none.
    #[expect(clippy::cast_possible_truncation)]
    let whole = cells as u32;
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(live: &mut Live<'_>) -> f64 {
        live.begin_round();
        live.cells().map(|cell| live.send(cell, (0.0, 0.0)).0).sum()
    }

    fn sent<'a>(part: &'a Part, grain: u32) -> Live<'a> {
        let mut live = Live::new(part, grain, &mut Random::new(3));
        assert!((send(&mut live) - part.pages as f64).abs() < 1e-6);
        assert!(live.written() < 1e-6);
        live
    }

    /// 1 - e^-1 of all pages are written once or more after as many writes as there are pages, whether each is
    /// looked at or thousands together.
    #[test]
    fn as_many_are_written_as_chance_has_it() {
        let part = Part::random(50_000, 100_000.0);
        for grain in [50_000, 5_000, 7] {
            let mut live = sent(&part, grain);
            assert_eq!(live.pass(0.0, 0.5, 0.5), 0.5);
            assert!((live.written() - 50_000.0 * 0.393_47).abs() < 1.0);
            live.pass(0.5, 1.0, 0.5);
            assert!((live.written() - 50_000.0 * 0.632_12).abs() < 1.0);
            // As many are sent, and none is written any more.
            assert!((send(&mut live) - 50_000.0 * 0.632_12).abs() < 1.0);
            assert!(live.written() < 1e-6);
        }
    }

    /// In the middle of a round, what is written to pages that are yet to be sent does not count.
    #[test]
    fn what_is_not_sent_yet_may_be_written_for_nothing() {
        let part = Part::random(1000, 500.0);
        let mut live = sent(&part, 10);
        live.pass(0.0, 2.0, 1.0);
        let dirty = live.begin_round();
        assert!((dirty - 632.12).abs() < 0.01);
        // Half of the cells are sent, then as much time passes again.
        let half: f64 = (0..5).map(|cell| live.send(cell, (0.0, 0.0)).0).sum();
        assert!((half - 316.06).abs() < 0.01 && live.written() < 1e-6);
        live.pass(2.0, 4.0, 1.0);
        // Written: of the sent half 63.2 %, of the clean third of the other as many.
        let expected = 500.0 * 0.632_12 + 500.0 * 0.367_88 * 0.632_12;
        assert!((live.written() - expected).abs() < 0.01);
        let rest: f64 = (5..10).map(|cell| live.send(cell, (0.0, 0.0)).0).sum();
        assert!((rest - 316.06).abs() < 0.01);
        assert!((live.written() - expected).abs() < 0.01);
        assert!((live.begin_round() - expected).abs() < 0.01);
    }

    /// Pages that are written all the time are left to the next round, and with them a few of all others.
    #[test]
    fn what_was_written_again_lately_is_not_sent() {
        for (rate, expected) in [(100.0, 0.998_00), (1e6, 0.0)] {
            let part = Part::random(1000, rate);
            let mut live = Live::new(&part, 10, &mut Random::new(3));
            let dirty = live.begin_round();
            let (sent, left) = live
                .cells()
                .map(|cell| live.send(cell, (0.02, 1.0)))
                .fold((0.0, 0.0), |all, one| (all.0 + one.0, all.1 + one.1));
            assert!((sent - 1000.0 * expected).abs() < 0.01, "{sent}");
            assert!((sent + left - dirty).abs() < 1e-6);
            assert!((live.written() - left).abs() < 1e-6);
        }
    }

    #[test]
    fn a_sweep_writes_each_page_once_a_turn() {
        let part = Part::sweep(1000, 100.0);
        for grain in [1000, 50] {
            let mut live = sent(&part, grain);
            let weight = 1000.0 / f64::from(grain);
            for tenth in 0..100u32 {
                let now = f64::from(tenth) / 10.0;
                assert!((live.written() - now * 100.0).abs() <= weight, "{tenth}");
                live.pass(now, now + 0.1, 1.0);
            }
            assert!((live.written() - 1000.0).abs() <= weight);
            // What is sent now is written again after one turn, and not before.
            send(&mut live);
            live.pass(10.0, 15.0, 1.0);
            assert!((live.written() - 500.0).abs() <= weight);
            live.pass(15.0, 100.0, 1.0);
            assert_eq!(live.written(), 1000.0);
        }
    }

    #[test]
    fn nothing_is_written_where_nobody_writes() {
        let parts = [
            Part::still(10),
            Part::random(10, 0.0),
            Part::sweep(10, f64::NAN),
            Part::random(0, 5.0),
            Part::sweep(0, 5.0),
        ];
        for part in parts {
            let mut live = sent(&part, 4);
            live.pass(0.0, 1e6, 1.0);
            assert_eq!(live.written(), 0.0, "{part:?}");
            assert_eq!(live.begin_round(), 0.0, "{part:?}");
        }
    }
}
