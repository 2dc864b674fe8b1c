//! A guest that is saved into a file: the thread that owns the VM meanwhile.

use std::fs::File;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};

use migration::cancel::CancelToken;
use migration::event::Event;
use migration::source::{self, Hold, Keep, Snapshotted};

use super::outgoing::{Outgoing, Pace, Purpose, follow};
use super::supervisor::{FromThread, Notifier};
use crate::control::{MoveEvent, MoveProgress, SnapshotRequest};
use crate::sandbox::{self, Kind};
use crate::vm::RunningVm;

/// A snapshot that is over, with the channel on which its asker waits for the report.
pub struct Saved {
    /// How it ended.
    pub taken: Snapshotted<RunningVm>,
    /// The dirty log was to stay on.
    pub track: bool,
    /// The asker's channel; the report goes there once the phase has changed.
    pub asker: mpsc::Sender<MoveEvent>,
}

/// Starts the thread.
///
/// # Errors
/// The thread cannot be had; the VM comes back with the error.
pub fn spawn(
    vm: Box<RunningVm>,
    request: &SnapshotRequest,
    file: File,
    cancel: CancelToken,
    notify: Notifier,
) -> Result<(Outgoing, Receiver<MoveEvent>), (Box<RunningVm>, std::io::Error)> {
    let (asker, events) = mpsc::channel();
    let progress = Arc::new(Mutex::new(MoveProgress::default()));
    let outgoing = Outgoing {
        purpose: Purpose::Snapshot,
        target: request.name(),
        cancel: cancel.clone(),
        progress: progress.clone(),
    };
    let options = request.options();
    let track = request.track;
    let keep = Keep {
        file,
        name: request.name(),
        base: request.base.map(|name| name.0),
        track,
        hold: match request.pause {
            true => Hold::Yes,
            false => Hold::No,
        },
    };
    // The VM is handed over once the thread is there: a thread that cannot be made must not take it along.
    let (hand_over, take) = mpsc::sync_channel::<Box<RunningVm>>(1);
    let thread = std::thread::Builder::new()
        .name("snapshot".into())
        .spawn(move || {
            sandbox::enter(Kind::Source);
            let Ok(vm) = take.recv() else {
                return;
            };
            let mut pace = Pace::default();
            let mut tell = |event: Event| {
                let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
                follow(&mut progress, &mut pace, &event);
                // Nobody may be listening any more; the snapshot goes on all the same.
                let _ = asker.send(event.into());
            };
            let taken = source::snapshot(*vm, keep, &options, &cancel, &mut tell);
            let saved = Saved {
                taken,
                track,
                asker,
            };
            notify.send(FromThread::Saved(Box::new(saved)));
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
