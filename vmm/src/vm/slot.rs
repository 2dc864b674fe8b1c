//! One virtio slot: what its device works with on this host, how that is wired to KVM, and the device itself with its
//! threads.

use std::sync::{Arc, Mutex};

use devices::virtio::balloon::{BalloonParts, Levels, VirtioBalloon};
use devices::virtio::block::{BlockParts, VirtioBlock, disk::Disk};
use devices::virtio::interrupts::Interrupts;
use devices::virtio::net::{NetParts, Tap, VirtioNet};
use devices::virtio::pci::{Vectors, doorbell};
use devices::virtio::rng::VirtioRng;
use devices::virtio::{
    INTERRUPT_ACK, MmioParts, PciParts, QUEUE_NOTIFY, RegisterPage, VirtioDevice, VirtioMmio,
    VirtioPci,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use migration::guest::{GuestError, GuestRam};
use migration::state::VmState;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::balloon::{self, Balloon};
use super::gsi::Gsi;
use super::io_thread::{self, IoThread};
use super::messages::Messages;
use super::shape::{CardShape, DiskShape, Shape, SlotKind};
use crate::layout::{self, Transport};
use crate::memory::Filled;

/// What a device in a slot does its work with, on this host.
#[derive(Debug)]
pub enum Backend {
    /// A network card.
    Net {
        /// The host's end, with a queue for each pair.
        tap: Tap,
        /// What is the same of it on every host.
        shape: CardShape,
        /// The guest's MAC address where it is made fresh; one that arrives keeps its own.
        mac: [u8; 6],
    },
    /// An entropy source: this host's.
    Rng,
    /// A balloon. One that arrives keeps its own target and features.
    Balloon {
        /// Its numbers, the target set.
        levels: Arc<Levels>,
        /// Whether a fresh one has the guest report free pages.
        reporting: bool,
        /// Whether a guest that is out of memory may take pages back from a fresh one.
        deflate_on_oom: bool,
        /// What the guest's memory is filled by while it runs, if it is, hears of what it gives away.
        filled: Filled,
    },
    /// A disk.
    Block {
        /// The host's end.
        disk: Arc<Disk>,
        /// What the guest knows of it; one that arrives has been compared.
        shape: DiskShape,
        /// Its number among the guest's disks, by which a fresh one is called.
        number: u32,
    },
}

impl Backend {
    /// The kind of slot it serves.
    pub fn kind(&self) -> SlotKind {
        match self {
            Backend::Net { shape, .. } => SlotKind::Net(*shape),
            Backend::Rng => SlotKind::Rng,
            Backend::Balloon { .. } => SlotKind::Balloon,
            Backend::Block { shape, .. } => SlotKind::Block(*shape),
        }
    }
}

/// How a slot interrupts.
enum Interrupt {
    /// By its line.
    Line(Gsi),
    /// By messages, as a PCI function.
    Messages(Arc<Vectors>),
}

/// A virtio slot, wired to KVM: doorbells as ioeventfds, and the acknowledgement of a line's interrupts as another
/// ioeventfd, which nobody reads.
pub(super) struct SlotParts {
    slot: u32,
    backend: Backend,
    interrupt: Interrupt,
    queues: Vec<EventFd>,
    page: Arc<RegisterPage>,
}

/// An eventfd, non-blocking.
fn eventfd() -> Result<EventFd, GuestError> {
    EventFd::new(EFD_NONBLOCK).map_err(|e| GuestError::new("make an eventfd", e))
}

/// A second descriptor of an eventfd.
fn again(fd: &EventFd) -> Result<EventFd, GuestError> {
    fd.try_clone()
        .map_err(|e| GuestError::new("duplicate an eventfd", e))
}

/// An error from a device that explains itself in words.
pub(super) fn refuse(act: &'static str) -> impl FnOnce(String) -> GuestError {
    move |reason| GuestError::new(act, reason)
}

impl Interrupt {
    /// The way in which that slot of the VM, with so many queues, interrupts.
    fn new(vm: &Arc<VmFd>, shape: &Shape, slot: u32, queues: u32) -> Result<Self, GuestError> {
        match (shape.transport, shape.lines.get(slot as usize)) {
            (Transport::Mmio, Some(&line)) => Ok(Self::Line(Gsi::new(vm, line))),
            (Transport::Mmio, None) => {
                let why = format!("virtio slot {slot} has no interrupt line");
                Err(GuestError::bare(why))
            }
            (Transport::Pci, _) => {
                let vectors = Vectors::new(queues as usize, Box::new(Messages::new(vm)));
                let vectors = vectors.map_err(refuse("wire a slot"))?;
                Ok(Self::Messages(Arc::new(vectors)))
            }
        }
    }
}

impl SlotParts {
    /// Wires up that slot of the VM.
    ///
    /// # Errors
    /// KVM refuses an ioeventfd, the slot has no interrupt line where it should, or no file descriptor is left.
    pub fn wire(
        vm: &Arc<VmFd>,
        shape: &Shape,
        slot: u32,
        backend: Backend,
        page: Arc<RegisterPage>,
    ) -> Result<Self, GuestError> {
        let count = backend.kind().queues();
        let interrupt = Interrupt::new(vm, shape, slot, count)?;
        let register = |offset| IoEventAddress::Mmio(layout::slot_address(slot) + offset);
        let mut queues = Vec::new();
        for index in 0..count {
            let fd = eventfd()?;
            let wired = match interrupt {
                Interrupt::Line(_) => vm.register_ioevent(&fd, &register(QUEUE_NOTIFY), index),
                Interrupt::Messages(_) => {
                    let own = IoEventAddress::Mmio(layout::bar_address(slot) + doorbell(index));
                    // Of any length, so that KVM need not look what is written, nor by which instruction.
                    vm.register_ioevent(&fd, &own, NoDatamatch)
                }
            };
            wired.map_err(|e| {
                GuestError::new(format!("wire doorbell {index} of virtio slot {slot}"), e)
            })?;
            queues.push(fd);
        }
        if let Interrupt::Line(_) = interrupt {
            // KVM holds on to the eventfd by itself.
            let (offset, used) = INTERRUPT_ACK;
            vm.register_ioevent(&eventfd()?, &register(offset), used)
                .map_err(|e| {
                    GuestError::new(
                        format!("wire the acknowledgements of virtio slot {slot}"),
                        e,
                    )
                })?;
        }
        Ok(Self {
            slot,
            backend,
            interrupt,
            queues,
            page,
        })
    }

    /// The disk, where it is one.
    pub fn disk(&self) -> Option<&Arc<Disk>> {
        match &self.backend {
            Backend::Block { disk, .. } => Some(disk),
            Backend::Net { .. } | Backend::Rng | Backend::Balloon { .. } => None,
        }
    }

    /// The device, from `state` if there is one, else fresh, with its threads. It is paused.
    ///
    /// # Errors
    /// The state is refused.
    pub fn assemble(self, ram: &GuestRam, state: Option<&VmState>) -> Result<Unit, GuestError> {
        let Self {
            slot,
            backend,
            interrupt,
            queues,
            page,
        } = self;
        let restore = |e| GuestError::new(format!("restore virtio slot {slot}"), e);
        let net = matches!(backend, Backend::Net { .. });
        let levels = match &backend {
            Backend::Balloon { levels, .. } => Some(levels.clone()),
            Backend::Net { .. } | Backend::Rng | Backend::Block { .. } => None,
        };
        let device: Box<dyn VirtioDevice> = match (backend, state) {
            (Backend::Net { tap, .. }, Some(state)) => {
                let parts = NetParts {
                    backend: Box::new(tap),
                };
                Box::new(state.restore::<VirtioNet>(slot, parts).map_err(restore)?)
            }
            (Backend::Net { tap, shape, mac }, None) => {
                let card = VirtioNet::new(mac, shape.mtu, Box::new(tap));
                Box::new(card.map_err(refuse("make a network card"))?)
            }
            (Backend::Rng, Some(state)) => {
                Box::new(state.restore::<VirtioRng>(slot, ()).map_err(restore)?)
            }
            (Backend::Rng, None) => Box::new(VirtioRng::new()),
            (Backend::Balloon { levels, filled, .. }, Some(state)) => {
                let parts = balloon_parts(levels, filled);
                Box::new(
                    state
                        .restore::<VirtioBalloon>(slot, parts)
                        .map_err(restore)?,
                )
            }
            (
                Backend::Balloon {
                    levels,
                    reporting,
                    deflate_on_oom,
                    filled,
                },
                None,
            ) => {
                let parts = balloon_parts(levels, filled);
                let balloon = VirtioBalloon::new(reporting, deflate_on_oom, parts);
                Box::new(balloon.map_err(refuse("make a balloon"))?)
            }
            (Backend::Block { disk, .. }, Some(state)) => {
                let parts = BlockParts { disk };
                Box::new(state.restore::<VirtioBlock>(slot, parts).map_err(restore)?)
            }
            (
                Backend::Block {
                    disk,
                    shape,
                    number,
                },
                None,
            ) => {
                let disk = VirtioBlock::new(disk, shape.queues, &format!("ferry-disk-{number}"));
                Box::new(disk.map_err(refuse("make a disk"))?)
            }
        };
        let (interrupts, vectors): (Box<dyn Interrupts>, _) = match interrupt {
            Interrupt::Line(line) => (Box::new(line), None),
            Interrupt::Messages(vectors) => (Box::new(vectors.clone()), Some(vectors)),
        };
        let parts = MmioParts {
            ram: ram.clone(),
            interrupts,
            queue_events: queues.iter().map(again).collect::<Result<_, _>>()?,
            page,
            device,
        };
        let mmio = match state {
            Some(state) => state.restore(slot, parts).map_err(restore)?,
            None => VirtioMmio::new(parts).map_err(refuse("make a virtio device"))?,
        };
        let mmio = Arc::new(Mutex::new(mmio));
        let function = match vectors {
            None => None,
            Some(vectors) => {
                let parts = PciParts {
                    core: mmio.clone(),
                    vectors,
                    // All are below 4 GiB.
                    base: u32::try_from(layout::bar_address(slot)).unwrap_or(u32::MAX),
                };
                let function = match state {
                    Some(state) => state.restore::<VirtioPci>(slot, parts).map_err(restore)?,
                    None => VirtioPci::new(parts).map_err(refuse("make a PCI function"))?,
                };
                Some(Arc::new(Mutex::new(function)))
            }
        };
        let io = io_thread::spawn(slot, &mmio, queues)?;
        Ok(Unit {
            slot,
            net,
            balloon: levels.map(|levels| Balloon::new(levels, mmio.clone())),
            mmio,
            function,
            _io: io,
        })
    }
}

/// A balloon gives its pages to this host.
fn balloon_parts(levels: Arc<Levels>, filled: Filled) -> BalloonParts {
    BalloonParts {
        host: Box::new(balloon::Host { filled }),
        levels,
    }
}

/// A virtio device with its threads.
pub(super) struct Unit {
    pub slot: u32,
    /// It is a network card.
    pub net: bool,
    pub balloon: Option<Balloon>,
    pub mmio: Arc<Mutex<VirtioMmio>>,
    /// What the guest sees of it, where that is PCI.
    pub function: Option<Arc<Mutex<VirtioPci>>>,
    /// End with the unit.
    _io: Vec<IoThread>,
}
