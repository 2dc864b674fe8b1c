//! A descriptor chain (virtio 1.2, 2.7.5) as segments of guest memory: walked once, checked, bounded.

use std::ops::Deref;

use thiserror::Error;
use virtio_queue::DescriptorChain;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError, Permissions};

use crate::GuestRam;

/// What is wrong with a chain.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ChainError {
    /// It loops, names a descriptor that does not exist, or its table is not in memory.
    #[error("it loops or leaves its descriptor table")]
    Broken,
    /// It has more descriptors than the queue has entries (2.7.5.3.1).
    #[error("it has more than {0} descriptors")]
    TooLong(u16),
    /// A readable descriptor follows a writable one (2.7.4.2).
    #[error("a readable descriptor follows a writable one")]
    Order,
    /// A descriptor names what is not guest memory.
    #[error("a descriptor names {len:#x} bytes at {addr:#x}, which is not guest memory")]
    Address {
        /// GPA of the first byte.
        addr: u64,
        /// Length in bytes.
        len: u32,
    },
}

/// A piece of guest memory, known to exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// GPA of the first byte.
    pub addr: GuestAddress,
    /// Length in bytes, not 0.
    pub len: u32,
}

/// The buffers of a request: what the device reads, then what it writes. Reused from chain to chain.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
}

impl Chain {
    /// Index of the first descriptor: the chain's name in the used ring.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// What the driver has written for the device.
    pub fn readable(&self) -> &[Segment] {
        &self.readable
    }

    /// Where the device may write.
    pub fn writable(&self) -> &[Segment] {
        &self.writable
    }

    /// Walks `descriptors`, of which there may be `limit`, and takes the chain's segments.
    ///
    /// # Errors
    /// See [`ChainError`]; the chain is of no use then.
    pub fn fill<M>(
        &mut self,
        ram: &GuestRam,
        descriptors: DescriptorChain<M>,
        limit: u16,
    ) -> Result<(), ChainError>
    where
        M: Deref,
        M::Target: GuestMemory,
    {
        self.head = descriptors.head_index();
        self.readable.clear();
        self.writable.clear();
        // The iterator just ends where it cannot go on: a sound end is a descriptor that names no next one.
        let mut ended = false;
        for (walked, descriptor) in descriptors.enumerate() {
            if walked >= usize::from(limit) {
                return Err(ChainError::TooLong(limit));
            }
            ended = !descriptor.has_next();
            let (addr, len) = (descriptor.addr(), descriptor.len());
            if !descriptor.is_write_only() && !self.writable.is_empty() {
                return Err(ChainError::Order);
            }
            if len == 0 {
                continue;
            }
            if !in_memory(ram, addr, len) {
                return Err(ChainError::Address { addr: addr.0, len });
            }
            let side = if descriptor.is_write_only() {
                &mut self.writable
            } else {
                &mut self.readable
            };
            side.push(Segment { addr, len });
        }
        if ended {
            Ok(())
        } else {
            Err(ChainError::Broken)
        }
    }
}

fn in_memory(ram: &GuestRam, addr: GuestAddress, len: u32) -> bool {
    usize::try_from(len)
        .is_ok_and(|len| GuestMemory::check_range(ram, addr, len, Permissions::ReadWrite))
}

/// Bytes of all segments. At most 2^32, as virtio-queue ends a chain that is longer.
pub fn bytes(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.len)).sum()
}

/// The piece of each segment that lies in the first `len` bytes after the first `skip`.
pub fn pieces(segments: &[Segment], skip: u64, len: u64) -> impl Iterator<Item = Segment> + '_ {
    let mut start = 0u64;
    segments.iter().filter_map(move |segment| {
        let end = start + u64::from(segment.len);
        let (from, to) = (start.max(skip), end.min(skip.saturating_add(len)));
        let offset = from - start;
        start = end;
        let len = to.checked_sub(from).filter(|&len| len > 0)?;
        let addr = GuestAddress(segment.addr.0 + offset);
        Some(Segment {
            addr,
            len: u32::try_from(len).ok()?,
        })
    })
}

/// Copies from the segments, beginning `skip` bytes into them; the result is how many bytes there were.
///
/// # Errors
/// The memory is not there after all.
pub fn read(
    ram: &GuestRam,
    segments: &[Segment],
    skip: u64,
    into: &mut [u8],
) -> Result<usize, GuestMemoryError> {
    let mut done = 0;
    for piece in pieces(segments, skip, into.len() as u64) {
        let end = done + piece.len as usize;
        ram.read_slice(&mut into[done..end], piece.addr)?;
        done = end;
    }
    Ok(done)
}

/// Copies to the segments, beginning `skip` bytes into them, and marks the pages; the result is how many
/// bytes had room.
///
/// # Errors
/// The memory is not there after all.
pub fn write(
    ram: &GuestRam,
    segments: &[Segment],
    skip: u64,
    from: &[u8],
) -> Result<usize, GuestMemoryError> {
    let mut done = 0;
    for piece in pieces(segments, skip, from.len() as u64) {
        let end = done + piece.len as usize;
        ram.write_slice(&from[done..end], piece.addr)?;
        done = end;
    }
    Ok(done)
}

/// Marks the pages of the first `len` bytes of the segments as written. For writes that go past vm-memory;
/// always after the write, so that a page whose mark is taken has been read with the bytes in it, or is marked again.
///
/// # Errors
/// The memory is not there after all.
pub fn mark_dirty(ram: &GuestRam, segments: &[Segment], len: u64) -> Result<(), GuestMemoryError> {
    for piece in pieces(segments, 0, len) {
        for slice in
            GuestMemory::get_slices(ram, piece.addr, piece.len as usize, Permissions::Write)?
        {
            let slice = slice?;
            slice.bitmap().mark_dirty(0, slice.len());
        }
    }
    Ok(())
}

/// Adds the segments to an I/O vector for readv or writev.
///
/// # Errors
/// The memory is not there after all.
pub fn push_iovecs(
    ram: &GuestRam,
    segments: &[Segment],
    iovecs: &mut Vec<libc::iovec>,
) -> Result<(), GuestMemoryError> {
    for segment in segments {
        for slice in GuestMemory::get_slices(
            ram,
            segment.addr,
            segment.len as usize,
            Permissions::ReadWrite,
        )? {
            let slice = slice?;
            iovecs.push(libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::queue::{QueueError, Ring, RingState};
    use crate::virtio::testing::{Driver, clean, dirty, ram};

    fn walk(ram: &GuestRam, driver: &Driver) -> Result<Chain, ChainError> {
        let mut ring = Ring::restore(RingState::reset(16), 16, false, ram).unwrap();
        *ring.settings_mut().unwrap() = driver.settings(16);
        ring.enable(false, ram).unwrap();
        let mut chain = Chain::default();
        match ring.pop(ram, &mut chain) {
            Ok(true) => Ok(chain),
            Err(QueueError::Chain { error, .. }) => Err(error),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn segments_come_in_order_and_empty_ones_are_left_out() {
        let ram = ram();
        let mut driver = Driver::new(&ram, 0x1000, 16);
        driver.add(&[
            (0x8000, 10, false),
            (0x9000, 0, false),
            (0xa000, 20, true),
            (0xb000, 30, true),
        ]);
        let chain = walk(&ram, &driver).unwrap();
        assert_eq!(
            chain.readable(),
            [Segment {
                addr: GuestAddress(0x8000),
                len: 10
            }]
        );
        assert_eq!(bytes(chain.writable()), 50);
    }

    #[test]
    fn indirect_tables_are_followed_and_bounded() {
        let ram = ram();
        let mut driver = Driver::new(&ram, 0x1000, 16);
        driver.add_indirect(0x6000, &[(0x8000, 10, false), (0xa000, 20, true)]);
        let chain = walk(&ram, &driver).unwrap();
        assert_eq!((bytes(chain.readable()), bytes(chain.writable())), (10, 20));
        let long = vec![(0x8000, 1, false); 17];
        let mut driver = Driver::new(&ram, 0x1000, 16);
        driver.add_indirect(0x6000, &long);
        assert_eq!(walk(&ram, &driver).unwrap_err(), ChainError::TooLong(16));
    }

    #[test]
    fn what_is_no_chain_is_refused() {
        let ram = ram();
        let cases = [
            (
                vec![(0x8000, 8, true), (0x9000, 8, false)],
                ChainError::Order,
            ),
            (
                vec![(1 << 40, 8, true)],
                ChainError::Address {
                    addr: 1 << 40,
                    len: 8,
                },
            ),
            (
                vec![(0x8000, u32::MAX, true)],
                ChainError::Address {
                    addr: 0x8000,
                    len: u32::MAX,
                },
            ),
        ];
        for (descriptors, want) in cases {
            let mut driver = Driver::new(&ram, 0x1000, 16);
            driver.add(&descriptors);
            assert_eq!(walk(&ram, &driver).unwrap_err(), want);
        }
        let mut driver = Driver::new(&ram, 0x1000, 16);
        let head = driver.add(&[(0x8000, 8, false), (0x9000, 8, false)]);
        driver.link(head + 1, head);
        assert_eq!(
            walk(&ram, &driver).unwrap_err(),
            ChainError::Broken,
            "a loop"
        );
        driver.link(head + 1, 999);
        assert_eq!(
            walk(&ram, &driver).unwrap_err(),
            ChainError::Broken,
            "outside of the table"
        );
    }

    #[test]
    fn copies_cross_segments_and_stop_at_their_end() {
        let ram = ram();
        let segments = [(0x8ffe, 4), (0xa000, 4)].map(|(addr, len)| Segment {
            addr: GuestAddress(addr),
            len,
        });
        assert_eq!(write(&ram, &segments, 2, b"abcdefgh").unwrap(), 6);
        let mut data = [0; 16];
        assert_eq!(read(&ram, &segments, 0, &mut data).unwrap(), 8);
        assert_eq!(&data[..8], b"\0\0abcdef");
        assert_eq!(read(&ram, &segments, 7, &mut data).unwrap(), 1);
        assert_eq!(read(&ram, &segments, 8, &mut data).unwrap(), 0);
    }

    #[test]
    fn marks_cover_every_page_of_the_bytes_and_no_other() {
        let ram = ram();
        let segments = [(0x8ffe, 4), (0xa000, 0x3000), (0x1_0000, 8)].map(|(addr, len)| Segment {
            addr: GuestAddress(addr),
            len,
        });
        clean(&ram);
        mark_dirty(&ram, &segments, 4 + 0x1001).unwrap();
        for (page, want) in [
            (0x8000, true),
            (0x9000, true),
            (0xa000, true),
            (0xb000, true),
            (0xc000, false),
            (0x1_0000, false),
        ] {
            assert_eq!(dirty(&ram, page), want, "{page:#x}");
        }
    }
}
