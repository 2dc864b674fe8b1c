//! A guest that leaves: the migration thread owns the VM until the move is over.

use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use migration::cancel::CancelToken;
use migration::event::Event;
use migration::source::{self, Moved};
use migration::wire::tls::{Credentials, Demand};
use migration::wire::{Connect, TcpTarget, TlsTarget, UnixTarget};

use super::supervisor::{FromThread, Notifier, chain};
use crate::config::Target;
use crate::control::{MigrateRequest, MoveEvent, MoveProgress};
use crate::sandbox::{self, Kind};
use crate::tls::TlsFiles;
use crate::vm::RunningVm;

/// What the thread that owns the VM does with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// It moves it.
    Move,
    /// It saves it into a file.
    Snapshot,
}

impl Purpose {
    /// What its thread is called.
    fn thread(self) -> &'static str {
        match self {
            Self::Move => "migration",
            Self::Snapshot => "snapshot",
        }
    }
}

/// A move or a snapshot under way, as the main thread sees it.
pub struct Outgoing {
    /// Which of them.
    pub purpose: Purpose,
    /// Where to.
    pub target: String,
    /// Ends it.
    pub cancel: CancelToken,
    /// Where it is.
    pub progress: Arc<Mutex<MoveProgress>>,
}

/// A move that is over, with the channel on which its asker waits for the report.
pub struct Departed {
    /// How it ended.
    pub moved: Moved<RunningVm>,
    /// The asker's channel; the report goes there once the phase has changed.
    pub asker: mpsc::Sender<MoveEvent>,
}

/// What a VM goes to a thread for, and the end of that.
pub(super) struct Errand {
    pub purpose: Purpose,
    /// Where to.
    pub target: String,
    pub cancel: CancelToken,
    pub notify: Notifier,
}

/// A VM lent to its thread, and what the asker hears; or the VM back, with why there is no thread.
pub(super) type Lent = Result<(Outgoing, Receiver<MoveEvent>), (Box<RunningVm>, std::io::Error)>;

/// Starts the migration thread.
///
/// # Errors
/// The thread cannot be had; the VM comes back with the error.
pub fn spawn(
    vm: Box<RunningVm>,
    request: &MigrateRequest,
    target: Box<dyn Connect + Send>,
    cancel: CancelToken,
    notify: Notifier,
) -> Lent {
    let errand = Errand {
        purpose: Purpose::Move,
        target: request.target.to_string(),
        cancel,
        notify,
    };
    let options = request.options();
    lend(
        vm,
        errand,
        move |vm, cancel, tell| source::migrate(vm, &*target, &options, cancel, tell),
        |moved, asker| FromThread::Departed(Box::new(Departed { moved, asker })),
    )
}

/// Starts a thread that owns the VM while the `engine` has it; then `over` makes of what came of it what the main loop
/// hears.
pub(super) fn lend<T>(
    vm: Box<RunningVm>,
    errand: Errand,
    engine: impl FnOnce(RunningVm, &CancelToken, &mut dyn FnMut(Event)) -> T + Send + 'static,
    over: impl FnOnce(T, mpsc::Sender<MoveEvent>) -> FromThread + Send + 'static,
) -> Lent {
    let Errand {
        purpose,
        target,
        cancel,
        notify,
    } = errand;
    let (asker, events) = mpsc::channel();
    let progress = Arc::new(Mutex::new(MoveProgress::default()));
    let outgoing = Outgoing {
        purpose,
        target,
        cancel: cancel.clone(),
        progress: progress.clone(),
    };
    // The VM is handed over once the thread is there: a thread that cannot be made must not take it along.
    let (hand_over, take) = mpsc::sync_channel::<Box<RunningVm>>(1);
    let thread = std::thread::Builder::new()
        .name(purpose.thread().into())
        .spawn(move || {
            sandbox::enter(Kind::Source);
            let Ok(vm) = take.recv() else {
                return;
            };
            let mut pace = Pace::default();
            let mut tell = |event: Event| {
                let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
                follow(&mut progress, &mut pace, &event);
                // Nobody may be listening any more; it goes on all the same.
                let _ = asker.send(event.into());
            };
            let done = engine(*vm, &cancel, &mut tell);
            notify.send(over(done, asker));
        });
    match thread {
        Ok(_) => match hand_over.send(vm) {
            Ok(()) => Ok((outgoing, events)),
            Err(back) => Err((
                back.0,
                std::io::Error::other("the thread ended at its start"),
            )),
        },
        Err(error) => Err((vm, error)),
    }
}

/// How the engine reaches the peer; `own` is what the VM was started with to prove who it is.
///
/// # Errors
/// Why it cannot be done as it was asked for.
pub(super) fn connector(
    request: &MigrateRequest,
    own: Option<&Credentials>,
) -> Result<Box<dyn Connect + Send>, String> {
    Ok(match &request.target {
        Target::Tcp(host, port) => {
            let address = if host.contains(':') {
                format!("[{host}]:{port}")
            } else {
                format!("{host}:{port}")
            };
            let target = TcpTarget::new(address);
            match request.tls {
                true => {
                    let name = request.peer.as_ref().unwrap_or(host);
                    Box::new(TlsTarget::new(target, demand(request, own, name)?))
                }
                false => Box::new(target),
            }
        }
        Target::Unix(path) => Box::new(UnixTarget::new(path.clone())),
    })
}

/// What the destination has to prove.
fn demand(
    request: &MigrateRequest,
    own: Option<&Credentials>,
    name: &str,
) -> Result<Demand, String> {
    let given = (request.tls_files.as_ref()).map(TlsFiles::credentials);
    let given = given.transpose().map_err(|error| chain(&error))?;
    let credentials = given.as_ref().or(own).ok_or(
        "TLS is not possible: this VM was started without --tls DIR; name the folder with `ferry migrate --tls DIR`",
    )?;
    credentials.demand_name(name).map_err(|error| chain(&error))
}

/// Since when a round goes on, and how much was sent before it.
#[derive(Default)]
struct Pace {
    since: Option<Instant>,
    wire_bytes: u64,
}

impl Pace {
    /// What was sent by now, over the time of the round: bytes a second.
    fn rate(&self, wire_bytes: u64) -> u64 {
        let nanos = self.since.map_or(0, |since| since.elapsed().as_nanos());
        let bytes = u128::from(wire_bytes.saturating_sub(self.wire_bytes));
        let rate = (bytes * 1_000_000_000).checked_div(nanos);
        rate.map_or(0, |rate| u64::try_from(rate).unwrap_or(u64::MAX))
    }
}

/// Keeps the progress that `ferry status` shows up to date.
fn follow(progress: &mut MoveProgress, pace: &mut Pace, event: &Event) {
    match event {
        Event::Connected { peer, .. } => progress.peer = Some(peer.clone()),
        Event::RoundStarted { index, pages } => {
            progress.round = *index;
            progress.pages = *pages;
            progress.pages_done = 0;
            progress.remaining_pages = *pages;
            pace.since = Some(Instant::now());
            pace.wire_bytes = progress.wire_bytes;
        }
        Event::Progress {
            pages_done,
            pages,
            wire_bytes,
            ..
        } => {
            progress.pages_done = *pages_done;
            progress.pages = *pages;
            progress.remaining_pages = pages.saturating_sub(*pages_done);
            progress.wire_bytes = *wire_bytes;
            progress.bandwidth_bytes_per_s = pace.rate(*wire_bytes);
        }
        Event::ThrottleChanged { percent, .. } => progress.throttle_percent.clone_from(percent),
        Event::Go => progress.committed = true,
        Event::RoundFinished { .. }
        | Event::SwitchingOver { .. }
        | Event::Live { .. }
        | Event::Failed { .. } => {}
    }
}
