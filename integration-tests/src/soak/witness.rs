//! Sees two guests run at the same time, in the memory of both processes, whatever they say of themselves.
//!
//! A guest's heartbeats count on. What arrives at the destination with its pages is never ahead of the source; so once
//! the destination's count is ahead, it runs the guest, and from then on the source's must stand still.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use guest_images::procmem::ProcMem;
use guest_images::verify;

/// Pause between two looks: a heartbeat.
const PAUSE: Duration = Duration::from_millis(1);
/// Pause between two searches for the guest in the destination.
const SEARCH: Duration = Duration::from_millis(10);

/// Watches a move.
pub struct Witness {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

/// What it saw.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The destination was seen to run the guest.
    pub arrived: bool,
    /// The source went on after that: beats of the source and the destination then.
    pub double: Option<(u32, u32)>,
}

impl Witness {
    /// Watches the guest in `source`, and that of `bytes` of memory which comes to process `destination`.
    pub fn start(source: ProcMem, destination: u32, bytes: u64) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&over);
        let thread = thread::spawn(move || watch(&source, destination, bytes, &until));
        Self { over, thread }
    }

    /// Ends it.
    pub fn finish(self) -> Seen {
        self.over.store(true, Ordering::Release);
        self.thread.join().unwrap_or_default()
    }
}

fn watch(source: &ProcMem, destination: u32, bytes: u64, over: &AtomicBool) -> Seen {
    let beat = |memory: &ProcMem| verify::status(memory).ok().map(|status| status.beat);
    let mut seen = Seen::default();
    let mut there = None;
    let mut searched = Instant::now();
    // The source's count when the destination was ahead.
    let mut stopped_at = None;
    while !over.load(Ordering::Acquire) {
        thread::sleep(PAUSE);
        let Some(memory) = &there else {
            if searched.elapsed() >= SEARCH {
                there = ProcMem::find_pulse(destination, bytes).ok();
                searched = Instant::now();
            }
            continue;
        };
        // In this order: the source's count is newer than the destination's.
        let Some(after) = beat(memory) else {
            // A receiver drops what it has of a failed move, and has another mapping for the next.
            there = None;
            continue;
        };
        let Some(before) = beat(source) else {
            // Its memory is gone: there is nothing left to be double.
            continue;
        };
        match stopped_at {
            None if ahead(after, before) => {
                seen.arrived = true;
                stopped_at = Some(before);
            }
            Some(at) if at != before && seen.double.is_none() => {
                seen.double = Some((before, after));
            }
            _ => {}
        }
    }
    seen
}

fn ahead(a: u32, b: u32) -> bool {
    let distance = a.wrapping_sub(b);
    distance != 0 && distance < 1 << 31
}
