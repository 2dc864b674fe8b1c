//! PCI, as little of it as virtio devices need: one bus, one function a device, interrupts by messages alone.
//!
//! | file | what | source |
//! |---|---|---|
//! | this one | the bus behind the two registers of configuration mechanism #1, and the host bridge on it | PCI Local Bus 3.0, 3.2.2.3.2 |
//! | [`msix`] | a function's table of messages | PCI Local Bus 3.0, 6.8.2 |
//!
//! There is neither firmware nor a second bus: whoever makes the functions gives them their addresses, and they stay
//! there. There are no interrupt pins, so a guest that will not use MSI-X has no use for these devices.

pub mod msix;

use std::sync::{Arc, Mutex, PoisonError};

use migration::state::{Kind, Snapshot};
use serde::{Deserialize, Serialize};

use crate::bus::{Action, BusDevice};

/// Bytes of port space of [`PciBus`]: CONFIG_ADDRESS and CONFIG_DATA.
pub const CONFIG_PORTS_LEN: u64 = 8;
/// Bytes of the configuration space of a function that is not of PCI Express.
pub const CONFIG_LEN: usize = 0x100;
/// The most devices on the bus beside the host bridge, which is device 0.
pub const MAX_DEVICES: usize = 31;

/// CONFIG_ADDRESS: accesses to CONFIG_DATA are to configuration space.
const ENABLE: u32 = 1 << 31;
/// The bits of CONFIG_ADDRESS that there are: ENABLE, bus, device, function, register.
const ADDRESS_BITS: u32 = 0x80ff_fffc;
/// Vendor and device of the host bridge: Red Hat's for a bridge that has nothing to be driven. Drivers look at its
/// class alone.
const BRIDGE_ID: u32 = 0x0008_1b36;
/// A host bridge (class 6, subclass 0), and its revision 0.
const BRIDGE_CLASS: u32 = 0x0600_0000;

/// The one function of a device on the bus.
pub trait Function: Send {
    /// Reads `data.len()` bytes (1 to 4) of its configuration space, none of them beyond its end.
    fn read_config(&mut self, offset: usize, data: &mut [u8]);
    /// Writes to its configuration space.
    fn write_config(&mut self, offset: usize, data: &[u8]);
}

/// The bus, as the guest finds it at two I/O ports.
pub struct PciBus {
    /// CONFIG_ADDRESS.
    address: u32,
    /// From device 1 on.
    functions: Vec<Arc<Mutex<dyn Function>>>,
}

/// What of the bus moves with the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciBusState {
    /// CONFIG_ADDRESS: the guest may be between a write to it and its access to CONFIG_DATA.
    pub address: u32,
}

impl std::fmt::Debug for PciBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PciBus")
            .field("address", &self.address)
            .field("functions", &self.functions.len())
            .finish()
    }
}

impl PciBus {
    /// A bus with these functions, from device 1 on.
    ///
    /// # Errors
    /// There are more than [`MAX_DEVICES`].
    pub fn new(functions: Vec<Arc<Mutex<dyn Function>>>) -> Result<Self, String> {
        Self::restore(PciBusState { address: 0 }, functions)
    }

    /// What CONFIG_DATA stands for now: the device, and the first byte of the register.
    fn target(&self) -> Option<(usize, usize)> {
        let [register, function, bus, _] = self.address.to_le_bytes();
        // The device's number is in the upper five bits of the second byte, the function's in the lower three.
        let (device, function) = (function >> 3, function & 7);
        let is_ours = self.address & ENABLE != 0 && bus == 0 && function == 0;
        is_ours.then_some((device.into(), register.into()))
    }

    fn read_data(&self, offset: usize, data: &mut [u8]) {
        match self.target() {
            Some((0, register)) => {
                let bridge = [BRIDGE_ID, 0, BRIDGE_CLASS].map(u32::to_le_bytes);
                for (at, byte) in (register + offset..).zip(data) {
                    *byte = bridge.as_flattened().get(at).copied().unwrap_or(0);
                }
            }
            Some((device, register)) if device <= self.functions.len() => {
                let mut function = lock(&self.functions[device - 1]);
                function.read_config(register + offset, data);
            }
            // Nobody answers.
            _ => data.fill(0xff),
        }
    }
}

/// A function whose thread panicked is as it was left: its registers are the best there is.
fn lock<T: ?Sized>(function: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    function.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The offset in CONFIG_DATA of an access that does not reach beyond it.
fn in_data(offset: u64, len: usize) -> Option<usize> {
    let offset = usize::try_from(offset).ok()?.checked_sub(4)?;
    (offset + len <= 4).then_some(offset)
}

impl BusDevice for PciBus {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (0, [a, b, c, d]) = (offset, &mut *data) {
            [*a, *b, *c, *d] = self.address.to_le_bytes();
        } else if let Some(offset) = in_data(offset, data.len()) {
            self.read_data(offset, data);
        } else {
            data.fill(0xff);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        if let (0, Ok(address)) = (offset, data.try_into()) {
            self.address = u32::from_le_bytes(address) & ADDRESS_BITS;
        } else if let (Some(offset), Some((device, register))) =
            (in_data(offset, data.len()), self.target())
            && let Some(function) = device.checked_sub(1).and_then(|at| self.functions.get(at))
        {
            lock(function).write_config(register + offset, data);
        }
        Action::None
    }
}

impl Snapshot for PciBus {
    const KIND: Kind = Kind::PCI_BUS;
    const VERSION: u32 = 1;
    type State = PciBusState;
    type Parts = Vec<Arc<Mutex<dyn Function>>>;

    fn save(&self) -> PciBusState {
        let Self {
            address,
            // Have their own sections.
            functions: _,
        } = self;
        PciBusState { address: *address }
    }

    fn restore(state: PciBusState, functions: Self::Parts) -> Result<Self, String> {
        if functions.len() > MAX_DEVICES {
            return Err(format!(
                "{} devices; a bus has {MAX_DEVICES}",
                functions.len()
            ));
        }
        let PciBusState { address } = state;
        if address & !ADDRESS_BITS != 0 {
            return Err(format!("CONFIG_ADDRESS {address:#x}"));
        }
        Ok(Self { address, functions })
    }
}

#[cfg(test)]
mod tests;
