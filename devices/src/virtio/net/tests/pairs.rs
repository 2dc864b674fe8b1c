//! Several queue pairs: how many are in use, which frames go where, and all of that after a move.

use super::*;
use crate::virtio::testing::wires;

/// A machine with a card of several pairs, and the network behind each.
struct Pairs {
    machine: Machine,
    queues: Vec<Driver>,
    wire: Wire,
    networks: Vec<Network>,
}

const ACK: u64 = COMMANDS + 0x100;
const OK: u8 = 0;
const ERR: u8 = 1;

fn offered(pairs: usize) -> u64 {
    features::offered(Offloads::ALL, pairs, false) | VERSION_1 | EVENT_IDX | INDIRECT
}

fn set_up_pairs(pairs: usize, features: u64) -> Pairs {
    let (wire, networks) = wires(pairs);
    let card = VirtioNet::new(MAC, None, Box::new(wire.clone())).unwrap();
    let mut machine = Machine::new(Box::new(card));
    let queues = machine.set_up(features, 64);
    Pairs {
        machine,
        queues,
        wire,
        networks,
    }
}

/// Where the buffers of a queue lie.
fn buffers(queue: usize) -> u64 {
    0x10_0000 + 0x2_0000 * queue as u64
}

impl Pairs {
    /// A command to queue `control`; the result is its status, if it was obeyed at all.
    fn command(&mut self, control: usize, command: &[u8]) -> Option<u8> {
        let len = u32::try_from(command.len()).unwrap();
        let ram = &self.machine.ram;
        ram.write_slice(command, GuestAddress(COMMANDS)).unwrap();
        ram.write_slice(&[0xaa], GuestAddress(ACK)).unwrap();
        self.queues[control].add(&[(COMMANDS, len, false), (ACK, 1, true)]);
        self.machine.notify(u32::try_from(control).unwrap());
        self.queues[control].used().pop()?;
        let mut status = [0];
        self.machine
            .ram
            .read_slice(&mut status, GuestAddress(ACK))
            .unwrap();
        Some(status[0])
    }

    fn use_pairs(&mut self, count: u16) -> Option<u8> {
        let control = self.queues.len() - 1;
        let [low, high] = count.to_le_bytes();
        self.command(control, &[4, 0, low, high])
    }

    /// Sends a frame out of pair `pair`, and looks which networks saw it.
    fn transmit(&mut self, pair: usize, number: u32) -> Vec<usize> {
        let queue = 2 * pair + 1;
        let frame = [&[0; 12][..], &payload(number, 100)].concat();
        let at = GuestAddress(buffers(queue));
        self.machine.ram.write_slice(&frame, at).unwrap();
        self.queues[queue].add(&[(at.0, 112, false)]);
        self.machine.notify(u32::try_from(queue).unwrap());
        let networks = self.networks.iter().enumerate();
        networks
            .filter_map(|(index, network)| {
                let seen = network.receive()?;
                assert_eq!(seen, frame);
                Some(index)
            })
            .collect()
    }

    /// How many buffers of pair `pair` got a frame since the last call.
    fn received(&mut self, pair: usize) -> usize {
        self.queues[2 * pair].used().len()
    }

    fn provide(&mut self, pair: usize, count: u64) {
        for n in 0..count {
            self.queues[2 * pair].add(&[(buffers(2 * pair) + 2048 * n, 2048, true)]);
        }
    }

    fn moved(self) -> Self {
        let Self {
            mut machine,
            mut queues,
            networks,
            wire,
        } = self;
        let state = machine.save();
        let backend = Box::new(wire.clone());
        let card: VirtioNet = state.restore(0, NetParts { backend }).unwrap();
        let mut machine = machine.moved(&state, Box::new(card));
        queues
            .iter_mut()
            .for_each(|queue| queue.follow(&machine.ram));
        machine.mmio.resume();
        machine.service();
        Self {
            machine,
            queues,
            wire,
            networks,
        }
    }

    fn told(&self) -> usize {
        *self.wire.used.lock().unwrap().last().unwrap()
    }
}

#[test]
fn a_card_of_one_pair_offers_no_more_and_one_of_several_says_how_many() {
    for pairs in [1, 2, 8] {
        let (wire, _networks) = wires(pairs);
        let card = VirtioNet::new(MAC, None, Box::new(wire)).unwrap();
        let mut machine = Machine::new(Box::new(card));
        assert_eq!(machine.offered() & features::MQ != 0, pairs > 1);
        assert_eq!(machine.events.len(), 2 * pairs + 1);
        let mut most = [0; 2];
        crate::bus::BusDevice::read(&mut machine.mmio, 0x108, &mut most);
        assert_eq!(usize::from(u16::from_le_bytes(most)), pairs);
    }
    let (wire, _networks) = wires(9);
    assert!(VirtioNet::new(MAC, None, Box::new(wire)).is_err());
}

#[test]
fn the_driver_says_how_many_pairs_it_uses() {
    let mut card = set_up_pairs(4, offered(4));
    assert_eq!(card.told(), 1);
    for (count, status) in [(4, OK), (0, ERR), (5, ERR), (u16::MAX, ERR), (2, OK)] {
        assert_eq!(card.use_pairs(count), Some(status), "{count}");
    }
    // Beside those: the driver's first reset, and its DRIVER_OK.
    assert_eq!(*card.wire.used.lock().unwrap(), [1, 1, 4, 2]);
    // A command without its number, and any other of the class.
    for command in [&[4, 0][..], &[4, 0, 1], &[4, 1, 1, 0]] {
        assert_eq!(card.command(8, command), Some(ERR));
    }
    assert_eq!(card.told(), 2);
    // A reset begins with one again.
    card.machine.put(0x70, 0);
    assert_eq!(card.told(), 1);
}

#[test]
fn every_pair_has_its_own_queue_of_the_backend() {
    let mut card = set_up_pairs(4, offered(4));
    assert_eq!(card.use_pairs(4), Some(OK));
    for pair in 0..4 {
        assert_eq!(card.transmit(pair, 7), [pair]);
        card.provide(pair, 2);
    }
    for pair in [2, 0] {
        assert!(card.networks[pair].send(&payload(1, 60)));
        card.machine.mmio.lanes()[pair].backend_event();
        let got: Vec<_> = (0..4).map(|pair| card.received(pair)).collect();
        assert_eq!(got.iter().sum::<usize>(), 1);
        assert_eq!(got[pair], 1);
    }
    let counters = card.machine.mmio.counters();
    let count = |wanted| counters.iter().find(|(name, _)| *name == wanted).unwrap().1;
    assert_eq!((count("tx_frames"), count("rx_frames")), (4, 2));
}

#[test]
fn a_pair_that_is_not_in_use_receives_nothing_and_what_waited_comes_when_it_is() {
    let mut card = set_up_pairs(2, offered(2));
    card.provide(1, 4);
    assert!(card.networks[1].send(&payload(1, 60)));
    card.machine.mmio.backend_event();
    card.machine.notify(2);
    assert_eq!(card.received(1), 0);
    assert_eq!(card.use_pairs(2), Some(OK));
    card.machine.service();
    assert_eq!(card.received(1), 1);
    assert_eq!(card.use_pairs(1), Some(OK));
    assert!(card.networks[1].send(&payload(2, 60)));
    card.machine.mmio.backend_event();
    assert_eq!(card.received(1), 0);
}

/// Where there is no word of several pairs, the third queue is the control queue (virtio 1.2, 5.1.2).
#[test]
fn a_driver_that_knows_of_one_pair_finds_the_control_queue_behind_it() {
    let mut card = set_up_pairs(4, offered(4) & !features::MQ);
    assert_eq!(card.command(CONTROL, &[0, 0, 1]), Some(OK));
    assert_eq!(card.command(CONTROL, &[4, 0, 1, 0]), Some(ERR));
    // What would be the control queue otherwise is nothing, and neither are other pairs.
    assert_eq!(card.command(8, &[0, 0, 1]), None);
    assert_eq!(card.transmit(1, 3), [0; 0]);
    assert_eq!(card.transmit(0, 3), [0]);
    let mut card = card.moved();
    assert_eq!(card.command(CONTROL, &[0, 0, 1]), Some(OK));
}

#[test]
fn pairs_in_use_move_with_the_guest_and_so_do_their_frames() {
    let mut card = set_up_pairs(4, offered(4));
    assert_eq!(card.use_pairs(3), Some(OK));
    // No buffer: the frame is held, and moves.
    assert!(card.networks[2].send(&payload(1, 60)));
    card.machine.mmio.backend_event();
    let mut card = card.moved();
    assert_eq!(card.told(), 3);
    card.provide(2, 1);
    card.machine.notify(4);
    assert_eq!(card.received(2), 1);
    for pair in 0..3 {
        assert_eq!(card.transmit(pair, 9), [pair]);
    }
    // Paused, no lane works.
    card.machine.mmio.pause();
    assert!(!card.machine.mmio.lanes()[0].queue_event(0));
    assert_eq!(card.transmit(1, 9), [0; 0]);
}

#[test]
fn a_ring_that_one_lane_finds_broken_stops_all_until_a_reset() {
    let mut card = set_up_pairs(2, offered(2));
    assert_eq!(card.use_pairs(2), Some(OK));
    card.queues[3].set_avail_idx(5000);
    card.machine.notify(3);
    assert_eq!(card.machine.get(0x70) & 0x40, 0x40, "DEVICE_NEEDS_RESET");
    assert_eq!(card.machine.interrupt() & 2, 2, "and the driver is told");
    assert_eq!(card.transmit(0, 1), [0; 0]);
    let features = offered(2);
    card.queues = card.machine.set_up(features, 64);
    assert_eq!(card.transmit(0, 1), [0]);
}

#[test]
fn states_of_pairs_that_cannot_be_are_refused() {
    let (wire, _networks) = wires(2);
    let good = NetState::fresh(MAC, None, &wire);
    type Spoil = fn(&mut NetState);
    let spoils: [(&str, Spoil); 3] = [
        ("none in use", |s| s.held.clear()),
        ("more than there are", |s| s.held = vec![Vec::new(); 3]),
        ("a feature that it has not", |s| s.features |= 1 << 57),
    ];
    for (what, spoil) in spoils {
        let mut state = good.clone();
        spoil(&mut state);
        let backend = Box::new(wire.clone());
        assert!(
            VirtioNet::restore(state, NetParts { backend }).is_err(),
            "{what}"
        );
    }
    // Several are in use by a driver that knows of one.
    let mut card = set_up_pairs(2, offered(2));
    assert_eq!(card.use_pairs(2), Some(OK));
    let state = NetState {
        held: vec![Vec::new(); 2],
        ..good
    };
    let backend = Box::new(wire);
    let mut card = VirtioNet::restore(state, NetParts { backend }).unwrap();
    assert!(card.activate(offered(2) & !features::MQ).is_err());
}
