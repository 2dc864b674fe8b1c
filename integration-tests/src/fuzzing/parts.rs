//! What devices are assembled from here: eventfds that nobody waits for, and output that goes nowhere.

use std::sync::Arc;

use devices::serial::SerialParts;
use devices::virtio::block::{DiskOptions, disk::Disk};
use devices::virtio::{MmioParts, VirtioDevice};
use migration::guest::GuestRam;
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
        irq: Box::new(eventfd()),
        queue_events: device.queue_sizes().iter().map(|_| eventfd()).collect(),
        page: Arc::default(),
        device,
    }
}
