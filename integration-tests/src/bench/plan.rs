//! Which moves are made in which order: all scenarios once, then all again; within a scenario the programs
//! one after the other, so that what changes on the machine meanwhile meets them alike.

use serde::Serialize;

use super::limits::Limits;
use super::machine::Machine;
use super::trial::{self, Failure};
use super::{FerrySetting, Link, Place, Row, Scenario, Setting};
use crate::Error;
use crate::qemu::Package;

/// How often the machine's limits are measured at most.
const MOST_LIMIT_RUNS: u32 = 3;

/// What is asked for.
#[derive(Debug)]
pub struct Plan {
    /// What is moved.
    pub scenarios: Vec<&'static Scenario>,
    /// Runs, where the scenario or setting has no lower limit of its own.
    pub runs: u32,
    /// `ferry`, `qemu`.
    pub programs: Vec<String>,
    /// Settings of Ferry's that take part in all scenarios.
    pub more: Vec<FerrySetting>,
    /// Whether the machine's limits are measured.
    pub limits: bool,
}

/// All figures of a run, as bench.json has them.
#[derive(Debug, Serialize)]
pub struct Figures {
    /// Where they were measured.
    pub machine: Machine,
    /// What the machine itself can do.
    pub limits: Limits,
    /// Every move.
    pub rows: Vec<Row>,
    /// Every setting that a move did not end with. It is not tried again.
    pub endless: Vec<Endless>,
    /// What did not take part, and why.
    pub left_out: Vec<String>,
}

/// A move that was ended since it did not end by itself.
#[derive(Debug, Clone, Serialize)]
pub struct Endless {
    /// What was moved.
    pub scenario: &'static str,
    /// By which program.
    pub program: &'static str,
    /// How it was asked to.
    pub setting: String,
    /// After so many seconds.
    pub after_s: f64,
    /// Passes over the guest's memory until then.
    pub rounds: u64,
    /// Bytes sent until then.
    pub wire_bytes: u64,
}

impl Endless {
    fn is(&self, scenario: &Scenario, setting: &Setting) -> bool {
        (self.scenario, self.program, self.setting.as_str())
            == (scenario.name, setting.program(), setting.name())
    }
}

impl Plan {
    /// Makes all moves; `told` hears of each before it begins, `keep` is given all figures after each, so that
    /// none are lost if this fails or is ended.
    ///
    /// # Errors
    /// A program fails, a guest does not arrive whole, or the figures cannot be kept.
    pub fn run(
        &self,
        figures: &mut Figures,
        told: impl Fn(&str),
        keep: impl Fn(&Figures) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (package, instead) = Package::find()?;
        if let Some(why) = instead {
            let why = crate::chain(&why);
            (figures.left_out).push(format!(
                "QEMU of Debian's backports, the installed one serves: {why}"
            ));
        }
        let mut all = Vec::new();
        for scenario in &self.scenarios {
            let (settings, left_out) = Setting::of(scenario, &self.more)?;
            figures.left_out.extend(left_out);
            all.push((*scenario, settings));
        }
        for run in 0..self.runs {
            if self.limits && run < MOST_LIMIT_RUNS {
                told(&format!("run {run}: what the machine can do"));
                figures.limits.measure()?;
            }
            for (scenario, settings) in &all {
                let mut due: Vec<&Setting> = settings
                    .iter()
                    .filter(|setting| self.programs.iter().any(|name| name == setting.program()))
                    .filter(|setting| run < setting.most_runs().min(scenario.most_runs))
                    .filter(|setting| !figures.endless.iter().any(|one| one.is(scenario, setting)))
                    .collect();
                // Nobody shall be the first every time.
                if run % 2 == 1 {
                    due.reverse();
                }
                if due.is_empty() {
                    continue;
                }
                let place = Place::new(scenario.link)?;
                if matches!(scenario.link, Link::Shaped(_)) {
                    figures.limits.measure_link(scenario.link, &place)?;
                }
                for setting in due {
                    let (program, name) = (setting.program(), setting.name());
                    let what = format!("run {run}: {} by {program}, {name}", scenario.name);
                    told(&what);
                    let row = || trial::run(scenario, setting, &package, &place, run);
                    match (row(), setting) {
                        (Ok(row), _) => figures.rows.push(row),
                        (
                            Err(Failure::Endless {
                                after,
                                rounds,
                                wire_bytes,
                            }),
                            _,
                        ) => figures.endless.push(Endless {
                            scenario: scenario.name,
                            program,
                            setting: name.to_owned(),
                            after_s: after.as_secs_f64(),
                            rounds,
                            wire_bytes,
                        }),
                        // A QEMU that dies is its own affair, and told; a guest that it loses is not.
                        (Err(Failure::Program(error)), Setting::Qemu(_)) => {
                            figures.left_out.push(format!("{what}: {error}"));
                        }
                        (Err(failure), _) => return Err(Error::Unexpected(failure.to_string())),
                    }
                    keep(figures)?;
                }
            }
        }
        Ok(())
    }
}
