//! What is measured, in which order, and what comes of it.

use std::time::Duration;

use guest_images::traffic::Kind;
use serde::Serialize;

use super::team::{Direction, Seen, Team};
use super::{ferry, native, qemu};
use crate::Error;
use crate::ferry::Netns;
use crate::qemu::Package;

/// How many guests there are in a row.
pub const GUESTS: [usize; 3] = [1, 2, 4];
/// What a guest of an emulated host may take until it answers.
const BOOT: Duration = Duration::from_secs(180);
/// Memory of each guest, in words of both programs.
const MEMORY: &str = "192M";

/// A row of the figures.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// native, ferry, qemu or qemu-vhost.
    pub program: &'static str,
    /// See [`Direction::name`].
    pub direction: &'static str,
    /// How many guests took part.
    pub guests: usize,
    /// See [`Kind::name`].
    pub protocol: &'static str,
    /// What all flows carried together, the median of the runs. Of a request/response the two bytes count.
    pub bits_per_s: f64,
    /// Processor time of the VMMs for each gigabit, in seconds, in the same run; natively of both ends.
    pub cpu_s_per_gbit: f64,
    /// Frames over the guests' taps, both ways, a second, in the same run: of datagrams more may have left than
    /// arrived. Natively 0.
    pub frames_per_s: f64,
}

/// All figures.
#[derive(Debug, Default, Serialize)]
pub struct Figures {
    /// What QEMU says that it is.
    pub qemu: String,
    /// How long a run was, in milliseconds.
    pub run_ms: u64,
    /// How many runs the median is of.
    pub runs: usize,
    /// The rows.
    pub rows: Vec<Row>,
}

/// What is to be measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Of native, ferry, qemu, qemu-vhost.
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
    /// Boots all guests and measures row by row; `told` hears of it, and `save` gets the figures so far.
    ///
    /// # Errors
    /// A guest does not come up, or a flow breaks.
    pub fn run(
        &self,
        mut told: impl FnMut(&str),
        mut save: impl FnMut(&Figures) -> Result<(), Error>,
    ) -> Result<Figures, Error> {
        let host = Netns::new("host")?;
        let mut figures = Figures {
            run_ms: u64::try_from(self.time.as_millis()).unwrap_or(u64::MAX),
            runs: self.runs,
            ..Figures::default()
        };
        let package = self.package(&mut figures)?;
        let mut teams = Vec::new();
        for (number, program) in (1..).zip(&self.programs) {
            let team = self.boot(program, number, &host, package.as_ref())?;
            told(&format!("{program}: {} guests", team.keepers.len()));
            teams.push(team);
        }
        for direction in Direction::ALL {
            for kind in Kind::ALL {
                let counts = self.counts(direction, kind);
                for rows in self.measure(&teams, direction, &counts, kind)? {
                    told(&line(&rows));
                    figures.rows.extend(rows);
                }
                save(&figures)?;
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
        let name = ["native", "ferry", "qemu", "qemu-vhost"]
            .into_iter()
            .find(|name| *name == program);
        let Some(name) = name else {
            return Err(Error::Unexpected(format!(
                "no program {program}; there are native, ferry, qemu, qemu-vhost"
            )));
        };
        let mut team = Team::new(name, host, number)?;
        for _ in 0..self.guests {
            match (name, package) {
                ("native", _) => native::add(&mut team)?,
                ("qemu" | "qemu-vhost", Some(package)) => {
                    qemu::add(&mut team, package, name == "qemu-vhost", MEMORY, BOOT)?;
                }
                _ => ferry::add(&mut team, MEMORY, BOOT)?,
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

    /// The programs take turns, and so do the numbers of guests: a machine that is slower for some seconds is that to
    /// all. Rows of the same number of guests are together.
    fn measure(
        &self,
        teams: &[Team<'_>],
        direction: Direction,
        counts: &[usize],
        kind: Kind,
    ) -> Result<Vec<Vec<Row>>, Error> {
        let mut seen: Vec<Vec<Vec<Seen>>> = vec![vec![Vec::new(); teams.len()]; counts.len()];
        for _ in 0..self.runs {
            for (&guests, seen) in counts.iter().zip(&mut seen) {
                for (team, seen) in teams.iter().zip(seen) {
                    seen.push(team.run(direction, guests, kind, self.time)?);
                }
            }
        }
        let rows = counts.iter().zip(seen).map(|(&guests, seen)| {
            let rows = teams.iter().zip(seen).map(|(team, mut seen)| {
                seen.sort_by(|a, b| a.bits_per_s.total_cmp(&b.bits_per_s));
                let median = seen[seen.len() / 2];
                Row {
                    program: team.program,
                    direction: direction.name(),
                    guests,
                    protocol: kind.name(),
                    bits_per_s: median.bits_per_s,
                    cpu_s_per_gbit: median.cpu_s_per_gbit,
                    frames_per_s: median.frames_per_s,
                }
            });
            rows.collect()
        });
        Ok(rows.collect())
    }
}

/// Rows of the same traffic in one line.
fn line(rows: &[Row]) -> String {
    let Some(first) = rows.first() else {
        return String::new();
    };
    let mut line = format!("{} {} {}:", first.direction, first.guests, first.protocol);
    for row in rows {
        line.push_str(&format!(
            " {} {:.4} Mbit/s {:.0} frames/s",
            row.program,
            row.bits_per_s / 1e6,
            row.frames_per_s
        ));
    }
    line
}
