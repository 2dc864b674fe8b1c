//! A simulated guest on a simulated link, page by page and millisecond by millisecond: what a throttling policy
//! costs in time, bytes and work of the guest, without a clock or a thread.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "each test uses its part of it; numbers are small"
)]

use std::fmt;
use std::time::Duration;

use migration::options::{Options, ThrottlePolicy};
use migration::policy::{Decision, Facts, Limits, Look, Throttle, decide, throttling};
use migration::predict::{self, Costs};

/// How the guest writes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pattern {
    /// Anywhere in its working set.
    Uniform,
    /// Page after page of it, round and round.
    Sweep,
    /// Nine of ten writes go to one tenth of it.
    HotSpot,
    /// Anywhere, for one second out of three.
    Bursts,
}

#[derive(Debug, Clone, Copy)]
pub struct Guest {
    pub pages: u64,
    /// First page and number of pages.
    pub working_set: (u64, u64),
    pub pages_per_s: f64,
    pub pattern: Pattern,
}

/// A move that is over.
pub struct Ran {
    pub rounds: Vec<Facts>,
    pub throttles: Vec<Throttle>,
    pub total_s: f64,
    pub sent: u64,
    /// Seconds of the guest's work that throttling cost it.
    pub lost_s: f64,
    pub predicted: Duration,
    pub decision: Decision,
}

impl fmt::Debug for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.1} s, lost {:.2} s, {:?} after",
            self.total_s, self.lost_s, self.decision
        )?;
        self.rounds.iter().try_for_each(|round| {
            let percent = round.throttle.get();
            write!(f, " {}/{} ({percent} %)", round.pages, round.remainder)
        })
    }
}

struct Sim {
    guest: Guest,
    unsent: Vec<bool>,
    dirty: Vec<bool>,
    written: u64,
    seed: u64,
    position: u64,
    owed: f64,
    now_ms: u64,
    lost_ms: f64,
    throttle: Throttle,
}

impl Sim {
    fn random(&mut self) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed
    }

    fn page(&mut self) -> u64 {
        let (first, pages) = self.guest.working_set;
        let at = match self.guest.pattern {
            Pattern::Uniform | Pattern::Bursts => self.random() % pages,
            Pattern::Sweep => {
                self.position = (self.position + 1) % pages;
                self.position
            }
            Pattern::HotSpot => {
                let hot = (pages / 10).max(1);
                match self.random() % 10 {
                    0 => self.random() % pages,
                    _ => pages / 2 + self.random() % hot,
                }
            }
        };
        first + at
    }

    /// A millisecond of the guest's life.
    fn live(&mut self) {
        let asleep = f64::from(self.throttle.percent.get()) / 100.0;
        let on = self.guest.pattern != Pattern::Bursts || self.now_ms % 3000 < 1000;
        self.now_ms += 1;
        if on {
            self.lost_ms += asleep;
            self.owed += self.guest.pages_per_s / 1000.0 * (1.0 - asleep);
        }
        while self.owed >= 1.0 {
            self.owed -= 1.0;
            let page = self.page() as usize;
            if !self.unsent[page] && !self.dirty[page] {
                self.dirty[page] = true;
                self.written += 1;
            }
        }
    }
}

/// Moves a guest until the policy ends it.
pub fn simulate(guest: Guest, policy: ThrottlePolicy, costs: &Costs, options: &Options) -> Ran {
    let options = Options {
        throttle: policy,
        ..options.clone()
    };
    let limits = Limits::from(&options);
    let mut policy = throttling(policy);
    let n = guest.pages as usize;
    let mut sim = Sim {
        guest,
        unsent: vec![false; n],
        dirty: vec![true; n],
        written: 0,
        seed: 0x9e37_79b9_7f4a_7c15,
        position: 0,
        owed: 0.0,
        now_ms: 0,
        lost_ms: 0.0,
        throttle: Throttle::default(),
    };
    let per_ms = costs.bandwidth as f64 / 4108.0 / 1000.0;
    let mut ran = Ran {
        rounds: Vec::new(),
        throttles: Vec::new(),
        total_s: 0.0,
        sent: 0,
        lost_s: 0.0,
        predicted: Duration::ZERO,
        decision: Decision::NextRound,
    };
    // As the engine: until the first round has shown it, nobody knows the bandwidth.
    let mut known = Costs {
        bandwidth: 0,
        ..*costs
    };
    loop {
        let began = sim.now_ms;
        let todo: Vec<usize> = (0..n).filter(|&page| sim.dirty[page]).collect();
        sim.written = 0;
        for &page in &todo {
            sim.dirty[page] = false;
            sim.unsent[page] = true;
        }
        let mut next = 0;
        let mut budget = 0.0;
        let mut asked = began;
        let look = |sim: &Sim, next: usize, sent: u64, over: bool, round: usize| Look {
            elapsed: Duration::from_millis(sim.now_ms),
            round: round as u32,
            duration: Duration::from_millis(sim.now_ms - began),
            pages: todo.len() as u64,
            unsent: (todo.len() - next) as u64,
            written: sim.written,
            wire_bytes: sent * 4108,
            over,
            throttle: sim.throttle,
        };
        let overhead = costs.round_trip.as_millis() as u64 * 2 + costs.sync.as_millis() as u64;
        while next < todo.len() {
            budget += per_ms;
            while budget >= 1.0 && next < todo.len() {
                sim.unsent[todo[next]] = false;
                next += 1;
                budget -= 1.0;
                ran.sent += 1;
            }
            sim.live();
            let pace = policy.pace().map(|pace| pace.as_millis() as u64);
            if pace.is_some_and(|pace| sim.now_ms - asked >= pace) && next < todo.len() {
                asked = sim.now_ms;
                let at = look(&sim, next, ran.sent, false, ran.rounds.len());
                let wanted = policy.decide(&at, &known, &limits);
                ran.throttles.push(wanted);
                sim.throttle = wanted;
            }
        }
        for _ in 0..overhead {
            sim.live();
        }
        known = *costs;
        ran.rounds.push(Facts {
            pages: todo.len() as u64,
            remainder: sim.written,
            duration: Duration::from_millis(sim.now_ms - began),
            throttle: sim.throttle.percent,
        });
        let elapsed = Duration::from_millis(sim.now_ms);
        match decide(&ran.rounds, elapsed, &known, &limits) {
            Decision::NextRound => {
                let at = look(&sim, next, ran.sent, true, ran.rounds.len() - 1);
                let wanted = policy.decide(&at, &known, &limits);
                ran.throttles.push(wanted);
                sim.throttle = wanted;
            }
            decision => {
                ran.predicted = predict::blackout(sim.written, &known);
                ran.total_s = (elapsed + ran.predicted).as_secs_f64();
                ran.lost_s = sim.lost_ms / 1000.0;
                ran.sent += sim.written;
                ran.decision = decision;
                return ran;
            }
        }
    }
}
