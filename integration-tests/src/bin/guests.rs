//! `make guests`: stock kernels, 1 to 16 vCPUs, and a whole Debian; each boots, is asked what it sees, and is moved.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use integration_tests::guests::{self, Row, Summary};
use integration_tests::nested::{self, Options, Place};
use integration_tests::{Error, chain, programs};

/// Ten guests, some of which take minutes to boot on a machine that is emulated twice.
const WHOLE: Duration = Duration::from_secs(60 * 60);
/// The copy of a disk and two guests in the memory of the nested host.
const MEMORY_MIB: u32 = 6144;

/// Boots and moves the guests that people run: other stock kernels, 1 to 16 vCPUs, a whole Debian on a disk.
#[derive(Parser)]
struct Cli {
    /// Where the summary goes
    #[arg(long, value_name = "FILE", default_value_os_t = default_summary())]
    summary: PathBuf,
    /// Only guests whose line has this in it, for example `Debian` or `cloud agent 16`
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

fn default_summary() -> PathBuf {
    programs::target()
        .unwrap_or_else(|| "target".into())
        .join("guests/summary.json")
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
            eprintln!("guests: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// The same program in a nested host that can write the summary.
fn inside(cli: &Cli) -> Result<bool, Error> {
    let folder = cli.summary.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|e| Error::file("make", folder, e))?;
    let summary = cli.summary.to_string_lossy();
    let mut words = vec!["--summary", &*summary];
    words.extend(cli.only.iter().flat_map(|only| ["--only", only]));
    let options = Options {
        share: Some(folder.to_owned()),
        timeout: WHOLE,
        memory_mib: MEMORY_MIB,
        ..Options::new(programs::nested_host()?)
    };
    Ok(nested::enter_with(&words, &options)?.status() == 0)
}

fn here(cli: &Cli) -> Result<bool, Error> {
    println!("{}", Row::head());
    let rows = guests::run(cli.only.as_deref(), &mut |row| println!("{row}"));
    let summary = Summary::new(rows);
    let text = serde_json::to_vec_pretty(&summary)
        .map_err(|e| Error::file("write", &cli.summary, e.into()))?;
    fs::write(&cli.summary, text).map_err(|e| Error::file("write", &cli.summary, e))?;
    println!("summary: {}", cli.summary.display());
    Ok(summary.clean && !summary.guests.is_empty())
}
