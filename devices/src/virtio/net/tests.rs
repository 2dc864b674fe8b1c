//! The network card with a socket pair for a tap: frames both ways, mid-traffic moves, the control queue.

use migration::state::VmState;
use vm_memory::{Bytes, GuestAddress};

use super::*;

mod kinds;
mod pairs;

use crate::virtio::testing::{
    Driver, Machine, Network, Wire, assert_changes_are_marked, clean, contents, wire,
};

const MAC: [u8; 6] = [2, 0, 0, 1, 2, 3];
const VERSION_1: u64 = 1 << 32;
const EVENT_IDX: u64 = 1 << 29;
const INDIRECT: u64 = 1 << 28;
const RX: usize = 0;
const TX: usize = 1;
const CONTROL: usize = 2;
const TX_QUEUE: u32 = 1;
const CONTROL_QUEUE: u32 = 2;
/// Where the buffers of the tests lie.
const RX_BUFFERS: u64 = 0x10_0000;
const TX_BUFFERS: u64 = 0x20_0000;
const COMMANDS: u64 = 0x30_0000;

/// A machine with a card, its driver's queues and the network at the other end.
struct Setup {
    machine: Machine,
    queues: Vec<Driver>,
    wire: Wire,
    network: Network,
}

fn all() -> u64 {
    features::offered(Offloads::ALL, 1, false) | VERSION_1 | EVENT_IDX | INDIRECT
}

fn set_up(features: u64, size: u16) -> Setup {
    let (wire, network) = wire();
    let card = VirtioNet::new(MAC, None, Box::new(wire.clone())).unwrap();
    let mut machine = Machine::new(Box::new(card));
    let queues = machine.set_up(features, size);
    Setup {
        machine,
        queues,
        wire,
        network,
    }
}

/// A frame that nobody could mistake for another.
fn payload(number: u32, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len)
        .map(|at| (at * 7 + number as usize * 13).to_le_bytes()[0])
        .collect();
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn number(payload: &[u8]) -> u32 {
    u32::from_le_bytes(*payload.first_chunk().unwrap())
}

impl Setup {
    /// Moves the card to another machine; the same wire is there too.
    fn moved(self) -> Self {
        let Self {
            machine,
            queues,
            wire,
            network,
        } = self;
        let (other, unused) = super::super::testing::wire();
        let setup = Self {
            machine,
            queues,
            wire: other,
            network: unused,
        };
        setup.moved_to(wire, network)
    }

    /// Moves the card to another machine and plugs it into `wire`.
    fn moved_to(self, wire: Wire, network: Network) -> Self {
        let Self {
            mut machine,
            mut queues,
            ..
        } = self;
        let state = machine.save();
        let backend = Box::new(wire.clone());
        let card: VirtioNet = state.restore(0, NetParts { backend }).unwrap();
        let machine = machine.moved(&state, Box::new(card));
        queues
            .iter_mut()
            .for_each(|queue| queue.follow(&machine.ram));
        Self {
            machine,
            queues,
            wire,
            network,
        }
    }

    /// The guest sends a frame of which header and payload are cut at `cut`.
    fn transmit(&mut self, at: u64, payload: &[u8], cut: usize) {
        let frame = [&[0; 12], payload].concat();
        self.machine
            .ram
            .write_slice(&frame, GuestAddress(at))
            .unwrap();
        let [first, rest] = [cut, frame.len() - cut].map(|len| u32::try_from(len).unwrap());
        self.queues[TX].add(&[(at, first, false), (at + u64::from(first), rest, false)]);
    }

    /// The guest makes `count` receive buffers of `len` bytes available, buffer by buffer from `at` on.
    fn provide(&mut self, at: u64, count: u64, len: u32) {
        for n in 0..count {
            self.queues[RX].add(&[(at + n * u64::from(len), len, true)]);
        }
    }

    /// What the guest received: the frames put together from their buffers, without headers. Buffers were provided
    /// so that buffer n of the queue is at `at + n * len`.
    fn received(&mut self, at: u64, len: u64) -> Vec<Vec<u8>> {
        let mut used = self.queues[RX].used().into_iter();
        let mut frames = Vec::new();
        while let Some((head, bytes)) = used.next() {
            let get = |head: u16, bytes: u32| {
                let mut data = vec![0; bytes as usize];
                self.machine
                    .ram
                    .read_slice(&mut data, GuestAddress(at + u64::from(head) * len))
                    .unwrap();
                data
            };
            let mut frame = get(head, bytes);
            let buffers = u16::from_le_bytes([frame[10], frame[11]]);
            for _ in 1..buffers {
                let (head, bytes) = used.next().expect("all buffers of a frame appear at once");
                frame.extend(get(head, bytes));
            }
            frames.push(frame.split_off(12));
        }
        frames
    }

    /// One control command; the result is its status.
    fn command(&mut self, command: &[u8]) -> u8 {
        let (ack, len) = (COMMANDS + 0x100, u32::try_from(command.len()).unwrap());
        self.machine
            .ram
            .write_slice(command, GuestAddress(COMMANDS))
            .unwrap();
        self.machine
            .ram
            .write_slice(&[0xaa], GuestAddress(ack))
            .unwrap();
        let head = self.queues[CONTROL].add(&[
            (COMMANDS, 2, false),
            (COMMANDS + 2, len - 2, false),
            (ack, 1, true),
        ]);
        self.machine.notify(CONTROL_QUEUE);
        assert_eq!(self.queues[CONTROL].used(), [(head, 1)]);
        let mut status = [0];
        self.machine
            .ram
            .read_slice(&mut status, GuestAddress(ack))
            .unwrap();
        status[0]
    }

    fn config(&mut self) -> ([u8; 6], u16) {
        let mut config = [0; 8];
        crate::bus::BusDevice::read(&mut self.machine.mmio, 0x100, &mut config);
        let [a, b, c, d, e, f, low, high] = config;
        ([a, b, c, d, e, f], u16::from_le_bytes([low, high]))
    }

    fn counter(&self, name: &str) -> u64 {
        let counters = self.machine.mmio.counters();
        counters
            .into_iter()
            .find(|(found, _)| *found == name)
            .unwrap()
            .1
    }
}

#[test]
fn frames_leave_whole_and_in_order_however_they_are_cut() {
    let mut setup = set_up(all(), 256);
    let mut sent = Vec::new();
    for (n, (len, cut)) in [(60, 12), (1514, 5), (60_000, 4096), (100, 111)]
        .into_iter()
        .enumerate()
    {
        let frame = payload(u32::try_from(n).unwrap(), len);
        setup.transmit(TX_BUFFERS + 0x1_0000 * n as u64, &frame, cut);
        sent.push(frame);
    }
    setup.machine.notify(TX_QUEUE);
    let got: Vec<_> = std::iter::from_fn(|| setup.network.receive())
        .map(|mut f| f.split_off(12))
        .collect();
    assert!(got == sent);
    assert_eq!(setup.queues[TX].used().len(), 4);
    assert_eq!(setup.machine.interrupt(), 1);
    assert_eq!(setup.counter("tx_frames"), 4);
}

#[test]
fn what_is_no_frame_is_dropped_and_counted() {
    let mut setup = set_up(all(), 256);
    setup.queues[TX].add(&[(TX_BUFFERS, 11, false)]);
    setup.queues[TX].add(&[(TX_BUFFERS, 65_563, false)]);
    setup.queues[TX].add(&[(TX_BUFFERS, 64, true)]);
    setup.transmit(TX_BUFFERS, &payload(1, 60), 12);
    setup.machine.notify(TX_QUEUE);
    assert_eq!(setup.queues[TX].used().len(), 4);
    assert_eq!(setup.network.receive().map(|f| number(&f[12..])), Some(1));
    assert_eq!(
        (setup.counter("tx_dropped"), setup.counter("tx_frames")),
        (3, 1)
    );
}

#[test]
fn a_full_backend_holds_frames_back_and_loses_none() {
    let mut setup = set_up(all(), 256);
    for n in 0..100 {
        let at = TX_BUFFERS + u64::from(n) * 0x2800;
        setup.transmit(at, &payload(n, 0x2000), 12);
    }
    setup.machine.notify(TX_QUEUE);
    let mut got = Vec::new();
    assert!(
        setup.queues[TX].used().len() < 100,
        "the socket's buffer holds fewer"
    );
    while let Some(frame) = setup.network.receive() {
        got.push(number(&frame[12..]));
        setup.machine.mmio.backend_event();
        setup.machine.service();
    }
    assert_eq!(got, (0..100).collect::<Vec<_>>());
}

#[test]
fn a_queue_that_has_run_dry_asks_for_a_notification() {
    let mut setup = set_up(all(), 256);
    for n in 0..3 {
        setup.transmit(TX_BUFFERS, &payload(n, 100), 12);
    }
    setup.machine.notify(TX_QUEUE);
    assert_eq!(setup.queues[TX].avail_event(), 3);
    setup.provide(RX_BUFFERS, 2, 2048);
    for n in 0..3 {
        assert!(setup.network.send(&payload(n, 100)));
    }
    setup.machine.mmio.backend_event();
    assert_eq!(setup.queues[RX].avail_event(), 2, "one frame has no buffer");
    assert_eq!(setup.received(RX_BUFFERS, 2048).len(), 2);
}

#[test]
fn a_burst_ends_and_asks_to_go_on() {
    let mut setup = set_up(all(), 256);
    for n in 0..64 {
        // All in the same 32 KiB: more than a burst's bytes in all.
        setup.transmit(TX_BUFFERS, &payload(n, 32_000), 12);
    }
    let before = setup.network.receive();
    assert!(before.is_none());
    let mut bursts = 0;
    setup.machine.events[TX].write(1).unwrap();
    let mut done = 0;
    while done < 64 {
        setup.machine.events[TX].read().ok();
        setup.machine.mmio.queue_event(TX);
        while setup.network.receive().is_some() {}
        bursts += 1;
        let burst = setup.queues[TX].used().len();
        assert!(
            burst as u64 * 32_012 < crate::virtio::device::BURST_BYTES + 32_012,
            "{burst} frames"
        );
        done += burst;
        assert!(bursts < 100);
    }
    assert_eq!(done, 64);
}

#[test]
fn a_long_frame_fills_many_buffers_and_every_page_is_marked() {
    let mut setup = set_up(all(), 256);
    setup.provide(RX_BUFFERS, 64, 1536);
    setup.machine.notify(0);
    let frame = payload(7, 65_000);
    let before = contents(&setup.machine.ram);
    clean(&setup.machine.ram);
    assert!(setup.network.send(&frame));
    setup.machine.mmio.backend_event();
    assert_changes_are_marked(&setup.machine.ram, &before);
    for page in 0..(65_012 / 4096) {
        assert!(
            crate::virtio::testing::dirty(&setup.machine.ram, RX_BUFFERS + page * 4096),
            "{page}"
        );
    }
    assert!(!crate::virtio::testing::dirty(
        &setup.machine.ram,
        RX_BUFFERS + 17 * 4096
    ));
    assert!(setup.received(RX_BUFFERS, 1536) == [frame]);
    assert_eq!(setup.machine.interrupt(), 1);
}

#[test]
fn one_chain_of_many_pages_is_marked_to_its_end() {
    let mut setup = set_up(all() & !features::MRG_RXBUF, 256);
    let pages: Vec<_> = (0..17)
        .map(|n| (RX_BUFFERS + n * 0x3000, 4096, true))
        .collect();
    let head = setup.queues[RX].add(&pages);
    setup.machine.notify(0);
    let before = contents(&setup.machine.ram);
    clean(&setup.machine.ram);
    assert!(setup.network.send(&payload(1, 65_000)));
    setup.machine.mmio.backend_event();
    assert_eq!(setup.queues[RX].used(), [(head, 65_012)]);
    assert_changes_are_marked(&setup.machine.ram, &before);
    for (gpa, ..) in pages.iter().take(65_012 / 4096 + 1) {
        assert!(
            crate::virtio::testing::dirty(&setup.machine.ram, *gpa),
            "{gpa:#x}"
        );
        assert!(
            !crate::virtio::testing::dirty(&setup.machine.ram, gpa + 0x1000),
            "{gpa:#x}"
        );
    }
    let mut buffers = [0; 2];
    setup
        .machine
        .ram
        .read_slice(&mut buffers, GuestAddress(RX_BUFFERS + 10))
        .unwrap();
    assert_eq!(u16::from_le_bytes(buffers), 1);
}

#[test]
fn unused_buffers_stay_with_the_driver() {
    let mut setup = set_up(all(), 256);
    setup.provide(RX_BUFFERS, 64, 1536);
    setup.machine.notify(0);
    for n in 0..5 {
        assert!(setup.network.send(&payload(n, 100)));
    }
    setup.machine.mmio.backend_event();
    let got: Vec<_> = setup
        .received(RX_BUFFERS, 1536)
        .iter()
        .map(|f| number(f))
        .collect();
    assert_eq!(got, [0, 1, 2, 3, 4]);
    let state = migration::state::Snapshot::save(&setup.machine.mmio);
    assert_eq!(
        (state.queues[RX].next_avail, state.queues[RX].next_used),
        (5, 5)
    );
}

#[test]
fn a_frame_too_long_for_its_buffer_is_dropped_and_the_next_is_not() {
    let mut setup = set_up(all() & !features::MRG_RXBUF, 256);
    setup.provide(RX_BUFFERS, 2, 2048);
    setup.machine.notify(0);
    assert!(setup.network.send(&payload(1, 3000)));
    assert!(setup.network.send(&payload(2, 1000)));
    setup.machine.mmio.backend_event();
    setup.machine.service();
    assert!(setup.received(RX_BUFFERS, 2048) == [payload(2, 1000)]);
    assert_eq!(
        (setup.counter("rx_dropped"), setup.counter("rx_frames")),
        (1, 1)
    );
}

#[test]
fn a_frame_waits_for_buffers_and_moves_with_the_guest() {
    let mut setup = set_up(all(), 256);
    setup.provide(RX_BUFFERS, 2, 1536);
    setup.machine.notify(0);
    let (long, next) = (payload(1, 20_000), payload(2, 50));
    assert!(setup.network.send(&long));
    setup.machine.mmio.backend_event();
    assert_eq!(setup.queues[RX].used(), []);
    let (wire, network) = wire();
    assert!(network.send(&next));
    let mut setup = setup.moved_to(wire, network);
    setup.machine.mmio.resume();
    setup.machine.service();
    assert_eq!(setup.queues[RX].used(), [], "two buffers are too few");
    setup.provide(RX_BUFFERS + 2 * 1536, 30, 1536);
    let before = contents(&setup.machine.ram);
    clean(&setup.machine.ram);
    setup.machine.notify(0);
    assert_changes_are_marked(&setup.machine.ram, &before);
    assert!(setup.received(RX_BUFFERS, 1536) == [long, next]);
    assert_eq!(setup.counter("rx_dropped"), 0);
}

#[test]
fn a_frame_for_which_the_whole_ring_has_no_room_is_dropped() {
    let mut setup = set_up(all(), 4);
    setup.provide(RX_BUFFERS, 4, 1536);
    setup.machine.notify(0);
    assert!(setup.network.send(&payload(1, 20_000)));
    assert!(setup.network.send(&payload(2, 100)));
    setup.machine.mmio.backend_event();
    setup.machine.service();
    assert!(setup.received(RX_BUFFERS, 1536) == [payload(2, 100)]);
    assert_eq!(setup.counter("rx_dropped"), 1);
}

#[test]
fn no_frame_is_lost_or_doubled_by_moves_amid_traffic() {
    let mut setup = set_up(all(), 256);
    let (mut to_guest, mut got_by_network, mut got_by_guest) = (0, Vec::new(), Vec::new());
    for round in 0..12u32 {
        // The guest refills what it has used; buffer n of the ring is always at the same place.
        while setup.queues[RX].outstanding() < 40 {
            let at = RX_BUFFERS + setup.queues[RX].next_index() * 2048;
            setup.queues[RX].add(&[(at, 2048, true)]);
        }
        for n in 0..20 {
            let frame = payload(round * 20 + n, 1000);
            let at = TX_BUFFERS + (setup.queues[TX].next_index() / 2) * 2048;
            setup.transmit(at, &frame, 12);
        }
        for _ in 0..25 {
            // A full wire takes no more: that is no loss.
            to_guest += u32::from(setup.network.send(&payload(to_guest, 3000)));
        }
        // Of both directions some is served on this side, some is left to the next.
        if round % 2 == 0 {
            setup.machine.notify(TX_QUEUE);
        }
        if round % 3 == 0 {
            setup.machine.mmio.backend_event();
        }
        setup = setup.moved();
        setup.machine.mmio.resume();
        if round % 4 != 0 {
            setup.machine.service();
        }
        got_by_network
            .extend(std::iter::from_fn(|| setup.network.receive()).map(|f| number(&f[12..])));
        got_by_guest.extend(setup.received(RX_BUFFERS, 2048));
        setup.queues[TX].used();
    }
    // What is still under way, once there are buffers for all of it.
    for _ in 0..20 {
        while setup.queues[RX].outstanding() < 100 {
            let at = RX_BUFFERS + setup.queues[RX].next_index() * 2048;
            setup.queues[RX].add(&[(at, 2048, true)]);
        }
        setup.machine.notify(TX_QUEUE);
        setup.machine.notify(0);
        got_by_network
            .extend(std::iter::from_fn(|| setup.network.receive()).map(|f| number(&f[12..])));
        got_by_guest.extend(setup.received(RX_BUFFERS, 2048));
    }
    assert_eq!(got_by_network, (0..240).collect::<Vec<_>>());
    assert!(to_guest > 200, "{to_guest}");
    assert_eq!(got_by_guest.len(), to_guest as usize);
    for (n, frame) in (0..).zip(got_by_guest) {
        assert!(frame == payload(n, 3000), "frame {n}");
    }
    assert_eq!(
        (setup.counter("rx_dropped"), setup.counter("tx_dropped")),
        (0, 0)
    );
}

#[test]
fn the_offloads_in_use_are_applied_again_after_a_move() {
    let mut setup = set_up(all(), 256);
    assert_eq!(*setup.network.offloads.lock().unwrap(), [Offloads::ALL]);
    let set = [&[5, 0][..], &features::GUEST_CSUM.to_le_bytes()].concat();
    assert_eq!(setup.command(&set), 0);
    assert_eq!(
        setup.network.offloads.lock().unwrap().last(),
        Some(&Offloads::CHECKSUM)
    );
    let (wire, network) = wire();
    let setup = setup.moved_to(wire, network);
    assert_eq!(
        *setup.network.offloads.lock().unwrap(),
        [Offloads::CHECKSUM]
    );
}

#[test]
fn offloads_follow_what_was_negotiated() {
    let plain = VERSION_1
        | features::MAC
        | features::CTRL_VQ
        | features::GUEST_CSUM
        | features::CTRL_GUEST_OFFLOADS;
    let mut setup = set_up(plain, 256);
    assert_eq!(
        *setup.network.offloads.lock().unwrap(),
        [Offloads::CHECKSUM]
    );
    let set = [&[5, 0][..], &features::GUEST_TSO4.to_le_bytes()].concat();
    assert_eq!(setup.command(&set), 1, "TSO was not negotiated");
    assert_eq!(setup.network.offloads.lock().unwrap().len(), 1);
}

#[test]
fn features_without_what_they_need_are_not_accepted() {
    let (wire, _network) = wire();
    let card = VirtioNet::new(MAC, None, Box::new(wire)).unwrap();
    let mut machine = Machine::new(Box::new(card));
    assert_eq!(machine.negotiate(VERSION_1 | features::GUEST_TSO4), 3);
    assert_eq!(
        machine.negotiate(VERSION_1 | features::GUEST_TSO4 | features::GUEST_CSUM),
        0xb
    );
}

#[test]
fn control_commands_are_obeyed_or_refused() {
    let mut setup = set_up(all(), 64);
    let cases: [(&[u8], u8); 11] = [
        (&[0, 0, 1], 0),
        (&[0, 1, 0], 0),
        (&[0, 5, 1], 0),
        (&[0, 6, 1], 1),
        (&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0),
        (&[1, 1, 2, 9, 9, 9, 9, 9], 0),
        (&[1, 1, 1, 9, 9, 9, 9, 9], 1),
        (&[1, 1, 2, 9, 9], 1),
        (&[4, 0, 1, 0], 1),
        (&[5, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], 1),
        (&[200, 200, 200], 1),
    ];
    for (command, status) in cases {
        assert_eq!(setup.command(command), status, "{command:?}");
    }
    assert_eq!(setup.config().0, [2, 9, 9, 9, 9, 9]);
    // The address moves, and a reset takes it back.
    let mut setup = setup.moved();
    assert_eq!(setup.config().0, [2, 9, 9, 9, 9, 9]);
    setup.machine.put(0x70, 0);
    assert_eq!(setup.config().0, MAC);
}

#[test]
fn commands_need_their_feature() {
    let mut setup = set_up(VERSION_1 | features::CTRL_VQ, 64);
    for command in [&[0, 0, 1][..], &[1, 1, 2, 9, 9, 9, 9, 9], &[3, 0, 0]] {
        assert_eq!(setup.command(command), 1, "{command:?}");
    }
}

#[test]
fn a_moved_guest_is_announced_both_ways() {
    let mut setup = set_up(all(), 64).moved();
    setup.machine.mmio.resume();
    setup.machine.interrupt();
    let generation = setup.machine.get(0xfc);
    setup.machine.mmio.announce_round();
    assert_eq!(setup.network.receive(), Some(announce::rarp(MAC)));
    assert_eq!((setup.config().1, setup.machine.interrupt()), (3, 2));
    assert_ne!(setup.machine.get(0xfc), generation);
    // Still to be acknowledged after another move.
    let mut setup = setup.moved();
    setup.machine.mmio.resume();
    assert_eq!(setup.config().1, 3);
    // The acknowledgement has no data: Linux sends class and command alone.
    let ack = COMMANDS + 0x100;
    setup
        .machine
        .ram
        .write_slice(&[3, 0], GuestAddress(COMMANDS))
        .unwrap();
    let head = setup.queues[CONTROL].add(&[(COMMANDS, 2, false), (ack, 1, true)]);
    setup.machine.notify(CONTROL_QUEUE);
    assert_eq!(setup.queues[CONTROL].used(), [(head, 1)]);
    assert_eq!(setup.config().1, 1);
}

#[test]
fn a_guest_that_cannot_announce_itself_is_announced_by_the_host() {
    let mut setup = set_up(VERSION_1 | features::STATUS, 64);
    setup.machine.mmio.announce_round();
    assert_eq!(setup.network.receive(), Some(announce::rarp(MAC)));
    assert_eq!((setup.config().1, setup.machine.interrupt()), (1, 0));
    setup.machine.mmio.pause();
    setup.machine.mmio.announce_round();
    assert_eq!(setup.network.receive(), None, "a paused guest is silent");
}

#[test]
fn a_command_without_room_for_its_status_breaks_the_device() {
    let mut setup = set_up(all(), 64);
    setup.queues[CONTROL].add(&[(COMMANDS, 2, false)]);
    setup.machine.notify(CONTROL_QUEUE);
    assert_eq!(setup.machine.get(0x70), 0x4f);
}

#[test]
fn states_that_are_no_card_are_refused() {
    let (wire, _network) = wire();
    let good = NetState::fresh(MAC, Some(1500), &wire);
    type Spoil = fn(&mut NetState);
    let bad: [(&str, Spoil); 9] = [
        ("multicast", |s| s.mac[0] = 1),
        ("no address", |s| s.default_mac = [0; 6]),
        ("MTU", |s| s.mtu = Some(67)),
        ("MTU offered without one", |s| s.mtu = None),
        ("a feature that is not there", |s| {
            s.features |= features::HOST_ECN << 1
        }),
        ("offloads beyond the features", |s| {
            s.guest_offloads = Some(1 << 10)
        }),
        ("queue pairs", |s| s.held.push(Vec::new())),
        ("held frame too long", |s| {
            s.held[0] = vec![0; rx::MAX_HELD + 1]
        }),
        ("held frame too short", |s| s.held[0] = vec![0; 11]),
    ];
    for (what, spoil) in bad {
        let mut state = good.clone();
        spoil(&mut state);
        let parts = NetParts {
            backend: Box::new(wire.clone()),
        };
        assert!(VirtioNet::restore(state, parts).is_err(), "{what}");
    }
    let mut state = VmState::default();
    state
        .put(VirtioNet::KIND, 3, VirtioNet::VERSION, &good)
        .unwrap();
    let card: VirtioNet = state
        .restore(
            3,
            NetParts {
                backend: Box::new(wire),
            },
        )
        .unwrap();
    assert_eq!(card.save(), good);
}
