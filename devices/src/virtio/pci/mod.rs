//! The PCI transport (virtio 1.2, 4.1): a device as a PCI function whose queues interrupt by messages of their own.
//!
//! It is a front. Queues, features, status and the configuration space are those of the register file in
//! [`super::mmio`], and what a driver reads and writes here is said there in other words; so there is one state machine
//! and one section of it, and threads and lanes do not know which of the two a driver speaks through. What PCI has
//! beside that is here: configuration space ([`config`]), and which message each queue sends ([`vectors`]).
//!
//! ```text
//!   BAR 0, 8 KiB:  0x000 common configuration   0x1000 MSI-X table
//!                  0x040 interrupt status       0x1800 MSI-X pending bits
//!                  0x100 the device's configuration
//!                  0x200 doorbells, 4 bytes a queue
//! ```
//!
//! The table has a page without other registers (PCI Local Bus 3.0, 6.8.2), so that who passes the function on to a
//! guest of its own can keep it.

mod config;
mod vectors;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use migration::state::{Kind, Snapshot};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_mmio as reg;

use self::config::{ConfigSpace, Live};
use super::mmio::{Selection, VirtioMmio};
use crate::bus::{Action, BusDevice};
use crate::pci::{Function, msix};

pub use self::vectors::{NO_VECTOR, VectorState, Vectors};

/// Bytes of BAR 0. The function answers where the VMM has put it, and nowhere else, whatever BAR and command say.
pub const BAR_LEN: u64 = 0x2000;
const COMMON: u64 = 0;
const COMMON_LEN: usize = 0x38;
const INTERRUPT_STATUS: u64 = 0x40;
const DEVICE_CONFIG: u64 = 0x100;
const DEVICE_CONFIG_LEN: u64 = 0x100;
const DOORBELLS: u64 = 0x200;
const DOORBELLS_LEN: u64 = 64 * DOORBELL_STRIDE;
const DOORBELL_STRIDE: u64 = 4;
const TABLE: u64 = 0x1000;
const PENDING: u64 = 0x1800;

/// Offset of the doorbell of a queue. The VMM lets an ioeventfd a queue answer to any write there, of which KVM then need
/// not know the value; a write that still arrives as an exit does the same.
pub fn doorbell(queue: u32) -> u64 {
    DOORBELLS + DOORBELL_STRIDE * u64::from(queue)
}

/// What a function needs besides its state.
pub struct PciParts {
    /// What it is a front of, of the same state.
    pub core: Arc<Mutex<VirtioMmio>>,
    /// What `core` interrupts by.
    pub vectors: Arc<Vectors>,
    /// The address of BAR 0: a multiple of [`BAR_LEN`].
    pub base: u32,
}

/// What of a function moves with the guest, beside what it is a front of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciState {
    /// Its configuration space, as far as it can be written.
    pub config: config::Writable,
    /// Its messages, and who sends which.
    pub vectors: VectorState,
}

/// A virtio device as a PCI function.
pub struct VirtioPci {
    core: Arc<Mutex<VirtioMmio>>,
    vectors: Arc<Vectors>,
    config: ConfigSpace,
}

impl std::fmt::Debug for VirtioPci {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VirtioPci")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// The fields of the common configuration (4.1.4.3), by their offsets.
mod common {
    pub const DEVICE_FEATURE_SELECT: usize = 0x00;
    pub const DEVICE_FEATURE: usize = 0x04;
    pub const DRIVER_FEATURE_SELECT: usize = 0x08;
    pub const DRIVER_FEATURE: usize = 0x0c;
    pub const CONFIG_VECTOR: usize = 0x10;
    pub const NUM_QUEUES: usize = 0x12;
    pub const DEVICE_STATUS: usize = 0x14;
    pub const CONFIG_GENERATION: usize = 0x15;
    pub const QUEUE_SELECT: usize = 0x16;
    pub const QUEUE_SIZE: usize = 0x18;
    pub const QUEUE_VECTOR: usize = 0x1a;
    pub const QUEUE_ENABLE: usize = 0x1c;
    /// The number of the queue's doorbell: that of the queue.
    pub const QUEUE_NOTIFY_OFF: usize = 0x1e;
    pub const QUEUE_DESC: usize = 0x20;
    pub const QUEUE_DRIVER: usize = 0x28;
    pub const QUEUE_DEVICE: usize = 0x30;
}

impl VirtioPci {
    /// A function that no driver has touched.
    ///
    /// # Errors
    /// The parts do not fit each other.
    pub fn new(parts: PciParts) -> Result<Self, String> {
        let state = PciState {
            config: config::Writable::reset(parts.base),
            vectors: VectorState::reset(parts.vectors.queues()),
        };
        Self::restore(state, parts)
    }

    /// A panic in another thread that held it has been reported there; its state is still the best there is.
    fn core(&self) -> MutexGuard<'_, VirtioMmio> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_register(&self, register: u32) -> u32 {
        let mut value = [0; 4];
        self.core().read(register.into(), &mut value);
        u32::from_le_bytes(value)
    }

    fn write_register(&self, register: u32, value: u32) -> Action {
        self.core().write(register.into(), &value.to_le_bytes())
    }

    /// Reads a field of the common configuration. Those of the queue that is selected wait for its burst; drivers read
    /// them when they set it up.
    fn read_common(&self, offset: usize, data: &mut [u8]) {
        let mut bytes = [0; COMMON_LEN];
        let mut put = |offset: usize, field: &[u8]| {
            bytes[offset..offset + field.len()].copy_from_slice(field);
        };
        let device_features = self.read_register(reg::VIRTIO_MMIO_DEVICE_FEATURES);
        let [status, ..] = self.read_register(reg::VIRTIO_MMIO_STATUS).to_le_bytes();
        let generation = self.read_register(reg::VIRTIO_MMIO_CONFIG_GENERATION);
        let [generation, ..] = generation.to_le_bytes();
        let Selection {
            device_features_sel,
            driver_features_sel,
            driver_features,
            queue_sel,
        } = self.core().selection();
        let count = u16::try_from(self.vectors.queues()).unwrap_or(u16::MAX);
        let selected = u16::try_from(queue_sel).unwrap_or(u16::MAX);
        let of_config = self.vectors.of_config();
        put(
            common::DEVICE_FEATURE_SELECT,
            &device_features_sel.to_le_bytes(),
        );
        put(common::DEVICE_FEATURE, &device_features.to_le_bytes());
        put(
            common::DRIVER_FEATURE_SELECT,
            &driver_features_sel.to_le_bytes(),
        );
        put(common::DRIVER_FEATURE, &driver_features.to_le_bytes());
        put(common::CONFIG_VECTOR, &of_config.to_le_bytes());
        put(common::NUM_QUEUES, &count.to_le_bytes());
        put(common::DEVICE_STATUS, &[status]);
        put(common::CONFIG_GENERATION, &[generation]);
        put(common::QUEUE_SELECT, &selected.to_le_bytes());
        if offset + data.len() > common::QUEUE_SIZE {
            let vector = self.vectors.of_queue(selected);
            put(common::QUEUE_VECTOR, &vector.to_le_bytes());
            // Of a queue that there is none of the size is 0 (4.1.5.1.3), and everything else.
            if let Some(queue) = self.core().selected_queue() {
                put(common::QUEUE_SIZE, &queue.size.to_le_bytes());
                put(common::QUEUE_ENABLE, &u16::from(queue.ready).to_le_bytes());
                put(common::QUEUE_NOTIFY_OFF, &selected.to_le_bytes());
                put(common::QUEUE_DESC, &queue.desc_table.to_le_bytes());
                put(common::QUEUE_DRIVER, &queue.avail_ring.to_le_bytes());
                put(common::QUEUE_DEVICE, &queue.used_ring.to_le_bytes());
            }
        }
        for (byte, field) in data.iter_mut().zip(bytes.iter().skip(offset)) {
            *byte = *field;
        }
    }

    /// A write to a field of the common configuration: of its whole width (4.1.3.1), but that the halves of 64 bits may
    /// come one after the other.
    fn write_common(&self, offset: usize, data: &[u8]) {
        match *data {
            [a, b, c, d, e, f, g, h] => {
                self.write_common(offset, &[a, b, c, d]);
                self.write_common(offset + 4, &[e, f, g, h]);
            }
            [a, b, c, d] => self.write_wide(offset, u32::from_le_bytes([a, b, c, d])),
            [a, b] => self.write_narrow(offset, u16::from_le_bytes([a, b])),
            [status] if offset == common::DEVICE_STATUS => {
                let _ = self.write_register(reg::VIRTIO_MMIO_STATUS, status.into());
                if status == 0 {
                    self.vectors.forget();
                }
            }
            _ => {}
        }
    }

    fn write_wide(&self, offset: usize, value: u32) {
        let register = match offset {
            common::DEVICE_FEATURE_SELECT => reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL,
            common::DRIVER_FEATURE_SELECT => reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL,
            common::DRIVER_FEATURE => reg::VIRTIO_MMIO_DRIVER_FEATURES,
            common::QUEUE_DESC => reg::VIRTIO_MMIO_QUEUE_DESC_LOW,
            0x24 => reg::VIRTIO_MMIO_QUEUE_DESC_HIGH,
            common::QUEUE_DRIVER => reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW,
            0x2c => reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
            common::QUEUE_DEVICE => reg::VIRTIO_MMIO_QUEUE_USED_LOW,
            0x34 => reg::VIRTIO_MMIO_QUEUE_USED_HIGH,
            _ => return,
        };
        let _ = self.write_register(register, value);
    }

    fn write_narrow(&self, offset: usize, value: u16) {
        let register = match offset {
            common::CONFIG_VECTOR => return self.vectors.set_config(value),
            common::QUEUE_VECTOR => {
                let selected = self.core().selection().queue_sel;
                return self.vectors.set_queue(selected, value);
            }
            common::QUEUE_SELECT => reg::VIRTIO_MMIO_QUEUE_SEL,
            common::QUEUE_SIZE => reg::VIRTIO_MMIO_QUEUE_NUM,
            // A driver may not disable a queue so (4.1.4.3.2).
            common::QUEUE_ENABLE if value == 1 => reg::VIRTIO_MMIO_QUEUE_READY,
            _ => return,
        };
        let _ = self.write_register(register, value.into());
    }

    /// What is in configuration space by what the function does.
    fn live(&self) -> Live {
        let control = self.vectors.with_msix(|msix, _| msix.control());
        Live {
            control,
            interrupt: control & msix::ENABLE == 0
                && self.read_register(reg::VIRTIO_MMIO_INTERRUPT_STATUS) != 0,
        }
    }

    /// Has the device and its messages do what the command register lets them.
    fn direct(&self) {
        let masters = self.config.masters();
        self.vectors
            .with_msix(|msix, sink| msix.let_master(masters, sink));
        self.core().let_master(masters);
    }

    /// The interrupt status, which reading takes away (4.1.4.5.1). Who has MSI-X has no need of it.
    fn take_interrupt_status(&self) -> u8 {
        let causes = self.read_register(reg::VIRTIO_MMIO_INTERRUPT_STATUS);
        let _ = self.write_register(reg::VIRTIO_MMIO_INTERRUPT_ACK, causes);
        let [causes, ..] = causes.to_le_bytes();
        causes
    }
}

/// How far `offset` is behind the first byte of something that is `len` long, if it is in it.
fn within(offset: u64, start: u64, len: u64) -> Option<usize> {
    let offset = offset.checked_sub(start).filter(|offset| *offset < len)?;
    usize::try_from(offset).ok()
}

/// BAR 0.
impl BusDevice for VirtioPci {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(at) = within(offset, COMMON, COMMON_LEN as u64) {
            self.read_common(at, data);
        } else if offset == INTERRUPT_STATUS {
            if let Some(first) = data.first_mut() {
                *first = self.take_interrupt_status();
            }
        } else if within(offset, DEVICE_CONFIG, DEVICE_CONFIG_LEN).is_some() {
            let at = offset - DEVICE_CONFIG + u64::from(reg::VIRTIO_MMIO_CONFIG);
            self.core().read(at, data);
        } else if let Some(at) = within(offset, TABLE, PENDING - TABLE) {
            self.vectors.with_msix(|msix, _| msix.read_table(at, data));
        } else if let Some(at) = within(offset, PENDING, BAR_LEN - PENDING) {
            self.vectors
                .with_msix(|msix, _| msix.read_pending(at, data));
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        if let Some(at) = within(offset, COMMON, COMMON_LEN as u64) {
            self.write_common(at, data);
        } else if let Some(at) = within(offset, DOORBELLS, DOORBELLS_LEN) {
            let queue = u32::try_from(at).unwrap_or(u32::MAX) / 4;
            return self.write_register(reg::VIRTIO_MMIO_QUEUE_NOTIFY, queue);
        } else if within(offset, DEVICE_CONFIG, DEVICE_CONFIG_LEN).is_some() {
            let at = offset - DEVICE_CONFIG + u64::from(reg::VIRTIO_MMIO_CONFIG);
            return self.core().write(at, data);
        } else if let Some(at) = within(offset, TABLE, PENDING - TABLE) {
            self.vectors
                .with_msix(|msix, sink| msix.write_table(at, data, sink));
        }
        Action::None
    }
}

impl Function for VirtioPci {
    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        if let Some((at, len)) = self.config.window(offset, data.len()) {
            data.fill(0);
            return self.read(at, &mut data[..len]);
        }
        self.config.read(offset, data, self.live());
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        if let Some((at, len)) = self.config.window(offset, data.len()) {
            let _ = self.write(at, &data[..len]);
            return;
        }
        let live = self.live();
        let control = self.config.write(offset, data, live);
        self.vectors
            .with_msix(|msix, sink| msix.set_control(control, sink));
        self.direct();
    }
}

impl Snapshot for VirtioPci {
    const KIND: Kind = Kind::VIRTIO_PCI;
    const VERSION: u32 = 1;
    type State = PciState;
    type Parts = PciParts;

    fn save(&self) -> PciState {
        let Self {
            // Has its own section.
            core: _,
            vectors,
            config,
        } = self;
        PciState {
            config: config.save(),
            vectors: vectors.save(),
        }
    }

    fn restore(state: PciState, parts: PciParts) -> Result<Self, String> {
        let PciParts {
            core,
            vectors,
            base,
        } = parts;
        let (device_type, queues) = {
            let core = core.lock().unwrap_or_else(PoisonError::into_inner);
            (core.device_type(), core.queue_count())
        };
        if vectors.queues() != queues {
            return Err(format!(
                "vectors for {} queues of a device of {queues}",
                vectors.queues()
            ));
        }
        vectors.load(state.vectors)?;
        let function = Self {
            core,
            vectors,
            config: ConfigSpace::new(device_type, base, state.config)?,
        };
        function.direct();
        Ok(function)
    }
}

#[cfg(test)]
mod tests;
