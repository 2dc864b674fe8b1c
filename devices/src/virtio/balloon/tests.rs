//! The balloon behind its transport, with drivers that keep to the specification, and ones that do not.

use std::sync::Mutex;

use virtio_bindings::virtio_mmio as reg;
use vm_memory::Bytes;

use super::*;
use crate::virtio::testing::{Driver, Machine, clean, dirty};

const VERSION_1: u64 = 1 << 32;
const REPORTING: u64 = features::PAGE_REPORTING;
/// The first page above the 32-bit gap, and the first page behind the memory below it.
const HIGH: u32 = 1 << 20;
const LOW_END: u32 = 1 << 10;
const NEEDS_RESET: u32 = 0x40;
const CONFIG_INTERRUPT: u32 = 2;

/// What was given back, in order.
type Given = Arc<Mutex<Vec<Pages>>>;

/// A host that takes pages as one does, leaving no mark; or refuses them.
struct Host {
    given: Given,
    refuses: bool,
}

impl GiveBack for Host {
    fn give_back(&mut self, ram: &GuestRam, pages: &Pages) -> io::Result<()> {
        self.given.lock().unwrap().push(pages.clone());
        if self.refuses {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let bytes = usize::try_from(pages.end - pages.start).unwrap();
        ram.write_slice(&vec![0; bytes], GuestAddress(pages.start))
            .unwrap();
        clean(ram);
        Ok(())
    }
}

fn parts(given: &Given, levels: &Arc<Levels>, refuses: bool) -> BalloonParts {
    BalloonParts {
        host: Box::new(Host {
            given: given.clone(),
            refuses,
        }),
        levels: levels.clone(),
    }
}

/// A machine with a balloon, and its driver's queues.
struct World {
    machine: Machine,
    queues: Vec<Driver>,
    given: Given,
    levels: Arc<Levels>,
}

impl World {
    fn new(features: u64) -> Self {
        Self::of(features, false)
    }

    fn of(features: u64, refuses: bool) -> Self {
        let (given, levels) = (Given::default(), Arc::new(Levels::default()));
        let balloon = VirtioBalloon::new(true, true, parts(&given, &levels, refuses)).unwrap();
        let mut machine = Machine::new(Box::new(balloon));
        let queues = machine.set_up(VERSION_1 | features, 16);
        Self {
            machine,
            queues,
            given,
            levels,
        }
    }

    /// Puts a list of pages where a driver's would be, and gives its buffer.
    fn list(&self, numbers: &[u32]) -> (u64, u32, bool) {
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        let at = 0x20_0000;
        self.machine
            .ram
            .write_slice(&bytes, GuestAddress(at))
            .unwrap();
        (at, u32::try_from(bytes.len()).unwrap(), false)
    }

    fn given(&self) -> Vec<Pages> {
        std::mem::take(&mut *self.given.lock().unwrap())
    }

    /// Sends a chain, of which the device makes what the result says: pages given back.
    fn send(&mut self, queue: usize, chain: &[(u64, u32, bool)]) -> Vec<Pages> {
        let head = self.queues[queue].add(chain);
        self.machine.notify(u32::try_from(queue).unwrap());
        assert_eq!(self.queues[queue].used(), [(head, 0)]);
        self.given()
    }

    /// Sends a chain that costs the driver its device, and nobody a page.
    fn refuse(&mut self, queue: usize, chain: &[(u64, u32, bool)]) {
        self.queues[queue].add(chain);
        self.machine.notify(u32::try_from(queue).unwrap());
        assert_eq!(self.queues[queue].used(), []);
        assert_eq!(self.given(), [], "{chain:?}");
        let status = self.machine.get(reg::VIRTIO_MMIO_STATUS);
        assert_eq!(status, 0xf | NEEDS_RESET, "{chain:?}");
        self.queues = self.machine.set_up(VERSION_1 | REPORTING, 16);
    }
}

fn pages(first: u32, count: u32) -> Pages {
    u64::from(first) * PAGE..u64::from(first + count) * PAGE
}

#[test]
fn a_driver_finds_its_target_and_says_how_far_it_is() {
    let mut world = World::new(0);
    assert_eq!(world.machine.get(reg::VIRTIO_MMIO_DEVICE_ID), 5);
    world.machine.interrupt();
    let config = |world: &mut World, at: u32| world.machine.get(reg::VIRTIO_MMIO_CONFIG + at);
    assert_eq!(config(&mut world, 0), 0);
    assert!(world.levels.want(3 * PAGE + 5));
    world.machine.mmio.config_changed();
    assert_eq!(world.machine.interrupt(), CONFIG_INTERRUPT);
    assert_eq!(config(&mut world, 0), 3);
    // Counted before and behind the change: whoever read half of each does not find the same number twice.
    let generation = |world: &mut World| world.machine.get(reg::VIRTIO_MMIO_CONFIG_GENERATION);
    assert_eq!(generation(&mut world), 2);
    world.machine.mmio.config_changed();
    assert_eq!(generation(&mut world), 2, "nothing changed");
    assert_eq!(world.machine.interrupt(), CONFIG_INTERRUPT);
    assert!(!world.levels.want(1 << 44), "2^32 pages");
    assert_eq!(world.levels.target(), 3 * PAGE);
    world.machine.put(reg::VIRTIO_MMIO_CONFIG + 4, 2);
    assert_eq!(
        (world.levels.actual(), config(&mut world, 4)),
        (2 * PAGE, 2)
    );
    // The rest is not the driver's to write, or not there.
    for at in [0, 8, 12, 0xf0] {
        world.machine.put(reg::VIRTIO_MMIO_CONFIG + at, 77);
    }
    assert_eq!((config(&mut world, 0), config(&mut world, 8)), (3, 0));
    // Nobody is told while the device rests.
    world.machine.mmio.pause();
    world.machine.mmio.config_changed();
    assert_eq!(world.machine.interrupt(), 0);
    world.machine.mmio.resume();
    world.machine.put(reg::VIRTIO_MMIO_STATUS, 0);
    assert_eq!(
        (world.levels.actual(), world.levels.target()),
        (0, 3 * PAGE)
    );
}

#[test]
fn neighbours_in_any_order_are_given_back_together_and_once() {
    let mut world = World::new(0);
    let list = world.list(&[301, 300, HIGH, 302, 300, 305, LOW_END - 1, HIGH + 1]);
    let given = world.send(0, &[list]);
    let expected = [
        pages(300, 3),
        pages(305, 1),
        pages(LOW_END - 1, 1),
        pages(HIGH, 2),
    ];
    assert_eq!(given, expected);
    assert_eq!(world.levels.inflated(), 7 * PAGE);
}

#[test]
fn a_list_may_lie_in_several_buffers() {
    let mut world = World::new(0);
    let (at, _, _) = world.list(&[300, 0x0102_0304 & 0x3ff, 301]);
    let given = world.send(
        0,
        &[(at, 2, false), (at + 2, 9, false), (at + 11, 1, false)],
    );
    assert_eq!(given, [pages(300, 2), pages(0x304, 1)]);
}

#[test]
fn what_is_given_back_is_zero_and_marked() {
    let mut world = World::new(REPORTING);
    let ram = world.machine.ram.clone();
    for queue in [0, 2] {
        ram.write_slice(&[7; 3 * 4096], GuestAddress(300 * PAGE))
            .unwrap();
        let buffer = match queue {
            0 => world.list(&[300, 301]),
            _ => (300 * PAGE, 2 * 4096, true),
        };
        assert_eq!(world.send(queue, &[buffer]), [pages(300, 2)]);
        let mut bytes = [0; 3 * 4096];
        ram.read_slice(&mut bytes, GuestAddress(300 * PAGE))
            .unwrap();
        assert!(bytes[..8192].iter().all(|byte| *byte == 0));
        assert_eq!(bytes[8192], 7, "the page behind them");
        for (page, marked) in [(299, false), (300, true), (301, true), (302, false)] {
            assert_eq!(dirty(&ram, page * PAGE), marked, "{page}");
        }
    }
    assert_eq!(
        (world.levels.inflated(), world.levels.reported()),
        (2 * PAGE, 2 * PAGE)
    );
}

#[test]
fn pages_that_the_host_refuses_are_marked_all_the_same() {
    let mut world = World::of(REPORTING, true);
    clean(&world.machine.ram);
    let given = world.send(2, &[(300 * PAGE, 4096, true)]);
    assert_eq!(given, [pages(300, 1)]);
    assert!(dirty(&world.machine.ram, 300 * PAGE));
}

#[test]
fn pages_that_are_taken_out_stay_as_they_are() {
    let mut world = World::new(0);
    let list = world.list(&[300, 301]);
    assert_eq!(world.send(1, &[list]), []);
    assert_eq!(world.levels.inflated(), 0);
}

#[test]
fn of_reported_buffers_only_whole_pages_are_given_back() {
    let mut world = World::new(REPORTING);
    let mut report = |at: u64, len: u32| world.send(2, &[(at, len, true)]);
    let at = 300 * PAGE;
    assert_eq!(report(at + 1, 3 * 4096), [pages(301, 2)]);
    assert_eq!(report(at, 2 * 4096 + 4095), [pages(300, 2)]);
    assert_eq!(report(at + 1, 4096), []);
    assert_eq!(report(at + 5, 7), []);
    assert_eq!(report(at, 4096), [pages(300, 1)]);
    // Up to the last byte below the gap, and from the first above it.
    let end = u64::from(LOW_END) * PAGE;
    assert_eq!(report(end - 8192, 8192), [pages(LOW_END - 2, 2)]);
    assert_eq!(report(u64::from(HIGH) * PAGE, 4096), [pages(HIGH, 1)]);
    let two = [(at, 4096, true), (at + 8192, 4096, true)];
    assert_eq!(world.send(2, &two), [pages(300, 1), pages(302, 1)]);
}

#[test]
fn what_names_no_memory_is_refused_as_a_whole() {
    let mut world = World::new(REPORTING);
    for page in [LOW_END, HIGH - 1, HIGH + (2 << 8), 0xffff_ffff] {
        let list = world.list(&[300, page, 301]);
        for queue in [0, 1] {
            world.refuse(queue, &[list]);
        }
    }
    let end = u64::from(LOW_END) * PAGE;
    let over = [
        (end - 4096, 8192),
        (end, 4096),
        ((1 << 32) - 4096, 8192),
        (u64::MAX - 4095, 4096),
        (u64::MAX - 4095, 8192),
        (u64::MAX, u32::MAX),
        (0, u32::MAX),
    ];
    for (at, len) in over {
        world.refuse(2, &[(300 * PAGE, 4096, true), (at, len, true)]);
    }
}

#[test]
fn lists_that_are_none_are_refused() {
    let mut world = World::new(REPORTING);
    let (at, _, _) = world.list(&[300, 301]);
    for queue in [0, 1] {
        for len in [0, 1, 3, 5, 7] {
            world.refuse(queue, &[(at, len, false)]);
        }
        world.refuse(queue, &[(at, 8, true)]);
        world.refuse(queue, &[(at, 4, false), (at + 4, 4, true)]);
        // More pages than a request may name: 64 KiB of numbers, and one more.
        world.refuse(queue, &[(0x20_0000, 0x1_0004, false)]);
    }
    // A report names pages by buffers that may be written.
    world.refuse(2, &[(300 * PAGE, 4096, false)]);
    world.refuse(2, &[(300 * PAGE, 4, false), (301 * PAGE, 4096, true)]);
    world.refuse(2, &[(300 * PAGE, 0, true)]);
}

#[test]
fn a_report_has_a_bound() {
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), 2 << 30)]).unwrap();
    let half = |at: u64| Segment {
        addr: GuestAddress(at),
        len: 1 << 29,
    };
    let mut into = Vec::new();
    ranges::of_buffers(&ram, &[half(0), half(1 << 29)], &mut into).unwrap();
    assert_eq!(ranges::bytes(&into), 1 << 30);
    assert!(ranges::of_buffers(&ram, &[half(0), half(0), half(0)], &mut into).is_err());
}

/// Two regions that touch each other are given back one by one.
#[test]
fn no_range_is_in_two_regions() {
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), 8192), (GuestAddress(8192), 8192)]);
    let ram = ram.unwrap();
    let mut into = Vec::new();
    let list: Vec<u8> = [1u32, 2].iter().flat_map(|n| n.to_le_bytes()).collect();
    ranges::of_numbers(&ram, &list, &mut into).unwrap();
    assert_eq!(into, [pages(1, 1), pages(2, 1)]);
    let buffer = Segment {
        addr: GuestAddress(4096),
        len: 8192,
    };
    ranges::of_buffers(&ram, &[buffer], &mut into).unwrap();
    assert_eq!(into, [pages(1, 1), pages(2, 1)]);
}

#[test]
fn queues_move_up_where_features_are_left_out() {
    let roles = |features| (0..6).map(move |index| features::role(features, index));
    let (inflate, deflate, report) = (Role::Inflate, Role::Deflate, Role::Report);
    let of = |features| roles(features).collect::<Vec<_>>();
    assert_eq!(
        of(0),
        [Some(inflate), Some(deflate), None, None, None, None]
    );
    assert_eq!(of(REPORTING)[2..], [Some(report), None, None, None]);
    assert_eq!(
        of(REPORTING | 1 << 1 | 1 << 3)[2..],
        [None, None, Some(report), None]
    );
    // Without the feature a report is nobody's business.
    let mut world = World::new(0);
    world.queues[2].add(&[(300 * PAGE, 4096, true)]);
    world.machine.notify(2);
    assert_eq!((world.queues[2].used(), world.given()), (vec![], vec![]));
}

#[test]
fn a_burst_is_bounded() {
    let mut world = World::new(0);
    let most: Vec<u32> = (600..1000).collect();
    let list = world.list(&most);
    for _ in 0..16 {
        world.queues[0].add(&[list]);
    }
    let bursts = world.machine.notify(0);
    assert_eq!(world.queues[0].used().len(), 16);
    // 6,400 pages, two requests at a time.
    assert!(bursts >= 8, "{bursts}");
    // One page, named over and over, is work as well.
    let list = world.list(&[300; 400]);
    for _ in 0..16 {
        world.queues[0].add(&[list]);
    }
    assert!(world.machine.notify(0) >= 8);
}

#[test]
fn a_balloon_moves_with_its_guest() {
    let mut world = World::new(REPORTING);
    world.levels.want(9 * PAGE);
    world.machine.put(reg::VIRTIO_MMIO_CONFIG + 4, 5);
    let state = world.machine.save();
    // What waits in the queue is done on the other side.
    let list = world.list(&[300]);
    let head = world.queues[0].add(&[list]);
    let (given, levels) = (Given::default(), Arc::new(Levels::default()));
    let balloon: VirtioBalloon = state.restore(0, parts(&given, &levels, false)).unwrap();
    let mut machine = world.machine.moved(&state, Box::new(balloon));
    assert_eq!(
        (levels.target(), levels.actual(), levels.inflated()),
        (9 * PAGE, 5 * PAGE, 0)
    );
    for queue in &mut world.queues {
        queue.follow(&machine.ram);
    }
    machine.mmio.resume();
    assert_eq!(machine.interrupt() & CONFIG_INTERRUPT, CONFIG_INTERRUPT);
    machine.service();
    assert_eq!(world.queues[0].used(), [(head, 0)]);
    assert_eq!(*given.lock().unwrap(), [pages(300, 1)]);
    // Reports are understood there as well: the features went with it.
    let head = world.queues[2].add(&[(400 * PAGE, 4096, true)]);
    machine.notify(2);
    assert_eq!(world.queues[2].used(), [(head, 0)]);
}

#[test]
fn a_balloon_with_features_of_a_newer_build_is_refused() {
    let state = BalloonState {
        features: features::offered(true, true) | 1 << 3,
        target: 0,
        actual: 0,
    };
    let parts = parts(&Given::default(), &Arc::default(), false);
    let text = VirtioBalloon::restore(state, parts).err().unwrap();
    assert!(
        text.contains("offers features 0x2c, this build has 0x24"),
        "{text}"
    );
}
