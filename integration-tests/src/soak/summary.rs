//! All that a soak found: target/soak/summary.json, and the table.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::endurance::{Attempts, BackAndForth};
use super::linux::LinuxMoves;
use super::outcome::Tally;
use crate::Error;
use crate::fuzzing::Figures;

/// The most that the guest's clock may be off after a move, in the mean.
pub const DRIFT_US: f64 = 1000.0;

/// Names are a contract. What was not asked for is null.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Summary {
    /// What the faults were drawn from.
    pub seed: u64,
    /// After what a silent peer was dead.
    pub peer_timeout_ms: u128,
    /// Whether all went as it must; then the exit status is 0.
    pub clean: bool,
    /// States of the model of the handover that were visited, all of which kept its invariants.
    pub model_states: Option<u64>,
    /// Faults on moves.
    #[serde(flatten)]
    pub tally: Tally,
    /// One guest moved again and again.
    pub back_and_forth: Option<BackAndForth>,
    /// Attempts by and at processes that go on living.
    pub attempts: Option<Attempts>,
    /// A Linux guest moved again and again.
    pub linux: Option<LinuxMoves>,
    /// Fuzz targets, by name.
    pub fuzz: Option<BTreeMap<&'static str, Figures>>,
    /// Steps that could not be done, with the reason.
    pub failures: Vec<String>,
    /// How long it all took.
    pub seconds: f64,
}

impl Summary {
    /// What is not as it must be, a line each.
    pub fn troubles(&self) -> Vec<String> {
        let mut troubles = self.tally.violations.clone();
        let Tally {
            unknown_outcomes,
            recovered_unknown,
            ..
        } = self.tally;
        if recovered_unknown != unknown_outcomes {
            troubles.push(format!(
                "{unknown_outcomes} moves ended as unknown, but the explicit command ended that for {recovered_unknown} only"
            ));
        }
        if let Some(moves) = &self.back_and_forth {
            troubles.extend(moves.leaks.clone());
            if moves.drift_us_a_move.abs() >= DRIFT_US {
                troubles.push(format!(
                    "the guest's clock is off by {:.0} us a move",
                    moves.drift_us_a_move
                ));
            }
        }
        if let Some(attempts) = &self.attempts {
            troubles.extend(attempts.leaks.clone());
        }
        if let Some(linux) = &self.linux
            && linux.drift_ms_a_move.abs() * 1e3 >= DRIFT_US
        {
            troubles.push(format!(
                "the Linux guest's clock is off by {:.3} ms a move",
                linux.drift_ms_a_move
            ));
        }
        if let Some(fuzz) = &self.fuzz {
            for (target, figures) in fuzz {
                let crash = |input: &PathBuf| format!("fuzzing {target} found {}", input.display());
                troubles.extend(figures.crashes.iter().map(crash));
            }
        }
        troubles.extend(self.failures.clone());
        troubles
    }

    /// Writes it as JSON.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|e| Error::file("make", folder, e))?;
        }
        let text =
            serde_json::to_string_pretty(self).map_err(|e| Error::file("write", path, e.into()))?;
        fs::write(path, text + "\n").map_err(|e| Error::file("write", path, e))
    }
}

/// The table.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally {
            faults,
            lost_guests,
            double_guests,
            corrupted_pages,
            unknown_outcomes,
            recovered_unknown,
            second_try_failed,
            untrue_words,
            unfenced,
            killed_with_owner,
            failed_needlessly,
            missed,
            ref by_status,
            ref by_act,
            total_ms,
            longest_ms,
            ..
        } = self.tally;
        writeln!(
            f,
            "faults on moves           {faults:>8}   seed {}",
            self.seed
        )?;
        for (name, count) in [
            ("lost guests", lost_guests),
            ("double guests", double_guests),
            ("corrupted pages", corrupted_pages),
            ("second try failed", second_try_failed),
            ("untrue words", untrue_words),
            ("without a disk's lock", unfenced),
            ("unknown outcomes", unknown_outcomes),
            ("  ended by the command", recovered_unknown),
            ("killed with their owner", killed_with_owner),
            ("failed needlessly", failed_needlessly),
            ("place never reached", missed),
        ] {
            writeln!(f, "  {name:<24}{count:>8}")?;
        }
        for (name, count) in by_status.iter().chain(by_act) {
            writeln!(f, "  - {name:<22}{count:>8}")?;
        }
        if let Some(mean) = total_ms.checked_div(u64::from(faults + missed)) {
            writeln!(f, "  a fault took {mean} ms, at most {longest_ms} ms")?;
        }
        if let Some(states) = self.model_states {
            writeln!(f, "states of the model       {states:>8}")?;
        }
        if let Some(moves) = &self.back_and_forth {
            writeln!(
                f,
                "moves back and forth      {:>8}   leaks {}, drift {:.1} us a move, at most {:.0} us, {:.1} us in all",
                moves.moves,
                moves.leaks.len(),
                moves.drift_us_a_move,
                moves.largest_drift_us,
                moves.drift_us
            )?;
        }
        if let Some(attempts) = &self.attempts {
            writeln!(
                f,
                "attempts of one source    {:>8}   leaks {}, RSS {} -> {} KiB, at the receiver {} -> {} KiB",
                attempts.attempts,
                attempts.leaks.len(),
                attempts.source[0].rss_kib,
                attempts.source[1].rss_kib,
                attempts.receiver[0].rss_kib,
                attempts.receiver[1].rss_kib
            )?;
        }
        if let Some(linux) = &self.linux {
            writeln!(
                f,
                "moves of a Linux guest    {:>8}   drift {:.3} ms a move, {:.1} ms in all, known to {:.1} ms",
                linux.moves, linux.drift_ms_a_move, linux.drift_ms, linux.within_ms
            )?;
        }
        if let Some(fuzz) = &self.fuzz {
            writeln!(
                f,
                "fuzz targets              {:>8}   {} inputs, {} findings",
                fuzz.len(),
                fuzz.values().map(|one| one.executions).sum::<u64>(),
                fuzz.values().map(|one| one.crashes.len()).sum::<usize>()
            )?;
        }
        write!(f, "{:.0} s in all", self.seconds)
    }
}
