//! Disk (virtio 1.2, 5.2): a file or block device on the host's side, one or more request queues on the guest's.
//!
//! A request is done, wholly, before the next one is looked at, by the thread that serves the queues; data goes
//! straight between the disk and guest memory. So between two calls nothing is under way: a device that is paused has
//! no read that could still arrive in memory and no write that could still arrive on the disk, and what was not begun
//! lies in the queue and moves with the guest.
//!
//! What a driver can rely on: FLUSH completes when everything written before is on the disk (fdatasync); without FLUSH
//! each write is. A disk that has once failed to keep what was written fails every later flush.

pub mod disk;
pub mod features;
mod request;
mod state;

use std::sync::Arc;
use std::time::{Duration, Instant};

use migration::state::{Snapshot, StateError, VmState};

use self::disk::{Bounce, Disk, Transfer};
use self::features::{
    MAX_DISCARD_SECTORS, MAX_RANGES, MAX_SEGMENT_BYTES, MAX_SEGMENTS, MAX_WRITE_ZEROES_SECTORS,
    PHYSICAL_BLOCK, SECTOR,
};
use self::request::{Done, ID_BYTES, Means};
use super::chain::Chain;
use super::device::{BURST_BYTES, BURST_CHAINS, QueueIo, VirtioDevice};
use super::queue::QueueError;

pub use disk::{DiskError, DiskOptions, LockError};
pub use features::MAX_QUEUES;
pub use state::{BlockParts, BlockState};

/// Device ID (virtio 1.2, 5).
const DEVICE_TYPE: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
/// A burst begins no further request after so long: one that waits for the disk is the last of its burst.
const BURST_TIME: Duration = Duration::from_micros(200);
/// Bytes of the configuration space (5.2.4), as far as the offered features give it a meaning.
const CONFIG_BYTES: usize = 60;

/// What was done in this process.
#[derive(Debug, Default)]
struct Counts {
    requests: u64,
    bytes: u64,
    errors: u64,
}

/// A disk.
#[derive(Debug)]
pub struct VirtioBlock {
    state: BlockState,
    disk: Arc<Disk>,
    /// What the driver accepted; 0 until it is up.
    driver_features: u64,
    queue_sizes: Vec<u16>,
    /// Scratch: of no meaning between two bursts.
    chain: Chain,
    bounce: Bounce,
    counts: Counts,
}

impl VirtioBlock {
    /// A disk that no driver has touched, of 1 to [`MAX_QUEUES`] queues, called `id` (its first 20 bytes).
    ///
    /// # Errors
    /// The number of queues is another.
    pub fn new(disk: Arc<Disk>, queues: u16, id: &str) -> Result<Self, String> {
        Self::restore(BlockState::fresh(&disk, queues, id), BlockParts { disk })
    }

    /// `struct virtio_blk_config` (5.2.4); what belongs to features that are not offered is zero.
    fn config(&self) -> [u8; CONFIG_BYTES] {
        let block = self.state.block_size;
        let per_physical = PHYSICAL_BLOCK / block;
        let mut config = [0; CONFIG_BYTES];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(self.state.bytes / SECTOR).to_le_bytes());
        put(8, &MAX_SEGMENT_BYTES.to_le_bytes());
        put(12, &MAX_SEGMENTS.to_le_bytes());
        put(20, &block.to_le_bytes());
        // Topology: log2 of blocks in a physical one, none out of line, the least that is best done at once.
        put(24, &per_physical.ilog2().to_le_bytes()[..1]);
        put(26, &per_physical.to_le_bytes()[..2]);
        put(34, &self.state.queues.to_le_bytes());
        if !self.disk.read_only() {
            put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
            put(40, &MAX_RANGES.to_le_bytes());
            put(44, &(block / 512).to_le_bytes());
            put(48, &MAX_WRITE_ZEROES_SECTORS.to_le_bytes());
            put(52, &1u32.to_le_bytes());
            // A hole may be made of what is zeroed.
            put(56, &[1]);
        }
        config
    }
}

impl Counts {
    /// A failure is said the first time only: a guest must not be able to fill the log.
    fn note(&mut self, done: &Done, disk: &Disk) {
        self.requests += 1;
        self.bytes += done.moved;
        if let Some(error) = &done.failure {
            if self.errors == 0 {
                let path = disk.path().display();
                tracing::warn!(
                    "disk {path} failed a request of the guest's: {error}; later ones are only counted"
                );
            }
            self.errors += 1;
        }
    }
}

impl VirtioDevice for VirtioBlock {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        self.state.features
    }

    fn accepts(&self, _features: u64) -> bool {
        true
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, from) in data.iter_mut().zip(self.config().iter().skip(start)) {
            *to = *from;
        }
    }

    /// Nothing is writable: see [`features`].
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, features: u64) -> Result<(), String> {
        self.driver_features = features;
        Ok(())
    }

    fn reset(&mut self) {
        self.driver_features = 0;
    }

    fn process_queue(&mut self, io: &mut QueueIo<'_>, index: usize) -> Result<(), QueueError> {
        let began = Instant::now();
        let ram = io.ram;
        let ring = io.ring(index)?;
        let mut means = Means {
            ram,
            disk: &self.disk,
            transfer: Transfer::new(ram, &self.disk, &mut self.bounce),
            features: self.driver_features,
            id: &self.state.id,
        };
        let mut moved = 0;
        ring.disable_notification(ram)?;
        for _ in 0..BURST_CHAINS {
            if moved >= BURST_BYTES || began.elapsed() >= BURST_TIME {
                break;
            }
            if !ring.pop(ram, &mut self.chain)? {
                if ring.enable_notification(ram)? {
                    continue;
                }
                return Ok(());
            }
            let done = request::serve(&self.chain, &mut means)?;
            self.counts.note(&done, &self.disk);
            ring.push_used(ram, [(self.chain.head(), done.written)])?;
            moved += done.moved;
        }
        io.run_again(index);
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("requests", self.counts.requests),
            ("bytes", self.counts.bytes),
            ("errors", self.counts.errors),
        ]
    }

    fn save_section(&self, instance: u32, state: &mut VmState) -> Result<(), StateError> {
        state.save(instance, self)
    }
}

#[cfg(test)]
mod tests;
