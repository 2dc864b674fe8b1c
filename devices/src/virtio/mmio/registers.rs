//! The register file (virtio 1.2, 4.2.2) and the status state machine (2.1, 3.1.1).

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_mmio as reg;

use super::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, NEEDS_RESET, VirtioMmio, signal};
use crate::bus::{Action, BusDevice};
use crate::virtio::queue::{Ring, RingState};

const CONFIG_SPACE: u64 = reg::VIRTIO_MMIO_CONFIG as u64;
/// All bits that a driver may set in the status.
const DRIVER_STATUS: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED;

impl BusDevice for VirtioMmio {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.shared.page.read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        if let Some(offset) = offset.checked_sub(CONFIG_SPACE) {
            self.device.write_config(offset, data);
            self.shared.page.show_config(&*self.device);
        } else if let (Ok(value), Ok(offset)) = (data.try_into(), u32::try_from(offset)) {
            // Registers are accessed by aligned 32-bit writes and no others (4.2.2.2).
            self.write_register(offset, u32::from_le_bytes(value));
        }
        Action::None
    }
}

/// The half of a 64-bit value that a selector names; 0 beyond it.
fn half(value: u64, select: u32) -> u32 {
    let bytes = value.to_le_bytes();
    let [a, b, c, d, e, f, g, h] = bytes;
    match select {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

/// Replaces the half of a 64-bit value that a selector names.
fn set_half(value: &mut u64, select: u32, half: u32) {
    match select {
        0 => *value = *value & !0xffff_ffff | u64::from(half),
        1 => *value = *value & 0xffff_ffff | u64::from(half) << 32,
        _ => {}
    }
}

/// What a driver has selected.
pub(in crate::virtio) struct Selection {
    pub device_features_sel: u32,
    pub driver_features_sel: u32,
    /// The half of the driver's features that is written.
    pub driver_features: u32,
    pub queue_sel: u32,
}

impl VirtioMmio {
    /// What the driver has selected; it waits for no queue.
    pub(in crate::virtio) fn selection(&self) -> Selection {
        Selection {
            device_features_sel: self.device_features_sel,
            driver_features_sel: self.driver_features_sel,
            driver_features: half(self.driver_features, self.driver_features_sel),
            queue_sel: self.queue_sel,
        }
    }

    /// The selected queue as it is now; None where there is none.
    pub(in crate::virtio) fn selected_queue(&mut self) -> Option<RingState> {
        self.with_selected(|ring| ring.save())
    }

    /// Does something with the queue that the driver has selected; None where there is none.
    fn with_selected<R>(&mut self, act: impl FnOnce(&mut Ring) -> R) -> Option<R> {
        self.with_ring(usize::try_from(self.queue_sel).ok()?, act)
    }

    /// Shows what the driver's selections mean now.
    pub(super) fn show_selected(&mut self) {
        let features = half(self.device_features(), self.device_features_sel);
        let queue = self.with_selected(|ring| (ring.max_size(), ring.ready()));
        let (size, ready) = queue.unwrap_or((0, false));
        let page = &self.shared.page;
        page.put(reg::VIRTIO_MMIO_DEVICE_FEATURES, features);
        page.put(reg::VIRTIO_MMIO_QUEUE_NUM_MAX, size.into());
        page.put(reg::VIRTIO_MMIO_QUEUE_READY, ready.into());
    }

    fn write_register(&mut self, offset: u32, value: u32) {
        match offset {
            reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_sel = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES => self.accept(value),
            reg::VIRTIO_MMIO_QUEUE_SEL => self.queue_sel = value,
            reg::VIRTIO_MMIO_QUEUE_READY => self.set_queue_ready(value),
            // Often; and nothing that is shown changes by them but what the second says.
            reg::VIRTIO_MMIO_QUEUE_NOTIFY => return self.notified(value),
            reg::VIRTIO_MMIO_INTERRUPT_ACK => return self.shared.page.acknowledge(value),
            reg::VIRTIO_MMIO_STATUS => self.set_status(value),
            reg::VIRTIO_MMIO_QUEUE_NUM..=reg::VIRTIO_MMIO_QUEUE_USED_HIGH => {
                self.set_queue(offset, value)
            }
            _ => {}
        }
        self.show_selected();
    }

    /// The driver accepts 32 features. Once FEATURES_OK is set it may not change its mind (3.1.1).
    fn accept(&mut self, features: u32) {
        if self.status() & (DRIVER | FEATURES_OK) == DRIVER {
            set_half(
                &mut self.driver_features,
                self.driver_features_sel,
                features,
            );
        }
    }

    fn set_queue(&mut self, offset: u32, value: u32) {
        // The driver sets its queues up between FEATURES_OK and DRIVER_OK (3.1.1, 7).
        if self.status() & (FEATURES_OK | DRIVER_OK) != FEATURES_OK {
            return;
        }
        self.with_selected(|ring| {
            let Some(RingState {
                size,
                desc_table,
                avail_ring,
                used_ring,
                ..
            }) = ring.settings_mut()
            else {
                return;
            };
            match offset {
                // What does not fit becomes 0, which is no size of a queue: refused when it is made ready.
                reg::VIRTIO_MMIO_QUEUE_NUM => *size = u16::try_from(value).unwrap_or(0),
                reg::VIRTIO_MMIO_QUEUE_DESC_LOW => set_half(desc_table, 0, value),
                reg::VIRTIO_MMIO_QUEUE_DESC_HIGH => set_half(desc_table, 1, value),
                reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_half(avail_ring, 0, value),
                reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_half(avail_ring, 1, value),
                reg::VIRTIO_MMIO_QUEUE_USED_LOW => set_half(used_ring, 0, value),
                reg::VIRTIO_MMIO_QUEUE_USED_HIGH => set_half(used_ring, 1, value),
                _ => {}
            }
        });
    }

    fn set_queue_ready(&mut self, value: u32) {
        let event_idx = self.event_idx();
        let setting_up = self.status() & (FEATURES_OK | DRIVER_OK) == FEATURES_OK;
        let shared = self.shared.clone();
        let done = self.with_selected(|ring| match value {
            0 => {
                ring.reset();
                Ok(())
            }
            1 if setting_up => ring.enable(event_idx, &shared.ram),
            _ => Ok(()),
        });
        if let Some(Err(why)) = done {
            self.needs_reset(&format!("queue {}: {why}", self.queue_sel));
        }
    }

    /// A notification that came as an exit goes the way of the others: to the thread that does the work.
    fn notified(&self, index: u32) {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        if let Some(event) = self.shared.queue_events.get(index) {
            signal(event);
        }
    }

    /// The driver writes the status: it sets bits, in order, or resets by 0 (2.1.1).
    fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let old = self.status() & DRIVER_STATUS;
        // No bit may be cleared but by a reset; no unknown one set.
        if value & old != old || value & !(DRIVER_STATUS | NEEDS_RESET) != 0 {
            return;
        }
        let new = value & DRIVER_STATUS & !old;
        let add = |bits| self.shared.page.add_status(bits) | bits;
        let status = add(new & (ACKNOWLEDGE | DRIVER | FAILED));
        let known = ACKNOWLEDGE | DRIVER;
        if new & FEATURES_OK != 0 && status & (known | FAILED) == known && self.features_fit() {
            add(FEATURES_OK);
        }
        if new & DRIVER_OK != 0
            && self.status() & (FEATURES_OK | FAILED | NEEDS_RESET) == FEATURES_OK
        {
            add(DRIVER_OK);
            self.activate();
        }
        self.direct_lanes();
    }

    /// Whether the driver accepted no more than is on offer, and the modern interface (2.2, 6.1).
    pub(super) fn features_fit(&self) -> bool {
        let features = self.driver_features;
        features & !self.device_features() == 0
            && features & 1 << VIRTIO_F_VERSION_1 != 0
            && self.device.accepts(features & self.device.features())
    }

    fn activate(&mut self) {
        match self
            .device
            .activate(self.driver_features & self.device.features())
        {
            // What came before, a frame or a notification, found nobody: look at everything once.
            Ok(()) => {
                self.direct_lanes();
                self.kick();
            }
            Err(why) => self.needs_reset(&why),
        }
    }

    fn reset(&mut self) {
        let page = self.shared.page.clone();
        page.put(reg::VIRTIO_MMIO_STATUS, 0);
        self.direct_lanes();
        // No lane works any more, and what one may have set meanwhile goes, too.
        page.put(reg::VIRTIO_MMIO_STATUS, 0);
        page.put(reg::VIRTIO_MMIO_INTERRUPT_STATUS, 0);
        self.driver_features = 0;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.queue_sel = 0;
        for lane in &self.lanes {
            lane.lock().queues.rings.iter_mut().for_each(Ring::reset);
        }
        self.own.rings.iter_mut().for_each(Ring::reset);
        self.device.reset();
        page.show_config(&*self.device);
    }
}
