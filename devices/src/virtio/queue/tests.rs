//! A queue against the driver of [`crate::virtio::testing`].

use super::*;
use crate::virtio::testing::{Driver, ram};

fn ready(ram: &GuestRam, event_idx: bool) -> (Driver, Ring) {
    let driver = Driver::new(ram, 0x1000, 16);
    let mut ring = Ring::restore(RingState::reset(16), 16, event_idx, ram).unwrap();
    *ring.settings_mut().unwrap() = driver.settings(16);
    ring.enable(event_idx, ram).unwrap();
    (driver, ring)
}

#[test]
fn used_entries_appear_all_at_once_and_mark_their_page() {
    let ram = ram();
    let (mut driver, mut ring) = ready(&ram, false);
    for _ in 0..3 {
        driver.add(&[(0x8000, 64, true)]);
    }
    let mut chain = Chain::default();
    let mut heads = Vec::new();
    while ring.pop(&ram, &mut chain).unwrap() {
        heads.push((chain.head(), 7));
    }
    crate::virtio::testing::clean(&ram);
    assert_eq!(driver.used(), []);
    ring.push_used(&ram, heads.clone()).unwrap();
    assert_eq!(driver.used(), heads);
    assert!(crate::virtio::testing::dirty(&ram, driver.used_ring()));
}

#[test]
fn a_chain_given_back_is_the_next_one() {
    let ram = ram();
    let (mut driver, mut ring) = ready(&ram, false);
    driver.add(&[(0x8000, 64, false)]);
    let second = driver.add(&[(0x9000, 64, false)]);
    let mut chain = Chain::default();
    assert!(ring.pop(&ram, &mut chain).unwrap());
    assert!(ring.pop(&ram, &mut chain).unwrap());
    ring.unpop(1);
    assert!(ring.pop(&ram, &mut chain).unwrap());
    assert_eq!(chain.head(), second);
    assert!(!ring.pop(&ram, &mut chain).unwrap());
}

#[test]
fn interrupts_follow_the_flag_without_event_idx() {
    let ram = ram();
    let (driver, mut ring) = ready(&ram, false);
    assert!(!ring.interrupt_due(&ram).unwrap(), "nothing was used");
    for (flag, want) in [(0, true), (1, false), (0, true)] {
        driver.set_flags(flag);
        ring.push_used(&ram, [(0, 0)]).unwrap();
        assert_eq!(ring.interrupt_due(&ram).unwrap(), want);
        assert!(!ring.interrupt_due(&ram).unwrap(), "once for what was used");
    }
}

#[test]
fn interrupts_follow_the_event_index_across_a_restore() {
    let ram = ram();
    let (mut driver, mut ring) = ready(&ram, true);
    driver.set_used_event(4);
    for used in 1..=10u16 {
        driver.add(&[(0x8000, 64, true)]);
        assert!(ring.pop(&ram, &mut Chain::default()).unwrap());
        ring.push_used(&ram, [(0, 0)]).unwrap();
        assert_eq!(ring.interrupt_due(&ram).unwrap(), used == 5, "{used}");
        // A move between any two entries changes nothing.
        let state = ring.save();
        ring = Ring::restore(state.clone(), 16, true, &ram).unwrap();
        assert_eq!(ring.save(), state);
    }
}

#[test]
fn settings_that_are_no_queue_do_not_become_ready() {
    let ram = ram();
    let good = Driver::new(&ram, 0x1000, 16).settings(16);
    type Spoil = fn(&mut RingState);
    let bad: [(&str, Spoil); 8] = [
        ("size 0", |s| s.size = 0),
        ("no power of two", |s| s.size = 12),
        ("too large", |s| s.size = 32),
        ("descriptors unaligned", |s| s.desc_table += 8),
        ("available unaligned", |s| s.avail_ring += 1),
        ("used unaligned", |s| s.used_ring += 2),
        ("beyond memory", |s| s.desc_table = 1 << 40),
        ("wraps", |s| s.used_ring = u64::MAX - 3),
    ];
    for (what, spoil) in bad {
        let mut ring = Ring::restore(RingState::reset(16), 16, false, &ram).unwrap();
        let mut settings = good.clone();
        spoil(&mut settings);
        *ring.settings_mut().unwrap() = settings.clone();
        assert!(ring.enable(false, &ram).is_err(), "{what}");
        assert!(!ring.ready(), "{what}");
        settings.ready = true;
        assert!(Ring::restore(settings, 16, false, &ram).is_err(), "{what}");
    }
    let far = RingState {
        ready: true,
        next_avail: 17,
        ..good.clone()
    };
    assert!(Ring::restore(far, 16, false, &ram).is_err());
    assert!(
        Ring::restore(good, 8, false, &ram).is_err(),
        "another maximum"
    );
}

#[test]
fn an_available_index_too_far_ahead_is_an_error() {
    let ram = ram();
    let (driver, mut ring) = ready(&ram, false);
    driver.set_avail_idx(17);
    let popped = ring.pop(&ram, &mut Chain::default());
    assert!(matches!(popped, Err(QueueError::Avail(_))), "{popped:?}");
}

#[test]
fn an_interrupt_that_is_still_to_be_considered_moves_too() {
    let ram = ram();
    let (mut driver, mut ring) = ready(&ram, true);
    driver.set_used_event(0);
    driver.add(&[(0x8000, 64, true)]);
    assert!(ring.pop(&ram, &mut Chain::default()).unwrap());
    ring.push_used(&ram, [(0, 0)]).unwrap();
    let mut moved = Ring::restore(ring.save(), 16, true, &ram).unwrap();
    assert!(moved.interrupt_due(&ram).unwrap());
    assert!(!moved.interrupt_due(&ram).unwrap());
}
