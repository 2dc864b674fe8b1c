//! What the processor does with memory that is touched already.

use std::time::Instant;

/// Copies one buffer to another by so many threads: bytes a second.
pub fn copy(from: &[u8], to: &mut [u8], threads: usize) -> f64 {
    let share = from.len().div_ceil(threads);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for (from, to) in from.chunks(share).zip(to.chunks_mut(share)) {
            scope.spawn(|| to.copy_from_slice(from));
        }
    });
    let rate = from.len() as f64 / began.elapsed().as_secs_f64();
    std::hint::black_box(to);
    rate
}

/// Reads zeros to see that they are: bytes a second of one thread, by memcmp with a page of them that stays in the
/// cache. The C library takes the widest registers there are, however this crate is compiled.
pub fn zero_scan(zeros: &[u8]) -> f64 {
    let page = [0; 4096];
    let began = Instant::now();
    let pages = zeros.as_chunks::<4096>().0.iter();
    std::hint::black_box(pages.filter(|zeros| **zeros == page).count());
    zeros.len() as f64 / began.elapsed().as_secs_f64()
}
