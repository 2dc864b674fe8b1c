//! A guest that means harm: any registers, any rings, any descriptors, moves in between. Nothing may panic, and every
//! call does a bounded amount of work.

use std::sync::Arc;

use proptest::prelude::*;
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress};

use super::block::disk::Disk;
use super::block::{BlockParts, DiskOptions, VirtioBlock};
use super::device::BURST_CHAINS;
use super::net::{NetParts, VirtioNet, features};
use super::testing::{Machine, Network, Wire, wires};
use super::{VirtioDevice, VirtioRng};
use crate::bus::BusDevice;

const VERSION_1: u64 = 1 << 32;
const EVENT_IDX: u64 = 1 << 29;
const INDIRECT: u64 = 1 << 28;
/// Entries of every queue.
const SIZE: u16 = 16;
/// Queue n has its descriptors, available ring and used ring here and in the two pages after.
const QUEUES: u64 = 0x1000;

/// One thing that the guest or the world does.
#[derive(Debug, Clone)]
enum Step {
    /// A write to any register.
    Register(u16, u32),
    /// A read of any register, of any length.
    Read(u16, usize),
    /// Any descriptor anywhere in the first queues' tables.
    Descriptor {
        queue: u64,
        index: u16,
        addr: u64,
        len: u32,
        flags: u16,
        next: u16,
    },
    /// Any head in the available ring.
    Head {
        queue: u64,
        slot: u16,
        head: u16,
    },
    /// The header of a block request, where many of the descriptors point.
    Request {
        page: u64,
        kind: u32,
        sector: u64,
    },
    /// The available index goes on by so many.
    Advance {
        queue: u64,
        by: u16,
    },
    /// The available index is anything.
    Index {
        queue: u64,
        index: u16,
    },
    Notify(usize),
    Backend,
    Frame(usize),
    Drain,
    Announce,
    Move,
}

/// Addresses of which most are interesting: in memory, at its borders, in the rings themselves, nowhere.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0x10_0000u64..0x20_0000,
        2 => (0u64..16).prop_map(|page| 0x10_0000 + page * 0x1000),
        1 => QUEUES..QUEUES + 0x9000,
        1 => Just((4 << 20) - 8),
        1 => Just(1 << 32),
        1 => any::<u64>(),
    ]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0u32..5000, 1 => 0u32..70_000, 1 => any::<u32>()]
}

/// The type of a block request; as a command to a network card's control queue among others class 4, 0, how many queue
/// pairs are used.
fn request() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0u32..16, 1 => (0u32..4).prop_map(|pairs| 4 | pairs << 16)]
}

fn step() -> impl Strategy<Value = Step> {
    let queue = 0u64..5;
    let registers = prop_oneof![8 => (0u16..0x40).prop_map(|n| n * 4), 1 => any::<u16>()];
    prop_oneof![
        1 => (registers.clone(), any::<u32>()).prop_map(|(offset, value)| Step::Register(offset, value)),
        1 => (registers, 1usize..9).prop_map(|(offset, len)| Step::Read(offset, len)),
        8 => (queue.clone(), 0u16..SIZE, address(), length(), 0u16..8, 0u16..SIZE + 1).prop_map(
            |(queue, index, addr, len, flags, next)| Step::Descriptor { queue, index, addr, len, flags, next }
        ),
        4 => (queue.clone(), 0u16..SIZE, 0u16..SIZE + 1)
            .prop_map(|(queue, slot, head)| Step::Head { queue, slot, head }),
        6 => (queue.clone(), 0u16..SIZE).prop_map(|(queue, by)| Step::Advance { queue, by }),
        3 => (0u64..16, request(), prop_oneof![4 => 0u64..200, 1 => any::<u64>()])
            .prop_map(|(page, kind, sector)| Step::Request { page, kind, sector }),
        1 => (queue, any::<u16>()).prop_map(|(queue, index)| Step::Index { queue, index }),
        6 => (0usize..6).prop_map(Step::Notify),
        3 => Just(Step::Backend),
        3 => (0usize..66_000).prop_map(Step::Frame),
        1 => Just(Step::Drain),
        1 => Just(Step::Announce),
        1 => Just(Step::Move),
    ]
}

struct World {
    machine: Machine,
    wire: Wire,
    /// The network behind each queue pair.
    networks: Vec<Network>,
    kind: Kind,
    disk: (NamedTempFile, Arc<Disk>),
}

/// Which device is attacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A card of one queue pair.
    Net,
    /// One of two.
    Pairs,
    Rng,
    Block,
}

impl Kind {
    fn pairs(self) -> usize {
        match self {
            Kind::Pairs => 2,
            Kind::Net | Kind::Rng | Kind::Block => 1,
        }
    }
}

/// Bytes of the disk: small, so that requests often end beyond it.
const DISK: u64 = 64 << 10;

/// A disk of bytes that no guest has, open.
fn disk() -> (NamedTempFile, Arc<Disk>) {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![0xd5; 64 << 10]).unwrap();
    let disk = Disk::open(file.path(), DiskOptions::default()).unwrap();
    assert_eq!(disk.bytes(), DISK);
    (file, Arc::new(disk))
}

impl World {
    fn new(kind: Kind, features: u64) -> Self {
        let (wire, networks) = wires(kind.pairs());
        let disk = disk();
        let device: Box<dyn VirtioDevice> = match kind {
            Kind::Net | Kind::Pairs => {
                Box::new(VirtioNet::new([2, 0, 0, 0, 0, 1], None, Box::new(wire.clone())).unwrap())
            }
            Kind::Rng => Box::new(VirtioRng::new()),
            Kind::Block => Box::new(VirtioBlock::new(disk.1.clone(), 2, "fuzzed").unwrap()),
        };
        let mut machine = Machine::new(device);
        let offered = machine.offered();
        machine.set_up(features & offered | VERSION_1, SIZE);
        Self {
            machine,
            wire,
            networks,
            kind,
            disk,
        }
    }

    /// Takes a frame from any of the networks.
    fn receive(&self) -> bool {
        let mut networks = self.networks.iter();
        networks.any(|network| network.receive().is_some())
    }

    /// The used indices of the device's own state: those in memory may be overwritten by the guest.
    fn next_used(&self) -> Vec<u16> {
        let state = migration::state::Snapshot::save(&self.machine.mmio);
        state.queues.iter().map(|queue| queue.next_used).collect()
    }

    fn bounded(&mut self, call: impl FnOnce(&mut Machine)) {
        let before = self.next_used();
        call(&mut self.machine);
        for (before, after) in before.into_iter().zip(self.next_used()) {
            // Each frame read may fill a ring's worth of buffers, each chain is used once.
            let used = usize::from(after.wrapping_sub(before));
            assert!(
                used <= BURST_CHAINS * usize::from(SIZE),
                "{used} chains in one call"
            );
        }
    }

    fn put16(&self, gpa: u64, value: u16) {
        self.machine
            .ram
            .write_slice(&value.to_le_bytes(), GuestAddress(gpa))
            .unwrap();
    }

    fn take(&mut self, step: Step) {
        let rings = |queue: u64| QUEUES + queue * 0x3000;
        match step {
            Step::Register(offset, value) => {
                let _ = self.machine.mmio.write(offset.into(), &value.to_le_bytes());
            }
            Step::Read(offset, len) => self.machine.mmio.read(offset.into(), &mut [0; 8][..len]),
            Step::Descriptor {
                queue,
                index,
                addr,
                len,
                flags,
                next,
            } => {
                let at = rings(queue) + u64::from(index) * 16;
                self.machine
                    .ram
                    .write_slice(&addr.to_le_bytes(), GuestAddress(at))
                    .unwrap();
                self.machine
                    .ram
                    .write_slice(&len.to_le_bytes(), GuestAddress(at + 8))
                    .unwrap();
                self.put16(at + 12, flags);
                self.put16(at + 14, next);
            }
            Step::Head { queue, slot, head } => {
                self.put16(rings(queue) + 0x1004 + u64::from(slot) * 2, head)
            }
            Step::Request { page, kind, sector } => {
                let header = [kind, 0].map(u32::to_le_bytes).concat();
                let header = [header, sector.to_le_bytes().to_vec()].concat();
                let at = GuestAddress(0x10_0000 + page * 0x1000);
                self.machine.ram.write_slice(&header, at).unwrap();
            }
            Step::Advance { queue, by } => {
                let next = self
                    .next_used()
                    .get(usize::try_from(queue).unwrap())
                    .copied()
                    .unwrap_or(0);
                self.put16(rings(queue) + 0x1002, next.wrapping_add(by));
            }
            Step::Index { queue, index } => self.put16(rings(queue) + 0x1002, index),
            Step::Notify(index) => self.bounded(|machine| machine.mmio.queue_event(index)),
            Step::Backend => self.bounded(|machine| machine.mmio.backend_event()),
            Step::Frame(len) => {
                let networks = self.networks.len();
                self.networks[len % networks].send(&vec![0x5a; len]);
            }
            Step::Drain => while self.receive() {},
            Step::Announce => self.machine.mmio.announce_round(),
            Step::Move => self.restart(),
        }
    }

    /// Whatever the guest did, its state is one that can be restored.
    fn restart(&mut self) {
        let state = self.machine.save();
        let device: Box<dyn VirtioDevice> = match self.kind {
            Kind::Net | Kind::Pairs => {
                let backend = Box::new(self.wire.clone());
                Box::new(state.restore::<VirtioNet>(0, NetParts { backend }).unwrap())
            }
            Kind::Rng => Box::new(state.restore::<VirtioRng>(0, ()).unwrap()),
            Kind::Block => {
                let disk = self.disk.1.clone();
                Box::new(
                    state
                        .restore::<VirtioBlock>(0, BlockParts { disk })
                        .unwrap(),
                )
            }
        };
        let (parts, irq, events) = super::testing::parts(&self.machine.ram, device);
        self.machine.mmio = state.restore(0, parts).unwrap();
        (self.machine.irq, self.machine.events) = (irq, events);
        self.machine.mmio.resume();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_hostile_guest_breaks_its_own_device_only(
        kind in prop_oneof![4 => Just(Kind::Net), 3 => Just(Kind::Pairs), 1 => Just(Kind::Rng), 4 => Just(Kind::Block)],
        mergeable in any::<bool>(),
        event_idx in any::<bool>(),
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut features = match kind {
            Kind::Block => super::block::features::offered(false, 2),
            _ => features::offered(super::net::Offloads::ALL, kind.pairs(), false),
        } | INDIRECT;
        if kind != Kind::Block && !mergeable { features &= !features::MRG_RXBUF; }
        if event_idx { features |= EVENT_IDX; }
        let mut world = World::new(kind, features);
        for step in steps {
            world.take(step);
        }
        // Out of order or not, a reset makes it work again.
        world.machine.ram.write_slice(&vec![0; 0x1_0000], GuestAddress(0)).unwrap();
        let queue = if matches!(kind, Kind::Net | Kind::Pairs) { 1 } else { 0 };
        let offered = world.machine.offered();
        let mut drivers = world.machine.set_up(features & offered | VERSION_1, SIZE);
        // A frame to be sent, room for random bytes, a flush.
        world.take(Step::Request { page: 0, kind: 4, sector: 0 });
        let head = match kind {
            Kind::Net | Kind::Pairs => drivers[queue].add(&[(0x10_0000, 64, false)]),
            Kind::Rng => drivers[queue].add(&[(0x10_0000, 64, true)]),
            Kind::Block => drivers[queue].add(&[(0x10_0000, 16, false), (0x10_1000, 1, true)]),
        };
        world.machine.notify(u32::try_from(queue).unwrap());
        while world.receive() {
            world.machine.mmio.backend_event();
        }
        prop_assert_eq!(std::fs::metadata(world.disk.0.path()).unwrap().len(), DISK);
        prop_assert_eq!(drivers[queue].used().iter().map(|used| used.0).collect::<Vec<_>>(), [head]);
    }
}
