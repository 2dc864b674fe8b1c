//! `make databases`: Redis and PostgreSQL in a whole Debian, moved there and back under load; then a power cut. Nothing
//! of which a database said that it is on the disk may be lost.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use integration_tests::nested::{Errand, default_summary, write_summary};
use integration_tests::{Error, databases};

const NAME: &str = "databases";
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
    #[arg(long, value_name = "FILE", default_value_os_t = default_summary(NAME))]
    summary: PathBuf,
    /// Moves: there, and back, and so on
    #[arg(long, value_name = "N", default_value_t = 6)]
    moves: u32,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let errand = Errand {
        memory_mib: Some(MEMORY_MIB),
        ..Errand::new(
            NAME,
            &cli.summary,
            BESIDE + A_MOVE.saturating_mul(cli.moves),
        )
    };
    errand.run(|| here(&cli))
}

fn here(cli: &Cli) -> Result<bool, Error> {
    let start = Instant::now();
    let mut say = |text: &str| println!("[{:5.1} s] {text}", start.elapsed().as_secs_f64());
    let summary = databases::run(cli.moves, &mut say)?.judged();
    println!("\n{summary}");
    write_summary(&cli.summary, &summary)?;
    println!("summary: {}", cli.summary.display());
    Ok(summary.clean)
}
