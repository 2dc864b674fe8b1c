//! Memory balloon (virtio 1.2, 5.5): the guest gives pages away that it can do without, and the host has them for
//! others. Pages come in two ways: the guest puts them into the balloon, which is to have a size that the VMM sets, or
//! it reports what is free at the moment, all the time and by itself.
//!
//! What is given away reads as zeros from then on, until somebody writes it: there is no difference to memory that was
//! never touched. The contents of guest memory change by that as if the device had written it, so the pages are marked,
//! like any that a device writes, and always *after* they are gone: whoever takes the mark and reads the page then
//! reads zeros. A move under way sends them once more, as zeros.
//!
//! The device does not know how memory is given back, which is [`GiveBack`]'s business.

mod features;
mod levels;
mod ranges;
mod state;

use std::io;
use std::sync::Arc;

use migration::state::{Snapshot, StateError, VmState};
use vm_memory::{GuestAddress, GuestMemoryError};

use super::chain::{self, Chain, Segment};
use super::device::{BURST_CHAINS, QueueIo, VirtioDevice};
use super::queue::QueueError;
use crate::GuestRam;
use features::{BURST_PAGES, BURST_REPORTS, MAX_PAGES, NUMBER, PAGE, Role};

pub use levels::Levels;
pub use ranges::Pages;
pub use state::{BalloonParts, BalloonState};

/// Device ID (virtio 1.2, 5).
const DEVICE_TYPE: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
/// The queues of every balloon, of which a driver uses those of the features that it accepts.
pub const QUEUES: u16 = features::QUEUES;

/// Where `num_pages` ends and `actual` begins in the configuration space (5.5.4), and where `actual` ends.
const ACTUAL: std::ops::Range<u64> = 4..8;

/// The host's side: takes memory that the guest has no use for.
pub trait GiveBack: Send {
    /// Gives `pages` of guest memory back. They are in one region of `ram` and read as zeros when it returns, until
    /// somebody writes them. They need not be marked.
    ///
    /// # Errors
    /// The host does not take them: what is in them now is uncertain, which the guest does not mind.
    fn give_back(&mut self, ram: &GuestRam, pages: &Pages) -> io::Result<()>;
}

/// The balloon.
pub struct VirtioBalloon {
    /// What is on offer.
    features: u64,
    /// What the driver took, once the device is activated.
    driver_features: u64,
    host: Box<dyn GiveBack>,
    levels: Arc<Levels>,
    chain: Chain,
    /// The list of a request, as the driver wrote it.
    list: Vec<u8>,
    ranges: Vec<Pages>,
    /// The host has refused to take pages, and that has been said.
    refused: bool,
    queue_sizes: [u16; QUEUES as usize],
}

impl VirtioBalloon {
    /// A balloon that no driver has touched, of no pages, with the target that `parts.levels` has.
    ///
    /// # Errors
    /// Those of one that arrives, of which there are none here.
    pub fn new(reporting: bool, deflate_on_oom: bool, parts: BalloonParts) -> Result<Self, String> {
        let target = parts.levels.target_pages();
        let state = BalloonState::fresh(reporting, deflate_on_oom, target);
        Self::restore(state, parts)
    }

    /// One burst on a queue: whatever is available, up to the bounds.
    fn serve(&mut self, io: &mut QueueIo<'_>, index: usize, role: Role) -> Result<(), QueueError> {
        let ram = io.ram;
        let ring = io.ring(index)?;
        let mut left = match role {
            Role::Inflate | Role::Deflate => BURST_PAGES * PAGE,
            Role::Report => BURST_REPORTS,
        };
        for _ in 0..BURST_CHAINS {
            if !ring.pop(ram, &mut self.chain)? {
                if ring.enable_notification(ram)? {
                    continue;
                }
                return Ok(());
            }
            let head = self.chain.head();
            self.parse(ram, role)?
                .map_err(|reason| QueueError::Request { head, reason })?;
            let bytes = ranges::bytes(&self.ranges);
            if role != Role::Deflate {
                self.give_away(ram)?;
            }
            match role {
                Role::Inflate => self.levels.count_inflated(bytes),
                Role::Report => self.levels.count_reported(bytes),
                Role::Deflate => {}
            }
            ring.push_used(ram, [(head, 0)])?;
            // A page that is named several times is work each time.
            let named = self.list.len() as u64 / NUMBER * PAGE;
            left = left.saturating_sub(bytes.max(named));
            if left == 0 {
                break;
            }
        }
        io.run_again(index);
        Ok(())
    }

    /// Makes ranges of what the chain names; or says what is wrong with it.
    fn parse(
        &mut self,
        ram: &GuestRam,
        role: Role,
    ) -> Result<Result<(), &'static str>, GuestMemoryError> {
        let (readable, writable) = (self.chain.readable(), self.chain.writable());
        self.list.clear();
        if role == Role::Report {
            // The pages are buffers that the device may write (5.5.6.7): it may leave zeros in them.
            return Ok(match (readable, writable) {
                ([], [_, ..]) => ranges::of_buffers(ram, writable, &mut self.ranges),
                _ => Err("it reports no pages, or pages that may not be written"),
            });
        }
        if !writable.is_empty() {
            return Ok(Err("its list of pages is one that may be written"));
        }
        let bytes = chain::bytes(readable);
        if bytes > MAX_PAGES * NUMBER {
            return Ok(Err("it names more than 16,384 pages at a time"));
        }
        self.list.resize(usize::try_from(bytes).unwrap_or(0), 0);
        chain::read(ram, readable, 0, &mut self.list)?;
        Ok(ranges::of_numbers(ram, &self.list, &mut self.ranges))
    }

    /// Gives the ranges to the host, and marks them: they are zeros now, or uncertain.
    fn give_away(&mut self, ram: &GuestRam) -> Result<(), QueueError> {
        for pages in &self.ranges {
            if let Err(error) = self.host.give_back(ram, pages)
                && !std::mem::replace(&mut self.refused, true)
            {
                tracing::warn!(
                    "the host does not take memory at {:#x} to {:#x} back that the guest has given away, and maybe no other: {error}",
                    pages.start,
                    pages.end
                );
            }
            mark(ram, pages)?;
        }
        Ok(())
    }
}

/// Marks pages as written.
fn mark(ram: &GuestRam, pages: &Pages) -> Result<(), GuestMemoryError> {
    let bytes = pages.end - pages.start;
    let segment = |len| Segment {
        addr: GuestAddress(pages.start),
        len,
    };
    // A range is of one report or list, none of which names as much as 4 GiB.
    chain::mark_dirty(
        ram,
        &[segment(u32::try_from(bytes).unwrap_or(u32::MAX))],
        bytes,
    )
}

impl VirtioDevice for VirtioBalloon {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn accepts(&self, _features: u64) -> bool {
        true
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let [a, b, c, d] = self.levels.target_pages().to_le_bytes();
        let [e, f, g, h] = self.levels.actual_pages().to_le_bytes();
        let config = [a, b, c, d, e, f, g, h];
        for (at, byte) in (offset..).zip(data) {
            let known = usize::try_from(at).ok().and_then(|at| config.get(at));
            *byte = known.copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let mut actual = self.levels.actual_pages().to_le_bytes();
        for (at, byte) in (offset..).zip(data) {
            if ACTUAL.contains(&at)
                && let Some(place) = usize::try_from(at - ACTUAL.start)
                    .ok()
                    .and_then(|at| actual.get_mut(at))
            {
                *place = *byte;
            }
        }
        self.levels.set_actual(u32::from_le_bytes(actual));
    }

    fn activate(&mut self, features: u64) -> Result<(), String> {
        self.driver_features = features;
        Ok(())
    }

    /// The driver has forgotten its balloon: what was in it is memory like any other.
    fn reset(&mut self) {
        self.driver_features = 0;
        self.levels.set_actual(0);
    }

    fn process_queue(&mut self, io: &mut QueueIo<'_>, index: usize) -> Result<(), QueueError> {
        match features::role(self.driver_features, index) {
            Some(role) => self.serve(io, index, role),
            // Of a feature that was not negotiated: there is no such queue.
            None => Ok(()),
        }
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("inflated_bytes", self.levels.inflated()),
            ("reported_bytes", self.levels.reported()),
        ]
    }

    fn save_section(&self, instance: u32, state: &mut VmState) -> Result<(), StateError> {
        state.save(instance, self)
    }
}

#[cfg(test)]
mod tests;
