//! Where the initramfs lies: as high as the kernel takes it, so that it is out of the way of the kernel that
//! unpacks itself from below.

use migration::guest::GuestRam;
use migration::pages::PAGE_SIZE;

use super::BootError;
use super::image::Image;

/// An initramfs with its place.
#[derive(Debug)]
pub(super) struct Initramfs {
    image: Image,
    start: u64,
}

impl Initramfs {
    /// Finds the highest page-aligned place between the end of the kernel and `limit` or the end of low RAM,
    /// whichever is lower.
    pub(super) fn place(
        image: Image,
        kernel_end: u64,
        limit: u64,
        low_end: u64,
    ) -> Result<Self, BootError> {
        let bytes = image.bytes();
        let first = kernel_end.next_multiple_of(PAGE_SIZE);
        let start = limit
            .min(low_end)
            .checked_sub(bytes)
            .map(|start| start / PAGE_SIZE * PAGE_SIZE)
            .filter(|&start| start >= first);
        match start {
            Some(start) => Ok(Self { image, start }),
            None if limit <= low_end => Err(BootError::InitramfsTooLarge {
                path: image.path().to_owned(),
                bytes,
                start: first,
                end: limit,
            }),
            None => {
                let end = first.saturating_add(bytes);
                Err(BootError::memory(end, low_end, bytes))
            }
        }
    }

    /// Guest-physical address of its first byte.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// Its size in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.image.bytes()
    }

    /// Reads it into guest memory.
    pub(super) fn load(&self, ram: &GuestRam) -> Result<(), BootError> {
        self.image.load(ram, 0, self.start, self.image.bytes())
    }
}
