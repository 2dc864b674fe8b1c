//! `make bench-boot`: a stock kernel to its init, in Ferry and in QEMU's microvm, in turn in one place.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use integration_tests::bench::qemu::Package;
use integration_tests::boots;
use integration_tests::nested::{self, Options, Place};
use integration_tests::{Error, chain, programs};

/// Boots take some ten seconds each in the nested host. Hung, it ends here.
const WHOLE: Duration = Duration::from_secs(40 * 60);

/// Boots a stock kernel to its init in Ferry and in QEMU, and measures both.
#[derive(Parser)]
struct Cli {
    /// Where the summary goes
    #[arg(long, value_name = "FILE", default_value_os_t = default_summary())]
    summary: PathBuf,
    /// How often each of the two boots
    #[arg(long, value_name = "N", default_value_t = 7)]
    runs: u32,
}

fn default_summary() -> PathBuf {
    programs::target()
        .unwrap_or_else(|| "target".into())
        .join("bench-boot/summary.json")
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
            eprintln!("bench-boot: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// The same program in a nested host that can write the summary. QEMU is got out here, where there is a network.
fn inside(cli: &Cli) -> Result<bool, Error> {
    Package::find()?;
    let folder = cli.summary.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|e| Error::file("make", folder, e))?;
    let (summary, runs) = (cli.summary.to_string_lossy(), cli.runs.to_string());
    let words = ["--summary", &summary, "--runs", &runs];
    let options = Options {
        share: Some(folder.to_owned()),
        timeout: WHOLE,
        ..Options::new(programs::nested_host()?)
    };
    Ok(nested::enter_with(&words, &options)?.status() == 0)
}

fn here(cli: &Cli) -> Result<bool, Error> {
    let summary = boots::run(cli.runs.max(1), &mut |text| println!("{text}"))?;
    println!("\n{summary}");
    let text = serde_json::to_vec_pretty(&summary)
        .map_err(|e| Error::file("write", &cli.summary, e.into()))?;
    fs::write(&cli.summary, text).map_err(|e| Error::file("write", &cli.summary, e))?;
    println!("summary: {}", cli.summary.display());
    Ok(summary.own_within_limit)
}
