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

/// Reads zeros to see that they are: bytes a second of one thread.
pub fn zero_scan(zeros: &[u8]) -> f64 {
    let began = Instant::now();
    let (lines, rest) = zeros.as_chunks::<64>();
    let all_zero = |line: &[u8; 64]| line.iter().fold(0, |any, byte| any | byte) == 0;
    let pages = lines.chunks(64);
    let zero = pages.filter(|page| page.iter().all(all_zero)).count();
    std::hint::black_box((zero, rest));
    zeros.len() as f64 / began.elapsed().as_secs_f64()
}
