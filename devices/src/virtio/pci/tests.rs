//! A driver that knows of nothing but the bus: it finds the function, its capabilities, and sets it up by them.

use std::ops::Range;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::GuestRam;
use crate::pci::PciBus;
use crate::pci::msix::MessageSink;
use crate::virtio::testing::{Driver, parts, ram};
use crate::virtio::{MmioState, VirtioDevice, VirtioRng};

const BASE: u32 = 0xd000_4000;
const ADDRESS: u32 = 0xfee0_0000;

#[derive(Clone, Default)]
struct Sent(Arc<Mutex<Vec<u32>>>);

impl MessageSink for Sent {
    fn send(&self, address: u64, data: u32) {
        assert_eq!(address, u64::from(ADDRESS));
        self.0.lock().unwrap().push(data);
    }
}

impl Sent {
    fn take(&self) -> Vec<u32> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

struct Machine {
    ram: GuestRam,
    bus: PciBus,
    function: Arc<Mutex<VirtioPci>>,
    core: Arc<Mutex<VirtioMmio>>,
    sent: Sent,
}

fn device() -> Box<dyn VirtioDevice> {
    Box::new(VirtioRng::new())
}

/// The function's parts, and who hears its messages.
fn function(ram: &GuestRam, state: Option<MmioState>) -> (PciParts, Sent) {
    let sent = Sent::default();
    let vectors = Arc::new(Vectors::new(1, Box::new(sent.clone())).unwrap());
    let (mut parts, _, _) = parts(ram, device());
    parts.interrupts = Box::new(vectors.clone());
    let core = match state {
        Some(state) => VirtioMmio::restore(state, parts),
        None => VirtioMmio::new(parts),
    };
    let parts = PciParts {
        core: Arc::new(Mutex::new(core.unwrap())),
        vectors,
        base: BASE,
    };
    (parts, sent)
}

impl Machine {
    fn new() -> Self {
        let ram = ram();
        let (parts, sent) = function(&ram, None);
        let core = parts.core.clone();
        core.lock().unwrap().resume();
        Self::of(ram, core, VirtioPci::new(parts).unwrap(), sent)
    }

    fn of(ram: GuestRam, core: Arc<Mutex<VirtioMmio>>, function: VirtioPci, sent: Sent) -> Self {
        let function = Arc::new(Mutex::new(function));
        Self {
            ram,
            bus: PciBus::new(vec![function.clone()]).unwrap(),
            function,
            core,
            sent,
        }
    }

    /// The same guest elsewhere, on the same memory.
    fn moved(self) -> Self {
        self.core.lock().unwrap().pause();
        let (core, function_state) = (
            self.core.lock().unwrap().save(),
            self.function.lock().unwrap().save(),
        );
        let (parts, sent) = function(&self.ram, Some(core));
        let core = parts.core.clone();
        let function = VirtioPci::restore(function_state.clone(), parts).unwrap();
        assert_eq!(function.save(), function_state);
        core.lock().unwrap().resume();
        Self::of(self.ram, core, function, sent)
    }

    fn config(&mut self, register: u32, data: Option<&[u8]>) -> u32 {
        let address = 1u32 << 31 | 1 << 11 | register & !3;
        let _ = self.bus.write(0, &address.to_le_bytes());
        let at = 4 + u64::from(register & 3);
        if let Some(data) = data {
            let _ = self.bus.write(at, data);
        }
        let mut read = [0; 4];
        self.bus.read(4, &mut read);
        u32::from_le_bytes(read)
    }

    fn get<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0xee; N];
        self.function.lock().unwrap().read(offset, &mut data);
        data
    }

    fn put(&self, offset: u64, data: &[u8]) {
        let done = self.function.lock().unwrap().write(offset, data);
        assert_eq!(done, Action::None);
    }

    /// Where the capabilities say that something is: type of structure, offset in BAR 0 and length.
    fn structures(&mut self) -> Vec<(u8, Range<u64>)> {
        let mut found = Vec::new();
        let mut at = self.config(0x34, None) & 0xff;
        while at != 0 {
            let [id, next, len, kind] = self.config(at, None).to_le_bytes();
            if id == 0x09 {
                assert!(len >= 16);
                let [bar, ..] = self.config(at + 4, None).to_le_bytes();
                assert_eq!(bar, 0);
                let start = u64::from(self.config(at + 8, None));
                found.push((kind, start..start + u64::from(self.config(at + 12, None))));
            } else {
                assert_eq!((id, at), (0x11, 0x40));
            }
            at = next.into();
        }
        found
    }

    /// Sets the device up with vectors 0 for its configuration and 1 for its queue.
    fn set_up(&mut self, driver: &Driver) {
        self.config(0x04, Some(&[6, 0]));
        for status in [0u8, 1, 3] {
            self.put(0x14, &[status]);
        }
        for half in [0u32, 1] {
            self.put(0x00, &half.to_le_bytes());
            // VERSION_1, and INDIRECT_DESC and EVENT_IDX, which are not accepted.
            let offered: [u8; 4] = self.get(0x04);
            assert_eq!(offered, [[0, 0, 0, 0x30], [1, 0, 0, 0]][half as usize]);
            self.put(0x08, &half.to_le_bytes());
            self.put(0x0c, &half.to_le_bytes());
            assert_eq!(self.get::<4>(0x0c), half.to_le_bytes());
        }
        self.put(0x14, &[0xb]);
        assert_eq!(self.get(0x14), [0xb]);
        for vector in [0u64, 1] {
            let entry = TABLE + vector * 16;
            self.put(entry, &ADDRESS.to_le_bytes());
            let data = 0x40 + u32::try_from(vector).unwrap();
            self.put(entry + 8, &data.to_le_bytes());
            self.put(entry + 12, &[0; 4]);
        }
        self.config(0x42, Some(&0x8000u16.to_le_bytes()));
        self.put(0x10, &0u16.to_le_bytes());
        self.put(0x16, &0u16.to_le_bytes());
        assert_eq!(self.get::<2>(0x18), 64u16.to_le_bytes(), "the most entries");
        self.put(0x18, &8u16.to_le_bytes());
        self.put(0x1a, &1u16.to_le_bytes());
        assert_eq!(self.get::<2>(0x1a), [1, 0]);
        let settings = driver.settings(64);
        // One of them in one access, the others in halves.
        self.put(0x20, &settings.desc_table.to_le_bytes());
        for (offset, value) in [(0x28, settings.avail_ring), (0x30, settings.used_ring)] {
            let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
            self.put(offset, &[a, b, c, d]);
            self.put(offset + 4, &[e, f, g, h]);
            assert_eq!(self.get::<8>(offset), value.to_le_bytes());
        }
        self.put(0x1c, &[1, 0]);
        assert_eq!(self.get::<4>(0x1c), [1, 0, 0, 0], "ready, doorbell 0");
        self.put(0x14, &[0xf]);
        assert_eq!(self.get(0x14), [0xf]);
    }

    fn work(&self) {
        self.core.lock().unwrap().queue_event(0);
    }
}

#[test]
fn a_driver_finds_everything_by_the_bus_alone() {
    let mut machine = Machine::new();
    assert_eq!(machine.config(0, None), 0x1044_1af4, "modern, type 4");
    assert_eq!(machine.config(4, None), 0x0010_0002);
    assert_eq!(machine.config(8, None), 0xff00_0001);
    assert_eq!(machine.config(0x2c, None), 0x1100_1af4);
    // How large is BAR 0, and where; and nothing else is there.
    assert_eq!(machine.config(0x10, None), BASE);
    assert_eq!(machine.config(0x10, Some(&[0xff; 4])), 0xffff_e000);
    assert_eq!(machine.config(0x10, Some(&BASE.to_le_bytes())), BASE);
    for bar in 1..6 {
        assert_eq!(machine.config(0x10 + 4 * bar, Some(&[0xff; 4])), 0);
    }
    let structures = machine.structures();
    let kinds: Vec<_> = structures.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [1, 3, 2, 4, 5]);
    let mapped = &structures[..4];
    for (n, (_, range)) in mapped.iter().enumerate() {
        assert!(range.end <= TABLE && !range.is_empty());
        assert!(
            mapped[..n]
                .iter()
                .all(|(_, other)| { other.end <= range.start || range.end <= other.start })
        );
    }
    // In pieces, too.
    assert_eq!(machine.config(0x13, Some(&[0xff])), 0xff00_4000);
    assert_eq!(machine.config(0x12, Some(&[0, 0xd0])), BASE);
    assert_eq!(machine.config(0x05, Some(&[0xff])), 0x0010_0402);
    assert_eq!(machine.config(0x04, Some(&[2, 0, 0xff, 0xff])), 0x0010_0002);
    assert_eq!(machine.config(0x40, None), 0x0001_5011, "two vectors");
    assert_eq!(machine.config(0x44, None), 0x1000, "a page of its own");
    assert_eq!(machine.config(0x48, None), 0x1800);
    assert_eq!(
        machine.config(0x80, None),
        4,
        "from one doorbell to the next"
    );
    assert_eq!(machine.get::<2>(0x12), [1, 0], "queues");
}

#[test]
fn a_request_is_answered_and_its_queue_s_message_is_sent() {
    let mut machine = Machine::new();
    let mut driver = Driver::new(&machine.ram, 0x1_0000, 8);
    machine.set_up(&driver);
    driver.add(&[(0x2_0000, 100, true)]);
    machine.put(doorbell(0), &[0, 0]);
    machine.work();
    assert_eq!(driver.used(), [(0, 100)]);
    assert_eq!(machine.sent.take(), [0x41]);
    // Somewhere else it goes on, and what may have been lost on the way is raised there.
    let mut machine = machine.moved();
    assert_eq!(machine.sent.take(), [0x41, 0x40]);
    driver.add(&[(0x2_0000, 100, true)]);
    machine.work();
    assert_eq!(driver.used(), [(1, 100)]);
    assert_eq!(machine.sent.take(), [0x41]);
    // Masked, it is sent when it no longer is.
    machine.put(TABLE + 16 + 12, &[1, 0, 0, 0]);
    driver.add(&[(0x2_0000, 1, true)]);
    machine.work();
    assert!(machine.sent.take().is_empty());
    assert_eq!(machine.get::<8>(PENDING), 2u64.to_le_bytes());
    machine.put(TABLE + 16 + 12, &[0; 4]);
    assert_eq!(machine.sent.take(), [0x41]);
    // The status says so, too, to who asks, once.
    assert_eq!(machine.get::<1>(INTERRUPT_STATUS), [3]);
    assert_eq!(machine.get::<1>(INTERRUPT_STATUS), [0]);
    // While it may not write to memory, it does nothing; then everything.
    machine.config(0x04, Some(&[2, 0]));
    driver.add(&[(0x2_0000, 1, true)]);
    machine.work();
    assert!(driver.used().len() == 1 && machine.sent.take().is_empty());
    let mut machine = machine.moved();
    assert!(driver.used().is_empty() && machine.sent.take().is_empty());
    machine.config(0x04, Some(&[6, 0]));
    assert_eq!(machine.sent.take(), [0x40, 0x41]);
    machine.work();
    assert_eq!(driver.used().len(), 1);
    assert_eq!(machine.sent.take(), [0x41]);
    // A driver that breaks its ring hears of it by the configuration's message.
    driver.set_avail_idx(1000);
    machine.work();
    assert_eq!(machine.get(0x14), [0x4f]);
    assert_eq!(machine.sent.take(), [0x40]);
    // A reset: no vector is anybody's, and the table is as it was.
    machine.put(0x14, &[0]);
    assert_eq!(machine.get::<2>(0x10), [0xff; 2]);
    assert_eq!(machine.get::<2>(0x1a), [0xff; 2]);
    assert_eq!(machine.get::<4>(TABLE), ADDRESS.to_le_bytes());
    assert_eq!(machine.get::<8>(PENDING), [0; 8]);
}

#[test]
fn what_is_not_there_cannot_be_chosen() {
    let machine = Machine::new();
    machine.put(0x10, &2u16.to_le_bytes());
    assert_eq!(machine.get::<2>(0x10), [0xff; 2], "of two vectors");
    machine.put(0x16, &1u16.to_le_bytes());
    machine.put(0x1a, &0u16.to_le_bytes());
    assert_eq!(
        machine.get::<16>(0x16)[2..],
        [0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    );
    machine.put(0x16, &0u16.to_le_bytes());
    // A queue is not disabled by a 0, and read-only fields stay.
    let before = machine.get::<8>(0x10);
    for (offset, data) in [
        (0x1c, &[0u8, 0][..]),
        (0x12, &[9, 9]),
        (0x15, &[9]),
        (0x1e, &[9, 9]),
    ] {
        machine.put(offset, data);
    }
    // Fields are written as a whole.
    machine.put(0x17, &[1]);
    machine.put(0x13, &[1, 1, 1]);
    assert_eq!(machine.get::<8>(0x10), before);
    // Beyond everything there is nothing.
    for offset in [0x3c, 0x44, 0x84, 0x300, 0xff8, 0x1020, 0x1ff8, u64::MAX] {
        machine.put(offset, &[0xff; 8]);
        assert_eq!(machine.get::<8>(offset), [0; 8], "{offset:#x}");
    }
}

#[test]
fn registers_can_be_reached_through_configuration_space() {
    let mut machine = Machine::new();
    machine.config(0x98, Some(&[0]));
    machine.config(0x9c, Some(&0x14u32.to_le_bytes()));
    machine.config(0xa0, Some(&1u32.to_le_bytes()));
    machine.config(0xa4, Some(&[1, 0, 0, 0]));
    assert_eq!(machine.get(0x14), [1], "the status");
    assert_eq!(machine.config(0xa4, None), 1, "one byte, and no other");
    // Another BAR, another length, beyond the BAR: nothing happens.
    for (register, value) in [(0x98u32, 1u32), (0xa0, 3), (0x9c, 0x2000), (0x9c, u32::MAX)] {
        machine.config(0x98, Some(&[0]));
        machine.config(0xa0, Some(&1u32.to_le_bytes()));
        machine.config(0x9c, Some(&0x14u32.to_le_bytes()));
        machine.config(register, Some(&value.to_le_bytes()));
        machine.config(0xa4, Some(&[3, 0, 0, 0]));
        assert_eq!(machine.get(0x14), [1], "{register:#x} {value:#x}");
    }
}

#[test]
fn states_that_cannot_be_are_refused() {
    let ram = ram();
    let sound = VirtioPci::new(function(&ram, None).0).unwrap().save();
    let refusal = |change: &dyn Fn(&mut PciState)| {
        let mut state = sound.clone();
        change(&mut state);
        VirtioPci::restore(state, function(&ram, None).0).unwrap_err()
    };
    assert!(refusal(&|state| state.vectors.msix = msix::Msix::new(3)).contains("3 MSI-X vectors"));
    assert!(refusal(&|state| state.vectors.config = 2).contains("vector 2 of 2"));
    assert!(refusal(&|state| state.vectors.queues[0] = 7).contains("vector 7 of 2"));
    assert!(refusal(&|state| state.vectors.queues.push(0)).contains("2 queues"));
    assert!(refusal(&|state| state.config.command = 0x8000).contains("0x8000"));
    assert!(refusal(&|state| state.config.bar = 5).contains("0x5"));
    assert!(Vectors::new(64, Box::new(Sent::default())).is_err());
    let ram_is_untouched: [u8; 8] = {
        let mut bytes = [1; 8];
        ram.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    };
    assert_eq!(ram_is_untouched, [0; 8]);
}
