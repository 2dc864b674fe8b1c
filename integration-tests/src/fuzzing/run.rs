//! Runs the targets under libFuzzer, by cargo-fuzz and a nightly compiler, for a given time each.
//!
//! What is found goes on under `target/soak/fuzz/TARGET/`: the corpus as it grew, and the input of every crash, to be
//! put into `fuzz/corpus/TARGET` once it is mended. A hang is one only if it is there again when nothing else is done:
//! libFuzzer reads a clock on the wall, and this machine may have more to do.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{TARGETS, Target};
use crate::{Error, lock};

/// The longest that one input may take, in seconds.
const TIMEOUT_S: u32 = 1;
/// The most memory of the whole process, AddressSanitizer's own included, in MiB.
const RSS_MB: u32 = 2048;
/// How often a finding has to be there again.
const TRIES: u32 = 3;

/// What came of one target.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Figures {
    /// How long it ran.
    pub minutes: f64,
    /// How many inputs were tried.
    pub executions: u64,
    /// Edges of the program that inputs have reached.
    pub coverage: u64,
    /// Inputs that reach something that no other does.
    pub corpus: u64,
    /// The most that one allocation may have, in MiB.
    pub malloc_limit_mb: u32,
    /// Panics, memory errors, hangs and allocations beyond the limit: their inputs.
    pub crashes: Vec<PathBuf>,
    /// Hangs that were none when they were tried again.
    pub disturbed: u32,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The corpus of a target that is in the tree.
pub fn corpus(target: &Target) -> PathBuf {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    fuzz.join("corpus").join(target.name)
}

fn file(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { act, path, source }
}

/// Writes the seeds of every target into the corpus in the tree, as `seed-NN`; regressions stay.
///
/// # Errors
/// A file cannot be written.
pub fn write_seeds() -> Result<usize, Error> {
    let mut count = 0;
    for target in TARGETS {
        let folder = corpus(&target);
        fs::create_dir_all(&folder).map_err(file("make", &folder))?;
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            let path = folder.join(format!("seed-{number:02}"));
            fs::write(&path, seed).map_err(file("write", &path))?;
            count += 1;
        }
    }
    Ok(count)
}

/// Builds the targets, runs those of these names (all, if none is named) for so long each, so many at a time, says a
/// line of each, and writes `target/soak/fuzz.json`.
///
/// # Errors
/// There is no such target, cargo-fuzz or the nightly compiler is not to be had, or a target cannot be started. What
/// the targets find is no error: see [`Figures::crashes`].
pub fn fuzz_all(
    names: &[String],
    time: Duration,
    jobs: usize,
) -> Result<BTreeMap<&'static str, Figures>, Error> {
    let targets = chosen(names)?;
    build()?;
    let waiting = Mutex::new(VecDeque::from(targets));
    let all = Mutex::new(BTreeMap::new());
    let work = || -> Result<(), Error> {
        loop {
            let next = lock(&waiting).pop_front();
            let Some(target) = next else {
                return Ok(());
            };
            let figures = fuzz(&target, time)?;
            println!("{}", line(&target, &figures));
            let mut all = lock(&all);
            all.insert(target.name, figures);
            write_report(&all)?;
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(work)).collect();
        let mut workers = workers.into_iter();
        workers.try_for_each(|worker| worker.join().unwrap())
    })?;
    Ok(all.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn chosen(names: &[String]) -> Result<Vec<Target>, Error> {
    if names.is_empty() {
        return Ok(TARGETS.to_vec());
    }
    let find = |name: &String| {
        let found = TARGETS.iter().find(|target| target.name == name);
        found.copied().ok_or_else(|| Error::Tool {
            command: format!("fuzz {name}"),
            said: format!("there are {}", TARGETS.map(|target| target.name).join(", ")),
        })
    };
    names.iter().map(find).collect()
}

fn line(target: &Target, figures: &Figures) -> String {
    let Figures {
        minutes,
        executions,
        coverage,
        corpus,
        malloc_limit_mb,
        crashes,
        disturbed,
    } = figures;
    let found = match crashes.len() {
        0 => "nothing found".to_owned(),
        _ => format!("FOUND {crashes:?}"),
    };
    let name = target.name;
    format!(
        "{name:<15} {minutes:5.1} min, {executions:>10} inputs, {coverage:>5} edges, {corpus:>5} kept, at most {malloc_limit_mb} MiB at a time, {disturbed} disturbed: {found}"
    )
}

fn write_report(all: &BTreeMap<&'static str, Figures>) -> Result<(), Error> {
    let path = root().join("target/soak/fuzz.json");
    let text = serde_json::to_string_pretty(all).unwrap_or_default();
    fs::create_dir_all(root().join("target/soak"))
        .and_then(|()| fs::write(&path, text + "\n"))
        .map_err(file("write", &path))
}

/// `cargo`, as a person would call it: not the one compiler that a cargo around us has chosen.
fn cargo(arguments: &[&str]) -> Result<Output, Error> {
    let mut command = Command::new("cargo");
    command.args(arguments).current_dir(root());
    command.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO");
    command.output().map_err(file("start", Path::new("cargo")))
}

fn must(arguments: &[&str], hint: &str) -> Result<(), Error> {
    let output = cargo(arguments)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<_> = said.lines().collect();
    let tail = lines[lines.len().saturating_sub(30)..].join("\n");
    Err(Error::Tool {
        command: format!("cargo {}", arguments.join(" ")),
        said: format!("{tail}\n{hint}"),
    })
}

fn build() -> Result<(), Error> {
    if !cargo(&["fuzz", "--version"])?.status.success() {
        println!("installing cargo-fuzz …");
        must(&["install", "--locked", "cargo-fuzz"], "")?;
    }
    println!("building the targets …");
    let fuzz = corpus(&TARGETS[0]);
    let fuzz = fuzz
        .ancestors()
        .nth(2)
        .unwrap_or(&fuzz)
        .display()
        .to_string();
    let folders = ["--fuzz-dir", &fuzz, "--target-dir", "target/fuzz"];
    must(
        &[&["+nightly", "fuzz", "build"], &folders[..]].concat(),
        "It needs a nightly compiler: rustup toolchain install nightly",
    )
}

/// Where a target's findings are kept.
fn folder(target: &Target) -> PathBuf {
    root().join("target/soak/fuzz").join(target.name)
}

fn program(target: &Target) -> Command {
    let built = root().join("target/fuzz/x86_64-unknown-linux-gnu/release");
    let mut command = Command::new(built.join(target.name));
    command.args([
        format!("-timeout={TIMEOUT_S}"),
        format!("-rss_limit_mb={RSS_MB}"),
        format!("-malloc_limit_mb={}", target.malloc_mb),
        format!("-max_len={}", target.max_len),
        format!("-artifact_prefix={}/", folder(target).display()),
        // Threads that outlive an input by some milliseconds look like leaks.
        "-detect_leaks=0".to_owned(),
        "-print_final_stats=1".to_owned(),
    ]);
    command
}

fn fuzz(target: &Target, time: Duration) -> Result<Figures, Error> {
    let grown = folder(target).join("corpus");
    fs::create_dir_all(&grown).map_err(file("make", &grown))?;
    let mut figures = Figures {
        malloc_limit_mb: target.malloc_mb,
        ..Figures::default()
    };
    let began = Instant::now();
    while figures.crashes.is_empty() {
        let left = time.saturating_sub(began.elapsed()).as_secs();
        if left == 0 {
            break;
        }
        let mut command = program(target);
        command.arg(format!("-max_total_time={left}"));
        command.arg(&grown).arg(corpus(target));
        let output = command.output().map_err(file("start", &grown))?;
        let said = String::from_utf8_lossy(&output.stderr);
        figures.read(&said);
        if !output.status.success() {
            let log = folder(target).join("log");
            fs::write(&log, &*said).map_err(file("write", &log))?;
            match artifact(&said) {
                Some(input) if !is_there_again(target, &input)? => figures.disturbed += 1,
                Some(input) => figures.crashes.push(input),
                None => figures.crashes.push(log),
            }
        }
    }
    figures.minutes = (began.elapsed().as_secs_f64() / 6.0).round() / 10.0;
    Ok(figures)
}

/// Whether an input that was slow once always is. Whatever else went wrong with it is taken at its word.
fn is_there_again(target: &Target, input: &Path) -> Result<bool, Error> {
    let name = input.file_name().unwrap_or_default().to_string_lossy();
    if !name.starts_with("timeout-") {
        return Ok(true);
    }
    for _ in 0..TRIES {
        let output = program(target).arg(input).output();
        if output.map_err(file("try", input))?.status.success() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The input that libFuzzer says it has written.
fn artifact(said: &str) -> Option<PathBuf> {
    let line = said
        .lines()
        .rev()
        .find(|line| line.contains("Test unit written to "))?;
    line.rsplit(' ').next().map(PathBuf::from)
}

impl Figures {
    /// Adds what libFuzzer printed of one run.
    fn read(&mut self, said: &str) {
        let number = |text: &str| text.trim().parse::<u64>().unwrap_or(0);
        for line in said.lines() {
            if let Some(count) = line.strip_prefix("stat::number_of_executed_units:") {
                self.executions += number(count);
            }
            let words: Vec<_> = line.split(' ').collect();
            for pair in words.windows(2) {
                match pair[0] {
                    "cov:" => self.coverage = self.coverage.max(number(pair[1])),
                    "corp:" => self.corpus = number(pair[1].split('/').next().unwrap_or_default()),
                    _ => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_what_libfuzzer_prints() {
        let said = "#2\tINITED cov: 7 ft: 8 corp: 1/1b exec/s: 0 rss: 30Mb\n#9\tNEW    cov: 12 ft: 20 corp: 3/9b lim: 4 exec/s: 0\nstat::number_of_executed_units: 4000\n";
        let mut figures = Figures::default();
        figures.read(said);
        figures.read(said);
        assert_eq!((figures.executions, figures.coverage), (8000, 12));
        assert_eq!(figures.corpus, 3);
    }

    #[test]
    fn the_input_of_a_finding_is_found() {
        let said = "SUMMARY: libFuzzer: timeout\nartifact_prefix='/x/'; Test unit written to /x/timeout-1a\nstat::…\n";
        assert_eq!(artifact(said), Some("/x/timeout-1a".into()));
        assert_eq!(artifact("Done 5 runs"), None);
    }
}
