//! `ferry receive`: a guest from another host.

use std::cell::RefCell;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::virtio::block::disk::Disk;
use kvm_ioctls::Kvm;
use migration::cancel::CancelToken;
use migration::destination::ReceiveOptions;
use migration::destination::{self, Accept, ReceiveError, Received};
use migration::event::Arrival;
use migration::guest::{GuestError, survive};
use migration::wire::tls::Demand;
use migration::wire::{Local, Transport};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::activation::{self, Manager, Passed};
use super::gate::Gate;
use super::paths::Paths;
use super::status::CardInfo;
use super::supervisor::{FromThread, Notifier, chain};
use super::supplies::Supplies;
use super::{End, MachineError, disk, tap};
use crate::config::{DiskFile, Listen, ReceiveConfig, TapConfig, Target};
use crate::console::Signals;
use crate::control::socket::OwnedSocket;
use crate::kvm;
use crate::log;
use crate::memory::{Filled, Prefaulted};
use crate::sandbox::{self, Kind, Sandbox};
use crate::tls::{self, TlsFilesError};
use crate::units::Size;
use crate::vm::{Gauges, LogChoice, ReceivingHost, RunningVm};

/// How long to wait after a connection could not be accepted.
const RETRY: Duration = Duration::from_secs(1);

/// Waits for a guest and becomes its VMM, until it ends, leaves, or is stopped.
///
/// # Errors
/// What is missing or wrong before a guest could come, or how it crashed.
pub fn receive(config: ReceiveConfig) -> Result<End, MachineError> {
    let signals = Signals::block().map_err(MachineError::host("block signals"))?;
    let kvm = kvm::open()?;
    let log = LogChoice::of(config.dirty_tracking, &kvm)?;
    let tls = config.tls.as_deref().map(tls::load).transpose()?;
    let demand = tls.as_ref().map(|tls| tls.demand_any_of(&config.peers));
    let demand = demand.transpose().map_err(|source| {
        let dir = config.tls.clone().unwrap_or_default();
        TlsFilesError::Contents { dir, source }
    })?;
    let listener = Listener::open(&config, demand)?;
    let manager = Manager::connect();
    let paths = Paths::open(config.control.as_deref(), &config.serial)?;
    // Beforehand: later nothing can be opened, and who gave a tap that cannot be had learns it now.
    let open = |(card, wanted): &(u32, TapConfig)| {
        Ok::<_, GuestError>((*card, tap::open_for_any(wanted)?))
    };
    let taps = config.nets.iter().map(open).collect::<Result<_, _>>()?;
    let open =
        |(number, wanted): &(u32, DiskFile)| Ok::<_, GuestError>((*number, disk::open(wanted)?));
    let disks = config.disks.iter().map(open).collect::<Result<_, _>>()?;
    let mut reach = paths.reach();
    if let Listen::At(Target::Unix(path)) = &config.listen {
        reach.removes.push(path.clone());
    }
    let gauges = Gauges::open();
    // Otherwise the kernel would end somebody for it, perhaps not this process.
    gauges.check_prefault(config.prefault)?;
    let sandbox = Sandbox::confine(config.sandbox, &reach)?;
    let mut supervisor = paths.supervisor(signals)?;
    supervisor.tls = tls;
    let receiver = Receiver {
        kvm,
        log,
        listener: RefCell::new(Some(listener)),
        manager,
        supplies: Supplies::of(&supervisor, taps)?,
        disks,
        gauges,
        ready: RefCell::default(),
        notify: supervisor.notifier()?,
        gate: supervisor.gate.clone(),
        config,
    };
    std::thread::Builder::new()
        .name("migration".into())
        .spawn(move || {
            sandbox::enter(Kind::Receiver);
            receiver.serve();
        })
        .map_err(MachineError::host("start the receiving thread"))?;
    supervisor.sandbox = Some(sandbox.close()?);
    supervisor.serve()
}

/// Where sources connect.
enum Listener {
    /// With what a source has to prove, if it has to.
    Tcp(TcpListener, Option<Demand>),
    Unix(OwnedSocket),
    /// One that was passed, whose file is not ours.
    Local(UnixListener),
}

impl Listener {
    /// Takes the socket that was passed, or listens.
    fn open(config: &ReceiveConfig, demand: Option<Demand>) -> Result<Self, MachineError> {
        let target = match &config.listen {
            Listen::At(target) => return Self::bind(target, demand),
            Listen::Passed => {
                activation::passed().map_err(MachineError::host("take the socket to listen on"))?
            }
        };
        let listener = match target {
            Passed::Tcp(listener) => Self::Tcp(listener, demand),
            Passed::Unix(listener) => Self::Local(listener),
        };
        config.check_plaintext(&listener.address())?;
        Ok(listener)
    }

    /// Listens. What comes over a Unix socket comes from this machine, and needs no TLS.
    fn bind(target: &Target, demand: Option<Demand>) -> Result<Self, MachineError> {
        match target {
            Target::Tcp(host, port) => TcpListener::bind((host.as_str(), *port))
                // A peer may be gone between poll(2) and accept(2), which is not to wait then.
                .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
                .map(|listener| Listener::Tcp(listener, demand))
                .map_err(MachineError::host(format!(
                    "listen on {target}; take an address of this host and a free port"
                ))),
            Target::Unix(path) => Ok(Self::Unix(OwnedSocket::listen(path)?)),
        }
    }

    /// How sources have to come.
    fn terms(&self) -> &'static str {
        match self {
            Listener::Tcp(_, Some(_)) => " (TLS)",
            Listener::Tcp(_, None) | Listener::Unix(_) | Listener::Local(_) => "",
        }
    }

    /// Where sources find it, as the kernel has it.
    fn address(&self) -> Target {
        let path = |path: Option<&Path>| Target::Unix(path.unwrap_or(Path::new("?")).to_owned());
        match self {
            Listener::Tcp(listener, _) => match listener.local_addr() {
                Ok(address) => Target::Tcp(address.ip().to_string(), address.port()),
                // No address that is known is on this machine.
                Err(_) => Target::Tcp("?".into(), 0),
            },
            Listener::Unix(socket) => path(Some(socket.path())),
            Listener::Local(socket) => path(
                socket
                    .local_addr()
                    .ok()
                    .as_ref()
                    .and_then(|at| at.as_pathname()),
            ),
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Tcp(listener, _) => listener.as_fd(),
            Listener::Unix(socket) => socket.as_fd(),
            Listener::Local(socket) => socket.as_fd(),
        }
    }

    /// Whether there is a connection that nobody has taken.
    fn has_come(&self) -> bool {
        let mut fds = [PollFd::new(self.fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// The next connection, within the deadline if there is one and unless `wake` becomes readable.
    fn next(
        &self,
        deadline: Option<Instant>,
        wake: Option<BorrowedFd<'_>>,
    ) -> std::io::Result<Option<(Box<dyn Transport>, String)>> {
        let mut fds = vec![PollFd::new(self.fd(), PollFlags::POLLIN)];
        fds.extend(wake.map(|wake| PollFd::new(wake, PollFlags::POLLIN)));
        loop {
            let slice = deadline.map_or(PollTimeout::NONE, |deadline| {
                let left = deadline.saturating_duration_since(Instant::now());
                let millis = left.as_nanos().div_ceil(1_000_000);
                PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
            });
            match poll(&mut fds, slice) {
                Ok(_) if fds[0].any().unwrap_or(true) => {}
                Ok(0) if deadline.is_none_or(|deadline| Instant::now() < deadline) => continue,
                Ok(_) => return Ok(None),
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            }
            match self.take() {
                // The peer was gone again.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                result => return result.map(Some),
            }
        }
    }

    /// One that has come.
    fn take(&self) -> std::io::Result<(Box<dyn Transport>, String)> {
        match self {
            Listener::Tcp(listener, demand) => {
                let (stream, peer) = listener.accept()?;
                let mut stream: Box<dyn Transport> = Box::new(stream);
                if let Some(demand) = demand {
                    stream = demand.secure(stream)?;
                }
                Ok((stream, peer.to_string()))
            }
            Listener::Unix(socket) => {
                let stream = Local::from(socket.accept()?);
                Ok((Box::new(stream), "a local peer".into()))
            }
            Listener::Local(socket) => {
                let (stream, _) = socket.accept()?;
                Ok((Box::new(Local::from(stream)), "a local peer".into()))
            }
        }
    }
}

/// The further streams of a move come in where its first did.
struct Further<'a>(&'a RefCell<Option<Listener>>);

impl Accept for Further<'_> {
    fn accept(
        &mut self,
        deadline: Instant,
        cancel: &CancelToken,
    ) -> std::io::Result<Option<(Box<dyn Transport>, String)>> {
        match self.0.borrow().as_ref() {
            Some(listener) => listener.next(Some(deadline), Some(cancel.wake_fd())),
            None => Ok(None),
        }
    }
}

/// What went wrong with whom.
fn from_peer(peer: &str, reason: &str) -> String {
    if reason.contains(peer) {
        reason.to_owned()
    } else {
        format!("from {peer}: {reason}")
    }
}

/// Why a connection brought no guest.
enum NoGuest {
    /// It was there to measure the link.
    Probed {
        /// Who did.
        peer: String,
    },
    /// It failed.
    Failed(String),
    /// This process is about to end.
    Ending,
}

impl From<String> for NoGuest {
    fn from(reason: String) -> Self {
        Self::Failed(reason)
    }
}

impl From<GuestError> for NoGuest {
    fn from(error: GuestError) -> Self {
        Self::Failed(chain(&error))
    }
}

/// A guest that has come.
struct Come {
    received: Received<RunningVm>,
    cards: Vec<CardInfo>,
    /// From its connection to here.
    took: Duration,
}

/// The receiving thread: waits for sources until a guest has come in.
struct Receiver {
    kvm: Kvm,
    log: LogChoice,
    /// None once a passed socket is left to others.
    listener: RefCell<Option<Listener>>,
    manager: Manager,
    supplies: Supplies,
    /// For its disks, by theirs; not locked until a guest is about to run.
    disks: Vec<(u32, Arc<Disk>)>,
    gauges: Gauges,
    /// Memory for the guest, if it was to be touched beforehand.
    ready: RefCell<Option<Prefaulted>>,
    notify: Notifier,
    gate: Gate,
    config: ReceiveConfig,
}

impl Receiver {
    fn serve(self) {
        match self.prefault() {
            Ok(ready) => *self.ready.borrow_mut() = ready,
            Err(error) => {
                self.notify.send(FromThread::NotArrived {
                    give_up: Some(chain(&error)),
                    failed: false,
                });
                return;
            }
        }
        self.waiting();
        loop {
            // A panic costs the move that came in, and not all that may come later.
            let (give_up, failed) = match survive(|| self.attempt()) {
                Ok(come) => {
                    self.arrived(come);
                    return;
                }
                Err(NoGuest::Probed { peer }) => {
                    log::say(&format!(
                        "{peer} has measured the link; waiting for a guest"
                    ));
                    (None, false)
                }
                Err(NoGuest::Failed(reason)) => {
                    log::say(&format!("no guest came in: {reason}"));
                    let over = self.config.once || self.listener.borrow().is_none();
                    (over.then_some(reason), true)
                }
                Err(NoGuest::Ending) => return,
            };
            let ended = give_up.is_some();
            self.manager.status("waiting for a guest");
            self.gate.leave();
            self.notify.send(FromThread::NotArrived { give_up, failed });
            if ended {
                return;
            }
            self.prefault_again();
        }
    }

    /// One source, from its connection to a running guest.
    fn attempt(&self) -> Result<Come, NoGuest> {
        let next = match self.listener.borrow().as_ref() {
            Some(listener) => listener.next(None, None).map_err(|error| {
                // Out of descriptors or memory: that does not pass by asking again at once.
                std::thread::sleep(RETRY);
                let address = listener.address();
                format!("cannot accept a connection on {address}: {error}")
            })?,
            None => None,
        };
        let since = Instant::now();
        let (socket, peer) = next.ok_or_else(|| "nobody came".to_owned())?;
        let cancel = CancelToken::new().map_err(|e| format!("make a cancel token: {e}"))?;
        if !self.gate.enter(&cancel) {
            log::say(&format!("{peer} came too late: this process ends"));
            return Err(NoGuest::Ending);
        }
        self.notify.send(FromThread::Receiving(cancel.clone()));
        let mut cards = Vec::new();
        let mut ready = self.ready.borrow_mut();
        let mut host = ReceivingHost {
            kvm: &self.kvm,
            max_memory: self.config.max_memory,
            gauges: &self.gauges,
            prefaulted: &mut ready,
            huge_pages: self.config.huge_pages,
            log: self.log,
            filled: Filled::default(),
            rewound: false,
            make_parts: &mut || self.supplies.parts(),
            open_tap: &mut |card, shape| {
                let tap = self.supplies.tap(card, shape, "start the receiver with")?;
                cards.push(CardInfo {
                    tap: tap.name().to_owned(),
                    mac: None,
                });
                Ok(tap)
            },
            open_disk: &mut |number| self.disk(number),
        };
        let mut tell = |arrival: Arrival| match arrival {
            Arrival::Accepted {
                peer,
                memory_bytes,
                vcpus,
            } => {
                let text = format!(
                    "receiving a guest of {} MiB and {vcpus} vCPU(s) from {peer}",
                    memory_bytes >> 20
                );
                log::say(&text);
                self.begun(&text);
            }
            Arrival::RoundFinished { .. } | Arrival::Ready | Arrival::Live { .. } => {}
        };
        let options = ReceiveOptions {
            peer_timeout: self.config.peer_timeout,
            ..ReceiveOptions::default()
        };
        let received = destination::receive(
            &mut host,
            socket,
            &peer,
            Some(&mut Further(&self.listener)),
            &options,
            &cancel,
            &mut tell,
        );
        match received {
            Ok(received) => Ok(Come {
                received,
                cards,
                took: since.elapsed(),
            }),
            Err(ReceiveError::Probed { peer }) => Err(NoGuest::Probed { peer }),
            Err(error) => Err(from_peer(&peer, &chain(&error)).into()),
        }
    }

    /// Touches memory before a guest comes for it, if any is wanted. It may take minutes, in which the process can be
    /// asked and stopped, and ends with the first source that comes. That there is as much has been looked at.
    fn prefault(&self) -> Result<Option<Prefaulted>, GuestError> {
        let bytes = self.config.prefault;
        if bytes == 0 {
            return Ok(None);
        }
        let text = format!("touching {} of memory before a guest comes", Size(bytes));
        log::say(&text);
        self.manager.status(&text);
        let ready = Prefaulted::new(bytes, &|| self.has_come());
        let ready = ready.map_err(|e| GuestError::new("cannot wait for a guest", e))?;
        if ready.touched() < bytes {
            let touched = Size(ready.touched());
            log::say(&format!("somebody has come, with {touched} of it touched"));
        }
        Ok(Some(ready))
    }

    /// Whether a source waits to be answered, which it does for some seconds only.
    fn has_come(&self) -> bool {
        let listener = self.listener.borrow();
        listener.as_ref().is_some_and(Listener::has_come)
    }

    /// For the next guest, after one that failed took it along, or a probe wrote to it. It may be gone meanwhile; a
    /// guest can do without.
    fn prefault_again(&self) {
        let mut ready = self.ready.borrow_mut();
        let renewed = ready.take().map(|old| old.renew(&|| self.has_come()));
        *ready = renewed.and_then(Result::ok);
        if ready.is_none() {
            let possible = self.gauges.check_prefault(self.config.prefault);
            let touched = possible.and_then(|()| self.prefault());
            *ready = touched.unwrap_or_else(|error| {
                log::say(&format!(
                    "the next guest touches its memory itself: {}",
                    chain(&error)
                ));
                None
            });
        }
    }

    /// The process is up. A service manager that has passed its socket goes on waiting: see [`begun`](Self::begun).
    fn waiting(&self) {
        if let Some(listener) = self.listener.borrow().as_ref() {
            let (address, terms) = (listener.address(), listener.terms());
            log::say(&format!("waiting for a guest on {address}{terms}"));
        }
        let text = "waiting for a guest";
        match self.config.listen {
            Listen::At(_) => self.manager.ready(text),
            Listen::Passed => self.manager.status(text),
        }
    }

    /// All streams of a move are there. From here on a passed socket is the next receiver's, which may be started now;
    /// two that accept from it at once would take each other's streams.
    fn begun(&self, text: &str) {
        match self.config.listen {
            Listen::At(_) => self.manager.status(text),
            Listen::Passed => {
                self.listener.take();
                self.manager.ready(text);
            }
        }
    }

    /// What the user gave for the guest's nth disk.
    fn disk(&self, number: u32) -> Result<Arc<Disk>, GuestError> {
        let mut disks = self.disks.iter();
        let found = disks.find(|(index, _)| *index == number);
        let (_, disk) = found.ok_or_else(|| {
            GuestError::bare(format!(
                "the guest's disk {number} has no path here: start the receiver with --disk {number}=PATH, the path by which this host reaches the same disk"
            ))
        })?;
        Ok(disk.clone())
    }

    /// Hands the guest to the main loop first; what the source still wants to know comes after.
    fn arrived(self, come: Come) {
        let Come {
            received,
            cards,
            took,
        } = come;
        let Received { guest, finish } = received;
        let view = guest.view();
        self.notify.send(FromThread::Arrived {
            vm: Box::new(guest),
            cards,
            took,
        });
        log::say("the guest runs here now");
        self.manager.status("the guest runs here");
        finish.run(|| view.heartbeat());
    }
}
