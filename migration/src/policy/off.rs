//! `off`: the guest is never slowed down. If it writes faster than the link carries, the bounds on rounds and
//! time, or the end of all progress, decide what becomes of the move.

use std::time::Duration;

use super::{Limits, Look, Throttle, Throttling};
use crate::predict::Costs;

/// Leaves the guest alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct Off;

impl Throttling for Off {
    fn pace(&self) -> Option<Duration> {
        None
    }

    fn decide(&mut self, _: &Look, _: &Costs, _: &Limits) -> Throttle {
        Throttle::default()
    }
}
