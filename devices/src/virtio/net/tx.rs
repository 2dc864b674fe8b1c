//! Frames from the guest: written to the backend straight out of guest memory (virtio 1.2, 5.1.6.2).

use std::io;
use std::os::fd::RawFd;

use super::backend::{self, HEADER, Iovecs, MAX_FRAME};
use crate::virtio::chain::{self, Chain};
use crate::virtio::device::{BURST_BYTES, QueueIo};
use crate::virtio::queue::QueueError;

/// The most frames of a burst. Whoever takes them, on the same processor, gets it only between two bursts; a socket
/// that holds 64 KiB takes some fifty datagrams of 1,500 bytes meanwhile, and what comes on top of that is lost.
const BURST_FRAMES: usize = 32;

/// The transmit half of a queue pair.
#[derive(Debug, Default)]
pub struct Tx {
    /// Scratch: empty between two bursts.
    chain: Chain,
    /// The backend took no more; it goes on when the backend is writable.
    blocked: bool,
    /// Frames sent.
    pub frames: u64,
    /// Their bytes, without the virtio header.
    pub bytes: u64,
    /// Frames that the backend refused or that are none.
    pub dropped: u64,
}

impl Tx {
    /// Whether there are frames that the backend had no room for.
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Sends what the guest has queued, one burst of it.
    ///
    /// # Errors
    /// The ring is corrupt.
    pub fn process(
        &mut self,
        io: &mut QueueIo<'_>,
        index: usize,
        fd: RawFd,
    ) -> Result<(), QueueError> {
        let ram = io.ram;
        let mut iovecs = Iovecs::new(ram);
        let ring = io.ring(index)?;
        let mut bytes = 0;
        self.blocked = false;
        ring.disable_notification(ram)?;
        for _ in 0..BURST_FRAMES {
            if bytes >= BURST_BYTES {
                break;
            }
            if !ring.pop(ram, &mut self.chain)? {
                if ring.enable_notification(ram)? {
                    continue;
                }
                return Ok(());
            }
            if !self.send(&mut iovecs, fd)? {
                ring.unpop(1);
                self.blocked = true;
                // A tap that refuses a frame tells nobody when it has room again, unless it is asked first; what was
                // known of it before was edge-triggered. It may have room by now.
                if backend::has_room(fd) {
                    io.run_again(index);
                }
                return Ok(());
            }
            bytes += chain::bytes(self.chain.readable());
            ring.push_used(ram, [(self.chain.head(), 0)])?;
        }
        io.run_again(index);
        Ok(())
    }

    /// Sends the frame in `self.chain`; `false` when the backend has no room for it now. What is no frame, and what
    /// the backend will never take, is dropped, as by any network card.
    fn send(&mut self, iovecs: &mut Iovecs<'_>, fd: RawFd) -> Result<bool, QueueError> {
        let segments = self.chain.readable();
        let sane = HEADER as u64..=MAX_FRAME as u64;
        let bytes = chain::bytes(segments);
        if !sane.contains(&bytes) {
            self.drop_frame("its length is that of no frame");
            return Ok(true);
        }
        iovecs.clear();
        iovecs.push(segments)?;
        match iovecs.write(fd) {
            Ok(_) => {
                self.frames += 1;
                self.bytes += bytes - HEADER as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => self.drop_frame(&error.to_string()),
        }
        Ok(true)
    }

    /// Said the first time only: a guest must not be able to fill the log.
    fn drop_frame(&mut self, why: &str) {
        if self.dropped == 0 {
            tracing::warn!("a frame from the guest is dropped: {why}; later ones are only counted");
        }
        self.dropped += 1;
    }
}
