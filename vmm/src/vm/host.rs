//! The destination's part in preparing a move: looks at what the source describes and makes the blank VM.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use devices::virtio::block::disk::Disk;
use devices::virtio::net::Tap;
use kvm_ioctls::Kvm;
use migration::guest::{Description, GuestError, Host};
use vm_memory::MmapRegion;
use vmm_sys_util::eventfd::EventFd;

use super::blank::{BlankVm, Making};
use super::log::LogChoice;
use super::room::Gauges;
use super::shape::{CardShape, DiskShape, Shape, SlotKind};
use super::slot::Backend;
use crate::memory::{Backing, Filled, Prefaulted};
use crate::units::Size;
use crate::vcpu::EventSender;

/// What this host has for one incoming guest.
pub struct LocalParts {
    /// Where the serial port writes.
    pub serial_out: Box<dyn Write + Send>,
    /// Signalled when the serial port has room for input again.
    pub serial_room: EventFd,
    /// Where vCPUs say what happened.
    pub events: EventSender,
}

/// Makes the parts anew for each attempt: a failed move takes them along.
pub type MakeParts<'a> = dyn FnMut() -> Result<LocalParts, GuestError> + 'a;
/// Gives the tap of the guest's nth network card, counted from 0, which is such a card.
pub type OpenTap<'a> = dyn FnMut(u32, &CardShape) -> Result<Tap, GuestError> + 'a;

/// Gives the guest's nth disk, counted from 0.
pub type OpenDisk<'a> = dyn FnMut(u32) -> Result<Arc<Disk>, GuestError> + 'a;

/// The host of an incoming guest.
pub struct ReceivingHost<'a> {
    /// /dev/kvm.
    pub kvm: &'a Kvm,
    /// The most memory that a guest may have here, in bytes.
    pub max_memory: u64,
    /// How much there is.
    pub gauges: &'a Gauges,
    /// Memory that is there already; the guest that comes takes it along.
    pub prefaulted: &'a mut Option<Prefaulted>,
    /// Its memory is taken from the huge pages that this host has set aside.
    pub huge_pages: bool,
    /// What of its memory need not be filled any more, where that is filled while it runs.
    pub filled: Filled,
    /// How its written pages are found when it is moved on.
    pub log: LogChoice,
    /// The guest's time goes on where it was saved, however long ago: it comes out of a snapshot.
    pub rewound: bool,
    /// See [`MakeParts`].
    pub make_parts: &'a mut MakeParts<'a>,
    /// See [`OpenTap`].
    pub open_tap: &'a mut OpenTap<'a>,
    /// See [`OpenDisk`].
    pub open_disk: &'a mut OpenDisk<'a>,
}

impl Host for ReceivingHost<'_> {
    type Blank = BlankVm;

    fn prepare(
        &mut self,
        description: &Description,
        memory: Option<Vec<File>>,
    ) -> Result<BlankVm, GuestError> {
        let bytes = description.layout.bytes();
        if bytes > self.max_memory {
            return Err(GuestError::bare(format!(
                "the guest has {} of memory, this receiver accepts at most {}: start it with a larger --max-memory",
                Size(bytes),
                Size(self.max_memory)
            )));
        }
        // Memory that comes by descriptor is there already, and what is set aside is no part of what this looks at.
        if memory.is_none() && !self.huge_pages {
            let ready = self.prefaulted.as_ref().map_or(0, Prefaulted::bytes);
            self.gauges.check(bytes.saturating_sub(ready))?;
        }
        let shape = Shape::from_description(description, self.kvm)?;
        let (mut card, mut number) = (0, 0);
        let mut backends = Vec::new();
        for kind in &shape.slots {
            backends.push(match kind {
                SlotKind::Rng => Backend::Rng,
                // Target and features arrive with its state.
                SlotKind::Balloon => Backend::Balloon {
                    levels: Arc::default(),
                    reporting: false,
                    deflate_on_oom: false,
                    filled: self.filled.clone(),
                },
                SlotKind::Net(shape) => {
                    let tap = (self.open_tap)(card, shape)?;
                    card += 1;
                    // The address arrives with the card's state.
                    Backend::Net {
                        tap,
                        shape: *shape,
                        mac: [0; 6],
                    }
                }
                SlotKind::Block(shape) => {
                    let disk = (self.open_disk)(number)?;
                    compare(number, shape, &disk)?;
                    number += 1;
                    Backend::Block {
                        disk,
                        shape: *shape,
                        number: number - 1,
                    }
                }
            });
        }
        let parts = (self.make_parts)()?;
        let backing = match (memory, self.prefaulted.take()) {
            (Some(files), _) => Backing::Files(files),
            (None, Some(ready)) => Backing::Prefaulted(ready),
            (None, None) if self.huge_pages => Backing::HugePages,
            (None, None) => Backing::Anonymous,
        };
        let blank = BlankVm::new(
            self.kvm,
            shape,
            Making {
                backing,
                serial_out: parts.serial_out,
                serial_room: parts.serial_room,
                backends,
                events: parts.events,
                log: self.log,
            },
        )?;
        Ok(match self.rewound {
            true => blank.rewound(),
            false => blank,
        })
    }

    fn ready(&mut self, most: usize) -> Option<&MmapRegion> {
        self.prefaulted.as_mut().map(|ready| ready.lend(most))
    }
}

/// Whether what this host has for a disk can be the guest's: of what is in it nothing is known.
fn compare(number: u32, guest: &DiskShape, here: &Disk) -> Result<(), GuestError> {
    let path = here.path().display();
    let refuse = |what: String| {
        Err(GuestError::bare(format!(
            "the guest's disk {number} {what}: name the guest's own disk as this host reaches it (--disk {number}=PATH)"
        )))
    };
    let access = |read_only| if read_only { "read-only" } else { "writable" };
    if guest.bytes != here.bytes() {
        return refuse(format!(
            "has {} bytes, {path} here has {}",
            guest.bytes,
            here.bytes()
        ));
    }
    if guest.read_only != here.read_only() {
        return refuse(format!(
            "is {}, {path} here is {}",
            access(guest.read_only),
            access(here.read_only())
        ));
    }
    if guest.block_size < here.alignment() {
        return refuse(format!(
            "has blocks of {} bytes, {path} with direct=on has blocks of {}; without direct=on it can be used",
            guest.block_size,
            here.alignment()
        ));
    }
    Ok(())
}
