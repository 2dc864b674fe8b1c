//! How much vCPUs are slowed down: all alike, or each by itself where it is known who writes.

use std::time::Duration;

use super::speed;
use crate::guest::ThrottlePercent;

/// The percentage of each vCPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Percents {
    /// All have the same.
    All(ThrottlePercent),
    /// Each has its own, in order; those beyond the list run at full speed.
    Each(Vec<ThrottlePercent>),
}

impl Default for Percents {
    fn default() -> Self {
        Self::All(ThrottlePercent::default())
    }
}

impl Percents {
    /// That of one vCPU.
    pub fn of(&self, vcpu: usize) -> ThrottlePercent {
        match self {
            Self::All(percent) => *percent,
            Self::Each(percents) => percents.get(vcpu).copied().unwrap_or_default(),
        }
    }

    /// The highest of them.
    pub fn strongest(&self) -> ThrottlePercent {
        match self {
            Self::All(percent) => *percent,
            Self::Each(percents) => percents.iter().copied().max().unwrap_or_default(),
        }
    }

    /// The same for so many vCPUs, one by one.
    pub fn list(&self, vcpus: usize) -> Vec<ThrottlePercent> {
        (0..vcpus).map(|vcpu| self.of(vcpu)).collect()
    }

    /// None of them above `most`.
    #[must_use]
    pub fn at_most(self, most: ThrottlePercent) -> Self {
        match self {
            Self::All(percent) => Self::All(percent.min(most)),
            Self::Each(percents) => {
                Self::Each(percents.into_iter().map(|one| one.min(most)).collect())
            }
        }
    }
}

/// How vCPUs are slowed down.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Throttle {
    /// The share of its time that a busy vCPU sleeps.
    pub percents: Percents,
    /// How long it sleeps at a time.
    pub slice: Duration,
}

/// The shortest slice, and the least that a vCPU runs between two of them: long against the cost of entering
/// and leaving a guest.
const LEAST: (Duration, Duration) = (Duration::from_millis(1), Duration::from_micros(200));

impl Throttle {
    /// The share of its time that it leaves a vCPU that is busy.
    pub fn share(&self, vcpu: usize) -> f64 {
        speed(self.percents.of(vcpu))
    }

    /// Whether anybody is slowed down.
    pub fn is_on(&self) -> bool {
        self.percents.strongest() > ThrottlePercent::default()
    }

    /// A throttle as smooth as can be: the shortest slices in which a vCPU still gets something done, and none
    /// longer than an eighth of the blackout that is allowed. The last sign of life before the stop is not older
    /// than that.
    pub(super) fn smooth(percents: Percents, downtime: Duration) -> Self {
        let (sleep, run) = LEAST;
        let percent = u32::from(percents.strongest().get());
        let fair = run * percent / (100 - percent);
        Self {
            percents,
            slice: fair.max(sleep).min(downtime / 8),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_own_or_all_the_same() {
        let percent = ThrottlePercent::new;
        let (all, each) = (
            Percents::All(percent(40)),
            Percents::Each(vec![percent(0), percent(95)]),
        );
        assert_eq!(all.list(3), vec![percent(40); 3]);
        assert_eq!(each.list(3), [percent(0), percent(95), percent(0)]);
        assert_eq!(each.strongest(), percent(95));
        assert_eq!(each.at_most(percent(60)).list(2), [percent(0), percent(60)]);
        assert_eq!(all.at_most(percent(60)).strongest(), percent(40));
        assert_eq!(Percents::Each(vec![]).strongest(), percent(0));
        assert!(!Throttle::default().is_on());
    }
}
