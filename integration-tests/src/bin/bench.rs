//! `make bench`: what moves cost on this machine, Ferry beside QEMU, and beside what the machine itself can do.
//!
//! The rooms are in [`integration_tests::bench`]; here is the command line, and where the figures go.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use integration_tests::bench::limits::Limits;
use integration_tests::bench::machine::Machine;
use integration_tests::bench::plan::{Figures, Plan};
use integration_tests::bench::{FerrySetting, SCENARIOS, Scenario, table};
use integration_tests::{Error, chain, programs};

/// Moves bare guests by Ferry and by QEMU, verifies each, and prints what it cost
#[derive(Parser)]
struct Cli {
    /// Scenarios, all without; any other word tells their names
    #[arg(long, num_args = 1.., value_name = "NAME")]
    scenario: Vec<String>,
    /// Runs of each scenario; long ones are content with fewer
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Which programs move guests
    #[arg(long, value_delimiter = ',', default_value = "ferry,qemu")]
    programs: Vec<String>,
    /// One more setting of Ferry for each scenario: a name, and words for `ferry migrate`
    #[arg(long, value_name = "NAME=WORDS", value_parser = FerrySetting::parse)]
    setting: Vec<FerrySetting>,
    /// Do not measure the limits of the machine
    #[arg(long)]
    no_limits: bool,
    /// Where all figures go
    #[arg(long, value_name = "FILE", default_value_os_t = default_file())]
    json: PathBuf,
}

fn default_file() -> PathBuf {
    programs::target()
        .unwrap_or_else(|| "target".into())
        .join("bench/bench.json")
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match bench(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn bench(cli: &Cli) -> Result<(), Error> {
    let plan = Plan {
        scenarios: chosen(&cli.scenario)?,
        runs: cli.runs,
        programs: cli.programs.clone(),
        more: cli.setting.clone(),
        limits: !cli.no_limits,
    };
    let mut figures = Figures {
        machine: Machine::this(),
        limits: Limits::default(),
        rows: Vec::new(),
        endless: Vec::new(),
        left_out: Vec::new(),
    };
    let began = Instant::now();
    let told = |what: &str| eprintln!("{:>6.1} s  {what}", began.elapsed().as_secs_f64());
    plan.run(&mut figures, told, |figures| write(&cli.json, figures))?;
    println!("{}", table::table(&figures, &plan.scenarios));
    println!(
        "{} moves, all verified, in {:.0} s; all figures: {}",
        figures.rows.len(),
        began.elapsed().as_secs_f64(),
        cli.json.display()
    );
    Ok(())
}

fn chosen(names: &[String]) -> Result<Vec<&'static Scenario>, Error> {
    if names.is_empty() {
        return Ok(SCENARIOS.iter().collect());
    }
    let find = |name: &String| {
        let found = SCENARIOS.iter().find(|scenario| scenario.name == name);
        found.ok_or_else(|| {
            let all: Vec<&str> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
            Error::Unexpected(format!("no scenario {name}; there are: {}", all.join(", ")))
        })
    };
    names.iter().map(find).collect()
}

fn write(path: &Path, figures: &Figures) -> Result<(), Error> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|e| Error::file("make", folder, e))?;
    }
    let text = serde_json::to_string_pretty(figures)
        .map_err(|e| Error::Unexpected(format!("the figures are no JSON: {e}")))?;
    fs::write(path, text).map_err(|e| Error::file("write", path, e))
}
