//! What to do while pages go over: go on, switch over or give up ([`switch_over`]), and how much to slow the
//! guest down meanwhile: one of the throttling policies, each in a file of its own. Numbers in, a decision
//! out: there is no clock and no socket in them.
//!
//! Where the numbers come from: the remainder after each round, and in the middle of a round, every
//! [`Throttling::pace`], how many pages of it are still to be sent and how many were written again since they
//! were ([`Look`]).

mod auto;
mod auto_converge;
mod off;
mod sdps;
pub mod switch_over;

use std::time::Duration;

pub use auto::Auto;
pub use auto_converge::AutoConverge;
pub use off::Off;
pub use sdps::Sdps;
pub use switch_over::{Decision, decide};

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
    /// How much vCPUs were slowed down at its end.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// Pages written since they were sent, or that do not belong to the round: the next one has to send them.
    pub written: u64,
    /// Bytes on the wire since the move began.
    pub wire_bytes: u64,
    /// The round is over.
    pub over: bool,
    /// What has been in force since the look before.
    pub throttle: Throttle,
}

/// How vCPUs are slowed down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Throttle {
    /// The share of its time that a busy vCPU sleeps.
    pub percent: ThrottlePercent,
    /// How long it sleeps at a time.
    pub slice: Duration,
}

/// The shortest slice, and the least that a vCPU runs between two of them: long against the cost of entering
/// and leaving a guest.
const LEAST: (Duration, Duration) = (Duration::from_millis(1), Duration::from_micros(200));

impl Throttle {
    /// The share of its time that it leaves a busy vCPU.
    pub fn share(&self) -> f64 {
        speed(self.percent)
    }

    /// A throttle as smooth as can be: the shortest slices in which a vCPU still gets something done, and none
    /// longer than an eighth of the blackout that is allowed. The last sign of life before the stop is not older
    /// than that.
    fn smooth(percent: ThrottlePercent, downtime: Duration) -> Self {
        let (sleep, run) = LEAST;
        let fair = run * u32::from(percent.get()) / u32::from(100 - percent.get());
        Self {
            percent,
            slice: fair.max(sleep).min(downtime / 8),
        }
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
    }
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
