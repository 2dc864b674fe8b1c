//! What is kept of a study: a folder with one file a move, so that it can be interrupted and go on.

use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::path::{Path, PathBuf};

use migration::predict::Prediction;
use migration::report::{Outcome, Report};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::case::Case;
use super::place::Shaping;
use super::trial::{Made, TrialError};
use crate::cli::error::chain;
use crate::control::PredictEvent;

/// One move, as it went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// What was moved, and how.
    pub case: Case,
    /// What made it, as [`maker`] says.
    pub made_by: String,
    /// Why there is no report, or what was lost; nothing where all went well or the move was given up.
    pub error: Option<String>,
    /// Whether memory was found other than it has to be.
    pub lost: bool,
    /// Stamped pages found as they have to be.
    pub verified_pages: u64,
    /// What was predicted.
    pub predicted: Option<Prediction>,
    /// What that stands on, as it was measured: the guest's curve, its memory, the link.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub measured: Vec<PredictEvent>,
    /// What the move reported.
    pub report: Option<Report>,
}

/// The folder cannot be used.
#[derive(Debug, Error)]
#[error("cannot {act} {}", .path.display())]
pub struct StoreError {
    act: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Record {
    /// What came of a case.
    pub fn of(case: &Case, made_by: &str, made: Result<Made, TrialError>) -> Self {
        let mut record = Self {
            case: case.clone(),
            made_by: made_by.to_owned(),
            error: None,
            lost: false,
            verified_pages: 0,
            predicted: None,
            measured: Vec::new(),
            report: None,
        };
        match made {
            Ok(made) => {
                record.verified_pages = made.verified_pages;
                record.predicted = made.predicted;
                record.measured = made.measured;
                record.report = Some(made.report);
            }
            Err(error) => {
                record.lost = matches!(error, TrialError::Lost(_));
                record.error = Some(chain(&error));
            }
        }
        record
    }

    /// The report of a move that completed with the guest whole.
    pub fn completed(&self) -> Option<&Report> {
        let report = self.report.as_ref()?;
        (report.outcome == Outcome::Completed && !self.lost).then_some(report)
    }

    /// What the vCPUs that only compute lost of their work: in percent of what they did before the move, and of what
    /// they did in a second of their threads' processor time. The worst of them.
    pub fn computing_lost(&self) -> Option<(f64, f64)> {
        let report = self.completed()?;
        let worst = |lost: &[Option<f64>]| {
            let computing = lost.iter().skip(usize::from(self.case.writers));
            computing.copied().flatten().reduce(f64::max)
        };
        Some((
            worst(&report.vcpu_work_lost_percent)?,
            worst(&report.vcpu_work_per_cpu_s_lost_percent)?,
        ))
    }

    /// What is to be said of a move that did not complete.
    pub fn failure(&self) -> Option<String> {
        match (&self.error, &self.report) {
            (Some(error), _) => Some(error.clone()),
            (None, Some(report)) if report.outcome != Outcome::Completed => {
                Some(report.reason.clone())
            }
            _ => None,
        }
    }

    /// Whether the blackout was longer than asked for by more than a tenth, of a move that was to be given up rather
    /// than that.
    pub fn over_limit(&self) -> bool {
        let promised = self.case.on_timeout == crate::control::OnTimeout::Cancel;
        let blackout = self.completed().and_then(|report| report.blackout_ms);
        promised && blackout.is_some_and(|ms| ms > 1.1 * self.case.downtime_ms as f64)
    }
}

/// What moves are made by: this program, to the byte, and how and where it makes them.
///
/// # Errors
/// The program cannot be read.
pub fn maker(shaping: Shaping, machine: &str) -> Result<String, StoreError> {
    let program = Path::new("/proc/self/exe");
    let bytes = fs::read(program).map_err(failed("read", program))?;
    let mut hasher = DefaultHasher::new();
    hasher.write(&bytes);
    let (version, build) = (env!("CARGO_PKG_VERSION"), hasher.finish());
    let shaping = match shaping {
        Shaping::Htb => "htb",
        Shaping::Cap => "cap",
    };
    Ok(format!(
        "ferry {version} {build:016x}, {shaping}. {machine}"
    ))
}

/// The folder of a study.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// Makes it, if it is not there.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let moves = folder.join("moves");
        fs::create_dir_all(&moves).map_err(failed("make", &moves))?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// What came of a case, if it was run before, whoever made it. A file that is damaged counts as none.
    pub fn get(&self, case: &Case) -> Option<Record> {
        let text = fs::read(self.path(case)).ok()?;
        let record: Record = serde_json::from_slice(&text).ok()?;
        (record.case == *case).then_some(record)
    }

    /// Keeps what came of a case.
    ///
    /// # Errors
    /// It cannot be written; what was there before is still there.
    pub fn put(&self, record: &Record) -> Result<(), StoreError> {
        let path = self.path(&record.case);
        let text = serde_json::to_vec_pretty(record).map_err(io::Error::other);
        let text = text.map_err(failed("write", &path))?;
        write(&path, &text)
    }

    /// Writes one of the files that sum the study up.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf, StoreError> {
        let path = self.folder.join(name);
        write(&path, bytes)?;
        Ok(path)
    }

    fn path(&self, case: &Case) -> PathBuf {
        self.folder.join("moves").join(case.slug() + ".json")
    }
}

/// All of it or nothing.
fn write(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let draft = path.with_extension("new");
    fs::write(&draft, bytes).map_err(failed("write", &draft))?;
    fs::rename(&draft, path).map_err(failed("write", path))
}

fn failed<'a>(act: &'static str, path: &'a Path) -> impl Fn(io::Error) -> StoreError + use<'a> {
    move |source| StoreError {
        act,
        path: path.to_owned(),
        source,
    }
}
