//! From the measured curve of a guest's writing ([`crate::dirty_rate`]) to a guest that writes like that.
//!
//! The curve says how many pages were written at least once within a time. Pages of which any may be written next have
//! one that bends: of `n` pages, each written `w` times a second, `n (1 - e^-wt)` are written after `t`. A guest has
//! many such classes of pages, and its curve is their sum, so the numbers of pages in classes of fixed rates are what
//! is looked for. A guest that goes through pages in order has a straight line with a knee instead, which no sum of the
//! others comes near.
//!
//! The curve does not say everything: what is beyond its last window, how often pages are written that are all written
//! within the first, how the guest goes up and down. So three guests come of it: the one to be expected, and two that
//! are as far from it as the curve allows.

use std::time::Duration;

use thiserror::Error;

use super::model::Part;
use super::nnls::{self, FEW, PASSES};
use crate::dirty_rate::Window;

/// The most windows of a curve.
pub const MAX_WINDOWS: usize = 64;
/// Neighbouring classes differ by this factor in their rate.
const RATIO: f64 = 1.5;
/// The slowest class is written once in so many times the longest window, the quickest so often in the shortest.
const BEYOND: f64 = 16.0;
/// A curve is no better known than this: windows are a few milliseconds off, and no two are alike.
const NOISE: f64 = 0.02;
/// The most knees that are tried. From 125 ms to 64 s there are 66 of them a tenth apart.
const KNEES: f64 = 72.0;
/// A knee is believed in if it leaves no more than this of the error that the classes alone leave.
const BETTER: f64 = 0.6;
/// Classes of less than this share of all written pages are left out. A few pages that are written all the time are all
/// that the last rounds leave.
const SPECK: f64 = 1e-4;
/// Classes of which each page was written less often than this are not known to end.
const HARDLY: f64 = 0.5;
/// What is written again within the shortest window may be written so many times as often as it had to be for that.
const HOTTER: f64 = 8.0;

/// How many pages a guest writes at least once, against the time it is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Curve(Vec<(Duration, u64)>);

/// Why numbers are no such curve.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CurveError {
    /// None, or far too many.
    #[error("{0} windows: a curve has 1 to {MAX_WINDOWS}")]
    Windows(usize),
    /// Windows do not get longer.
    #[error("a window of {1:?} behind one of {0:?}: windows have to get longer, and begin above 0")]
    Order(Duration, Duration),
    /// Fewer pages in a longer window.
    #[error(
        "{1} pages in a window of {2:?} behind {0}: pages stay written, so there are never fewer"
    )]
    Fewer(u64, u64, Duration),
}

/// What a guest writes, as far as it is known.
#[derive(Debug, Clone, PartialEq)]
pub struct Writes {
    /// What is to be expected.
    pub expected: Vec<Part>,
    /// The least that may be.
    pub low: Vec<Part>,
    /// The most that may be.
    pub high: Vec<Part>,
    /// How far the measured curve is from that of the guest expected, in parts of it: its error.
    pub error: f64,
}

impl Writes {
    /// A guest that is known for certain.
    pub fn known(parts: Vec<Part>) -> Self {
        Self {
            low: parts.clone(),
            high: parts.clone(),
            expected: parts,
            error: 0.0,
        }
    }
}

impl Curve {
    /// Checks a curve: time watched, and pages written at least once in it.
    ///
    /// # Errors
    /// Which of the points cannot be.
    pub fn new(points: Vec<(Duration, u64)>) -> Result<Self, CurveError> {
        if points.is_empty() || points.len() > MAX_WINDOWS {
            return Err(CurveError::Windows(points.len()));
        }
        let (mut time, mut pages) = (Duration::ZERO, 0);
        for &(window, written) in &points {
            if window <= time {
                return Err(CurveError::Order(time, window));
            }
            if written < pages {
                return Err(CurveError::Fewer(pages, written, window));
            }
            (time, pages) = (window, written);
        }
        Ok(Self(points))
    }

    /// A curve as it was measured.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn measured(windows: &[Window]) -> Result<Self, CurveError> {
        let point = |window: &Window| {
            let time = Duration::try_from_secs_f64(window.window_ms / 1000.0);
            (time.unwrap_or(Duration::ZERO), window.pages)
        };
        Self::new(windows.iter().map(point).collect())
    }

    /// Its points.
    pub fn points(&self) -> &[(Duration, u64)] {
        &self.0
    }

    /// The guest behind it, of which so many pages may be written.
    pub fn fit(&self, pages: u64) -> Writes {
        let (first, last) = (self.0[0], self.0[self.0.len() - 1]);
        if last.1 == 0 {
            return Writes::known(Vec::new());
        }
        let (shortest, longest) = (first.0.as_secs_f64(), last.0.as_secs_f64());
        let fitted = Fitted::best(self, shortest, longest);
        let expected = fitted.parts(pages);
        // The pages that were written in the whole time, and no more.
        let seen = last.1.min(pages);
        let low = within(expected.clone(), seen, 1.0 - fitted.error.max(NOISE));
        let mut high = within(expected.clone(), pages, 1.0 + fitted.error.max(NOISE));
        for part in &mut high {
            if part.writes_per_s() * shortest > part.pages as f64 * 4.0 {
                *part = Part::random(part.pages, part.writes_per_s() * HOTTER);
            }
        }
        self.go_on(&mut high, pages, longest);
        Writes {
            expected,
            low,
            high,
            error: fitted.error,
        }
    }

    /// Adds to a guest that has written all it ever writes by the end of the curve what it takes to go on as the curve
    /// went on at last, through all memory.
    fn go_on(&self, parts: &mut Vec<Part>, pages: u64, longest: f64) {
        let before = (self.0.len() >= 2).then(|| self.0[self.0.len() - 2]);
        let (time, written) = before.map_or((0.0, 0), |(time, pages)| (time.as_secs_f64(), pages));
        let last = self.0[self.0.len() - 1].1;
        let slope = (last - written) as f64 / (longest - time);
        // Classes of which the curve has seen but the beginning may be as large as all memory.
        let per_page = |part: &Part| part.writes_per_s() / part.pages.max(1) as f64;
        parts.retain(|part| per_page(part) * longest > HARDLY);
        let had: u64 = parts.iter().map(|part| part.pages).sum();
        let going: f64 = (parts.iter())
            .map(|part| part.writes_per_s() * (-per_page(part) * longest).exp())
            .sum();
        let (rest, missing) = (pages.saturating_sub(had), slope - going);
        if rest > 0 && missing > 0.0 {
            parts.push(Part::random(rest, missing));
        }
    }
}

/// The same with every rate changed by a factor, and no more pages than `most`: slow classes give way to that.
fn within(mut parts: Vec<Part>, most: u64, factor: f64) -> Vec<Part> {
    // The quickest first: they were seen whole.
    let speed = |part: &Part| part.writes_per_s() / part.pages.max(1) as f64;
    parts.sort_by(|one, other| speed(other).total_cmp(&speed(one)));
    let mut left = most;
    for part in &mut parts {
        let (rate, pages) = (part.writes_per_s() * factor, part.pages.min(left));
        left -= pages;
        // What was written by fewer pages is written by those that are left: the curve has the same beginning.
        *part = match part.writing {
            super::model::Writing::Sweep { .. } => Part::sweep(pages, rate),
            _ => Part::random(pages, rate),
        };
    }
    parts.retain(|part| part.pages > 0);
    parts
}

/// Classes of pages that make a curve.
struct Fitted {
    /// Writes a second of each page, and number of pages.
    classes: Vec<(f64, f64)>,
    /// Seconds for one turn, and number of pages.
    sweep: Option<(f64, f64)>,
    error: f64,
}

impl Fitted {
    fn best(curve: &Curve, shortest: f64, longest: f64) -> Self {
        let with = |turn, passes| Self::with(curve, (shortest, longest), turn, passes);
        let alone = with(None, PASSES);
        if alone.error <= NOISE {
            return alone;
        }
        // Steps of a tenth, or as many as there may be from the shortest time to the longest.
        let step = (longest / shortest).powf(1.0 / KNEES).max(1.1);
        let turns: Vec<f64> = std::iter::successors(Some(shortest), |turn| Some(turn * step))
            .take_while(|turn| *turn <= longest)
            .collect();
        // Each other one, and then what lies beside the best of those: half the work.
        let knee_at = |at: usize| {
            let turn = turns.get(at)?;
            Some((at, with(Some(*turn), FEW)))
        };
        let better =
            |one: &(usize, Self), other: &(usize, Self)| one.1.error.total_cmp(&other.1.error);
        let found = ((0..turns.len()).step_by(2).filter_map(knee_at)).min_by(better);
        let knee = found.and_then(|found| {
            let beside = [found.0.checked_sub(1), Some(found.0 + 1)];
            let beside = beside.into_iter().flatten().filter_map(knee_at);
            std::iter::once(found).chain(beside).min_by(better)
        });
        let knee = knee.and_then(|(at, _)| turns.get(at).map(|turn| with(Some(*turn), PASSES)));
        match knee {
            Some(knee) if knee.error < BETTER * alone.error => knee,
            _ => alone,
        }
    }

    /// The best with a sweep that takes so long for a turn, if any.
    fn with(
        curve: &Curve,
        (shortest, longest): (f64, f64),
        turn: Option<f64>,
        passes: usize,
    ) -> Self {
        let slowest = 1.0 / (BEYOND * longest);
        let rates: Vec<f64> = std::iter::successors(Some(slowest), |rate| Some(rate * RATIO))
            .take_while(|rate| *rate <= BEYOND / shortest)
            .collect();
        let most = curve.0[curve.0.len() - 1].1 as f64;
        // Errors count in parts of what is there, but few pages are not worth many.
        let weights: Vec<f64> = (curve.0.iter())
            .map(|(_, pages)| 1.0 / (*pages as f64).max(0.02 * most))
            .collect();
        let times = || curve.0.iter().map(|(time, _)| time.as_secs_f64());
        let column = |written: &dyn Fn(f64) -> f64| -> Vec<f64> {
            (times().zip(&weights))
                .map(|(time, weight)| written(time) * weight)
                .collect()
        };
        let mut columns: Vec<_> = (rates.iter())
            .map(|rate| column(&|time| -(-rate * time).exp_m1()))
            .collect();
        columns.extend(turn.map(|turn| column(&|time| (time / turn).min(1.0))));
        let data: Vec<f64> = (curve.0.iter().zip(&weights))
            .map(|((_, pages), weight)| *pages as f64 * weight)
            .collect();
        let coefficients = nnls::fit(&columns, &data, passes);
        let made = nnls::sum(&columns, &coefficients, data.len());
        let squares: f64 = (made.iter().zip(&data))
            .map(|(made, data)| (made - data).powi(2))
            .sum();
        Self {
            sweep: turn.map(|turn| (turn, coefficients[rates.len()])),
            error: (squares / data.len() as f64).sqrt(),
            classes: rates.into_iter().zip(coefficients).collect(),
        }
    }

    /// The same as parts of memory, of which there are so many pages.
    fn parts(&self, pages: u64) -> Vec<Part> {
        let classes = (self.classes.iter())
            .map(|&(rate, pages)| (pages, Part::random(whole(pages), rate * pages)));
        let sweep = (self.sweep.iter())
            .map(|&(turn, pages)| (pages, Part::sweep(whole(pages), pages / turn)));
        let all: Vec<_> = classes.chain(sweep).collect();
        let sum: f64 = all.iter().map(|(pages, _)| pages).sum();
        let parts = all.into_iter().filter(|(pages, _)| *pages > sum * SPECK);
        within(parts.map(|(_, part)| part).collect(), pages, 1.0)
    }
}

/// A number of pages as a whole one, at least one.
fn whole(pages: f64) -> u64 {
    // Saturates.
    #[expect(clippy::cast_possible_truncation)]
    let whole = pages.round() as u64;
    whole.max(1)
}

#[cfg(test)]
mod tests {
    use super::super::model::Writing;
    use super::*;

    /// The curve that such parts have on average, as `ferry dirty-rate` would see it.
    fn curve(parts: &[Part]) -> Curve {
        let times = crate::dirty_rate::windows(crate::dirty_rate::DEFAULT);
        let point = |time: Duration| (time, whole(after(parts, time.as_secs_f64())));
        Curve::new(times.into_iter().map(point).collect()).unwrap()
    }

    /// How many pages parts have written at least once after so many seconds.
    fn after(parts: &[Part], time: f64) -> f64 {
        let one = |part: &Part| {
            let (pages, per_s) = (part.pages as f64, part.writes_per_s());
            match part.writing {
                Writing::Sweep { .. } => (per_s * time).min(pages),
                _ => pages * -(-per_s * time / pages).exp_m1(),
            }
        };
        parts.iter().map(one).sum()
    }

    /// The working set of a guest that notes what it does: 37 pages are written in each round, however short it is.
    #[test]
    fn a_few_hot_pages_beside_many_are_not_lost() {
        let guest = [Part::random(32_768, 15_258.0), Part::random(37, 15_258.0)];
        let writes = curve(&guest).fit(65_536);
        for ms in [4, 8, 20, 300] {
            let time = f64::from(ms) / 1000.0;
            let (is, fitted) = (after(&guest, time), after(&writes.expected, time));
            assert!(
                (fitted / is - 1.0).abs() < 0.15,
                "{ms} ms: {fitted} of {is}"
            );
        }
    }

    /// Windows from a microsecond to a year: as many as there may be, and of a shape that no guest has.
    #[test]
    fn a_curve_that_nobody_measures_costs_no_more_than_others() {
        let ratio = 31_536_000e6f64.powf(1.0 / 63.0);
        let point = |index: i32| {
            let time = Duration::from_micros(whole(ratio.powi(index)));
            (time, if index < 40 { 1 } else { 1 << 32 })
        };
        let points: Vec<_> = (0..64).map(point).collect();
        let mut increasing = points.clone();
        increasing.dedup_by_key(|point| point.0);
        let curve = Curve::new(increasing).unwrap();
        assert!(curve.fit(1 << 32).error.is_finite());
    }

    #[test]
    fn a_guest_is_found_again_in_its_curve() {
        let guests = [
            vec![Part::random(131_072, 100_000.0)],
            vec![Part::random(256, 50_000.0)],
            vec![
                Part::random(16_384, 100_000.0),
                Part::random(200_000, 2_000.0),
            ],
            vec![Part::sweep(131_072, 100_000.0)],
            vec![Part::sweep(16_384, 30_000.0), Part::random(2_000, 8_000.0)],
        ];
        for guest in guests {
            let fitted = curve(&guest).fit(1 << 20);
            let sweeps = |parts: &[Part]| {
                (parts.iter()).any(|part| matches!(part.writing, Writing::Sweep { .. }))
            };
            assert_eq!(
                sweeps(&guest),
                sweeps(&fitted.expected),
                "{guest:?} {fitted:?}"
            );
            // Between the windows, too; below the shortest the quickest class alone decides.
            for seconds in [0.125, 0.35, 0.7, 1.0, 3.0, 8.0] {
                let (real, found) = (after(&guest, seconds), after(&fitted.expected, seconds));
                assert!(
                    (found / real - 1.0).abs() < 0.06,
                    "{guest:?} {seconds}: {real} {found}"
                );
                let (low, high) = (after(&fitted.low, seconds), after(&fitted.high, seconds));
                assert!(
                    low <= real * 1.05 && real <= high * 1.05,
                    "{low} {real} {high}"
                );
            }
        }
    }

    /// What nobody has seen may be anything: a straight line may end at once, or go through all memory.
    #[test]
    fn beyond_the_curve_the_guests_part() {
        let fitted = curve(&[Part::random(1 << 24, 1000.0)]).fit(1 << 24);
        let most = |parts: &[Part]| parts.iter().map(|part| part.pages).sum::<u64>();
        assert_eq!(most(&fitted.low), 7998);
        assert_eq!(most(&fitted.high), 1 << 24);
        let minute = after(&fitted.high, 60.0);
        assert!((minute / 60_000.0 - 1.0).abs() < 0.1, "{minute}");
    }

    #[test]
    fn no_more_pages_are_written_than_there_are() {
        let fitted = curve(&[Part::random(131_072, 100_000.0)]).fit(1000);
        for parts in [&fitted.expected, &fitted.low, &fitted.high] {
            assert!(parts.iter().map(|part| part.pages).sum::<u64>() <= 1000);
        }
        let ms = Duration::from_millis;
        assert!(
            Curve::new(vec![(ms(1), 0)])
                .unwrap()
                .fit(9)
                .expected
                .is_empty()
        );
        let odd = Curve::new(vec![(ms(1), u64::MAX)]).unwrap().fit(u64::MAX);
        assert!(!odd.expected.is_empty());
    }

    #[test]
    fn only_curves_are_taken() {
        let ms = Duration::from_millis;
        assert_eq!(Curve::new(vec![]), Err(CurveError::Windows(0)));
        let many = (1..=65).map(|n| (ms(n), n)).collect();
        assert_eq!(Curve::new(many), Err(CurveError::Windows(65)));
        let zero = Curve::new(vec![(ms(0), 1)]);
        assert_eq!(zero, Err(CurveError::Order(ms(0), ms(0))));
        let fewer = Curve::new(vec![(ms(1), 2), (ms(2), 1)]);
        assert_eq!(fewer, Err(CurveError::Fewer(2, 1, ms(2))));
        let window = |window_ms, pages| Window {
            window_ms,
            pages,
            bytes_per_s: 0,
            pages_by_vcpu: None,
        };
        assert!(Curve::measured(&[window(f64::NAN, 1)]).is_err());
        assert!(Curve::measured(&[window(125.3, 1), window(250.1, 1)]).is_ok());
    }
}
