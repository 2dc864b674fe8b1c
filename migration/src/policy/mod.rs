//! What to do while pages go over: go on, switch over or give up ([`switch_over`]), and how much to slow the
//! guest down meanwhile: one of the throttling policies, each in a file of its own. Numbers in, a decision
//! out: there is no clock and no socket in them.
//!
//! Where the numbers come from: the remainder after each round, and in the middle of a round, every
//! [`Throttling::pace`], how many pages of it are still to be sent and how many were written again since they
//! were ([`Look`]).

mod auto;
mod auto_converge;
mod dirty_limit;
mod off;
mod sdps;
pub mod switch_over;
mod throttle;
mod writers;

use std::time::Duration;

pub use auto::Auto;
pub use auto_converge::AutoConverge;
pub use dirty_limit::DirtyLimit;
pub use off::Off;
pub use sdps::Sdps;
pub use switch_over::{Decision, bound_reached, decide};
pub use throttle::{Percents, Throttle};

use crate::guest::ThrottlePercent;
use crate::options::{OnTimeout, Options, ThrottlePolicy};
use crate::pages::PAGE_SIZE;
use crate::predict::{Costs, RUN_HEADER};

/// What a round showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Pages that it dealt with.
    pub pages: u64,
    /// Pages left at its end: written during it.
    pub remainder: u64,
    /// How long it took, until its last byte had arrived.
    pub duration: Duration,
    /// How much the vCPU that was slowed down most was at its end.
    pub throttle: ThrottlePercent,
}

/// What is asked for, as far as it bears on a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The longest blackout that is wanted.
    pub downtime: Duration,
    /// The most rounds.
    pub rounds: u32,
    /// The most time.
    pub total: Duration,
    /// What to do at either bound.
    pub on_timeout: OnTimeout,
    /// The most throttling; 0 where the guest is not to be slowed down.
    pub throttle: ThrottlePercent,
}

impl From<&Options> for Limits {
    fn from(options: &Options) -> Self {
        Self {
            downtime: options.downtime_limit,
            rounds: options.max_rounds,
            total: options.max_total,
            on_timeout: options.on_timeout,
            throttle: match options.throttle {
                ThrottlePolicy::Off => ThrottlePercent::default(),
                _ => options.max_throttle,
            },
        }
    }
}

/// How a round stands in the middle of it, or at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// Time since the dirty log was started.
    pub elapsed: Duration,
    /// The round's number; 0 sends all memory.
    pub round: u32,
    /// Time since the round began.
    pub duration: Duration,
    /// Its pages.
    pub pages: u64,
    /// Those of them that nobody has read yet: what is written to them now costs nothing.
    pub unsent: u64,
    /// Pages that the next round has to send: written since they were sent, or before their turn, or not of this round.
    pub written: u64,
    /// Those of them that belong to the round and were not sent, since they were written again before their turn.
    pub rewritten: u64,
    /// Pages that each vCPU has logged since the log was started ([`crate::dirty::DirtyLog::written_by_vcpu`]); empty
    /// where the log does not know.
    pub written_by_vcpu: Vec<u64>,
    /// Bytes on the wire since the move began.
    pub wire_bytes: u64,
    /// The round is over.
    pub over: bool,
    /// What has been in force since the look before.
    pub throttle: Throttle,
}

impl Look {
    /// Pages that were the same on both ends, and are not any more: so much of what was sent was in vain.
    fn undone(&self) -> u64 {
        self.written.saturating_sub(self.rewritten)
    }
}

/// A throttling policy.
pub trait Throttling: Send {
    /// How often it wants to be asked in the middle of a round; `None` for at the end of rounds alone.
    fn pace(&self) -> Option<Duration>;

    /// How much the guest is to be slowed down from now on. Asked about every [`pace`](Self::pace) and at the
    /// end of each round after which another one comes.
    fn decide(&mut self, look: &Look, costs: &Costs, limits: &Limits) -> Throttle;
}

/// The policy of that name, at the beginning of a move.
pub fn throttling(policy: ThrottlePolicy) -> Box<dyn Throttling> {
    match policy {
        ThrottlePolicy::Off => Box::new(Off),
        ThrottlePolicy::AutoConverge => Box::new(AutoConverge::default()),
        ThrottlePolicy::Sdps => Box::new(Sdps::default()),
        ThrottlePolicy::Auto => Box::new(Auto::default()),
        ThrottlePolicy::DirtyLimit => Box::new(DirtyLimit::default()),
    }
}

/// Pages undone a second, and over how many seconds that was measured: since the look `before` if that was in the same
/// round, else since the round began. `None` if less than `shortest` has passed since that look, which then stays.
fn undone_since(before: &mut Option<Look>, look: &Look, shortest: Duration) -> Option<(f64, f64)> {
    let last = before.as_ref().filter(|last| last.round == look.round);
    let (undone, from) = last.map_or((0, Duration::ZERO), |last| (last.undone(), last.duration));
    let time = look.duration.saturating_sub(from);
    if time < shortest && last.is_some() {
        return None;
    }
    let seconds = time.as_secs_f64().max(1e-6);
    *before = Some(look.clone());
    Some((
        precise(look.undone().saturating_sub(undone)) / seconds,
        seconds,
    ))
}

/// Pages a second that a link carries; `None` while that is not known.
fn link_pages(costs: &Costs) -> Option<f64> {
    (costs.bandwidth > 0).then(|| precise(costs.bandwidth) / precise(PAGE_SIZE + RUN_HEADER))
}

/// The share of its time that a throttled guest runs.
fn speed(percent: ThrottlePercent) -> f64 {
    f64::from(100 - percent.get()) / 100.0
}

/// The throttle at which a guest runs that share of its time; at most `most`.
fn percent_for(speed: f64, most: ThrottlePercent) -> ThrottlePercent {
    // Clamped to 0..=99 first, so it converts exactly. A speed that is no number slows nobody down.
    #[expect(clippy::cast_possible_truncation)]
    let percent = (100.0 * (1.0 - speed)).round().clamp(0.0, 99.0) as u8;
    ThrottlePercent::new(percent).min(most)
}

/// A count as a float; beyond 2^53 the last digits do not matter here.
fn precise(count: u64) -> f64 {
    count as f64
}
