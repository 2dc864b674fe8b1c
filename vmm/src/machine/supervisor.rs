//! The main loop: one thread, one place where the phase of the VM changes.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use migration::cancel::CancelToken;
use migration::wire::frame::SnapshotId;
use migration::wire::tls::Credentials;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

use super::gate::Gate;
use super::outgoing::{Departed, Outgoing};
use super::pager::ToCome;
use super::saving::Saved;
use super::status::CardInfo;
use super::{End, MachineError};
use crate::console::{Console, Signals};
use crate::control::{CallReceiver, ControlServer, Footprint, LastMove, MoveCounts};
use crate::sandbox::InForce;
use crate::vcpu::{EventSender, VmEvent};
use crate::vm::{PausedVm, RunningVm, View, WORK_PERIOD};

/// How long responses under way may take when the process ends.
const FAREWELL: Duration = Duration::from_secs(2);

/// What other threads tell the main loop.
pub enum FromThread {
    /// A guest arrived and runs.
    Arrived {
        /// The VM.
        vm: Box<RunningVm>,
        /// Its cards' host side.
        cards: Vec<CardInfo>,
        /// How long that took from its connection on.
        took: Duration,
    },
    /// A guest is made out of snapshots, and paused.
    Restored {
        /// The VM.
        vm: Box<PausedVm>,
        /// Its cards' host side.
        cards: Vec<CardInfo>,
        /// It stays paused.
        paused: bool,
        /// Its memory, if that is filled while it runs.
        to_come: ToCome,
    },
    /// The memory of a restored guest is all there; or why it will never be.
    Filled(Result<(), String>),
    /// A guest is coming in; the token ends that.
    Receiving(CancelToken),
    /// An incoming move failed. With a reason to end, the process gives up.
    NotArrived {
        /// Whether a guest was to come; else somebody has measured the link.
        failed: bool,
        /// Why; the receiver ends.
        give_up: Option<String>,
    },
    /// An outgoing move is over.
    Departed(Box<Departed>),
    /// A snapshot is taken, or not.
    Saved(Box<Saved>),
    /// The measurement of the dirty rate is over.
    Measured,
}

/// The way from another thread into the main loop.
pub struct Notifier {
    sender: mpsc::Sender<FromThread>,
    wake: EventFd,
}

impl Notifier {
    /// Tells the main loop; it may be gone, then nobody needs to know.
    pub fn send(&self, message: FromThread) {
        let _ = self.sender.send(message);
        let _ = self.wake.write(1);
    }
}

/// Where the VM is.
pub(super) enum Phase {
    /// No guest yet; the token ends the move that comes in, if one does.
    Waiting(Option<CancelToken>),
    Running(Box<RunningVm>),
    Paused(Box<PausedVm>),
    Moving(Outgoing),
    /// Cut between GO and LIVE: the guest may run on the destination.
    Unknown(Box<PausedVm>),
    /// In transition, or gone.
    None,
}

/// Event data of the descriptors in the main loop.
const CALLS: u32 = 0;
const VCPUS: u32 = 1;
const THREADS: u32 = 2;
const SIGNALS: u32 = 3;
const CONSOLE: u32 = 4;
const SERIAL_ROOM: u32 = 5;
const WORK: u32 = 6;

/// The pieces that a process with a guest is made of.
pub struct Supervisor {
    pub(super) phase: Phase,
    pub(super) view: Option<View>,
    pub(super) cards: Vec<CardInfo>,
    pub(super) since: Option<Instant>,
    pub(super) last_move: Option<LastMove>,
    /// For whoever collects metrics.
    pub(super) moves: MoveCounts,
    pub(super) footprint: Option<Arc<Footprint>>,
    pub(super) panicked: bool,
    /// Ends the measurement of the dirty rate, while there is one.
    pub(super) measuring: Option<CancelToken>,
    /// The snapshot since which the dirty log has been on, so that the next can stand on it.
    pub(super) tracked: Option<SnapshotId>,
    /// What a guest out of snapshots still lacks of its memory.
    pub(super) to_come: ToCome,
    /// What proves to others who this host is.
    pub(super) tls: Option<Credentials>,
    /// Through it moves come in. Shut, for good, once it is decided that the process ends.
    pub(super) gate: Gate,
    /// A stop that waits for the end of a move.
    pub(super) stop_after_move: bool,
    /// How the guest has ended by itself while it was moved or saved.
    pub(super) end_after_move: Option<Result<End, MachineError>>,
    /// The guest came here paused: no switch knows yet where it is.
    pub(super) unannounced: bool,
    pub(super) end: Option<Result<End, MachineError>>,
    pub(super) events: Receiver<VmEvent>,
    pub(super) events_wake: EventFd,
    pub(super) event_sender: mpsc::Sender<VmEvent>,
    pub(super) threads: Receiver<FromThread>,
    pub(super) threads_wake: EventFd,
    pub(super) thread_sender: mpsc::Sender<FromThread>,
    pub(super) serial_room: EventFd,
    /// Ticks while there is a guest whose work is to be read.
    work_timer: TimerFd,
    pub(super) console: Console,
    /// Behind the console: until the terminal is given back, no signal may end the process.
    pub(super) signals: Signals,
    pub(super) calls: CallReceiver,
    pub(super) server: Option<ControlServer>,
    /// How this process is confined, once all is set up.
    pub(super) sandbox: Option<InForce>,
}

fn eventfd() -> Result<EventFd, MachineError> {
    EventFd::new(EFD_NONBLOCK).map_err(MachineError::host("make an eventfd"))
}

impl Supervisor {
    /// A supervisor that has no guest yet.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn new(
        signals: Signals,
        console: Console,
        calls: CallReceiver,
        server: Option<ControlServer>,
    ) -> Result<Self, MachineError> {
        let (event_sender, events) = mpsc::channel();
        let (thread_sender, threads) = mpsc::channel();
        Ok(Self {
            phase: Phase::Waiting(None),
            view: None,
            cards: Vec::new(),
            since: None,
            last_move: None,
            moves: MoveCounts::default(),
            footprint: None,
            panicked: false,
            measuring: None,
            tracked: None,
            to_come: ToCome::default(),
            tls: None,
            gate: Gate::default(),
            stop_after_move: false,
            end_after_move: None,
            unannounced: false,
            end: None,
            events,
            events_wake: eventfd()?,
            event_sender,
            threads,
            threads_wake: eventfd()?,
            thread_sender,
            serial_room: eventfd()?,
            work_timer: TimerFd::new()
                .map_err(|e| MachineError::host("make a timer")(std::io::Error::from(e)))?,
            signals,
            console,
            calls,
            server,
            sandbox: None,
        })
    }

    /// The console, to give its output to a serial port.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Where the vCPUs of a VM to be made say what happened.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn event_sender(&self) -> Result<EventSender, MachineError> {
        let wake = self
            .events_wake
            .try_clone()
            .map_err(MachineError::host("duplicate an eventfd"))?;
        Ok(EventSender::new(self.event_sender.clone(), wake))
    }

    /// What a serial port signals when it has room again.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn serial_room(&self) -> Result<EventFd, MachineError> {
        self.serial_room
            .try_clone()
            .map_err(MachineError::host("duplicate an eventfd"))
    }

    /// A way into the main loop.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn notifier(&self) -> Result<Notifier, MachineError> {
        Ok(Notifier {
            sender: self.thread_sender.clone(),
            wake: self
                .threads_wake
                .try_clone()
                .map_err(MachineError::host("duplicate an eventfd"))?,
        })
    }

    /// Takes a VM that runs.
    pub fn adopt(&mut self, vm: RunningVm, cards: Vec<CardInfo>) {
        self.take_in(vm.view(), cards, vm.counts_work());
        self.phase = Phase::Running(Box::new(vm));
    }

    /// Takes a VM that is paused.
    pub(super) fn adopt_paused(&mut self, vm: PausedVm, cards: Vec<CardInfo>) {
        self.take_in(vm.view(), cards, vm.counts_work());
        self.phase = Phase::Paused(Box::new(vm));
    }

    fn take_in(&mut self, view: View, cards: Vec<CardInfo>, counts_work: bool) {
        self.view = Some(view);
        self.cards = cards;
        self.since = Some(Instant::now());
        // Only who can be asked to move the guest needs to know what that costs it.
        if counts_work
            && self.server.is_some()
            && let Err(error) = self.work_timer.reset(WORK_PERIOD, Some(WORK_PERIOD))
        {
            tracing::warn!("the guest's work is not read: {error}");
        }
    }

    /// Serves until the guest has ended, left, or someone stops it.
    ///
    /// # Errors
    /// The guest crashed, or the loop cannot be set up.
    pub fn serve(self) -> Result<End, MachineError> {
        let loop_error = |e: event_manager::Error| {
            MachineError::host("run the main loop")(std::io::Error::other(e.to_string()))
        };
        let mut manager = EventManager::<Supervisor>::new().map_err(loop_error)?;
        let id = manager.add_subscriber(self);
        crate::memory::forget_text();
        let end = loop {
            if let Err(error) = manager.run() {
                break Err(loop_error(error));
            }
            let supervisor = manager.subscriber_mut(id).map_err(loop_error)?;
            if let Some(end) = supervisor.end.take() {
                break end;
            }
        };
        let supervisor = manager.remove_subscriber(id).map_err(loop_error)?;
        supervisor.close();
        end
    }

    /// The last acts: answers under way are written, then everything goes.
    fn close(mut self) {
        // A stop has done this, and waited for the move that was in, unless it was asked for twice. At other ends none
        // is in any more, or its guest has come and ended by itself, or the loop is broken and does not hear of that.
        if let Some(coming) = self.gate.shut() {
            let _ = coming.cancel();
        }
        if let Some(server) = self.server.take() {
            server.finish(FAREWELL);
        }
    }

    pub(super) fn finish(&mut self, end: End) {
        self.end.get_or_insert(Ok(end));
    }
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl MutEventSubscriber for Supervisor {
    fn init(&mut self, ops: &mut EventOps) {
        let mut events = vec![
            Events::with_data_raw(self.calls.as_raw_fd(), CALLS, EventSet::IN),
            Events::with_data(&self.events_wake, VCPUS, EventSet::IN),
            Events::with_data(&self.threads_wake, THREADS, EventSet::IN),
            Events::with_data_raw(self.signals.as_raw_fd(), SIGNALS, EventSet::IN),
            Events::with_data(&self.serial_room, SERIAL_ROOM, EventSet::IN),
            Events::with_data(&self.work_timer, WORK, EventSet::IN),
        ];
        if let Some(input) = self.console.input() {
            events.push(Events::with_data_raw(
                input.as_raw_fd(),
                CONSOLE,
                EventSet::IN,
            ));
        }
        for event in events {
            if let Err(error) = ops.add(event) {
                self.end
                    .get_or_insert(Err(MachineError::host("set up the main loop")(
                        std::io::Error::other(error.to_string()),
                    )));
            }
        }
    }

    fn process(&mut self, events: Events, _: &mut EventOps) {
        match events.data() {
            CALLS => {
                for call in self.calls.take() {
                    self.obey(call);
                }
            }
            VCPUS => {
                let _ = self.events_wake.read();
                while let Ok(event) = self.events.try_recv() {
                    self.vcpu_event(event);
                }
            }
            THREADS => {
                let _ = self.threads_wake.read();
                while let Ok(message) = self.threads.try_recv() {
                    self.heard(message);
                }
            }
            SIGNALS => {
                while self.signals.take().is_some() {
                    let _ = self.stop();
                }
            }
            CONSOLE => self.feed_serial(),
            SERIAL_ROOM => {
                let _ = self.serial_room.read();
                self.feed_serial();
            }
            WORK => {
                let _ = self.work_timer.wait();
                // Whoever reads memory that has not come waits for it.
                if let Phase::Running(vm) = &self.phase
                    && self.to_come.bytes() == 0
                {
                    // Being measured slows a guest down.
                    match self.measuring {
                        Some(_) => vm.forget_work(),
                        None => vm.note_work(),
                    }
                }
            }
            _ => {}
        }
    }
}
