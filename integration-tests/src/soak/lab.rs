//! One host with a guest and a receiver, and faults done to the moves between them, one after another.
//!
//! After each fault it waits until both ends have come to rest, finds out from the guest's own memory who runs it, does
//! what an operator would do if nobody knows, checks the guest, and moves it once more, undisturbed.

use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use guest_images::fill::Content;
use guest_images::procmem::ProcMem;
use guest_images::verify::{self, Mode, Summary};
use vmm::control::State;
use vmm::control::client::Client;
use vmm::study::child::spawn_bound;

use super::ends::Ends;
use super::fault::{Fault, Whom};
use super::injector::{Injector, Orders};
use super::judge::Judge;
use super::outcome::{Outcome, Violation};
use super::peers::Peers;
use super::targets::Targets;
use super::witness::Witness;
use crate::ferry::{DiskImage, Ferry, Netns, PulseGuest};
use crate::{Error, chain};

/// Time for anything that is quick on an idle machine.
const STEP: Duration = Duration::from_secs(60);
/// What is filled with noise and with text; what lies behind was never touched. The working set is below.
const NOISE: std::ops::Range<u64> = 16 << 20..24 << 20;
const TEXT: std::ops::Range<u64> = 24 << 20..32 << 20;
pub(super) const MIB: u64 = 64;
/// Bytes of a disk.
const DISK: u64 = 4 << 20;
/// Guests that differ in who writes how.
const GUESTS: [PulseGuest<'_>; 2] = [
    PulseGuest {
        words: "beat=1 ws=8:8 rate=8000",
        cpus: 1,
        mib: MIB,
    },
    PulseGuest {
        words: "beat=1 cpu0.ws=8:4 cpu1.ws=12:4 rate=4000 pattern=sweep",
        cpus: 2,
        mib: MIB,
    },
];

/// See the module.
pub struct Lab {
    host: Netns,
    peers: Peers,
    kind: PulseGuest<'static>,
    /// What the guest has, in every other lab: whoever runs it has to hold its lock.
    disk: Option<DiskImage>,
    seed: u64,
    guest: Option<Guest>,
    receiver: Option<Receiver>,
    port: u16,
}

/// A guest that runs, and what it had done when it was last looked at.
struct Guest {
    ferry: Ferry,
    last: Summary,
}

struct Receiver {
    ferry: Ferry,
    address: SocketAddr,
    tls: bool,
}

impl Lab {
    /// A lab of its own, the `number`th: for faults of even numbers if that is even, else for those of odd ones.
    ///
    /// # Errors
    /// There can be no network namespace, or no disk.
    pub fn new(number: usize, seed: u64, peers: Peers) -> Result<Self, Error> {
        Ok(Self {
            host: Netns::new("soak")?,
            peers,
            kind: GUESTS[number % GUESTS.len()],
            disk: (number % 2 == 1)
                .then(|| DiskImage::new(DISK))
                .transpose()?,
            seed,
            guest: None,
            receiver: None,
            port: 4700,
        })
    }

    /// Does a fault to a move and looks at what came of it.
    ///
    /// # Errors
    /// The lab itself failed: processes cannot be started, or asked.
    pub fn run(&mut self, fault: &Fault) -> Result<Outcome, Error> {
        let began = Instant::now();
        let mut outcome = Outcome::default();
        let guest = match self.guest.take() {
            Some(guest) => guest,
            None => self.boot()?,
        };
        let receiver = match self.receiver.take() {
            Some(receiver) if receiver.tls == fault.setting.tls => receiver,
            _ => self.new_receiver(fault.setting.tls)?,
        };
        let survivors = self.disturb(fault, guest, receiver, &mut outcome)?;
        self.second_try(survivors, &mut outcome)?;
        outcome.ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(outcome)
    }

    /// The memory of the guest that the next fault will be about, if it is there already.
    ///
    /// # Errors
    /// It cannot be looked into.
    pub fn memory(&self) -> Result<Option<ProcMem>, Error> {
        self.guest
            .as_ref()
            .map(|guest| guest.ferry.memory())
            .transpose()
    }

    fn boot(&self) -> Result<Guest, Error> {
        let disk = self.disk.as_ref().map(|disk| ["--disk", disk.path()]);
        let disk = disk.as_ref().map_or(&[][..], |words| words);
        let ferry = self.kind.boot_with(Some(&self.host), disk)?;
        let memory = ferry.memory()?;
        for (content, range) in [(Content::Noise, NOISE), (Content::Text, TEXT)] {
            let write = |gpa, bytes: &[u8]| memory.write(gpa, bytes);
            content
                .write(self.seed, range, write)
                .map_err(|e| Error::Unexpected(chain(&e)))?;
        }
        let last = ferry.check_pulse()?;
        Ok(Guest { ferry, last })
    }

    fn new_receiver(&mut self, tls: bool) -> Result<Receiver, Error> {
        // A port that a process has just left may still have connections in TIME_WAIT.
        self.port = if self.port < 30_000 {
            self.port + 1
        } else {
            4700
        };
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        let listen = format!("tcp:{address}");
        let mut args = vec!["receive", "--listen", &listen];
        let mut words = self.peers.words_over(tls);
        if let Some(disk) = &self.disk {
            words.extend(["--disk".into(), format!("0={}", disk.path())]);
        }
        args.extend(words.iter().map(String::as_str));
        let mut ferry = Ferry::start(Some(&self.host), &args)?;
        ferry.wait_control(STEP)?;
        Ok(Receiver {
            ferry,
            address,
            tls,
        })
    }

    /// The move with the fault, up to the guest checked where it is.
    fn disturb(
        &self,
        fault: &Fault,
        guest: Guest,
        receiver: Receiver,
        outcome: &mut Outcome,
    ) -> Result<(Option<Guest>, Option<Receiver>), Error> {
        let targets = Arc::new(Targets::default());
        let orders = Orders {
            place: fault.place,
            act: fault.act,
            sealed: fault.setting.tls,
            beyond: self.peers.beyond(),
            signal: targets.signal(
                fault.act,
                &guest.ferry,
                &receiver.ferry,
                self.peers.beyond(),
            ),
        };
        let injector = Injector::start(&self.host, receiver.address, orders)?;
        let witness = Witness::start(guest.ferry.memory()?, receiver.ferry.pid(), MIB << 20);
        let mut client = self.start_move(&guest.ferry, &injector.target(), fault)?;
        targets.set_client(&client);

        let mut ends = Ends {
            source: guest.ferry,
            destination: receiver.ferry,
            killed: None,
        };
        let status = ends.wait_client(&mut client, fault.act, &injector, self.peers.patience())?;
        injector.disarm();
        targets.join();
        if injector.fired() {
            ends.fallen(fault.act);
        }
        let (source, destination) = ends.settle(self.peers.patience());
        let seen = witness.finish();
        outcome.missed = !injector.fired();
        outcome.status = status;

        let mut judge = Judge {
            fault,
            source,
            destination,
            status,
            live: injector.live() || seen.arrived,
            outcome,
        };
        if let Some((before, after)) = seen.double {
            judge.double(format!(
                "the source beat {before} while the destination was at {after}"
            ));
        }
        let keeper = judge.keeper(&mut ends)?;
        let (address, tls) = (receiver.address, receiver.tls);
        let left = |ferry| Receiver {
            ferry,
            address,
            tls,
        };
        self.check(keeper, ends, guest.last, left, outcome)
    }

    fn start_move(&self, source: &Ferry, target: &str, fault: &Fault) -> Result<Child, Error> {
        let mut command = source.prepare("migrate", &[target])?;
        command
            .args(fault.setting.words())
            .args(self.peers.words_over(fault.setting.tls))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        spawn_bound(command, Vec::new()).map_err(|e| Error::file("run", "ferry".as_ref(), e))
    }

    /// The guest is whole where it is; gives back what is left to go on with.
    fn check(
        &self,
        keeper: Option<Whom>,
        ends: Ends,
        last: Summary,
        left: impl FnOnce(Ferry) -> Receiver,
        outcome: &mut Outcome,
    ) -> Result<(Option<Guest>, Option<Receiver>), Error> {
        let Ends {
            source,
            mut destination,
            ..
        } = ends;
        let whole = |ferry: Ferry, outcome: &mut Outcome| {
            self.fenced(outcome);
            let checked = self.whole(&ferry, &last);
            outcome.keep(checked).map(|last| Guest { ferry, last })
        };
        Ok(match keeper {
            Some(Whom::Source) => {
                if outcome.violations.is_empty() && source.status()?["dirty_log"]["on"] != false {
                    outcome.violate(Violation::Untrue, "the dirty log was left on".into());
                }
                let lives = destination.ended().is_none();
                let receiver = lives.then(|| left(destination));
                (whole(source, outcome), receiver)
            }
            Some(_) => (whole(destination, outcome), None),
            None => {
                // There is nothing to keep the one for but the receiver, if it waits for another guest.
                let state = Client::new(&destination.control()).status().ok();
                let waits = destination.ended().is_none()
                    && state.is_some_and(|status| status.state == State::Waiting);
                (None, waits.then(|| left(destination)))
            }
        })
    }

    /// All of the guest is as it must be, the guest paused for it.
    fn whole(&self, ferry: &Ferry, last: &Summary) -> Result<Summary, Error> {
        let failed = |e: &dyn std::error::Error| Error::Unexpected(chain(e));
        ferry.act("pause")?;
        let memory = ferry.memory()?;
        let now = verify::check(&memory, Mode::Stopped).map_err(|e| failed(&e))?;
        now.follows(last).map_err(|e| failed(&e))?;
        for (content, range) in [(Content::Noise, NOISE), (Content::Text, TEXT)] {
            let checked = content.check(self.seed, range, &memory);
            checked.map_err(|e| failed(&e))?;
        }
        ferry.act("resume")?;
        Ok(now)
    }

    /// Whoever runs the guest holds the lock of its disk.
    fn fenced(&self, outcome: &mut Outcome) {
        if self.disk.as_ref().is_some_and(DiskImage::is_free) {
            let how = "the guest runs, and nobody holds the lock of its disk";
            outcome.violate(Violation::Unfenced, how.into());
        }
    }

    /// A move undisturbed: of this guest to this receiver, if they are still there, else of or to a new one.
    fn second_try(
        &mut self,
        (guest, receiver): (Option<Guest>, Option<Receiver>),
        outcome: &mut Outcome,
    ) -> Result<(), Error> {
        let guest = match guest {
            Some(guest) => guest,
            None => self.boot()?,
        };
        let receiver = match receiver {
            Some(receiver) => receiver,
            None => self.new_receiver(false)?,
        };
        let words = self.peers.words_over(receiver.tls);
        let args: Vec<&str> = words.iter().map(String::as_str).collect();
        let moved = guest
            .ferry
            .migrate(&format!("tcp:{}", receiver.address), &args)?;
        if let Err(error) = moved.completed() {
            let said = receiver.ferry.messages().tail();
            let why = format!("{}\nthe receiver said:\n{said}", chain(&error));
            outcome.violate(Violation::SecondTry, why);
            return Ok(());
        }
        let mut source = guest.ferry;
        source.wait_end(STEP)?;
        self.fenced(outcome);
        let checked = self.whole(&receiver.ferry, &guest.last);
        self.guest = outcome.keep(checked).map(|last| Guest {
            ferry: receiver.ferry,
            last,
        });
        Ok(())
    }
}
