//! What the processor does with memory that is touched already.

#![allow(
    unsafe_code,
    reason = "instructions that not every x86-64 processor has are unsafe to call"
)]

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

/// Reads zeros to see that they are: bytes a second of one thread, by the widest registers there are.
pub fn zero_scan(zeros: &[u8]) -> f64 {
    let began = Instant::now();
    let pages = zeros.as_chunks::<4096>().0.iter();
    let zero = if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor was just found to have AVX2, the one thing that the function asks for.
        pages
            .filter(|page| unsafe { is_zero_by_avx2(page) })
            .count()
    } else {
        pages.filter(|page| is_zero(page)).count()
    };
    std::hint::black_box(zero);
    zeros.len() as f64 / began.elapsed().as_secs_f64()
}

/// The same code, for a processor that has AVX2.
#[target_feature(enable = "avx2")]
fn is_zero_by_avx2(page: &[u8; 4096]) -> bool {
    is_zero(page)
}

#[inline(always)]
fn is_zero(page: &[u8; 4096]) -> bool {
    let (blocks, _) = page.as_chunks::<256>();
    let any = |block: &[u8; 256]| block.iter().fold(0, |any, byte| any | byte);
    blocks.iter().all(|block| any(block) == 0)
}
