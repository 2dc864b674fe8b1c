//! Which device answers at an address. The VMM has one bus for I/O ports and one for memory-mapped registers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use thiserror::Error;

/// What a guest asked of its machine by a register write. A device says it, the VMM does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Action {
    /// Nothing besides what the device did by itself.
    None,
    /// The guest switched itself off.
    PowerOff,
    /// The guest wants a reset.
    Reset,
    /// The guest's kernel panicked.
    Panicked,
}

/// Something with registers. Offsets count from the device's own start, whatever address that has.
pub trait BusDevice: Send {
    /// Reads `data.len()` bytes (1 to 8) at `offset`; every byte of `data` is written.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Writes `data.len()` bytes (1 to 8) at `offset`.
    fn write(&mut self, offset: u64, data: &[u8]) -> Action;
}

/// Why a device was not put on the bus.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BusError {
    /// A device needs at least one byte of address space and must end within 64 bits.
    #[error("a device at {base:#x} cannot have {len:#x} bytes of address space")]
    Range {
        /// The device's first address.
        base: u64,
        /// Its bytes of address space.
        len: u64,
    },
    /// Another device is there.
    #[error("a device at {base:#x} of {len:#x} bytes overlaps the one at {other:#x}")]
    Overlap {
        /// The device's first address.
        base: u64,
        /// Its bytes of address space.
        len: u64,
        /// First address of the device that is there already.
        other: u64,
    },
}

struct Slot {
    len: u64,
    device: Arc<Mutex<dyn BusDevice>>,
}

/// Devices by address, without overlaps.
#[derive(Default)]
pub struct Bus {
    slots: BTreeMap<u64, Slot>,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ranges = self.slots.iter().map(|(base, slot)| (base, slot.len));
        f.debug_map().entries(ranges).finish()
    }
}

impl Bus {
    /// A bus without devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a device at `base .. base + len`.
    ///
    /// # Errors
    /// See [`BusError`]; the bus is unchanged.
    pub fn insert(
        &mut self,
        base: u64,
        len: u64,
        device: Arc<Mutex<dyn BusDevice>>,
    ) -> Result<(), BusError> {
        let last = len
            .checked_sub(1)
            .and_then(|more| base.checked_add(more))
            .ok_or(BusError::Range { base, len })?;
        // The neighbour that begins highest at or below our last byte is the only one that can overlap us.
        if let Some((&other, slot)) = self.slots.range(..=last).next_back()
            && (other >= base || base - other < slot.len)
        {
            return Err(BusError::Overlap { base, len, other });
        }
        self.slots.insert(base, Slot { len, device });
        Ok(())
    }

    /// Reads from the device at `addr`. Where nobody answers, `data` is all ones, as on an empty bus, and the
    /// result is `false`; so it is for an access that begins in a device and ends beyond it.
    pub fn read(&self, addr: u64, data: &mut [u8]) -> bool {
        match self.find(addr, data.len()) {
            Some((offset, mut device)) => {
                device.read(offset, data);
                true
            }
            None => {
                data.fill(0xff);
                false
            }
        }
    }

    /// Writes to the device at `addr`; `None` where nobody answers.
    pub fn write(&self, addr: u64, data: &[u8]) -> Option<Action> {
        let (offset, mut device) = self.find(addr, data.len())?;
        Some(device.write(offset, data))
    }

    /// The device that has all of `addr .. addr + len`, locked. A device whose lock is poisoned panicked in
    /// the midst of something: it is dead, and nobody answers there any more.
    fn find(
        &self,
        addr: u64,
        len: usize,
    ) -> Option<(u64, MutexGuard<'_, dyn BusDevice + 'static>)> {
        let (&base, slot) = self.slots.range(..=addr).next_back()?;
        let offset = addr - base;
        let end = offset.checked_add(u64::try_from(len).ok()?)?;
        if end > slot.len {
            return None;
        }
        Some((offset, slot.device.lock().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers reads with its offset and remembers the last write.
    #[derive(Default)]
    struct Probe {
        written: Vec<(u64, Vec<u8>)>,
    }

    impl BusDevice for Probe {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset).unwrap());
        }
        fn write(&mut self, offset: u64, data: &[u8]) -> Action {
            assert_ne!(data, [0xdd], "asked to panic");
            self.written.push((offset, data.to_vec()));
            Action::Reset
        }
    }

    fn bus() -> (Bus, Arc<Mutex<Probe>>) {
        let probe = Arc::new(Mutex::new(Probe::default()));
        let mut bus = Bus::new();
        bus.insert(0x100, 0x10, probe.clone()).unwrap();
        (bus, probe)
    }

    #[test]
    fn accesses_reach_the_device_with_its_own_offsets() {
        let (bus, probe) = bus();
        let mut data = [0; 2];
        assert!(bus.read(0x10e, &mut data));
        assert_eq!(data, [0x0e; 2]);
        assert_eq!(bus.write(0x104, &[1, 2]), Some(Action::Reset));
        assert_eq!(probe.lock().unwrap().written, [(4, vec![1, 2])]);
    }

    #[test]
    fn nobody_answers_outside_or_across_the_end() {
        let (bus, _) = bus();
        for addr in [0, 0xff, 0x110, 0x10f, u64::MAX] {
            let mut data = [0; 2];
            assert!(!bus.read(addr, &mut data), "{addr:#x}");
            assert_eq!(data, [0xff; 2]);
            assert_eq!(bus.write(addr, &[0; 2]), None);
        }
    }

    #[test]
    fn overlaps_and_impossible_ranges_are_refused() {
        let (mut bus, probe) = bus();
        for (base, len) in [
            (0x100, 1),
            (0x10f, 1),
            (0xff, 2),
            (0xf0, 0x100),
            (0x108, 0x100),
        ] {
            let overlap = BusError::Overlap {
                base,
                len,
                other: 0x100,
            };
            assert_eq!(bus.insert(base, len, probe.clone()), Err(overlap));
        }
        for (base, len) in [(0x200, 0), (u64::MAX, 2)] {
            let range = BusError::Range { base, len };
            assert_eq!(bus.insert(base, len, probe.clone()), Err(range));
        }
        bus.insert(0xf0, 0x10, probe.clone()).unwrap();
        bus.insert(0x110, 0x10, probe.clone()).unwrap();
        bus.insert(u64::MAX, 1, probe).unwrap();
    }

    #[test]
    fn a_device_that_panicked_is_dead_and_nothing_else_is() {
        let (bus, _) = bus();
        let bus = Arc::new(bus);
        let other = bus.clone();
        let died = std::thread::spawn(move || other.write(0x100, &[0xdd])).join();
        assert!(died.is_err());
        assert_eq!(bus.write(0x100, &[0]), None);
        let mut data = [0];
        assert!(!bus.read(0x100, &mut data));
        assert_eq!(data, [0xff]);
    }
}
