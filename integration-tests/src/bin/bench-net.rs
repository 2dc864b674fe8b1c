//! `make bench-net`: what the cards of guests carry, Ferry's beside QEMU's and the host kernel's, in one nested host.
//!
//! The rooms are in [`integration_tests::bench_net`]; here is the command line, the way into the nested host, and where
//! the figures go.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use integration_tests::Error;
use integration_tests::bench_net::{Figures, PROGRAMS, Plan, USUAL, table};
use integration_tests::nested::{Errand, Place, default_summary, write_summary};

const NAME: &str = "bench-net";
/// Hung, it ends here.
const WHOLE: Duration = Duration::from_secs(60 * 60);
/// So many nested hosts in a row may be lost without a row.
const PATIENCE: u32 = 4;
/// Up to twelve guests are there at once.
const MEMORY_MIB: u32 = 6144;

/// Measures TCP and UDP streams and request/response between guests and their host, and prints what each program
/// carries
#[derive(Parser)]
struct Cli {
    /// Which programs take part
    #[arg(long, value_delimiter = ',', default_values = USUAL, value_parser = PROGRAMS)]
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
    /// Processors of the nested hosts, where guests need one; all rows are measured in a host of each. Where they are
    /// more than one, QEMU's emulator loses QEMU's guests, so there are none, and now and then another, or the host: a
    /// fresh one then goes on with the rows that are missing
    #[arg(long, value_delimiter = ',', default_values = ["1", "2"], value_parser = clap::value_parser!(u32).range(1..=16))]
    processors: Vec<u32>,
    /// Inside: so many processors are there
    #[arg(long, hide = true)]
    part: Option<u32>,
    /// Go on with the runs that FILE has not
    #[arg(long, overrides_with = "go_on")]
    go_on: bool,
    /// Where the figures go
    #[arg(long, value_name = "FILE", default_value_os_t = default_summary(NAME))]
    json: PathBuf,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Place::Native(_) = Place::choose() {
        return errand(&cli, &[]).run(|| here(&cli));
    }
    if !cli.go_on {
        // What is there is of another time. Where there is nothing, that is the end of it.
        let _ = std::fs::remove_file(&cli.json);
    }
    for (index, processors) in cli.processors.iter().enumerate() {
        let part = processors.to_string();
        let words = ["--part", &part, "--go-on"];
        // The first begins with nothing, unless it is asked to go on.
        let words = match index == 0 {
            true => &words[..2],
            false => &words,
        };
        let errand = Errand {
            cpus: Some(*processors),
            ..errand(&cli, words)
        };
        let ended = errand.run(|| here(&cli));
        if ended != ExitCode::SUCCESS {
            return ended;
        }
    }
    ExitCode::SUCCESS
}

fn errand<'a>(cli: &'a Cli, words: &'a [&'a str]) -> Errand<'a> {
    Errand {
        memory_mib: Some(MEMORY_MIB),
        words,
        patience: PATIENCE,
        qemu: cli.programs.iter().any(|name| name.starts_with("qemu")),
        ..Errand::new(NAME, &cli.json, WHOLE)
    }
}

fn here(cli: &Cli) -> Result<bool, Error> {
    let one = cli.part.is_none_or(|processors| processors == 1);
    let programs = (cli.programs.iter()).filter(|name| one || !name.starts_with("qemu"));
    let plan = Plan {
        programs: programs.cloned().collect(),
        runs: cli.runs.max(1),
        time: Duration::from_millis(cli.time),
        guests: cli.guests.clamp(1, 4),
        only: cli.only.clone(),
    };
    let began = Instant::now();
    let told = |what: &str| eprintln!("{:>6.1} s  {what}", began.elapsed().as_secs_f64());
    let before = match cli.go_on {
        true => so_far(&cli.json)?,
        false => Figures::default(),
    };
    let save = |figures: &Figures| write_summary(&cli.json, figures);
    save(&before)?;
    let figures = plan.run(before, told, save)?;
    println!("{}", table(&figures.rows));
    println!(
        "{} rows, {:.0} s, {}; all figures: {}",
        figures.rows.len(),
        began.elapsed().as_secs_f64(),
        figures.qemu,
        cli.json.display()
    );
    Ok(true)
}

/// The figures of before; none, if there is no such file.
fn so_far(path: &Path) -> Result<Figures, Error> {
    let failed = |e| Error::file("go on from", path, e);
    let text = match std::fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Figures::default()),
        read => read.map_err(failed)?,
    };
    serde_json::from_slice(&text).map_err(|e| failed(e.into()))
}
