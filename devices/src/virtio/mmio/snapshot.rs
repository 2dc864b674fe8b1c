//! What of a transport moves with the guest.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use migration::state::{Kind, Snapshot};
use serde::{Deserialize, Serialize};

use super::lanes::{MmioLane, Queues, Shared};
use super::{
    ACKNOWLEDGE, CONFIG_INTERRUPT, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, MAX_QUEUES, MmioParts,
    NEEDS_RESET, USED_INTERRUPT, VirtioMmio,
};
use crate::virtio::device::VirtioDevice;
use crate::virtio::queue::{Ring, RingState};

/// The registers and the queues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmioState {
    /// Device ID: a check that the device put behind the transport is of the kind that was there.
    pub device_type: u32,
    /// Device status.
    pub status: u32,
    /// Which half of the device's features is read.
    pub device_features_sel: u32,
    /// Which half of the driver's features is written.
    pub driver_features_sel: u32,
    /// The features that the driver accepted.
    pub driver_features: u64,
    /// The queue that the queue registers mean.
    pub queue_sel: u32,
    /// Interrupts that the driver has not acknowledged.
    pub interrupt_status: u32,
    /// Count of changes of the configuration space.
    pub config_generation: u32,
    /// The queues.
    pub queues: Vec<RingState>,
}

impl MmioState {
    /// The state of a transport that no driver has touched.
    pub fn reset(device: &dyn VirtioDevice) -> Self {
        Self {
            device_type: device.device_type(),
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            interrupt_status: 0,
            config_generation: 0,
            queues: device
                .queue_sizes()
                .iter()
                .map(|&size| RingState::reset(size))
                .collect(),
        }
    }
}

impl Snapshot for VirtioMmio {
    const KIND: Kind = Kind::VIRTIO_MMIO;
    const VERSION: u32 = 1;
    type State = MmioState;
    type Parts = MmioParts;

    fn save(&self) -> MmioState {
        let Self {
            device_features_sel,
            driver_features_sel,
            driver_features,
            queue_sel,
            lanes,
            own,
            paused: _,
            masters: _,
            restored: _,
            shared,
            // Has its own section.
            device: _,
        } = self;
        let Shared {
            device_type,
            ram: _,
            interrupts: _,
            queue_events: _,
            page,
            told: _,
        } = &**shared;
        let mut queues = Vec::new();
        for lane in lanes {
            queues.extend(lane.lock().queues.rings.iter().map(Ring::save));
        }
        queues.extend(own.rings.iter().map(Ring::save));
        MmioState {
            device_type: *device_type,
            status: page.status(),
            device_features_sel: *device_features_sel,
            driver_features_sel: *driver_features_sel,
            driver_features: *driver_features,
            queue_sel: *queue_sel,
            interrupt_status: page.interrupts(),
            config_generation: page.generation(),
            queues,
        }
    }

    fn restore(state: MmioState, parts: MmioParts) -> Result<Self, String> {
        let MmioParts {
            ram,
            interrupts,
            queue_events,
            page,
            device,
        } = parts;
        let sizes = device.queue_sizes();
        if state.device_type != device.device_type() {
            return Err(format!(
                "device type {}, but a device of type {} is there",
                state.device_type,
                device.device_type()
            ));
        }
        if sizes.len() > MAX_QUEUES
            || state.queues.len() != sizes.len()
            || queue_events.len() != sizes.len()
        {
            return Err(format!(
                "{} queues and {} eventfds for a device of {} queues",
                state.queues.len(),
                queue_events.len(),
                sizes.len()
            ));
        }
        check_bits(&state)?;
        let event_idx =
            state.driver_features & 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX != 0;
        let rings =
            state
                .queues
                .into_iter()
                .zip(sizes)
                .enumerate()
                .map(|(index, (queue, &max_size))| {
                    Ring::restore(queue, max_size, event_idx, &ram)
                        .map_err(|why| format!("queue {index}: {why}"))
                });
        let mut rings = rings.collect::<Result<Vec<_>, _>>()?.into_iter();
        page.begin(state.device_type);
        page.add_status(state.status);
        page.add_interrupts(state.interrupt_status);
        page.begin_config(&*device, state.config_generation);
        let shared = Arc::new(Shared {
            device_type: state.device_type,
            ram,
            interrupts,
            queue_events,
            page,
            told: AtomicBool::new(false),
        });
        let mut first = 0;
        let mut lanes = Vec::new();
        for lane in device.lanes() {
            let rings: Vec<_> = rings.by_ref().take(lane.queues()).collect();
            let queues = Queues { first, rings };
            first += lane.queues();
            lanes.push(MmioLane::new(shared.clone(), lane, queues));
        }
        let mut transport = Self {
            device_features_sel: state.device_features_sel,
            driver_features_sel: state.driver_features_sel,
            driver_features: state.driver_features,
            queue_sel: state.queue_sel,
            lanes,
            own: Queues {
                first,
                rings: rings.collect(),
            },
            paused: true,
            masters: true,
            restored: true,
            shared,
            device,
        };
        transport.take_up()?;
        transport.show_selected();
        Ok(transport)
    }
}

/// Whether the status is one that the state machine can reach, and the interrupts exist.
fn check_bits(state: &MmioState) -> Result<(), String> {
    let status = state.status;
    let all = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | NEEDS_RESET | FAILED;
    let needs = |bit: u32, before: u32| status & bit == 0 || status & before == before;
    if status & !all != 0
        || !needs(FEATURES_OK, ACKNOWLEDGE | DRIVER)
        || !needs(DRIVER_OK, FEATURES_OK)
    {
        return Err(format!("device status {status:#x}"));
    }
    if state.interrupt_status & !(USED_INTERRUPT | CONFIG_INTERRUPT) != 0 {
        return Err(format!("interrupt status {:#x}", state.interrupt_status));
    }
    if status & FEATURES_OK == 0 && state.queues.iter().any(|queue| queue.ready) {
        return Err(format!("a queue is ready at device status {status:#x}"));
    }
    Ok(())
}

impl VirtioMmio {
    /// Goes on where the driver was: the features fit this device, and its backend takes them.
    fn take_up(&mut self) -> Result<(), String> {
        if self.status() & FEATURES_OK != 0 && !self.features_fit() {
            return Err(format!(
                "the guest uses features {:#x}, this host's device offers {:#x}",
                self.driver_features,
                self.device_features()
            ));
        }
        if self.in_use() {
            self.device
                .activate(self.driver_features & self.device.features())?;
        }
        Ok(())
    }
}
