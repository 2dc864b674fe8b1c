//! `make bench-net`: what the cards of guests carry, Ferry's beside QEMU's and the host kernel's, in one nested host.
//!
//! The rooms are in [`integration_tests::bench_net`]; here is the command line, the way into the nested host, and where the
//! figures go.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use integration_tests::bench::qemu::Package;
use integration_tests::bench_net::{Figures, Plan, table};
use integration_tests::nested::{self, Host, Options, Place, Stream};
use integration_tests::{Error, chain, programs};

/// Measures TCP and UDP streams and request/response between guests and their host, and prints what each program carries
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
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// How long a run is, in milliseconds
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    time: u64,
    /// The most guests of each program, 1 to 4
    #[arg(long, default_value_t = 4)]
    guests: usize,
    /// Where the figures go
    #[arg(long, value_name = "FILE", default_value_os_t = default_file())]
    json: PathBuf,
}

fn default_file() -> PathBuf {
    programs::target()
        .unwrap_or_else(|| "target".into())
        .join("bench-net/summary.json")
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
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-net: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// The same program with the same arguments, in a nested host that can write the figures.
fn inside(cli: &Cli) -> Result<(), Error> {
    let folder = cli.json.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|e| Error::file("make", folder, e))?;
    if cli.programs.iter().any(|name| name.starts_with("qemu")) {
        // Inside there is no network to fetch it by.
        Package::find()?;
    }
    let us = |e| Error::file("find", "(this program)".as_ref(), e);
    let argv = std::env::current_exe().map_err(us)?;
    let argv = std::iter::once(argv.to_string_lossy().into_owned()).chain(std::env::args().skip(1));
    let command = nested::command_like_ours(argv.collect()).map_err(us)?;
    let mut host = Host::boot(&Options {
        share: Some(folder.to_owned()),
        memory_mib: 6144,
        timeout: Duration::from_secs(60 * 60),
        ..Options::new(programs::nested_host()?)
    })?;
    let ended = host.run(&command, |stream, bytes| {
        let _ = match stream {
            Stream::Stdout => io::stdout().write_all(bytes),
            Stream::Stderr => io::stderr().write_all(bytes),
        };
    })?;
    match ended.status() {
        0 => Ok(()),
        status => Err(Error::Unexpected(format!(
            "in the nested host it ended with {status}"
        ))),
    }
}

fn here(cli: &Cli) -> Result<(), Error> {
    let plan = Plan {
        programs: cli.programs.clone(),
        runs: cli.runs.max(1),
        time: Duration::from_millis(cli.time),
        guests: cli.guests.clamp(1, 4),
    };
    let began = Instant::now();
    let told = |what: &str| eprintln!("{:>6.1} s  {what}", began.elapsed().as_secs_f64());
    let figures = plan.run(told, |figures| write(&cli.json, figures))?;
    println!("{}", table(&figures.rows));
    println!(
        "{} rows in {:.0} s, {}; all figures: {}",
        figures.rows.len(),
        began.elapsed().as_secs_f64(),
        figures.qemu,
        cli.json.display()
    );
    Ok(())
}

fn write(path: &Path, figures: &Figures) -> Result<(), Error> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|e| Error::file("make", folder, e))?;
    }
    let text = serde_json::to_string_pretty(figures)
        .map_err(|e| Error::Unexpected(format!("the figures are no JSON: {e}")))?;
    fs::write(path, text).map_err(|e| Error::file("write", path, e))
}
