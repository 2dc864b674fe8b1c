//! What the tests of devices share: a driver's side of a queue, and a machine that has nothing but guest memory and
//! one device. A machine can be moved: its memory is copied and its device made anew from the sections.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};

use migration::pages::{PAGE_SIZE, PageSet};
use migration::state::{Snapshot, VmState};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use virtio_bindings::virtio_mmio as reg;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::VirtioDevice;
use super::mmio::{MmioParts, VirtioMmio};
use super::net::{NetBackend, Offloads};
use super::queue::RingState;
use crate::GuestRam;
use crate::bus::{Action, BusDevice};

/// Where memory lies: 4 MiB from 0, 2 MiB from 4 GiB.
pub const REGIONS: [(GuestAddress, usize); 2] =
    [(GuestAddress(0), 4 << 20), (GuestAddress(1 << 32), 2 << 20)];

pub fn ram() -> GuestRam {
    GuestRam::from_ranges(&REGIONS).unwrap()
}

/// Whether the page of `gpa` is marked as written.
pub fn dirty(ram: &GuestRam, gpa: u64) -> bool {
    let (region, offset) = ram.to_region_addr(GuestAddress(gpa)).unwrap();
    region.bitmap().dirty_at(usize::try_from(offset.0).unwrap())
}

/// Takes all marks away.
pub fn clean(ram: &GuestRam) {
    for region in ram.iter() {
        let mut marked = PageSet::empty(region.len().div_ceil(PAGE_SIZE));
        vm_memory::mmap::MmapRegion::bitmap(region).take(0, &mut marked);
    }
}

/// Everything in memory, region after region.
pub fn contents(ram: &GuestRam) -> Vec<Vec<u8>> {
    REGIONS
        .iter()
        .map(|&(start, len)| {
            let mut bytes = vec![0; len];
            ram.read_slice(&mut bytes, start).unwrap();
            bytes
        })
        .collect()
}

/// Fails if a page differs from `before` and is not marked.
pub fn assert_changes_are_marked(ram: &GuestRam, before: &[Vec<u8>]) {
    for ((start, _), (old, new)) in REGIONS.iter().zip(before.iter().zip(contents(ram))) {
        for (page, (old, new)) in old.chunks(4096).zip(new.chunks(4096)).enumerate() {
            let gpa = start.0 + 4096 * page as u64;
            assert!(
                old == new || dirty(ram, gpa),
                "page {gpa:#x} changed and is not marked"
            );
        }
    }
}

/// The driver's side of one queue, laid out from `base` on: descriptors, available ring and used ring,
/// one page each.
#[derive(Debug, Clone)]
pub struct Driver {
    ram: GuestRam,
    base: u64,
    size: u16,
    next_descriptor: u16,
    avail_idx: u16,
    used_idx: u16,
}

impl Driver {
    pub fn new(ram: &GuestRam, base: u64, size: u16) -> Self {
        let driver = Self {
            ram: ram.clone(),
            base,
            size,
            next_descriptor: 0,
            avail_idx: 0,
            used_idx: 0,
        };
        ram.write_slice(&[0; 0x3000], GuestAddress(base)).unwrap();
        driver
    }

    /// The same driver after a move.
    pub fn follow(&mut self, ram: &GuestRam) {
        self.ram = ram.clone();
    }

    pub fn avail_ring(&self) -> u64 {
        self.base + 0x1000
    }

    pub fn used_ring(&self) -> u64 {
        self.base + 0x2000
    }

    pub fn settings(&self, max_size: u16) -> RingState {
        RingState {
            size: self.size,
            desc_table: self.base,
            avail_ring: self.avail_ring(),
            used_ring: self.used_ring(),
            ..RingState::reset(max_size)
        }
    }

    fn put16(&self, gpa: u64, value: u16) {
        self.ram
            .write_slice(&value.to_le_bytes(), GuestAddress(gpa))
            .unwrap();
    }

    fn get16(&self, gpa: u64) -> u16 {
        let mut value = [0; 2];
        self.ram.read_slice(&mut value, GuestAddress(gpa)).unwrap();
        u16::from_le_bytes(value)
    }

    fn descriptor(&self, table: u64, index: u16, (addr, len): (u64, u32), flags: u32, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&u16::try_from(flags).unwrap().to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.ram
            .write_slice(&bytes, GuestAddress(table + u64::from(index) * 16))
            .unwrap();
    }

    fn offer(&mut self, head: u16) {
        self.put16(
            self.avail_ring() + 4 + u64::from(self.avail_idx % self.size) * 2,
            head,
        );
        self.avail_idx = self.avail_idx.wrapping_add(1);
        self.set_avail_idx(self.avail_idx);
    }

    /// Makes a chain of `(address, length, device may write)` available; the result is its head.
    pub fn add(&mut self, buffers: &[(u64, u32, bool)]) -> u16 {
        let head = self.next_descriptor % self.size;
        for (n, &(addr, len, write)) in buffers.iter().enumerate() {
            let index = self.next_descriptor % self.size;
            self.next_descriptor = self.next_descriptor.wrapping_add(1);
            let next = if n + 1 < buffers.len() {
                VRING_DESC_F_NEXT
            } else {
                0
            };
            let write = if write { VRING_DESC_F_WRITE } else { 0 };
            let following = self.next_descriptor % self.size;
            self.descriptor(self.base, index, (addr, len), next | write, following);
        }
        self.offer(head);
        head
    }

    /// Makes a chain available whose descriptors are in a table of their own.
    pub fn add_indirect(&mut self, table: u64, buffers: &[(u64, u32, bool)]) -> u16 {
        for (index, &(addr, len, write)) in buffers.iter().enumerate() {
            let next = if index + 1 < buffers.len() {
                VRING_DESC_F_NEXT
            } else {
                0
            };
            let write = if write { VRING_DESC_F_WRITE } else { 0 };
            let index = u16::try_from(index).unwrap();
            self.descriptor(table, index, (addr, len), next | write, index + 1);
        }
        let head = self.next_descriptor % self.size;
        self.next_descriptor = self.next_descriptor.wrapping_add(1);
        let len = u32::try_from(buffers.len() * 16).unwrap();
        self.descriptor(self.base, head, (table, len), VRING_DESC_F_INDIRECT, 0);
        self.offer(head);
        head
    }

    /// The index of the next descriptor that [`add`](Self::add) uses.
    pub fn next_index(&self) -> u64 {
        (self.next_descriptor % self.size).into()
    }

    /// How many chains were made available and not yet seen as used.
    pub fn outstanding(&self) -> u16 {
        self.avail_idx.wrapping_sub(self.used_idx)
    }

    /// Makes a descriptor go on at another.
    pub fn link(&self, index: u16, next: u16) {
        let at = self.base + u64::from(index) * 16;
        let flags = self.get16(at + 12);
        self.put16(at + 12, flags | u16::try_from(VRING_DESC_F_NEXT).unwrap());
        self.put16(at + 14, next);
    }

    pub fn set_avail_idx(&self, index: u16) {
        self.put16(self.avail_ring() + 2, index);
    }

    /// Interrupt suppression without event index.
    pub fn set_flags(&self, flags: u16) {
        self.put16(self.avail_ring(), flags);
    }

    /// Interrupt suppression with event index.
    pub fn set_used_event(&self, index: u16) {
        self.put16(self.avail_ring() + 4 + u64::from(self.size) * 2, index);
    }

    /// The index at which the device wants to be notified.
    pub fn avail_event(&self) -> u16 {
        self.get16(self.used_ring() + 4 + u64::from(self.size) * 8)
    }

    /// The chains that the device has returned since the last call: `(head, bytes written)`.
    pub fn used(&mut self) -> Vec<(u16, u32)> {
        let mut used = Vec::new();
        while self.used_idx != self.get16(self.used_ring() + 2) {
            let mut entry = [0; 8];
            let at = self.used_ring() + 4 + u64::from(self.used_idx % self.size) * 8;
            self.ram.read_slice(&mut entry, GuestAddress(at)).unwrap();
            let [a, b, c, d, e, f, g, h] = entry;
            let head = u16::try_from(u32::from_le_bytes([a, b, c, d])).unwrap();
            used.push((head, u32::from_le_bytes([e, f, g, h])));
            self.used_idx = self.used_idx.wrapping_add(1);
        }
        used
    }
}

/// Guest memory and one device.
pub struct Machine {
    pub ram: GuestRam,
    pub mmio: VirtioMmio,
    pub irq: EventFd,
    pub events: Vec<EventFd>,
}

/// Eventfds and the parts made of them.
pub fn parts(ram: &GuestRam, device: Box<dyn VirtioDevice>) -> (MmioParts, EventFd, Vec<EventFd>) {
    let irq = EventFd::new(EFD_NONBLOCK).unwrap();
    let queues = device.queue_sizes().len();
    let events: Vec<_> = (0..queues)
        .map(|_| EventFd::new(EFD_NONBLOCK).unwrap())
        .collect();
    let parts = MmioParts {
        ram: ram.clone(),
        interrupts: Box::new(irq.try_clone().unwrap()),
        queue_events: events
            .iter()
            .map(|event| event.try_clone().unwrap())
            .collect(),
        page: Arc::default(),
        device,
    };
    (parts, irq, events)
}

impl Machine {
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        let ram = ram();
        let (parts, irq, events) = parts(&ram, device);
        let mut mmio = VirtioMmio::new(parts).unwrap();
        mmio.resume();
        Self {
            ram,
            mmio,
            irq,
            events,
        }
    }

    pub fn get(&mut self, offset: u32) -> u32 {
        let mut data = [0; 4];
        self.mmio.read(offset.into(), &mut data);
        u32::from_le_bytes(data)
    }

    pub fn put(&mut self, offset: u32, value: u32) {
        assert_eq!(
            self.mmio.write(offset.into(), &value.to_le_bytes()),
            Action::None
        );
    }

    pub fn put64(&mut self, low: u32, value: u64) {
        self.put(low, u32::try_from(value & 0xffff_ffff).unwrap());
        self.put(low + 4, u32::try_from(value >> 32).unwrap());
    }

    /// All features on offer.
    pub fn offered(&mut self) -> u64 {
        self.put(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
        let low = self.get(reg::VIRTIO_MMIO_DEVICE_FEATURES);
        self.put(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
        u64::from(low) | u64::from(self.get(reg::VIRTIO_MMIO_DEVICE_FEATURES)) << 32
    }

    pub fn accept(&mut self, features: u64) {
        for half in 0..2 {
            self.put(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            let bits = features >> (32 * half) & 0xffff_ffff;
            self.put(
                reg::VIRTIO_MMIO_DRIVER_FEATURES,
                u32::try_from(bits).unwrap(),
            );
        }
    }

    /// Status up to FEATURES_OK with these features; the result is the status.
    pub fn negotiate(&mut self, features: u64) -> u32 {
        for status in [0, 1, 3] {
            self.put(reg::VIRTIO_MMIO_STATUS, status);
        }
        self.accept(features);
        self.put(reg::VIRTIO_MMIO_STATUS, 0xb);
        self.get(reg::VIRTIO_MMIO_STATUS)
    }

    /// Sets queue `index` up for `driver`.
    pub fn set_queue(&mut self, index: u32, driver: &Driver) {
        self.put(reg::VIRTIO_MMIO_QUEUE_SEL, index);
        let max = u16::try_from(self.get(reg::VIRTIO_MMIO_QUEUE_NUM_MAX)).unwrap();
        let settings = driver.settings(max);
        self.put(reg::VIRTIO_MMIO_QUEUE_NUM, settings.size.into());
        self.put64(reg::VIRTIO_MMIO_QUEUE_DESC_LOW, settings.desc_table);
        self.put64(reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, settings.avail_ring);
        self.put64(reg::VIRTIO_MMIO_QUEUE_USED_LOW, settings.used_ring);
        self.put(reg::VIRTIO_MMIO_QUEUE_READY, 1);
    }

    /// A driver for every queue with at most `size` entries each, the queues from 0x1000 on, up to DRIVER_OK.
    pub fn set_up(&mut self, features: u64, size: u16) -> Vec<Driver> {
        assert_eq!(self.negotiate(features), 0xb, "features {features:#x}");
        let mut drivers = Vec::new();
        for index in 0..self.events.len() {
            self.put(reg::VIRTIO_MMIO_QUEUE_SEL, u32::try_from(index).unwrap());
            let max = u16::try_from(self.get(reg::VIRTIO_MMIO_QUEUE_NUM_MAX)).unwrap();
            let base = 0x1000 + 0x3000 * index as u64;
            drivers.push(Driver::new(&self.ram, base, size.min(max)));
        }
        for (index, driver) in (0..).zip(&drivers) {
            self.set_queue(index, driver);
        }
        self.put(reg::VIRTIO_MMIO_STATUS, 0xf);
        assert_eq!(self.get(reg::VIRTIO_MMIO_STATUS), 0xf);
        self.service();
        drivers
    }

    /// Does what the VMM's I/O thread does, until no queue's eventfd is signalled; the result is how many bursts
    /// that took.
    pub fn service(&mut self) -> usize {
        let mut bursts = 0;
        loop {
            let mut idle = true;
            for index in 0..self.events.len() {
                if self.events[index].read().is_ok() {
                    self.mmio.queue_event(index);
                    idle = false;
                    bursts += 1;
                }
            }
            if idle {
                return bursts;
            }
        }
    }

    /// Notifies of queue `index` and lets the device work.
    pub fn notify(&mut self, index: u32) -> usize {
        self.put(reg::VIRTIO_MMIO_QUEUE_NOTIFY, index);
        self.service()
    }

    /// The causes of an interrupt, if there was one since the last call; acknowledges them.
    pub fn interrupt(&mut self) -> u32 {
        if self.irq.read().is_err() {
            return 0;
        }
        let causes = self.get(reg::VIRTIO_MMIO_INTERRUPT_STATUS);
        self.put(reg::VIRTIO_MMIO_INTERRUPT_ACK, causes);
        causes
    }

    /// Pauses the device and takes its sections.
    pub fn save(&mut self) -> VmState {
        self.mmio.pause();
        let mut state = VmState::default();
        self.mmio.save_into(0, &mut state).unwrap();
        state
    }

    /// Moves the machine: another memory with the same contents, and `device`, made from the same state. It is
    /// paused.
    pub fn moved(self, state: &VmState, device: Box<dyn VirtioDevice>) -> Self {
        let ram = ram();
        for ((start, _), bytes) in REGIONS.iter().zip(contents(&self.ram)) {
            ram.write_slice(&bytes, *start).unwrap();
        }
        let (parts, irq, events) = parts(&ram, device);
        let mmio: VirtioMmio = state.restore(0, parts).unwrap();
        assert_eq!(mmio.save(), self.mmio.save());
        Self {
            ram,
            mmio,
            irq,
            events,
        }
    }
}

/// A backend of socket pairs, one a queue, and what it was told. Clones are the same wire.
#[derive(Clone)]
pub struct Wire {
    fds: Vec<Arc<OwnedFd>>,
    offloads: Arc<Mutex<Vec<Offloads>>>,
    /// How many queues were to be used, in order.
    pub used: Arc<Mutex<Vec<usize>>>,
}

/// The network's end of a queue of a [`Wire`].
pub struct Network {
    fd: OwnedFd,
    /// What was set, in order.
    pub offloads: Arc<Mutex<Vec<Offloads>>>,
}

pub fn wire() -> (Wire, Network) {
    let (wire, mut networks) = wires(1);
    (wire, networks.remove(0))
}

/// A wire of several queues.
pub fn wires(queues: usize) -> (Wire, Vec<Network>) {
    let flags = SockFlag::SOCK_NONBLOCK;
    let mut wire = Wire {
        fds: Vec::new(),
        offloads: Arc::default(),
        used: Arc::default(),
    };
    let mut networks = Vec::new();
    for _ in 0..queues {
        let (fd, other) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        wire.fds.push(Arc::new(fd));
        networks.push(Network {
            fd: other,
            offloads: wire.offloads.clone(),
        });
    }
    (wire, networks)
}

impl NetBackend for Wire {
    fn fds(&self) -> Vec<RawFd> {
        self.fds.iter().map(|fd| fd.as_raw_fd()).collect()
    }
    fn use_queues(&mut self, count: usize) -> io::Result<()> {
        self.used.lock().unwrap().push(count);
        Ok(())
    }
    fn offloads(&self) -> Offloads {
        Offloads::ALL
    }
    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        self.offloads.lock().unwrap().push(offloads);
        Ok(())
    }
}

impl Network {
    /// Sends a frame of these bytes after an empty header; `false` when there is no room.
    pub fn send(&self, payload: &[u8]) -> bool {
        let frame = [&[0; 12], payload].concat();
        send(self.fd.as_raw_fd(), &frame, MsgFlags::empty()).is_ok()
    }

    /// The next frame, with its header.
    pub fn receive(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 1 << 17];
        let len = recv(self.fd.as_raw_fd(), &mut frame, MsgFlags::empty()).ok()?;
        frame.truncate(len);
        Some(frame)
    }
}
