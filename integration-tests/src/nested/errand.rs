//! A program that looks at Linux guests and leaves a summary. It runs where those do: here, or in a nested host, which
//! it enters as the program that it is, with its own arguments.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

use super::{Options, Place, enter_once, enter_with};
use crate::qemu::Package;
use crate::{Error, chain, programs};

/// What such a program needs of a nested host.
#[derive(Debug, Clone, Copy)]
pub struct Errand<'a> {
    /// What it is called.
    pub name: &'a str,
    /// Where its summary goes. The folder is all that a nested host may write.
    pub summary: &'a Path,
    /// It hangs if it takes longer.
    pub timeout: Duration,
    /// Memory of the nested host, if it is more than usual.
    pub memory_mib: Option<u32>,
    /// Its processors, if they are more than usual.
    pub cpus: Option<u32>,
    /// Arguments for it in a nested host, beside its own.
    pub words: &'a [&'a str],
    /// It can go on from its summary, with `--go-on`: where a nested host, or a guest in it, is lost, another takes
    /// over, as long as of so many in a row one gets further. 0: a loss is the end.
    pub patience: u32,
    /// It runs QEMU, which is got out here: inside there is no network.
    pub qemu: bool,
}

impl<'a> Errand<'a> {
    /// One in a nested host of the usual size, without QEMU, for which a loss is the end.
    pub fn new(name: &'a str, summary: &'a Path, timeout: Duration) -> Self {
        Self {
            name,
            summary,
            timeout,
            memory_mib: None,
            cpus: None,
            words: &[],
            patience: 0,
            qemu: false,
        }
    }

    /// Does it; `here` is the work, and says whether all was as it should be.
    pub fn run(&self, here: impl FnOnce() -> Result<bool, Error>) -> ExitCode {
        let place = Place::choose();
        let result = match place {
            Place::Native(_) => here(),
            Place::Nested(_) => {
                println!("{place}");
                self.enter()
            }
        };
        match result {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("{}: {}", self.name, chain(&error));
                ExitCode::FAILURE
            }
        }
    }

    fn enter(&self) -> Result<bool, Error> {
        if self.qemu {
            Package::find()?;
        }
        let folder = self.summary.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(|e| Error::file("make", folder, e))?;
        check_shared(folder)?;
        let mut options = Options {
            share: Some(folder.to_owned()),
            timeout: self.timeout,
            ..Options::new(programs::nested_host()?)
        };
        options.memory_mib = self.memory_mib.unwrap_or(options.memory_mib);
        options.cpus = self.cpus.unwrap_or(options.cpus);
        let words: Vec<String> = std::env::args().skip(1).collect();
        let own = words.iter().map(String::as_str);
        let mut words: Vec<&str> = own.chain(self.words.iter().copied()).collect();
        if self.patience == 0 {
            return Ok(enter_with(&words, &options)?.status() == 0);
        }
        let (mut in_vain, mut before) = (0, self.so_far());
        loop {
            let lost = match enter_once(&words, &options) {
                Ok(ended) => match ended.status() {
                    0 => return Ok(true),
                    // It has told why.
                    status => format!("status {status}"),
                },
                Err(error @ (Error::Gone { .. } | Error::StandsStill(..))) => chain(&error),
                Err(error) => return Err(error),
            };
            let now = self.so_far();
            in_vain = if now == before { in_vain + 1 } else { 0 };
            before = now;
            if in_vain >= self.patience {
                return Err(Error::Unexpected(format!(
                    "{in_vain} nested hosts in a row got no further; the last one: {lost}"
                )));
            }
            println!("{lost}\nit goes on in a fresh nested host");
            if !words.contains(&GO_ON) {
                words.push(GO_ON);
            }
        }
    }

    /// The summary as it is.
    fn so_far(&self) -> Vec<u8> {
        fs::read(self.summary).unwrap_or_default()
    }
}

/// Tells such a program to go on from its summary.
const GO_ON: &str = "--go-on";

/// Whether a nested host can do without that folder for its own temporary files: what is shared with it holds no
/// sockets.
fn check_shared(folder: &Path) -> Result<(), Error> {
    let whole = folder
        .canonicalize()
        .map_err(|e| Error::file("find", folder, e))?;
    match std::env::temp_dir().starts_with(&whole) {
        true => Err(Error::Unexpected(format!(
            "{} is where this host and the nested one have their temporary files, sockets among them, which cannot be made in a shared folder: put the summary in a folder of its own",
            whole.display()
        ))),
        false => Ok(()),
    }
}

/// Where a program's summary goes if nobody says otherwise: `target/NAME/summary.json`.
pub fn default_summary(name: &str) -> PathBuf {
    let target = programs::target().unwrap_or_else(|| "target".into());
    target.join(name).join("summary.json")
}

/// Writes a summary as JSON, its folder with it.
///
/// # Errors
/// It cannot be written.
pub fn write_summary(path: &Path, summary: &impl Serialize) -> Result<(), Error> {
    let failed = |e| Error::file("write", path, e);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|e| Error::file("make", folder, e))?;
    }
    let text = serde_json::to_vec_pretty(summary).map_err(|e| failed(e.into()))?;
    fs::write(path, text).map_err(failed)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_temporary_files_is_not_shared() {
        let temporary = std::env::temp_dir();
        for folder in [&*temporary, Path::new("/")] {
            let text = check_shared(folder).unwrap_err().to_string();
            assert!(text.contains("a folder of its own"), "{text}");
        }
        let own = tempfile::tempdir().unwrap();
        check_shared(own.path()).unwrap();
        assert!(check_shared(&own.path().join("missing")).is_err());
    }
}
