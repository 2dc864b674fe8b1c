//! What is measured, in which order, and what comes of it.

use std::num::NonZero;
use std::thread;
use std::time::Duration;

use guest_images::traffic::Kind;
use serde::{Deserialize, Serialize};

use super::team::{Direction, Team};
use super::{ferry, native, qemu};
use crate::Error;
use crate::ferry::Netns;
use crate::qemu::Package;

/// The programs that can take part; the last only if it is named: Ferry's cards behind PCI are the usual ones.
pub const PROGRAMS: [&str; 5] = ["native", "ferry", "qemu", "qemu-vhost", "ferry-mmio"];
/// Those that do.
pub const USUAL: [&str; 4] = ["native", "ferry", "qemu", "qemu-vhost"];
/// How many guests there are in a row.
pub const GUESTS: [usize; 3] = [1, 2, 4];
/// What a guest of an emulated host may take until it answers.
const BOOT: Duration = Duration::from_secs(180);
/// Memory of each guest, in words of both programs.
const MEMORY: &str = "192M";

/// A row of the figures.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// One of [`PROGRAMS`].
    pub program: String,
    /// See [`Direction::name`].
    pub direction: String,
    /// How many guests took part.
    pub guests: usize,
    /// See [`Kind::name`].
    pub protocol: String,
    /// What all flows carried together, the median of the runs. Of a request/response the two bytes count.
    pub bits_per_s: f64,
    /// Processor time of the VMMs for each gigabit, in seconds, in the same run; natively of both ends.
    pub cpu_s_per_gbit: f64,
    /// Frames over the guests' taps, both ways, a second, in the same run: of datagrams more may have left than
    /// arrived. Natively 0.
    pub frames_per_s: f64,
    /// Processors of the host on which the guests ran.
    pub processors: usize,
}

/// All figures.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Figures {
    /// What QEMU says that it is.
    pub qemu: String,
    /// How long a run was, in milliseconds.
    pub run_ms: u64,
    /// How many runs the median is of.
    pub runs: usize,
    /// The rows: medians.
    pub rows: Vec<Row>,
    /// What they are medians of, each run as a row of its own.
    pub samples: Vec<Row>,
}

impl Figures {
    /// How many runs there are of such traffic by that program.
    fn runs_of(&self, traffic: Traffic, guests: usize, program: &str) -> usize {
        let samples = self.samples.iter();
        samples
            .filter(|row| row.is_of(traffic, guests) && row.program == program)
            .count()
    }

    /// Makes rows of the samples of such traffic.
    fn sum_up(&mut self, traffic: Traffic, guests: usize) {
        self.rows.retain(|row| !row.is_of(traffic, guests));
        for program in PROGRAMS {
            let samples = self.samples.iter();
            let mut samples: Vec<&Row> = samples
                .filter(|row| row.is_of(traffic, guests) && row.program == program)
                .collect();
            samples.sort_by(|a, b| a.bits_per_s.total_cmp(&b.bits_per_s));
            let median = samples.get(samples.len() / 2).map(|row| (*row).clone());
            self.rows.extend(median);
        }
    }
}

/// What flows which way, on a host of how many processors.
#[derive(Debug, Clone, Copy)]
struct Traffic {
    direction: Direction,
    kind: Kind,
    processors: usize,
}

impl Row {
    fn is_of(&self, traffic: Traffic, guests: usize) -> bool {
        self.guests == guests
            && self.direction == traffic.direction.name()
            && self.protocol == traffic.kind.name()
            && self.processors == traffic.processors
    }
}

/// What is to be measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Of [`PROGRAMS`].
    pub programs: Vec<String>,
    /// Runs of a row.
    pub runs: usize,
    /// How long each is.
    pub time: Duration,
    /// The most guests of a program.
    pub guests: usize,
    /// Only rows whose direction, guests and protocol, with a space between them, have one of these in them; all, if
    /// there is none.
    pub only: Vec<String>,
}

impl Plan {
    /// Boots all guests and measures what `figures` lack, row by row; `told` hears of it, and `save` gets the figures
    /// so far.
    ///
    /// # Errors
    /// A guest does not come up, or a flow breaks.
    pub fn run(
        &self,
        mut figures: Figures,
        mut told: impl FnMut(&str),
        mut save: impl FnMut(&Figures) -> Result<(), Error>,
    ) -> Result<Figures, Error> {
        let host = Netns::new("host")?;
        figures.run_ms = u64::try_from(self.time.as_millis()).unwrap_or(u64::MAX);
        figures.runs = self.runs;
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        let package = self.package(&mut figures)?;
        let mut teams = Vec::new();
        for (number, program) in (1..).zip(&self.programs) {
            let team = self.boot(program, number, &host, package.as_ref())?;
            told(&format!("{program}: {} guests", team.keepers.len()));
            teams.push(team);
        }
        for direction in Direction::ALL {
            for kind in Kind::ALL {
                let traffic = Traffic {
                    direction,
                    kind,
                    processors,
                };
                let counts = self.counts(direction, kind);
                while self.round(&teams, traffic, &counts, &mut figures)? {
                    save(&figures)?;
                }
                for guests in counts {
                    told(&line(
                        figures.rows.iter().filter(|row| row.is_of(traffic, guests)),
                    ));
                }
            }
        }
        Ok(figures)
    }

    fn package(&self, figures: &mut Figures) -> Result<Option<Package>, Error> {
        if !self.programs.iter().any(|name| name.starts_with("qemu")) {
            return Ok(None);
        }
        let (package, _) = Package::find()?;
        let said = package.command().arg("--version").output();
        let said = said.map_err(Error::NoQemu)?.stdout;
        let said = String::from_utf8_lossy(&said);
        figures.qemu = said.lines().next().unwrap_or_default().to_owned();
        Ok(Some(package))
    }

    fn boot<'a>(
        &self,
        program: &str,
        number: u8,
        host: &'a Netns,
        package: Option<&Package>,
    ) -> Result<Team<'a>, Error> {
        let name = PROGRAMS.into_iter().find(|name| *name == program);
        let Some(name) = name else {
            return Err(Error::Unexpected(format!(
                "no program {program}; there are {}",
                PROGRAMS.join(", ")
            )));
        };
        let mut team = Team::new(name, host, number)?;
        for _ in 0..self.guests {
            match (name, package) {
                ("native", _) => native::add(&mut team)?,
                ("qemu" | "qemu-vhost", Some(package)) => {
                    qemu::add(&mut team, package, name == "qemu-vhost", MEMORY, BOOT)?;
                }
                ("ferry-mmio", _) => ferry::add(&mut team, "mmio", MEMORY, BOOT)?,
                _ => ferry::add(&mut team, "pci", MEMORY, BOOT)?,
            }
        }
        Ok(team)
    }

    /// With how many guests such traffic is asked for.
    fn counts(&self, direction: Direction, kind: Kind) -> Vec<usize> {
        let asked = |guests: &usize| {
            let name = format!("{} {guests} {}", direction.name(), kind.name());
            (direction.least()..=self.guests).contains(guests)
                && (self.only.is_empty() || self.only.iter().any(|only| name.contains(only)))
        };
        GUESTS.into_iter().filter(asked).collect()
    }

    /// One run by each program and number of guests of which runs are missing, if there are any: they take turns, and a
    /// machine that is slower for some seconds is that to all.
    fn round(
        &self,
        teams: &[Team<'_>],
        traffic: Traffic,
        counts: &[usize],
        figures: &mut Figures,
    ) -> Result<bool, Error> {
        let Traffic {
            direction,
            kind,
            processors,
        } = traffic;
        let mut new = Vec::new();
        for &guests in counts {
            for team in teams {
                if figures.runs_of(traffic, guests, team.program) >= self.runs {
                    continue;
                }
                let seen = team.run(direction, guests, kind, self.time)?;
                new.push(Row {
                    program: team.program.to_owned(),
                    direction: direction.name().to_owned(),
                    guests,
                    protocol: kind.name().to_owned(),
                    bits_per_s: seen.bits_per_s,
                    cpu_s_per_gbit: seen.cpu_s_per_gbit,
                    frames_per_s: seen.frames_per_s,
                    processors,
                });
            }
        }
        let any = !new.is_empty();
        figures.samples.extend(new);
        for &guests in counts {
            figures.sum_up(traffic, guests);
        }
        Ok(any)
    }
}

/// Rows of the same traffic in one line.
fn line<'a>(rows: impl Iterator<Item = &'a Row>) -> String {
    let mut line = String::new();
    for row in rows {
        if line.is_empty() {
            line = format!("{} {} {}:", row.direction, row.guests, row.protocol);
        }
        line.push_str(&format!(
            " {} {:.4} Mbit/s {:.0} frames/s",
            row.program,
            row.bits_per_s / 1e6,
            row.frames_per_s
        ));
    }
    line
}
