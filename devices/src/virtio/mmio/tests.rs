//! The transport through its registers, with the entropy source behind it.

use virtio_bindings::virtio_mmio as reg;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::bus::BusDevice;
use crate::virtio::VirtioRng;
use crate::virtio::queue::RingState;
use crate::virtio::testing::{Driver, Machine, parts, ram};

const VERSION_1: u64 = 1 << 32;
const EVENT_IDX: u64 = 1 << 29;

fn machine() -> Machine {
    Machine::new(Box::new(VirtioRng::new()))
}

fn status(machine: &mut Machine) -> u32 {
    machine.get(reg::VIRTIO_MMIO_STATUS)
}

#[test]
fn a_driver_finds_a_modern_device() {
    let mut machine = machine();
    assert_eq!(
        machine.get(reg::VIRTIO_MMIO_MAGIC_VALUE),
        u32::from_le_bytes(*b"virt")
    );
    assert_eq!(machine.get(reg::VIRTIO_MMIO_VERSION), 2);
    assert_eq!(machine.get(reg::VIRTIO_MMIO_DEVICE_ID), 4);
    assert_eq!(machine.offered(), VERSION_1 | EVENT_IDX | 1 << 28);
    assert_eq!(machine.get(reg::VIRTIO_MMIO_QUEUE_NUM_MAX), 64);
    machine.put(reg::VIRTIO_MMIO_QUEUE_SEL, 1);
    assert_eq!(
        machine.get(reg::VIRTIO_MMIO_QUEUE_NUM_MAX),
        0,
        "there is no such queue"
    );
    assert_eq!(machine.get(reg::VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
    machine.put(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(machine.get(reg::VIRTIO_MMIO_DEVICE_FEATURES), 0);
}

#[test]
fn registers_are_read_as_memory_and_written_by_aligned_words_only() {
    let mut machine = machine();
    let reads: [(u64, &[u8]); 7] = [
        (0, b"v"),
        (0, b"vi"),
        (0, b"virt\x02\0\0\0"),
        (1, b"irt\x02"),
        (0x72, &[0; 2]),
        (0xfff, &[0; 8]),
        (u64::MAX, &[0]),
    ];
    for (offset, expected) in reads {
        let mut data = [0xaa; 8];
        let data = &mut data[..expected.len()];
        machine.mmio.read(offset, data);
        assert_eq!(data, expected, "{offset:#x}");
        let _ = machine.mmio.write(offset, &[1; 8][..expected.len()]);
    }
    let _ = machine.mmio.write(0x70, &[1]);
    assert_eq!(status(&mut machine), 0);
}

#[test]
fn features_are_final_only_when_they_fit() {
    let mut machine = machine();
    assert_eq!(machine.negotiate(EVENT_IDX), 3, "without VERSION_1");
    assert_eq!(
        machine.negotiate(VERSION_1 | 1 << 5),
        3,
        "one that is not on offer"
    );
    assert_eq!(
        machine.negotiate(VERSION_1 | 1 << 63),
        3,
        "one that is not on offer, high"
    );
    assert_eq!(machine.negotiate(VERSION_1), 0xb);
    machine.accept(VERSION_1 | EVENT_IDX);
    assert_eq!(
        machine.mmio.driver_features, VERSION_1,
        "may not be changed any more"
    );
}

#[test]
fn the_status_goes_forward_in_order_and_back_by_reset_alone() {
    let mut machine = machine();
    // (written, then read), from reset, without any features accepted.
    let steps = [
        (4, 0),
        (8, 0),
        (1, 1),
        (0, 0),
        (2, 2),
        (3, 3),
        (1, 3),
        (2, 3),
        (0xb, 3),
        (7, 3),
        (0x13, 3),
        (0x83, 0x83),
        (3, 0x83),
    ];
    for (write, read) in steps {
        machine.put(reg::VIRTIO_MMIO_STATUS, write);
        assert_eq!(status(&mut machine), read, "after {write:#x}");
    }
    machine.put(reg::VIRTIO_MMIO_STATUS, 0);
    assert_eq!(machine.negotiate(VERSION_1), 0xb);
    machine.put(reg::VIRTIO_MMIO_STATUS, 0xf);
    assert_eq!(status(&mut machine), 0xf);
    machine.put(reg::VIRTIO_MMIO_STATUS, 0xf | FAILED);
    assert_eq!(status(&mut machine), 0x8f);
    assert!(!machine.mmio.works());
}

#[test]
fn queues_are_set_up_between_features_and_driver_ok() {
    let mut machine = machine();
    let driver = Driver::new(&machine.ram, 0x1000, 16);
    machine.put(reg::VIRTIO_MMIO_STATUS, 3);
    machine.set_queue(0, &driver);
    assert_eq!(machine.get(reg::VIRTIO_MMIO_QUEUE_READY), 0, "too early");
    machine.negotiate(VERSION_1);
    machine.put(reg::VIRTIO_MMIO_STATUS, 0xf);
    machine.set_queue(0, &driver);
    assert_eq!(machine.get(reg::VIRTIO_MMIO_QUEUE_READY), 0, "too late");
    machine.negotiate(VERSION_1);
    machine.set_queue(0, &driver);
    assert_eq!(machine.get(reg::VIRTIO_MMIO_QUEUE_READY), 1);
    machine.put(reg::VIRTIO_MMIO_QUEUE_NUM, 8);
    assert_eq!(
        machine.mmio.own.rings[0].size(),
        16,
        "ready queues keep their settings"
    );
    machine.put(reg::VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(machine.get(reg::VIRTIO_MMIO_QUEUE_READY), 0);
    machine.put(reg::VIRTIO_MMIO_STATUS, 0);
    assert_eq!(machine.mmio.save(), MmioState::reset(&VirtioRng::new()));
}

#[test]
fn entropy_is_given_and_its_pages_are_marked() {
    let mut machine = machine();
    let mut queue = machine.set_up(VERSION_1, 16).remove(0);
    let before = crate::virtio::testing::contents(&machine.ram);
    let head = queue.add(&[(0x8ff0, 32, true), (0x1_0000_0000, 64, true)]);
    let big = queue.add(&[(0x2_0000, 1 << 20, true)]);
    crate::virtio::testing::clean(&machine.ram);
    machine.notify(0);
    assert_eq!(queue.used(), [(head, 96), (big, 4096)]);
    assert_eq!(machine.interrupt(), USED_INTERRUPT);
    let mut bytes = [0; 64];
    machine
        .ram
        .read_slice(&mut bytes, GuestAddress(0x1_0000_0000))
        .unwrap();
    assert!(bytes.iter().filter(|&&byte| byte != 0).count() > 32);
    for page in [0x8000, 0x9000, 0x1_0000_0000, 0x2_0000] {
        assert!(
            crate::virtio::testing::dirty(&machine.ram, page),
            "{page:#x}"
        );
    }
    // The avail ring was written before the marks were taken away, by the driver.
    let mut before = before;
    before[0][0x1000..0x4000]
        .copy_from_slice(&crate::virtio::testing::contents(&machine.ram)[0][0x1000..0x4000]);
    crate::virtio::testing::assert_changes_are_marked(&machine.ram, &before);
}

#[test]
fn a_broken_ring_costs_the_device_until_it_is_reset() {
    let mut machine = machine();
    let mut queue = machine.set_up(VERSION_1, 16).remove(0);
    queue.add(&[(1 << 40, 8, true)]);
    machine.notify(0);
    assert_eq!(status(&mut machine), 0xf | NEEDS_RESET);
    assert_eq!(machine.interrupt(), CONFIG_INTERRUPT);
    queue.add(&[(0x8000, 8, true)]);
    machine.notify(0);
    assert_eq!(
        (queue.used(), machine.interrupt()),
        (vec![], 0),
        "out of order"
    );
    let mut queue = machine.set_up(VERSION_1, 16).remove(0);
    let head = queue.add(&[(0x8000, 8, true)]);
    machine.notify(0);
    assert_eq!(queue.used(), [(head, 8)]);
}

#[test]
fn a_queue_outside_of_memory_never_becomes_ready() {
    let mut machine = machine();
    machine.negotiate(VERSION_1);
    let driver = Driver::new(&machine.ram, 0x1000, 16);
    machine.set_queue(0, &driver);
    machine.put(reg::VIRTIO_MMIO_QUEUE_READY, 0);
    machine.put(reg::VIRTIO_MMIO_QUEUE_DESC_HIGH, 0x8000_0000);
    machine.put(reg::VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(machine.get(reg::VIRTIO_MMIO_QUEUE_READY), 0);
    assert_eq!(status(&mut machine), 0xb | NEEDS_RESET);
    machine.put(reg::VIRTIO_MMIO_STATUS, 0xf);
    assert_eq!(
        status(&mut machine),
        0xb | NEEDS_RESET,
        "no DRIVER_OK for a broken device"
    );
}

#[test]
fn a_paused_device_does_nothing_and_catches_up() {
    let mut machine = machine();
    let mut queue = machine.set_up(VERSION_1, 16).remove(0);
    machine.mmio.pause();
    let head = queue.add(&[(0x8000, 8, true)]);
    machine.notify(0);
    assert_eq!((queue.used(), machine.interrupt()), (vec![], 0));
    machine.mmio.resume();
    machine.service();
    assert_eq!(queue.used(), [(head, 8)]);
    assert_eq!(machine.interrupt(), USED_INTERRUPT);
}

#[test]
fn a_move_loses_no_request_and_raises_both_interrupts_once() {
    let mut machine = machine();
    let mut queue = machine.set_up(VERSION_1 | EVENT_IDX, 16).remove(0);
    let first = queue.add(&[(0x8000, 8, true)]);
    machine.notify(0);
    let second = queue.add(&[(0x9000, 8, true)]);
    let state = machine.save();
    let device: VirtioRng = state.restore(0, ()).unwrap();
    let mut machine = machine.moved(&state, Box::new(device));
    queue.follow(&machine.ram);
    assert_eq!(queue.used(), [(first, 8)]);
    assert_eq!(machine.service(), 0, "paused");
    machine.mmio.resume();
    assert_eq!(machine.interrupt(), USED_INTERRUPT | CONFIG_INTERRUPT);
    machine.service();
    assert_eq!(queue.used(), [(second, 8)]);
    machine.interrupt();
    machine.mmio.pause();
    machine.mmio.resume();
    assert_eq!(machine.interrupt(), 0, "only after a restore");
}

#[test]
fn suppressed_interrupts_stay_suppressed_across_a_move() {
    let mut machine = machine();
    let mut queue = machine.set_up(VERSION_1 | EVENT_IDX, 16).remove(0);
    queue.set_used_event(3);
    for _ in 0..3 {
        queue.add(&[(0x8000, 8, true)]);
        machine.notify(0);
        assert_eq!(machine.interrupt(), 0);
    }
    let state = machine.save();
    let device: VirtioRng = state.restore(0, ()).unwrap();
    let mut machine = machine.moved(&state, Box::new(device));
    queue.follow(&machine.ram);
    machine.mmio.resume();
    machine.service();
    assert_eq!(
        machine.interrupt(),
        USED_INTERRUPT | CONFIG_INTERRUPT,
        "that of the resume"
    );
    assert_eq!(machine.interrupt(), 0);
    queue.add(&[(0x8000, 8, true)]);
    machine.notify(0);
    assert_eq!(
        machine.interrupt(),
        USED_INTERRUPT,
        "the fourth is the one asked for"
    );
    queue.add(&[(0x8000, 8, true)]);
    machine.notify(0);
    assert_eq!(machine.interrupt(), 0);
}

#[test]
fn an_untouched_device_moves_too_and_is_silent() {
    let mut machine = machine();
    let state = machine.save();
    let device: VirtioRng = state.restore(0, ()).unwrap();
    let mut machine = machine.moved(&state, Box::new(device));
    machine.mmio.resume();
    assert_eq!((machine.service(), machine.interrupt()), (0, 0));
    let mut queue = machine.set_up(VERSION_1, 16).remove(0);
    let head = queue.add(&[(0x8000, 8, true)]);
    machine.notify(0);
    assert_eq!(queue.used(), [(head, 8)]);
}

#[test]
fn states_that_no_driver_can_reach_are_refused() {
    let mut machine = machine();
    machine.set_up(VERSION_1, 16);
    let good = machine.mmio.save();
    type Spoil = fn(&mut MmioState);
    let bad: [(&str, Spoil); 12] = [
        ("device type", |s| s.device_type = 1),
        ("unknown status bit", |s| s.status |= 0x10),
        ("DRIVER_OK without FEATURES_OK", |s| s.status = 7),
        ("FEATURES_OK without DRIVER", |s| s.status = 9),
        ("feature not on offer", |s| s.driver_features |= 1 << 40),
        ("without VERSION_1", |s| s.driver_features = 0),
        ("unknown interrupt", |s| s.interrupt_status = 4),
        ("queue missing", |s| s.queues.clear()),
        ("queue too many", |s| s.queues.push(RingState::reset(64))),
        ("ready before FEATURES_OK", |s| s.status = 3),
        ("ring outside of memory", |s| {
            s.queues[0].used_ring = 1 << 50
        }),
        ("indices apart", |s| s.queues[0].next_avail = 100),
    ];
    for (what, spoil) in bad {
        let mut state = good.clone();
        spoil(&mut state);
        let (parts, ..) = parts(&ram(), Box::new(VirtioRng::new()));
        let refused = VirtioMmio::restore(state, parts);
        assert!(refused.is_err(), "{what}");
    }
    let (parts, ..) = parts(&ram(), Box::new(VirtioRng::new()));
    VirtioMmio::restore(good, parts).unwrap();
}
