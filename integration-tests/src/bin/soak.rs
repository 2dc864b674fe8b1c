//! `make soak`: faults on real moves, and moves without end.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use integration_tests::soak::faults::Campaign;
use integration_tests::soak::peers::Peers;
use integration_tests::{Error, chain};

/// Does faults of all kinds to moves of the bare guest
#[derive(Parser)]
struct Cli {
    /// Faults on moves
    #[arg(long, default_value_t = 2000)]
    faults: u32,
    /// The most minutes for them
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// What they are drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The first of them
    #[arg(long, default_value_t = 0)]
    first: u32,
    /// Do this one alone, as a report of a failure names it
    #[arg(long, value_name = "INDEX")]
    only: Option<u32>,
    /// Pairs of ends side by side
    #[arg(long, default_value_t = 3)]
    pairs: usize,
    /// After how many milliseconds a silent peer is dead
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    peer_timeout: u32,
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
    let campaign = Campaign {
        seed: cli.seed,
        indices: match cli.only {
            Some(index) => index..index + 1,
            None => cli.first..cli.first + cli.faults,
        },
        until: Some(Instant::now() + Duration::from_secs(60 * cli.minutes)),
        pairs: if cli.only.is_some() { 1 } else { cli.pairs },
        peers: Peers::of(cli.peer_timeout)?,
    };
    let tally = campaign.run(|fault, outcome, _| println!("{fault}\n   {outcome:?}"))?;
    println!(
        "{}",
        serde_json::to_string_pretty(&tally).unwrap_or_default()
    );
    Ok(tally.is_clean())
}
