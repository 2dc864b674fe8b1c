//! `ferry migrate`: moves a guest and shows how it goes.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread::JoinHandle;
use std::time::Duration;

use clap::ValueEnum;
use migration::report::{Outcome, Report};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;

use super::error::{Failure, chain};
use super::exit;
use super::orders::Vm;
use super::wanted::Wanted;
use crate::config::Target;
use crate::console::Signals;
use crate::control::client::{Client, ClientError, Told};
use crate::control::{Compress, IF_PAUSED, IF_UNKNOWN, MigrateRequest, MoveEvent};
use crate::log;
use crate::page;
use crate::ui::{self, MoveView, Style};
use crate::units::{Size, Span};

/// Move a guest to a waiting `ferry receive` while it runs
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ferry migrate --control /tmp/a.sock tcp:127.0.0.1:7000
  At most 50 ms of downtime, at most 1 Gbit/s, and the figures into a file:
    ferry migrate --control /tmp/a.sock tcp:127.0.0.1:7000 --downtime 50ms --bandwidth 1Gbit \\
        --report move.json
  Within 10 minutes, with a longer downtime if need be:
    ferry migrate --control /tmp/a.sock tcp:127.0.0.1:7000 --timeout 10m --on-timeout switch
  With both memories compared before it runs there:
    ferry migrate --control /tmp/a.sock tcp:127.0.0.1:7000 --verify
  Over a slow link, compressed where that pays, with differences of pages that go again:
    ferry migrate --control /tmp/a.sock tcp:127.0.0.1:7000 --compress auto --delta 256M
  To another machine, encrypted; by its certificate (see `ferry certs`) it has to be beta:
    ferry migrate --control /tmp/a.sock tcp:10.0.0.2:7000 --tls /etc/ferry/tls \\
        --peer beta.example.org

Ctrl-C cancels the move, unless it is committed already; the guest stays where it is. A second one
leaves the move to itself.

Exit status: 0 completed, 1 failed (the guest runs on the source), 2 usage, 3 cancelled (the guest
runs on the source), 4 unknown (nobody told how the move ended: `ferry status` on both ends does; or
the connection was cut in the moment of the handover, and the guest is paused on the source. Look at
the destination: if the guest runs there, `ferry stop` the source; if it is still receiving, wait
and look again; if it has no guest, or is surely dead, `ferry resume --force` the source), 5 failed
or cancelled, and the guest could not go on (it is paused on the source: `ferry resume` tries
again).")]
pub struct Args {
    #[command(flatten)]
    vm: Vm,

    /// Where `ferry receive` listens: tcp:HOST:PORT, tcp:[IPv6]:PORT or unix:PATH
    #[arg(value_name = "TARGET")]
    target: Target,

    #[command(flatten)]
    wanted: Wanted,

    /// Compress pages on their way
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Compression::None)]
    compress: Compression,

    /// Keep so much of what was sent (64M without a SIZE), and send of pages that go again only what changed in them
    #[arg(long, value_name = "SIZE", num_args = 0..=1, default_missing_value = "64M")]
    delta: Option<DeltaCache>,

    /// Compare both memories before the guest is handed over; it stands still for as long as reading all that is in use
    /// takes, beyond --downtime
    #[arg(long)]
    verify: bool,

    /// Take the other end for dead when it does nothing for so long, 500ms to 1h [default: 5s]
    #[arg(long, value_name = "TIME")]
    peer_timeout: Option<Span>,

    /// Write the figures into this file, as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,

    /// Draw how it went into this file, as a page for a browser
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Compression {
    /// Whichever way pays on this link, measured as it goes; none where none does
    Auto,
    /// Send pages as they are
    None,
    /// LZ4: quick
    Lz4,
    /// Zstandard: tighter
    Zstd,
}

impl From<Compression> for Compress {
    fn from(compression: Compression) -> Self {
        match compression {
            Compression::Auto => Compress::Auto,
            Compression::None => Compress::None,
            Compression::Lz4 => Compress::Lz4,
            Compression::Zstd => Compress::Zstd,
        }
    }
}

/// The size behind `--delta`. It may be left out, so a target behind a bare `--delta` lands here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DeltaCache(u64);

impl FromStr for DeltaCache {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.parse::<Target>().is_ok() {
            return Err(format!(
                "{text} is the target, not a size; write --delta 64M, or --delta behind the target"
            ));
        }
        let size: Size = text.parse().map_err(|error| format!("{error}"))?;
        Ok(Self(size.0))
    }
}

/// What goes wrong on this side of a move.
#[derive(Debug, Error)]
pub(super) enum MoveError {
    #[error("--{flag} {}: take whole milliseconds", Span(*.time))]
    Fraction { flag: &'static str, time: Duration },
    #[error("cannot write the report to {}; take a file in a folder that exists and that you may write to", .path.display())]
    Report {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("could not write to {}; how the move went is told above", .path.display())]
    Written {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot wait for signals")]
    Signals(#[source] std::io::Error),
    #[error(
        "the VM stopped telling how the move goes, so its outcome is unknown here: ask `ferry status` on both ends"
    )]
    Silent(#[source] Option<ClientError>),
}

impl Args {
    /// The flags as a checked request.
    fn request(&self) -> Result<MigrateRequest, Failure> {
        let request = MigrateRequest {
            compress: self.compress.into(),
            delta_cache_bytes: self.delta.map(|DeltaCache(bytes)| bytes),
            verify: self.verify,
            peer_timeout_ms: millis("peer-timeout", self.peer_timeout)?,
            ..self.wanted.request(self.target.clone())?
        };
        request.checked().map_err(Failure::usage)
    }

    pub(super) fn run(self) -> Result<u8, Failure> {
        let request = self.request()?;
        // Opened before the move: afterwards it would be late to learn that it cannot be.
        let report_file = self.report.as_ref().map(Output::create).transpose()?;
        let page_file = self.html.as_ref().map(Output::create).transpose()?;
        // Before any thread, so that no thread takes a signal the old way.
        let signals =
            Signals::block().map_err(|error| Failure::error(MoveError::Signals(error)))?;

        let client = self.vm.client();
        let moving = client.migrate(&request).map_err(unbegun)?;
        let mut view = MoveView::new(&request.target.to_string());
        start_canceller(signals, client, view.notes(), || {})
            .map_err(|error| Failure::error(MoveError::Signals(error)))?;
        let report = follow(moving, &mut view);
        view.finish();
        let report = report.map_err(|error| Failure::with_status(exit::UNKNOWN, error))?;

        let text = ui::report_table(&report, &request.target.to_string(), Style::of_stdout());
        let _ = std::io::stdout().write_all(text.as_bytes());
        let json = serde_json::to_string_pretty(&report).map(|text| text + "\n");
        let page = page::moves::page(&report, &request.target.to_string());
        // The exit status tells of the guest, not of the files.
        for (file, text) in [(report_file, json), (page_file, Ok(page))] {
            if let Some(Err(failure)) = file.map(|file| file.write(text)) {
                log::complain(&failure.text());
            }
        }
        if let Some(error) = undone(&report, &request.target) {
            log::complain(&Failure::error(error).text());
        }
        Ok(exit::of_outcome(report.outcome))
    }
}

/// A file that is to be written when the move is over.
pub(super) struct Output {
    file: File,
    path: PathBuf,
}

impl Output {
    pub fn create(path: impl AsRef<Path>) -> Result<Self, Failure> {
        let path = path.as_ref().to_owned();
        match File::create(&path) {
            Ok(file) => Ok(Self { file, path }),
            Err(source) => Err(Failure::error(MoveError::Report { path, source })),
        }
    }

    pub fn write(mut self, text: serde_json::Result<String>) -> Result<(), Failure> {
        let text = text.map_err(std::io::Error::other);
        let written = text.and_then(|text| self.file.write_all(text.as_bytes()));
        let path = self.path;
        written.map_err(|source| Failure::error(MoveError::Written { path, source }))
    }
}

pub(super) fn millis(flag: &'static str, time: Option<Span>) -> Result<Option<u64>, Failure> {
    let Some(Span(time)) = time else {
        return Ok(None);
    };
    match u64::try_from(time.as_millis()) {
        Ok(ms) if Duration::from_millis(ms) == time => Ok(Some(ms)),
        _ => Err(Failure::usage(MoveError::Fraction { flag, time })),
    }
}

/// What became of a move that did not complete, and of the guest.
fn undone(report: &Report, target: &Target) -> Option<String> {
    let reason = &report.reason;
    match report.outcome {
        Outcome::Completed => None,
        Outcome::Failed if reason.contains(&target.to_string()) => {
            Some(format!("not moved, the guest runs here: {reason}"))
        }
        Outcome::Failed => Some(format!(
            "not moved to {target}, the guest runs here: {reason}"
        )),
        Outcome::Cancelled => Some(format!(
            "the move to {target} is cancelled, the guest runs here: {reason}"
        )),
        Outcome::Unknown => Some(format!(
            "the guest may run on {target}, it is paused here: {reason}; {IF_UNKNOWN}"
        )),
        Outcome::Paused => Some(format!(
            "not moved to {target}, and the guest is paused here: {reason}; {IF_PAUSED}"
        )),
    }
}

/// A move that the VM has not confirmed. Where it broke off in the middle of that, the move may have begun all the
/// same.
fn unbegun(error: ClientError) -> Failure {
    match error {
        ClientError::Broken { .. } => {
            Failure::with_status(exit::UNKNOWN, MoveError::Silent(Some(error)))
        }
        error => Failure::error(error),
    }
}

/// Shows what happens until the report comes.
fn follow(moving: Told<MoveEvent>, view: &mut MoveView) -> Result<Report, MoveError> {
    for event in moving {
        match event.map_err(|error| MoveError::Silent(Some(error)))? {
            MoveEvent::Happened(happening) => view.show(&happening),
            MoveEvent::Report { report } => return Ok(*report),
        }
    }
    Err(MoveError::Silent(None))
}

/// Starts the thread that turns the first signal into a cancel, and the second into the end of this process, behind
/// what is to be done to `leave`; it ends with the process.
pub(super) fn start_canceller(
    signals: Signals,
    client: Client,
    notes: ui::Notes,
    leave: impl FnOnce() + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            wait_for(&signals);
            match client.cancel() {
                Ok(()) => notes.show("cancelling; a second signal leaves the move to itself"),
                Err(error) => notes.show(&format!("not cancelled: {}", chain(&error))),
            }
            wait_for(&signals);
            notes.show("left: the move goes on or is cancelled without us; `ferry status` tells");
            leave();
            std::process::exit(i32::from(exit::UNKNOWN));
        })
}

fn wait_for(signals: &Signals) {
    while signals.take().is_none() {
        let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::NONE);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::control::Throttle;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn request(words: &str) -> Result<MigrateRequest, String> {
        asked("unix:/x", words)
    }

    fn over_tcp(words: &str) -> Result<MigrateRequest, String> {
        asked("tcp:127.0.0.1:7000", words)
    }

    fn asked(target: &str, words: &str) -> Result<MigrateRequest, String> {
        let line = format!("migrate --control /c {target} {words}");
        let line = Line::try_parse_from(line.split_whitespace());
        let line = line.map_err(|error| error.to_string())?;
        line.args.request().map_err(|failure| failure.to_string())
    }

    #[test]
    fn throttling_is_asked_for_by_name() {
        for (words, throttle) in [
            ("", Throttle::Auto),
            ("--throttle on", Throttle::Auto),
            ("--throttle auto", Throttle::Auto),
            ("--throttle auto-converge", Throttle::AutoConverge),
            ("--throttle sdps", Throttle::Sdps),
            ("--throttle off", Throttle::Off),
            ("--throttle dirty-limit", Throttle::DirtyLimit),
        ] {
            assert_eq!(request(words).unwrap().throttle, throttle, "{words}");
        }
        let refused = request("--throttle dirty").unwrap_err();
        assert!(refused.contains("dirty-limit"), "{refused}");
    }

    #[test]
    fn verifying_needs_two_memories_and_a_peer_its_time() {
        assert!(!over_tcp("").unwrap().verify);
        assert!(over_tcp("--verify").unwrap().verify);
        let refused = request("--verify").unwrap_err();
        assert!(refused.contains("no two to compare"), "{refused}");
        let options = over_tcp("--peer-timeout 2s").unwrap().options();
        assert_eq!(options.peer_timeout, Duration::from_secs(2));
        let options = over_tcp("").unwrap().options();
        assert_eq!(options.peer_timeout, Duration::from_secs(5));
        for words in ["--peer-timeout 499ms", "--peer-timeout 2h"] {
            let refused = over_tcp(words).unwrap_err();
            assert!(refused.contains("500 ms to 1 hour"), "{refused}");
        }
    }

    #[test]
    fn bounds_and_what_happens_at_them_reach_the_engine() {
        use migration::options::OnTimeout::{GiveUp, SwitchOver};
        let options = |words: &str| {
            let options = over_tcp(words).unwrap().options();
            let (seconds, ms) = (options.max_total.as_secs(), options.downtime_limit);
            let bounds = (options.max_rounds, seconds, ms.as_millis());
            (
                bounds,
                options.on_timeout,
                options.streams,
                options.bandwidth,
            )
        };
        assert_eq!(options(""), ((100, 3600, 300), GiveUp, 2, None));
        let all = "--max-rounds 7 --timeout 90s --downtime 50ms --on-timeout switch --streams 3 --bandwidth 1Gbit";
        let expected = ((7, 90, 50), SwitchOver, 3, Some(125_000_000));
        assert_eq!(options(all), expected);
        assert_eq!(options("--on-timeout cancel").1, GiveUp);
    }

    #[test]
    fn fewer_bytes_are_asked_for_in_words() {
        for (words, compress, delta) in [
            ("", Compress::None, None),
            ("--compress auto", Compress::Auto, None),
            ("--compress lz4 --delta", Compress::Lz4, Some(64 << 20)),
            ("--delta 1M --compress zstd", Compress::Zstd, Some(1 << 20)),
            ("--delta=2G", Compress::None, Some(2 << 30)),
        ] {
            let request = request(words).unwrap();
            assert_eq!(request.compress, compress, "{words}");
            assert_eq!(request.delta_cache_bytes, delta, "{words}");
        }
        let refused = request("--delta 1000K").unwrap_err();
        assert!(refused.contains("take at least 1M"), "{refused}");
    }
}
