//! Giving entries back to KVM, so that their pages are protected again.

use std::io;
use std::ops::Deref;

use super::entry::{Entry, Place};
use super::reader::{Course, Ring};

/// KVM stops short where a signal waits for the thread (Linux 6.17), and having taken nothing may mean that alone. So many
/// times in a row it is not the reason: each call ends with the signal delivered.
const FRUITLESS: u32 = 8;
/// Calls after which it is given up. Each does something, or is one of a few that do not.
const MOST: u32 = 100_000;

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

/// Clears away what keeps KVM from going on in a ring that has overflowed. Says whether it has once more.
fn clear_the_way<M: Deref<Target = [Entry]>>(
    ring: &mut Ring<M>,
    note: &mut dyn FnMut(Place),
) -> bool {
    if ring.unreturned() == 0 {
        return false;
    }
    match ring.course() {
        // A signal is in the way, and nothing else.
        Course::Sure if !ring.is_blocked() => return false,
        Course::Sure => {}
        Course::Doubtful | Course::Astray if ring.bridge() => return false,
        Course::Doubtful | Course::Astray => {}
    }
    ring.sweep(note);
    true
}
