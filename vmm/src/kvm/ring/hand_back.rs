//! Giving entries back to KVM, so that their pages are protected again.

use std::io;
use std::ops::Deref;

use super::entry::{Entry, Place};
use super::reader::{Course, Ring};

/// KVM stops short where a signal waits for the thread (Linux 6.17), and having taken nothing may mean that alone. So
/// many times in a row it is not the reason: each call ends with the signal delivered.
const FRUITLESS: u32 = 8;
/// Calls after which it is given up. Each does something, or is one of those few that do not: a ring of 65,536 entries
/// of which KVM wants all back and none is there takes about 530,000.
const MOST: u32 = 1_000_000;
/// An empty ring that KVM takes for full is passed over by so many parts, one at a time. A part is less than what KVM
/// takes for full, which is all but 64 entries and, with page-modification logging, 512 more
/// (`kvm_dirty_ring_get_rsvd_entries`): so KVM is not led past its own end, in a ring of 1024 entries or more.
const PARTS: usize = 4;

/// Hands everything that was read in these rings back by `reset`, which says how many entries KVM took. Says whether a
/// ring has overflowed meanwhile. What is found written on the way goes to `note`, with the ring's index.
///
/// # Errors
/// KVM does not take them: pages are not protected that the reader believes to be.
pub fn hand_back<M: Deref<Target = [Entry]>>(
    rings: &mut [Ring<M>],
    reset: &dyn Fn() -> io::Result<u32>,
    note: &mut dyn FnMut(usize, Place),
) -> io::Result<bool> {
    let mut overflow = false;
    let mut fruitless = 0;
    for _ in 0..MOST {
        if rings.iter().all(|ring| ring.unreturned() == 0) {
            return Ok(overflow);
        }
        if reset()? > 0 {
            fruitless = 0;
            for ring in rings.iter_mut() {
                overflow |= ring.settle();
            }
            continue;
        }
        fruitless += 1;
        if fruitless == FRUITLESS {
            fruitless = 0;
            for (index, ring) in rings.iter_mut().enumerate() {
                overflow |= clear_the_way(ring, &mut |place| note(index, place));
            }
        }
    }
    Err(io::Error::other(format!(
        "KVM_RESET_DIRTY_RINGS was called {MOST} times, and did not take back all that was read"
    )))
}

/// Clears away what keeps KVM from going on in a ring. Says whether writes may have been lost in it.
///
/// In a ring that is in order KVM does go on. If it does not, then the ring has overflowed and entries that were marked
/// have been written over since; these are read. Where there are none, KVM waits for entries that are not there.
fn clear_the_way<M: Deref<Target = [Entry]>>(
    ring: &mut Ring<M>,
    note: &mut dyn FnMut(Place),
) -> bool {
    if ring.unreturned() == 0 {
        return false;
    }
    if ring.course() == Course::Sure || !ring.bridge() {
        ring.sweep(note);
    }
    true
}

/// For a ring in which KVM counts so many entries that its vCPU may not go on, and in which there are none, as all were
/// written over: leads KVM past a part of them, to be repeated while the vCPU may not go on. That vCPU must not be in
/// the guest, and KVM must have said that the ring is full since anything was taken back from it.
///
/// # Errors
/// KVM does not take entries back.
pub fn pass_over<M: Deref<Target = [Entry]>>(
    rings: &mut [Ring<M>],
    full: usize,
    reset: &dyn Fn() -> io::Result<u32>,
) -> io::Result<bool> {
    let mut overflow = false;
    let size = rings.get(full).map_or(0, Ring::size);
    let part = (size / PARTS).max(1);
    for start in (0..size).step_by(part) {
        rings[full].pass_over(start, part);
        let marked = rings[full].unreturned();
        let mut ended = Ok(());
        for _ in 0..FRUITLESS {
            ended = reset().map(drop);
            for (index, ring) in rings.iter_mut().enumerate() {
                overflow |= ring.settle() && index != full;
            }
            if ended.is_err() || rings[full].unreturned() == 0 {
                break;
            }
        }
        let left = rings[full].unmark();
        ended?;
        if left < marked {
            break;
        }
    }
    Ok(overflow)
}
