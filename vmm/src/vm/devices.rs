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
use devices::virtio::pci::BAR_LEN;
use devices::virtio::{RegisterPage, VirtioMmio};
use kvm_ioctls::VmFd;
use migration::guest::{GuestError, GuestRam, Heartbeat};
use migration::state::VmState;
use vmm_sys_util::eventfd::EventFd;

use super::balloon::Balloon;
use super::disks::Disks;
use super::gsi::Gsi;
use super::io_thread::lock;
use super::shape::Shape;
use super::slot::{Backend, SlotParts, Unit, refuse};
use crate::layout::{self, Transport};
use crate::vcpu::Buses;

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

impl DeviceParts {
    /// Wires up the serial port and the given backends, slot 0 first, each with the page of its registers.
    ///
    /// # Errors
    /// A slot cannot be wired: see [`SlotParts::wire`].
    pub fn wire(
        vm: &Arc<VmFd>,
        shape: &Shape,
        serial_out: Box<dyn Write + Send>,
        serial_room: EventFd,
        backends: impl Iterator<Item = (Backend, Arc<RegisterPage>)>,
    ) -> Result<Self, GuestError> {
        let serial_irq = Gsi::new(vm, layout::SERIAL_GSI);
        let slots = (0..)
            .zip(backends)
            .map(|(slot, (backend, page))| SlotParts::wire(vm, shape, slot, backend, page))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            serial_irq,
            serial_out,
            serial_room,
            heartbeat: shape.heartbeat,
            transport: shape.transport,
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
        let disks = self.slots.iter().filter_map(|slot| slot.disk().cloned());
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
