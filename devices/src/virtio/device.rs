//! What stands behind a transport: one virtio device, and what it is handed to work with.
//!
//! A device may have lanes: queues that work beside each other and beside the device itself, each lane under a lock of
//! its own. What a vCPU asks of the registers then waits for no traffic, and traffic of one lane for none of another.

use std::os::fd::RawFd;

use migration::state::{StateError, VmState};

use super::queue::{QueueError, Ring};
use crate::GuestRam;

/// The most chains that a device handles before it lets go of its lock: a vCPU that reads a register of the
/// device waits no longer than that.
pub const BURST_CHAINS: usize = 256;
/// The most bytes that a device moves before it lets go of its lock; about 0.2 ms of copying.
pub const BURST_BYTES: u64 = 1 << 20;

/// A virtio device type. All work is done by [`process_queue`](Self::process_queue) and
/// [`process_backend`](Self::process_backend), and nothing is in flight when they return: a device is quiet
/// as soon as nobody calls it, and its state may be saved.
pub trait VirtioDevice: Send {
    /// Device ID (virtio 1.2, 5).
    fn device_type(&self) -> u32;
    /// The feature bits that the device offers beside the transport's. They never change.
    fn features(&self) -> u64;
    /// Whether `features`, a part of what is offered, makes sense together.
    fn accepts(&self, features: u64) -> bool;
    /// The most entries of each queue, powers of two; first those of the lanes, lane after lane.
    fn queue_sizes(&self) -> &[u16];
    /// The lanes. The transport takes them once, and calls the device for the queues behind theirs.
    fn lanes(&self) -> Vec<Box<dyn Lane>> {
        Vec::new()
    }
    /// How many of the lanes the driver of an active device knows of. The queues of the others are the device's, if
    /// anybody's.
    fn lanes_in_use(&self) -> usize {
        usize::MAX
    }
    /// Reads the configuration space; what lies beyond its end reads as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes the configuration space; what is not writable stays.
    fn write_config(&mut self, offset: u64, data: &[u8]);
    /// The driver is ready (DRIVER_OK), now or before a move: applies the negotiated features to the backend.
    ///
    /// # Errors
    /// The backend refuses; the device does not work and needs a reset.
    fn activate(&mut self, features: u64) -> Result<(), String>;
    /// The driver reset the device.
    fn reset(&mut self);
    /// The driver has notified of queue `index`: does one burst of its work. Says by
    /// [`QueueIo::run_again`] if there is more. Called without cause too, after a resume for example.
    ///
    /// # Errors
    /// The driver broke the ring; the device needs a reset.
    fn process_queue(&mut self, io: &mut QueueIo<'_>, index: usize) -> Result<(), QueueError>;
    /// The backend has become readable or writable: does one burst of work. A device that works on its queues alone has
    /// none.
    ///
    /// # Errors
    /// The driver broke the ring; the device needs a reset.
    fn process_backend(&mut self, _io: &mut QueueIo<'_>) -> Result<(), QueueError> {
        Ok(())
    }
    /// The descriptor to poll, edge-triggered, for reading and writing.
    fn backend_fd(&self) -> Option<RawFd> {
        None
    }
    /// The guest has moved: tells the network where it is now, if it is on one. Says whether the configuration space
    /// changed, of which the driver is then told.
    fn announce(&mut self) -> bool {
        false
    }
    /// What the device counted in this process, by name.
    fn counters(&self) -> Vec<(&'static str, u64)>;
    /// Adds the device's own section.
    ///
    /// # Errors
    /// The state cannot be encoded.
    fn save_section(&self, instance: u32, state: &mut VmState) -> Result<(), StateError>;
}

/// Some queues of a device and what is at their other end. Like a device it is quiet as soon as nobody calls it.
pub trait Lane: Send {
    /// How many queues it has.
    fn queues(&self) -> usize;
    /// As [`VirtioDevice::process_queue`]; `index` counts all queues of the device.
    ///
    /// # Errors
    /// The driver broke the ring; the device needs a reset.
    fn process_queue(&mut self, io: &mut QueueIo<'_>, index: usize) -> Result<(), QueueError>;
    /// The backend has become readable or writable: does one burst of work.
    ///
    /// # Errors
    /// The driver broke the ring; the device needs a reset.
    fn process_backend(&mut self, io: &mut QueueIo<'_>) -> Result<(), QueueError>;
    /// The descriptor to poll, edge-triggered, for reading and writing.
    fn backend_fd(&self) -> RawFd;
    /// How many requests it has dealt with in this process.
    fn handled(&self) -> u64;
}

/// What a device works with during one call: guest memory, its queues, and what it has to say afterwards.
#[derive(Debug)]
pub struct QueueIo<'a> {
    /// Guest memory.
    pub ram: &'a GuestRam,
    /// The index of the first of the queues.
    first: usize,
    rings: &'a mut [Ring],
    again: u64,
}

impl<'a> QueueIo<'a> {
    /// Work on these queues, of which the first has the index `first`; a device has at most 64.
    pub fn new(ram: &'a GuestRam, first: usize, rings: &'a mut [Ring]) -> Self {
        Self {
            ram,
            first,
            rings,
            again: 0,
        }
    }

    /// The index of the first of its queues.
    pub fn first(&self) -> usize {
        self.first
    }

    /// A queue.
    ///
    /// # Errors
    /// The driver has not made it ready.
    pub fn ring(&mut self, index: usize) -> Result<&mut Ring, QueueError> {
        index
            .checked_sub(self.first)
            .and_then(|index| self.rings.get_mut(index))
            .filter(|ring| ring.ready())
            .ok_or(QueueError::NotReady)
    }

    /// Whether the driver has made a queue ready.
    pub fn is_ready(&self, index: usize) -> bool {
        index
            .checked_sub(self.first)
            .and_then(|index| self.rings.get(index))
            .is_some_and(Ring::ready)
    }

    /// Asks that a queue be processed again soon: the burst was over, the work was not.
    pub fn run_again(&mut self, index: usize) {
        self.again |= 1 << index;
    }

    /// The queues that the device asked to be processed again, one a bit.
    pub fn said(self) -> u64 {
        self.again
    }
}
