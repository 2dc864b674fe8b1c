//! What a connection's thread asks of the VM's main thread, and how it is answered.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use migration::cancel::CancelToken;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::event::{MoveEvent, PredictEvent, RateEvent};
use super::metrics::Metrics;
use super::passed::PassedFile;
use super::request::{BalloonRequest, DirtyRateRequest, MigrateRequest, PredictRequest};
use super::snapshot::SnapshotRequest;
use super::status::Status;

/// Something to be done by the main thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Say how the VM is.
    Status,
    /// Say it in numbers.
    Metrics,
    /// Stop the vCPUs and devices. Done already is done.
    Pause,
    /// Let the vCPUs and devices go on. Done already is done.
    Resume {
        /// Also when the outcome of a move is unknown: the asker has made sure that the guest does not run
        /// elsewhere.
        force: bool,
    },
    /// End the move or the measurement under way; the guest stays here.
    Cancel,
    /// End the VM and the process.
    Stop,
    /// Set the size of the guest's balloon.
    Balloon(BalloonRequest),
    /// Move the guest.
    Migrate(MigrateRequest),
    /// Watch how fast the guest writes.
    DirtyRate(DirtyRateRequest),
    /// Say what a move would cost.
    Predict(PredictRequest),
    /// Save the guest into the file.
    Snapshot(SnapshotRequest, PassedFile),
}

/// The main thread's answer.
#[derive(Debug)]
pub enum Reply {
    /// To [`Command::Status`].
    Status(Box<Status>),
    /// To [`Command::Metrics`].
    Metrics(Box<Metrics>),
    /// It is done (cancel: it will be, the move's report says so).
    Done,
    /// It is not possible in the state that the VM is in. The text says which, and what to do. HTTP 409.
    Refused(String),
    /// It was tried and went wrong. HTTP 500.
    Failed(String),
    /// A move, or a snapshot, has begun: what happens, the report last. If nobody listens any more the sender just goes
    /// on.
    Moving(Receiver<MoveEvent>),
    /// A measurement has begun: its windows, and how it ended; and what ends it when nobody listens any more.
    Measuring(Receiver<RateEvent>, CancelToken),
    /// A prediction has begun: what was measured for it, and the prediction; and what ends it, likewise.
    Predicting(Receiver<PredictEvent>, CancelToken),
}

/// A command on its way to the main thread. Dropped without an answer it tells the asker so.
#[derive(Debug)]
pub struct Call {
    /// What to do.
    pub command: Command,
    /// Where the answer goes. There is room for it: sending never blocks.
    pub reply: SyncSender<Reply>,
}

impl Call {
    /// A call, and where its answer will come.
    pub fn new(command: Command) -> (Self, Receiver<Reply>) {
        let (reply, answer) = sync_channel(1);
        (Self { command, reply }, answer)
    }

    /// Answers; whoever asked may be gone, which is no concern of the VM.
    pub fn answer(self, reply: Reply) {
        let _ = self.reply.try_send(reply);
    }
}

/// The end of the queue of calls that connection threads hold.
#[derive(Debug, Clone)]
pub struct CallSender {
    calls: Sender<Call>,
    wake: Arc<EventFd>,
}

/// The main thread's end of the queue of calls. Its descriptor is readable when there may be some.
#[derive(Debug)]
pub struct CallReceiver {
    calls: Receiver<Call>,
    wake: Arc<EventFd>,
}

/// A queue of calls.
///
/// # Errors
/// The process is out of file descriptors.
pub fn calls() -> std::io::Result<(CallSender, CallReceiver)> {
    let (sender, receiver) = channel();
    let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
    Ok((
        CallSender {
            calls: sender,
            wake: Arc::clone(&wake),
        },
        CallReceiver {
            calls: receiver,
            wake,
        },
    ))
}

impl CallSender {
    /// Hands a command over. The answer comes on the receiver that is returned, or its other end is dropped
    /// when the main thread ends first.
    pub fn send(&self, command: Command) -> Receiver<Reply> {
        let (call, answer) = Call::new(command);
        // Without a receiver the call is dropped here, and the asker sees that at once.
        if self.calls.send(call).is_ok() {
            // Only a counter at its limit makes this fail, and then the main thread is awake already.
            let _ = self.wake.write(1);
        }
        answer
    }
}

impl CallReceiver {
    /// All calls that wait, oldest first, and the descriptor is quiet again. Never blocks.
    pub fn take(&self) -> Vec<Call> {
        // Quiet first: a call that comes in between is either in this list or wakes once more.
        let _ = self.wake.read();
        self.calls.try_iter().collect()
    }
}

impl AsRawFd for CallReceiver {
    fn as_raw_fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }
}
