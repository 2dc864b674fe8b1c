//! What devices are assembled from here: eventfds that nobody waits for, and output that goes nowhere.

use std::sync::{Arc, Mutex};

use devices::pci::msix::MessageSink;
use devices::serial::SerialParts;
use devices::virtio::block::{DiskOptions, disk::Disk};
use devices::virtio::pci::Vectors;
use devices::virtio::{MmioParts, PciParts, VirtioDevice, VirtioMmio};
use migration::guest::GuestRam;
use vmm::layout;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub fn eventfd() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

pub fn serial() -> SerialParts {
    SerialParts {
        irq: Box::new(eventfd()),
        out: Box::new(std::io::sink()),
        room: eventfd(),
    }
}

/// A disk of 64 KiB that nobody else sees.
pub fn disk() -> Disk {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![0xd5; 64 << 10]).unwrap();
    Disk::open(file.path(), DiskOptions::default()).unwrap()
}

pub fn mmio(ram: &GuestRam, device: Box<dyn VirtioDevice>) -> MmioParts {
    MmioParts {
        ram: ram.clone(),
        interrupts: Box::new(eventfd()),
        queue_events: device.queue_sizes().iter().map(|_| eventfd()).collect(),
        page: Arc::default(),
        device,
    }
}

/// Messages go nowhere.
struct Silence;

impl MessageSink for Silence {
    fn send(&self, _: u64, _: u32) {}
}

/// A PCI function in slot 2, in front of a device that nobody has touched.
pub fn pci(mut core: MmioParts) -> PciParts {
    let vectors = Vectors::new(core.queue_events.len(), Box::new(Silence)).unwrap();
    let vectors = Arc::new(vectors);
    core.interrupts = Box::new(vectors.clone());
    PciParts {
        core: Arc::new(Mutex::new(VirtioMmio::new(core).unwrap())),
        vectors,
        base: u32::try_from(layout::bar_address(2)).unwrap(),
    }
}
