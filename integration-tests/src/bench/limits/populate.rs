//! The first touch of memory, and whether it is warm.
//!
//! Where the host is itself a guest that gives back what it does not use, memory that has been free for some
//! seconds has to be fetched from far away at its first touch; what was touched and freed a moment ago has not.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use super::memory::Buffer;
use crate::bench::machine;

/// Free memory is cold after that.
const REST: Duration = Duration::from_secs(12);
/// Touched beyond the guest's size: what the programs need beside it.
const SPARE: u64 = 1 << 30;
/// Not to be touched: other programs need memory too.
const RESERVE: u64 = 1 << 30;
/// Probed by one thread, at most.
const PROBE: u64 = 2 << 30;
/// Probed of cold memory: as little as says something, since what is probed is no longer cold.
const COLD_PROBE: u64 = 256 << 20;

/// Warm memory is populated by two threads at more than this, in bytes a second; cold memory at a tenth of it.
const WARM: f64 = 6e9;
/// Attempts to get there: a machine may be slower than that, or busy.
const MOST_PASSES: u32 = 4;

/// How fast memory was touched for the first time.
#[derive(Debug)]
pub struct Probe {
    /// Bytes a second by one thread.
    pub one: f64,
    /// By two.
    pub two: Option<f64>,
    /// What must not be free during the move, since it is not as warm as the rest.
    pub held: Option<Buffer>,
}

/// Touches and frees `bytes` and some more, so that whoever touches so much next finds it warm.
///
/// # Errors
/// There is not enough memory.
pub fn warm(bytes: u64) -> io::Result<Probe> {
    let available = machine::available_bytes().unwrap_or(u64::MAX);
    let all = (bytes + SPARE)
        .min(available.saturating_sub(RESERVE))
        .max(SPARE);
    // What is freed is not always what is given out next: once more until all of it came quickly.
    let mut two = 0.0;
    for _ in 0..MOST_PASSES {
        two = rate(all, 2)?.0;
        if two > WARM {
            break;
        }
    }
    Ok(Probe {
        one: rate(all.min(PROBE), 1)?.0,
        two: Some(two),
        held: None,
    })
}

/// Lets free memory rest until it is cold.
///
/// # Errors
/// There is not enough memory.
pub fn rested() -> io::Result<Probe> {
    thread::sleep(REST);
    let (one, held) = rate(COLD_PROBE, 1)?;
    Ok(Probe {
        one,
        two: None,
        held: Some(held),
    })
}

/// Populates `bytes` of fresh huge pages by so many threads: bytes a second, and the memory.
///
/// # Errors
/// There is not enough memory.
pub fn rate(bytes: u64, threads: usize) -> io::Result<(f64, Buffer)> {
    let mut buffer = Buffer::fresh(usize::try_from(bytes).unwrap_or(usize::MAX))?;
    let began = Instant::now();
    buffer.populate(threads)?;
    Ok((bytes as f64 / began.elapsed().as_secs_f64(), buffer))
}
