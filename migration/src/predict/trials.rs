//! The same move, simulated several times: with different chance, with what the guest writes elsewhere in its memory,
//! over a link that carries less and more within what is known of it, with a guest that writes less and more within
//! what its curve allows.

use std::time::Duration;

use super::costs::{self, Costs};
use super::model::Part;
use super::prediction::{Estimate, Verdict};
use super::question::Question;
use super::random::Random;
use super::simulation::{Setting, Simulated, simulate};
use crate::guest::ThrottlePercent;
use crate::options::Options;
use crate::policy::Decision;

/// Simulations of the move as measured.
const CENTRAL: usize = 9;
/// Cells of each part of memory.
const GRAIN: u32 = 512;
/// To read the log: many times what it takes in a guest of a few GiB, so that nothing hangs on it. See
/// docs/performance.md.
const SYNC: Duration = Duration::from_micros(100);

/// Simulated moves that answer one question.
pub(super) struct Trials {
    options: Options,
    /// As measured.
    central: Vec<Simulated>,
    /// As far from that as may be.
    edges: Vec<Simulated>,
}

impl Trials {
    /// Simulates what is asked, with these options instead of its own.
    pub fn of(question: &Question, options: &Options) -> Self {
        let link = question.bandwidth();
        let writes = &question.writes;
        let (central, edges) = if question.by_descriptor {
            (vec![handed_over(question, link.expected)], Vec::new())
        } else {
            let mut random = Random::new(question.seed);
            let mut run = |writes: &[Part], bandwidth: u64| {
                let anywhere = random.unit();
                let since = question.bursts.map_or(0.0, |_| random.unit());
                let guest = question.guest(writes, question.before.unwrap_or(anywhere), since);
                let setting = Setting {
                    seed: random.seed(),
                    grain: GRAIN,
                    // All that is written is one vCPU's in what is asked.
                    knows_writers: false,
                };
                simulate(&guest, &costs_of(question, bandwidth), options, &setting)
            };
            let central = (0..CENTRAL).map(|_| run(&writes.expected, link.expected));
            let central = central.collect();
            let edges = [
                (&writes.low, link.high),
                (&writes.low, link.expected),
                (&writes.expected, link.high),
                (&writes.expected, link.low),
                (&writes.high, link.expected),
                (&writes.high, link.low),
            ];
            let edges = edges.map(|(writes, bandwidth)| run(writes, bandwidth));
            (central, edges.into())
        };
        Self {
            options: options.clone(),
            central,
            edges,
        }
    }

    /// How a simulated move ends.
    fn verdict_of(&self, run: &Simulated) -> Verdict {
        if !run.completed() || run.blackout > self.options.downtime_limit {
            Verdict::DoesNotConverge
        } else if run.strongest > ThrottlePercent::default() {
            Verdict::ConvergesThrottled
        } else {
            Verdict::Converges
        }
    }

    /// How most of the moves as measured end.
    pub fn verdict(&self) -> Verdict {
        let count = |verdict| {
            let central = self.central.iter();
            central
                .filter(|run| self.verdict_of(run) == verdict)
                .count()
        };
        let all = [
            Verdict::DoesNotConverge,
            Verdict::ConvergesThrottled,
            Verdict::Converges,
        ];
        let most = all.into_iter().max_by_key(|verdict| count(*verdict));
        most.unwrap_or(Verdict::DoesNotConverge)
    }

    /// The moves that end so; those as measured first, and how many these are.
    pub fn alike(&self, verdict: Verdict) -> (Vec<&Simulated>, usize) {
        let such = |run: &&Simulated| self.verdict_of(run) == verdict;
        let mut runs: Vec<_> = self.central.iter().filter(such).collect();
        let central = runs.len();
        runs.extend(self.edges.iter().filter(such));
        (runs, central)
    }

    /// How many moves were simulated.
    pub fn len(&self) -> usize {
        self.central.len() + self.edges.len()
    }
}

/// A figure of several moves: the median of the first `central`, the least and the most of all.
pub(super) fn estimate<T: Copy + PartialOrd>(
    runs: &[&Simulated],
    central: usize,
    figure: impl Fn(&Simulated) -> T,
) -> Option<Estimate<T>> {
    let sorted = |runs: &[&Simulated]| {
        let mut all: Vec<T> = runs.iter().map(|run| figure(run)).collect();
        all.sort_by(|one, other| one.partial_cmp(other).unwrap_or(std::cmp::Ordering::Equal));
        all
    };
    let (middle, all) = (sorted(runs.get(..central)?), sorted(runs));
    Some(Estimate {
        expected: *middle.get(middle.len() / 2)?,
        low: *all.first()?,
        high: *all.last()?,
    })
}

/// What the parts of a blackout cost on a link of that bandwidth, as the engine reckons.
fn costs_of(question: &Question, bandwidth: u64) -> Costs {
    let known = question.options.costs;
    Costs {
        bandwidth,
        round_trip: question.link.round_trip,
        sync: SYNC,
        stop: known.stop,
        save: known.save,
        restore: known.restore,
        resume: known.resume,
        state_bytes: known.state_bytes,
    }
}

/// A move by descriptor: there are no pages to send, so there is nothing to simulate.
fn handed_over(question: &Question, bandwidth: u64) -> Simulated {
    Simulated {
        rounds: Vec::new(),
        decision: Decision::SwitchOver(
            "both ends map the same memory: there are no pages to send".into(),
        ),
        brownout: Duration::ZERO,
        blackout: costs::blackout(0, &costs_of(question, bandwidth)),
        sent_pages: 0,
        throttled: Duration::ZERO,
        lost_by_vcpu: vec![Duration::ZERO],
        strongest: ThrottlePercent::default(),
    }
}
