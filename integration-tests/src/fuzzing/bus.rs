//! Accesses of a guest to ports and registers: any address, any size, any value, with the devices of a real machine
//! behind them.

use std::sync::{Arc, Mutex};

use devices::bus::{Bus, BusDevice};
use devices::heartbeat::HeartbeatPort;
use devices::pci::{CONFIG_PORTS_LEN, PciBus};
use devices::power::{I8042, I8042_LEN, POWER_LEN, PVPANIC_LEN, Power, PvPanic};
use devices::serial::{SERIAL_LEN, Serial};
use devices::virtio::net::VirtioNet;
use devices::virtio::pci::BAR_LEN;
use devices::virtio::{PciParts, VirtioDevice, VirtioMmio, VirtioPci, VirtioRng};
use migration::guest::GuestRam;
use migration::state::{Snapshot, VmState};
use vm_memory::GuestAddress;
use vmm::layout;

use super::input::{Program, Written};
use super::parts;
use super::virtio::wire;

/// The most accesses of one program.
const STEPS: usize = 400;

struct Machine {
    pio: Bus,
    mmio: Bus,
    serial: Arc<Mutex<Serial>>,
    slots: Vec<Arc<Mutex<VirtioMmio>>>,
    function: Arc<Mutex<VirtioPci>>,
}

impl Machine {
    fn new() -> Self {
        let ram = ram();
        // Nobody is at the other end: frames go nowhere.
        let (wire, _) = wire();
        let card = VirtioNet::new([2, 0, 0, 0, 0, 1], Some(1500), Box::new(wire)).unwrap();
        let behind: [Box<dyn VirtioDevice>; 2] = [Box::new(card), Box::new(VirtioRng::new())];
        let slots = behind.map(|device| {
            let mut mmio = VirtioMmio::new(parts::mmio(&ram, device)).unwrap();
            mmio.resume();
            Arc::new(Mutex::new(mmio))
        });
        let serial = Arc::new(Mutex::new(Serial::new(parts::serial()).unwrap()));
        let (mut pio, mut mmio) = (Bus::new(), Bus::new());
        let mut port = |base: u16, len: u64, device: Arc<Mutex<dyn BusDevice>>| {
            pio.insert(base.into(), len, device).unwrap();
        };
        port(layout::SERIAL_PORT, SERIAL_LEN, serial.clone());
        let i8042 = Arc::new(Mutex::new(I8042::new()));
        port(layout::I8042_DATA_PORT, I8042_LEN, i8042);
        port(layout::POWER_PORT, POWER_LEN, Arc::new(Mutex::new(Power)));
        let panic = Arc::new(Mutex::new(PvPanic));
        port(layout::PVPANIC_PORT, PVPANIC_LEN, panic);
        let heartbeat = Arc::new(Mutex::new(HeartbeatPort::new()));
        port(
            layout::HEARTBEAT_PORT,
            layout::HEARTBEAT_PORTS.into(),
            heartbeat,
        );
        // Slot 2 has a PCI function, which no machine has beside slots that are none.
        let behind = function();
        let core = behind.core.clone();
        core.lock().unwrap().resume();
        let function = Arc::new(Mutex::new(VirtioPci::new(behind).unwrap()));
        let pci = PciBus::new(vec![function.clone()]).unwrap();
        let pci = Arc::new(Mutex::new(pci));
        port(layout::PCI_CONFIG_PORT, CONFIG_PORTS_LEN, pci);
        for (slot, device) in (0..).zip(&slots) {
            let base = layout::slot_address(slot);
            mmio.insert(base, layout::SLOT_SIZE, device.clone())
                .unwrap();
        }
        mmio.insert(layout::bar_address(2), BAR_LEN, function.clone())
            .unwrap();
        let [card, rng] = slots;
        Self {
            pio,
            mmio,
            serial,
            slots: vec![card, rng, core],
            function,
        }
    }

    /// One access, or something from outside.
    fn step(&mut self, program: &mut Program<'_>) {
        let (what, place, offset) = (program.u8(), program.u8(), program.u16());
        let bases = [
            layout::SERIAL_PORT,
            layout::I8042_DATA_PORT,
            layout::POWER_PORT,
            layout::PVPANIC_PORT,
            layout::HEARTBEAT_PORT,
            0,
            layout::PCI_CONFIG_PORT,
        ];
        let port = match bases[usize::from(place) % bases.len()] {
            0 => offset.into(),
            base => u64::from(base) + u64::from(offset % 12),
        };
        let slot = match place % 3 {
            2 => layout::bar_address(2),
            slot => layout::slot_address(slot.into()),
        };
        let slot = slot + u64::from(offset);
        let len = usize::from(what / 8 % 8) + 1;
        match what % 8 {
            0 => read(&self.pio, port, len),
            1 | 2 => self.write(false, port, &program.u64().to_le_bytes()[..len]),
            3 => read(&self.mmio, slot, len),
            4 | 5 => self.write(true, slot, &program.u64().to_le_bytes()[..len]),
            6 => {
                let input = program.bytes(usize::from(place % 80));
                let mut serial = self.serial.lock().unwrap();
                assert!(serial.enqueue(input) <= input.len());
            }
            _ => {
                let mut slot = self.slots[usize::from(place % 3)].lock().unwrap();
                slot.queue_event(usize::from(offset % 4));
                slot.backend_event();
            }
        }
    }

    fn write(&self, mmio: bool, addr: u64, data: &[u8]) {
        let bus = if mmio { &self.mmio } else { &self.pio };
        let _ = bus.write(addr, data);
    }

    /// Whatever was done to them, the devices' states can be restored, to the same bytes.
    fn move_them(&self) {
        let saved = self.serial.lock().unwrap().save();
        let restored = Serial::restore(saved.clone(), parts::serial()).unwrap();
        assert_eq!(restored.save(), saved);
        for slot in &self.slots {
            let mut state = VmState::default();
            slot.lock().unwrap().save_into(0, &mut state).unwrap();
        }
        let saved = self.function.lock().unwrap().save();
        let restored = VirtioPci::restore(saved.clone(), function()).unwrap();
        assert_eq!(restored.save(), saved);
    }
}

fn ram() -> GuestRam {
    GuestRam::from_ranges(&[(GuestAddress(0), 64 << 10)]).unwrap()
}

/// A card that is a PCI function.
fn function() -> PciParts {
    let backend = Box::new(wire().0);
    let card = VirtioNet::new([2, 0, 0, 0, 0, 2], None, backend).unwrap();
    parts::pci(parts::mmio(&ram(), Box::new(card)))
}

/// Every byte is given by somebody, or is that of an empty bus; never one that was there before.
fn read(bus: &Bus, addr: u64, len: usize) {
    let mut data = [0xa5; 8];
    if !bus.read(addr, &mut data[..len]) {
        assert_eq!(data[..len], [0xff; 8][..len]);
    }
    assert_eq!(data[len..], [0xa5; 8][len..]);
}

/// The input is a list of accesses.
pub fn run(input: &[u8]) {
    let mut program = Program::new(input);
    let mut machine = Machine::new();
    for _ in 0..STEPS {
        if program.is_over() {
            break;
        }
        machine.step(&mut program);
    }
    machine.move_them();
}

pub fn seeds() -> Vec<Vec<u8>> {
    let access =
        |seed: Written, what: u8, place: u8, offset: u16| seed.u8(what).u8(place).u16(offset);
    let serial = [
        (1u8, 1u16, 0x0fu64),
        (1, 3, 0x83),
        (1, 0, 12),
        (1, 3, 3),
        (1, 4, 0x0b),
        (1, 0, 0x41),
    ];
    let serial = serial
        .into_iter()
        .fold(Written::default(), |seed, (what, offset, value)| {
            access(seed, what, 0, offset).u64(value)
        });
    let serial = access(serial, 6, 5, 0).bytes(b"hello");
    let serial = (0..8).fold(serial, |seed, offset| access(seed, 0, 0, offset));
    let ports = (1..6).fold(Written::default(), |seed, place| {
        let seed = access(seed, 0, place, 0);
        let seed = access(seed, 1, place, 4).u64(0xfe);
        access(seed, 1 + 3 * 8, place, 0).u64(7)
    });
    let registers = [
        (0x70u16, 0u64),
        (0x70, 1),
        (0x70, 3),
        (0x24, 1),
        (0x20, 1),
        (0x24, 0),
        (0x20, 0),
    ];
    let queue = [
        (0x70u16, 0xb),
        (0x30, 0),
        (0x38, 16),
        (0x80, 0x1000),
        (0x90, 0x2000),
        (0xa0, 0x3000),
    ];
    let last = [(0x44u16, 1), (0x70, 0xf), (0x50, 0), (0x64, 1)];
    let all = registers.into_iter().chain(queue).chain(last);
    let virtio = |place| {
        let seed = all
            .clone()
            .fold(Written::default(), |seed, (offset, value)| {
                access(seed, 4 + 3 * 8, place, offset).u64(value)
            });
        let seed = access(seed, 7, place, 0);
        (0..0x42).fold(seed, |seed, word| access(seed, 3 + 3 * 8, place, word * 4))
    };
    vec![serial.0, ports.0, virtio(0).0, virtio(1).0, pci(access).0]
}

/// A driver that finds the function in slot 2, maps it, and sets up a queue that interrupts.
fn pci(access: impl Fn(Written, u8, u8, u16) -> Written) -> Written {
    // Six bases of ports come before.
    let select = |seed, register: u64| access(seed, 1 + 3 * 8, 6, 0).u64(0x8000_0800 | register);
    let found = (0..0x40).fold(Written::default(), |seed, word| {
        access(select(seed, word * 4), 3 * 8, 6, 4)
    });
    let enabled = access(select(found, 4), 1 + 8, 6, 4).u64(6);
    let enabled = access(select(enabled, 0x40), 1 + 8, 6, 6).u64(0x8000);
    // Offset, how many bytes, value.
    let writes = [
        (0x14u16, 1u8, 1u64),
        (0x14, 1, 3),
        (0x08, 4, 1),
        (0x0c, 4, 1),
        (0x14, 1, 0xb),
        (0x1000, 8, 0xfee0_0000),
        (0x1008, 8, 0x41),
        (0x10, 2, 0),
        (0x16, 2, 0),
        (0x18, 2, 16),
        (0x1a, 2, 0),
        (0x20, 8, 0x1000),
        (0x28, 8, 0x2000),
        (0x30, 8, 0x3000),
        (0x1c, 2, 1),
        (0x14, 1, 0xf),
        (0x200, 2, 0),
    ];
    let seed = writes
        .into_iter()
        .fold(enabled, |seed, (offset, len, value)| {
            access(seed, 4 + (len - 1) * 8, 2, offset).u64(value)
        });
    let seed = access(seed, 7, 2, 0);
    (0..0x10).fold(seed, |seed, word| access(seed, 3 + 3 * 8, 2, word * 4))
}
