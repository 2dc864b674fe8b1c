//! `auto`: Ferry's own policy. A guest is slowed down late, strongly and briefly, and only if it must be.
//!
//! What a throttle costs is the time that the guest does not run. Let a guest write `r` pages a second anywhere
//! in its working set, let the link carry `b`, and let `c` be the share of the working set that is clean. At a
//! share `s` of its speed the clean pages grow by `b - r·s·c` a second while `1 - s` of the guest's time is
//! lost, so a clean page costs `(1 - s) / (b - r·s·c)`. As long as `r·c < b` that is least at full speed, where
//! it is nothing; beyond it, at a standstill. Hence:
//!
//! - As long as sending gets ahead of the guest, it runs at full speed, in round 0 always. A small set of pages that is
//!   rewritten all the time, and fits the blackout, never gets it slowed down.
//! - Once nearly all that is sent is written again meanwhile ([`ENGAGE`]), and this round will not leave much less than
//!   the one before ([`SHRINKS`]), going on at full speed is nearly in vain.
//! - Nearly: a guest that writes just as fast as the link carries, `n` pages of which any may be next, leaves `n/2`,
//!   `n/3`, `n/4` pages, and each that is not left costs it nothing. What it pays once it is slowed down is in
//!   proportion to what is left then. So that is put off as long as what is left falls faster, in proportion, than the
//!   move gets longer ([`STEP`]), by as long again at most ([`PATIENCE`]), and not past half of the rounds and the time
//!   that are allowed ([`ALLOWED`]). What is left of a guest that writes twice as fast or faster falls no further than
//!   to half of its working set, and soon no more.
//! - From then on the guest is held down to [`AIM`] of what the link carries, so that each round leaves a quarter at
//!   most, and further as long as a vCPU that writes keeps a 32nd of its own speed ([`SLOW`]) or writes a sixteenth of
//!   the link ([`ALONE`]); also where less would fit the limit: what it would save the guest, a longer blackout takes.
//!   At a standstill it would lose least, but that would be a blackout. The slower it is, the longer it sees nothing of
//!   its own time: gaps of 4 to 50 ms between its beats were seen at twice to eight times the link, and at a 64th of
//!   its speed twice as long ones, for no work saved. At a quarter of the link throughout it lost 10 to 20 % more.
//! - How fast it writes at a given throttle is measured, not computed: guests have idle time to catch up in, and other
//!   things to do than write. Where the dirty log knows which vCPU writes, those that write too much are slowed down
//!   and no others ([`Writers`]). The throttle is raised at once and let go of within two seconds or so, since a guest
//!   that sweeps through its memory writes nothing that counts for a while, and then all the more.
//!
//! `tests/engine/convergence.rs` has the simulation in which these figures were chosen.

use std::time::Duration;

use super::writers::Writers;
use super::{Limits, Look, Throttle, Throttling, link_pages, precise};
use crate::predict::{self, Costs};

/// Slow enough to count some hundred pages, quick against a round that is worth the trouble.
const PACE: Duration = Duration::from_millis(100);
/// A look sooner than this after the one before says too little.
const SHORTEST: Duration = Duration::from_millis(50);
/// Of what the link carries, the share that is written again at which sending gets nowhere.
const ENGAGE: f64 = 0.85;
/// That must be so for so long and for so much (1/8) of a round, unless that is over: a hot spot passes.
const LASTING: Duration = Duration::from_millis(200);
const PART: u64 = 8;
/// A round that leaves less than this share of its pages is progress.
const SHRINKS: f64 = 0.7;
/// The share of the link that a slowed guest may write at most.
const AIM: f64 = 0.25;
/// The share of its own speed that a vCPU which writes keeps within that ...
const SLOW: f64 = 1.0 / 32.0;
/// ... or more, where that is less than this share of the link.
const ALONE: f64 = 1.0 / 16.0;
/// In so many seconds half of the highest rate seen is forgotten.
const HALF_LIFE: f64 = 0.5;
/// Waiting is worth its while as long as what is left falls by this part, while the move gets longer by no more than it.
const STEP: f64 = 0.08;
/// What is left is not known better than to this part of it; more than that above the last step is a rise.
const SLACK: f64 = 0.02;
/// So much time at most may be over when it ends, in times of that when it began.
const PATIENCE: f64 = 2.0;
/// Of the rounds and of the time allowed, that part may be spent on it: a slowed guest needs a few of both.
const ALLOWED: u32 = 2;

/// Ferry's own policy.
#[derive(Debug, Clone, Default)]
pub struct Auto {
    /// The last look that said enough.
    before: Option<Look>,
    /// Pages undone a second, as last measured.
    rate: f64,
    /// What that would be at full speed, and who it is; while throttled, the highest lately.
    writers: Writers,
    /// When there last was a step less left to send than before, and how much that was. In the beginning, what there
    /// was then.
    step: Option<(Duration, f64)>,
    /// When the guest would first have been slowed down if that did not do without.
    waits: Option<Duration>,
}

impl Auto {
    /// Notes how much is left to send.
    fn note(&mut self, left: f64, look: &Look) {
        match self.step {
            None => self.step = Some((Duration::ZERO, left)),
            Some((_, before)) if left <= (1.0 - STEP) * before => {
                self.step = Some((look.elapsed, left));
            }
            Some(_) => {}
        }
    }

    /// Whether what is left still falls, and so fast that the time is better spent than the guest's work.
    fn waits(&mut self, left: f64, look: &Look, limits: &Limits) -> bool {
        let now = look.elapsed;
        let (then, least) = self.step.unwrap_or_default();
        let until = self.waits.get_or_insert(now).mul_f64(PATIENCE);
        let allowed =
            now < until.min(limits.total / ALLOWED) && look.round < limits.rounds / ALLOWED;
        let falls = left <= (1.0 + SLACK) * least;
        allowed && falls && now.saturating_sub(then) < now.mul_f64(STEP)
    }

    /// Measures since the look before; `false` if that is too short to say anything.
    fn measure(&mut self, look: &Look) -> bool {
        let before = self.before.as_ref();
        let before = before.filter(|before| before.round == look.round);
        let (unsent, undone, from) = before.map_or((look.pages, 0, Duration::ZERO), |before| {
            (before.unsent, before.undone(), before.duration)
        });
        let time = look.duration.saturating_sub(from);
        let slowed = look.throttle.is_on();
        let enough = if look.over {
            // The last bit of a round is mostly waiting for what is under way.
            before.is_none() || time >= SHORTEST
        } else if slowed {
            time >= SHORTEST
        } else {
            time >= LASTING && unsent.saturating_sub(look.unsent) >= look.pages / PART
        };
        if enough {
            let seconds = time.as_secs_f64().max(1e-6);
            self.rate = precise(look.undone().saturating_sub(undone)) / seconds;
            let remembered = match slowed {
                true => (-seconds / HALF_LIFE).exp2(),
                false => 0.0,
            };
            self.writers.learn(look, self.rate, remembered);
            self.before = Some(look.clone());
        }
        enough || look.over
    }
}

/// How many pages have not arrived as they are now. Those of a round that were read are not there yet: at its beginning
/// they fill the sockets' buffers.
fn left_in_all(look: &Look, link: f64) -> f64 {
    let arrived = match look.over {
        true => precise(look.pages),
        false => link * look.duration.as_secs_f64(),
    };
    let sent_or_not = precise(look.pages.saturating_sub(look.rewritten));
    precise(look.written) + precise(look.unsent).max(sent_or_not - arrived)
}

impl Throttling for Auto {
    fn pace(&self) -> Option<Duration> {
        Some(PACE)
    }

    fn decide(&mut self, look: &Look, costs: &Costs, limits: &Limits) -> Throttle {
        let Some(link) = link_pages(costs).filter(|_| look.round > 0) else {
            return Throttle::default();
        };
        let left_in_all = left_in_all(look, link);
        self.note(left_in_all, look);
        if !self.measure(look) {
            return look.throttle.clone();
        }
        let fixed = predict::blackout(0, costs);
        let room = limits.downtime.saturating_sub(fixed).as_secs_f64() * link;
        let (left, written) = (precise(look.unsent), precise(look.written));
        if !look.throttle.is_on() {
            let (pages, remainder) = (precise(look.pages), written + self.rate * left / link);
            // The link may carry less than it did when it was measured.
            let nowhere = self.rate >= ENGAGE * link || look.over && written >= ENGAGE * pages;
            let nowhere = nowhere && remainder >= SHRINKS * pages && remainder > room;
            if !nowhere || self.waits(left_in_all, look, limits) {
                return Throttle::default();
            }
        }
        // Of the round that is held down: this one, or if it is over, the next.
        let (pages, seen) = match look.over {
            true => (written, precise(look.pages) / look.duration.as_secs_f64()),
            false => (precise(look.pages), f64::INFINITY),
        };
        // At the end of a round the link stands still for a moment, and the guest does not.
        let still = (costs.round_trip * 2 + costs.sync).as_secs_f64();
        let carried = (pages / (pages / link + still)).min(seen);
        let alone = |full: f64| (SLOW * full).max(ALONE * link);
        let percents = self.writers.held_to(AIM * carried, alone, limits.throttle);
        Throttle::smooth(percents, limits.downtime)
    }
}
