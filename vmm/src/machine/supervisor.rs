//! The main loop: one thread, one place where the phase of the VM changes.

use std::os::fd::AsRawFd;
use std::sync::mpsc::{self, Receiver};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps,
};
use migration::cancel::CancelToken;
use migration::guest::{PausedGuest, RunningGuest};
use migration::source::After;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::outgoing::{self, Departed, Outgoing};
use super::status::{self, CardInfo};
use super::{End, MachineError, announce};
use crate::console::{Console, Signals};
use crate::control::{
    Call, CallReceiver, Command, ControlServer, LastMove, MigrateRequest, MoveEvent, Reply, State,
};
use crate::vcpu::{EventSender, VmEvent};
use crate::vm::{PausedVm, RunningVm, View, lock};

/// How long responses under way may take when the process ends.
const FAREWELL: Duration = Duration::from_secs(2);
/// The serial port's input FIFO is 16 bytes; more than it takes stays queued in the console.
const INPUT_CHUNK: usize = 64;

/// What other threads tell the main loop.
pub enum FromThread {
    /// A guest arrived and runs.
    Arrived {
        /// The VM.
        vm: Box<RunningVm>,
        /// Its cards' host side.
        cards: Vec<CardInfo>,
    },
    /// A guest is coming in; the token ends that.
    Receiving(CancelToken),
    /// An incoming move failed. With a reason to end, the process gives up.
    NotArrived {
        /// Why; the receiver ends.
        give_up: Option<String>,
    },
    /// An outgoing move is over.
    Departed(Box<Departed>),
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
enum Phase {
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

/// The pieces that a process with a guest is made of.
pub struct Supervisor {
    phase: Phase,
    view: Option<View>,
    cards: Vec<CardInfo>,
    since: Option<Instant>,
    last_move: Option<LastMove>,
    panicked: bool,
    /// A stop that waits for the end of a move.
    stop_after_move: bool,
    end: Option<Result<End, MachineError>>,
    events: Receiver<VmEvent>,
    events_wake: EventFd,
    event_sender: mpsc::Sender<VmEvent>,
    threads: Receiver<FromThread>,
    threads_wake: EventFd,
    thread_sender: mpsc::Sender<FromThread>,
    serial_room: EventFd,
    signals: Signals,
    console: Console,
    calls: CallReceiver,
    server: Option<ControlServer>,
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
            panicked: false,
            stop_after_move: false,
            end: None,
            events,
            events_wake: eventfd()?,
            event_sender,
            threads,
            threads_wake: eventfd()?,
            thread_sender,
            serial_room: eventfd()?,
            signals,
            console,
            calls,
            server,
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
        self.view = Some(vm.view());
        self.cards = cards;
        self.since = Some(Instant::now());
        self.phase = Phase::Running(Box::new(vm));
    }

    /// Serves until the guest has ended, left, or someone stops it.
    ///
    /// # Errors
    /// The guest crashed, or the loop cannot be set up.
    pub fn serve(self) -> Result<End, MachineError> {
        let loop_error =
            |e: event_manager::Error| MachineError::host("run the main loop")(std::io::Error::other(e.to_string()));
        let mut manager = EventManager::<Supervisor>::new().map_err(loop_error)?;
        let id = manager.add_subscriber(self);
        loop {
            manager.run().map_err(loop_error)?;
            let supervisor = manager.subscriber_mut(id).map_err(loop_error)?;
            if let Some(end) = supervisor.end.take() {
                let supervisor = manager.remove_subscriber(id).map_err(loop_error)?;
                supervisor.close();
                return end;
            }
        }
    }

    /// The last acts: answers under way are written, then everything goes.
    fn close(mut self) {
        if let Some(server) = self.server.take() {
            server.finish(FAREWELL);
        }
    }

    fn finish(&mut self, end: End) {
        self.end.get_or_insert(Ok(end));
    }

    // ---- calls ----

    fn obey(&mut self, call: Call) {
        let reply = match &call.command {
            Command::Status => Reply::Status(Box::new(self.status())),
            Command::Pause => self.pause(),
            Command::Resume { force } => self.resume(*force),
            Command::Cancel => self.cancel(),
            Command::Stop => self.stop(),
            Command::Migrate(request) => {
                let request = request.clone();
                self.migrate(&request)
            }
        };
        call.answer(reply);
    }

    fn status(&self) -> crate::control::Status {
        let mut state = self.state();
        let mut progress = None;
        if let Phase::Moving(outgoing) = &self.phase {
            progress = Some(
                outgoing
                    .progress
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone(),
            );
        }
        if self.end.is_some() && state == State::Waiting {
            state = State::Running;
        }
        let mut status = status::of(state, self.view.as_ref(), &self.cards, self.since);
        status.migration = progress;
        status.last_move.clone_from(&self.last_move);
        status
    }

    fn state(&self) -> State {
        match &self.phase {
            Phase::Waiting(None) | Phase::None => State::Waiting,
            Phase::Waiting(Some(_)) => State::Receiving,
            Phase::Running(_) => State::Running,
            Phase::Paused(_) => State::Paused,
            Phase::Moving(_) => State::Migrating,
            Phase::Unknown(_) => State::Unknown,
        }
    }

    /// "not possible while …", for a command that the phase does not allow.
    fn refused(&self, act: &str) -> Reply {
        let hint = match self.state() {
            State::Waiting => "no guest has arrived yet",
            State::Receiving => "a guest is coming in; wait until it is here",
            State::Migrating => {
                "the guest is being moved; `ferry cancel` ends that, or wait for its end"
            }
            State::Unknown => {
                "the last move ended between GO and LIVE and the guest may run on the destination; look there first: if it does not run, `ferry resume --force` here, if it does, `ferry stop` here"
            }
            State::Paused => "the guest is paused; `ferry resume` first",
            State::Running => "the guest runs",
        };
        Reply::Refused(format!("{act} is not possible: {hint}"))
    }

    fn pause(&mut self) -> Reply {
        match std::mem::replace(&mut self.phase, Phase::None) {
            Phase::Running(vm) => match vm.pause() {
                Ok(paused) => {
                    self.phase = Phase::Paused(Box::new(paused));
                    Reply::Done
                }
                Err(failed) => {
                    self.phase = Phase::Running(Box::new(failed.guest));
                    Reply::Failed(chain(&failed.error))
                }
            },
            Phase::Paused(vm) => {
                self.phase = Phase::Paused(vm);
                Reply::Done
            }
            other => {
                self.phase = other;
                self.refused("pause")
            }
        }
    }

    fn resume(&mut self, force: bool) -> Reply {
        let vm = match std::mem::replace(&mut self.phase, Phase::None) {
            Phase::Paused(vm) => vm,
            Phase::Unknown(vm) if force => vm,
            other => {
                let runs = matches!(other, Phase::Running(_));
                self.phase = other;
                return if runs { Reply::Done } else { self.refused("resume") };
            }
        };
        match vm.resume() {
            Ok(running) => {
                self.phase = Phase::Running(Box::new(running));
                Reply::Done
            }
            Err(failed) => {
                self.phase = Phase::Paused(Box::new(failed.guest));
                Reply::Failed(chain(&failed.error))
            }
        }
    }

    fn cancel(&mut self) -> Reply {
        let result = match &self.phase {
            Phase::Moving(outgoing) => outgoing.cancel.cancel(),
            Phase::Waiting(Some(cancel)) => cancel.cancel(),
            _ => return Reply::Refused("cancel is not possible: no move is under way".into()),
        };
        match result {
            Ok(()) => Reply::Done,
            Err(committed) => Reply::Refused(committed.to_string()),
        }
    }

    /// Ends the VM. A move under way is cancelled first; if it is too late for that, its end decides.
    fn stop(&mut self) -> Reply {
        if let Phase::Moving(outgoing) = &self.phase {
            let _ = outgoing.cancel.cancel();
            self.stop_after_move = true;
        } else {
            self.finish(End::Stopped);
        }
        Reply::Done
    }

    fn migrate(&mut self, request: &MigrateRequest) -> Reply {
        let vm = match std::mem::replace(&mut self.phase, Phase::None) {
            Phase::Running(vm) => vm,
            other => {
                self.phase = other;
                return self.refused("migrate");
            }
        };
        let started = self
            .notifier()
            .map_err(|e| chain(&e))
            .and_then(|notify| Ok((notify, CancelToken::new().map_err(|e| e.to_string())?)));
        let (notify, cancel) = match started {
            Ok(parts) => parts,
            Err(reason) => {
                self.phase = Phase::Running(vm);
                return Reply::Failed(reason);
            }
        };
        match outgoing::spawn(*vm, request, cancel, notify) {
            Ok((outgoing, events)) => {
                self.phase = Phase::Moving(outgoing);
                Reply::Moving(events)
            }
            Err((vm, error)) => {
                self.phase = Phase::Running(Box::new(vm));
                Reply::Failed(format!("start the migration thread: {error}"))
            }
        }
    }

    // ---- what other threads say ----

    fn heard(&mut self, message: FromThread) {
        match message {
            FromThread::Receiving(cancel) => {
                if let Phase::Waiting(receiving) = &mut self.phase {
                    *receiving = Some(cancel);
                }
            }
            FromThread::NotArrived { give_up } => {
                if let Phase::Waiting(receiving) = &mut self.phase {
                    *receiving = None;
                }
                if let Some(reason) = give_up {
                    self.finish(End::NoGuest { reason });
                }
            }
            FromThread::Arrived { vm, cards } => {
                self.adopt(*vm, cards);
                if let Some(view) = &self.view {
                    announce::spawn(view.clone());
                }
                self.feed_serial();
            }
            FromThread::Departed(departed) => self.departed(*departed),
        }
    }

    fn departed(&mut self, departed: Departed) {
        let Departed { moved, asker } = departed;
        let target = match std::mem::replace(&mut self.phase, Phase::None) {
            Phase::Moving(outgoing) => outgoing.target,
            _ => String::new(),
        };
        let last = LastMove {
            target: target.clone(),
            outcome: moved.report.outcome,
            reason: moved.report.reason.clone(),
        };
        match moved.guest {
            After::Gone(vm) => {
                // The guest runs elsewhere: only now is its memory here freed.
                drop(vm);
                self.view = None;
                self.finish(End::Moved { to: target });
            }
            After::Running(vm) => {
                self.phase = Phase::Running(Box::new(vm));
                self.last_move = Some(last);
            }
            After::Unknown(vm) => {
                self.phase = Phase::Unknown(Box::new(vm));
                self.last_move = Some(last);
                eprintln!(
                    "ferry: the move to {target} was cut between GO and LIVE: the guest may run there. It is paused here and nothing is lost. Look there: if it does not run, `ferry resume --force` here; if it does, `ferry stop` here"
                );
            }
            After::Stuck(vm, error) => {
                self.phase = Phase::Paused(Box::new(vm));
                self.last_move = Some(last);
                eprintln!(
                    "ferry: the move to {target} failed and the guest did not resume: {}; `ferry resume` tries again",
                    chain(&error)
                );
            }
        }
        // The asker hears of the end when `ferry status` would say the same.
        let _ = asker.send(MoveEvent::from(moved.report));
        if self.stop_after_move && !matches!(self.phase, Phase::Unknown(_)) {
            self.finish(End::Stopped);
        }
        self.stop_after_move = false;
    }

    fn vcpu_event(&mut self, event: VmEvent) {
        let end = match event {
            VmEvent::Panicked => {
                self.panicked = true;
                eprintln!("ferry: the guest's kernel has panicked");
                return;
            }
            VmEvent::PowerOff => Ok(End::PowerOff),
            VmEvent::Reset | VmEvent::TripleFault if self.panicked => Ok(End::Panic),
            VmEvent::Reset => Ok(End::Reset),
            VmEvent::TripleFault => {
                eprintln!("ferry: the guest's processor has shut down (triple fault)");
                Ok(End::Reset)
            }
            VmEvent::Crashed(reason) => Err(MachineError::Crashed(reason)),
        };
        // A guest that ends during a move is not moved: pausing it fails, and the engine hands it back.
        if let Phase::Moving(outgoing) = &self.phase
            && outgoing.cancel.cancel().is_err()
        {
            return;
        }
        self.end.get_or_insert(end);
    }

    /// Passes on what was typed, as much as the guest's serial port takes.
    fn feed_serial(&mut self) {
        let Some(input) = self.console.input() else {
            return;
        };
        let serial = self.view.as_ref().map(|view| view.serial.clone());
        loop {
            let room = serial.as_ref().is_some_and(|s| lock(s).has_room());
            let taken = input.take(if room { INPUT_CHUNK } else { 0 });
            if taken.quit {
                let _ = self.stop();
                return;
            }
            if taken.bytes.is_empty() {
                return;
            }
            if let Some(serial) = &serial {
                lock(serial).enqueue(&taken.bytes);
            }
        }
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
        ];
        if let Some(input) = self.console.input() {
            events.push(Events::with_data_raw(input.as_raw_fd(), CONSOLE, EventSet::IN));
        }
        for event in events {
            if let Err(error) = ops.add(event) {
                self.end.get_or_insert(Err(MachineError::host("set up the main loop")(
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
            _ => {}
        }
    }
}
