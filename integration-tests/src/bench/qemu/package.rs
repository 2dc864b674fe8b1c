//! Gets QEMU 10 from Debian's backports without installing it: downloaded by apt, unpacked beside the
//! build, run from there with its own libraries. Where that cannot be had, the installed QEMU serves.
//!
//! The suite is that of the system with `-backports`, the mirror the one that apt is configured with; apt gets
//! folders of its own, so nothing of the system changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Error, programs};

/// Says, when everything is unpacked, from where: written last.
const DONE: &str = "unpacked";
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
        let backports = backports();
        match backports {
            Ok(root) => Ok((Self::unpacked(root), None)),
            Err(why) => {
                let program = PathBuf::from(PROGRAM);
                let this = Self {
                    program,
                    root: None,
                };
                match this.command().arg("--version").output() {
                    Ok(_) => Ok((this, Some(why))),
                    Err(e) => Err(Error::NoQemu(e)),
                }
            }
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

/// Downloads and unpacks, where it is not done yet.
fn backports() -> Result<PathBuf, Error> {
    let target = programs::target()
        .ok_or_else(|| Error::Unexpected("there is no workspace to keep QEMU in".to_owned()))?;
    let folder = target.join("bench/qemu");
    let root = folder.join("root");
    if folder.join(DONE).exists() {
        return Ok(root);
    }
    let suite = format!("{}-backports", codename()?);
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
    fs::write(&list, with_backports(&configured()?, &suite)?)
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

/// The name of this Debian: `bookworm`.
fn codename() -> Result<String, Error> {
    let path = Path::new("/etc/os-release");
    let text = fs::read_to_string(path).map_err(|e| Error::file("read", path, e))?;
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    match name.filter(|_| text.lines().any(|line| line == "ID=debian")) {
        Some(name) => Ok(name.trim_matches('"').to_owned()),
        None => Err(Error::Unexpected("this is not a Debian release".to_owned())),
    }
}

/// The sources that apt is configured with, in either of its two forms.
fn configured() -> Result<Vec<String>, Error> {
    let folder = Path::new("/etc/apt/sources.list.d");
    let entries = fs::read_dir(folder).map_err(|e| Error::file("list", folder, e))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    files.sort();
    files.push("/etc/apt/sources.list".into());
    Ok(files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .collect())
}

/// The first of the sources whose suite is the release itself, as a stanza that offers backports too.
fn with_backports(sources: &[String], suite: &str) -> Result<String, Error> {
    let release = suite.trim_end_matches("-backports");
    let stanza = |text: &str| {
        let has = |key: &str, wanted: &str| {
            let values = text.lines().find_map(|line| line.strip_prefix(key));
            values.is_some_and(|values| values.split_whitespace().any(|value| value == wanted))
        };
        (has("Suites:", release) && has("Components:", "main")).then(|| {
            let line = |line: &str| {
                if line.starts_with("Suites:") {
                    format!("Suites: {release} {suite}\n")
                } else {
                    format!("{line}\n")
                }
            };
            text.lines().map(line).collect::<String>()
        })
    };
    let one_line = |line: &str| {
        let rest = line.trim().strip_prefix("deb ")?;
        let (options, rest) = match rest.trim_start().strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        let (uri, found) = (words.next()?, words.next()?);
        let signed = options
            .split_whitespace()
            .find_map(|o| o.strip_prefix("signed-by="));
        let signed = signed.map_or(String::new(), |key| format!("Signed-By: {key}\n"));
        (found == release && words.any(|word| word == "main")).then(|| {
            format!(
                "Types: deb\nURIs: {uri}\nSuites: {release} {suite}\nComponents: main\n{signed}"
            )
        })
    };
    let found = sources.iter().find_map(|text| {
        let stanzas = text.split("\n\n").find_map(stanza);
        stanzas.or_else(|| text.lines().find_map(one_line))
    });
    found.ok_or_else(|| Error::Unexpected(format!("apt has no source of {release}, main")))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backports_come_from_the_configured_mirror() -> Result<(), Error> {
        let other = "deb https://elsewhere.example/apt thing main\n".to_owned();
        let stanza = "Types: deb\n# a comment\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n\
                      Components: main\nSigned-By: /k.gpg\n\nTypes: deb\nURIs: http://security.example\n\
                      Suites: bookworm-security\nComponents: main\n"
            .to_owned();
        let made = with_backports(&[other.clone(), stanza], "bookworm-backports")?;
        assert!(
            made.contains("URIs: http://mirror.example/debian\n"),
            "{made}"
        );
        assert!(
            made.contains("\nSuites: bookworm bookworm-backports\n"),
            "{made}"
        );
        assert!(
            made.contains("Signed-By: /k.gpg") && !made.contains("security"),
            "{made}"
        );

        let line =
            "# x\ndeb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian trixie main\n";
        let made = with_backports(&[other.clone(), line.to_owned()], "trixie-backports")?;
        assert_eq!(
            made,
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: trixie trixie-backports\nComponents: main\n\
             Signed-By: /k.gpg\n"
        );
        assert!(with_backports(&[other], "trixie-backports").is_err());
        Ok(())
    }
}
