//! Where the programs of this workspace are, seen from a program or test of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Error;

/// Overrides which `ferry` is tested.
const FERRY: &str = "FERRY";

/// The `ferry` binary: the one that `FERRY` names, else a release build, else what lies beside us. The speed
/// of a debug build is of no interest to any test here.
///
/// # Errors
/// It is not built.
pub fn ferry() -> Result<PathBuf, Error> {
    match std::env::var_os(FERRY) {
        Some(path) => existing(path.into(), "vmm"),
        None => find("ferry", "vmm"),
    }
}

/// The `nested-host` binary, which is also the init program of a nested host.
///
/// # Errors
/// It is not built.
pub fn nested_host() -> Result<PathBuf, Error> {
    find("nested-host", "integration-tests")
}

/// Puts a copy of a program where everybody may run it. By a program of its own (install(1)): a file that is open for
/// writing here is so in whatever another thread starts at that moment, and what is open for writing cannot be run
/// (ETXTBSY).
///
/// # Errors
/// It cannot be read, or there is no room.
pub fn install(from: &Path, to: &Path) -> Result<(), Error> {
    let mut command = Command::new("install");
    command.arg("--mode=755").args([from, to]);
    let output = command.output().map_err(|e| Error::file("copy", from, e))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(Error::Tool {
            command: format!("{command:?}"),
            said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        }),
    }
}

/// The folder of this workspace for things that are made: `target`, whatever cargo's own target folder is.
/// `None` when this program was carried to where there is no workspace.
pub fn target() -> Option<PathBuf> {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let workspace = crate_folder.parent().filter(|_| crate_folder.exists());
    workspace.map(|workspace| workspace.join("target"))
}

/// Looks in `release` beside our own profile's folder, then in our own.
fn find(name: &str, package: &'static str) -> Result<PathBuf, Error> {
    let us = std::env::current_exe().map_err(|e| Error::file("find", "(us)".as_ref(), e))?;
    let mut folder = us.parent().unwrap_or(&us);
    // Tests and examples lie one folder deeper than programs.
    if folder.ends_with("deps") || folder.ends_with("examples") {
        folder = folder.parent().unwrap_or(folder);
    }
    let release = folder.with_file_name("release").join(name);
    if release.exists() {
        return Ok(release);
    }
    existing(folder.join(name), package)
}

fn existing(path: PathBuf, package: &'static str) -> Result<PathBuf, Error> {
    if path.exists() {
        Ok(path)
    } else {
        Err(Error::NotBuilt(path, package))
    }
}
