//! Memory that `pulse` leaves alone, filled and checked from outside by seed.
//!
//! Of every page, bytes [`FIRST`]`..`[`END`] are filled, so that it can also be done in working sets, whose stamps lie
//! outside of it. No two pages have the same content. It is noise, which nothing compresses, or text ([`Content`]).

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

/// What memory is filled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Content {
    /// Incompressible words.
    #[default]
    Noise,
    /// Sentences of invented words, which compressors find about as easy as prose.
    Text,
}

impl Content {
    /// The fill of the page at `gpa` (a multiple of 4096), drawn from SplitMix64 (Steele, Lea, Flood 2014), seeded by
    /// both.
    pub fn page(self, seed: u64, gpa: u64, into: &mut [u8; BYTES]) {
        let mut draws = Draws(mix(seed ^ mix(gpa)));
        match self {
            Content::Noise => {
                for word in into.chunks_exact_mut(8) {
                    word.copy_from_slice(&draws.next().to_le_bytes());
                }
            }
            Content::Text => text::page(&mut draws, into),
        }
    }

    /// Fills the whole pages of the range, by the given writer. Gives back how many.
    ///
    /// # Errors
    /// The writer's, at the first page that it could not write.
    pub fn write(
        self,
        seed: u64,
        gpas: Range<u64>,
        mut writer: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> Result<u64, FillError> {
        let mut fill = [0; BYTES];
        let mut count = 0;
        for gpa in pages(gpas) {
            self.page(seed, gpa, &mut fill);
            writer(gpa + FIRST as u64, &fill)
                .map_err(|source| FillError::Access { gpa, source })?;
            count += 1;
        }
        Ok(count)
    }

    /// Checks the whole pages of the range. Gives back how many.
    ///
    /// # Errors
    /// The first page that is not as it was filled, or cannot be read.
    pub fn check(
        self,
        seed: u64,
        gpas: Range<u64>,
        memory: &impl ReadGuest,
    ) -> Result<u64, FillError> {
        let (mut fill, mut found) = ([0; BYTES], [0; BYTES]);
        let mut count = 0;
        for gpa in pages(gpas) {
            self.page(seed, gpa, &mut fill);
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
}

/// Numbers drawn by SplitMix64.
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
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

/// The page of noise at `gpa`; see [`Content::page`].
pub fn page(seed: u64, gpa: u64, into: &mut [u8; BYTES]) {
    Content::Noise.page(seed, gpa, into);
}

/// Fills with noise; see [`Content::write`].
///
/// # Errors
/// The writer's, at the first page that it could not write.
pub fn write(
    seed: u64,
    gpas: Range<u64>,
    writer: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> Result<u64, FillError> {
    Content::Noise.write(seed, gpas, writer)
}

/// Checks a fill of noise; see [`Content::check`].
///
/// # Errors
/// The first page that is not as it was filled, or cannot be read.
pub fn check(seed: u64, gpas: Range<u64>, memory: &impl ReadGuest) -> Result<u64, FillError> {
    Content::Noise.check(seed, gpas, memory)
}

/// Sentences of invented words and set phrases. Which comes next follows Zipf's law, as in any language: the n-th most
/// frequent is drawn about 1/n as often as the first.
///
/// In pieces of 1 MiB LZ4 leaves about 0.43 of it and Zstandard 0.25, as of the plain text files, READMEs and Python
/// programs of a Debian machine (0.34 to 0.44, and 0.24 to 0.27).
mod text {
    use super::{BYTES, Draws, mix};

    /// There are 2^13 - 1 words.
    const WORD_OCTAVES: u64 = 13;
    /// There are 2^9 - 1 phrases.
    const PHRASE_OCTAVES: u64 = 9;
    /// Every so manieth time it is a phrase.
    const PHRASES: u64 = 5;
    /// What words are made of.
    const SYLLABLES: [&[u8]; 64] = [
        b"a", b"e", b"i", b"o", b"an", b"en", b"in", b"on", b"at", b"er", b"is", b"or", b"al",
        b"el", b"ti", b"ra", b"re", b"ri", b"ro", b"la", b"le", b"li", b"lo", b"na", b"ne", b"no",
        b"ta", b"te", b"to", b"sa", b"se", b"so", b"ma", b"me", b"mi", b"mo", b"de", b"di", b"do",
        b"ca", b"co", b"pa", b"pe", b"po", b"the", b"and", b"ing", b"ent", b"ion", b"con", b"ver",
        b"ter", b"men", b"pro", b"sta", b"com", b"per", b"ble", b"tra", b"est", b"ous", b"ght",
        b"ish", b"ful",
    ];

    pub(super) fn page(draws: &mut Draws, into: &mut [u8; BYTES]) {
        let mut line = Vec::with_capacity(256);
        let mut at = 0;
        while at < BYTES {
            line.clear();
            while line.len() < 72 {
                words(draws.next(), &mut line);
            }
            if let Some(last) = line.last_mut() {
                *last = b'\n';
            }
            let count = line.len().min(BYTES - at);
            into[at..at + count].copy_from_slice(&line[..count]);
            at += count;
        }
    }

    /// Appends a word, or a phrase, and what is behind it.
    fn words(draw: u64, into: &mut Vec<u8>) {
        if (draw >> 56).is_multiple_of(PHRASES) {
            let mut phrase = Draws(zipf(draw, PHRASE_OCTAVES));
            for _ in 0..4 + phrase.0 % 5 {
                word(phrase.next(), into);
            }
        } else {
            word(draw, into);
        }
        match draw >> 48 & 15 {
            0 => into.splice(into.len() - 1.., *b". ").for_each(drop),
            1 => into.splice(into.len() - 1.., *b", ").for_each(drop),
            _ => {}
        }
    }

    fn word(draw: u64, into: &mut Vec<u8>) {
        let rank = zipf(draw, WORD_OCTAVES);
        let mut letters = mix(rank);
        // The rarer, the longer.
        for _ in 0..=rank.ilog2() / 4 {
            into.extend_from_slice(SYLLABLES[usize::from(letters.to_le_bytes()[0] % 64)]);
            letters >>= 6;
        }
        into.push(b' ');
    }

    /// A rank from 1 on: each octave as often as the other, which is Zipf's law in steps.
    fn zipf(draw: u64, octaves: u64) -> u64 {
        let octave = draw % octaves;
        (1 << octave) + (draw >> 8) % (1 << octave)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_differ_and_come_again() {
        for content in [Content::Noise, Content::Text] {
            let page = |seed, gpa| {
                let mut bytes = [0; BYTES];
                content.page(seed, gpa, &mut bytes);
                bytes
            };
            assert_eq!(page(1, 4096), page(1, 4096));
            assert_ne!(page(1, 4096), page(1, 8192));
            assert_ne!(page(1, 4096), page(2, 4096));
        }
    }

    #[test]
    fn text_looks_like_text() {
        let mut bytes = [0; BYTES];
        Content::Text.page(7, 1 << 20, &mut bytes);
        let text = str::from_utf8(&bytes).expect("syllables are ASCII");
        assert!(text.lines().all(|line| line.len() < 160), "{text}");
        let words: Vec<_> = text.split_whitespace().collect();
        assert!(
            (450..1100).contains(&words.len()),
            "{}: {text}",
            words.len()
        );
    }
}
