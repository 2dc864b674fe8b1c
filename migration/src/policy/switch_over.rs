//! What to do at the end of a round: another one, switch over, or give up.

use std::time::Duration;

use super::{Facts, Limits, precise};
use crate::guest::ThrottlePercent;
use crate::options::OnTimeout;
use crate::pages::PAGE_SIZE;
use crate::predict::{self, Costs};

/// What to do next. The texts say why, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Send what is left.
    NextRound,
    /// Stop the guest and send the rest.
    SwitchOver(String),
    /// Leave the guest where it is.
    GiveUp(String),
}

/// The remainder is said to shrink if it reaches a new minimum that is lower by at least a quarter: at that
/// pace all rounds to come take no longer than four times the last. Comparing rates instead would call a
/// guest hopeless that rewrites the same few pages.
const SHRINKS: (u64, u64) = (3, 4);
/// Where the remainder fits the limit already, a tenth less is worth a round: what a hot spot leaves shrinks as slowly
/// as that for half a dozen short rounds, to a third.
const STILL_SHRINKS: (u64, u64) = (9, 10);
/// So many rounds in a row without a new minimum, at full throttle, and nothing will help any more.
const HOPELESS: usize = 5;
/// A round more is worth its while if it shortens the blackout by so much, and by a tenth.
const WORTH: Duration = Duration::from_millis(1);
/// How fast it falls is judged by so many rounds, as a round leaves this part of it more or less by chance.
const LATELY: usize = 3;
const CHANCE: u64 = 50;
/// How fast a guest writes that is held down in slices of a few milliseconds shows in no less time than this: a round
/// that is over sooner may have been all sleep, or none.
const SLICES: Duration = Duration::from_millis(50);
/// What is left goes up and down with what the guest does. So many rounds at most are spent on coming back to
/// the least there was lately.
const WAITS: usize = 3;

/// What to do after the rounds so far, of which there is at least one (else there is nothing to know, and
/// the answer is a round).
pub fn decide(rounds: &[Facts], elapsed: Duration, costs: &Costs, limits: &Limits) -> Decision {
    let Some((last, before)) = rounds.split_last() else {
        return Decision::NextRound;
    };
    let predicted = predict::blackout(last.remainder, costs);
    let bound = bound_reached(rounds.len(), elapsed, limits);
    if predicted <= limits.downtime {
        let pays = match stalled_rounds(rounds, STILL_SHRINKS) {
            0 => pays(last, before, predicted, costs),
            _ if !at_minimum(last, before, costs) => true,
            // It may have been no more than the slices of the throttle.
            1..=WAITS if held_down(last) => pays(last, before, predicted, costs),
            _ => false,
        };
        return match bound.is_none() && (pays || falls(last, before, elapsed, costs)) {
            true => Decision::NextRound,
            false => within_limit(last, predicted, limits),
        };
    }
    let at_least = predict::blackout(0, costs);
    if at_least > limits.downtime && limits.on_timeout == OnTimeout::GiveUp {
        return Decision::GiveUp(format!(
            "a blackout of {} is expected even with no page left to send, the limit is {}: allow a longer downtime",
            ms(at_least),
            ms(limits.downtime)
        ));
    }
    if let Some(bound) = bound {
        return at_bound(&bound, predicted, limits);
    }
    let stalled = stalled_rounds(rounds, SHRINKS);
    let helpless = |round: &Facts| round.throttle >= limits.throttle;
    if stalled >= HOPELESS && rounds.iter().rev().take(HOPELESS).all(helpless) {
        // Beyond the limit in any case, but then as little as can be.
        if limits.on_timeout == OnTimeout::SwitchOver && !at_minimum(last, before, costs) {
            return Decision::NextRound;
        }
        let bound = format!(
            "{stalled} rounds left no less to send, at a throttle of {} %",
            last.throttle.get()
        );
        return at_bound(&bound, predicted, limits);
    }
    Decision::NextRound
}

/// The blackout would be short enough. Is it worth another round to make it shorter still? The limit is not
/// there to be used up; but where the guest is throttled, a round costs it work, and more than three times as much of
/// that as it gains is too much. (At half of the link, where `dirty-limit` holds it, it is up to twice as much: what is
/// on the border is decided by chance, and cannot be predicted.)
fn pays(last: &Facts, before: &[Facts], predicted: Duration, costs: &Costs) -> bool {
    let next = predict::blackout(expected_remainder(last, before, costs), costs);
    let gain = predicted.saturating_sub(next);
    let round = predict::transfer(last.remainder.saturating_mul(PAGE_SIZE), costs.bandwidth);
    let cost = round / 100 * u32::from(last.throttle.get());
    gain >= WORTH && gain >= predicted / 10 && gain >= cost / 3
}

/// Whether a guest at full speed is still worth waiting for: its blackout falls faster, in proportion, than the move
/// gets longer. One that writes about as fast as the link carries leaves a little less with each round, for seconds.
fn falls(last: &Facts, before: &[Facts], elapsed: Duration, costs: &Costs) -> bool {
    let Some(at) = before.len().checked_sub(LATELY) else {
        return false;
    };
    let least = before.iter().map(|round| round.remainder).min();
    let least = least.unwrap_or(last.remainder);
    if held_down(last) || last.remainder > least + least / CHANCE {
        return false;
    }
    let lately = before[at + 1..].iter().chain([last]);
    let time: Duration = lately.map(|round| round.duration).sum();
    let then = predict::blackout(before[at].remainder, costs);
    let gain = then.saturating_sub(predict::blackout(last.remainder, costs));
    let [gain_s, then_s, time_s] = [gain, then, time].map(|time| time.as_secs_f64());
    gain >= WORTH && gain_s * elapsed.as_secs_f64() >= then_s * time_s
}

/// Whether there is about as little left as there was in any of the last rounds, or waiting for that has been
/// in vain.
fn at_minimum(last: &Facts, before: &[Facts], costs: &Costs) -> bool {
    let lately = before.iter().rev().take(WAITS).map(|round| round.remainder);
    let least = lately.min().unwrap_or(last.remainder);
    let (now, then) = (
        predict::blackout(last.remainder, costs),
        predict::blackout(least, costs),
    );
    now.saturating_sub(then) < WORTH.max(now / 10)
}

fn within_limit(last: &Facts, predicted: Duration, limits: &Limits) -> Decision {
    let why = match last.remainder {
        0 => "no page is left to send".to_owned(),
        pages => format!("{pages} pages are left and another round would hardly change that"),
    };
    Decision::SwitchOver(format!(
        "a blackout of {} is expected, within the limit of {}: {why}",
        ms(predicted),
        ms(limits.downtime)
    ))
}

/// How many pages the next round would leave: it takes as long as sending what is left now, and pages are
/// written as fast as in the last one, or as lately while the guest is held down.
fn expected_remainder(last: &Facts, before: &[Facts], costs: &Costs) -> u64 {
    let bytes = last.remainder.saturating_mul(PAGE_SIZE);
    let next = predict::transfer(bytes, costs.bandwidth) + costs.round_trip + costs.sync;
    let seconds = |time: Duration| time.as_secs_f64().max(1e-6);
    let (mut written, mut time) = (precise(last.remainder), seconds(last.duration));
    let lately = before.iter().rev();
    for round in lately.take_while(|round| held_down(last) && held_down(round)) {
        let missing = (SLICES.as_secs_f64() - time).max(0.0);
        let share = (missing / seconds(round.duration)).min(1.0);
        written += precise(round.remainder) * share;
        time += seconds(round.duration) * share;
    }
    let rate = written / time;
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

/// Whether the guest was held down at the end of a round.
fn held_down(round: &Facts) -> bool {
    round.throttle > ThrottlePercent::default()
}

/// How many rounds ago the remainder last reached a new minimum, below so large a part of the one before.
fn stalled_rounds(rounds: &[Facts], part: (u64, u64)) -> usize {
    let mut least = rounds.first().map_or(0, |first| first.pages);
    let mut stalled = 0;
    for round in rounds {
        if round.remainder * part.1 < least * part.0 || round.remainder == 0 {
            least = round.remainder;
            stalled = 0;
        } else {
            stalled += 1;
        }
    }
    stalled
}

/// A text that says which bound has been reached, if any.
pub fn bound_reached(rounds: usize, elapsed: Duration, limits: &Limits) -> Option<String> {
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

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}
