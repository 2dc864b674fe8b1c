//! `make databases`: Redis and PostgreSQL in a whole Debian, moved there and back under load; then a power cut. Nothing of which a
//! database said that it is on the disk may be lost.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use integration_tests::databases;
use integration_tests::nested::{self, Options, Place};
use integration_tests::{Error, chain, programs};

/// Two boots, and the checks. Hung, it ends here.
const BESIDE: Duration = Duration::from_secs(40 * 60);
/// A move, with what is waited for before it, on a busy machine.
const A_MOVE: Duration = Duration::from_secs(120);
/// The copy of a disk and two guests in the memory of the nested host.
const MEMORY_MIB: u32 = 6144;

/// Moves databases under load and counts what they lost.
#[derive(Parser)]
struct Cli {
    /// Where the summary goes
    #[arg(long, value_name = "FILE", default_value_os_t = default_summary())]
    summary: PathBuf,
    /// Moves: there, and back, and so on
    #[arg(long, value_name = "N", default_value_t = 6)]
    moves: u32,
}

fn default_summary() -> PathBuf {
    programs::target()
        .unwrap_or_else(|| "target".into())
        .join("databases/summary.json")
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let place = Place::choose();
    let result = match place {
        Place::Native(_) => here(&cli),
        Place::Nested(_) => {
            println!("{place}");
            inside(&cli)
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("databases: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// The same program in a nested host that can write the summary.
fn inside(cli: &Cli) -> Result<bool, Error> {
    let folder = cli.summary.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|e| Error::file("make", folder, e))?;
    let (summary, moves) = (cli.summary.to_string_lossy(), cli.moves.to_string());
    let words = ["--summary", &summary, "--moves", &moves];
    let options = Options {
        share: Some(folder.to_owned()),
        timeout: BESIDE + A_MOVE.saturating_mul(cli.moves),
        memory_mib: MEMORY_MIB,
        ..Options::new(programs::nested_host()?)
    };
    Ok(nested::enter_with(&words, &options)?.status() == 0)
}

fn here(cli: &Cli) -> Result<bool, Error> {
    let start = Instant::now();
    let mut say = |text: &str| println!("[{:5.1} s] {text}", start.elapsed().as_secs_f64());
    let summary = databases::run(cli.moves, &mut say)?.judged();
    println!("\n{summary}");
    let text = serde_json::to_vec_pretty(&summary)
        .map_err(|e| Error::file("write", &cli.summary, e.into()))?;
    fs::write(&cli.summary, text).map_err(|e| Error::file("write", &cli.summary, e))?;
    println!("summary: {}", cli.summary.display());
    Ok(summary.clean)
}
