//! The guest's half: its memory, what it has made writable, and the network beyond its card.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use devices::bus::BusDevice;
use devices::virtio::net::{NetBackend, Offloads};
use devices::virtio::{MmioState, VirtioMmio};
use migration::guest::GuestRam;
use migration::pages::PageSet;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use virtio_bindings::virtio_mmio as reg;
use vm_memory::mmap::MmapRegion;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::SIZE;

/// Where memory lies: little, so that all of it can be compared around every call.
const REGIONS: [(u64, usize); 2] = [(0, 128 << 10), (1 << 32, 64 << 10)];
/// Queue n has its descriptors, its available ring and its used ring in the three pages from here + n * 0x3000 on.
const QUEUES: u64 = 0x1000;
/// Here is room for buffers.
pub const BUFFERS: u64 = 0x1_0000;

const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

const PAGE: usize = 4096;
pub type Ranges = Vec<Range<u64>>;

/// The descriptor table of a queue.
pub fn table(queue: u8) -> u64 {
    QUEUES + u64::from(queue) * 0x3000
}

fn available(queue: u8) -> u64 {
    table(queue) + 0x1000
}

fn used(queue: u8) -> u64 {
    table(queue) + 0x2000
}

/// An address, interesting in most cases: among the buffers, in the rings, at the borders of memory, anywhere.
pub fn address(place: u8, at: u32) -> u64 {
    let at = u64::from(at);
    match place % 8 {
        0..3 => BUFFERS + at % 0x1_0000,
        3 => QUEUES + at % 0x9000,
        4 => (1 << 32) + at % 0x1_0000,
        5 => 0x2_0000 - at % 64,
        6 => at,
        _ => u64::MAX - at,
    }
}

/// The guest's memory.
pub struct Guest {
    pub ram: GuestRam,
    /// What was in it when it was last looked at, and what the guest has written since.
    seen: RefCell<[Vec<u8>; 2]>,
}

impl Guest {
    pub fn new() -> Self {
        let ranges = REGIONS.map(|(start, len)| (GuestAddress(start), len));
        Self {
            ram: GuestRam::from_ranges(&ranges).unwrap(),
            seen: RefCell::new(REGIONS.map(|(_, len)| vec![0; len])),
        }
    }

    /// Writes, as far as there is memory.
    pub fn write(&self, gpa: u64, bytes: &[u8]) {
        let Ok(written) = self.ram.write(bytes, GuestAddress(gpa)) else {
            return;
        };
        for ((start, len), seen) in REGIONS.into_iter().zip(&mut *self.seen.borrow_mut()) {
            let at = gpa
                .checked_sub(start)
                .and_then(|at| usize::try_from(at).ok());
            if let Some(at) = at.filter(|at| *at < len) {
                seen[at..at + written].copy_from_slice(&bytes[..written]);
            }
        }
    }

    fn read<const N: usize>(&self, gpa: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.ram.read_slice(&mut bytes, GuestAddress(gpa)).ok()?;
        Some(bytes)
    }

    pub fn descriptor(&self, table: u64, index: u8, (addr, len, flags, next): (u64, u32, u8, u8)) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        (bytes[12], bytes[14]) = (flags, next);
        self.write(table + u64::from(index) * 16, &bytes);
    }

    pub fn head(&self, queue: u8, slot: u8, head: u16) {
        let at = available(queue) + 4 + u64::from(slot) * 2;
        self.write(at, &head.to_le_bytes());
    }

    pub fn available(&self, queue: u8, index: u16) {
        self.write(available(queue) + 2, &index.to_le_bytes());
    }

    /// The addresses of a queue's three parts, which are all zeros from now on.
    pub fn ring(&self, queue: u8) -> [u64; 3] {
        [table(queue), available(queue), used(queue)]
    }

    pub fn forget(&self, queue: u8) {
        self.write(table(queue), &[0; 0x3000]);
    }

    /// Every byte that somebody else has written since the last call.
    pub fn changed(&self) -> Vec<u64> {
        let (mut changed, mut page) = (Vec::new(), [0; PAGE]);
        for ((start, _), seen) in REGIONS.into_iter().zip(&mut *self.seen.borrow_mut()) {
            for (gpa, seen) in (start..).step_by(PAGE).zip(seen.chunks_mut(PAGE)) {
                self.ram.read_slice(&mut page, GuestAddress(gpa)).unwrap();
                if *seen != page {
                    let bytes = (gpa..).zip(seen.iter().zip(&page));
                    changed.extend(
                        bytes
                            .filter(|(_, (old, new))| old != new)
                            .map(|(gpa, _)| gpa),
                    );
                    seen.copy_from_slice(&page);
                }
            }
        }
        changed
    }

    /// Takes all marks off, and tells which page had one.
    pub fn take_marks(&self) -> impl Fn(u64) -> bool + use<> {
        let mut first = 0;
        let pages = REGIONS.map(|(_, len)| len as u64 / 4096);
        let mut marked = PageSet::empty(pages.iter().sum());
        for (region, pages) in self.ram.iter().zip(pages) {
            MmapRegion::bitmap(region).take(first, &mut marked);
            first += pages;
        }
        move |gpa| {
            let page = match gpa.checked_sub(REGIONS[1].0) {
                Some(high) => pages[0] + high / 4096,
                None => gpa / 4096,
            };
            marked.contains(page)
        }
    }

    /// Where the device may write now: buffers that are marked so, and the used rings. `None` where one of these
    /// lies over a table or a ring: then a write of the device may make others writable.
    pub fn writable(&self, state: &MmioState) -> Option<Ranges> {
        let (mut writable, mut tables) = (Ranges::new(), Ranges::new());
        for queue in state.queues.iter().filter(|queue| queue.ready) {
            let size = u64::from(queue.size);
            tables.push(range(queue.avail_ring, 6 + 2 * size));
            let used = range(queue.used_ring, 6 + 8 * size);
            self.read_table(queue.desc_table, size, &mut tables, &mut writable, true);
            // Two used rings over each other are the guest's own affair, a used ring over a table is too much.
            writable.push(used);
        }
        let over = |a: &Range<u64>, b: &Range<u64>| a.start < b.end && b.start < a.end;
        let clear = writable
            .iter()
            .all(|w| !tables.iter().any(|table| over(w, table)));
        clear.then_some(writable)
    }

    fn read_table(
        &self,
        table: u64,
        entries: u64,
        tables: &mut Ranges,
        writable: &mut Ranges,
        indirect: bool,
    ) {
        tables.push(range(table, entries * 16));
        for index in 0..entries {
            let Some(bytes) = self.read::<16>(table.wrapping_add(index * 16)) else {
                return;
            };
            let addr = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            let len = u32::from_le_bytes(bytes[8..12].try_into().unwrap());
            let flags = u16::from_le_bytes([bytes[12], bytes[13]]);
            if flags & WRITE != 0 {
                writable.push(range(addr, len.into()));
            }
            if indirect && flags & INDIRECT != 0 {
                self.read_table(addr, u64::from(len) / 16, tables, writable, false);
            }
        }
    }
}

fn range(start: u64, len: u64) -> Range<u64> {
    start..start.saturating_add(len)
}

/// A driver that keeps to the specification: resets, takes the features, and sets up every queue.
pub fn set_up(mmio: &mut VirtioMmio, wanted: u64, ring: impl Fn(u8) -> [u64; 3]) {
    let mut put = |offset: u32, value: u32| {
        let _ = mmio.write(offset.into(), &value.to_le_bytes());
    };
    let halves =
        |value: u64| [value, value >> 32].map(|half| u32::try_from(half & 0xffff_ffff).unwrap());
    for status in [0, 1, 3] {
        put(reg::VIRTIO_MMIO_STATUS, status);
    }
    let features = (wanted & mmio.device_features()) | 1 << 32;
    let mut put = |offset: u32, value: u32| {
        let _ = mmio.write(offset.into(), &value.to_le_bytes());
    };
    for (select, half) in (0..).zip(halves(features)) {
        put(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
        put(reg::VIRTIO_MMIO_DRIVER_FEATURES, half);
    }
    put(reg::VIRTIO_MMIO_STATUS, 0xb);
    for queue in 0..3 {
        put(reg::VIRTIO_MMIO_QUEUE_SEL, queue.into());
        put(reg::VIRTIO_MMIO_QUEUE_NUM, SIZE.into());
        let places = [
            reg::VIRTIO_MMIO_QUEUE_DESC_LOW,
            reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW,
            reg::VIRTIO_MMIO_QUEUE_USED_LOW,
        ];
        for (register, gpa) in places.into_iter().zip(ring(queue)) {
            let [low, high] = halves(gpa);
            put(register, low);
            put(register + 4, high);
        }
        put(reg::VIRTIO_MMIO_QUEUE_READY, 1);
    }
    put(reg::VIRTIO_MMIO_STATUS, 0xf);
}

/// A card's backend: one end of a socket pair. Clones are the same wire.
#[derive(Clone)]
pub struct Wire(Arc<OwnedFd>);

/// The other end.
pub struct Network(OwnedFd);

pub fn wire() -> (Wire, Network) {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let (fd, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
    (Wire(Arc::new(fd)), Network(other))
}

impl NetBackend for Wire {
    fn fds(&self) -> Vec<RawFd> {
        vec![self.0.as_raw_fd()]
    }
    fn use_queues(&mut self, _: usize) -> io::Result<()> {
        Ok(())
    }
    fn offloads(&self) -> Offloads {
        Offloads::ALL
    }
    fn set_offloads(&mut self, _: Offloads) -> io::Result<()> {
        Ok(())
    }
}

impl Network {
    /// Sends a frame if there is room.
    pub fn send(&self, header: &[u8], fill: u8, len: usize) {
        let frame = [header, &vec![fill; len]].concat();
        let _ = send(self.0.as_raw_fd(), &frame, MsgFlags::empty());
    }

    /// Takes a frame, if there is one.
    pub fn receive(&self) -> bool {
        let mut frame = vec![0; 70_000];
        recv(self.0.as_raw_fd(), &mut frame, MsgFlags::empty()).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The oracle itself: what a device must not do is seen.
    #[test]
    fn changes_are_found_and_so_are_their_marks() {
        let guest = Guest::new();
        // What the guest writes itself is no news, what others write is, once.
        guest.write(0x1_0ffd, &[1, 2, 3]);
        guest.write(0x1_ffff, &[1, 2]);
        assert!(guest.changed().is_empty());
        let _ = guest.take_marks();
        let write = |gpa, bytes: &[u8]| guest.ram.write_slice(bytes, GuestAddress(gpa));
        write(0x1_0ffe, &[9, 3, 9]).unwrap();
        write((1 << 32) + 7, &[4]).unwrap();
        assert_eq!(guest.changed(), [0x1_0ffe, 0x1_1000, (1 << 32) + 7]);
        assert!(guest.changed().is_empty());
        let marked = guest.take_marks();
        assert!(marked(0x1_0000) && marked(0x1_1abc) && marked(1 << 32));
        assert!(!marked(0) && !marked(0x1_2000) && !marked((1 << 32) + 4096));
        assert!(!guest.take_marks()(0x1_0000));
    }

    #[test]
    fn buffers_are_found_in_tables_and_behind_them() {
        let guest = Guest::new();
        let (wire, _network) = wire();
        let card = devices::virtio::VirtioNet::new([2; 6], None, Box::new(wire)).unwrap();
        let mut state = MmioState::reset(&card);
        assert_eq!(guest.writable(&state).unwrap(), []);
        let queue = &mut state.queues[0];
        [queue.desc_table, queue.avail_ring, queue.used_ring] = guest.ring(0);
        (queue.size, queue.ready) = (2, true);
        let write = u8::try_from(WRITE).unwrap();
        guest.descriptor(table(0), 0, (0x1_5000, 64, write, 0));
        guest.descriptor(
            table(0),
            1,
            (0x1_6000, 16, u8::try_from(INDIRECT | 1).unwrap(), 0),
        );
        guest.descriptor(0x1_6000, 0, (0x1_7000, 5, write, 0));
        let rings = used(0)..used(0) + 22;
        let expected = [0x1_5000..0x1_5040, 0x1_7000..0x1_7005, rings];
        assert_eq!(guest.writable(&state).unwrap(), expected);
        // A buffer over the table that it is in.
        guest.descriptor(0x1_6000, 0, (0x1_6008, 5, write, 0));
        assert_eq!(guest.writable(&state), None);
    }
}
