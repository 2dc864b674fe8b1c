//! The threads that serve one virtio device: its queues and its backend, nothing else.
//!
//! One thread a device, never one for all: a busy network card does not hold up another one. A device with lanes has a
//! thread for each of them, and the first serves what is no lane's, too.

use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use devices::virtio::{MmioLane, VirtioMmio};
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use migration::guest::GuestError;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::batch::Turns;
use crate::sandbox::{self, Kind};

/// Event data: the backend of the device, beside its lanes.
const BACKEND: u32 = u32::MAX;
/// Event data: end the thread.
const END: u32 = u32::MAX - 1;
/// Event data: the backend of the lane.
const LANE_BACKEND: u32 = u32::MAX - 2;

/// What a thread listens to.
struct Io {
    device: Arc<Mutex<VirtioMmio>>,
    /// The lane that it serves, if the device has any.
    lane: Option<MmioLane>,
    /// Its queues' indices and eventfds; an event's data is the place in this list.
    queues: Vec<(usize, EventFd)>,
    /// The device's own backend, if it serves that.
    backend: Option<RawFd>,
    end: EventFd,
    ended: bool,
    turns: Turns,
}

impl Io {
    /// A queue was notified of: its lane does the work, without the device's lock; or the device, if there is no such
    /// lane or the driver does not use it.
    fn queue(&self, index: usize) {
        let lane = self
            .lane
            .as_ref()
            .filter(|lane| lane.queues().contains(&index));
        if !lane.is_some_and(|lane| lane.queue_event(index)) {
            lock(&self.device).queue_event(index);
        }
    }

    /// It was woken up for its lane. Frames come in streams; what waits for a disk waits for each request.
    fn was_woken(&mut self) {
        if let Some(lane) = &self.lane {
            self.turns.take(lane.handled());
        }
    }
}

impl MutEventSubscriber for Io {
    fn init(&mut self, ops: &mut EventOps) {
        let mut events: Vec<Events> = (0u32..)
            .zip(&self.queues)
            .map(|(n, (_, queue))| Events::with_data(queue, n, EventSet::IN))
            .collect();
        events.push(Events::with_data(&self.end, END, EventSet::IN));
        // Edge-triggered: a tap that is readable while the guest has no buffer must not spin.
        let set = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        if let Some(fd) = self.backend {
            events.push(Events::with_data_raw(fd, BACKEND, set));
        }
        if let Some(lane) = &self.lane {
            events.push(Events::with_data_raw(lane.backend_fd(), LANE_BACKEND, set));
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
            LANE_BACKEND => {
                self.lane.iter().for_each(MmioLane::backend_event);
                self.was_woken();
            }
            n => {
                let queue = usize::try_from(n).ok().and_then(|n| self.queues.get(n));
                if let Some((index, queue)) = queue {
                    // Drained before the queue is looked at: a kick that comes later signals anew.
                    let _ = queue.read();
                    self.queue(*index);
                    self.was_woken();
                }
            }
        }
    }
}

/// Locks a device. A panic in another thread that held it has been reported there; its state is still the
/// best there is.
pub fn lock<T: ?Sized>(device: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The I/O threads of a device, of which `queues` are the queues' eventfds.
///
/// # Errors
/// No thread or file descriptor can be had.
pub fn spawn(
    slot: u32,
    device: &Arc<Mutex<VirtioMmio>>,
    queues: Vec<EventFd>,
) -> Result<Vec<IoThread>, GuestError> {
    let (lanes, backend) = {
        let device = lock(device);
        (device.lanes().to_vec(), device.backend_fd())
    };
    let mut queues: Vec<_> = queues.into_iter().enumerate().collect();
    let mut threads = Vec::new();
    for (number, lane) in lanes.iter().enumerate().skip(1) {
        let (its, others) = (queues.into_iter()).partition(|(n, _)| lane.queues().contains(n));
        queues = others;
        let name = format!("virtio-{slot}.{number}");
        threads.push(IoThread::spawn(name, device, Some(lane), its, None)?);
    }
    let first = lanes.first();
    let name = format!("virtio-{slot}");
    threads.push(IoThread::spawn(name, device, first, queues, backend)?);
    Ok(threads)
}

/// A running I/O thread. Dropping it ends the thread.
#[derive(Debug)]
pub struct IoThread {
    end: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl IoThread {
    fn spawn(
        name: String,
        device: &Arc<Mutex<VirtioMmio>>,
        lane: Option<&MmioLane>,
        queues: Vec<(usize, EventFd)>,
        backend: Option<RawFd>,
    ) -> Result<Self, GuestError> {
        let act = || format!("start the I/O thread {name}");
        let end = EventFd::new(EFD_NONBLOCK).map_err(|e| GuestError::new(act(), e))?;
        let io = Io {
            device: device.clone(),
            lane: lane.cloned(),
            queues,
            backend,
            end: end.try_clone().map_err(|e| GuestError::new(act(), e))?,
            ended: false,
            turns: Turns::default(),
        };
        let mut manager =
            EventManager::<Io>::new().map_err(|e| GuestError::new(act(), e.to_string()))?;
        let id = manager.add_subscriber(io);
        let thread = std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || {
                sandbox::enter(Kind::Virtio);
                loop {
                    if let Err(error) = manager.run() {
                        tracing::error!("virtio I/O: wait for events: {error}");
                        return;
                    }
                    if manager.subscriber_mut(id).map_or(true, |io| io.ended) {
                        return;
                    }
                }
            });
        let thread = thread.map_err(|e| GuestError::new(act(), e))?;
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
