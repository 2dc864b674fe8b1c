//! `make bench-boot`: a stock kernel to its init, in Ferry and in QEMU's microvm, in turn in one place.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use integration_tests::nested::{Errand, default_summary, write_summary};
use integration_tests::{Error, boots};

const NAME: &str = "bench-boot";
/// Boots take some ten seconds each in the nested host. Hung, it ends here.
const WHOLE: Duration = Duration::from_secs(40 * 60);

/// Boots a stock kernel to its init in Ferry and in QEMU, and measures both.
#[derive(Parser)]
struct Cli {
    /// Where the summary goes
    #[arg(long, value_name = "FILE", default_value_os_t = default_summary(NAME))]
    summary: PathBuf,
    /// How often each of the two boots
    #[arg(long, value_name = "N", default_value_t = 7)]
    runs: u32,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let errand = Errand {
        qemu: true,
        ..Errand::new(NAME, &cli.summary, WHOLE)
    };
    errand.run(|| here(&cli))
}

fn here(cli: &Cli) -> Result<bool, Error> {
    let summary = boots::run(cli.runs.max(1), &mut |text| println!("{text}"))?;
    println!("\n{summary}");
    write_summary(&cli.summary, &summary)?;
    println!("summary: {}", cli.summary.display());
    Ok(summary.own_within_limit)
}
