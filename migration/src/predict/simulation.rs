//! A move of a [`GuestModel`] over a link of a given bandwidth, round by round, as the engine makes it.
//!
//! Nothing is simulated that does not matter: not each write, but how many pages are clean, and where. Memory is looked
//! at in cells of neighbouring pages, at most [`Setting::grain`] of them in each of its parts, so a guest of any size
//! takes as long; and times and numbers do not hang on how many pages a cell has.

mod live;
mod slices;

use std::time::Duration;

use self::live::Live;
use self::slices::Slices;
use super::costs::{self, Costs, RUN_HEADER};
use super::model::GuestModel;
use super::random::Random;
use crate::guest::ThrottlePercent;
use crate::options::{OnTimeout, Options};
use crate::pages::PAGE_SIZE;
use crate::policy::{Decision, Facts, Limits, Look, Throttle, Throttling, decide, throttling};
use crate::source::{AHEAD_PAGES, AHEAD_TIME, LOOK};

/// The most rounds that a simulated move takes, whatever is allowed: one that needs more does not end.
pub const MAX_ROUNDS: u32 = 1000;
/// A policy is asked no more often than this, in seconds, and later in a long round by this part of its time so far: a
/// round of any length is then over after some thousand looks.
const SHORTEST: f64 = 1e-3;
const LOOKS: f64 = 4096.0;
/// To see that a page is all zeros takes so many seconds; see docs/performance.md.
const ZERO_SCAN: f64 = 2e-7;

/// What does not matter to a real move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// Where chance begins.
    pub seed: u64,
    /// The most cells in each part of the guest's memory.
    pub grain: u32,
    /// The dirty log knows which vCPU wrote a page, as that on rings does.
    pub knows_writers: bool,
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            seed: 1,
            grain: 1024,
            knows_writers: false,
        }
    }
}

/// A simulated move that is over.
#[derive(Debug, Clone)]
pub struct Simulated {
    /// Its rounds while the guest ran.
    pub rounds: Vec<Facts>,
    /// How it ended.
    pub decision: Decision,
    /// From the start of the dirty log until the guest is stopped, or the move given up.
    pub brownout: Duration,
    /// How long the guest stands still; what would be expected, for a move that is given up.
    pub blackout: Duration,
    /// Pages sent, those of the blackout counted.
    pub sent_pages: u64,
    /// Of the guest's work, what throttling cost the vCPU that it cost most: so long would it take at full speed.
    pub throttled: Duration,
    /// The same of each vCPU, with what the move's own use of processors cost it.
    pub lost_by_vcpu: Vec<Duration>,
    /// The strongest throttle.
    pub strongest: ThrottlePercent,
}

impl Simulated {
    /// Whether the guest was moved.
    pub fn completed(&self) -> bool {
        matches!(self.decision, Decision::SwitchOver(_))
    }

    /// Brown-out and, if the guest was moved, blackout.
    pub fn total(&self) -> Duration {
        match self.completed() {
            true => self.brownout + self.blackout,
            false => self.brownout,
        }
    }
}

/// Moves a guest until the policies end it. The same for the same arguments.
pub fn simulate(
    guest: &GuestModel,
    costs: &Costs,
    options: &Options,
    setting: &Setting,
) -> Simulated {
    let mut limits = Limits::from(options);
    limits.rounds = limits.rounds.min(MAX_ROUNDS);
    let mut random = Random::new(setting.seed);
    let live = |part| Live::new(part, setting.grain.max(1), &mut random);
    let run = Run {
        parts: guest.parts.iter().map(live).collect(),
        guest,
        costs,
        // As the engine: until the first round has shown it, nobody knows the bandwidth.
        known: Costs {
            bandwidth: 0,
            ..*costs
        },
        policy: throttling(options.throttle),
        limits,
        throttle: Throttle::default(),
        now: 0.0,
        slices: (0..guest.vcpus())
            .map(|_| Slices::new(random.unit()))
            .collect(),
        throttled: vec![0.0; guest.vcpus()],
        lost: vec![0.0; guest.vcpus()],
        logged: vec![0.0; guest.vcpus()],
        knows_writers: setting.knows_writers,
        sent: 0.0,
        strongest: ThrottlePercent::default(),
        rounds: Vec::new(),
    };
    run.play()
}

/// A move under way. Times are seconds since the dirty log was started.
struct Run<'a> {
    guest: &'a GuestModel,
    parts: Vec<Live<'a>>,
    /// The link as it is, and as the engine knows it.
    costs: &'a Costs,
    known: Costs,
    policy: Box<dyn Throttling>,
    limits: Limits,
    throttle: Throttle,
    now: f64,
    /// Of each vCPU.
    slices: Vec<Slices>,
    throttled: Vec<f64>,
    lost: Vec<f64>,
    /// Pages that each vCPU has logged.
    logged: Vec<f64>,
    knows_writers: bool,
    /// Pages.
    sent: f64,
    strongest: ThrottlePercent,
    rounds: Vec<Facts>,
}

/// A round under way.
struct Round {
    began: f64,
    pages: f64,
    unsent: f64,
    /// Pages left to the next round.
    rewritten: f64,
    /// When the policy was last asked.
    asked: f64,
}

impl Run<'_> {
    fn play(mut self) -> Simulated {
        loop {
            let round = match self.round() {
                Ok(round) => round,
                Err(decision) => return self.over(decision),
            };
            self.known = *self.costs;
            match decide(&self.rounds, duration(self.now), &self.known, &self.limits) {
                Decision::NextRound => {}
                decision => return self.over(decision),
            }
            self.ask(&round, true);
        }
    }

    /// Sends all pages; an error is the end of the move, if that comes in the middle.
    fn round(&mut self) -> Result<Round, Decision> {
        let first = self.rounds.is_empty();
        let pages = self.parts.iter_mut().map(Live::begin_round).sum();
        let mut round = Round {
            began: self.now,
            pages,
            unsent: pages,
            rewritten: 0.0,
            asked: self.now,
        };
        let page = (PAGE_SIZE + RUN_HEADER) as f64 / self.costs.bandwidth.max(1) as f64;
        // Where pages lie does not matter to what is looked at: before the first look, the engine sends others.
        let look = LOOK.as_secs_f64();
        let looked = match first {
            true => 0.0,
            false => (1.0 - look / (pages * page)).max(0.0),
        };
        // They are armed so long before their turn, and the last look was half as long ago as it is between two.
        let ahead = AHEAD_TIME.as_secs_f64().min(AHEAD_PAGES as f64 * page);
        let seen = (ahead - look / 2.0).max(0.0);
        for part in 0..self.parts.len() {
            for cell in self.parts[part].cells() {
                let lately = (self.lately(part, seen), looked);
                let live = &mut self.parts[part];
                let (pages, left) = live.send(cell, lately);
                round.unsent = (round.unsent - left).max(0.0);
                round.rewritten += left;
                if pages <= 0.0 {
                    continue;
                }
                let zero = if first {
                    live.part.zero.clamp(0.0, 1.0)
                } else {
                    0.0
                };
                round.unsent = (round.unsent - pages).max(0.0);
                self.sent += pages * (1.0 - zero);
                let time = pages * ((1.0 - zero) * page + zero * ZERO_SCAN);
                if let Some(over) = self.spend(time, &mut round) {
                    return Err(over);
                }
            }
        }
        // What is under way arrives, an idle connection is measured, the log is read.
        self.pass((self.costs.round_trip * 2 + self.costs.sync).as_secs_f64());
        round.unsent = 0.0;
        self.rounds.push(Facts {
            pages: whole(round.pages),
            remainder: self.written(),
            duration: duration(self.now - round.began),
            throttle: self.throttle.percents.strongest(),
        });
        Ok(round)
    }

    /// For how long the vCPU of a part has written in the last `seconds`, in times of full speed.
    fn lately(&self, part: usize, seconds: f64) -> f64 {
        let live = &self.parts[part];
        let share = self.throttle.share(usize::from(live.part.vcpu));
        live.active(self.now - seconds, self.now) * self.guest.speed(share)
    }

    /// Lets so many seconds of a round pass, and asks the policy whenever it wants to be asked. Gives the end of
    /// the move, if the time is over.
    fn spend(&mut self, seconds: f64, round: &mut Round) -> Option<Decision> {
        let until = self.now + seconds;
        while let Some(pace) = self.policy.pace() {
            let sparse = (round.asked - round.began) / LOOKS;
            let due = round.asked + pace.as_secs_f64().max(sparse).max(SHORTEST);
            // The last look of a round is that at its end.
            if due > until || round.unsent <= 0.0 {
                break;
            }
            self.pass((due - self.now).max(0.0));
            round.asked = due;
            self.ask(round, false);
        }
        self.pass((until - self.now).max(0.0));
        let allowed = self.limits.total;
        (self.limits.on_timeout == OnTimeout::GiveUp && self.now >= allowed.as_secs_f64()).then(
            || {
                Decision::GiveUp(format!(
                    "{:.1} s are over in the middle of a round, {:.1} s were allowed: allow more time",
                    self.now,
                    allowed.as_secs_f64()
                ))
            },
        )
    }

    /// Lets time pass.
    fn pass(&mut self, seconds: f64) {
        let (from, to) = (self.now, self.now + seconds);
        for vcpu in 0..self.lost.len() {
            let share = self.guest.speed(self.throttle.share(vcpu));
            let slice = self.throttle.slice.as_secs_f64();
            let awake = self.slices[vcpu].pass(seconds, share, slice);
            let speed = awake * self.guest.crowded(share);
            let mut longest: f64 = 0.0;
            let mut writes = false;
            let of_vcpu = |part: &&mut Live<'_>| usize::from(part.part.vcpu) == vcpu;
            for part in self.parts.iter_mut().filter(of_vcpu) {
                let before = part.written();
                let active = part.pass(from, to, speed);
                self.logged[vcpu] += (part.written() - before).max(0.0);
                if part.part.writes_per_s() > 0.0 {
                    longest = longest.max(active);
                    writes = true;
                }
            }
            let working = if writes { longest } else { seconds };
            self.throttled[vcpu] += (1.0 - awake) * working;
            self.lost[vcpu] += (1.0 - speed) * working;
        }
        self.now = to;
    }

    fn ask(&mut self, round: &Round, over: bool) {
        let done = u32::from(over);
        let look = Look {
            elapsed: duration(self.now),
            round: u32::try_from(self.rounds.len()).unwrap_or(u32::MAX) - done,
            duration: duration(self.now - round.began),
            pages: whole(round.pages),
            unsent: whole(round.unsent),
            written: self.written(),
            rewritten: whole(round.rewritten),
            written_by_vcpu: match self.knows_writers {
                true => self.logged.iter().copied().map(whole).collect(),
                false => Vec::new(),
            },
            wire_bytes: whole(self.sent).saturating_mul(PAGE_SIZE + RUN_HEADER),
            over,
            throttle: self.throttle.clone(),
        };
        let wanted = self.policy.decide(&look, &self.known, &self.limits);
        let percents = wanted.percents.at_most(self.limits.throttle);
        self.strongest = self.strongest.max(percents.strongest());
        self.throttle = Throttle { percents, ..wanted };
    }

    /// Pages that the next round would have to send.
    fn written(&self) -> u64 {
        whole(self.parts.iter().map(Live::written).sum())
    }

    fn over(self, decision: Decision) -> Simulated {
        let left = self.written();
        let sent = match decision {
            Decision::SwitchOver(_) => self.sent + left as f64,
            _ => self.sent,
        };
        Simulated {
            decision,
            brownout: duration(self.now),
            blackout: costs::blackout(left, &self.known),
            sent_pages: whole(sent),
            throttled: duration(self.throttled.iter().copied().fold(0.0, f64::max)),
            lost_by_vcpu: self.lost.into_iter().map(duration).collect(),
            strongest: self.strongest,
            rounds: self.rounds,
        }
    }
}

/// Seconds as a duration; what is too long for one is the longest.
fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}

/// A number of pages as a whole one.
pub(super) fn whole(pages: f64) -> u64 {
    // Saturates, and no number at all is none.
    #[expect(clippy::cast_possible_truncation)]
    let whole = pages.round() as u64;
    whole
}
