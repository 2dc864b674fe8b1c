//! The answer: what a move will cost, each figure with what it may come to at least and at most.
//!
//! What is expected is the median of the simulated moves ([`super::trials`]) with everything as it was measured; the
//! interval holds all that end alike.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::costs::RUN_HEADER;
use super::question::Question;
use super::simulation::{Simulated, whole};
use super::trials::{Trials, estimate};
use crate::clock::millis;
use crate::dirty_rate::Rhythm;
use crate::options::{Options, StateCosts, ThrottlePolicy};
use crate::pages::PAGE_SIZE;
use crate::policy::Decision;

/// To make the guest at the destination, between HELLO and ACCEPT, in milliseconds.
const PREPARE: Estimate<f64> = Estimate {
    expected: 4.0,
    low: 1.0,
    high: 25.0,
};
/// Answers that are waited for until the first page goes: to HELLO and to three PINGs.
const ANSWERS: f64 = 4.0;
/// What was seen of [`StateCosts`] goes from so small a part of them, where processors of its own wake up in
/// microseconds, to twice as much, where the host is a guest itself and its idle processors have to be scheduled first.
/// In the middle are 2.4 ms, the median of 71 moves between such hosts.
const LEAST_STATE: f64 = 1.0 / 6.0;
const MOST_STATE: f64 = 2.0;

/// A figure, and between what it may lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Estimate<T> {
    /// What is to be expected.
    pub expected: T,
    /// The least.
    pub low: T,
    /// The most.
    pub high: T,
}

impl Estimate<f64> {
    fn plus(self, more: Self) -> Self {
        Self {
            expected: self.expected + more.expected,
            low: self.low + more.low,
            high: self.high + more.high,
        }
    }
}

/// How a move will end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Within the limits, with the guest at full speed.
    Converges,
    /// Within the limits, but the guest is slowed down for it.
    ConvergesThrottled,
    /// It is given up; or switched over beyond the limit on the downtime, where that was asked for.
    DoesNotConverge,
}

/// What a move will cost. Names that a report has too mean the same here (report.schema.json).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// How it will end.
    pub verdict: Verdict,
    /// Whether the guest gets there within the limits.
    pub converges: bool,
    /// Whether it gets there at all.
    pub completes: bool,
    /// The share of the simulated moves that end like that, 0 to 1.
    pub certainty: f64,
    /// Why.
    pub reason: String,
    /// From the call until the guest runs on the destination, or the move is given up.
    pub total_ms: Estimate<f64>,
    /// Connecting, and saying what the guest is.
    pub setup_ms: Estimate<f64>,
    /// Dirty log on, guest running.
    pub brownout_ms: Estimate<f64>,
    /// How long the guest stands still; of a move that is given up, what it would have been then.
    pub blackout_ms: Estimate<f64>,
    /// What was asked for.
    pub downtime_limit_ms: f64,
    /// Rounds, the one with the guest stopped counted.
    pub rounds: Estimate<u64>,
    /// All bytes that the source sends.
    pub wire_bytes: Estimate<u64>,
    /// The strongest throttle.
    pub throttle_percent: Estimate<u64>,
    /// How long the vCPU that is slowed down most is kept from running.
    pub throttled_ms: Estimate<f64>,
    /// How much less the guest gets done during the move, by throttling, while it stands still, and since the move works
    /// on processors that it runs on, in percent: the mean over its vCPUs.
    pub guest_work_lost_percent: Estimate<f64>,
    /// The last of these by itself: so much less processor time has the guest while streams send, in percent.
    #[serde(default)]
    pub crowded_out_percent: f64,
    /// Guest memory.
    pub memory_bytes: u64,
    /// Pages never touched, not even read.
    pub untouched_pages: u64,
    /// Pages of zeros before the move.
    pub zero_pages: u64,
    /// Bytes a second that the link was taken to carry of this move.
    pub bandwidth_bytes_per_s: Estimate<u64>,
    /// A message there and its answer back.
    pub round_trip_ms: f64,
    /// How far the curve of the guest that was simulated is from the one measured, in percent.
    pub curve_error_percent: f64,
    /// The bursts in which the guest writes; nothing if it writes all the time, or if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bursts: Option<Rhythm>,
}

/// Says what a move will cost. The same for the same question; takes about a second at most, whatever the guest's size.
pub fn predict(question: &Question) -> Prediction {
    let trials = Trials::of(question, &question.options);
    let mut prediction = told(question, &trials);
    if !prediction.converges && question.options.throttle == ThrottlePolicy::Off {
        let throttled = Options {
            throttle: ThrottlePolicy::Auto,
            ..question.options.clone()
        };
        let throttled = told(question, &Trials::of(question, &throttled));
        prediction.reason = format!(
            "will not converge without throttling: {}; {}",
            prediction.reason,
            remedy(&throttled)
        );
    }
    prediction
}

/// What a policy that slows the guest down would make of it.
fn remedy(throttled: &Prediction) -> String {
    if !throttled.converges {
        return format!("nor with --throttle auto: {}", throttled.reason);
    }
    format!(
        "with --throttle auto it would take {:.1} s, at {} % at most, and lose {:.1} s of its work",
        throttled.total_ms.expected / 1000.0,
        throttled.throttle_percent.expected,
        throttled.throttled_ms.expected / 1000.0
    )
}

/// What simulated moves come to.
fn told(question: &Question, trials: &Trials) -> Prediction {
    let verdict = trials.verdict();
    let (runs, central) = trials.alike(verdict);
    let figure = |figure: &dyn Fn(&Simulated) -> f64| {
        let nothing = Estimate {
            expected: 0.0,
            low: 0.0,
            high: 0.0,
        };
        estimate(&runs, central, figure).unwrap_or(nothing)
    };
    let counted = |count: &dyn Fn(&Simulated) -> f64| {
        let Estimate {
            expected,
            low,
            high,
        } = figure(count);
        Estimate {
            expected: whole(expected),
            low: whole(low),
            high: whole(high),
        }
    };
    let typical = typical(&runs[..central.min(runs.len())]);
    let completes = typical.is_some_and(Simulated::completed);
    let link = &question.link;
    let round_trip = millis(link.round_trip);
    let setup = spread(millis(link.connect) + round_trip, 0.5, 3.0);
    let agreeing = spread(ANSWERS * round_trip, 1.0, 1.5).plus(PREPARE);
    let brownout = figure(&|run| millis(run.brownout)).plus(agreeing);
    let blackout = figure(&|run| millis(run.blackout)).plus(state_spread(&question.options.costs));
    let total = setup.plus(brownout);
    let bandwidth = question.bandwidth();
    let state = question.options.costs.state_bytes as f64;
    Prediction {
        verdict,
        converges: verdict != Verdict::DoesNotConverge,
        completes,
        certainty: runs.len() as f64 / trials.len().max(1) as f64,
        reason: typical.map_or(String::new(), reason),
        total_ms: match completes {
            true => total.plus(blackout),
            false => total,
        },
        setup_ms: setup,
        brownout_ms: brownout,
        blackout_ms: blackout,
        downtime_limit_ms: millis(question.options.downtime_limit),
        rounds: counted(&|run| run.rounds.len() as f64 + f64::from(u8::from(run.completed()))),
        wire_bytes: counted(&|run| run.sent_pages as f64 * (PAGE_SIZE + RUN_HEADER) as f64 + state),
        throttle_percent: counted(&|run| f64::from(run.strongest.get())),
        throttled_ms: figure(&|run| millis(run.throttled)),
        guest_work_lost_percent: figure(&|run| {
            let slept: Duration = run.lost_by_vcpu.iter().sum();
            let slept = slept.as_secs_f64() / run.lost_by_vcpu.len().max(1) as f64;
            let total = run.total().as_secs_f64();
            // What is more than the brown-out is the blackout, where there is one.
            100.0 * (slept + total - run.brownout.as_secs_f64()) / total.max(1e-9)
        }),
        crowded_out_percent: 100.0 * (1.0 - question.left),
        memory_bytes: question.memory.bytes,
        untouched_pages: (question.memory.bytes / PAGE_SIZE).saturating_sub(question.touched()),
        zero_pages: question.zero_pages(),
        bandwidth_bytes_per_s: Estimate {
            expected: bandwidth.expected,
            low: bandwidth.low,
            high: bandwidth.high,
        },
        round_trip_ms: round_trip,
        curve_error_percent: question.writes.error * 100.0,
        bursts: question.bursts,
    }
}

/// The move in the middle of these.
fn typical<'a>(runs: &[&'a Simulated]) -> Option<&'a Simulated> {
    let mut runs = runs.to_vec();
    runs.sort_by_key(|run| run.total());
    runs.get(runs.len() / 2).copied()
}

fn reason(run: &Simulated) -> String {
    let (Decision::SwitchOver(why) | Decision::GiveUp(why)) = &run.decision else {
        return String::new();
    };
    let Some(last) = run.rounds.last() else {
        return why.clone();
    };
    let seconds = last.duration.as_secs_f64().max(1e-6);
    let mega = |pages: u64| pages as f64 * PAGE_SIZE as f64 / seconds / 1e6;
    format!(
        "{why} (in the last round the guest writes {:.0} MB/s while {:.0} MB/s are sent)",
        mega(last.remainder),
        mega(last.pages)
    )
}

/// How far the steps of the blackout may be from what the policies reckon with.
fn state_spread(costs: &StateCosts) -> Estimate<f64> {
    let StateCosts {
        stop,
        save,
        restore,
        resume,
        state_bytes: _,
    } = *costs;
    let all = millis([stop, save, restore, resume].iter().sum::<Duration>());
    Estimate {
        expected: 0.0,
        low: all * (LEAST_STATE - 1.0),
        high: all * (MOST_STATE - 1.0),
    }
}

fn spread(expected: f64, low: f64, high: f64) -> Estimate<f64> {
    Estimate {
        expected,
        low: expected * low,
        high: expected * high,
    }
}
