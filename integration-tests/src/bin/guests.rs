//! `make guests`: stock kernels, 1 to 16 vCPUs, and a whole Debian; each boots, is asked what it sees, and is moved.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use integration_tests::Error;
use integration_tests::guests::{self, Row, Summary};
use integration_tests::nested::{Errand, default_summary, write_summary};

const NAME: &str = "guests";
/// Ten guests, some of which take minutes to boot on a machine that is emulated twice.
const WHOLE: Duration = Duration::from_secs(60 * 60);
/// The copy of a disk and two guests in the memory of the nested host.
const MEMORY_MIB: u32 = 6144;

/// Boots and moves the guests that people run: other stock kernels, 1 to 16 vCPUs, a whole Debian on a disk.
#[derive(Parser)]
struct Cli {
    /// Where the summary goes
    #[arg(long, value_name = "FILE", default_value_os_t = default_summary(NAME))]
    summary: PathBuf,
    /// Only guests whose line has this in it, for example `Debian` or `cloud agent 16`
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let errand = Errand {
        memory_mib: Some(MEMORY_MIB),
        ..Errand::new(NAME, &cli.summary, WHOLE)
    };
    errand.run(|| here(&cli))
}

fn here(cli: &Cli) -> Result<bool, Error> {
    println!("{}", Row::head());
    let rows = guests::run(cli.only.as_deref(), &mut |row| println!("{row}"));
    let summary = Summary::new(rows);
    write_summary(&cli.summary, &summary)?;
    println!("summary: {}", cli.summary.display());
    Ok(summary.clean && !summary.guests.is_empty())
}
