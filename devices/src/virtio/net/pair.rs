//! A queue pair: one receive and one transmit queue, and the queue of the tap that is at their other end. It is a lane
//! of the card, so that one thread can serve it beside the others.

use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::rx::{Delivery, Rx};
use super::tx::Tx;
use crate::virtio::device::{Lane, QueueIo};
use crate::virtio::queue::QueueError;

/// Queues of a pair: receive, then transmit (virtio 1.2, 5.1.2).
pub const QUEUES: usize = 2;

/// What a pair has of its own.
#[derive(Debug)]
pub struct Pair {
    /// The receive half.
    pub rx: Rx,
    /// The transmit half.
    pub tx: Tx,
    /// Its queue of the backend, and how frames from there reach the guest.
    pub how: Delivery,
    /// The driver wants frames in its receive queue (5.1.6.5.5). What it still has in the transmit queue of a pair that
    /// it gives up is sent: a tap takes frames by a detached queue, too.
    pub active: bool,
}

/// A pair as both sides hold it: the card, which says how frames are delivered, and the lane, which delivers them. Its
/// lock is taken behind theirs, and is a leaf.
#[derive(Debug, Clone)]
pub struct SharedPair(Arc<Mutex<Pair>>);

impl SharedPair {
    /// To be shared from now on.
    pub fn new(pair: Pair) -> Self {
        Self(Arc::new(Mutex::new(pair)))
    }

    /// A panic in another thread that held it has been reported there; its state is still the best there is.
    pub fn lock(&self) -> MutexGuard<'_, Pair> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pair as the lane of its two queues.
    pub fn lane(&self) -> Box<dyn Lane> {
        Box::new(PairLane(self.clone()))
    }
}

struct PairLane(SharedPair);

impl Lane for PairLane {
    fn queues(&self) -> usize {
        QUEUES
    }

    fn process_queue(&mut self, io: &mut QueueIo<'_>, index: usize) -> Result<(), QueueError> {
        let pair = &mut *self.0.lock();
        match index % QUEUES {
            0 if pair.active => pair.rx.process(io, index, pair.how),
            0 => Ok(()),
            _ => pair.tx.process(io, index, pair.how.fd),
        }
    }

    fn process_backend(&mut self, io: &mut QueueIo<'_>) -> Result<(), QueueError> {
        let pair = &mut *self.0.lock();
        let (rx, tx) = (io.first(), io.first() + 1);
        if pair.active && io.is_ready(rx) {
            pair.rx.process(io, rx, pair.how)?;
        }
        if pair.tx.is_blocked() && io.is_ready(tx) {
            pair.tx.process(io, tx, pair.how.fd)?;
        }
        Ok(())
    }

    fn backend_fd(&self) -> RawFd {
        self.0.lock().how.fd
    }

    fn handled(&self) -> u64 {
        let pair = self.0.lock();
        pair.rx.frames + pair.tx.frames
    }
}
