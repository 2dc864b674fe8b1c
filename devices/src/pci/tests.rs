//! The bus through its two ports, with functions that are bare memory.

use super::*;

/// A function of 256 bytes, and how often it was written to.
struct Probe {
    bytes: [u8; CONFIG_LEN],
    writes: usize,
}

impl Function for Probe {
    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        data.copy_from_slice(&self.bytes[offset..offset + data.len()]);
    }
    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.bytes[offset..offset + data.len()].copy_from_slice(data);
        self.writes += 1;
    }
}

fn probe() -> Arc<Mutex<Probe>> {
    let bytes = std::array::from_fn(|at| u8::try_from(at).unwrap());
    Arc::new(Mutex::new(Probe { bytes, writes: 0 }))
}

fn bus(probes: &[Arc<Mutex<Probe>>]) -> PciBus {
    let functions = probes.iter().map(|probe| probe.clone() as _).collect();
    PciBus::new(functions).unwrap()
}

fn select(bus: &mut PciBus, address: u32) {
    assert_eq!(bus.write(0, &address.to_le_bytes()), Action::None);
}

fn read<const N: usize>(bus: &mut PciBus, offset: u64) -> [u8; N] {
    let mut data = [0x5a; N];
    bus.read(offset, &mut data);
    data
}

#[test]
fn each_device_answers_at_its_number_and_nobody_elsewhere() {
    let probes = [probe(), probe()];
    let mut bus = bus(&probes);
    assert_eq!(read(&mut bus, 4), [0xff; 4], "not enabled");
    select(&mut bus, ENABLE);
    assert_eq!(read(&mut bus, 4), BRIDGE_ID.to_le_bytes());
    select(&mut bus, ENABLE | 8);
    assert_eq!(read(&mut bus, 6), [0, 6], "a host bridge by its class");
    select(&mut bus, ENABLE | 0xfc);
    assert_eq!(read(&mut bus, 4), [0; 4]);
    for device in [1u32, 2] {
        select(&mut bus, ENABLE | device << 11 | 0x40);
        assert_eq!(read(&mut bus, 4), [0x40, 0x41, 0x42, 0x43]);
        assert_eq!(read(&mut bus, 6), [0x42, 0x43]);
        assert_eq!(read(&mut bus, 7), [0x43]);
    }
    // Device 3, function 1, bus 1, and no enable bit.
    for address in [3 << 11, 1 << 11 | 1 << 8, 1 << 16 | 1 << 11] {
        select(&mut bus, ENABLE | address);
        assert_eq!(read(&mut bus, 4), [0xff; 4], "{address:#x}");
        assert_eq!(bus.write(4, &[0; 4]), Action::None);
    }
    select(&mut bus, 1 << 11);
    assert_eq!(read(&mut bus, 4), [0xff; 4]);
    assert!(probes.iter().all(|probe| probe.lock().unwrap().writes == 0));
}

#[test]
fn writes_go_to_the_selected_register_alone() {
    let probe = probe();
    let mut bus = bus(std::slice::from_ref(&probe));
    select(&mut bus, ENABLE | 1 << 11 | 0x13);
    assert_eq!(read(&mut bus, 0), (ENABLE | 1 << 11 | 0x10).to_le_bytes());
    assert_eq!(bus.write(6, &[0xaa]), Action::None);
    assert_eq!(probe.lock().unwrap().bytes[0x12], 0xaa);
    // Linux looks for mechanism #1 by a byte there, which must not change the address.
    assert_eq!(bus.write(3, &[1]), Action::None);
    assert_eq!(read(&mut bus, 0), (ENABLE | 1 << 11 | 0x10).to_le_bytes());
    // Accesses that reach beyond a register, or lie across both.
    for (offset, len) in [(2, 4), (5, 4), (6, 4), (7, 2), (4, 8), (0, 8)] {
        assert_eq!(bus.write(offset, &[0x77; 8][..len]), Action::None);
        let mut data = [0; 8];
        bus.read(offset, &mut data[..len]);
        assert_eq!(data[..len], [0xff; 8][..len], "{offset} {len}");
    }
    assert_eq!(probe.lock().unwrap().writes, 1);
    // The address is in what moves.
    let moved = PciBus::restore(bus.save(), vec![probe.clone()]).unwrap();
    assert_eq!(moved.save(), bus.save());
    let odd = PciBusState { address: 1 };
    assert!(
        PciBus::restore(odd, Vec::new())
            .unwrap_err()
            .contains("0x1")
    );
    select(&mut bus, u32::MAX);
    assert_eq!(read(&mut bus, 0), ADDRESS_BITS.to_le_bytes());
    let crowd = (0..=MAX_DEVICES).map(|_| probe.clone() as _).collect();
    assert!(PciBus::new(crowd).unwrap_err().contains("32 devices"));
}
