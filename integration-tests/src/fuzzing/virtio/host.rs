//! The host of a balloon: takes pages as the kernel does, and remembers which.

use std::io;
use std::sync::{Arc, Mutex};

use devices::virtio::balloon::{BalloonParts, GiveBack, Pages};
use migration::guest::GuestRam;
use vm_memory::{GuestAddress, GuestMemoryBackend};

/// Clones are the same host.
#[derive(Clone, Default)]
pub struct Host(Arc<Mutex<Vec<Pages>>>);

impl Host {
    pub fn forget(&self) {
        self.0.lock().unwrap().clear();
    }

    /// What was given since.
    pub fn given(&self) -> Vec<Pages> {
        self.0.lock().unwrap().clone()
    }
}

impl GiveBack for Host {
    /// By the kernel's own means, which tell nobody: whether the pages are marked is the device's business.
    fn give_back(&mut self, ram: &GuestRam, pages: &Pages) -> io::Result<()> {
        let bytes = pages.end.checked_sub(pages.start).unwrap();
        assert!(
            bytes > 0 && (pages.start | bytes).is_multiple_of(4096),
            "{pages:x?}"
        );
        assert!(
            ram.find_region(GuestAddress(pages.start)).is_some(),
            "{pages:x?}"
        );
        vmm::memory::release(ram, pages).unwrap_or_else(|error| panic!("{pages:x?}: {error}"));
        self.0.lock().unwrap().push(pages.clone());
        Ok(())
    }
}

/// For a balloon of which nobody looks at what it gives.
pub fn balloon_parts() -> BalloonParts {
    BalloonParts {
        host: Box::new(Host::default()),
        levels: Arc::default(),
    }
}
