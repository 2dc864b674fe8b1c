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
    /// What was last told, vCPU by vCPU.
    told: Vec<ThrottlePercent>,
    vcpus: usize,
    /// Since when the throttle is what it is, or the round goes on.
    since: Instant,
    /// Percent times seconds of each vCPU, and seconds, of this round so far.
    weighted: (Vec<f64>, f64),
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
        let vcpus = usize::try_from(vcpus.min(MAX_VCPUS)).unwrap_or(0);
        Self {
            policy: throttling(options.throttle),
            limits: Limits::from(options),
            throttle: Throttle::default(),
            told: vec![ThrottlePercent::default(); vcpus],
            vcpus,
            since: Instant::now(),
            weighted: (vec![0.0; vcpus], 0.0),
            slept: (slept.clone(), slept),
        }
    }

    /// How often the policy wants to be asked within a round.
    pub fn pace(&self) -> Option<Duration> {
        self.policy.pace()
    }

    /// The throttle in force.
    pub fn throttle(&self) -> Throttle {
        self.throttle.clone()
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
        let percents = wanted.percents.at_most(self.limits.throttle);
        let list = percents.list(self.vcpus);
        let wanted = Throttle { percents, ..wanted };
        if wanted == self.throttle {
            return;
        }
        self.weigh();
        self.throttle = wanted;
        guest.throttle(&list, self.throttle.slice);
        if differs(&list, &self.told) {
            trip.tell(Event::ThrottleChanged {
                percent: list.iter().map(|percent| percent.get()).collect(),
                reason: reason(look),
            });
            self.told = list;
        }
    }

    /// Ends the accounts of a round; `slept` is what each vCPU has slept by now.
    pub fn round_over(&mut self, slept: Vec<Duration>, trip: &mut Trip<'_>) -> Slowed {
        self.weigh();
        let none = (vec![0.0; self.vcpus], 0.0);
        let (percents, seconds) = std::mem::replace(&mut self.weighted, none);
        let mean = |percent: &f64| {
            // A mean of percentages is one; what is more than nothing is at least one.
            #[expect(clippy::cast_possible_truncation)]
            let mean = (percent / seconds.max(1e-9)).ceil().clamp(0.0, 99.0) as u8;
            mean
        };
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
            percent: percents.iter().map(mean).collect(),
            throttled_ms,
        }
    }

    /// Counts the time that the throttle has been in force.
    fn weigh(&mut self) {
        let seconds = self.since.elapsed().as_secs_f64();
        self.since = Instant::now();
        for (vcpu, weighted) in self.weighted.0.iter_mut().enumerate() {
            *weighted += f64::from(self.throttle.percents.of(vcpu).get()) * seconds;
        }
        self.weighted.1 += seconds;
    }
}

/// Whether a person is to be told.
fn differs(now: &[ThrottlePercent], told: &[ThrottlePercent]) -> bool {
    now.iter().zip(told).any(|(now, told)| {
        let (now, told) = (now.get(), told.get());
        now.abs_diff(told) >= TELLING || (now == 0) != (told == 0)
    })
}

fn reason(look: &Look) -> String {
    format!(
        "of {} pages that round {} has sent so far {} are to be sent again",
        look.pages - look.unsent,
        look.round,
        look.written
    )
}
