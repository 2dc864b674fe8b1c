//! Rings in plain memory, read as one would expect, out of step, full of garbage, and by all at once.

pub mod model;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use migration::pages::{MemoryLayout, PageSet, REGION_ALIGN, Region};
use proptest::prelude::*;

use super::entry::{Place, State};
use super::reader::{Look, Ring};
use super::rings::Rings;
use model::{Meanwhile, Move, PAGES, RESERVE, SIZE, Shared, Side, Writes, entries, place};

/// What a look into a ring finds.
fn read(ring: &mut Ring<Shared>) -> (Vec<u64>, Look) {
    let mut found = Vec::new();
    let look = ring.read(&mut |place| found.push(place.offset));
    assert_eq!(look.pages, found.len() as u64);
    (found, look)
}

/// The pages of a set, one by one.
fn listed(set: &PageSet) -> Vec<u64> {
    set.runs(0..PAGES, 1).map(|run| run.start).collect()
}

#[test]
fn entries_are_read_once_and_in_order_round_and_round() {
    let shared = entries(8);
    let (mut kvm, mut ring) = (Side::new(shared.clone()), Ring::new(shared.clone()));
    let mut page = 0;
    for count in [3, 0, 7, 5, 1, 6, 7, 7] {
        let pages: Vec<_> = (page..page + count).collect();
        page += count;
        pages.iter().for_each(|&page| kvm.push(place(page)));
        let (found, look) = read(&mut ring);
        assert_eq!((found, look.overflow), (pages, false));
        assert!(read(&mut ring).0.is_empty());
        let mut protected = Vec::new();
        kvm.reset(usize::MAX, &mut |place| protected.push(place.offset));
        assert!(!ring.settle());
        assert_eq!((protected.len() as u64, ring.unreturned()), (count, 0));
    }
    assert!(shared.iter().all(|entry| entry.state() == State::Unused));
}

#[test]
fn what_was_read_stays_in_the_ring_until_it_is_taken_back() {
    let shared = entries(8);
    let (mut kvm, mut ring) = (Side::new(shared.clone()), Ring::new(shared));
    (0..4).for_each(|page| kvm.push(place(page)));
    assert_eq!(read(&mut ring).0, [0, 1, 2, 3]);
    (4..7).for_each(|page| kvm.push(place(page)));
    assert_eq!(read(&mut ring).0, [4, 5, 6]);
    assert_eq!(ring.unreturned(), 7);
    // The eighth makes it full: from here on nobody knows.
    kvm.push(place(7));
    let (found, look) = read(&mut ring);
    assert_eq!((&found[..], look.overflow), (&[7][..], true));
}

/// What may happen to a guest while it is moved.
#[derive(Debug, Clone)]
enum Step {
    /// A vCPU writes to neighbouring pages; KVM may notice a full ring late.
    Write(Writes),
    /// The same, but while the rings are being read.
    Meanwhile(Meanwhile),
    Collect,
    Round,
    /// The same, with writes between two of its pieces, and rings that are handed back in it or are not.
    SlowRound(Writes, bool),
    /// A vCPU leaves the guest although there is room by now.
    MakeRoom(usize),
    Count,
}

fn step(late: std::ops::Range<usize>) -> impl Strategy<Value = Step> {
    let writes =
        (0usize..2, 0..PAGES, 1..200u64, late).prop_map(|(vcpu, first, count, late)| Writes {
            vcpu,
            first,
            count,
            late,
        });
    prop_oneof![
        4 => writes.clone().prop_map(Step::Write),
        2 => (writes.clone(), any::<bool>()).prop_map(|(writes, handed)| Step::SlowRound(writes, handed)),
        4 => (0..2 * SIZE, writes).prop_map(|(looks, writes)| Step::Meanwhile(Meanwhile { looks, writes })),
        2 => Just(Step::Collect),
        1 => Just(Step::Round),
        1 => (0usize..2).prop_map(Step::MakeRoom),
        1 => Just(Step::Count),
    ]
}

fn play(steps: &[Step]) -> Move {
    let moved = Move::new(2);
    let mut written = vec![0, 0];
    for step in steps {
        match *step {
            Step::Write(Writes {
                vcpu,
                first,
                count,
                late,
            }) => {
                (first..first + count).for_each(|page| moved.write(vcpu, page % PAGES, late));
            }
            Step::Meanwhile(what) => moved.meanwhile(what),
            Step::Collect => moved.rings.collect(),
            Step::Round => drop(moved.round()),
            Step::SlowRound(
                Writes {
                    vcpu,
                    first,
                    count,
                    late,
                },
                handed,
            ) => {
                let apart = if handed {
                    Duration::ZERO
                } else {
                    Duration::MAX
                };
                moved.round_while(apart, &mut |piece| {
                    let pages = (first..first + count).filter(|page| page % 16 == piece / 64);
                    pages.for_each(|page| moved.write(vcpu, page * 7 % PAGES, late));
                    // Reads the rings, and hands nothing back.
                    moved.rings.written();
                });
            }
            Step::MakeRoom(vcpu) => moved.make_room_too_late(vcpu),
            Step::Count => {
                let now = moved.rings.written();
                assert!(now.iter().zip(&written).all(|(now, before)| now >= before));
                written = now;
            }
        }
    }
    moved
}

proptest! {
    #[test]
    fn a_guest_arrives_whole(steps in proptest::collection::vec(step(0..RESERVE), 0..60)) {
        let moved = play(&steps);
        moved.ends_whole();
        // Nothing overflowed, so nothing was guessed: no entry was counted twice, and none at all only for a page that
        // had not been taken yet.
        let pushed = moved.vm.lock().unwrap().sides.iter().map(|side| side.written as u64).collect::<Vec<_>>();
        let written = moved.rings.written();
        prop_assert!(written.iter().zip(&pushed).all(|(written, pushed)| written <= pushed));
        prop_assert_eq!(written.iter().sum::<u64>() > 0, pushed.iter().sum::<u64>() > 0);
        prop_assert!(moved.round().is_empty());
    }

    /// Also from a KVM that writes over what is there, and the rings can be used afterwards.
    #[test]
    fn a_guest_arrives_whole_from_rings_that_overflow(
        steps in proptest::collection::vec(step(0..3 * RESERVE), 0..60)
    ) {
        let moved = play(&steps);
        moved.ends_whole();
        for turn in 0..3 {
            (0..2).for_each(|vcpu| moved.write(vcpu, 2 * turn + vcpu as u64, 0));
            moved.round();
        }
        moved.ends_whole();
        (0..2).for_each(|vcpu| moved.write(vcpu, 7 * vcpu as u64, 0));
        prop_assert_eq!(listed(&moved.round()), [0, 7], "the rings are in order again");
    }
}

/// With the collector, rounds and two writing vCPUs at once, on the smallest of rings, and a KVM that is late.
#[test]
fn a_guest_arrives_whole_while_all_happens_at_once() {
    for late in [0, RESERVE - 1, 2 * RESERVE] {
        let (moved, done) = (Move::new(2), AtomicBool::new(false));
        thread::scope(|scope| {
            let writers: Vec<_> = [3, 5]
                .into_iter()
                .enumerate()
                .map(|(vcpu, stride)| {
                    let moved = &moved;
                    scope.spawn(move || {
                        (0..40_000).for_each(|n| moved.write(vcpu, n * stride % PAGES, late));
                    })
                })
                .collect();
            let collector = scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    moved.rings.collect();
                    thread::yield_now();
                }
            });
            let rounds = scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    moved.round();
                    thread::yield_now();
                }
            });
            let ended = writers.into_iter().map(thread::ScopedJoinHandle::join);
            let ended: Result<Vec<_>, _> = ended.collect();
            done.store(true, Ordering::Release);
            ended.and(rounds.join()).and(collector.join()).unwrap();
        });
        moved.ends_whole();
    }
}

#[test]
fn the_counts_tell_who_writes() {
    let moved = Move::new(2);
    (0..30).for_each(|page| moved.write(0, page, 0));
    (0..10).for_each(|page| moved.write(1, page, 0));
    moved.write(1, 100, 0);
    // Pages that the first has opened make no entry for the second.
    assert_eq!(moved.rings.written(), [30, 1]);
    // An emulated write makes an entry each time.
    for _ in 0..20 {
        moved.vm.lock().unwrap().sides[1].push(place(100));
    }
    assert_eq!(moved.rings.written(), [30, 1]);
    moved.round();
    moved.write(1, 5, 0);
    assert_eq!(moved.rings.written(), [30, 2]);
    moved.rings.forget().unwrap();
    assert_eq!(moved.rings.written(), [0, 0]);
}

/// What is written to a page before it is read in a round, and known to be protected again, is in what is read.
#[test]
fn a_page_written_before_it_is_sent_is_not_sent_again() {
    for (apart, again) in [
        (Duration::ZERO, vec![3, 400, 500]),
        (Duration::MAX, vec![3, 400, 500, 700]),
    ] {
        let moved = Move::new(2);
        for page in [3, 400, 700] {
            moved.write(0, page, 0);
        }
        let sent = moved.round_while(apart, &mut |first| {
            if first == 512 {
                // Sent already, sent already, not of this round, and yet to be sent.
                for page in [3, 400, 500, 700] {
                    moved.write(1, page, 0);
                }
                // Reads the rings, and hands nothing back.
                moved.rings.written();
            }
        });
        assert_eq!(sent.len(), 3);
        assert_eq!(listed(&moved.round()), again);
        moved.ends_whole();
    }
}

#[test]
fn pages_that_do_not_exist_make_everything_count_as_written() {
    for (slot, offset) in [
        (0, PAGES / 2),
        (1, u64::MAX),
        (2, 0),
        (1 << 16, 0),
        (u32::MAX, u64::MAX),
    ] {
        let moved = Move::new(1);
        moved.vm.lock().unwrap().sides[0].push(Place { slot, offset });
        assert_eq!(
            moved.round(),
            PageSet::full(PAGES),
            "slot {slot}, page {offset}"
        );
        assert!(moved.round().is_empty());
        moved.ends_whole();
    }
}

#[test]
fn rings_full_of_garbage_are_an_error_or_everything() {
    let kvm_stands_still = Box::new(|| Ok(0));
    let shared = entries(SIZE);
    let region = Region {
        gpa: 0,
        bytes: REGION_ALIGN,
    };
    let layout = MemoryLayout::new(vec![region]).unwrap();
    let rings = Rings::new(vec![shared.clone()], &layout, kvm_stands_still);
    let mut set = PageSet::empty(layout.pages());
    let mut take = || rings.take(&mut set, &|| Ok(()));
    assert!(take().is_ok());
    for (index, entry) in (0u32..).zip(shared.iter()) {
        entry.write(Place {
            slot: index.wrapping_mul(0x9e37_79b9),
            offset: u64::MAX / u64::from(index + 1),
        });
    }
    let error = take().unwrap_err().to_string();
    assert!(error.contains("dirty rings"), "{error}");
    rings.make_room(0);
    rings.make_room(7);
    rings.collect();
}

/// A guest whose first vCPU's ring has overflowed, was emptied, and is not in order yet.
fn overflowed(lost: usize) -> Move {
    let moved = Move::new(2);
    (0..(SIZE + lost) as u64).for_each(|page| moved.write(0, page, RESERVE + lost));
    moved.round();
    moved
}

/// An entry that is written just when the reader looks at it must not be taken for one that was read: KVM would wait
/// for it for good, and the reader beyond it.
#[test]
fn an_entry_that_is_written_during_the_search_is_found() {
    for looks in 0..3 * SIZE {
        for (lost, count) in [(0, 1), (0, 2), (0, SIZE as u64 + 9), (16, 1), (16, 50)] {
            let moved = overflowed(lost);
            let writes = Writes {
                vcpu: 0,
                first: 200,
                count,
                late: 2 * RESERVE,
            };
            // So that KVM takes something back in any case.
            moved.write(1, 900, 0);
            moved.meanwhile(Meanwhile { looks, writes });
            moved.rings.collect();
            (300..500).for_each(|page| moved.write(0, page, 0));
            moved.ends_whole();
        }
    }
}

/// KVM counts entries that were all written over, so many that the vCPU may not go on, and nothing shows where it
/// stands.
#[test]
fn a_full_ring_without_entries_is_passed_over() {
    for taken in 0..SIZE {
        for lost in [SIZE - RESERVE, SIZE, 3 * SIZE + 5] {
            let moved = overflowed(16);
            {
                let side = &mut moved.vm.lock().unwrap().sides[0];
                (side.taken, side.written) = (7 * SIZE + taken, 7 * SIZE + taken + lost);
            }
            (300..500).for_each(|page| moved.write(0, page, 0));
            moved.ends_whole();
        }
    }
}
