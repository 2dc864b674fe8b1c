//! What to do at the end of a round: another one, switch over, slow the guest down, or give up. Functions
//! of numbers, without a clock or a socket in them.

use std::time::Duration;

use crate::guest::ThrottlePercent;
use crate::options::{OnTimeout, Options};
use crate::pages::PAGE_SIZE;
use crate::predict::{self, Costs};

/// What a round showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Pages that it dealt with.
    pub pages: u64,
    /// Pages left at its end: written during it.
    pub remainder: u64,
    /// How long it took, until its last byte had arrived.
    pub duration: Duration,
    /// How much vCPUs were slowed down during it.
    pub throttle: ThrottlePercent,
}

/// What is asked for, as far as it bears on the decision.
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
    /// The most throttling.
    pub throttle: ThrottlePercent,
}

impl From<&Options> for Limits {
    fn from(options: &Options) -> Self {
        Self {
            downtime: options.downtime_limit,
            rounds: options.max_rounds,
            total: options.max_total,
            on_timeout: options.on_timeout,
            throttle: options.max_throttle,
        }
    }
}

/// What to do next. The texts say why, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Send what is left, the guest running as it does.
    NextRound,
    /// Stop the guest and send the rest.
    SwitchOver(String),
    /// Send what is left, with the vCPUs slowed down so much from now on.
    Throttle(ThrottlePercent, String),
    /// Leave the guest where it is.
    GiveUp(String),
}

/// The remainder is said to shrink if it reaches a new minimum that is lower by at least a quarter: at that
/// pace all rounds to come take no longer than four times the last. Comparing rates instead would call a
/// guest hopeless that rewrites the same few pages.
const SHRINKS: (u64, u64) = (3, 4);
/// So many rounds in a row without a new minimum, at full throttle, and nothing will help any more.
const HOPELESS: usize = 5;
/// A round more is worth its while if it shortens the blackout by so much, and by a tenth.
const WORTH: Duration = Duration::from_millis(1);
/// The first throttling; each further step halves what is left of the guest's speed.
const FIRST_STEP: u8 = 30;
/// While throttled, the guest may write this share (1/2) of what the link carries; more would converge too
/// slowly, less would cost the guest more than needed.
const AIM: f64 = 0.5;

/// What to do after the rounds so far, of which there is at least one (else there is nothing to know, and
/// the answer is a round).
pub fn decide(rounds: &[Facts], elapsed: Duration, costs: &Costs, limits: &Limits) -> Decision {
    let Some(last) = rounds.last() else {
        return Decision::NextRound;
    };
    let predicted = predict::blackout(last.remainder, costs);
    let stalled = stalled_rounds(rounds);
    if predicted <= limits.downtime {
        return within_limit(rounds, elapsed, costs, limits, stalled > 0);
    }
    let at_least = predict::blackout(0, costs);
    if at_least > limits.downtime && limits.on_timeout == OnTimeout::GiveUp {
        return Decision::GiveUp(format!(
            "a blackout of {} is expected even with no page left to send, the limit is {}: allow a longer downtime",
            ms(at_least),
            ms(limits.downtime)
        ));
    }
    if let Some(bound) = bound_reached(rounds.len(), elapsed, limits) {
        return at_bound(&bound, predicted, limits);
    }
    if stalled == 0 {
        return ease(rounds, costs).unwrap_or(Decision::NextRound);
    }
    if last.throttle < limits.throttle {
        return Decision::Throttle(raised(last, costs).min(limits.throttle), slower(last));
    }
    if stalled >= HOPELESS
        && rounds
            .iter()
            .rev()
            .take(HOPELESS)
            .all(|r| r.throttle == last.throttle)
    {
        let bound = format!(
            "{stalled} rounds left no less to send, at a throttle of {} %",
            last.throttle.get()
        );
        return at_bound(&bound, predicted, limits);
    }
    Decision::NextRound
}

/// The blackout would be short enough. Is it worth another round to make it shorter still?
fn within_limit(
    rounds: &[Facts],
    elapsed: Duration,
    costs: &Costs,
    limits: &Limits,
    stalled: bool,
) -> Decision {
    let Some(last) = rounds.last() else {
        return Decision::NextRound;
    };
    let predicted = predict::blackout(last.remainder, costs);
    let bounded = bound_reached(rounds.len(), elapsed, limits).is_some();
    let next = predict::blackout(expected_remainder(last, costs), costs);
    let gain = predicted.saturating_sub(next);
    if !stalled && !bounded && gain >= WORTH && gain >= predicted / 10 {
        return ease(rounds, costs).unwrap_or(Decision::NextRound);
    }
    let why = if last.remainder == 0 {
        "no page is left to send".to_owned()
    } else {
        format!(
            "{} pages are left and another round would hardly change that",
            last.remainder
        )
    };
    Decision::SwitchOver(format!(
        "a blackout of {} is expected, within the limit of {}: {why}",
        ms(predicted),
        ms(limits.downtime)
    ))
}

/// How many pages the next round would leave: it takes as long as sending what is left now, and pages are
/// written as fast as in the last one.
fn expected_remainder(last: &Facts, costs: &Costs) -> u64 {
    let bytes = last.remainder.saturating_mul(PAGE_SIZE);
    let next = predict::transfer(bytes, costs.bandwidth) + costs.round_trip + costs.sync;
    let rate = pages_per_second(last);
    // Never more than there is now: a working set is rewritten, it does not grow.
    let expected = (rate * next.as_secs_f64()).ceil();
    if expected >= precise(last.remainder) {
        last.remainder
    } else {
        // Between 0 and the remainder, so it converts exactly.
        #[expect(clippy::cast_possible_truncation)]
        let expected = expected as u64;
        expected
    }
}

/// How many rounds ago the remainder last reached a new minimum.
fn stalled_rounds(rounds: &[Facts]) -> usize {
    let mut least = rounds.first().map_or(0, |first| first.pages);
    let mut stalled = 0;
    for round in rounds {
        if round.remainder * SHRINKS.1 < least * SHRINKS.0 || round.remainder == 0 {
            least = round.remainder;
            stalled = 0;
        } else {
            stalled += 1;
        }
    }
    stalled
}

/// A text that says which bound has been reached, if any.
fn bound_reached(rounds: usize, elapsed: Duration, limits: &Limits) -> Option<String> {
    if u32::try_from(rounds).unwrap_or(u32::MAX) >= limits.rounds {
        return Some(format!(
            "{rounds} rounds are over, {} were allowed",
            limits.rounds
        ));
    }
    (elapsed >= limits.total).then(|| {
        format!(
            "{:.1} s are over, {:.1} s were allowed",
            elapsed.as_secs_f64(),
            limits.total.as_secs_f64()
        )
    })
}

/// The bound is reached with the blackout still too long.
fn at_bound(bound: &str, predicted: Duration, limits: &Limits) -> Decision {
    let expected = format!(
        "{bound}, and a blackout of {} is expected, beyond the limit of {}",
        ms(predicted),
        ms(limits.downtime)
    );
    match limits.on_timeout {
        OnTimeout::SwitchOver => {
            Decision::SwitchOver(format!("{expected}: switched over as asked"))
        }
        OnTimeout::GiveUp => Decision::GiveUp(format!(
            "{expected}: allow a longer downtime, more time or rounds, or ask to switch over at the bound"
        )),
    }
}

/// The throttle that should make the remainder shrink: a step more, or at once what the measured rate asks
/// for. That rate is a lower bound, since pages written twice in a round count once.
fn raised(last: &Facts, costs: &Costs) -> ThrottlePercent {
    let now = last.throttle.get();
    let step = match now {
        0 => FIRST_STEP,
        _ => now + (100 - now).div_ceil(2),
    };
    ThrottlePercent::new(step).max(fitting(last, costs))
}

/// A throttle found needlessly strong is lowered: the guest wrote less than a quarter of what was sent, two
/// rounds in a row, and would still do so much less than that at the lower one.
fn ease(rounds: &[Facts], costs: &Costs) -> Option<Decision> {
    let [.., before, last] = rounds else {
        return None;
    };
    let low = |facts: &Facts| facts.remainder < facts.pages / 4;
    if last.throttle.get() == 0 || before.throttle != last.throttle || !low(before) || !low(last) {
        return None;
    }
    let fitting = fitting(last, costs);
    (fitting.get() + 5 <= last.throttle.get()).then(|| {
        let why = format!(
            "the guest writes {} of what the link carries",
            percent(written_share(last))
        );
        Decision::Throttle(fitting, why)
    })
}

/// The throttle at which the guest, as it behaved in the last round, would write [`AIM`] of the link.
fn fitting(last: &Facts, costs: &Costs) -> ThrottlePercent {
    let runs = f64::from(100 - last.throttle.get()) / 100.0;
    let full_speed = pages_per_second(last) / runs * precise(PAGE_SIZE);
    let share = AIM * precise(costs.bandwidth) / full_speed.max(1.0);
    // Clamped to 0..=99 first, so it converts exactly.
    #[expect(clippy::cast_possible_truncation)]
    let percent = (100.0 * (1.0 - share)).round().clamp(0.0, 99.0) as u8;
    ThrottlePercent::new(percent)
}

fn slower(last: &Facts) -> String {
    format!(
        "{} pages are left after a round of {}: that does not shrink by itself",
        last.remainder, last.pages
    )
}

fn pages_per_second(facts: &Facts) -> f64 {
    precise(facts.remainder) / facts.duration.as_secs_f64().max(1e-6)
}

fn written_share(facts: &Facts) -> f64 {
    precise(facts.remainder) / precise(facts.pages.max(1))
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

/// A count as a float; beyond 2^53 the last digits do not matter here.
fn precise(count: u64) -> f64 {
    count as f64
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}
