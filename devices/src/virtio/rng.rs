//! Entropy source (virtio 1.2, 5.4): fills the guest's buffers from the host's random number generator.

use migration::state::{Kind, Snapshot, StateError, VmState};
use serde::{Deserialize, Serialize};

use super::chain::{self, Chain};
use super::device::{BURST_CHAINS, QueueIo, VirtioDevice};
use super::queue::QueueError;

/// Device ID (virtio 1.2, 5).
const DEVICE_TYPE: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
/// Entries of requestq.
const QUEUE_SIZE: u16 = 64;
/// The most bytes given at once, whatever the size of the buffer: the device may give fewer than asked for (5.4.6).
const MAX_BYTES: usize = 4096;

/// The entropy source. It has no state: no two bytes it gives are related.
#[derive(Debug, Default)]
pub struct VirtioRng {
    chain: Chain,
}

/// Nothing: the section says that the device is there, and leaves room for a later version.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RngState {}

impl VirtioRng {
    /// An entropy source.
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for VirtioRng {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        0
    }

    fn accepts(&self, _features: u64) -> bool {
        true
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, _features: u64) -> Result<(), String> {
        Ok(())
    }

    fn reset(&mut self) {}

    fn process_queue(&mut self, io: &mut QueueIo<'_>, index: usize) -> Result<(), QueueError> {
        let ram = io.ram;
        let ring = io.ring(index)?;
        let mut random = [0; MAX_BYTES];
        for _ in 0..BURST_CHAINS {
            if !ring.pop(ram, &mut self.chain)? {
                if ring.enable_notification(ram)? {
                    continue;
                }
                return Ok(());
            }
            let head = self.chain.head();
            let room = usize::try_from(chain::bytes(self.chain.writable())).unwrap_or(MAX_BYTES);
            let random = &mut random[..room.min(MAX_BYTES)];
            if random.is_empty() {
                return Err(QueueError::Request {
                    head,
                    reason: "no buffer to write entropy to",
                });
            }
            // Does not fail on a Linux that has KVM; if it did, the guest gets nothing rather than zeros.
            let filled = getrandom::fill(random).map_or(0, |()| random.len());
            let written = chain::write(ram, self.chain.writable(), 0, &random[..filled])?;
            ring.push_used(ram, [(head, u32::try_from(written).unwrap_or(0))])?;
        }
        io.run_again(index);
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    fn save_section(&self, instance: u32, state: &mut VmState) -> Result<(), StateError> {
        state.save(instance, self)
    }
}

impl Snapshot for VirtioRng {
    const KIND: Kind = Kind::VIRTIO_RNG;
    const VERSION: u32 = 1;
    type State = RngState;
    type Parts = ();

    fn save(&self) -> RngState {
        // The chain is scratch space, empty between two requests.
        let Self { chain: _ } = self;
        RngState {}
    }

    fn restore(state: RngState, (): ()) -> Result<Self, String> {
        let RngState {} = state;
        Ok(Self::default())
    }
}
