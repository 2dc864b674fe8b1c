//! What of a disk moves with the guest: what the guest has been told of it. Its contents stay where they are.

use std::sync::Arc;

use migration::state::{Kind, Snapshot};
use serde::{Deserialize, Serialize};

use super::disk::{Disk, MAX_ALIGNMENT};
use super::features::{self, MAX_QUEUES, QUEUE_SIZE, RO, SECTOR};
use super::{Bounce, ID_BYTES, VirtioBlock};
use crate::virtio::chain::Chain;

/// A disk as the guest knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// The features that it offers, chosen when the guest was made: every later host must offer them all.
    pub features: u64,
    /// How large it is, in bytes.
    pub bytes: u64,
    /// Bytes of a block: what requests are multiples of, where the host needs that.
    pub block_size: u32,
    /// How many queues it has.
    pub queues: u16,
    /// What it is called: ASCII, with zeros behind it.
    pub id: [u8; ID_BYTES],
}

impl BlockState {
    /// A disk that no driver has touched.
    pub fn fresh(disk: &Disk, queues: u16, id: &str) -> Self {
        let mut bytes = [0; ID_BYTES];
        for (to, from) in bytes.iter_mut().zip(id.bytes()) {
            *to = from;
        }
        Self {
            features: features::offered(disk.read_only(), queues),
            bytes: disk.bytes(),
            block_size: disk.alignment(),
            queues,
            id: bytes,
        }
    }

    /// Whether it is one that a disk can be, and that `disk` is.
    fn check(&self, disk: &Disk) -> Result<(), String> {
        let Self {
            features,
            bytes,
            block_size,
            queues,
            id: _,
        } = *self;
        if queues == 0 || queues > MAX_QUEUES {
            return Err(format!("{queues} queues: a disk has 1 to {MAX_QUEUES}"));
        }
        let blocks = SECTOR..=u64::from(MAX_ALIGNMENT);
        if !block_size.is_power_of_two() || !blocks.contains(&block_size.into()) {
            return Err(format!("blocks of {block_size} bytes"));
        }
        let read_only = features & RO != 0;
        let possible = features::offered(read_only, queues);
        if features & !possible != 0 {
            return Err(format!(
                "the disk offers features {features:#x}, this build has {possible:#x}"
            ));
        }
        if bytes != disk.bytes() || read_only != disk.read_only() {
            return Err(format!(
                "the guest's disk has {bytes} bytes (read-only: {read_only}), {} has {} (read-only: {})",
                disk.path().display(),
                disk.bytes(),
                disk.read_only()
            ));
        }
        if block_size < disk.alignment() {
            return Err(format!(
                "the guest's disk has blocks of {block_size} bytes, {} with direct=on of {}: leave direct=on out",
                disk.path().display(),
                disk.alignment()
            ));
        }
        Ok(())
    }
}

/// What a disk needs besides its state.
pub struct BlockParts {
    /// The host's end.
    pub disk: Arc<Disk>,
}

impl Snapshot for VirtioBlock {
    const KIND: Kind = Kind::VIRTIO_BLK;
    const VERSION: u32 = 1;
    type State = BlockState;
    type Parts = BlockParts;

    fn save(&self) -> BlockState {
        let Self {
            state,
            disk: _,
            // The transport's, and handed over when the device is activated.
            driver_features: _,
            queue_sizes: _,
            // Scratch: nothing is under way between two bursts, and nobody saves in the middle of one.
            chain: _,
            bounce: _,
            counts: _,
        } = self;
        state.clone()
    }

    fn restore(state: BlockState, BlockParts { disk }: BlockParts) -> Result<Self, String> {
        state.check(&disk)?;
        Ok(Self {
            queue_sizes: vec![QUEUE_SIZE; state.queues.into()],
            state,
            disk,
            driver_features: 0,
            chain: Chain::default(),
            bounce: Bounce::default(),
            counts: super::Counts::default(),
        })
    }
}
