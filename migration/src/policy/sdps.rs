//! `sdps`, "stun during page send", after what vMotion does: where a pass would not take less time than the one
//! before, the guest pays for the pages that it writes faster than they are sent, in short sleeps. So from the
//! second pass on it writes less than is sent, until it moves.
//!
//! It differs from the original in one thing: all vCPUs that run pay alike, since without a dirty ring nobody knows
//! which of them wrote a page. How close below the link vMotion holds a guest is not published; here it is [`AIM`].

use std::time::Duration;

use super::{
    Limits, Look, Percents, Throttle, Throttling, link_pages, percent_for, speed, undone_since,
};
use crate::predict::Costs;

const PACE: Duration = Duration::from_millis(100);
/// A look sooner than this after the one before says too little.
const SHORTEST: Duration = Duration::from_millis(20);
/// The share of what is sent that may be written meanwhile.
const AIM: f64 = 0.8;
/// Its speed is raised by no more than this factor at once: a guest that sweeps through its memory writes nothing
/// that counts for a while, and then all the more.
const STEP: f64 = 1.1;

/// Holds a guest just below the link.
#[derive(Debug, Clone, Default)]
pub struct Sdps {
    before: Option<Look>,
}

impl Throttling for Sdps {
    fn pace(&self) -> Option<Duration> {
        Some(PACE)
    }

    fn decide(&mut self, look: &Look, costs: &Costs, limits: &Limits) -> Throttle {
        let Some(link) = link_pages(costs).filter(|_| look.round > 0) else {
            return Throttle::default();
        };
        let Some((rate, _)) = undone_since(&mut self.before, look, SHORTEST) else {
            return look.throttle.clone();
        };
        let now = speed(look.throttle.percents.strongest());
        let wanted = now * AIM * link / rate.max(1e-6);
        let percent = percent_for(wanted.min(now * STEP), limits.throttle);
        Throttle::smooth(Percents::All(percent), limits.downtime)
    }
}
