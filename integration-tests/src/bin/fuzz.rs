//! Runs the fuzz targets, and makes their seeds.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use integration_tests::fuzzing::{fuzz_all, write_seeds};
use integration_tests::{Error, chain};

/// Fuzz what reads hostile bytes: wire, state, virtio queues, registers, control API, files
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the targets under libFuzzer; needs a nightly compiler, and installs cargo-fuzz
    Run {
        /// How long each of them runs
        #[arg(long, value_name = "N", default_value_t = 20.0)]
        minutes: f64,

        /// How many run at a time
        #[arg(long, value_name = "N", default_value_t = 1)]
        jobs: usize,

        /// Which; all if none is named
        targets: Vec<String>,
    },
    /// Write the seeds into the corpus in the tree
    Seeds,
}

fn main() -> ExitCode {
    let done = match Args::parse().command {
        Command::Run {
            minutes,
            jobs,
            targets,
        } => run(minutes, jobs, &targets),
        Command::Seeds => write_seeds().map(|count| {
            println!("{count} seeds are written");
            ExitCode::SUCCESS
        }),
    };
    done.unwrap_or_else(|error| {
        eprintln!("fuzz: {}", chain(&error));
        ExitCode::from(2)
    })
}

/// Ends with 1 if anything was found.
fn run(minutes: f64, jobs: usize, targets: &[String]) -> Result<ExitCode, Error> {
    let time = Duration::try_from_secs_f64(minutes * 60.0).unwrap_or_default();
    let all = fuzz_all(targets, time, jobs)?;
    println!("target/soak/fuzz.json is written");
    let clean = all.values().all(|figures| figures.crashes.is_empty());
    Ok(ExitCode::from(u8::from(!clean)))
}
