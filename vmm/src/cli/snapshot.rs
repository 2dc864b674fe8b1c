//! `ferry snapshot`: saves a guest into a file.
//!
//! The file is opened here and handed over the control socket, so a confined VM needs no path. It is written under
//! another name in the same folder, and gets its own when it is whole and on the disk.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use migration::cancel::CancelToken;
use migration::destination::Snapshot;
use migration::report::{Outcome, Report};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use thiserror::Error;

use super::error::{Failure, chain};
use super::exit;
use super::migrate::{Compression, MoveError, Output, millis, start_canceller};
use super::orders::Vm;
use super::wanted::Throttling;
use crate::console::Signals;
use crate::control::client::Told;
use crate::control::{Happening, IF_PAUSED, MoveEvent, SnapshotName, SnapshotRequest};
use crate::log;
use crate::ui::{self, MoveView};
use crate::units::{Rate, Span};

/// Save a running guest into a file; it goes on afterwards
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ferry snapshot --control /tmp/a.sock /srv/a.snap
  One that the next can stand on, and the next, of what was written since:
    ferry snapshot --control /tmp/a.sock /srv/a.snap --track
    ferry snapshot --control /tmp/a.sock /srv/a1.snap --base /srv/a.snap --track
  And end the guest when it is saved:
    ferry snapshot --control /tmp/a.sock /srv/a.snap --stop

`ferry restore` lets it go on from there, on any host that a move could go to. Ctrl-C, or `ferry
cancel`, ends it; the guest runs on. The file holds all of the guest's memory, and nothing in it is
encrypted: it is made for its owner's eyes alone.

Exit status: 0 saved, 1 failed (the guest runs on, there is no file; or it is saved and only --report
could not be written, which the message says), 2 usage, 3 cancelled, 4 unknown (nobody told how it
ended: ask `ferry status`), 5 failed or cancelled, and the guest could not go on (it is paused:
`ferry resume` tries again).")]
pub struct Args {
    #[command(flatten)]
    vm: Vm,

    /// The file; or a folder, for a file in it that is named by the time and by this process
    #[arg(value_name = "FILE")]
    target: PathBuf,

    /// Save only what was written since that snapshot: the guest's last, taken with --track
    #[arg(long, value_name = "PREVIOUS")]
    base: Option<PathBuf>,

    /// Go on finding written pages, so that the next snapshot can stand on this one. The guest's first write to each
    /// page then costs it a fault until then
    #[arg(long, conflicts_with = "stop")]
    track: bool,

    /// End the guest when it is saved
    #[arg(long)]
    stop: bool,

    /// Leave the guest paused when it is saved; `ferry resume` lets it go on
    #[arg(long, conflicts_with = "stop")]
    pause: bool,

    /// The longest time that the guest may stand still: 50ms, 1s [default: 300ms]
    #[arg(long, value_name = "TIME")]
    downtime: Option<Span>,

    /// The most that may be written: 100MB (bytes a second)
    #[arg(long, value_name = "RATE")]
    bandwidth: Option<Rate>,

    /// How to slow the guest down if it writes faster than the disk
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Throttling::Auto)]
    throttle: Throttling,

    /// Compress pages
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Compression::None)]
    compress: Compression,

    /// Write the figures into this file, as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// What goes wrong on this side of a snapshot.
#[derive(Debug, Error)]
enum SnapshotError {
    #[error("cannot make {}; take a file in a folder that exists and that you may write to", .path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("{} is there already: take another name, or remove it first", .0.display())]
    Exists(PathBuf),
    #[error("the snapshot is taken, and cannot get the name {}", .path.display())]
    Rename { path: PathBuf, source: io::Error },
    #[error("cannot open {}, which the snapshot is to stand on", .path.display())]
    Base { path: PathBuf, source: io::Error },
    #[error(
        "the VM stopped telling how the snapshot goes; whether the guest runs, `ferry status` says; {} is a snapshot if `ferry restore` takes it", .at.display()
    )]
    Silent { at: PathBuf, source: MoveError },
    #[error("not saved, the guest runs on: {0}")]
    Failed(String),
    /// It was given up, and the guest stands still.
    #[error("not saved, and the guest is paused: {0}; {IF_PAUSED}")]
    Stuck(String),
}

impl Args {
    pub(super) fn run(self) -> Result<u8, Failure> {
        let path = named(&self.target);
        let request = self.request(&path)?;
        let report_file = self.report.as_ref().map(Output::create).transpose()?;
        let signals =
            Signals::block().map_err(|error| Failure::error(MoveError::Signals(error)))?;
        let unfinished = Unfinished::create(&path).map_err(Failure::error)?;

        let client = self.vm.client();
        let saving = client
            .snapshot(&request, &unfinished.file)
            .map_err(Failure::error)?;
        let mut view = MoveView::new(&path.display().to_string());
        // Without us nobody gives it its name.
        let at = unfinished.at.clone();
        let leave = move || drop(fs::remove_file(&at));
        start_canceller(signals, client.clone(), view.notes(), leave)
            .map_err(|error| Failure::error(MoveError::Signals(error)))?;
        let report = follow(saving, &mut view);
        view.finish();
        let report = match report {
            Ok(report) => report,
            Err(source) => {
                let at = unfinished.leave();
                return Err(Failure::with_status(
                    exit::UNKNOWN,
                    SnapshotError::Silent { at, source },
                ));
            }
        };
        // Whatever becomes of it: neither the snapshot nor the guest has to do with that.
        let reported = report_file.map(|file| {
            let json = serde_json::to_string_pretty(&report).map(|text| text + "\n");
            file.write(json)
        });
        match report.outcome {
            Outcome::Completed => {}
            outcome => {
                let failed = match outcome {
                    Outcome::Paused => SnapshotError::Stuck(report.reason),
                    _ => SnapshotError::Failed(report.reason),
                };
                let status = exit::of_outcome(outcome);
                return Err(Failure::with_status(status, failed));
            }
        }
        let kept = unfinished.finish();
        if self.stop {
            // Only now: a guest whose snapshot has no name must not be gone.
            let last = match kept {
                Ok(_) => client.stop(),
                Err(_) => client.resume(false),
            };
            last.map_err(Failure::error)?;
        }
        let bytes = kept.map_err(Failure::error)?;
        let told = told(&path, bytes, &report, self.stop);
        let _ = writeln!(io::stdout(), "{told}");
        reported.transpose()?;
        Ok(exit::OK)
    }

    /// The flags as a checked request.
    fn request(&self, path: &Path) -> Result<SnapshotRequest, Failure> {
        let base = self.base.as_deref().map(name_of).transpose()?;
        let request = SnapshotRequest {
            name: Some(path.display().to_string()),
            base,
            track: self.track,
            pause: self.stop || self.pause,
            downtime_ms: millis("downtime", self.downtime)?,
            bandwidth_bytes_per_s: self.bandwidth.map(|Rate(rate)| rate),
            throttle: self.throttle.into(),
            compress: self.compress.into(),
        };
        request.checked().map_err(Failure::usage)
    }
}

/// The name in the file that the snapshot is to stand on.
fn name_of(path: &Path) -> Result<SnapshotName, Failure> {
    let file = File::open(path).map_err(|source| {
        let path = path.to_owned();
        Failure::error(SnapshotError::Base { path, source })
    })?;
    let cancel = CancelToken::new().map_err(|error| Failure::error(MoveError::Signals(error)))?;
    let base = Snapshot::open(file, path.display().to_string(), &cancel);
    Ok(SnapshotName(base.map_err(Failure::error)?.id()))
}

/// The file that is meant: in a folder one named by the time, in seconds since 1970, and by this process, since several
/// guests may be saved at a time.
fn named(target: &Path) -> PathBuf {
    if !target.is_dir() {
        return target.to_owned();
    }
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seconds = since.map_or(0, |since| since.as_secs());
    target.join(format!("{seconds}-{}.snapshot", std::process::id()))
}

/// A file under another name; removed unless it is finished, or left as it is.
struct Unfinished {
    file: File,
    at: PathBuf,
    path: PathBuf,
    left: bool,
}

impl Unfinished {
    fn create(path: &Path) -> Result<Self, SnapshotError> {
        use std::os::unix::fs::OpenOptionsExt;

        if fs::symlink_metadata(path).is_ok() {
            return Err(SnapshotError::Exists(path.to_owned()));
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.unfinished", std::process::id()));
        let at = path.with_file_name(name);
        // Guest memory is its owner's alone.
        let mut options = File::options();
        options.write(true).create_new(true).mode(0o600);
        match options.open(&at) {
            Ok(file) => Ok(Self {
                file,
                at,
                path: path.to_owned(),
                left: false,
            }),
            Err(source) => Err(SnapshotError::Create {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Leaves it under the name that it has; says which.
    fn leave(mut self) -> PathBuf {
        self.left = true;
        self.at.clone()
    }

    /// Gives it its name, for good; says how many bytes it has. A file that has got that name meanwhile keeps it.
    fn finish(self) -> Result<u64, SnapshotError> {
        let named = self.file.sync_all().and_then(|()| {
            rename(&self.at, &self.path)?;
            let folder = self.path.parent().filter(|folder| *folder != Path::new(""));
            File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
            Ok(self.file.metadata()?.len())
        });
        named.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => SnapshotError::Exists(self.path.clone()),
            _ => SnapshotError::Rename {
                path: self.path.clone(),
                source,
            },
        })
    }
}

/// Renames a file, unless there is one with the new name.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        // Not every file system can (NFS, for one): then the check that was made at the beginning is made again.
        Err(Errno::EINVAL | Errno::ENOSYS) if fs::symlink_metadata(to).is_ok() => {
            Err(io::ErrorKind::AlreadyExists.into())
        }
        Err(Errno::EINVAL | Errno::ENOSYS) => fs::rename(from, to),
        renamed => Ok(renamed?),
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // A finished one is not there any more.
        if !self.left
            && let Err(error) = fs::remove_file(&self.at)
            && error.kind() != io::ErrorKind::NotFound
        {
            let (at, error) = (self.at.display(), chain(&error));
            log::complain(&format!("{at} is left over: {error}"));
        }
    }
}

/// Shows the rounds until the report comes. What a move says beside them is of two ends.
fn follow(saving: Told<MoveEvent>, view: &mut MoveView) -> Result<Report, MoveError> {
    for event in saving {
        match event.map_err(|error| MoveError::Silent(Some(error)))? {
            MoveEvent::Happened(
                happening @ (Happening::RoundStarted { .. }
                | Happening::Progress { .. }
                | Happening::RoundFinished { .. }
                | Happening::ThrottleChanged { .. }),
            ) => view.show(&happening),
            MoveEvent::Happened(_) => {}
            MoveEvent::Report { report } => return Ok(*report),
        }
    }
    Err(MoveError::Silent(None))
}

/// One line of how it went.
fn told(path: &Path, bytes: u64, report: &Report, stopped: bool) -> String {
    let size = ui::bytes(bytes);
    let total = ui::millis(report.total_ms);
    let end = match report.blackout_ms {
        Some(blackout) => format!("the guest stood still for {}", ui::millis(blackout)),
        None if stopped => "the guest is stopped".to_owned(),
        None => "the guest is paused".to_owned(),
    };
    format!("saved in {}: {size} in {total}, {end}", path.display())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn request(words: &str) -> Result<SnapshotRequest, String> {
        let line = format!("snapshot --control /c /srv/a.snap {words}");
        let line = Line::try_parse_from(line.split_whitespace());
        let args = line.map_err(|error| error.to_string())?.args;
        let request = args.request(Path::new("/srv/a.snap"));
        request.map_err(|failure| failure.to_string())
    }

    #[test]
    fn flags_become_a_request() {
        let plain = request("").unwrap();
        assert_eq!(plain.name(), "/srv/a.snap");
        assert!(!plain.track && !plain.pause && plain.base.is_none());
        assert!(request("--stop").unwrap().pause);
        assert!(request("--pause --track").unwrap().track);
        let limits = request("--downtime 50ms --bandwidth 100MB --compress zstd").unwrap();
        assert_eq!(limits.options().bandwidth, Some(100_000_000));
        for bad in [
            "--stop --track",
            "--stop --pause",
            "--downtime 2h",
            "--base /none",
        ] {
            assert!(request(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_gets_its_name_when_it_is_whole_and_is_its_owners_alone() {
        let folder = std::env::temp_dir().join(format!("ferry-named-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("a.snap");
        let files = || fs::read_dir(&folder).unwrap().count();
        drop(Unfinished::create(&path).unwrap());
        assert_eq!(files(), 0);
        let mut unfinished = Unfinished::create(&path).unwrap();
        unfinished.file.write_all(b"whole").unwrap();
        assert!(!path.exists());
        assert_eq!(unfinished.finish().unwrap(), 5);
        assert_eq!((files(), fs::read(&path).unwrap()), (1, b"whole".to_vec()));
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let again = Unfinished::create(&path).map(drop).unwrap_err();
        assert!(again.to_string().contains("is there already"), "{again}");
        // Another got the name meanwhile.
        let other = folder.join("b.snap");
        let late = Unfinished::create(&other).unwrap();
        fs::write(&other, "theirs").unwrap();
        let late = late.finish().unwrap_err().to_string();
        assert!(late.contains("is there already"), "{late}");
        assert_eq!(fs::read(&other).unwrap(), b"theirs");
        assert_eq!(files(), 2);
        let left = Unfinished::create(&folder.join("c.snap")).unwrap().leave();
        assert!(left.exists());
        assert_eq!(named(&folder).parent(), Some(folder.as_path()));
        fs::remove_dir_all(&folder).unwrap();
    }
}
