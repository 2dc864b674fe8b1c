//! A guest that is saved into a file: the thread that owns the VM meanwhile.

use std::fs::File;
use std::sync::mpsc;

use migration::cancel::CancelToken;
use migration::source::{self, Hold, Keep, Snapshotted};

use super::outgoing::{Errand, Lent, Purpose, lend};
use super::supervisor::{FromThread, Notifier};
use crate::control::{MoveEvent, SnapshotRequest};
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
) -> Lent {
    let errand = Errand {
        purpose: Purpose::Snapshot,
        target: request.name(),
        cancel,
        notify,
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
    lend(
        vm,
        errand,
        move |vm, cancel, tell| source::snapshot(vm, keep, &options, cancel, tell),
        move |taken, asker| {
            FromThread::Saved(Box::new(Saved {
                taken,
                track,
                asker,
            }))
        },
    )
}
