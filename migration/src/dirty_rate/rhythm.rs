//! Whether a guest writes all the time or in bursts, seen while its curve is measured.
//!
//! The curve counts each page once, so it cannot tell a guest that has written all it ever writes from one that rests
//! for a second. So every [`STEP`] some of the pages written so far are armed again. Of all of them, as large a share
//! is written in the next step as of these; with the pages that are new, that is how many pages the guest writes in a
//! step. Where that falls to a fraction of what it was, for longer than chance has it, the guest rests.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Window;
use crate::pages::PageSet;

/// How long one look is behind another: shorter than any rest that matters to a move, long enough to see something.
pub(super) const STEP: Duration = Duration::from_micros(62_500);
/// Pages that are armed again. The guest pays a fault for each that it writes in a step: a tenth, in the time of a
/// watch, of what the curve of a working set of 128 MiB costs it.
const SAMPLE: u64 = 128;
/// A step with less than this part of the most is one of rest.
const PART: f64 = 0.5;
/// Rests are believed in if no more than this part is written in them of what is written else in so much time ...
const QUIET: f64 = 0.2;
/// ... and at the rate of bursts so many pages would have been seen in them. Of twenty that are expected chance lets
/// fewer than five be seen once in ten thousand times.
const EVIDENCE: f64 = 20.0;
/// Times in bursts for which the curve is told get longer by this factor at least.
const SPARSE: f64 = 1.25;

/// Writing that comes and goes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rhythm {
    /// How long a burst lasts, in milliseconds.
    pub burst_ms: f64,
    /// From the beginning of one to that of the next, in milliseconds.
    pub every_ms: f64,
}

/// A guest that writes in bursts, and what it does in them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bursts {
    /// When they come.
    #[serde(flatten)]
    pub rhythm: Rhythm,
    /// The curve of the bursts alone: the rests in between are left out of its times.
    pub windows: Vec<Window>,
}

/// One step of a watch.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Step {
    /// How long it was, in seconds.
    time: f64,
    /// Pages that were seen to be written in it: new ones, and of the sample.
    seen: f64,
    /// About so many were.
    written: f64,
    /// Pages written at least once since the watch began.
    pages: u64,
}

/// What the steps of a watch showed.
#[derive(Debug, Clone, PartialEq, Default)]
struct Steps(Vec<Step>);

/// The steps of a watch that is under way.
pub(super) struct Stepping {
    steps: Steps,
    /// When the last one was over, and how many pages were written by then.
    since: Duration,
    pages: u64,
    sample: PageSet,
}

impl Stepping {
    /// Of a guest with so many pages, none of which was written yet.
    pub fn new(pages: u64) -> Self {
        Self {
            steps: Steps::default(),
            since: Duration::ZERO,
            pages: 0,
            sample: PageSet::empty(pages),
        }
    }

    /// When the step that is under way should be over.
    pub fn due(&self) -> Duration {
        self.since + STEP
    }

    /// It is over, at `now`: the log names these pages, and all `written` since the watch began are these. Gives the
    /// pages to be armed again.
    pub fn over(&mut self, now: Duration, named: &PageSet, written: &PageSet) -> &PageSet {
        let time = now.saturating_sub(self.since).as_secs_f64().max(1e-9);
        let (sampled, pages) = (self.sample.len(), written.len());
        self.sample.subtract(named);
        let again = (sampled - self.sample.len()) as f64;
        let new = pages.saturating_sub(self.pages) as f64;
        let share = again / sampled.max(1) as f64;
        self.steps.0.push(Step {
            time,
            seen: new + again,
            written: new + share * self.pages as f64,
            pages,
        });
        (self.since, self.pages) = (now, pages);
        // Not the same ones each time.
        let turn = (self.steps.0.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        pick(written, turn, &mut self.sample);
        &self.sample
    }

    /// How the guest's writing comes and goes, if it does.
    pub fn bursts(&self) -> Option<Bursts> {
        self.steps.bursts()
    }
}

/// Makes `into` some [`SAMPLE`] pages of `set`, all over it.
fn pick(set: &PageSet, turn: u64, into: &mut PageSet) {
    into.clear();
    let each = set.len().div_ceil(SAMPLE).max(1);
    let (mut next, mut rank) = (turn % each, 0);
    for (first, word) in (0u64..).step_by(64).zip(set.words(0..set.capacity())) {
        let behind = rank + u64::from(word.count_ones());
        let mut rest = *word;
        while next < behind {
            while rank < next {
                rest &= rest - 1;
                rank += 1;
            }
            into.insert(first + u64::from(rest.trailing_zeros()));
            next += each;
        }
        rank = behind;
    }
}

impl Steps {
    /// How the guest's writing comes and goes, if it does.
    fn bursts(&self) -> Option<Bursts> {
        let writes = self.writing();
        let all = || self.0.iter().zip(&writes);
        let sum = |burst: bool, figure: &dyn Fn(&Step) -> f64| -> f64 {
            let some = all().filter(|(_, writes)| **writes == burst);
            some.map(|(step, _)| figure(step)).sum()
        };
        let (on, off) = (sum(true, &|step| step.time), sum(false, &|step| step.time));
        if on <= 0.0 || off <= 0.0 {
            return None;
        }
        let rate = |burst, time: f64| sum(burst, &|step| step.written) / time;
        let quiet = rate(false, off) <= QUIET * rate(true, on);
        let evident = sum(true, &|step| step.seen) / on * off >= EVIDENCE;
        if !quiet || !evident {
            return None;
        }
        let (burst, rest) = (self.typical(&writes, true), self.typical(&writes, false));
        let rhythm = Rhythm {
            burst_ms: burst * 1e3,
            every_ms: (burst + rest) * 1e3,
        };
        let (mut time, mut told, mut windows) = (0.0, 0.0, Vec::new());
        let last = writes.iter().rposition(|writes| *writes);
        for (index, (step, _)) in all().enumerate().filter(|(_, (_, writes))| **writes) {
            time += step.time;
            if time >= told * SPARSE || Some(index) == last {
                told = time;
                let time = Duration::from_secs_f64(time);
                windows.push(Window::of(time, step.pages, None));
            }
        }
        Some(Bursts { rhythm, windows })
    }

    /// Whether each step is one of a burst: a single one that differs from both its neighbours is chance.
    fn writing(&self) -> Vec<bool> {
        let rates: Vec<f64> = self.0.iter().map(|step| step.written / step.time).collect();
        let near = |index: usize| rates.get(index.saturating_sub(1)..(index + 2).min(rates.len()));
        let smooth = |index: usize| {
            let mut near = near(index).unwrap_or_default().to_vec();
            near.sort_by(f64::total_cmp);
            near.get(near.len() / 2).copied().unwrap_or(0.0)
        };
        let smooth: Vec<f64> = (0..rates.len()).map(smooth).collect();
        let most = smooth.iter().copied().fold(0.0, f64::max);
        smooth.iter().map(|rate| *rate >= PART * most).collect()
    }

    /// How long it writes, or rests, in one go: the mean of those seen from beginning to end, or of those cut off by
    /// the watch the longest.
    fn typical(&self, writes: &[bool], burst: bool) -> f64 {
        let (mut whole, mut cut) = (Vec::new(), 0.0f64);
        let mut index = 0;
        for run in writes.chunk_by(|one, other| one == other) {
            let steps = self.0.get(index..index + run.len()).unwrap_or_default();
            let time: f64 = steps.iter().map(|step| step.time).sum();
            let (first, last) = (index == 0, index + run.len() == writes.len());
            index += run.len();
            match run.first() {
                Some(writes) if *writes != burst => {}
                _ if first || last => cut = cut.max(time),
                _ => whole.push(time),
            }
        }
        match whole.len() {
            0 => cut,
            count => (whole.iter().sum::<f64>() / count as f64).max(cut),
        }
    }
}

impl Rhythm {
    /// The share of its time in which the guest writes, above 0 and at most 1.
    pub fn share(&self) -> f64 {
        (self.burst_ms / self.every_ms.max(1e-9)).clamp(1e-3, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages of the guest, of which the first thousands are its working set.
    const PAGES: u64 = 1 << 16;
    const SET: u64 = 32_768;

    /// Watches a guest for `seconds` that writes `per_s` pages anywhere in its working set while `writes` says so, and
    /// a few all the time.
    fn watch(seconds: f64, per_s: f64, writes: impl Fn(f64) -> bool) -> Steps {
        let mut stepping = Stepping::new(PAGES);
        let (mut written, mut named) = (PageSet::empty(PAGES), PageSet::empty(PAGES));
        let mut random = 1u64;
        let mut now = Duration::ZERO;
        let mut due = 0.0;
        while now.as_secs_f64() < seconds {
            // A thousandth of a second at a time.
            while now < stepping.due() {
                now += Duration::from_millis(1);
                due += if writes(now.as_secs_f64()) {
                    per_s / 1e3
                } else {
                    0.0
                };
                while due >= 1.0 {
                    due -= 1.0;
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    named.insert(random % SET);
                }
                named.insert_run(PAGES - 20..PAGES);
            }
            written.union(&named);
            let armed = stepping.over(now, &named, &written).clone();
            named.subtract(&armed);
        }
        stepping.steps
    }

    #[test]
    fn bursts_are_found_wherever_the_watch_begins() {
        for per_s in [15_000.0, 60_000.0, 240_000.0] {
            for begin in [0.0, 0.4, 0.9, 1.3, 2.1, 2.8] {
                let steps = watch(4.0, per_s, |at| (at + begin) % 3.0 < 1.0);
                let Bursts { rhythm, windows } = steps.bursts().unwrap();
                let Rhythm { burst_ms, every_ms } = rhythm;
                assert!(
                    (burst_ms - 1000.0).abs() < 150.0,
                    "{per_s} {begin}: {rhythm:?}"
                );
                // A rest of which only the beginning and the end are seen may be longer than either.
                assert!(
                    (2650.0..3200.0).contains(&every_ms),
                    "{per_s} {begin}: {rhythm:?}"
                );
                // The curve is that of the bursts.
                let last = windows.last().unwrap();
                let (time, pages) = (last.window_ms / 1e3, last.pages);
                let expected = SET as f64 * -(-per_s * time / SET as f64).exp_m1() + 20.0;
                assert!(
                    (pages as f64 / expected - 1.0).abs() < 0.1,
                    "{time} s: {pages}"
                );
                assert!((8..30).contains(&windows.len()), "{windows:?}");
                assert!(crate::predict::Curve::measured(&windows).is_ok());
            }
        }
    }

    #[test]
    fn a_guest_that_writes_all_the_time_or_never_has_no_rhythm() {
        for per_s in [0.0, 5.0, 100.0, 1_000.0, 15_000.0, 120_000.0, 1_000_000.0] {
            assert_eq!(watch(4.0, per_s, |_| true).bursts(), None, "{per_s}");
        }
        // Twice as fast half of the time: it goes up and down, and never rests.
        let steps = watch(4.0, 60_000.0, |at| at % 1.0 < 0.5 || at % 0.004 < 0.002);
        assert_eq!(steps.bursts(), None);
        assert_eq!(Steps::default().bursts(), None);
    }

    #[test]
    fn picked_are_as_many_all_over_the_set() {
        let mut set = PageSet::empty(PAGES);
        let mut picked = PageSet::empty(PAGES);
        pick(&set, 7, &mut picked);
        assert!(picked.is_empty());
        set.insert(65);
        pick(&set, 7, &mut picked);
        assert_eq!((picked.len(), picked.contains(65)), (1, true));
        set.insert_run(1000..20_000);
        for turn in 0..300 {
            pick(&set, turn, &mut picked);
            assert!(
                (SAMPLE - 2..=SAMPLE).contains(&picked.len()),
                "{}",
                picked.len()
            );
            let mut outside = picked.clone();
            outside.subtract(&set);
            assert!(outside.is_empty());
            let half = picked.runs(0..10_500, 1).count();
            assert!((60..=68).contains(&half), "{half}");
        }
    }
}
