//! One move of a study, from boot to verification.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use guest_images::fill;
use guest_images::procmem::Mapping;
use guest_images::verify::{self, Mode, Summary};
use migration::predict::Prediction;
use migration::report::{Outcome, Report};
use thiserror::Error;

use super::case::{Case, Tracking};
use super::host::Host;
use super::netns::NetnsError;
use super::place::Place;
use crate::config::{ConfigError, Target};
use crate::control::client::ClientError;
use crate::control::{MigrateRequest, MoveEvent, PredictEvent, PredictRequest};

/// Seed of the guest's memory.
const SEED: u64 = 0x0f0e_0d0c;
/// From here on memory is filled from outside: below lie pulse itself and its tables.
const FILLED: u64 = 8 << 20;
/// How long a guest works before its move: what it gets done then is what it loses some of.
const WARM_UP: Duration = Duration::from_millis(2500);
/// How long a guest is watched for a prediction, in milliseconds.
const WATCH_MS: u64 = 4000;

/// Why a trial came to nothing.
#[derive(Debug, Error)]
pub enum TrialError {
    /// A process did not do its part.
    #[error("waited for {what} of ferry {name}, and {end}; it said: {said}")]
    Waited {
        /// Its subcommand.
        name: &'static str,
        /// What was waited for.
        what: &'static str,
        /// Whether it ended.
        end: String,
        /// Its last words.
        said: String,
    },
    /// The system refused something.
    #[error("cannot {act}")]
    Io {
        /// What was tried.
        act: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// No link.
    #[error(transparent)]
    Network(#[from] NetnsError),
    /// A VM did not answer, or refused.
    #[error(transparent)]
    Control(#[from] ClientError),
    /// An address that Ferry does not take.
    #[error(transparent)]
    Target(#[from] ConfigError),
    /// The guest did not arrive as it left.
    #[error("THE GUEST DID NOT ARRIVE WHOLE: {0}")]
    Lost(String),
    /// The VM ended in the middle of its tale.
    #[error("the VM stopped telling how the move goes")]
    Silent,
    /// The VM could not say.
    #[error("the move was not predicted: {0}")]
    Unpredicted(String),
    /// Somebody asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl TrialError {
    /// What the system refused.
    pub(super) fn io(act: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { act, source }
    }
}

/// A move that was made.
#[derive(Debug, Clone, PartialEq)]
pub struct Made {
    /// Its report.
    pub report: Report,
    /// What was predicted.
    pub predicted: Option<Prediction>,
    /// What that stands on.
    pub measured: Vec<PredictEvent>,
    /// Stamped pages that were found as they have to be.
    pub verified_pages: u64,
}

/// Makes one move. `tell` hears its steps.
///
/// # Errors
/// A process or a link is not to be had, or the guest did not arrive whole. A move that is given up is no error:
/// the report says so.
pub fn run(
    case: &Case,
    place: &Place,
    stop: &AtomicBool,
    tell: &mut dyn FnMut(&str),
) -> Result<Made, TrialError> {
    tell("booting");
    let mut source = boot(case, place, stop)?;
    fill(&source)?;
    let target = place.target()?;
    let target: Target = target.parse()?;
    let max_memory = case.memory_bytes.to_string();
    let address = target.to_string();
    let mut args = vec!["--listen", &address, "--once", "--max-memory", &max_memory];
    args.extend(place.leaves_loopback().then_some("--insecure-plaintext"));
    // Else a move over a quick link would measure how warm this host's free memory happens to be.
    if case.link.is_fast() {
        args.extend(["--prefault", &max_memory]);
    }
    let mut destination = Host::start(place.destination(), "receive", &args, stop)?;
    destination.wait_waiting(stop)?;
    let request = request(case, place, target);
    let mut measured = Vec::new();
    let predicted = match case.predict {
        true => {
            tell("predicting");
            Some(predict(&source, request.clone(), stop, &mut measured)?)
        }
        false => None,
    };
    source.wait_beating(stop)?;
    let before = check(&source)?;
    tell("at work");
    pause(WARM_UP, stop)?;
    let report = follow(&source, &request, stop, tell)?;
    let verified_pages = match report.outcome {
        Outcome::Completed => {
            tell("verifying");
            arrived(&destination, &before)?
        }
        _ => check(&source)?.pages_checked,
    };
    Ok(Made {
        report,
        predicted,
        measured,
        verified_pages,
    })
}

fn boot(case: &Case, place: &Place, stop: &AtomicBool) -> Result<Host, TrialError> {
    let (words, cpus) = (case.words(), case.vcpus().to_string());
    let memory = case.memory_bytes.to_string();
    let tracking = match case.tracking {
        Tracking::Bitmap => "bitmap",
        Tracking::Ring => "ring",
    };
    let args = [
        "--pulse",
        &words,
        "--cpus",
        &cpus,
        "--memory",
        &memory,
        "--dirty-tracking",
        tracking,
    ];
    let mut host = Host::start(place.source(), "run", &args, stop)?;
    host.wait_beating(stop)?;
    Ok(host)
}

/// The guest-physical memory that is filled from outside.
fn filled(host: &Host) -> Result<Vec<Range<u64>>, TrialError> {
    let range = |piece: &Mapping| {
        let from = piece.gpa.max(FILLED);
        from..(piece.gpa + piece.bytes).max(from)
    };
    Ok(host.mappings()?.iter().map(range).collect())
}

/// Fills the guest's memory, working sets included, with what nothing compresses.
fn fill(host: &Host) -> Result<(), TrialError> {
    let memory = host.memory()?;
    for gpas in filled(host)? {
        fill::write(SEED, gpas, |gpa, bytes| memory.write(gpa, bytes)).map_err(|error| {
            TrialError::Io {
                act: "fill the guest's memory",
                source: io::Error::other(error),
            }
        })?;
    }
    Ok(())
}

fn request(case: &Case, place: &Place, target: Target) -> MigrateRequest {
    MigrateRequest {
        downtime_ms: Some(case.downtime_ms),
        bandwidth_bytes_per_s: place.cap(),
        streams: Some(case.streams),
        timeout_ms: Some(case.timeout_ms),
        on_timeout: case.on_timeout,
        throttle: case.throttle,
        insecure_plaintext: place.leaves_loopback(),
        ..MigrateRequest::to(target)
    }
}

/// Checks a guest that runs on.
fn check(host: &Host) -> Result<Summary, TrialError> {
    let client = host.client();
    client.pause()?;
    let summary = still(host);
    client.resume(false)?;
    summary
}

/// Checks all stamps of a guest that stands still.
fn still(host: &Host) -> Result<Summary, TrialError> {
    verify::check(&host.memory()?, Mode::Stopped).map_err(lost)
}

/// Checks that all that left has arrived: stamps, counters and the filled rest. Gives the stamped pages.
fn arrived(host: &Host, before: &Summary) -> Result<u64, TrialError> {
    host.client().pause()?;
    let after = still(host)?;
    after.follows(before).map_err(lost)?;
    let memory = host.memory()?;
    for gpas in filled(host)? {
        fill::check(SEED, gpas, &memory).map_err(lost)?;
    }
    Ok(after.pages_checked)
}

fn lost(error: impl std::error::Error + 'static) -> TrialError {
    TrialError::Lost(crate::cli::error::chain(&error))
}

/// Waits, unless it is to stop.
fn pause(time: Duration, stop: &AtomicBool) -> Result<(), TrialError> {
    let until = Instant::now() + time;
    while Instant::now() < until {
        if stop.load(Ordering::Relaxed) {
            return Err(TrialError::Interrupted);
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Moves the guest.
fn follow(
    source: &Host,
    request: &MigrateRequest,
    stop: &AtomicBool,
    tell: &mut dyn FnMut(&str),
) -> Result<Report, TrialError> {
    for event in source.client().migrate(request)? {
        if stop.load(Ordering::Relaxed) {
            return Err(TrialError::Interrupted);
        }
        match event? {
            MoveEvent::Report { report } => return Ok(*report),
            MoveEvent::Happened(crate::control::Happening::RoundStarted { index, .. }) => {
                tell(&format!("moving, round {index}"));
            }
            MoveEvent::Happened(_) => {}
        }
    }
    Err(TrialError::Silent)
}

/// Asks what the move will cost; `measured` gets what the answer stands on.
fn predict(
    source: &Host,
    wanted: MigrateRequest,
    stop: &AtomicBool,
    measured: &mut Vec<PredictEvent>,
) -> Result<Prediction, TrialError> {
    let request = PredictRequest {
        wanted,
        watch_ms: Some(WATCH_MS),
    };
    for event in source.client().predict(&request)? {
        if stop.load(Ordering::Relaxed) {
            return Err(TrialError::Interrupted);
        }
        match event? {
            PredictEvent::Prediction { prediction } => return Ok(*prediction),
            PredictEvent::Failed { reason } => return Err(TrialError::Unpredicted(reason)),
            event => measured.push(event),
        }
    }
    Err(TrialError::Silent)
}
