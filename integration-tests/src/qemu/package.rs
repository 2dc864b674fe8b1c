//! Gets QEMU 10 from Debian's backports without installing it: downloaded by apt, unpacked beside the
//! build, run from there with its own libraries. Where that cannot be had, the installed QEMU serves.
//!
//! The suite is that of the system with `-backports`, the mirror the one that apt is configured with; apt gets
//! folders of its own, so nothing of the system changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::sources;
use crate::{Error, programs};

/// Says, when everything is unpacked, from where: written last.
const DONE: &str = "unpacked";
/// The folder of what was unpacked.
const ROOT: &str = "root";
const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";

/// A QEMU that can be started.
#[derive(Debug, Clone)]
pub struct Package {
    program: PathBuf,
    /// The folder in which a package was unpacked; `None` for an installed one.
    root: Option<PathBuf>,
}

impl Package {
    /// The one from backports, else the installed one, with the reason.
    ///
    /// # Errors
    /// There is none at all.
    pub fn find() -> Result<(Self, Option<Error>), Error> {
        match backports() {
            Ok(root) => Ok((Self::unpacked(root), None)),
            Err(why) => {
                let this = Self::installed();
                match this.command().arg("--version").output() {
                    Ok(_) => Ok((this, Some(why))),
                    Err(e) => Err(Error::NoQemu(e)),
                }
            }
        }
    }

    /// The one from backports if [`Package::find`] has got it before, else the installed one, if there is one.
    pub fn at_hand() -> Self {
        match folder() {
            Some(folder) if folder.join(DONE).exists() => Self::unpacked(folder.join(ROOT)),
            _ => Self::installed(),
        }
    }

    fn installed() -> Self {
        Self {
            program: PathBuf::from(PROGRAM),
            root: None,
        }
    }

    fn unpacked(root: PathBuf) -> Self {
        Self {
            program: root.join("usr/bin").join(PROGRAM),
            root: Some(root),
        }
    }

    /// The program itself, to be started by [`Package::prepare`].
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// A command that starts it.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        self.prepare(&mut command);
        command
    }

    /// Makes a command that starts [`Package::program`] find libraries and firmware.
    pub fn prepare(&self, command: &mut Command) {
        if let Some(root) = &self.root {
            command.env("LD_LIBRARY_PATH", root.join("usr/lib/x86_64-linux-gnu"));
            for folder in ["usr/share/qemu", "usr/share/seabios"] {
                command.arg("-L").arg(root.join(folder));
            }
        }
    }
}

/// Where everything is kept.
fn folder() -> Option<PathBuf> {
    Some(programs::target()?.join("qemu"))
}

/// Downloads and unpacks, where it is not done yet.
fn backports() -> Result<PathBuf, Error> {
    let folder = folder()
        .ok_or_else(|| Error::Unexpected("there is no workspace to keep QEMU in".to_owned()))?;
    let root = folder.join(ROOT);
    if folder.join(DONE).exists() {
        return Ok(root);
    }
    let suite = format!("{}-backports", sources::codename()?);
    let sources = folder.join("apt/sources");
    for made in [
        "apt/sources",
        "apt/lists/partial",
        "apt/cache/archives/partial",
    ] {
        let made = folder.join(made);
        fs::create_dir_all(&made).map_err(|e| Error::file("make", &made, e))?;
    }
    let list = sources.join("debian.sources");
    fs::write(
        &list,
        sources::with_backports(&sources::configured()?, &suite)?,
    )
    .map_err(|e| Error::file("write", &list, e))?;
    run(apt(&folder).arg("update"))?;
    run(apt(&folder)
        .args([
            "install",
            "--yes",
            "--download-only",
            "--no-install-recommends",
        ])
        .args(["--target-release", &suite, PACKAGE]))?;
    let debs = folder.join("apt/cache/archives");
    let entries = fs::read_dir(&debs).map_err(|e| Error::file("list", &debs, e))?;
    for deb in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if deb.extension().is_some_and(|extension| extension == "deb") {
            run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&root))?;
        }
    }
    let version = Package::unpacked(root.clone())
        .command()
        .arg("--version")
        .output();
    match version {
        Ok(output) if output.status.success() => fs::write(folder.join(DONE), output.stdout)
            .map_err(|e| Error::file("write", &folder.join(DONE), e))?,
        _ => {
            return Err(Error::Unexpected(format!(
                "{PACKAGE} of {suite} does not start from {}",
                root.display()
            )));
        }
    }
    Ok(root)
}

/// apt-get with folders of its own.
fn apt(folder: &Path) -> Command {
    let mut command = Command::new("apt-get");
    let folder = folder.join("apt");
    let mut option = |name: &str, value: &Path| {
        command.arg("-o").arg(format!("{name}={}", value.display()));
    };
    option("Dir::Etc::SourceList", Path::new("/dev/null"));
    option("Dir::Etc::SourceParts", &folder.join("sources"));
    option("Dir::State::lists", &folder.join("lists"));
    option("Dir::Cache", &folder.join("cache"));
    command.args(["-q", "-o", "APT::Sandbox::User=root"]);
    command
}

fn run(command: &mut Command) -> Result<(), Error> {
    let failed = |said: String| Error::Tool {
        command: format!("{command:?}"),
        said,
    };
    let mut again = Command::new(command.get_program());
    again.args(command.get_args());
    match again.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(failed(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        )),
        Err(e) => Err(failed(e.to_string())),
    }
}
