//! A guest that is watched while it runs: the thread that measures how fast it writes.

use std::sync::mpsc::{self, Receiver};

use migration::cancel::CancelToken;
use migration::dirty_rate::{self, Contents, RateError};
use migration::guest::RunningGuest;

use super::supervisor::{FromThread, Notifier, chain};
use crate::control::{DirtyRateRequest, RateEvent};
use crate::sandbox::{self, Kind};
use crate::vm::RunningVm;

/// Starts the thread. Until it tells the main loop that it is done the dirty log is its own.
///
/// # Errors
/// The thread cannot be had.
pub fn spawn(
    vm: &RunningVm,
    request: &DirtyRateRequest,
    cancel: CancelToken,
    notify: Notifier,
) -> std::io::Result<Receiver<RateEvent>> {
    let (asker, events) = mpsc::channel();
    let (log, layout) = (vm.dirty_log(), vm.describe().layout);
    let compared = request.contents.then(|| vm.ram().clone());
    let windows = dirty_rate::windows(request.longest());
    let sample = request.sample();
    let measure = move || {
        sandbox::enter(Kind::DirtyRate);
        let mut tell = |window| asker.send(RateEvent::Window { window }).is_ok();
        let contents = compared.as_ref().map(|ram| Contents::new(ram, &layout));
        let log = contents.as_ref().map_or(&*log, |contents| contents as _);
        let done = dirty_rate::measure(log, &layout, &windows, sample, &cancel, &mut tell);
        let last = match done {
            Ok(watched) => RateEvent::Done {
                memory_bytes: layout.bytes(),
                bursts: watched.bursts,
            },
            Err(RateError::Cancelled(_)) => RateEvent::Failed {
                reason: "the measurement was cancelled".to_owned(),
            },
            Err(error) => RateEvent::Failed {
                reason: chain(&error),
            },
        };
        // The main loop first: who hears the end may move the guest at once.
        notify.send(FromThread::Measured);
        let _ = asker.send(last);
    };
    (std::thread::Builder::new()
        .name("dirty-rate".into())
        .spawn(measure))
    .map(|_| events)
}
