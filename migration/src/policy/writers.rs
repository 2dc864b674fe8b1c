//! Who writes how much, and who is to be slowed down how far for all of them together to write no more than so much.
//!
//! A dirty log that stands on a ring for each vCPU knows who writes. Then a vCPU that writes less than its fair part
//! keeps its full speed, and what it leaves is for the others: the level is filled as water fills vessels of different
//! heights. Where nobody knows, all run alike.

use super::{Look, Percents, percent_for, precise, speed};
use crate::guest::ThrottlePercent;

/// Fewer pages than this do not say who writes: in the last rounds, which have a few pages each, one page of a vCPU
/// that computes would be much.
const SAMPLE: f64 = 256.0;

/// What the vCPUs of a guest write, as last seen.
#[derive(Debug, Clone, Default)]
pub struct Writers {
    /// What each had logged when that was last looked at.
    counted: Vec<u64>,
    /// Which part of what was written since each had written then.
    shares: Vec<f64>,
    /// What each would write at full speed, pages a second; one number for all of them together where the log does not
    /// say.
    full: Vec<f64>,
}

impl Writers {
    /// Which part of what was lately written each vCPU has written; the parts add up to 1. One part where nobody knows.
    fn shares(&mut self, look: &Look) -> &[f64] {
        let now = &look.written_by_vcpu;
        let before = self.counted.iter().chain(std::iter::repeat(&0));
        let since = now.iter().zip(before);
        let since: Vec<_> = since
            .map(|(now, before)| precise(now.saturating_sub(*before)))
            .collect();
        let all: f64 = since.iter().sum();
        let vcpus = since.len().max(1);
        if all >= SAMPLE || all > 0.0 && self.shares.len() != vcpus {
            self.shares = since.iter().map(|pages| pages / all).collect();
            self.counted.clone_from(now);
        } else if self.shares.len() != vcpus {
            // Nobody is to be told from another.
            self.shares = vec![1.0 / precise(vcpus as u64); vcpus];
        }
        &self.shares
    }

    /// Pages are written at this rate, all in all, since the look before. Of what was learned before that share is
    /// `remembered`, if it is more.
    pub fn learn(&mut self, look: &Look, rate: f64, remembered: f64) {
        let vcpus = self.shares(look).len();
        self.full.resize(vcpus, 0.0);
        for (vcpu, (full, share)) in self.full.iter_mut().zip(&self.shares).enumerate() {
            let speed = speed(look.throttle.percents.of(vcpu));
            *full = (*full * remembered).max(rate * share / speed);
        }
    }

    /// The throttle under which all together write no more than `wanted` pages a second, and each that would write more
    /// than what `alone` gives for it no more than that; none of them above `most`.
    pub fn held_to(
        &self,
        wanted: f64,
        alone: impl Fn(f64) -> f64,
        most: ThrottlePercent,
    ) -> Percents {
        let level = level(&self.full, wanted);
        let percent = |full: &f64| percent_for(level.min(alone(*full)) / full.max(1e-6), most);
        match &self.full[..] {
            [] => Percents::default(),
            [all] => Percents::All(percent(all)),
            each => Percents::Each(each.iter().map(percent).collect()),
        }
    }
}

/// The level at which the rates, cut off there, add up to `wanted`; without bound if they never exceed that.
fn level(rates: &[f64], wanted: f64) -> f64 {
    let mut ordered = rates.to_vec();
    ordered.sort_by(f64::total_cmp);
    let mut rest = wanted;
    for (index, rate) in ordered.iter().enumerate() {
        let fair = rest / precise((ordered.len() - index) as u64);
        if *rate > fair {
            return fair;
        }
        rest -= rate;
    }
    f64::INFINITY
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::policy::Throttle;

    #[test]
    fn the_level_fills_up_from_below() {
        for (rates, wanted, expected) in [
            (&[][..], 5.0, f64::INFINITY),
            (&[0.0, 0.0], 5.0, f64::INFINITY),
            (&[8.0], 2.0, 2.0),
            (&[8.0], 8.0, f64::INFINITY),
            (&[0.0, 8.0], 2.0, 2.0),
            (&[8.0, 0.0, 1.0], 3.0, 2.0),
            (&[4.0, 4.0], 2.0, 1.0),
            (&[1.0, 2.0, 9.0, 9.0], 11.0, 4.0),
            (&[1.0, 2.0], 3.0, f64::INFINITY),
            (&[5.0, 5.0], 0.0, 0.0),
        ] {
            assert_eq!(level(rates, wanted), expected, "{rates:?} {wanted}");
            let filled: f64 = rates.iter().map(|rate| rate.min(expected)).sum();
            assert!(filled <= wanted, "{rates:?} {wanted}");
        }
    }

    fn look(written_by_vcpu: &[u64], percents: Percents) -> Look {
        Look {
            elapsed: Duration::from_secs(9),
            round: 1,
            duration: Duration::from_secs(1),
            pages: 1000,
            unsent: 0,
            written: 1000,
            rewritten: 0,
            written_by_vcpu: written_by_vcpu.to_vec(),
            wire_bytes: 0,
            over: false,
            throttle: Throttle {
                percents,
                ..Throttle::default()
            },
        }
    }

    fn percents(writers: &Writers, wanted: f64) -> Vec<u8> {
        let percents = writers.held_to(wanted, |_| f64::INFINITY, ThrottlePercent::MAX);
        percents
            .list(3)
            .iter()
            .map(|percent| percent.get())
            .collect()
    }

    #[test]
    fn only_those_pay_who_write() {
        let percent = ThrottlePercent::new;
        let mut writers = Writers::default();
        assert_eq!(percents(&writers, 10.0), [0, 0, 0]);
        writers.learn(&look(&[10, 990, 0], Percents::default()), 1000.0, 0.0);
        // 10 and 990 a second: the second may write 490.
        assert_eq!(percents(&writers, 500.0), [0, 51, 0]);
        assert_eq!(percents(&writers, 2000.0), [0, 0, 0]);
        // At a tenth of its speed it writes 90 of 110: at full speed that would be 900, and it is remembered.
        let slowed = Percents::Each(vec![percent(0), percent(90), percent(0)]);
        writers.learn(&look(&[210, 1_890, 0], slowed.clone()), 110.0, 0.5);
        assert_eq!(percents(&writers, 100.0), [0, 91, 0]);
        // Too little to say anything else of who it is.
        writers.learn(&look(&[220, 1_891, 0], slowed), 110.0, 0.0);
        assert_eq!(percents(&writers, 100.0), [0, 91, 0]);
        // By now it is all of them, one as much as another.
        let alike = look(&[10_210, 11_890, 10_000], Percents::default());
        writers.learn(&alike, 900.0, 0.0);
        assert_eq!(percents(&writers, 450.0), [50, 50, 50]);
    }

    #[test]
    fn without_counts_all_are_alike() {
        let mut writers = Writers::default();
        writers.learn(&look(&[], Percents::default()), 1000.0, 0.0);
        assert_eq!(percents(&writers, 250.0), [75, 75, 75]);
        let half = Percents::All(ThrottlePercent::new(50));
        writers.learn(&look(&[], half), 400.0, 0.9);
        assert_eq!(percents(&writers, 90.0), [90, 90, 90]);
    }
}
