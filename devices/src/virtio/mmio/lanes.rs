//! The part of a transport that works beside its registers: each lane's queues under a lock of their own, and what
//! lanes and registers share without one.

use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::page::RegisterPage;
use super::{CONFIG_INTERRUPT, NEEDS_RESET, USED_INTERRUPT, signal};
use crate::GuestRam;
use crate::virtio::device::{Lane, QueueIo};
use crate::virtio::interrupts::Interrupts;
use crate::virtio::queue::{QueueError, Ring};

/// What registers and lanes both come to, each from its own thread.
pub(super) struct Shared {
    pub(super) device_type: u32,
    pub(super) ram: GuestRam,
    pub(super) interrupts: Box<dyn Interrupts>,
    /// One a queue.
    pub(super) queue_events: Vec<EventFd>,
    /// What the driver reads. A lane sets an interrupt there behind the entries that it is about; a driver acknowledges
    /// before it looks for those.
    pub(super) page: Arc<RegisterPage>,
    /// It was said once that the device is out of order. A driver that breaks it again and again does not fill the log.
    pub(super) told: AtomicBool,
}

impl Shared {
    /// One burst of work on `queues`, and what follows from it: interrupts, and eventfds for what is left.
    pub(super) fn work(
        &self,
        queues: &mut Queues,
        burst: impl FnOnce(&mut QueueIo<'_>) -> Result<(), QueueError>,
    ) {
        let mut io = QueueIo::new(&self.ram, queues.first, &mut queues.rings);
        let done = burst(&mut io);
        let again = io.said();
        for (index, event) in self.queue_events.iter().enumerate() {
            if again >> index & 1 == 1 {
                signal(event);
            }
        }
        let mut due = 0;
        let mut rings = (queues.first..).zip(&mut queues.rings);
        let asked = rings.try_for_each(|(index, ring)| {
            due |= u64::from(ring.interrupt_due(&self.ram)?) << index;
            Ok(())
        });
        if due != 0 {
            self.used(due);
        }
        if let Err(error) = done.and(asked)
            && self.give_up(&error.to_string())
        {
            // Only a device that the driver has set up works.
            self.config_changed();
        }
    }

    /// The device is out of order until the driver resets it (2.1.2). `true` the first time.
    pub(super) fn give_up(&self, why: &str) -> bool {
        let first = self.page.add_status(NEEDS_RESET) & NEEDS_RESET == 0;
        if first && !self.told.swap(true, Ordering::Relaxed) {
            let kind = self.device_type;
            tracing::warn!("virtio device of type {kind} needs a reset by its driver: {why}");
        }
        first
    }

    /// Buffers of these queues, one a bit, were used.
    pub(super) fn used(&self, queues: u64) {
        self.page.add_interrupts(USED_INTERRUPT);
        self.interrupts.used(queues);
    }

    pub(super) fn config_changed(&self) {
        self.page.add_interrupts(CONFIG_INTERRUPT);
        self.interrupts.config_changed();
    }
}

/// Some of a device's queues, that follow each other.
#[derive(Debug)]
pub(super) struct Queues {
    /// The index of the first.
    pub(super) first: usize,
    pub(super) rings: Vec<Ring>,
}

impl Queues {
    /// The queue with this index among all of the device.
    pub(super) fn ring(&mut self, index: usize) -> Option<&mut Ring> {
        self.rings.get_mut(index.checked_sub(self.first)?)
    }
}

/// A lane of a device, behind its transport: what a thread of its own serves. Clones are the same lane.
#[derive(Clone)]
pub struct MmioLane {
    queues: Range<usize>,
    backend: RawFd,
    shared: Arc<Shared>,
    locked: Arc<Mutex<Locked>>,
}

pub(super) struct Locked {
    pub(super) queues: Queues,
    lane: Box<dyn Lane>,
    /// The driver uses it, and nobody has paused it.
    works: bool,
}

impl MmioLane {
    /// A lane that does not work yet.
    pub(super) fn new(shared: Arc<Shared>, lane: Box<dyn Lane>, queues: Queues) -> Self {
        Self {
            queues: queues.first..queues.first + queues.rings.len(),
            backend: lane.backend_fd(),
            shared,
            locked: Arc::new(Mutex::new(Locked {
                queues,
                lane,
                works: false,
            })),
        }
    }

    /// The indices of its queues among all of the device.
    pub fn queues(&self) -> Range<usize> {
        self.queues.clone()
    }

    /// The descriptor to poll, edge-triggered, for reading and writing.
    pub fn backend_fd(&self) -> RawFd {
        self.backend
    }

    /// Its queue `index` was notified of: does one burst of its work. `false` where the lane does not work, and the
    /// device has to be asked instead.
    pub fn queue_event(&self, index: usize) -> bool {
        self.work(|queues, lane, shared| {
            if queues.ring(index).is_some_and(|ring| ring.ready()) {
                shared.work(queues, |io| lane.process_queue(io, index));
            }
        })
    }

    /// Its backend became readable or writable: does one burst of work.
    pub fn backend_event(&self) {
        self.work(|queues, lane, shared| shared.work(queues, |io| lane.process_backend(io)));
    }

    /// How many requests it has dealt with in this process.
    pub fn handled(&self) -> u64 {
        self.lock().lane.handled()
    }

    fn work(&self, burst: impl FnOnce(&mut Queues, &mut dyn Lane, &Shared)) -> bool {
        let mut locked = self.lock();
        let Locked {
            queues,
            lane,
            works,
        } = &mut *locked;
        let works = *works && !self.shared.page.is_broken();
        if works {
            burst(queues, &mut **lane, &self.shared);
        }
        works
    }

    /// Lets it work, or stops it: on return it writes no guest memory any more.
    pub(super) fn let_work(&self, works: bool) {
        self.lock().works = works;
    }

    /// A panic in another thread that held it has been reported there; its state is still the best there is.
    pub(super) fn lock(&self) -> MutexGuard<'_, Locked> {
        self.locked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
