//! Memory that `pulse` leaves alone, filled and checked from outside by seed.
//!
//! Of every page, bytes [`FIRST`]`..`[`END`] are filled, so that it can also be done in working sets, whose stamps lie outside
//! of it. The words are incompressible, and no two pages have the same.

use std::io;
use std::ops::Range;

use thiserror::Error;

use crate::ReadGuest;

/// Offset in a page of the first byte that is filled.
pub const FIRST: usize = 64;
/// Offset in a page of the first byte after it that is not.
pub const END: usize = 4032;
/// How many bytes of a page are filled.
pub const BYTES: usize = END - FIRST;

const PAGE: u64 = 4096;

/// What was found instead of the fill.
#[derive(Debug, Error)]
pub enum FillError {
    /// Memory cannot be read or written.
    #[error("guest memory at {gpa:#x}: cannot get at it")]
    Access {
        /// Where.
        gpa: u64,
        /// Why.
        source: io::Error,
    },
    /// A page does not hold what it was filled with.
    #[error(
        "guest page {gpa:#x} was lost: from byte {offset} on it does not hold what it was filled with (seed {seed})"
    )]
    Lost {
        /// The page.
        gpa: u64,
        /// Offset of the first wrong byte in it.
        offset: usize,
        /// The seed of the fill.
        seed: u64,
    },
}

/// The fill of the page at `gpa` (a multiple of 4096): SplitMix64 (Steele, Lea, Flood 2014), seeded by both.
pub fn page(seed: u64, gpa: u64, into: &mut [u8; BYTES]) {
    let mut state = mix(seed ^ mix(gpa));
    for word in into.chunks_exact_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        word.copy_from_slice(&mix(state).to_le_bytes());
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn pages(gpas: Range<u64>) -> impl Iterator<Item = u64> {
    (gpas.start.div_ceil(PAGE)..gpas.end / PAGE).map(|number| number * PAGE)
}

/// Fills the whole pages of the range, by the given writer. Gives back how many.
///
/// # Errors
/// The writer's, at the first page that it could not write.
pub fn write(
    seed: u64,
    gpas: Range<u64>,
    mut writer: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> Result<u64, FillError> {
    let mut fill = [0; BYTES];
    let mut count = 0;
    for gpa in pages(gpas) {
        page(seed, gpa, &mut fill);
        writer(gpa + FIRST as u64, &fill).map_err(|source| FillError::Access { gpa, source })?;
        count += 1;
    }
    Ok(count)
}

/// Checks the whole pages of the range. Gives back how many.
///
/// # Errors
/// The first page that is not as it was filled, or cannot be read.
pub fn check(seed: u64, gpas: Range<u64>, memory: &impl ReadGuest) -> Result<u64, FillError> {
    let (mut fill, mut found) = ([0; BYTES], [0; BYTES]);
    let mut count = 0;
    for gpa in pages(gpas) {
        page(seed, gpa, &mut fill);
        memory
            .read(gpa + FIRST as u64, &mut found)
            .map_err(|source| FillError::Access { gpa, source })?;
        if let Some(at) = (0..BYTES).find(|&i| fill[i] != found[i]) {
            return Err(FillError::Lost {
                gpa,
                offset: FIRST + at,
                seed,
            });
        }
        count += 1;
    }
    Ok(count)
}
