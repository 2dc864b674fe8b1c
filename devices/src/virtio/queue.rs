//! One split virtqueue, as the device sees it (virtio 1.2, 2.7): the driver's settings, the available side (by
//! virtio-queue), and the used side.
//!
//! The used side is our own because of merged receive buffers: all buffers of a packet must appear at once, while
//! virtio-queue publishes one at a time; and because it minds VIRTQ_AVAIL_F_NO_INTERRUPT.

use std::sync::atomic::{Ordering, fence};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryError};

use super::chain::{Chain, ChainError};
use crate::GuestRam;

/// Bytes of the flags and index before the entries of either ring.
const RING_HEADER: u64 = 4;
/// Bytes of an entry of the available ring.
const AVAIL_ENTRY: u64 = 2;
/// Bytes of an entry of the used ring.
const USED_ENTRY: u64 = 8;

/// The driver broke a ring. The device needs a reset.
#[derive(Debug, Error)]
pub enum QueueError {
    /// The available index ran ahead of the used ring by more than the queue's size, or the ring cannot be read.
    #[error("the available ring is corrupt: {0}")]
    Avail(virtio_queue::Error),
    /// A chain is not one.
    #[error("descriptor chain at head {head} is corrupt: {error}")]
    Chain {
        /// The index of its first descriptor.
        head: u16,
        /// What is wrong with it.
        error: ChainError,
    },
    /// A part of the queue or of a buffer is not in guest memory.
    #[error("guest memory of the queue cannot be accessed: {0}")]
    Memory(#[from] GuestMemoryError),
    /// A queue was told to work that the driver has not made ready.
    #[error("the queue is not ready")]
    NotReady,
    /// A request that the device's specification does not allow.
    #[error("the request at head {head} is malformed: {reason}")]
    Request {
        /// The index of its first descriptor.
        head: u16,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// What of a queue moves with the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingState {
    /// The most entries that the device offered.
    pub max_size: u16,
    /// The entries that the driver chose; a power of two.
    pub size: u16,
    /// Whether the driver made it ready.
    pub ready: bool,
    /// GPA of the descriptor table.
    pub desc_table: u64,
    /// GPA of the available ring.
    pub avail_ring: u64,
    /// GPA of the used ring.
    pub used_ring: u64,
    /// Index of the next chain to take.
    pub next_avail: u16,
    /// Index of the next used entry.
    pub next_used: u16,
    /// `next_used` when the driver was last considered for an interrupt: where event suppression goes on from.
    pub signalled_used: u16,
}

impl RingState {
    /// A queue that no driver has touched.
    pub fn reset(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            ready: false,
            desc_table: 0,
            avail_ring: 0,
            used_ring: 0,
            next_avail: 0,
            next_used: 0,
            signalled_used: 0,
        }
    }
}

/// One queue of a device.
#[derive(Debug)]
pub struct Ring {
    /// What the driver wrote; not to be trusted, and not looked at again, once `queue` is there.
    settings: RingState,
    /// The checked queue; there if and only if the queue is ready.
    queue: Option<Queue>,
    signalled_used: u16,
}

impl Ring {
    /// A queue from its state.
    ///
    /// # Errors
    /// The state is not one of a queue with at most `max_size` entries in `ram`.
    pub fn restore(
        state: RingState,
        max_size: u16,
        event_idx: bool,
        ram: &GuestRam,
    ) -> Result<Self, String> {
        if state.max_size != max_size {
            return Err(format!(
                "offers {} entries, this device's offers {max_size}",
                state.max_size
            ));
        }
        let in_flight = state.next_avail.wrapping_sub(state.next_used);
        if state.ready
            && (in_flight > state.size
                || state.next_used.wrapping_sub(state.signalled_used) > state.size)
        {
            return Err(format!(
                "next_avail {}, next_used {} and signalled_used {} are further apart than its {} entries",
                state.next_avail, state.next_used, state.signalled_used, state.size
            ));
        }
        let ready = state.ready;
        let signalled_used = state.signalled_used;
        let mut ring = Self {
            settings: state,
            queue: None,
            signalled_used,
        };
        if ready {
            ring.queue = Some(ring.checked(event_idx, ram)?);
        }
        Ok(ring)
    }

    /// What moves with the guest.
    pub fn save(&self) -> RingState {
        let Self {
            settings,
            queue,
            signalled_used,
        } = self;
        let Some(queue) = queue else {
            return settings.clone();
        };
        let QueueState {
            max_size,
            next_avail,
            next_used,
            // Follows from the negotiated features.
            event_idx_enabled: _,
            size,
            ready,
            desc_table,
            avail_ring,
            used_ring,
        } = queue.state();
        RingState {
            max_size,
            size,
            ready,
            desc_table,
            avail_ring,
            used_ring,
            next_avail,
            next_used,
            signalled_used: *signalled_used,
        }
    }

    /// The settings as a queue whose three parts are aligned and lie in guest memory.
    fn checked(&self, event_idx: bool, ram: &GuestRam) -> Result<Queue, String> {
        let RingState {
            max_size,
            size,
            ready: _,
            desc_table,
            avail_ring,
            used_ring,
            next_avail,
            next_used,
            signalled_used: _,
        } = self.settings;
        let state = QueueState {
            max_size,
            next_avail,
            next_used,
            event_idx_enabled: event_idx,
            size,
            ready: true,
            desc_table,
            avail_ring,
            used_ring,
        };
        let at = || {
            format!(
                "descriptors at {desc_table:#x}, available ring at {avail_ring:#x}, used ring at {used_ring:#x}"
            )
        };
        let queue =
            Queue::try_from(state).map_err(|error| format!("{size} entries, {}: {error}", at()))?;
        // Zero would be in memory, but virtio-queue takes it for "not set"; no driver puts a ring there.
        if avail_ring == 0 || !queue.is_valid(ram) {
            return Err(format!("{size} entries, {}: not in guest memory", at()));
        }
        Ok(queue)
    }

    /// Back to the state that no driver has touched.
    pub fn reset(&mut self) {
        self.settings = RingState::reset(self.settings.max_size);
        self.queue = None;
        self.signalled_used = 0;
    }

    /// The most entries that the driver may choose.
    pub fn max_size(&self) -> u16 {
        self.settings.max_size
    }

    /// The entries that the driver chose.
    pub fn size(&self) -> u16 {
        self.queue.as_ref().map_or(self.settings.size, QueueT::size)
    }

    /// Whether the driver made the queue ready.
    pub fn ready(&self) -> bool {
        self.queue.is_some()
    }

    /// What the driver may still set; `None` once the queue is ready.
    pub fn settings_mut(&mut self) -> Option<&mut RingState> {
        self.queue.is_none().then_some(&mut self.settings)
    }

    /// Checks the settings and makes the queue ready.
    ///
    /// # Errors
    /// What is wrong with the settings; the queue is not ready.
    pub fn enable(&mut self, event_idx: bool, ram: &GuestRam) -> Result<(), String> {
        if self.queue.is_none() {
            self.queue = Some(self.checked(event_idx, ram)?);
        }
        Ok(())
    }

    fn queue(&mut self) -> Result<&mut Queue, QueueError> {
        self.queue.as_mut().ok_or(QueueError::NotReady)
    }

    /// Takes the next chain into `chain`; `false` when the driver has made none available.
    ///
    /// # Errors
    /// The ring or the chain is corrupt.
    pub fn pop(&mut self, ram: &GuestRam, chain: &mut Chain) -> Result<bool, QueueError> {
        let queue = self.queue()?;
        let limit = queue.size();
        let mut available = queue.iter(ram).map_err(QueueError::Avail)?;
        let Some(descriptors) = available.next() else {
            return Ok(false);
        };
        let head = descriptors.head_index();
        chain
            .fill(ram, descriptors, limit)
            .map_err(|error| QueueError::Chain { head, error })?;
        Ok(true)
    }

    /// Gives back the last `count` chains taken, as if they had not been.
    pub fn unpop(&mut self, count: u16) {
        if let Some(queue) = &mut self.queue {
            queue.set_next_avail(queue.next_avail().wrapping_sub(count));
        }
    }

    /// Returns chains to the driver: `(head, bytes written)` each. They appear all at once.
    ///
    /// # Errors
    /// The used ring cannot be written.
    pub fn push_used(
        &mut self,
        ram: &GuestRam,
        used: impl IntoIterator<Item = (u16, u32)>,
    ) -> Result<(), QueueError> {
        let queue = self.queue()?;
        let (base, size) = (queue.used_ring(), queue.size());
        let mut next = queue.next_used();
        for (head, bytes) in used {
            let entry = base + RING_HEADER + u64::from(next % size) * USED_ENTRY;
            let mut element = [0; 8];
            element[..4].copy_from_slice(&u32::from(head).to_le_bytes());
            element[4..].copy_from_slice(&bytes.to_le_bytes());
            ram.write_slice(&element, GuestAddress(entry))?;
            next = next.wrapping_add(1);
        }
        // Release: whoever sees the index sees the entries and the data (2.7.8).
        ram.store(u16::to_le(next), GuestAddress(base + 2), Ordering::Release)?;
        queue.set_next_used(next);
        Ok(())
    }

    /// Asks the driver to notify of new chains, beginning with the next one; `true` when there is one already, of
    /// which it may not notify.
    ///
    /// # Errors
    /// The rings cannot be accessed.
    pub fn enable_notification(&mut self, ram: &GuestRam) -> Result<bool, QueueError> {
        self.queue()?
            .enable_notification(ram)
            .map_err(QueueError::Avail)
    }

    /// Tells the driver that it need not notify.
    ///
    /// # Errors
    /// The used ring cannot be written.
    pub fn disable_notification(&mut self, ram: &GuestRam) -> Result<(), QueueError> {
        self.queue()?
            .disable_notification(ram)
            .map_err(QueueError::Avail)
    }

    /// Whether the driver wants an interrupt for what was used since this was last asked (2.7.7, 2.7.10).
    ///
    /// # Errors
    /// The available ring cannot be read.
    pub fn interrupt_due(&mut self, ram: &GuestRam) -> Result<bool, QueueError> {
        let Some(queue) = &self.queue else {
            return Ok(false);
        };
        let (old, new) = (self.signalled_used, queue.next_used());
        if old == new {
            return Ok(false);
        }
        self.signalled_used = new;
        // The used index is written before the driver's wish is read; the driver does it the other way round.
        fence(Ordering::SeqCst);
        let avail = GuestAddress(queue.avail_ring());
        if !queue.event_idx_enabled() {
            let flags = u16::from_le(ram.load(avail, Ordering::Relaxed)?);
            return Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0);
        }
        let used_event = RING_HEADER + u64::from(queue.size()) * AVAIL_ENTRY;
        let event = u16::from_le(ram.load(avail.unchecked_add(used_event), Ordering::Relaxed)?);
        Ok(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old))
    }
}

#[cfg(test)]
mod tests;
