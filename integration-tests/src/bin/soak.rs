//! `make soak`: faults on real moves, moves without end, and hostile bytes, for as long as wanted.
//!
//! The rooms are in [`integration_tests::soak`]; here is the command line, and the order of the steps.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use integration_tests::soak::draw::draw;
use integration_tests::soak::faults::Campaign;
use integration_tests::soak::lab::Lab;
use integration_tests::soak::outcome::Tally;
use integration_tests::soak::peers::Peers;
use integration_tests::soak::summary::Summary;
use integration_tests::soak::{endurance, linux};
use integration_tests::{Error, chain, fuzzing, programs};
use migration::handover::model;

/// Fuzz targets that run side by side.
const FUZZ_JOBS: usize = 2;

/// Does faults of all kinds to moves of the bare guest, moves guests again and again, and fuzzes; exits with 1 if
/// anything was not as it must be
#[derive(Parser)]
struct Cli {
    /// Faults on moves
    #[arg(long, value_name = "N", default_value_t = 2000)]
    faults: u32,
    /// The most minutes for them
    #[arg(long, value_name = "N", default_value_t = 60)]
    minutes: u64,
    /// What they are drawn from
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// The number of the first of them
    #[arg(long, value_name = "INDEX", default_value_t = 0)]
    first: u32,
    /// Do this one alone, and nothing else: `--seed S --only INDEX`, as the report of a failure names them
    #[arg(long, value_name = "INDEX")]
    only: Option<u32>,
    /// Pairs of ends side by side
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=64))]
    pairs: u8,
    /// After how many milliseconds without a word a peer is dead, if ferry can be told so
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(100..=60_000))]
    peer_timeout: u32,
    /// Moves of one bare guest back and forth
    #[arg(long, value_name = "N", default_value_t = 1000)]
    moves: u32,
    /// Moves of one source that fail or are cancelled
    #[arg(long, value_name = "N", default_value_t = 200)]
    attempts: u32,
    /// Moves of one Linux guest back and forth, in the nested host where need be
    #[arg(long, value_name = "N", default_value_t = 50)]
    linux_moves: u32,
    /// Minutes of each fuzz target
    #[arg(long, value_name = "N", default_value_t = 20)]
    fuzz_minutes: u32,
    /// Where all figures go
    #[arg(long, value_name = "FILE", default_value_os_t = default_file())]
    json: PathBuf,
    /// This is the nested host: move the Linux guest, and leave the figures there
    #[arg(long, hide = true, value_name = "FILE")]
    linux_here: Option<PathBuf>,
}

fn default_file() -> PathBuf {
    programs::target()
        .unwrap_or_else(|| "target".into())
        .join("soak/summary.json")
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<bool, Error> {
    if let Some(file) = &cli.linux_here {
        let progress = Progress::new("moves of a Linux guest", cli.linux_moves);
        let moved = linux::run(cli.linux_moves, &mut |done| progress.at(done))?;
        let text = serde_json::to_vec(&moved).map_err(|e| Error::file("write", file, e.into()))?;
        std::fs::write(file, text).map_err(|e| Error::file("write", file, e))?;
        return Ok(true);
    }
    let peers = Peers::of(cli.peer_timeout)?;
    match cli.only {
        Some(index) => one(cli, index, peers),
        None => all(cli, peers),
    }
}

/// One fault, told as it goes.
fn one(cli: &Cli, index: u32, peers: Peers) -> Result<bool, Error> {
    let fault = draw(cli.seed, index, peers.able());
    println!("{fault}");
    let outcome = Lab::new(index as usize, cli.seed, peers)?.run(&fault)?;
    println!("{outcome:#?}");
    let mut tally = Tally::default();
    tally.add(&fault, &outcome);
    Ok(tally.is_clean())
}

/// All steps. One that cannot be done does not keep the others from being done.
fn all(cli: &Cli, peers: Peers) -> Result<bool, Error> {
    let began = Instant::now();
    let mut summary = Summary {
        seed: cli.seed,
        peer_timeout_ms: peers.timeout().as_millis(),
        ..Summary::default()
    };
    let mut failures = Vec::new();
    match model::prove() {
        Ok(explored) => summary.model_states = u64::try_from(explored.states).ok(),
        Err(broken) => failures.push(format!("the model of the handover: {broken}")),
    }
    if cli.faults > 0 {
        let tally = keep("faults", faults(cli, &peers), &mut failures);
        summary.tally = tally.unwrap_or_default();
    }
    if cli.moves > 0 {
        let progress = Progress::new("moves back and forth", cli.moves);
        let moved = endurance::back_and_forth(cli.moves, &peers, &mut |done| progress.at(done));
        summary.back_and_forth = keep("moves back and forth", moved, &mut failures);
    }
    if cli.attempts > 0 {
        let progress = Progress::new("attempts of one source", cli.attempts);
        let tried = endurance::attempts(cli.attempts, &peers, &mut |done| progress.at(done));
        summary.attempts = keep("attempts", tried, &mut failures);
    }
    if cli.linux_moves > 0 {
        let moved = linux_moves(cli);
        summary.linux = keep("moves of a Linux guest", moved, &mut failures);
    }
    if cli.fuzz_minutes > 0 {
        let time = Duration::from_secs(60 * u64::from(cli.fuzz_minutes));
        let fuzzed = fuzzing::fuzz_all(&[], time, FUZZ_JOBS);
        summary.fuzz = keep("fuzzing", fuzzed, &mut failures);
    }
    summary.failures = failures;
    summary.seconds = began.elapsed().as_secs_f64();
    let troubles = summary.troubles();
    summary.clean = troubles.is_empty();
    summary.write(&cli.json)?;
    println!("{summary}\nall figures: {}", cli.json.display());
    for trouble in &troubles {
        eprintln!("soak: {trouble}");
    }
    Ok(summary.clean)
}

fn faults(cli: &Cli, peers: &Peers) -> Result<Tally, Error> {
    let campaign = Campaign {
        seed: cli.seed,
        first: cli.first,
        faults: cli.faults,
        until: Some(Instant::now() + Duration::from_secs(60 * cli.minutes)),
        pairs: cli.pairs.into(),
        peers: peers.clone(),
    };
    let progress = Progress::new("faults on moves", cli.faults);
    campaign.run(|fault, outcome, tally| {
        for (what, how) in &outcome.violations {
            progress.say(&format!("{fault}: {what:?}: {how}"));
        }
        if outcome.needless {
            let reason = outcome.reason.as_deref().unwrap_or_default();
            progress.say(&format!("{fault}: failed, but need not have: {reason}"));
        }
        progress.at(tally.faults);
    })
}

fn linux_moves(cli: &Cli) -> Result<linux::LinuxMoves, Error> {
    let folder = cli.json.parent().unwrap_or(&cli.json).to_owned();
    std::fs::create_dir_all(&folder).map_err(|e| Error::file("make", &folder, e))?;
    let folder = folder
        .canonicalize()
        .map_err(|e| Error::file("find", &folder, e))?;
    let result = folder.join("linux.json");
    let program = std::env::current_exe().map_err(|e| Error::file("find", "(us)".as_ref(), e))?;
    let argv = [
        program.to_string_lossy().into_owned(),
        format!("--linux-moves={}", cli.linux_moves),
        format!("--linux-here={}", result.display()),
    ];
    linux::run_or_enter(cli.linux_moves, argv.to_vec(), &folder, &result)
}

/// What a step gave, or nothing and a failure.
fn keep<T>(step: &str, result: Result<T, Error>, failures: &mut Vec<String>) -> Option<T> {
    result
        .map_err(|error| failures.push(format!("{step}: {}", chain(&error))))
        .ok()
}

/// How far a step is: a bar on a terminal, elsewhere a line now and then.
struct Progress {
    bar: Option<ProgressBar>,
    what: &'static str,
    all: u32,
}

impl Progress {
    fn new(what: &'static str, all: u32) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(all.into()).with_message(what);
            let style =
                ProgressStyle::with_template("{msg} {bar:40} {pos}/{len} {elapsed} (eta {eta})");
            match style {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
        });
        Self { bar, what, all }
    }

    fn at(&self, done: u32) {
        let line = (self.all / 20).max(1);
        match &self.bar {
            Some(bar) => bar.set_position(done.into()),
            None if done.is_multiple_of(line) => println!("{}: {done} of {}", self.what, self.all),
            None => {}
        }
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => println!("{text}"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
    }
}
