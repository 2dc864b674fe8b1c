//! Frames of every kind pass byte for byte, both ways, also after a move: the card looks into none of them.

use super::*;

/// Ethernet addresses: one station, everybody, IPv4 and IPv6 groups (RFC 1112, RFC 2464).
const STATION: [u8; 6] = [2, 0, 0, 9, 9, 9];
const EVERYBODY: [u8; 6] = [0xff; 6];
const GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 0xfb];
const GROUP_6: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const IPV4: &[u8] = &[8, 0];
const IPV6: &[u8] = &[0x86, 0xdd];
/// A VLAN tag (IEEE 802.1Q): priority 5, VLAN 100; and one VLAN in another (802.1ad).
const TAGGED: &[u8] = &[0x81, 0, 0xa0, 100, 8, 0];
const TWICE: &[u8] = &[0x88, 0xa8, 0, 7, 0x81, 0, 0, 100, 0x86, 0xdd];
/// The MTU of jumbo frames.
const JUMBO: u16 = 9000;

/// A frame for every kind, with so many bytes behind its Ethernet header.
fn frames() -> Vec<Vec<u8>> {
    let kinds: [([u8; 6], &[u8], usize); 9] = [
        (STATION, IPV4, 46),
        (EVERYBODY, &[8, 6], 46),
        (GROUP, IPV4, 500),
        (GROUP_6, IPV6, 72),
        (STATION, IPV6, 1500),
        (STATION, TAGGED, 1500),
        (EVERYBODY, TWICE, 1500),
        (STATION, IPV4, JUMBO.into()),
        (STATION, TAGGED, JUMBO.into()),
    ];
    let frame = |(n, (to, kind, len)): (usize, ([u8; 6], &[u8], usize))| {
        let body = payload(u32::try_from(n).unwrap(), len);
        [&to[..], &MAC, kind, &body].concat()
    };
    kinds.into_iter().enumerate().map(frame).collect()
}

/// Every frame out and in again.
fn exchange(setup: &mut Setup, buffer: u32) {
    let frames = frames();
    for (n, frame) in (0..).zip(&frames) {
        setup.transmit(TX_BUFFERS + 0x4000 * n, frame, 12);
    }
    setup.machine.notify(TX_QUEUE);
    let out: Vec<_> = std::iter::from_fn(|| setup.network.receive())
        .map(|mut frame| frame.split_off(12))
        .collect();
    assert!(out == frames);
    assert_eq!(setup.queues[TX].used().len(), frames.len());

    for frame in &frames {
        // One at a time, so that the queue's buffers can be the same ones for all.
        assert!(setup.network.send(frame));
        setup.machine.mmio.backend_event();
        setup.machine.service();
        assert!(setup.received(RX_BUFFERS, buffer.into()) == [frame.clone()]);
    }
}

fn card(features: u64) -> Setup {
    let (wire, network) = wire();
    let card = VirtioNet::new(MAC, Some(JUMBO), Box::new(wire.clone())).unwrap();
    let mut machine = Machine::new(Box::new(card));
    let queues = machine.set_up(features, 256);
    Setup {
        machine,
        queues,
        wire,
        network,
    }
}

#[test]
fn frames_of_every_kind_pass_unharmed_before_and_after_a_move() {
    let features = features::offered(Offloads::ALL, 1, true) | VERSION_1 | EVENT_IDX | INDIRECT;
    let plain = features::MAC | features::MTU | features::CTRL_VQ | VERSION_1;
    // With merged buffers and segmentation; merged alone, so that no frame is expected above the MTU; and one buffer a
    // frame.
    let settings = [
        (features, 1536),
        (plain | features::MRG_RXBUF, 1536),
        (plain, 12_000),
    ];
    for (features, buffer) in settings {
        let mut setup = card(features);
        setup.provide(RX_BUFFERS, 80, buffer);
        exchange(&mut setup, buffer);
        let mut setup = setup.moved();
        setup.machine.mmio.resume();
        setup.machine.service();
        exchange(&mut setup, buffer);
        assert_eq!(setup.counter("rx_dropped") + setup.counter("tx_dropped"), 0);
    }
}
