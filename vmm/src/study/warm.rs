//! Warm memory. Where the host is a guest itself that gives back what it does not use, memory that was free for some
//! seconds is many times slower at its first touch, and a move over a quick link would be a measurement of that.

use std::time::Instant;

use migration::guest::GuestRam;
use nix::sys::sysinfo::sysinfo;
use vm_memory::{Address, Bytes, GuestMemoryBackend, GuestMemoryRegion};

use crate::layout::memory_layout;
use crate::memory::{self, Backing};

/// Beyond the guest's size: what processes need beside it.
const SPARE: u64 = 1 << 30;
/// Left to others.
const RESERVE: u64 = 1 << 30;
/// Memory that comes so quickly, in bytes a second, was warm.
const QUICK: f64 = 4e9;
/// What is freed is not always what is given out next: it has to come so twice.
const MOST_PASSES: u32 = 5;

/// Touches and frees so much memory and some more, until it comes quickly. A host that has not got it is left as it is.
pub fn warm(bytes: u64) {
    let free = sysinfo().map_or(0, |info| info.ram_unused());
    let wanted = (bytes + SPARE).min(free.saturating_sub(RESERVE));
    let whole = wanted / (2 << 20) * (2 << 20);
    let mut quick = 0;
    for _ in 0..MOST_PASSES {
        let began = Instant::now();
        let memory = memory_layout(whole).ok();
        let Some(ram) = memory.and_then(|layout| memory::map(&layout, Backing::Anonymous).ok())
        else {
            return;
        };
        touch(&ram);
        let rate = whole as f64 / began.elapsed().as_secs_f64();
        quick += u32::from(rate > QUICK);
        if quick == 2 {
            return;
        }
    }
}

fn touch(ram: &GuestRam) {
    for region in ram.iter() {
        for offset in (0..region.len()).step_by(4096) {
            // Within the region; and nobody needs what is written.
            let _ = ram.write_obj(0u8, region.start_addr().unchecked_add(offset));
        }
    }
}
