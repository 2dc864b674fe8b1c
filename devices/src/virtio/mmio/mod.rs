//! The memory-mapped transport, version 2 (virtio 1.2, 4.2): one device behind a page of registers, one
//! interrupt line and an eventfd a queue.
//!
//! It holds the queues and hands them to the device for one burst at a time. The VMM's I/O thread calls
//! [`VirtioMmio::queue_event`] and [`VirtioMmio::backend_event`]; vCPUs come in by the registers; both under one lock.
//! Where the device has lanes ([`VirtioMmio::lanes`]) their queues are served by threads of their own, without that
//! lock. It is taken before a lane's, never after; under both nothing else is locked but what an interrupt takes
//! ([`MmioParts::interrupts`]), which is a leaf.

mod lanes;
mod page;
mod registers;
mod snapshot;

use std::os::fd::RawFd;
use std::sync::Arc;

use migration::state::{Snapshot, StateError, VmState};
use virtio_bindings::{virtio_config, virtio_mmio, virtio_ring};
use vmm_sys_util::eventfd::EventFd;

use self::lanes::{Queues, Shared};
use super::device::{QueueIo, VirtioDevice};
use super::interrupts::Interrupts;
use super::queue::Ring;
use crate::GuestRam;

pub use lanes::MmioLane;
pub use page::RegisterPage;
pub(super) use registers::Selection;
pub use snapshot::MmioState;

/// Bytes of address space of the registers and the configuration space; a slot may have more.
pub const MMIO_LEN: u64 = 0x200;
/// Offset of the QueueNotify register. The VMM lets an ioeventfd a queue answer to 4-byte writes here, with
/// the queue's index as datamatch; a write that still arrives as an exit does the same.
pub const QUEUE_NOTIFY: u64 = virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// Offset of the InterruptACK register, and what a driver writes there that has seen no more than used buffers. The VMM
/// may keep that write for itself (an ioeventfd that nobody reads), which saves the vCPU a way out of KVM in every
/// interrupt. The bit of the interrupt status then stays set. All it says is that there may be used buffers, and
/// drivers look for them behind the acknowledgement in any case.
pub const INTERRUPT_ACK: (u64, u32) = (
    virtio_mmio::VIRTIO_MMIO_INTERRUPT_ACK as u64,
    USED_INTERRUPT,
);

/// The most queues of a device.
const MAX_QUEUES: usize = 64;

/// Features of the transport and of the queues: VERSION_1, indirect descriptors, event index.
const TRANSPORT_FEATURES: u64 = 1 << virtio_config::VIRTIO_F_VERSION_1
    | 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC
    | 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;

const ACKNOWLEDGE: u32 = virtio_config::VIRTIO_CONFIG_S_ACKNOWLEDGE;
const DRIVER: u32 = virtio_config::VIRTIO_CONFIG_S_DRIVER;
const DRIVER_OK: u32 = virtio_config::VIRTIO_CONFIG_S_DRIVER_OK;
const FEATURES_OK: u32 = virtio_config::VIRTIO_CONFIG_S_FEATURES_OK;
const NEEDS_RESET: u32 = virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
const FAILED: u32 = virtio_config::VIRTIO_CONFIG_S_FAILED;

const USED_INTERRUPT: u32 = virtio_mmio::VIRTIO_MMIO_INT_VRING;
const CONFIG_INTERRUPT: u32 = virtio_mmio::VIRTIO_MMIO_INT_CONFIG;

/// What a transport needs besides its state.
pub struct MmioParts {
    /// Guest memory.
    pub ram: GuestRam,
    /// How the driver hears of what the device has done.
    pub interrupts: Box<dyn Interrupts>,
    /// One eventfd a queue, non-blocking: what the ioeventfds signal and the I/O thread waits for.
    pub queue_events: Vec<EventFd>,
    /// Where the registers can be read from, untouched. The VMM may show it to the guest.
    pub page: Arc<RegisterPage>,
    /// The device, of the same state.
    pub device: Box<dyn VirtioDevice>,
}

/// A virtio device behind the memory-mapped transport. New or restored it is paused.
pub struct VirtioMmio {
    device_features_sel: u32,
    driver_features_sel: u32,
    /// What the driver accepted; final once the status has FEATURES_OK.
    driver_features: u64,
    queue_sel: u32,
    lanes: Vec<MmioLane>,
    /// The queues behind those of the lanes.
    own: Queues,
    paused: bool,
    /// It may read and write guest memory: a PCI function's bus mastering is on. Not part of its state: it follows from
    /// the function's.
    masters: bool,
    /// The next resume is the first after a restore.
    restored: bool,
    shared: Arc<Shared>,
    device: Box<dyn VirtioDevice>,
}

impl std::fmt::Debug for VirtioMmio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VirtioMmio")
            .field("device_type", &self.device.device_type())
            .field("status", &self.status())
            .field("driver_features", &self.driver_features)
            .field("own", &self.own)
            .field("paused", &self.paused)
            .finish_non_exhaustive()
    }
}

impl VirtioMmio {
    /// A transport that no driver has touched.
    ///
    /// # Errors
    /// The parts do not fit each other.
    pub fn new(parts: MmioParts) -> Result<Self, String> {
        Self::restore(MmioState::reset(&*parts.device), parts)
    }

    /// Queue `index` was notified of: does one burst of its work, also if it is a lane's.
    pub fn queue_event(&mut self, index: usize) {
        if !self.works() {
            return;
        }
        let (device, page) = (&mut self.device, &self.shared.page);
        let work = |io: &mut QueueIo<'_>| {
            let done = device.process_queue(io, index);
            page.show_config(&**device);
            done
        };
        match self
            .lanes
            .iter()
            .find(|lane| lane.queues().contains(&index))
        {
            Some(lane) if lane.queue_event(index) => {}
            // One that the driver does not know of: its queues mean something else then.
            Some(lane) => {
                let queues = &mut lane.lock().queues;
                if queues.ring(index).is_some_and(|ring| ring.ready()) {
                    self.shared.work(queues, work);
                }
            }
            None => {
                if self.own.ring(index).is_some_and(|ring| ring.ready()) {
                    self.shared.work(&mut self.own, work);
                }
            }
        }
    }

    /// A backend became readable or writable: does one burst of work, also of every lane.
    pub fn backend_event(&mut self) {
        if self.works() {
            let device = &mut self.device;
            self.shared
                .work(&mut self.own, |io| device.process_backend(io));
            self.lanes.iter().for_each(MmioLane::backend_event);
        }
    }

    /// The descriptor to poll, edge-triggered, for reading and writing, beside those of the lanes.
    pub fn backend_fd(&self) -> Option<RawFd> {
        self.device.backend_fd()
    }

    /// The lanes. Who serves one by a thread of its own comes back to [`VirtioMmio::queue_event`] where the lane's says
    /// `false`.
    pub fn lanes(&self) -> &[MmioLane] {
        &self.lanes
    }

    /// How many queues there are.
    pub fn queue_count(&self) -> usize {
        self.shared.queue_events.len()
    }

    /// Device ID (virtio 1.2, 5).
    pub fn device_type(&self) -> u32 {
        self.device.device_type()
    }

    /// What the device counted in this process, by name: frames, drops.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        self.device.counters()
    }

    /// All feature bits on offer.
    pub fn device_features(&self) -> u64 {
        self.device.features() | TRANSPORT_FEATURES
    }

    /// Whether a driver has set the device up.
    pub fn is_active(&self) -> bool {
        self.status() & DRIVER_OK != 0
    }

    /// Lets the device rest: on return it writes no guest memory and raises no interrupt, whatever happens.
    pub fn pause(&mut self) {
        self.paused = true;
        self.direct_lanes();
    }

    /// Lets the device go on. Every queue's eventfd is signalled, since events were ignored and, after a restore, those
    /// of the other host are lost; so are its interrupts, and both are raised once.
    pub fn resume(&mut self) {
        self.paused = false;
        self.direct_lanes();
        if self.is_active() {
            self.kick();
            if std::mem::take(&mut self.restored) {
                self.shared.used(u64::MAX);
                self.shared.config_changed();
            }
        }
        self.restored = false;
    }

    /// Whether it may read and write guest memory from now on, as it may at first. What came while it might not is looked
    /// at when it may.
    pub(super) fn let_master(&mut self, masters: bool) {
        if std::mem::replace(&mut self.masters, masters) == masters {
            return;
        }
        self.direct_lanes();
        if self.works() {
            self.kick();
        }
    }

    /// Tells the network once where the guest is now. To be repeated a few times after a move, since any
    /// one announcement may be lost.
    pub fn announce_round(&mut self) {
        if self.works() && self.device.announce() {
            self.config_changed();
        }
    }

    /// The configuration space changed by the host's doing, and the driver is told. Not while the device rests: what
    /// it is then is being saved.
    pub fn config_changed(&mut self) {
        self.shared.page.show_config(&*self.device);
        if self.works() {
            self.shared.config_changed();
        }
    }

    /// Adds the transport's section and the device's.
    ///
    /// # Errors
    /// The state cannot be encoded.
    pub fn save_into(&self, instance: u32, state: &mut VmState) -> Result<(), StateError> {
        state.save(instance, self)?;
        self.device.save_section(instance, state)
    }

    /// Whether the device may touch its queues now.
    fn works(&self) -> bool {
        !self.paused && self.masters && self.in_use()
    }

    /// Whether the driver uses the device and neither side has given it up.
    fn in_use(&self) -> bool {
        self.status() & (DRIVER_OK | FAILED | NEEDS_RESET) == DRIVER_OK
    }

    /// The device status (2.1).
    fn status(&self) -> u32 {
        self.shared.page.status()
    }

    /// Tells every lane whether it works now.
    fn direct_lanes(&self) {
        let in_use = self.device.lanes_in_use();
        for (index, lane) in self.lanes.iter().enumerate() {
            lane.let_work(self.works() && index < in_use);
        }
    }

    /// Does something with queue `index`; None where there is none.
    fn with_ring<R>(&mut self, index: usize, act: impl FnOnce(&mut Ring) -> R) -> Option<R> {
        match self
            .lanes
            .iter()
            .find(|lane| lane.queues().contains(&index))
        {
            Some(lane) => lane.lock().queues.ring(index).map(act),
            None => self.own.ring(index).map(act),
        }
    }

    fn event_idx(&self) -> bool {
        self.driver_features & 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX != 0
    }

    /// The device is out of order until the driver resets it. Said once: it does no work until then.
    fn needs_reset(&mut self, why: &str) {
        if self.shared.give_up(why) && self.status() & DRIVER_OK != 0 {
            self.shared.config_changed();
        }
    }

    /// Has every queue looked at.
    fn kick(&self) {
        self.shared.queue_events.iter().for_each(signal);
    }
}

/// Signals an eventfd. That fails only when its counter is full, and then it is signalled.
fn signal(event: &EventFd) {
    let _ = event.write(1);
}

#[cfg(test)]
mod tests;
