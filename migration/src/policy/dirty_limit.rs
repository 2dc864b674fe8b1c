//! `dirty-limit`, after what QEMU does with a dirty ring: each vCPU that writes faster than a limit is slowed down
//! until it writes at it, and the others are left alone.
//!
//! QEMU's limit is a figure that a person sets (`vcpu-dirty-limit`, 1 MB/s unless told otherwise), the same for every
//! vCPU. It holds from the moment that auto-converge would begin, which is when more than half of what was sent is
//! dirtied meanwhile (`throttle-trigger-threshold`), until the end of the move (migration/ram.c,
//! `migration_dirty_limit_guest`). Each second (`x-vcpu-dirty-limit-period`) the rates are measured, and each vCPU's
//! sleep is lengthened or shortened until its rate is what it may be (`dirtylimit_set_throttle`).
//!
//! Here nobody need know the figure: it is chosen so that all vCPUs together write half of what the link carries, by
//! which each round leaves half. Below 1 MB/s it never goes, as there. Rates are measured more often, since rounds get
//! short; and a vCPU is let go of slowly, as a guest that sweeps through its memory writes nothing that counts for a
//! while.

use std::time::Duration;

use super::writers::Writers;
use super::{Limits, Look, Throttle, Throttling, link_pages, precise, undone_since};
use crate::pages::PAGE_SIZE;
use crate::predict::Costs;

const PACE: Duration = Duration::from_millis(100);
/// A look sooner than this after the one before says too little.
const SHORTEST: Duration = Duration::from_millis(50);
/// The share of what is sent that may be written meanwhile: QEMU's threshold.
const AIM: f64 = 0.5;
/// The least that all vCPUs together are held to: `vcpu-dirty-limit`, bytes a second.
const LEAST: u64 = 1 << 20;
/// In so many seconds half of the highest rate seen is forgotten.
const HALF_LIFE: f64 = 1.0;

/// Holds those that write too much to a limit.
#[derive(Debug, Clone, Default)]
pub struct DirtyLimit {
    before: Option<Look>,
    writers: Writers,
    /// It was needed, and holds to the end.
    on: bool,
}

impl Throttling for DirtyLimit {
    fn pace(&self) -> Option<Duration> {
        Some(PACE)
    }

    fn decide(&mut self, look: &Look, costs: &Costs, limits: &Limits) -> Throttle {
        let Some(link) = link_pages(costs).filter(|_| look.round > 0 || look.over) else {
            return Throttle::default();
        };
        if let Some((rate, seconds)) = undone_since(&mut self.before, look, SHORTEST) {
            let remembered = match look.throttle.is_on() {
                true => (-seconds / HALF_LIFE).exp2(),
                false => 0.0,
            };
            self.writers.learn(look, rate, remembered);
        }
        // Also of a round that ends shortly after a look: rounds may all be of such a length.
        self.on |= look.over && precise(look.written) > AIM * precise(look.pages);
        if !self.on {
            return Throttle::default();
        }
        let least = precise(LEAST / PAGE_SIZE);
        let percents =
            (self.writers).held_to((AIM * link).max(least), |_| f64::INFINITY, limits.throttle);
        Throttle::smooth(percents, limits.downtime)
    }
}
