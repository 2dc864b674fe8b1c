//! The devices of a VM: first as parts (file descriptors, wired to KVM, with no state), then assembled from
//! parts and state.
//!
//! A fresh device and one that arrives in a move are assembled in the same way; only the state differs.

use std::io::Write;
use std::sync::{Arc, Mutex};

use devices::bus::{Bus, BusDevice};
use devices::heartbeat::HeartbeatPort;
use devices::pci::{CONFIG_PORTS_LEN, Function, PciBus};
use devices::power::{I8042, I8042_LEN, POWER_LEN, PVPANIC_LEN, Power, PvPanic};
use devices::serial::{SERIAL_LEN, Serial, SerialParts};
use devices::virtio::balloon::{BalloonParts, Levels, VirtioBalloon};
use devices::virtio::block::{BlockParts, VirtioBlock, disk::Disk};
use devices::virtio::interrupts::Interrupts;
use devices::virtio::net::{NetParts, Tap, VirtioNet};
use devices::virtio::pci::{BAR_LEN, Vectors, doorbell};
use devices::virtio::rng::VirtioRng;
use devices::virtio::{
    INTERRUPT_ACK, MmioParts, PciParts, QUEUE_NOTIFY, RegisterPage, VirtioDevice, VirtioMmio,
    VirtioPci,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use migration::guest::{GuestError, GuestRam, Heartbeat};
use migration::state::VmState;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::balloon::{self, Balloon};
use super::disks::Disks;
use super::gsi::Gsi;
use super::io_thread::{self, IoThread, lock};
use super::messages::Messages;
use super::shape::{CardShape, DiskShape, SlotKind};
use crate::layout::{self, Transport};
use crate::memory::Filled;
use crate::vcpu::Buses;

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
struct SlotParts {
    slot: u32,
    backend: Backend,
    interrupt: Interrupt,
    queues: Vec<EventFd>,
    page: Arc<RegisterPage>,
}

/// Everything that devices are assembled from, and that does not travel.
pub struct DeviceParts {
    serial_irq: Gsi,
    serial_out: Box<dyn Write + Send>,
    /// Signalled when the serial port has room for input again.
    serial_room: EventFd,
    heartbeat: bool,
    transport: Transport,
    slots: Vec<SlotParts>,
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

impl DeviceParts {
    /// Wires up the serial port and the given backends, slot 0 first, each with its interrupt line, if they have lines,
    /// and the page of its registers.
    ///
    /// # Errors
    /// KVM refuses an ioeventfd, or no file descriptor is left.
    pub fn wire(
        vm: &Arc<VmFd>,
        serial_out: Box<dyn Write + Send>,
        serial_room: EventFd,
        heartbeat: bool,
        (transport, lines): (Transport, &[u32]),
        backends: impl Iterator<Item = (Backend, Arc<RegisterPage>)>,
    ) -> Result<Self, GuestError> {
        let serial_irq = Gsi::new(vm, layout::SERIAL_GSI);
        let slots = (0..)
            .zip(backends)
            .map(|(slot, (backend, page))| {
                let interrupt = match (transport, lines.get(slot as usize)) {
                    (Transport::Mmio, Some(&line)) => Interrupt::Line(Gsi::new(vm, line)),
                    (Transport::Mmio, None) => {
                        let why = format!("virtio slot {slot} has no interrupt line");
                        return Err(GuestError::bare(why));
                    }
                    (Transport::Pci, _) => {
                        let queues = backend.kind().queues() as usize;
                        let vectors = Vectors::new(queues, Box::new(Messages::new(vm)));
                        Interrupt::Messages(Arc::new(vectors.map_err(refuse("wire a slot"))?))
                    }
                };
                SlotParts::wire(vm, slot, interrupt, backend, page)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            serial_irq,
            serial_out,
            serial_room,
            heartbeat,
            transport,
            slots,
        })
    }

    /// Assembles the devices: from `state` if there is one, else fresh. They are paused.
    ///
    /// # Errors
    /// The state is refused.
    pub fn assemble(self, ram: &GuestRam, state: Option<&VmState>) -> Result<Devices, GuestError> {
        let serial_parts = SerialParts {
            irq: Box::new(self.serial_irq),
            out: self.serial_out,
            room: self.serial_room,
        };
        let serial = match state {
            Some(state) => state
                .restore(0, serial_parts)
                .map_err(|e| GuestError::new("restore the serial port", e))?,
            None => Serial::new(serial_parts).map_err(refuse("make the serial port"))?,
        };
        let heartbeat = match (self.heartbeat, state) {
            (false, _) => None,
            (true, Some(state)) => Some(
                state
                    .restore(0, ())
                    .map_err(|e| GuestError::new("restore the heartbeat port", e))?,
            ),
            (true, None) => Some(HeartbeatPort::new()),
        };
        let disks = self.slots.iter().filter_map(|slot| match &slot.backend {
            Backend::Block { disk, .. } => Some(disk.clone()),
            Backend::Net { .. } | Backend::Rng | Backend::Balloon { .. } => None,
        });
        let disks = Disks::new(disks.collect());
        let virtio = self
            .slots
            .into_iter()
            .map(|slot| slot.assemble(ram, state))
            .collect::<Result<Vec<_>, _>>()?;
        let pci = match self.transport {
            Transport::Mmio => None,
            Transport::Pci => Some(Arc::new(Mutex::new(pci_bus(&virtio, state)?))),
        };
        let mut devices = Devices {
            serial: Arc::new(Mutex::new(serial)),
            heartbeat: heartbeat.map(|port| Arc::new(Mutex::new(port))),
            virtio,
            pci,
            disks,
            buses: None,
        };
        devices.buses = Some(devices.plug()?);
        Ok(devices)
    }
}

/// The bus of these functions, in the order of their slots.
fn pci_bus(units: &[Unit], state: Option<&VmState>) -> Result<PciBus, GuestError> {
    let functions = units
        .iter()
        .filter_map(|unit| unit.function.clone())
        .map(|function| function as Arc<Mutex<dyn Function>>)
        .collect();
    match state {
        Some(state) => state
            .restore(0, functions)
            .map_err(|e| GuestError::new("restore the PCI bus", e)),
        None => PciBus::new(functions).map_err(refuse("make a PCI bus")),
    }
}

/// An error from a device that explains itself in words.
fn refuse(act: &'static str) -> impl FnOnce(String) -> GuestError {
    move |reason| GuestError::new(act, reason)
}

impl SlotParts {
    fn wire(
        vm: &Arc<VmFd>,
        slot: u32,
        interrupt: Interrupt,
        backend: Backend,
        page: Arc<RegisterPage>,
    ) -> Result<Self, GuestError> {
        let register = |offset| IoEventAddress::Mmio(layout::slot_address(slot) + offset);
        let mut queues = Vec::new();
        for index in 0..backend.kind().queues() {
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

    fn assemble(self, ram: &GuestRam, state: Option<&VmState>) -> Result<Unit, GuestError> {
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
struct Unit {
    slot: u32,
    net: bool,
    balloon: Option<Balloon>,
    mmio: Arc<Mutex<VirtioMmio>>,
    /// What the guest sees of it, where that is PCI.
    function: Option<Arc<Mutex<VirtioPci>>>,
    /// End with the unit.
    _io: Vec<IoThread>,
}

/// The devices of a VM.
pub struct Devices {
    serial: Arc<Mutex<Serial>>,
    heartbeat: Option<Arc<Mutex<HeartbeatPort>>>,
    virtio: Vec<Unit>,
    /// The bus that they are on, if they are on one.
    pci: Option<Arc<Mutex<PciBus>>>,
    /// Behind the units: their threads have ended when the locks go.
    disks: Disks,
    buses: Option<Buses>,
}

impl Devices {
    /// Puts every device at its address (see [`crate::layout`]).
    fn plug(&self) -> Result<Buses, GuestError> {
        let mut pio = Bus::new();
        let mut mmio = Bus::new();
        let mut port = |base: u16, len: u64, device: Arc<Mutex<dyn BusDevice>>| {
            pio.insert(u64::from(base), len, device)
                .map_err(|e| GuestError::new(format!("put a device at port {base:#x}"), e))
        };
        port(layout::SERIAL_PORT, SERIAL_LEN, self.serial.clone())?;
        let i8042 = Arc::new(Mutex::new(I8042::new()));
        port(layout::I8042_DATA_PORT, I8042_LEN, i8042)?;
        port(layout::POWER_PORT, POWER_LEN, Arc::new(Mutex::new(Power)))?;
        let panic = Arc::new(Mutex::new(PvPanic));
        port(layout::PVPANIC_PORT, PVPANIC_LEN, panic)?;
        if let Some(heartbeat) = &self.heartbeat {
            let len = u64::from(layout::HEARTBEAT_PORTS);
            port(layout::HEARTBEAT_PORT, len, heartbeat.clone())?;
        }
        if let Some(pci) = &self.pci {
            port(layout::PCI_CONFIG_PORT, CONFIG_PORTS_LEN, pci.clone())?;
        }
        for unit in &self.virtio {
            let plugged = match &unit.function {
                Some(function) => {
                    let base = layout::bar_address(unit.slot);
                    mmio.insert(base, BAR_LEN, function.clone())
                }
                None => {
                    let base = layout::slot_address(unit.slot);
                    mmio.insert(base, layout::SLOT_SIZE, unit.mmio.clone())
                }
            };
            plugged.map_err(|e| {
                GuestError::new(
                    format!("put the device of slot {} on the bus", unit.slot),
                    e,
                )
            })?;
        }
        Ok(Buses {
            pio: Arc::new(pio),
            mmio: Arc::new(mmio),
        })
    }

    /// The address spaces that vCPUs' exits go to.
    pub fn buses(&self) -> Option<Buses> {
        self.buses.clone()
    }

    /// The serial port, for input from the console.
    pub fn serial(&self) -> Arc<Mutex<Serial>> {
        self.serial.clone()
    }

    /// The heartbeat port, where the guest has one.
    pub fn heartbeat(&self) -> Option<Arc<Mutex<HeartbeatPort>>> {
        self.heartbeat.clone()
    }

    /// Stops every device: on return none writes guest memory any more. The vCPUs are stopped.
    pub fn pause(&self) {
        lock(&self.serial).pause();
        for unit in &self.virtio {
            lock(&unit.mmio).pause();
        }
    }

    /// Lets devices go on; the vCPUs are still stopped.
    pub fn resume(&self) {
        lock(&self.serial).resume();
        for unit in &self.virtio {
            lock(&unit.mmio).resume();
        }
    }

    /// Adds every device's state. They are paused.
    ///
    /// # Errors
    /// A state cannot be encoded.
    pub fn save(&self, state: &mut VmState) -> Result<(), GuestError> {
        let encode = |e| GuestError::new("save the devices", e);
        state.save(0, &*lock(&self.serial)).map_err(encode)?;
        if let Some(heartbeat) = &self.heartbeat {
            state.save(0, &*lock(heartbeat)).map_err(encode)?;
        }
        if let Some(pci) = &self.pci {
            state.save(0, &*lock(pci)).map_err(encode)?;
        }
        for unit in &self.virtio {
            if let Some(function) = &unit.function {
                state.save(unit.slot, &*lock(function)).map_err(encode)?;
            }
            lock(&unit.mmio)
                .save_into(unit.slot, state)
                .map_err(encode)?;
        }
        Ok(())
    }

    /// The disks, for passing them on.
    pub fn disks(&self) -> &Disks {
        &self.disks
    }

    /// The balloon, where there is one.
    pub fn balloon(&self) -> Option<Balloon> {
        self.virtio.iter().find_map(|unit| unit.balloon.clone())
    }

    /// The network cards, for announcing them after a move.
    pub fn network_cards(&self) -> Vec<Arc<Mutex<VirtioMmio>>> {
        self.virtio
            .iter()
            .filter(|unit| unit.net)
            .map(|unit| unit.mmio.clone())
            .collect()
    }
}

/// What a heartbeat port has seen, as the engine wants it.
pub fn heartbeat(port: &Mutex<HeartbeatPort>) -> Heartbeat {
    let record = lock(port).record();
    Heartbeat {
        count: record.count,
        first_ns: record.first_ns,
        last_ns: record.last_ns,
        largest_gap_ns: record.largest_gap_ns,
    }
}
