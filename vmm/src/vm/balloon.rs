//! A guest's balloon as the VMM works it: how large it is to be, and what becomes of the pages that come out of it.

use std::io;
use std::sync::{Arc, Mutex};

use devices::virtio::VirtioMmio;
use devices::virtio::balloon::{GiveBack, Levels, Pages};
use migration::guest::GuestRam;

use super::io_thread::lock;
use crate::memory::{self, Filled};

/// This host, which takes what a guest gives away.
#[derive(Debug)]
pub struct Host {
    /// What it is told of, so that it is not filled again.
    pub filled: Filled,
}

impl GiveBack for Host {
    fn give_back(&mut self, ram: &GuestRam, pages: &Pages) -> io::Result<()> {
        self.filled.give_up(ram, pages);
        memory::release(ram, pages)
    }
}

/// A handle to the balloon, for whoever sets its size and asks how far it is.
#[derive(Clone)]
pub struct Balloon {
    levels: Arc<Levels>,
    device: Arc<Mutex<VirtioMmio>>,
}

impl Balloon {
    /// The balloon that is this device.
    pub fn new(levels: Arc<Levels>, device: Arc<Mutex<VirtioMmio>>) -> Self {
        Self { levels, device }
    }

    /// Wants it to be of so many bytes, whole pages of them, and tells the driver. To be called while the guest runs
    /// and is not moved: a target that comes after the state is saved stays behind. `false` where no balloon is that
    /// large.
    pub fn resize(&self, bytes: u64) -> bool {
        let possible = self.levels.want(bytes);
        if possible {
            lock(&self.device).config_changed();
        }
        possible
    }

    /// How large it is to be, how large it is, and what has come back.
    pub fn levels(&self) -> &Levels {
        &self.levels
    }

    /// Whether the guest has a driver for it that works.
    pub fn is_driven(&self) -> bool {
        lock(&self.device).is_active()
    }
}
