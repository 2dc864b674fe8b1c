//! What other threads tell the main loop: vCPUs, the migration thread, the console.

use migration::destination::hex;
use migration::guest::PausedGuest;
use migration::report::Report;
use migration::source::{After, Kept};

use super::outgoing::Departed;
use super::saving::Saved;
use super::status::CardInfo;
use super::supervisor::{FromThread, Phase, Supervisor, chain};
use super::{End, MachineError, announce};
use crate::control::{IF_PAUSED, IF_UNKNOWN, LastMove, MoveEvent};
use crate::log;
use crate::vcpu::VmEvent;
use crate::vm::{PausedVm, lock};

impl Supervisor {
    pub(super) fn heard(&mut self, message: FromThread) {
        match message {
            FromThread::Receiving(cancel) => {
                if let Phase::Waiting(receiving) = &mut self.phase {
                    *receiving = Some(cancel);
                }
            }
            FromThread::NotArrived { give_up, failed } => {
                self.moves.not_arrived += u64::from(failed);
                if let Phase::Waiting(receiving) = &mut self.phase {
                    *receiving = None;
                }
                // Behind this one another may have begun before the stop, which has cancelled that and waits for it.
                if self.stop_after_move && self.gate.shut().is_none() {
                    self.stop_after_move = false;
                    self.finish(End::Unused { receiving: failed });
                } else if let Some(reason) = give_up {
                    self.finish(End::NoGuest { reason });
                }
            }
            FromThread::Arrived { vm, cards, took } => {
                self.moves.arrived += 1;
                self.moves.in_seconds = Some(took.as_secs_f64());
                self.adopt(*vm, cards);
                if std::mem::take(&mut self.stop_after_move) {
                    // It came all the same: its source knows that it is here, and here it is ended.
                    self.finish(End::Stopped);
                    return;
                }
                self.announce();
                self.feed_serial();
            }
            FromThread::Restored {
                vm,
                cards,
                paused,
                to_come,
            } => {
                self.to_come = to_come;
                if std::mem::take(&mut self.stop_after_move) {
                    self.finish(End::Stopped);
                }
                match self.end {
                    // Its memory cannot be had: see `never_filled`.
                    Some(_) => std::mem::forget(vm),
                    None => self.restored(*vm, cards, paused),
                }
            }
            FromThread::Filled(Ok(())) => log::say("all memory of the restored guest is here"),
            FromThread::Filled(Err(reason)) => self.never_filled(reason),
            FromThread::Departed(departed) => self.departed(*departed),
            FromThread::Saved(saved) => self.saved(*saved),
            FromThread::Measured => self.measuring = None,
        }
    }

    fn departed(&mut self, departed: Departed) {
        let Departed { mut moved, asker } = departed;
        let ended = self.end_after_move.take();
        let target = match std::mem::replace(&mut self.phase, Phase::None) {
            Phase::Moving(outgoing) => outgoing.target,
            _ => String::new(),
        };
        self.moves.departed(&moved.report);
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
                self.ended_meanwhile(ended, &mut moved.report);
            }
            After::Unknown(vm) => {
                self.phase = Phase::Unknown(Box::new(vm));
                self.last_move = Some(last);
                log::complain(&format!(
                    "the move to {target} was cut in the moment of the handover, and the guest may run there; it is paused here, and nothing is lost: {IF_UNKNOWN}"
                ));
            }
            After::Stuck(vm, error) => {
                self.phase = Phase::Paused(Box::new(vm));
                self.last_move = Some(last);
                log::complain(&format!(
                    "the move to {target} failed and the guest did not resume: {}; {IF_PAUSED}",
                    chain(&error)
                ));
            }
        }
        // The asker hears of the end when `ferry status` would say the same.
        let _ = asker.send(MoveEvent::from(moved.report));
        if std::mem::take(&mut self.stop_after_move) {
            match self.phase {
                Phase::Unknown(_) => log::complain(
                    "it was to be stopped in the middle of that, and is not, since this may be the one guest that there is: `ferry stop` again",
                ),
                _ => self.finish(End::Stopped),
            }
        }
    }

    /// A guest out of snapshots: it runs, unless it is to stay paused.
    fn restored(&mut self, vm: PausedVm, cards: Vec<CardInfo>, paused: bool) {
        if paused {
            log::say("the guest is restored, and paused; `ferry resume` lets it run");
            self.unannounced = true;
            self.adopt_paused(vm, cards);
            return;
        }
        match vm.resume() {
            Ok(vm) => {
                log::say("the guest is restored, and runs");
                self.adopt(vm, cards);
                self.announce();
                self.feed_serial();
            }
            Err(failed) => self.finish(End::NoGuest {
                reason: chain(&failed.error),
            }),
        }
    }

    /// Memory that a guest runs with cannot be had: it may not go on for one instruction.
    fn never_filled(&mut self, reason: String) {
        // Threads of the VM wait for pages that will never come, and whoever takes it down would wait for them. The end
        // of the process ends them where they are.
        std::mem::forget(std::mem::replace(&mut self.phase, Phase::None));
        self.finish(End::NoMemory { reason });
    }

    fn saved(&mut self, saved: Saved) {
        let Saved {
            mut taken,
            track,
            asker,
        } = saved;
        self.tracked = taken.id.as_ref().ok().copied().filter(|_| track);
        let ended = self.end_after_move.take();
        match taken.guest {
            Kept::Running(vm) => {
                self.phase = Phase::Running(Box::new(vm));
                self.ended_meanwhile(ended, &mut taken.report);
            }
            Kept::Paused(vm) => self.phase = Phase::Paused(Box::new(vm)),
            Kept::Stuck(vm, error) => {
                self.phase = Phase::Paused(Box::new(vm));
                log::complain(&format!(
                    "the guest did not go on after its snapshot: {}; {IF_PAUSED}",
                    chain(&error)
                ));
            }
        }
        if let Ok(id) = taken.id {
            tracing::info!("snapshot {} is taken", hex(id));
        }
        // The asker hears of the end when `ferry status` would say the same.
        let _ = asker.send(MoveEvent::from(taken.report));
        if self.stop_after_move {
            self.finish(End::Stopped);
        }
        self.stop_after_move = false;
    }

    pub(super) fn vcpu_event(&mut self, event: VmEvent) {
        let end = match event {
            VmEvent::Panicked => {
                self.panicked = true;
                log::say("the guest's kernel has panicked");
                return;
            }
            VmEvent::PowerOff => Ok(End::PowerOff),
            VmEvent::Reset | VmEvent::TripleFault if self.panicked => Ok(End::Panic),
            VmEvent::Reset => Ok(End::Reset),
            VmEvent::TripleFault => {
                log::say("the guest's processor has shut down (triple fault)");
                Ok(End::Reset)
            }
            VmEvent::Crashed(reason) => Err(MachineError::Crashed(reason)),
        };
        // A guest that ends during a move is not moved: pausing it fails, and the engine hands it back. Whoever asked
        // for the move hears of its end first. One that is committed cannot be cancelled; the guest stood still then,
        // and has ended behind it, given back.
        if let Phase::Moving(outgoing) = &self.phase {
            let _ = outgoing.cancel.cancel();
            self.end_after_move.get_or_insert(end);
            return;
        }
        self.end.get_or_insert(end);
    }

    /// A guest that a move or a snapshot gave back, if it has ended by itself in the middle of that.
    fn ended_meanwhile(&mut self, ended: Option<Result<End, MachineError>>, report: &mut Report) {
        if let Some(end) = ended {
            report.reason.push_str("; it has ended by itself since");
            self.end.get_or_insert(end);
        }
    }

    /// Tells the network where the guest is.
    pub(super) fn announce(&self) {
        if let Some(view) = &self.view {
            announce::spawn(view.clone());
        }
    }

    /// Passes on what was typed, as much as the guest's serial port takes.
    pub(super) fn feed_serial(&mut self) {
        let Some(input) = self.console.input() else {
            return;
        };
        let serial = self.view.as_ref().map(|view| view.serial.clone());
        if serial.is_none() && self.console.is_terminal() {
            // Meant for this process, such as Ctrl-C, and not for a guest that comes an hour later.
            let taken = input.take(usize::MAX);
            if taken.quit {
                let _ = self.stop();
            } else if !taken.bytes.is_empty() {
                log::say("there is no guest yet to type to; Ctrl-A x ends this process");
            }
            return;
        }
        loop {
            // Held until the byte is in the port: one that is being saved must not get it.
            let mut port = serial.as_ref().map(|serial| lock(serial));
            let room = port.as_ref().is_some_and(|port| port.has_room());
            // One at a time: what the port would not take would be lost.
            let taken = input.take(usize::from(room));
            if taken.quit {
                drop(port);
                let _ = self.stop();
                return;
            }
            if taken.bytes.is_empty() {
                return;
            }
            if let Some(port) = &mut port {
                port.enqueue(&taken.bytes);
            }
        }
    }
}
