//! What control calls ask of the VM, and how they are answered.

use std::sync::PoisonError;
use std::time::Duration;

use migration::cancel::CancelToken;
use migration::guest::{PausedGuest, RunningGuest};

use super::outgoing::Purpose;
use super::supervisor::{Phase, Supervisor, chain};
use super::{End, measuring, outgoing, predicting, saving, status};
use crate::control::{
    BalloonRequest, Call, Command, DirtyRateRequest, IF_UNKNOWN, Metrics, MigrateRequest,
    PassedFile, PredictRequest, Reply, SnapshotName, SnapshotRequest, State,
};
use crate::units::Size;
use crate::vm::View;

impl Supervisor {
    pub(super) fn obey(&mut self, call: Call) {
        let reply = match &call.command {
            Command::Migrate(_)
            | Command::DirtyRate(_)
            | Command::Predict(_)
            | Command::Snapshot(..)
                if self.to_come.bytes() > 0 =>
            {
                Reply::Refused(format!(
                    "not possible yet: the guest runs while its memory is read from a snapshot, of which {} are to come; wait until `ferry status` says that all is here",
                    crate::ui::bytes(self.to_come.bytes())
                ))
            }
            Command::Status => Reply::Status(Box::new(self.status())),
            Command::Metrics => Reply::Metrics(Box::new(self.metrics())),
            Command::Pause => self.pause(),
            Command::Resume { force } => self.resume(*force),
            Command::Cancel => self.cancel(),
            Command::Stop => self.stop(),
            Command::Balloon(request) => self.balloon(*request),
            Command::Migrate(request) => {
                let request = request.clone();
                self.migrate(&request)
            }
            Command::DirtyRate(request) => {
                let request = *request;
                self.dirty_rate(&request)
            }
            Command::Predict(request) => {
                let request = request.clone();
                self.predict(&request)
            }
            Command::Snapshot(request, file) => {
                let (request, file) = (request.clone(), file.clone());
                self.snapshot(&request, &file)
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
        if state == State::Waiting {
            state = match &self.end {
                None => State::Waiting,
                // It runs elsewhere; whoever looks now must not take this for the VM that has it.
                Some(Ok(End::Moved { .. })) => State::Migrating,
                Some(_) => State::Running,
            };
        }
        let mut status = status::of(state, self.view.as_ref(), &self.cards, self.since);
        status.memory_to_come_bytes = self.to_come.bytes();
        status.sandbox = self.sandbox;
        status.migration = progress;
        status.last_move.clone_from(&self.last_move);
        status
    }

    fn metrics(&self) -> Metrics {
        Metrics {
            status: self.status(),
            cards: self
                .view
                .as_ref()
                .map(View::card_counters)
                .unwrap_or_default(),
            moves: self.moves,
            footprint: self.footprint.clone(),
        }
    }

    fn state(&self) -> State {
        match &self.phase {
            Phase::Waiting(None) | Phase::None => State::Waiting,
            Phase::Waiting(Some(_)) => State::Receiving,
            Phase::Running(_) => State::Running,
            Phase::Paused(_) => State::Paused,
            Phase::Moving(outgoing) => match outgoing.purpose {
                Purpose::Move => State::Migrating,
                Purpose::Snapshot => State::Saving,
            },
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
            State::Saving => {
                "the guest is being saved; `ferry cancel` ends that, or wait for its end"
            }
            State::Unknown => {
                return Reply::Refused(format!(
                    "{act} is not possible: the last move was cut in the moment of the handover, and the guest may run on the destination; {IF_UNKNOWN}"
                ));
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
        let (vm, unknown) = match std::mem::replace(&mut self.phase, Phase::None) {
            Phase::Paused(vm) => (vm, false),
            Phase::Unknown(vm) if force => (vm, true),
            other => {
                let runs = matches!(other, Phase::Running(_));
                self.phase = other;
                return if runs {
                    Reply::Done
                } else {
                    self.refused("resume")
                };
            }
        };
        match vm.resume() {
            Ok(running) => {
                // A move that ended as unknown has left both on. Whoever measures needs the log, too.
                running.throttle(&[], Duration::ZERO);
                if self.tracked.is_none()
                    && self.measuring.is_none()
                    && let Err(error) = running.dirty_log().stop()
                {
                    tracing::warn!("{}", chain(&error));
                }
                self.phase = Phase::Running(Box::new(running));
                // The destination of a move that ended as unknown may have announced it from there.
                if std::mem::take(&mut self.unannounced) || unknown {
                    self.announce();
                }
                Reply::Done
            }
            Err(failed) => {
                let vm = Box::new(failed.guest);
                // Nobody has learnt by that whose the guest is.
                self.phase = match unknown {
                    true => Phase::Unknown(vm),
                    false => Phase::Paused(vm),
                };
                Reply::Failed(chain(&failed.error))
            }
        }
    }

    fn cancel(&mut self) -> Reply {
        let result = match &self.phase {
            Phase::Moving(outgoing) => match (outgoing.cancel.cancel(), outgoing.purpose) {
                (Err(_), Purpose::Snapshot) => {
                    return Reply::Refused("cancel comes too late: the snapshot is taken".into());
                }
                (result, _) => result,
            },
            Phase::Waiting(Some(cancel)) => cancel.cancel(),
            _ => match &self.measuring {
                Some(measuring) => measuring.cancel(),
                None => {
                    return Reply::Refused("cancel is not possible: no move is under way".into());
                }
            },
        };
        match result {
            Ok(()) => Reply::Done,
            Err(committed) => Reply::Refused(committed.to_string()),
        }
    }

    /// Ends the VM. A move under way is cancelled first; if it is too late for that, its end decides: a guest that may
    /// run elsewhere is kept here, and that is said.
    ///
    /// So is one that comes in, whose source would else take a guest for arrived that ends with this process; none
    /// begins any more. Asked for again, nobody waits for its end.
    pub(super) fn stop(&mut self) -> Reply {
        match &self.phase {
            Phase::Moving(outgoing) => {
                let _ = outgoing.cancel.cancel();
                self.stop_after_move = true;
            }
            Phase::Waiting(heard) => {
                // A move may be in that has not been heard of yet; the end of one that was heard of may still be to be
                // heard; a restore does not come through the gate.
                let coming = self.gate.shut().or_else(|| heard.clone());
                match coming {
                    Some(coming) if !self.stop_after_move => {
                        let _ = coming.cancel();
                        self.stop_after_move = true;
                    }
                    coming => {
                        let receiving = coming.is_some();
                        self.finish(End::Unused { receiving });
                    }
                }
            }
            _ => self.finish(End::Stopped),
        }
        Reply::Done
    }

    /// Only while the guest runs and is not moved: its target would stay behind once the state is saved.
    fn balloon(&mut self, BalloonRequest { target_bytes }: BalloonRequest) -> Reply {
        let (Phase::Running(_), Some(view)) = (&self.phase, &self.view) else {
            return self.refused("resizing the balloon");
        };
        let Some(balloon) = &view.balloon else {
            return Reply::Refused(
                "the guest has no balloon: one has to be given at its start (`ferry run --balloon on`)".into(),
            );
        };
        let memory = view.layout.bytes();
        if target_bytes > memory || !balloon.resize(target_bytes) {
            return Reply::Refused(format!(
                "a balloon of {} is larger than the guest's memory of {}: take less",
                Size(target_bytes),
                Size(memory)
            ));
        }
        Reply::Done
    }

    fn dirty_rate(&mut self, request: &DirtyRateRequest) -> Reply {
        let Phase::Running(vm) = &self.phase else {
            return self.refused("measuring the dirty rate");
        };
        if self.measuring.is_some() {
            return Reply::Refused(measured("measuring the dirty rate"));
        }
        let started = self
            .notifier()
            .map_err(|e| chain(&e))
            .and_then(|notify| Ok((notify, CancelToken::new().map_err(|e| e.to_string())?)));
        let started = started.and_then(|(notify, cancel)| {
            let events = measuring::spawn(vm, request, cancel.clone(), notify)
                .map_err(|e| format!("start the thread that measures: {e}"))?;
            Ok((events, cancel))
        });
        match started {
            Ok((events, cancel)) => {
                self.measuring = Some(cancel.clone());
                // It takes the dirty log for itself, unless it compares contents.
                if !request.contents {
                    self.tracked = None;
                }
                Reply::Measuring(events, cancel)
            }
            Err(reason) => Reply::Failed(reason),
        }
    }

    fn predict(&mut self, request: &PredictRequest) -> Reply {
        let Phase::Running(vm) = &self.phase else {
            return self.refused("a prediction");
        };
        if self.measuring.is_some() {
            return Reply::Refused(measured("a prediction"));
        }
        let target = match outgoing::connector(&request.wanted, self.tls.as_ref()) {
            Ok(target) => target,
            Err(reason) => return Reply::Refused(reason),
        };
        let started = self
            .notifier()
            .map_err(|e| chain(&e))
            .and_then(|notify| Ok((notify, CancelToken::new().map_err(|e| e.to_string())?)));
        let started = started.and_then(|(notify, cancel)| {
            let events = predicting::spawn(vm, request, target, cancel.clone(), notify)
                .map_err(|e| format!("start the thread that predicts: {e}"))?;
            Ok((events, cancel))
        });
        match started {
            Ok((events, cancel)) => {
                self.measuring = Some(cancel.clone());
                self.tracked = None;
                Reply::Predicting(events, cancel)
            }
            Err(reason) => Reply::Failed(reason),
        }
    }

    fn migrate(&mut self, request: &MigrateRequest) -> Reply {
        if self.measuring.is_some() {
            return Reply::Refused(measured("migrate"));
        }
        let target = match outgoing::connector(request, self.tls.as_ref()) {
            Ok(target) => target,
            Err(reason) => return Reply::Refused(reason),
        };
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
        match outgoing::spawn(vm, request, target, cancel, notify) {
            Ok((outgoing, events)) => {
                self.phase = Phase::Moving(outgoing);
                // The move needs the dirty log for itself.
                self.tracked = None;
                Reply::Moving(events)
            }
            Err((vm, error)) => {
                self.phase = Phase::Running(vm);
                Reply::Failed(format!("start the migration thread: {error}"))
            }
        }
    }

    fn snapshot(&mut self, request: &SnapshotRequest, file: &PassedFile) -> Reply {
        if self.measuring.is_some() {
            return Reply::Refused(measured("a snapshot"));
        }
        if let Some(base) = request.base
            && self.tracked != Some(base.0)
        {
            return Reply::Refused(not_since(base, self.tracked.map(SnapshotName)));
        }
        let vm = match std::mem::replace(&mut self.phase, Phase::None) {
            Phase::Running(vm) => vm,
            other => {
                self.phase = other;
                return self.refused("a snapshot");
            }
        };
        if let Some(disk) = vm.view().disks.first() {
            let reason = format!(
                "the guest has a disk ({}), whose content would not be in a snapshot: by the time of a restore it would be another than the guest knows",
                disk.display()
            );
            self.phase = Phase::Running(vm);
            return Reply::Refused(reason);
        }
        let started = (self.notifier().map_err(|e| chain(&e))).and_then(|notify| {
            let cancel = CancelToken::new().map_err(|e| e.to_string())?;
            Ok((file.file().map_err(|e| e.to_string())?, cancel, notify))
        });
        let (file, cancel, notify) = match started {
            Ok(parts) => parts,
            Err(reason) => {
                self.phase = Phase::Running(vm);
                return Reply::Failed(reason);
            }
        };
        match saving::spawn(vm, request, file, cancel, notify) {
            Ok((outgoing, events)) => {
                self.phase = Phase::Moving(outgoing);
                Reply::Moving(events)
            }
            Err((vm, error)) => {
                self.phase = Phase::Running(vm);
                Reply::Failed(format!("start the thread that saves the guest: {error}"))
            }
        }
    }
}

/// Why a snapshot cannot stand on that base.
fn not_since(base: SnapshotName, tracked: Option<SnapshotName>) -> String {
    let instead = match tracked {
        Some(last) => format!("the last one taken with --track is {last}: give that as --base"),
        None => "what was written since then is not known (no snapshot was taken with --track in this process, or a move, a measurement or a snapshot that failed has ended that)".into(),
    };
    format!("a snapshot on top of {base} is not possible: {instead}, or take a whole one")
}

/// "not possible", for what needs the dirty log while it is in use.
fn measured(act: &str) -> String {
    format!(
        "{act} is not possible: the guest's dirty rate is being measured; wait for that, or `ferry cancel` ends it"
    )
}
