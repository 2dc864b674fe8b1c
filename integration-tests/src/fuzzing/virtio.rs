//! A hostile guest and its virtio device: any registers, any rings and descriptors in its memory, kicks, resets and
//! moves in any order, and a network that sends what it likes.
//!
//! Around every call into the device its memory is compared: what changed lies in buffers that the guest has made
//! writable or in a used ring, and its pages are marked, so that a move sends them again.

mod guest;
mod host;
mod seeds;

use std::sync::Arc;

use devices::bus::BusDevice;
use devices::virtio::balloon::{BalloonParts, VirtioBalloon};
use devices::virtio::block::{BlockParts, VirtioBlock, disk::Disk};
use devices::virtio::device::BURST_CHAINS;
use devices::virtio::net::{NetParts, VirtioNet};
use devices::virtio::{MmioParts, MmioState, VirtioDevice, VirtioMmio, VirtioRng};
use migration::state::{Snapshot, VmState};
use vmm_sys_util::eventfd::EventFd;

use super::input::Program;
use super::parts;
use guest::Guest;
pub use guest::{Network, Wire, wire};
use host::Host;
pub use host::balloon_parts;
pub use seeds::{seeds_balloon, seeds_blk, seeds_net, seeds_rng};

/// Entries of every queue that is set up in the regular way.
const SIZE: u16 = 16;
/// The most steps of one program.
const STEPS: usize = 400;

/// Programs for a network card.
pub fn run_net(input: &[u8]) {
    run(Kind::Net, input);
}

/// Programs for an entropy source.
pub fn run_rng(input: &[u8]) {
    run(Kind::Rng, input);
}

/// Programs for a disk.
pub fn run_blk(input: &[u8]) {
    run(Kind::Blk, input);
}

/// Programs for a balloon.
pub fn run_balloon(input: &[u8]) {
    run(Kind::Balloon, input);
}

/// The device that is attacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Net,
    Rng,
    Blk,
    Balloon,
}

fn run(kind: Kind, input: &[u8]) {
    let mut world = World::new(kind);
    world.run(input);
    world.works_after_a_reset();
}

/// A driver's settings, in memory that has nothing in it.
pub fn set_up(mmio: &mut VirtioMmio) {
    let guest = Guest::new();
    guest::set_up(mmio, 0, |queue| guest.ring(queue));
}

struct World {
    kind: Kind,
    disk: Arc<Disk>,
    host: Host,
    guest: Guest,
    mmio: VirtioMmio,
    events: Vec<EventFd>,
    wire: Wire,
    network: Network,
}

/// The parts, and the eventfds of the queues for whoever waits for them.
fn wired(guest: &Guest, device: Box<dyn VirtioDevice>) -> (MmioParts, Vec<EventFd>) {
    let parts = parts::mmio(&guest.ram, device);
    let again = |event: &EventFd| event.try_clone().unwrap();
    let events = parts.queue_events.iter().map(again).collect();
    (parts, events)
}

impl World {
    fn new(kind: Kind) -> Self {
        let guest = Guest::new();
        let (wire, network) = wire();
        let disk = Arc::new(parts::disk());
        let host = Host::default();
        let device: Box<dyn VirtioDevice> = match kind {
            Kind::Net => {
                Box::new(VirtioNet::new([2, 0, 0, 0, 0, 1], None, Box::new(wire.clone())).unwrap())
            }
            Kind::Rng => Box::new(VirtioRng::new()),
            Kind::Blk => Box::new(VirtioBlock::new(disk.clone(), 2, "fuzzed").unwrap()),
            Kind::Balloon => {
                let parts = BalloonParts {
                    host: Box::new(host.clone()),
                    levels: Arc::default(),
                };
                Box::new(VirtioBalloon::new(true, true, parts).unwrap())
            }
        };
        let (parts, events) = wired(&guest, device);
        let mut mmio = VirtioMmio::new(parts).unwrap();
        mmio.resume();
        Self {
            kind,
            disk,
            host,
            guest,
            mmio,
            events,
            wire,
            network,
        }
    }

    fn run(&mut self, input: &[u8]) {
        let mut program = Program::new(input);
        for _ in 0..STEPS {
            if program.is_over() {
                break;
            }
            self.step(&mut program);
        }
    }

    fn queues(&self) -> usize {
        self.mmio.queue_count()
    }

    /// One thing that the guest or the world does.
    fn step(&mut self, program: &mut Program<'_>) {
        match program.u8() % 15 {
            0 => {
                let (offset, len, value) = (program.u16(), program.u8(), program.u64());
                let len = usize::from(len % 8) + 1;
                self.watched(|world| {
                    let _ = (world.mmio).write(offset.into(), &value.to_le_bytes()[..len]);
                });
            }
            1 => {
                let (offset, len) = (program.u16(), program.u8());
                let len = usize::from(len % 8) + 1;
                self.watched(|world| world.mmio.read(offset.into(), &mut [0; 8][..len]));
            }
            2 => {
                let (queue, index) = (program.u8() % 3, program.u8() % 16);
                let (place, at, len) = (program.u8(), program.u32(), program.u32());
                let (flags, next) = (program.u8(), program.u8());
                let descriptor = (guest::address(place, at), len, flags % 8, next % 17);
                self.guest
                    .descriptor(guest::table(queue), index, descriptor);
            }
            3 => {
                let (queue, slot, head) = (program.u8() % 3, program.u8() % 16, program.u8());
                self.guest.head(queue, slot, (head % 17).into());
            }
            4 => {
                let (queue, by) = (program.u8() % 3, program.u8());
                let state = self.mmio.save();
                let next = (state.queues.get(usize::from(queue))).map_or(0, |ring| ring.next_avail);
                self.guest
                    .available(queue, next.wrapping_add((by % 32).into()));
            }
            5 => {
                let (queue, index) = (program.u8() % 3, program.u16());
                self.guest.available(queue, index);
            }
            6 => {
                let queue = usize::from(program.u8()) % (self.queues() + 1);
                self.watched(|world| world.mmio.queue_event(queue));
            }
            7 => self.watched(|world| world.mmio.backend_event()),
            8 => {
                let (len, fill) = (program.u16(), program.u8());
                let header = program.bytes(12);
                self.network.send(header, fill, len.into());
            }
            9 => while self.network.receive() {},
            10 => self.watched(|world| world.mmio.announce_round()),
            11 => self.move_it(),
            12 => {
                let (place, at, len) = (program.u8(), program.u32(), program.u8());
                let bytes = program.bytes(len.into());
                self.guest.write(guest::address(place, at), bytes);
            }
            13 => self.set_up(program.u64()),
            // What an I/O thread does after a kick.
            _ => {
                for queue in 0..self.queues() {
                    if self.events[queue].read().is_ok() {
                        self.watched(|world| world.mmio.queue_event(queue));
                    }
                }
            }
        }
    }

    /// A call into the device, and what it may have done.
    fn watched(&mut self, call: impl FnOnce(&mut Self)) {
        let rings = self.mmio.save();
        let writable = self.guest.writable(&rings);
        let _ = self.guest.take_marks();
        self.host.forget();
        call(self);
        self.check(&rings, writable);
    }

    fn check(&self, rings: &MmioState, writable: Option<guest::Ranges>) {
        let marked = self.guest.take_marks();
        let given = self.host.given();
        for pages in &given {
            assert!(marked(pages.start) && marked(pages.end - 1), "{pages:x?}");
        }
        for gpa in self.guest.changed() {
            assert!(marked(gpa), "{gpa:#x} was written and is not marked");
            if let Some(writable) = &writable {
                let within = (writable.iter().chain(&given)).any(|range| range.contains(&gpa));
                assert!(within, "{gpa:#x} is nobody's buffer and was written");
            }
        }
        // Each frame may fill a ring's worth of buffers, each chain is used once.
        for (before, after) in rings.queues.iter().zip(self.mmio.save().queues) {
            let used = usize::from(after.next_used.wrapping_sub(before.next_used));
            let reset = after.next_used == 0;
            let most = BURST_CHAINS * usize::from(SIZE.max(before.size));
            assert!(reset || used <= most, "{used} chains in one call");
        }
    }

    /// Whatever the guest did, its state is one that can be restored, to the same bytes.
    fn move_it(&mut self) {
        self.mmio.pause();
        let mut state = VmState::default();
        self.mmio.save_into(0, &mut state).unwrap();
        let device: Box<dyn VirtioDevice> = match self.kind {
            Kind::Net => {
                let backend = Box::new(self.wire.clone());
                Box::new(state.restore::<VirtioNet>(0, NetParts { backend }).unwrap())
            }
            Kind::Rng => Box::new(state.restore::<VirtioRng>(0, ()).unwrap()),
            Kind::Balloon => {
                let parts = BalloonParts {
                    host: Box::new(self.host.clone()),
                    levels: Arc::default(),
                };
                Box::new(state.restore::<VirtioBalloon>(0, parts).unwrap())
            }
            Kind::Blk => {
                let disk = self.disk.clone();
                Box::new(
                    state
                        .restore::<VirtioBlock>(0, BlockParts { disk })
                        .unwrap(),
                )
            }
        };
        let (parts, events) = wired(&self.guest, device);
        (self.mmio, self.events) = (state.restore(0, parts).unwrap(), events);
        let mut again = VmState::default();
        self.mmio.save_into(0, &mut again).unwrap();
        assert_eq!(again, state);
        self.mmio.resume();
    }

    /// What a driver does that keeps to the specification, with those of `wanted` features that are on offer.
    fn set_up(&mut self, wanted: u64) {
        let guest = &self.guest;
        guest::set_up(&mut self.mmio, wanted, |queue| guest.ring(queue));
    }

    /// Out of order or not, a driver that resets the device and sets it up has a working one.
    fn works_after_a_reset(&mut self) {
        for queue in 0..3 {
            self.guest.forget(queue);
        }
        self.set_up(0);
        let queue = u8::from(self.kind == Kind::Net);
        let table = guest::table(queue);
        match self.kind {
            Kind::Net => (self.guest).descriptor(table, 0, (guest::BUFFERS, 64, 0, 0)),
            Kind::Rng => (self.guest).descriptor(table, 0, (guest::BUFFERS, 64, 2, 0)),
            Kind::Balloon => {
                // The page that the list itself is in.
                let page = u32::try_from(guest::BUFFERS / 4096).unwrap();
                self.guest.write(guest::BUFFERS, &page.to_le_bytes());
                (self.guest).descriptor(table, 0, (guest::BUFFERS, 4, 0, 0));
            }
            Kind::Blk => {
                (self.guest).descriptor(table, 0, (guest::BUFFERS, 16, 1, 1));
                (self.guest).descriptor(table, 1, (guest::BUFFERS + 16, 1, 2, 0));
            }
        }
        self.guest.head(queue, 0, 0);
        self.guest.available(queue, 1);
        let transmitted = |world: &Self| world.mmio.save().queues[usize::from(queue)].next_used;
        for _ in 0..3 {
            while self.network.receive() {}
            self.watched(|world| world.mmio.queue_event(queue.into()));
            self.watched(|world| world.mmio.backend_event());
        }
        assert_eq!(transmitted(self), 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the fuzzer begins with makes the device work.
    #[test]
    fn the_seeds_use_their_queues() {
        for (kind, queues, seeds) in [
            (Kind::Net, 3, seeds_net()),
            (Kind::Rng, 1, seeds_rng()),
            (Kind::Blk, 2, seeds_blk()),
            (Kind::Balloon, 3, seeds_balloon()),
        ] {
            let mut used = vec![0; queues];
            for seed in seeds {
                let mut world = World::new(kind);
                world.run(&seed);
                for (used, queue) in used.iter_mut().zip(world.mmio.save().queues) {
                    *used += queue.next_used;
                }
            }
            assert!(used.iter().all(|used| *used > 0), "{kind:?} {used:?}");
        }
    }
}
