//! The thread that serves one virtio device: its queues and its backend, nothing else.
//!
//! One thread a device, never one for all: a busy network card does not hold up another one.

use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use devices::virtio::VirtioMmio;
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use migration::guest::GuestError;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::sandbox::{self, Kind};

/// Event data: the device's backend.
const BACKEND: u32 = u32::MAX;
/// Event data: end the thread.
const END: u32 = u32::MAX - 1;

/// What the thread listens to.
struct Io {
    device: Arc<Mutex<VirtioMmio>>,
    /// The queues' eventfds; an event's data is the index.
    queues: Vec<EventFd>,
    backend: Option<RawFd>,
    end: EventFd,
    ended: bool,
}

impl MutEventSubscriber for Io {
    fn init(&mut self, ops: &mut EventOps) {
        let mut events: Vec<Events> = (0u32..)
            .zip(&self.queues)
            .map(|(index, queue)| Events::with_data(queue, index, EventSet::IN))
            .collect();
        events.push(Events::with_data(&self.end, END, EventSet::IN));
        if let Some(fd) = self.backend {
            // Edge-triggered: a tap that is readable while the guest has no buffer must not spin.
            let set = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
            events.push(Events::with_data_raw(fd, BACKEND, set));
        }
        for event in events {
            if let Err(error) = ops.add(event) {
                tracing::error!("virtio I/O: watch a file descriptor: {error}");
            }
        }
    }

    fn process(&mut self, events: Events, _: &mut EventOps) {
        match events.data() {
            END => self.ended = true,
            BACKEND => lock(&self.device).backend_event(),
            index => {
                let Some((index, queue)) = usize::try_from(index)
                    .ok()
                    .and_then(|index| Some((index, self.queues.get(index)?)))
                else {
                    return;
                };
                // Drained before the queue is looked at: a kick that comes later signals anew.
                let _ = queue.read();
                lock(&self.device).queue_event(index);
            }
        }
    }
}

/// Locks a device. A panic in another thread that held it has been reported there; its state is still the
/// best there is.
pub fn lock<T: ?Sized>(device: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running I/O thread. Dropping it ends the thread.
#[derive(Debug)]
pub struct IoThread {
    end: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl IoThread {
    /// Starts the thread of a device. `queues` are its queues' eventfds.
    ///
    /// # Errors
    /// No thread or file descriptor can be had.
    pub fn spawn(
        slot: u32,
        device: Arc<Mutex<VirtioMmio>>,
        queues: Vec<EventFd>,
    ) -> Result<Self, GuestError> {
        let act = || format!("start the I/O thread of virtio slot {slot}");
        let end = EventFd::new(EFD_NONBLOCK).map_err(|e| GuestError::new(act(), e))?;
        let backend = lock(&device).backend_fd();
        let io = Io {
            device,
            queues,
            backend,
            end: end.try_clone().map_err(|e| GuestError::new(act(), e))?,
            ended: false,
        };
        let mut manager =
            EventManager::<Io>::new().map_err(|e| GuestError::new(act(), e.to_string()))?;
        let id = manager.add_subscriber(io);
        let thread = std::thread::Builder::new()
            .name(format!("virtio-{slot}"))
            .spawn(move || {
                sandbox::enter(Kind::Virtio);
                loop {
                    if let Err(error) = manager.run() {
                        tracing::error!("virtio I/O of slot {slot}: {error}");
                        return;
                    }
                    if manager.subscriber_mut(id).map_or(true, |io| io.ended) {
                        return;
                    }
                }
            })
            .map_err(|e| GuestError::new(act(), e))?;
        Ok(Self {
            end,
            thread: Some(thread),
        })
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        let _ = self.end.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
