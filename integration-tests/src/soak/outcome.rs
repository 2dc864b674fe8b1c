//! What came of a fault, and of many.

use std::collections::BTreeMap;

use serde::Serialize;

use super::fault::Fault;
use crate::{Error, chain};

/// What must not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Violation {
    /// Nobody runs the guest, although its owner lives, or nobody can say who that is.
    Lost,
    /// Both ends ran it.
    Double,
    /// A page, or a counter, is not what the guest made it.
    Corrupted,
    /// The second try did not complete.
    SecondTry,
    /// An end, or the exit status, said what is not so; or an end never came to rest.
    Untrue,
    /// The guest runs, and nobody holds the lock of its disk.
    Unfenced,
}

/// What came of one fault.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// The move never came to the fault's place, so nothing happened to it.
    pub missed: bool,
    /// Exit status of `ferry migrate`; none if it was killed.
    pub status: Option<i32>,
    /// The source did not know who has the guest.
    pub unknown: bool,
    /// The explicit command ended that.
    pub recovered: bool,
    /// The process that had the guest was killed, and the guest with it.
    pub killed_with_owner: bool,
    /// Why the guest was not moved, in the source's words.
    pub reason: Option<String>,
    /// The guest was not moved although nothing spoke against it.
    pub needless: bool,
    /// What must not happen, and did.
    pub violations: Vec<(Violation, String)>,
    /// How long all of it took, checks and second try included.
    pub ms: u64,
}

impl Outcome {
    pub(super) fn violate(&mut self, what: Violation, how: String) {
        self.violations.push((what, how));
    }

    /// What a check gave, or nothing and a violation.
    pub(super) fn keep<T>(&mut self, checked: Result<T, Error>) -> Option<T> {
        match checked {
            Ok(value) => Some(value),
            Err(error) => {
                self.violate(Violation::Corrupted, chain(&error));
                None
            }
        }
    }
}

/// What came of many faults. The names are a contract.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Tally {
    /// Faults that happened.
    pub faults: u32,
    /// Guests that nobody runs although their owner lives, or is not known.
    pub lost_guests: u32,
    /// Guests that both ends ran.
    pub double_guests: u32,
    /// Guests found with a wrong page: each has one at least.
    pub corrupted_pages: u32,
    /// Moves after which the source did not know who has the guest.
    pub unknown_outcomes: u32,
    /// Of these, those that the explicit command ended.
    pub recovered_unknown: u32,
    /// Second tries that did not complete.
    pub second_try_failed: u32,
    /// Ends that said what is not so.
    pub untrue_words: u32,
    /// Guests that ran without the lock of their disk.
    pub unfenced: u32,
    /// Guests that ended with the process that had them, which the fault killed.
    pub killed_with_owner: u32,
    /// Moves that failed although the fault was none that a move may fail for.
    pub failed_needlessly: u32,
    /// Faults beside those, to whose place the move never came.
    pub missed: u32,
    /// Moves with a fault that completed, failed, and so on, by the exit status of `ferry migrate`.
    pub by_status: BTreeMap<&'static str, u32>,
    /// Faults by what they do.
    pub by_act: BTreeMap<&'static str, u32>,
    /// Faults by where they do it.
    pub by_place: BTreeMap<&'static str, u32>,
    /// Each fault after which something was as it must not be, in its one line, and what.
    pub violations: Vec<String>,
    /// Each fault that a move was not to fail for.
    pub needless: Vec<String>,
    /// Sum and maximum of what a fault took, in ms.
    pub total_ms: u64,
    /// See there.
    pub longest_ms: u64,
}

impl Tally {
    /// Counts a fault in.
    pub fn add(&mut self, fault: &Fault, outcome: &Outcome) {
        self.faults += u32::from(!outcome.missed);
        let flags = [
            (&mut self.unknown_outcomes, outcome.unknown),
            (&mut self.recovered_unknown, outcome.recovered),
            (&mut self.killed_with_owner, outcome.killed_with_owner),
            (&mut self.failed_needlessly, outcome.needless),
            (&mut self.missed, outcome.missed),
        ];
        for (count, happened) in flags {
            *count += u32::from(happened);
        }
        for (what, how) in &outcome.violations {
            *match what {
                Violation::Lost => &mut self.lost_guests,
                Violation::Double => &mut self.double_guests,
                Violation::Corrupted => &mut self.corrupted_pages,
                Violation::SecondTry => &mut self.second_try_failed,
                Violation::Untrue => &mut self.untrue_words,
                Violation::Unfenced => &mut self.unfenced,
            } += 1;
            self.violations.push(format!("{fault}: {what:?}: {how}"));
        }
        if outcome.needless {
            let reason = outcome.reason.as_deref().unwrap_or("no reason was given");
            self.needless.push(format!("{fault}: {reason}"));
        }
        let word = match outcome.status {
            Some(0) => "completed",
            Some(1) => "failed",
            Some(3) => "cancelled",
            Some(4) => "unknown",
            _ => "killed",
        };
        if !outcome.missed {
            *self.by_status.entry(word).or_default() += 1;
            *self.by_act.entry(fault.act.word()).or_default() += 1;
            *self.by_place.entry(fault.place_word()).or_default() += 1;
        }
        self.total_ms += outcome.ms;
        self.longest_ms = self.longest_ms.max(outcome.ms);
    }

    /// Whether all was as it must be.
    pub fn is_clean(&self) -> bool {
        self.violations.is_empty() && self.recovered_unknown == self.unknown_outcomes
    }
}
