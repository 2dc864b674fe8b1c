//! `make bench-net`: what the cards of guests carry, Ferry's beside QEMU's and the host kernel's, in one nested host.
//!
//! The rooms are in [`integration_tests::bench_net`]; here is the command line, the way into the nested host, and where
//! the figures go.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use integration_tests::Error;
use integration_tests::bench_net::{Plan, table};
use integration_tests::nested::{Errand, default_summary, write_summary};

const NAME: &str = "bench-net";
/// Hung, it ends here.
const WHOLE: Duration = Duration::from_secs(60 * 60);
/// Up to twelve guests are there at once.
const MEMORY_MIB: u32 = 6144;

/// Measures TCP and UDP streams and request/response between guests and their host, and prints what each program
/// carries
#[derive(Parser)]
struct Cli {
    /// Which programs take part
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "native,ferry,qemu,qemu-vhost"
    )]
    programs: Vec<String>,
    /// Runs of each row, of which the median counts
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// How long a run is, in milliseconds
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    time: u64,
    /// The most guests of each program, 1 to 4
    #[arg(long, default_value_t = 4)]
    guests: usize,
    /// Only rows with this in their name, for example 'guest->host 4 UDP'; may be given several times
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Where the figures go
    #[arg(long, value_name = "FILE", default_value_os_t = default_summary(NAME))]
    json: PathBuf,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let errand = Errand {
        name: NAME,
        summary: &cli.json,
        timeout: WHOLE,
        memory_mib: Some(MEMORY_MIB),
        qemu: cli.programs.iter().any(|name| name.starts_with("qemu")),
    };
    errand.run(|| here(&cli))
}

fn here(cli: &Cli) -> Result<bool, Error> {
    let plan = Plan {
        programs: cli.programs.clone(),
        runs: cli.runs.max(1),
        time: Duration::from_millis(cli.time),
        guests: cli.guests.clamp(1, 4),
        only: cli.only.clone(),
    };
    let began = Instant::now();
    let told = |what: &str| eprintln!("{:>6.1} s  {what}", began.elapsed().as_secs_f64());
    let figures = plan.run(told, |figures| write_summary(&cli.json, figures))?;
    println!("{}", table(&figures.rows));
    println!(
        "{} rows in {:.0} s, {}; all figures: {}",
        figures.rows.len(),
        began.elapsed().as_secs_f64(),
        figures.qemu,
        cli.json.display()
    );
    Ok(true)
}
