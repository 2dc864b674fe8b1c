//! One host with a guest and a receiver, and faults done to the moves between them, one after another.
//!
//! After each fault it waits until both ends have come to rest, finds out from the guest's own memory who runs it, does what an
//! operator would do if nobody knows, checks the guest, and moves it once more, undisturbed.

use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use guest_images::fill::Content;
use guest_images::procmem::ProcMem;
use guest_images::verify::{self, Mode, Summary};
use nix::sys::signal::{Signal as Sent, kill};
use nix::unistd::Pid;
use vmm::control::State;
use vmm::control::client::Client;
use vmm::study::child::spawn_bound;

use super::fault::{Act, Fault, Signal, Span, Whom};
use super::injector::{Injector, Orders};
use super::outcome::{Outcome, Violation};
use super::peers::Peers;
use super::witness::Witness;
use crate::ferry::{Ferry, Netns, PulseGuest};
use crate::{Error, chain};

/// Time for anything that is quick on an idle machine.
const STEP: Duration = Duration::from_secs(60);
/// How long a guest that runs may take to show a few heartbeats.
const BEATS: Duration = Duration::from_secs(3);
/// What is filled with noise and with text; what lies behind was never touched. The working set is below.
const NOISE: std::ops::Range<u64> = 16 << 20..24 << 20;
const TEXT: std::ops::Range<u64> = 24 << 20..32 << 20;
const MIB: u64 = 64;
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
}

/// What became of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// It says that it runs the guest.
    Runs,
    /// It does not know.
    Unknown,
    /// It has ended because the guest has left.
    Left,
    /// We have killed it.
    Killed,
    /// Anything else, after all time was given.
    Odd,
}

/// What became of the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Destination {
    /// It says that it runs the guest.
    Runs,
    /// It waits for another, or has ended without.
    Empty,
    /// We have killed it.
    Killed,
    /// Anything else, after all time was given.
    Odd,
}

/// The processes of one move, by id, for a fault that sends signals. A process is not reaped while this sends.
#[derive(Default)]
struct Targets {
    client: AtomicI32,
    timers: Mutex<Vec<JoinHandle<()>>>,
}

impl Lab {
    /// A lab of its own, the `number`th.
    ///
    /// # Errors
    /// There can be no network namespace.
    pub fn new(number: usize, seed: u64, peers: Peers) -> Result<Self, Error> {
        Ok(Self {
            host: Netns::new("soak")?,
            peers,
            kind: GUESTS[number % GUESTS.len()],
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
            Some(receiver) => receiver,
            None => self.new_receiver()?,
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
        let ferry = self.kind.boot(Some(&self.host))?;
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

    fn new_receiver(&mut self) -> Result<Receiver, Error> {
        // A port that a process has just left may still have connections in TIME_WAIT.
        self.port = if self.port < 30_000 {
            self.port + 1
        } else {
            4700
        };
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        let listen = format!("tcp:{address}");
        let mut args = vec!["receive", "--listen", &listen];
        args.extend(self.peers.receive());
        let mut ferry = Ferry::start(Some(&self.host), &args)?;
        ferry.wait_control(STEP)?;
        Ok(Receiver { ferry, address })
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
            beyond: self.peers.beyond(),
            signal: signal(
                fault.act,
                &guest.ferry,
                &receiver.ferry,
                &targets,
                self.peers.beyond(),
            ),
        };
        let injector = Injector::start(&self.host, receiver.address, orders)?;
        let witness = Witness::start(guest.ferry.memory()?, receiver.ferry.pid(), MIB << 20);
        let mut client = self.start_move(&guest.ferry, &injector.target(), fault)?;
        targets.client.store(id(client.id()), Ordering::Release);

        let mut ends = Ends {
            source: guest.ferry,
            destination: receiver.ferry,
            killed: None,
        };
        let status = ends.wait_client(&mut client, fault.act, &injector, self.peers.patience())?;
        targets.join();
        if fault_kills(fault.act) && injector.fired() {
            ends.killed = whom(fault.act);
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
        self.check(keeper, ends, guest.last, receiver.address, outcome)
    }

    fn start_move(&self, source: &Ferry, target: &str, fault: &Fault) -> Result<Child, Error> {
        let mut command = source.prepare("migrate", &[target])?;
        command
            .args(fault.setting.words())
            .args(self.peers.migrate())
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
        address: SocketAddr,
        outcome: &mut Outcome,
    ) -> Result<(Option<Guest>, Option<Receiver>), Error> {
        let Ends {
            source,
            mut destination,
            ..
        } = ends;
        let whole = |ferry: Ferry, outcome: &mut Outcome| {
            let checked = self.whole(&ferry, &last);
            outcome.keep(checked).map(|last| Guest { ferry, last })
        };
        Ok(match keeper {
            Some(Whom::Source) => {
                if outcome.violations.is_empty() && source.status()?["dirty_log"]["on"] != false {
                    outcome.violate(Violation::Untrue, "the dirty log was left on".into());
                }
                let receiver = destination.ended().is_none().then_some(Receiver {
                    ferry: destination,
                    address,
                });
                (whole(source, outcome), receiver)
            }
            Some(_) => (whole(destination, outcome), None),
            None => {
                // There is nothing to keep the one for but the receiver, if it waits for another guest.
                let state = Client::new(&destination.control()).status().ok();
                let waits = destination.ended().is_none()
                    && state.is_some_and(|status| status.state == State::Waiting);
                let receiver = waits.then_some(Receiver {
                    ferry: destination,
                    address,
                });
                (None, receiver)
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
            None => self.new_receiver()?,
        };
        let args: Vec<&str> = self.peers.migrate();
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
        let checked = self.whole(&receiver.ferry, &guest.last);
        self.guest = outcome.keep(checked).map(|last| Guest {
            ferry: receiver.ferry,
            last,
        });
        Ok(())
    }
}

/// Both VMMs of a move.
struct Ends {
    source: Ferry,
    destination: Ferry,
    /// Which of them we have killed.
    killed: Option<Whom>,
}

impl Ends {
    /// Waits for the end of `ferry migrate`. A process that the fault has frozen is killed once the others have come to rest.
    fn wait_client(
        &mut self,
        client: &mut Child,
        act: Act,
        injector: &Injector,
        patience: Duration,
    ) -> Result<Option<i32>, Error> {
        let began = Instant::now();
        let freezes = match act {
            Act::Signal {
                to,
                signal: Signal::Freeze,
                ..
            } => Some(to),
            _ => None,
        };
        let mut frozen = freezes;
        loop {
            let ended = client.try_wait();
            let ended = ended.map_err(|e| Error::file("wait for", "ferry migrate".as_ref(), e))?;
            if let (Some(to), true) = (frozen, injector.fired())
                && (ended.is_some() || self.others_rest(to) || began.elapsed() > patience)
            {
                match to {
                    Whom::Source => self.source.kill(),
                    Whom::Destination => self.destination.kill(),
                    Whom::Client => drop(client.kill()),
                }
                self.killed = Some(to);
                frozen = None;
            }
            if let Some(status) = ended {
                return Ok(status.code());
            }
            if began.elapsed() > 2 * patience {
                // What is wrong is seen by what becomes of the guest.
                let _ = client.kill();
                let _ = client.wait();
                return Ok(None);
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether those who are not frozen wait for nothing any more.
    fn others_rest(&mut self, frozen: Whom) -> bool {
        match frozen {
            Whom::Source => matches!(
                self.destination(),
                Some(Destination::Runs | Destination::Empty)
            ),
            // The end of the client says so.
            Whom::Destination => false,
            Whom::Client => self.source().is_some(),
        }
    }

    /// Where both come to rest.
    fn settle(&mut self, patience: Duration) -> (Source, Destination) {
        let deadline = Instant::now() + patience;
        loop {
            let (source, destination) = (self.source(), self.destination());
            if let (Some(source), Some(destination)) = (source, destination) {
                return (source, destination);
            }
            if Instant::now() > deadline {
                return (
                    source.unwrap_or(Source::Odd),
                    destination.unwrap_or(Destination::Odd),
                );
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// What the source is, unless it is under way to that.
    fn source(&mut self) -> Option<Source> {
        if let Some(status) = self.source.ended() {
            let left = status.code() == Some(0);
            return Some(match self.killed {
                Some(Whom::Source) if !left => Source::Killed,
                _ if left => Source::Left,
                _ => Source::Odd,
            });
        }
        match Client::new(&self.source.control()).status().ok()?.state {
            State::Running => Some(Source::Runs),
            State::Unknown => Some(Source::Unknown),
            _ => None,
        }
    }

    fn destination(&mut self) -> Option<Destination> {
        if self.destination.ended().is_some() {
            return Some(match self.killed {
                Some(Whom::Destination) => Destination::Killed,
                _ => Destination::Odd,
            });
        }
        match Client::new(&self.destination.control())
            .status()
            .ok()?
            .state
        {
            State::Running => Some(Destination::Runs),
            State::Waiting => Some(Destination::Empty),
            _ => None,
        }
    }
}

/// Who has the guest, and whether everybody has told the truth about it.
struct Judge<'a> {
    fault: &'a Fault,
    source: Source,
    destination: Destination,
    /// Exit status of `ferry migrate`.
    status: Option<i32>,
    /// The destination is known to have run the guest.
    live: bool,
    outcome: &'a mut Outcome,
}

impl Judge<'_> {
    fn double(&mut self, how: String) {
        self.outcome.violate(Violation::Double, how);
    }

    /// Who has the guest in the end, which runs there; `None` if it is gone.
    fn keeper(&mut self, ends: &mut Ends) -> Result<Option<Whom>, Error> {
        let here = matches!(self.source, Source::Runs | Source::Unknown | Source::Odd)
            && beats(&ends.source, self.source == Source::Runs);
        let there = self.destination != Destination::Killed
            && beats(&ends.destination, self.destination == Destination::Runs);
        self.words(here, there);
        self.outcome.unknown = self.source == Source::Unknown;
        if here && there {
            self.double("both ends' guests beat after the move".into());
            return Ok(None);
        }
        if self.outcome.unknown {
            return self.recover(ends, there).map(Some);
        }
        if !here && !there {
            self.gone();
            return Ok(None);
        }
        let benign = self.outcome.missed || self.fault.act.is_harmless();
        if benign && self.destination != Destination::Runs {
            self.outcome.needless = true;
        }
        Ok(Some(if here {
            Whom::Source
        } else {
            Whom::Destination
        }))
    }

    /// Does what the manual says: look at the destination, then `stop` or `resume --force` here.
    fn recover(&mut self, ends: &mut Ends, there: bool) -> Result<Whom, Error> {
        let keeper = if there {
            ends.source.act("stop")?;
            ends.source.wait_end(STEP)?;
            Whom::Destination
        } else {
            let output = ends.source.command("resume", &["--force"])?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                self.outcome.violate(Violation::Lost, said);
            }
            Whom::Source
        };
        let ferry = match keeper {
            Whom::Source => &ends.source,
            _ => &ends.destination,
        };
        if beats(ferry, true) {
            self.outcome.recovered = true;
        } else {
            let how = format!("unknown, and {keeper:?} does not run it after the explicit command");
            self.outcome.violate(Violation::Lost, how);
        }
        Ok(keeper)
    }

    /// Nobody runs it. It is gone with its owner where that was killed: the source until the destination has run it.
    fn gone(&mut self) {
        let owner_killed = match (self.source, self.destination) {
            (Source::Killed, _) => !self.live,
            (Source::Left, Destination::Killed) => true,
            _ => false,
        };
        if owner_killed {
            self.outcome.killed_with_owner = true;
        } else {
            let how = format!(
                "nobody runs the guest: source {:?}, destination {:?}",
                self.source, self.destination
            );
            self.outcome.violate(Violation::Lost, how);
        }
    }

    /// What both ends and the exit status said is what is the case.
    fn words(&mut self, here: bool, there: bool) {
        let (source, destination) = (self.source, self.destination);
        let mut untrue = Vec::new();
        if (source == Source::Runs) != here {
            untrue.push(format!("the source is {source:?}, but beats: {here}"));
        }
        if (destination == Destination::Runs) != there {
            untrue.push(format!(
                "the destination is {destination:?}, but beats: {there}"
            ));
        }
        let told = match self.status {
            Some(0) => matches!(source, Source::Left | Source::Killed),
            Some(1) => matches!(source, Source::Runs),
            Some(4) => matches!(source, Source::Unknown | Source::Killed),
            // We have killed it, or its source.
            None => whom(self.fault.act) == Some(Whom::Client),
            Some(_) => false,
        };
        if !told {
            untrue.push(format!(
                "ferry migrate ended with {:?}, the source is {source:?}",
                self.status
            ));
        }
        for how in untrue {
            self.outcome.violate(Violation::Untrue, how);
        }
    }
}

/// Whether the guest's heart beats in a process; looked at for longer if it should.
fn beats(ferry: &Ferry, expected: bool) -> bool {
    let Ok(memory) = ferry
        .memory()
        .or_else(|_| ProcMem::find_pulse(ferry.pid(), MIB << 20))
    else {
        return false;
    };
    let beat = || verify::status(&memory).ok().map(|status| status.beat);
    let Some(start) = beat() else {
        return false;
    };
    let limit = if expected {
        BEATS
    } else {
        Duration::from_millis(30)
    };
    let began = Instant::now();
    while began.elapsed() < limit {
        thread::sleep(Duration::from_millis(2));
        if beat().is_some_and(|now| now.wrapping_sub(start) >= 3) {
            return true;
        }
    }
    false
}

fn whom(act: Act) -> Option<Whom> {
    match act {
        Act::Signal { to, .. } => Some(to),
        _ => None,
    }
}

fn fault_kills(act: Act) -> bool {
    matches!(
        act,
        Act::Signal {
            signal: Signal::Kill | Signal::Freeze,
            ..
        }
    )
}

fn id(pid: u32) -> i32 {
    i32::try_from(pid).unwrap_or(0)
}

/// What sends the fault's signal.
fn signal(
    act: Act,
    source: &Ferry,
    destination: &Ferry,
    targets: &Arc<Targets>,
    beyond: Duration,
) -> Box<dyn Fn() + Send + Sync> {
    let Act::Signal { to, signal, .. } = act else {
        return Box::new(|| ());
    };
    let (source, destination) = (id(source.pid()), id(destination.pid()));
    let targets = Arc::clone(targets);
    Box::new(move || {
        let pid = match to {
            Whom::Source => source,
            Whom::Destination => destination,
            Whom::Client => targets.client.load(Ordering::Acquire),
        };
        if pid == 0 {
            return;
        }
        let pid = Pid::from_raw(pid);
        match signal {
            Signal::Kill => drop(kill(pid, Sent::SIGKILL)),
            Signal::Freeze => drop(kill(pid, Sent::SIGSTOP)),
            Signal::Stop(span) => {
                let _ = kill(pid, Sent::SIGSTOP);
                let time = match span {
                    Span::Ms(ms) => Duration::from_millis(ms.into()),
                    Span::BeyondTimeout => beyond,
                };
                targets.keep(thread::spawn(move || {
                    thread::sleep(time);
                    let _ = kill(pid, Sent::SIGCONT);
                }));
            }
        }
    })
}

impl Targets {
    fn keep(&self, timer: JoinHandle<()>) {
        let mut timers = self.timers.lock().unwrap_or_else(PoisonError::into_inner);
        timers.push(timer);
    }

    /// Waits until nothing is to be sent any more.
    fn join(&self) {
        let mut timers = self.timers.lock().unwrap_or_else(PoisonError::into_inner);
        for timer in timers.drain(..) {
            let _ = timer.join();
        }
    }
}
