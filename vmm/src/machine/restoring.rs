//! `ferry restore`: a guest out of snapshots.
//!
//! The files are opened by the main thread; a thread of the receiver's kind reads them and makes the guest, while the
//! main loop serves: a restore can be watched and cancelled as an arrival can.

use std::fs::File;

use kvm_ioctls::Kvm;
use migration::cancel::CancelToken;
use migration::destination::{self, RestoreError, Snapshot};
use migration::event::Arrival;
use migration::guest::{GuestError, GuestRam};

use super::pager::{Pager, ToCome};
use super::paths::Paths;
use super::status::CardInfo;
use super::supervisor::{FromThread, Notifier, chain};
use super::supplies::Supplies;
use super::{End, MachineError, tap};
use crate::config::RestoreConfig;
use crate::console::Signals;
use crate::kvm;
use crate::log;
use crate::memory::Filled;
use crate::sandbox::{self, Kind, Sandbox};
use crate::tls;
use crate::userfault::UserFaults;
use crate::vm::{Gauges, LogChoice, PausedVm, ReceivingHost};

/// Makes the guest and stays with it until it ends, leaves, or is stopped.
///
/// # Errors
/// What is missing or wrong before the files are read, or how it crashed.
pub fn restore(config: RestoreConfig) -> Result<End, MachineError> {
    let signals = Signals::block().map_err(MachineError::host("block signals"))?;
    let kvm = kvm::open()?;
    let log = LogChoice::of(config.dirty_tracking, &kvm)?;
    let tls = config.tls.as_deref().map(tls::load).transpose()?;
    let open = |path: &std::path::PathBuf| {
        let name = path.display().to_string();
        let act = format!("open snapshot {name}");
        let file = File::open(path).map_err(MachineError::host(act))?;
        Ok::<_, MachineError>((file, name))
    };
    let files = config.files.iter().map(open).collect::<Result<_, _>>()?;
    let paths = Paths::open(config.control.as_deref(), &config.serial)?;
    let open = |(card, wanted)| Ok::<_, GuestError>((card, tap::open_for_any(wanted)?));
    let nets = config.nets.iter().map(|(card, wanted)| (*card, wanted));
    let taps = nets.map(open).collect::<Result<_, _>>()?;
    let gauges = Gauges::open();
    let faults = config.lazy.then(UserFaults::new).transpose();
    let faults = faults.map_err(MachineError::host(
        "have memory filled as it is touched (userfaultfd; it needs root, or sysctl vm.unprivileged_userfaultfd=1): restore without --lazy",
    ))?;
    let sandbox = Sandbox::confine(config.sandbox, &paths.reach())?;
    let mut supervisor = paths.supervisor(signals)?;
    supervisor.tls = tls;
    let restorer = Restorer {
        kvm,
        log,
        files,
        supplies: Supplies::of(&supervisor, taps)?,
        gauges,
        lazily: match faults {
            Some(faults) => Some((faults, supervisor.notifier()?)),
            None => None,
        },
        to_come: ToCome::default(),
        notify: supervisor.notifier()?,
        max_memory: config.max_memory,
        paused: config.paused,
    };
    std::thread::Builder::new()
        .name("restore".into())
        .spawn(move || {
            sandbox::enter(Kind::Receiver);
            restorer.run();
        })
        .map_err(MachineError::host(
            "start the thread that restores the guest",
        ))?;
    supervisor.sandbox = Some(sandbox.close()?);
    supervisor.serve()
}

/// The thread that makes the guest.
struct Restorer {
    kvm: Kvm,
    log: LogChoice,
    /// The snapshots in their order, with their names.
    files: Vec<(File, String)>,
    supplies: Supplies,
    gauges: Gauges,
    /// What memory is filled by while the guest runs, if it is.
    lazily: Option<(UserFaults, Notifier)>,
    to_come: ToCome,
    notify: Notifier,
    max_memory: u64,
    paused: bool,
}

impl Restorer {
    fn run(mut self) {
        let message = match self.attempt() {
            Ok((vm, cards)) => FromThread::Restored {
                vm: Box::new(vm),
                cards,
                paused: self.paused,
                to_come: self.to_come.clone(),
            },
            Err(error) => FromThread::NotArrived {
                give_up: Some(chain(&error)),
                // No move has failed.
                failed: false,
            },
        };
        self.notify.send(message);
    }

    fn attempt(&mut self) -> Result<(PausedVm, Vec<CardInfo>), RestoreError> {
        let cancel = CancelToken::new().map_err(|e| GuestError::new("make a cancel token", e))?;
        self.notify.send(FromThread::Receiving(cancel.clone()));
        let files = std::mem::take(&mut self.files);
        let mut lazily = self.lazily.take();
        let mut cards = Vec::new();
        let filled = Filled::default();
        let mut host = ReceivingHost {
            kvm: &self.kvm,
            max_memory: self.max_memory,
            gauges: &self.gauges,
            prefaulted: &mut None,
            huge_pages: false,
            filled: filled.clone(),
            log: self.log,
            rewound: true,
            make_parts: &mut || self.supplies.parts(),
            open_tap: &mut |card, shape| {
                let tap = self.supplies.tap(card, shape, "restore it with")?;
                cards.push(CardInfo {
                    tap: tap.name().to_owned(),
                    mac: None,
                });
                Ok(tap)
            },
            open_disk: &mut |number| {
                Err(GuestError::bare(format!(
                    "the guest has a disk ({number}), whose content is not in a snapshot; only guests without disks are restored"
                )))
            },
        };
        let mut tell = |arrival: Arrival| {
            if let Arrival::Accepted {
                peer,
                memory_bytes,
                vcpus,
            } = arrival
            {
                log::say(&format!(
                    "restoring a guest of {} MiB and {vcpus} vCPU(s) from {peer}",
                    memory_bytes >> 20
                ));
            }
        };
        let vm = match &mut lazily {
            None => {
                let files = files.into_iter();
                let snapshots = files.map(|(file, name)| Snapshot::open(file, name, &cancel));
                let snapshots = snapshots.collect::<Result<_, _>>()?;
                destination::restore(&mut host, snapshots, &cancel, &mut tell)?
            }
            Some(_) => {
                let mut serve = |ram: &GuestRam, lazy| match lazily.take() {
                    Some((faults, notify)) => {
                        let to_come = self.to_come.clone();
                        Pager::start(faults, ram, lazy, filled.clone(), to_come, notify)
                    }
                    None => Err(GuestError::bare("memory is filled once")),
                };
                destination::restore_lazily(&mut host, files, &cancel, &mut tell, &mut serve)?
            }
        };
        Ok((vm, cards))
    }
}
