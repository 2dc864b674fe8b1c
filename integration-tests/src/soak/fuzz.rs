//! The fuzz targets of `integration-tests/fuzz`, run by cargo-fuzz for a given time each.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Serialize;

use crate::{Error, programs};

/// An input that takes longer is a hang.
const HANG_SECONDS: u32 = 1;
/// The most memory of a target, in MiB: what it allocates itself is bounded far below.
const MEMORY_MIB: u32 = 1024;

/// What came of it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Fuzzed {
    /// Minutes for each target.
    pub minutes: u32,
    /// The targets.
    pub targets: Vec<String>,
    /// Those that crashed, hung or took too much memory; cargo-fuzz says where it has put the input.
    pub failed: Vec<String>,
}

/// Runs all targets, one after another; told to `tell` as they begin.
///
/// # Errors
/// There are none, or there is no cargo-fuzz with a nightly compiler.
pub fn run(minutes: u32, tell: &mut dyn FnMut(&str)) -> Result<Fuzzed, Error> {
    let folder = folder();
    let listed = cargo_fuzz(&folder, &["list"])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| Error::file("run", "cargo +nightly fuzz".as_ref(), e))?;
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    let targets: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    if !listed.status.success() || targets.is_empty() {
        return Err(Error::Tool {
            command: "cargo +nightly fuzz list".into(),
            said: format!(
                "no targets in {} ({}); it needs `rustup toolchain install nightly` and `cargo install cargo-fuzz`",
                folder.display(),
                listed.status
            ),
        });
    }
    let mut result = Fuzzed {
        minutes,
        ..Fuzzed::default()
    };
    for target in targets {
        tell(&target);
        let status = cargo_fuzz(&folder, &["run", &target])
            .arg("--")
            .arg(format!("-max_total_time={}", 60 * minutes))
            .arg(format!("-timeout={HANG_SECONDS}"))
            .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
            .arg("-print_final_stats=1")
            .status()
            .map_err(|e| Error::file("run", "cargo +nightly fuzz".as_ref(), e))?;
        if !status.success() {
            result.failed.push(format!("{target}: {status}"));
        }
        result.targets.push(target);
    }
    Ok(result)
}

fn folder() -> PathBuf {
    let target = programs::target().unwrap_or_default();
    target.with_file_name("integration-tests").join("fuzz")
}

fn cargo_fuzz(folder: &Path, act: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(["+nightly", "fuzz"]).args(&act[..1]);
    command.arg("--fuzz-dir").arg(folder).args(&act[1..]);
    // Which compiler is used is not to be inherited from the cargo that has started us.
    command.env_remove("RUSTUP_TOOLCHAIN").stdin(Stdio::null());
    command
}
