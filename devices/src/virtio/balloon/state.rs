//! What of a balloon moves with the guest: what it offers, how large it is to be, and how large it is. Which pages are
//! in it only the guest knows; they are memory that nobody has touched, here and wherever it goes.

use std::sync::Arc;

use migration::state::{Kind, Snapshot};
use serde::{Deserialize, Serialize};

use super::features::{self, QUEUE_SIZE, QUEUES};
use super::{GiveBack, Levels, VirtioBalloon};
use crate::virtio::chain::Chain;

/// A balloon as the guest knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    /// The features that it offers, chosen when the guest was made.
    pub features: u64,
    /// How many pages of 4 KiB it is to have.
    pub target: u32,
    /// How many the driver has last said that it has.
    pub actual: u32,
}

impl BalloonState {
    /// A balloon that no driver has touched, to be of that many pages.
    pub fn fresh(reporting: bool, deflate_on_oom: bool, target: u32) -> Self {
        Self {
            features: features::offered(reporting, deflate_on_oom),
            target,
            actual: 0,
        }
    }
}

/// What a balloon needs besides its state.
pub struct BalloonParts {
    /// Takes the pages.
    pub host: Box<dyn GiveBack>,
    /// Where its numbers are kept, for others to see.
    pub levels: Arc<Levels>,
}

impl Snapshot for VirtioBalloon {
    const KIND: Kind = Kind::VIRTIO_BALLOON;
    const VERSION: u32 = 1;
    type State = BalloonState;
    type Parts = BalloonParts;

    fn save(&self) -> BalloonState {
        let Self {
            features,
            levels,
            // The transport's, and handed over when the device is activated.
            driver_features: _,
            host: _,
            // Scratch: nothing is under way between two bursts, and nobody saves in the middle of one.
            chain: _,
            list: _,
            ranges: _,
            refused: _,
            queue_sizes: _,
        } = self;
        BalloonState {
            features: *features,
            target: levels.target_pages(),
            actual: levels.actual_pages(),
        }
    }

    fn restore(state: BalloonState, parts: BalloonParts) -> Result<Self, String> {
        let BalloonState {
            features,
            target,
            actual,
        } = state;
        let possible = features::offered(true, true);
        if features & !possible != 0 {
            return Err(format!(
                "the balloon offers features {features:#x}, this build has {possible:#x}"
            ));
        }
        let BalloonParts { host, levels } = parts;
        levels.set(target, actual);
        Ok(Self {
            features,
            driver_features: 0,
            host,
            levels,
            chain: Chain::default(),
            list: Vec::new(),
            ranges: Vec::new(),
            refused: false,
            queue_sizes: [QUEUE_SIZE; QUEUES as usize],
        })
    }
}
