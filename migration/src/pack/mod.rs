//! Fewer bytes for the same pages: compression of batches, and differences of pages that go again.
//!
//! A [`Packer`](packer::Packer) at the source is asked to send runs of pages. As it was told (`--compress`,
//! `--delta`), and where it pays, it copies them out of guest memory and sends
//!
//! - what changed in a page since it was last sent ([`delta`]), where the [`cache`] still has that,
//! - the rest of a batch of up to 1 MiB through a [`codec`], where that makes it smaller,
//! - else the pages as they are; without either wish straight from guest memory, with no copy at all.
//!
//! An [`Unpacker`](unpacker::Unpacker) at the destination puts them back. [`auto`] is the pure half of
//! `--compress auto`: numbers in, the codec to use out.
//!
//! What is compressed or compared is always a copy: guest memory changes under our eyes, and the copy that
//! the cache keeps must be, byte for byte, what the destination was sent.

pub mod auto;
pub mod cache;
pub mod codec;
pub mod delta;
pub(crate) mod packer;
pub mod unpacker;

use std::time::Duration;

/// Bytes in a page, as lengths in memory have it.
pub(crate) const PAGE: usize = 4096;
const _: () = assert!(PAGE as u64 == crate::pages::PAGE_SIZE);

/// The most pages that are packed together: 1 MiB. It bounds the buffers of both ends, and larger batches
/// hardly compress better.
pub const MAX_PACKED_PAGES: u64 = 256;
/// The same in bytes; nothing that is sent packed is longer than what it stands for.
pub const MAX_PACKED: u32 = 1 << 20;
const _: () = assert!(MAX_PACKED as u64 == MAX_PACKED_PAGES * crate::pages::PAGE_SIZE);

/// The least cache of sent pages that is of any use: 1 MiB.
pub const MIN_DELTA_CACHE: u64 = 1 << 20;
/// The cache of sent pages if only wished for: 64 MiB.
pub const DEFAULT_DELTA_CACHE: u64 = 64 << 20;

/// How long the guest is watched before the first round for pages that it writes, where a cache is to keep
/// them: pages known to be written again can go as differences the first time that they go again. As long as
/// many more are seen each time, it is watched again, at most so many times in all.
pub(crate) const WATCH: (Duration, u32) = (Duration::from_millis(200), 5);
/// So many more pages are many: 1 MiB, if it is also a fifth of what was seen before.
pub(crate) const MANY_MORE: u64 = 256;

/// How a batch of pages is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// LZ4 block format: about 0.5 GB/s on one core, text to about a half.
    Lz4,
    /// Zstandard frame of level 1: somewhat slower, text to about a third.
    Zstd,
}

impl Codec {
    /// All of them, the quicker ones first.
    pub const ALL: [Codec; 2] = [Codec::Lz4, Codec::Zstd];

    /// Its number on the wire.
    pub fn number(self) -> u16 {
        match self {
            Codec::Lz4 => 1,
            Codec::Zstd => 2,
        }
    }

    /// The codec of that number.
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|codec| codec.number() == number)
    }
}

/// What is asked for with `--compress`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compress {
    /// Pages go as they are.
    #[default]
    None,
    /// Whichever codec pays on the link at hand, measured per stream; none where none does.
    Auto,
    /// This one, for everything that it makes smaller.
    Always(Codec),
}
