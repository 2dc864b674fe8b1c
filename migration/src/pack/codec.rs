//! The two libraries behind [`Codec`]. Both ends keep their tables from batch to batch.

use std::io;

use lz4_flex::block::{self, CompressTable};
use thiserror::Error;
use zstd::bulk;

use super::Codec;

/// Zstandard's level: the quickest of the regular ones. Level 3 takes one and a half times as long for a few
/// per cent.
const ZSTD_LEVEL: i32 = 1;

/// Packed bytes that are not what they should be.
#[derive(Debug, Error)]
pub enum UnpackError {
    /// LZ4 does not understand them, or they are more than was announced.
    #[error("LZ4 cannot unpack {packed} bytes into {expected}")]
    Lz4 {
        /// How many came.
        packed: usize,
        /// How many they should become.
        expected: usize,
        /// What the library says.
        source: block::DecompressError,
    },
    /// Zstandard does not understand them, or they are more than was announced.
    #[error("Zstandard cannot unpack {packed} bytes into {expected}")]
    Zstd {
        /// How many came.
        packed: usize,
        /// How many they should become.
        expected: usize,
        /// What the library says.
        source: io::Error,
    },
    /// They are fewer.
    #[error("{packed} bytes unpack to {got}, expected {expected}")]
    Short {
        /// How many came.
        packed: usize,
        /// How many they became.
        got: usize,
        /// How many they should have become.
        expected: usize,
    },
}

/// The packing half.
pub struct Compressor {
    lz4: CompressTable,
    zstd: Option<bulk::Compressor<'static>>,
}

impl Default for Compressor {
    fn default() -> Self {
        Self {
            lz4: CompressTable::large(),
            zstd: None,
        }
    }
}

impl Compressor {
    /// The longest that so many bytes can become, whatever the codec.
    pub fn bound(bytes: usize) -> usize {
        block::get_maximum_output_size(bytes).max(zstd::zstd_safe::compress_bound(bytes))
    }

    /// Packs `bytes` into `into`, which has at least [`bound`](Self::bound) bytes. Says how many they became;
    /// `None` where it cannot be done, which is no reason not to send them as they are.
    pub fn pack(&mut self, codec: Codec, bytes: &[u8], into: &mut [u8]) -> Option<usize> {
        match codec {
            Codec::Lz4 => block::compress_into_with_table(bytes, into, &mut self.lz4).ok(),
            Codec::Zstd => {
                if self.zstd.is_none() {
                    self.zstd = bulk::Compressor::new(ZSTD_LEVEL).ok();
                }
                self.zstd.as_mut()?.compress_to_buffer(bytes, into).ok()
            }
        }
    }
}

/// The unpacking half. What it is given is hostile: it writes no byte beyond the place it is shown, and
/// allocates nothing that the input could make larger.
#[derive(Default)]
pub struct Decompressor {
    zstd: Option<bulk::Decompressor<'static>>,
}

impl Decompressor {
    /// Unpacks `packed` into exactly `into`.
    ///
    /// # Errors
    /// They are damaged, or become more or fewer bytes. `into` may have been written.
    pub fn unpack(
        &mut self,
        codec: Codec,
        packed: &[u8],
        into: &mut [u8],
    ) -> Result<(), UnpackError> {
        let expected = into.len();
        let got = match codec {
            Codec::Lz4 => {
                block::decompress_into(packed, into).map_err(|source| UnpackError::Lz4 {
                    packed: packed.len(),
                    expected,
                    source,
                })?
            }
            Codec::Zstd => self
                .zstd(packed, into)
                .map_err(|source| UnpackError::Zstd {
                    packed: packed.len(),
                    expected,
                    source,
                })?,
        };
        if got != expected {
            return Err(UnpackError::Short {
                packed: packed.len(),
                got,
                expected,
            });
        }
        Ok(())
    }

    fn zstd(&mut self, packed: &[u8], into: &mut [u8]) -> io::Result<usize> {
        let unpacker = match &mut self.zstd {
            Some(unpacker) => unpacker,
            empty => empty.insert(bulk::Decompressor::new()?),
        };
        unpacker.decompress_to_buffer(packed, into)
    }
}
