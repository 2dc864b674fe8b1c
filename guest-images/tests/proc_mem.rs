//! Reading and filling another guest's memory by /proc/PID/mem. In a program of its own, since there is one
//! guest in it to be found.

#![allow(missing_docs, clippy::unwrap_used)]

mod runner;

use guest_images::fill::{self, FillError};
use guest_images::procmem::ProcMem;
use guest_images::verify::{self, Mode};
use runner::Guest;

#[test]
fn memory_filled_from_outside_is_left_alone_and_checked_by_proc_mem() {
    const SEED: u64 = 42;
    let guest = Guest::start(64, 1, "ws=16:8 rate=max");
    guest.wait_until("heartbeats", |g| g.beat() > 20);
    let memory = ProcMem::find_pulse(std::process::id(), 64 << 20).unwrap();
    // Working set and all; stamps lie outside of what is filled.
    let filled = (8 << 20)..(64 << 20);
    let pages = fill::write(SEED, filled.clone(), |gpa, bytes| memory.write(gpa, bytes)).unwrap();
    assert_eq!(pages, 56 * 256);
    guest.wait_until("page writes", |_| {
        verify::vcpu(&memory, 0).is_ok_and(|v| v.pages_written > 5000)
    });
    verify::check(&memory, Mode::Running).unwrap();
    let stopped = guest.stop();
    assert_eq!(fill::check(SEED, filled.clone(), &memory).unwrap(), pages);
    assert!(fill::check(SEED + 1, filled.clone(), &memory).is_err());
    stopped.put((40 << 20) + 100, &[0; 8]);
    assert!(matches!(
        fill::check(SEED, filled, &memory),
        Err(FillError::Lost { gpa, offset: 100, .. }) if gpa == 40 << 20
    ));
    assert!(memory.write(64 << 20, &[0]).is_err());
}
