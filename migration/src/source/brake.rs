//! The brake: asks the throttling policy how much the guest is to be slowed down, tells the guest, and accounts
//! for what that cost it.

use std::time::{Duration, Instant};

use super::trip::Trip;
use crate::clock::millis;
use crate::event::Event;
use crate::guest::{RunningGuest, ThrottlePercent};
use crate::options::Options;
use crate::policy::{Limits, Look, Throttle, Throttling, throttling};
use crate::predict::Costs;
use crate::wire::frame::MAX_VCPUS;

/// Changes of fewer points than this are not told, but from and to no throttle at all.
const TELLING: u8 = 5;

/// What holds a guest back during a move.
pub(super) struct Brake {
    policy: Box<dyn Throttling>,
    limits: Limits,
    throttle: Throttle,
    /// What was last told.
    told: ThrottlePercent,
    vcpus: usize,
    /// Since when the throttle is what it is, or the round goes on.
    since: Instant,
    /// Percent times seconds, and seconds, of this round so far.
    weighted: (f64, f64),
    /// What each vCPU had slept before the move, and before this round.
    slept: (Vec<Duration>, Vec<Duration>),
}

/// What a round cost the guest, vCPU by vCPU.
pub(super) struct Slowed {
    /// The mean of what was asked for.
    pub percent: Vec<u8>,
    /// How long they slept.
    pub throttled_ms: Vec<f64>,
}

impl Brake {
    pub fn new(options: &Options, vcpus: u32, slept: Vec<Duration>) -> Self {
        Self {
            policy: throttling(options.throttle),
            limits: Limits::from(options),
            throttle: Throttle::default(),
            told: ThrottlePercent::default(),
            vcpus: usize::try_from(vcpus.min(MAX_VCPUS)).unwrap_or(0),
            since: Instant::now(),
            weighted: (0.0, 0.0),
            slept: (slept.clone(), slept),
        }
    }

    /// How often the policy wants to be asked within a round.
    pub fn pace(&self) -> Option<Duration> {
        self.policy.pace()
    }

    /// The throttle in force.
    pub fn throttle(&self) -> Throttle {
        self.throttle
    }

    /// Does what the policy says.
    pub fn apply<G: RunningGuest>(
        &mut self,
        look: &Look,
        costs: &Costs,
        guest: &G,
        trip: &mut Trip<'_>,
    ) {
        let wanted = self.policy.decide(look, costs, &self.limits);
        let percent = wanted.percent.min(self.limits.throttle);
        let wanted = Throttle { percent, ..wanted };
        if wanted == self.throttle {
            return;
        }
        self.weigh();
        self.throttle = wanted;
        guest.throttle(&vec![percent; self.vcpus], wanted.slice);
        let (now, told) = (percent.get(), self.told.get());
        if now.abs_diff(told) >= TELLING || (now == 0) != (told == 0) {
            self.told = percent;
            trip.tell(Event::ThrottleChanged {
                percent: vec![now; self.vcpus],
                reason: reason(look),
            });
        }
    }

    /// Ends the accounts of a round; `slept` is what each vCPU has slept by now.
    pub fn round_over(&mut self, slept: Vec<Duration>, trip: &mut Trip<'_>) -> Slowed {
        self.weigh();
        let (percent, seconds) = std::mem::take(&mut self.weighted);
        // A mean of percentages is one; what is more than nothing is at least one.
        #[expect(clippy::cast_possible_truncation)]
        let mean = (percent / seconds.max(1e-9)).ceil().clamp(0.0, 99.0) as u8;
        let since = |before: &[Duration]| -> Vec<f64> {
            let before = before.iter().chain(std::iter::repeat(&Duration::ZERO));
            let times = slept.iter().zip(before);
            times
                .map(|(now, then)| millis(now.saturating_sub(*then)))
                .collect()
        };
        trip.report.throttled_ms = since(&self.slept.0);
        let throttled_ms = since(&self.slept.1);
        self.slept.1 = slept;
        Slowed {
            percent: vec![mean; self.vcpus],
            throttled_ms,
        }
    }

    /// Counts the time that the throttle has been in force.
    fn weigh(&mut self) {
        let seconds = self.since.elapsed().as_secs_f64();
        self.since = Instant::now();
        self.weighted.0 += f64::from(self.throttle.percent.get()) * seconds;
        self.weighted.1 += seconds;
    }
}

fn reason(look: &Look) -> String {
    format!(
        "of {} pages that round {} has sent so far {} are to be sent again",
        look.pages - look.unsent,
        look.round,
        look.written
    )
}
