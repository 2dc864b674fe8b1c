//! Frames to the guest: read from the backend straight into guest memory (virtio 1.2, 5.1.6.3, 5.1.6.4).
//!
//! How long the next frame is shows only when it has been read. So as many buffers are taken as the longest frame of
//! late has needed, and a piece of our own memory behind them catches what does not fit. Such a frame is held, and goes
//! to the guest by more buffers, if need be when that has made them available; it moves with the guest.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;

use super::backend::{HEADER, Iovecs, MAX_FRAME};
use crate::GuestRam;
use crate::virtio::chain::{self, Chain};
use crate::virtio::device::{BURST_BYTES, BURST_CHAINS, QueueIo};
use crate::virtio::queue::{QueueError, Ring};

/// Where `num_buffers` is in the header.
const NUM_BUFFERS: u64 = 10;
/// Room for a frame without segmentation, and its header: at least so much is taken.
const USUAL: u64 = 2048;
/// With every frame what is expected of the next falls by this part. Segmented frames of one flow come with short ones
/// of others in between, and a long one that was not expected costs two copies; taking twenty buffers for a short one
/// costs their lookup.
const FADING: u64 = 64;
/// The most segments taken for one frame; below IOV_MAX (1024), also if some lie across two memory regions.
const MAX_SEGMENTS: usize = 500;
/// Bytes of what catches the end of a frame: more than any tap gives at once, even behind an empty buffer.
const MAX_OVERFLOW: usize = 68 << 10;
/// The most bytes of a held frame: an overflow behind buffers that hold less than the longest frame.
pub const MAX_HELD: usize = MAX_OVERFLOW + MAX_FRAME;

/// How frames reach the guest.
#[derive(Debug, Clone, Copy)]
pub struct Delivery {
    /// Where they come from.
    pub fd: RawFd,
    /// Whether one may fill several buffers (MRG_RXBUF).
    pub mergeable: bool,
    /// How long one is at most, with its header, as far as is known; longer ones come through more slowly.
    pub longest: usize,
}

impl Delivery {
    /// Before a driver has said which features it takes.
    pub fn nothing_known(fd: RawFd) -> Self {
        Self {
            fd,
            mergeable: false,
            longest: MAX_FRAME,
        }
    }
}

/// The receive half of a queue pair.
#[derive(Debug, Default)]
pub struct Rx {
    /// Buffers taken in this burst; those not used are given back at its end.
    taken: VecDeque<Chain>,
    /// Their bytes.
    room: u64,
    segments: usize,
    /// Into how many pieces of an I/O vector each was put; not yet for the last ones.
    pieces: VecDeque<usize>,
    /// About how long the longest frame of late was.
    likely: u64,
    /// Scratch: chains to reuse, entries for the used ring, the end of a long frame.
    spare: Vec<Chain>,
    used: Vec<(u16, u32)>,
    overflow: Vec<u8>,
    /// A frame with its header that had no room yet; empty for none.
    held: Vec<u8>,
    /// Frames handed to the guest.
    pub frames: u64,
    /// Their bytes, without the virtio header.
    pub bytes: u64,
    /// Frames that were none, or for which the guest will never have room.
    pub dropped: u64,
    failed: bool,
}

/// What came of an attempt to hand over one frame.
enum Step {
    /// A frame of so many bytes was taken from the backend or handed over.
    Done(u64),
    /// There is no frame, or no buffer; an event will say when there is.
    Wait,
}

impl Rx {
    /// With a frame that is still to be handed over; empty for none.
    ///
    /// # Errors
    /// No frame is so long or so short.
    pub fn restore(held: Vec<u8>) -> Result<Self, String> {
        if !held.is_empty() && !(HEADER..=MAX_HELD).contains(&held.len()) {
            return Err(format!("a held frame of {} bytes", held.len()));
        }
        Ok(Self {
            held,
            ..Self::default()
        })
    }

    /// The frame that is still to be handed over; empty for none.
    pub fn held(&self) -> &[u8] {
        &self.held
    }

    /// Forgets what is held: the guest has reset the device.
    pub fn reset(&mut self) {
        self.held.clear();
    }

    /// Hands frames to the guest, one burst of them.
    ///
    /// # Errors
    /// The ring is corrupt.
    pub fn process(
        &mut self,
        io: &mut QueueIo<'_>,
        index: usize,
        how: Delivery,
    ) -> Result<(), QueueError> {
        let ram = io.ram;
        let ring = io.ring(index)?;
        let more = self.burst(ram, ring, how);
        self.give_back(ring);
        if more? {
            io.run_again(index);
        }
        Ok(())
    }

    /// `true` when the burst ended before the frames did.
    fn burst(
        &mut self,
        ram: &GuestRam,
        ring: &mut Ring,
        how: Delivery,
    ) -> Result<bool, QueueError> {
        let mut iovecs = Iovecs::new(ram);
        let mut bytes = 0;
        ring.disable_notification(ram)?;
        for _ in 0..BURST_CHAINS {
            if bytes >= BURST_BYTES {
                break;
            }
            let step = if self.held.is_empty() {
                self.receive(ram, ring, how, &mut iovecs)?
            } else {
                // It takes any of the buffers.
                self.pieces.clear();
                iovecs.clear();
                self.hand_over_held(ram, ring, how)?
            };
            match step {
                Step::Done(frame) => bytes += frame,
                Step::Wait => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Takes buffers until they have room for `bytes`, or there are no more.
    fn take(
        &mut self,
        ram: &GuestRam,
        ring: &mut Ring,
        bytes: u64,
        mergeable: bool,
    ) -> Result<(), QueueError> {
        while self.room < bytes
            && self.segments < MAX_SEGMENTS
            && (mergeable || self.taken.is_empty())
        {
            let mut chain = self.spare.pop().unwrap_or_default();
            if !ring.pop(ram, &mut chain)? {
                self.spare.push(chain);
                break;
            }
            let room = chain::bytes(chain.writable());
            if room < HEADER as u64 {
                let reason = "a receive buffer is shorter than the header";
                return Err(QueueError::Request {
                    head: chain.head(),
                    reason,
                });
            }
            self.room += room;
            self.segments += chain.writable().len();
            self.taken.push_back(chain);
        }
        Ok(())
    }

    fn give_back(&mut self, ring: &mut Ring) {
        // At most MAX_SEGMENTS of them.
        ring.unpop(u16::try_from(self.taken.len()).unwrap_or(u16::MAX));
        self.spare.extend(self.taken.drain(..));
        (self.room, self.segments) = (0, 0);
        self.pieces.clear();
    }

    /// Asks for a notification of the next buffer; goes on at once if there is one already.
    fn wait_for_buffers(ram: &GuestRam, ring: &mut Ring) -> Result<Step, QueueError> {
        Ok(if ring.enable_notification(ram)? {
            Step::Done(0)
        } else {
            Step::Wait
        })
    }

    /// Reads one frame.
    fn receive(
        &mut self,
        ram: &GuestRam,
        ring: &mut Ring,
        how: Delivery,
        iovecs: &mut Iovecs<'_>,
    ) -> Result<Step, QueueError> {
        let expected = self.likely.max(USUAL).min(how.longest as u64);
        self.take(ram, ring, expected, how.mergeable)?;
        if self.taken.is_empty() {
            return Self::wait_for_buffers(ram, ring);
        }
        for chain in self.taken.iter().skip(self.pieces.len()) {
            self.pieces.push_back(iovecs.push(chain.writable())?);
        }
        self.overflow.resize(MAX_OVERFLOW, 0);
        let read = match iovecs.read(how.fd, &mut self.overflow) {
            Ok(0) => return Ok(Step::Wait),
            Ok(read) => read as u64,
            Err(error) => return self.no_frame(ram, &error),
        };
        self.mark_dirty(ram, read)?;
        self.likely = read.max(self.likely - self.likely / FADING);
        if read < HEADER as u64 {
            self.drop_frame("it is shorter than its header");
        } else if read <= self.room {
            let buffers = self.hand_over(ram, ring, read)?;
            iovecs.remove_first(self.pieces.drain(..buffers).sum());
        } else {
            self.hold(ram, read)?;
        }
        Ok(Step::Done(read))
    }

    fn no_frame(&mut self, ram: &GuestRam, error: &io::Error) -> Result<Step, QueueError> {
        if error.kind() != io::ErrorKind::WouldBlock {
            // How much was written before it failed, nobody says.
            self.mark_dirty(ram, u64::MAX)?;
            if !std::mem::replace(&mut self.failed, true) {
                tracing::warn!("no frames can be read for the guest: {error}");
            }
        }
        Ok(Step::Wait)
    }

    /// Marks the pages of the first `bytes` bytes of the buffers taken: readv went past vm-memory.
    fn mark_dirty(&self, ram: &GuestRam, mut bytes: u64) -> Result<(), QueueError> {
        for chain in &self.taken {
            chain::mark_dirty(ram, chain.writable(), bytes)?;
            bytes = bytes.saturating_sub(chain::bytes(chain.writable()));
        }
        Ok(())
    }

    /// Gives the first buffers taken, with a frame of `bytes` bytes in them, to the guest.
    /// The result is how many that were.
    fn hand_over(
        &mut self,
        ram: &GuestRam,
        ring: &mut Ring,
        bytes: u64,
    ) -> Result<usize, QueueError> {
        let mut left = bytes;
        self.used.clear();
        for chain in &self.taken {
            let filled = left.min(chain::bytes(chain.writable()));
            // Not truncated: a frame is shorter than 2^32.
            self.used
                .push((chain.head(), u32::try_from(filled).unwrap_or(u32::MAX)));
            left -= filled;
            if left == 0 {
                break;
            }
        }
        // Each buffer takes at least the length of a header, so there are far fewer than 2^16.
        let buffers = u16::try_from(self.used.len()).unwrap_or(u16::MAX);
        if let Some(first) = self.taken.front() {
            chain::write(ram, first.writable(), NUM_BUFFERS, &buffers.to_le_bytes())?;
        }
        ring.push_used(ram, self.used.iter().copied())?;
        for chain in self.taken.drain(..self.used.len()) {
            self.room -= chain::bytes(chain.writable());
            self.segments -= chain.writable().len();
            self.spare.push(chain);
        }
        self.frames += 1;
        self.bytes += bytes.saturating_sub(HEADER as u64);
        Ok(self.used.len())
    }

    /// Keeps a frame that filled all buffers taken and went on in the overflow.
    fn hold(&mut self, ram: &GuestRam, bytes: u64) -> Result<(), QueueError> {
        for chain in &self.taken {
            let start = self.held.len();
            let room = chain::bytes(chain.writable());
            // Not more than the frame, which is in memory: it was just read.
            self.held
                .resize(start + usize::try_from(room).unwrap_or(0), 0);
            chain::read(ram, chain.writable(), 0, &mut self.held[start..])?;
        }
        let rest = usize::try_from(bytes - self.room).unwrap_or(0);
        self.held
            .extend_from_slice(&self.overflow[..rest.min(self.overflow.len())]);
        Ok(())
    }

    fn hand_over_held(
        &mut self,
        ram: &GuestRam,
        ring: &mut Ring,
        how: Delivery,
    ) -> Result<Step, QueueError> {
        let bytes = self.held.len() as u64;
        self.take(ram, ring, bytes, how.mergeable)?;
        if self.room >= bytes {
            let mut done = 0;
            for chain in &self.taken {
                done += chain::write(ram, chain.writable(), 0, &self.held[done..])?;
            }
            self.hand_over(ram, ring, bytes)?;
            self.held.clear();
            return Ok(Step::Done(bytes));
        }
        // A guest that has given all it can give, or only one buffer a frame, will never have room.
        let all = if how.mergeable {
            usize::from(ring.size())
        } else {
            1
        };
        if self.taken.len() >= all || self.segments >= MAX_SEGMENTS {
            self.drop_frame("the guest's buffers have no room for it");
            self.held.clear();
            return Ok(Step::Done(bytes));
        }
        Self::wait_for_buffers(ram, ring)
    }

    /// Said the first time only.
    fn drop_frame(&mut self, why: &str) {
        if self.dropped == 0 {
            tracing::warn!("a frame to the guest is dropped: {why}; later ones are only counted");
        }
        self.dropped += 1;
    }
}
