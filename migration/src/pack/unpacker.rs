//! The destination's half: packed bytes from the wire become pages in guest memory. One for each stream.

use thiserror::Error;

use super::codec::{self, Decompressor};
use super::delta::{self, DeltaError, MAX_DELTA};
use super::{Codec, PAGE};
use crate::ram::RamView;
use crate::wire::frame::Run;

/// Packed pages that cannot be put where they belong. The texts go on "{peer} sent …".
#[derive(Debug, Error)]
pub enum UnpackError {
    /// They are not in one region of the guest's memory.
    #[error("{} pages from page {} on, which are not in one region of the guest's memory", .0.pages, .0.first)]
    Outside(Run),
    /// They cannot be unpacked.
    #[error("packed pages that are damaged")]
    Codec(#[from] codec::UnpackError),
    /// The deltas of a frame end early.
    #[error("deltas that end within page {0}")]
    Short(u64),
    /// A delta is longer than any that is sent.
    #[error("a delta of {bytes} bytes for page {page}, at most {MAX_DELTA} are allowed")]
    TooLong {
        /// The page.
        page: u64,
        /// The delta's length.
        bytes: usize,
    },
    /// A delta cannot be applied.
    #[error("a damaged delta for page {page}")]
    Delta {
        /// The page.
        page: u64,
        /// What is wrong with it.
        source: DeltaError,
    },
    /// What a delta makes of the page is not what the source has.
    #[error(
        "a delta for page {page} that makes another page of it than the source's: checksum {found:#010x}, expected {expected:#010x}"
    )]
    Checksum {
        /// The page.
        page: u64,
        /// What it should be.
        expected: u32,
        /// What it is.
        found: u32,
    },
    /// Bytes are left over behind the last delta.
    #[error("{0} bytes too many behind the last delta")]
    Trailing(usize),
}

/// Buffers and tables that are kept from frame to frame: at most 2 MiB and what the codecs need.
#[derive(Default)]
pub struct Unpacker {
    packed: Vec<u8>,
    pages: Vec<u8>,
    codec: Decompressor,
}

impl Unpacker {
    /// Where to receive so many packed bytes; the frame has bounded them to 1 MiB.
    pub fn buffer(&mut self, len: u32) -> &mut [u8] {
        self.packed.clear();
        self.packed.resize(usize::try_from(len).unwrap_or(0), 0);
        &mut self.packed
    }

    /// Unpacks what was received, which is all bytes of `runs`, into guest memory.
    pub fn unpack(
        &mut self,
        codec: Codec,
        runs: &[Run],
        ram: &RamView<'_>,
    ) -> Result<(), UnpackError> {
        let count: u64 = runs.iter().map(|run| u64::from(run.pages)).sum();
        // At most 256 pages, as the frame says.
        let bytes = usize::try_from(count).unwrap_or(0) * PAGE;
        self.pages.resize(bytes, 0);
        self.codec.unpack(codec, &self.packed, &mut self.pages)?;
        let mut rest = &self.pages[..];
        for &run in runs {
            let len = usize::try_from(run.pages).unwrap_or(0) * PAGE;
            let (bytes, behind) = rest
                .split_at_checked(len)
                .ok_or(UnpackError::Outside(run))?;
            ram.write(run, bytes).ok_or(UnpackError::Outside(run))?;
            rest = behind;
        }
        Ok(())
    }

    /// Applies what was received, a delta for each page of `runs`, to guest memory.
    pub fn apply(&mut self, runs: &[Run], ram: &RamView<'_>) -> Result<(), UnpackError> {
        let mut rest = &self.packed[..];
        for &run in runs {
            for page in (run.first..).take(usize::try_from(run.pages).unwrap_or(0)) {
                rest = apply_one(page, rest, ram)?;
            }
        }
        match rest.len() {
            0 => Ok(()),
            extra => Err(UnpackError::Trailing(extra)),
        }
    }
}

/// Applies the first of `deltas` to a page; gives what is behind it. The page changes only if all is well.
fn apply_one<'d>(page: u64, deltas: &'d [u8], ram: &RamView<'_>) -> Result<&'d [u8], UnpackError> {
    let short = || UnpackError::Short(page);
    let (len, rest) = deltas.split_first_chunk::<2>().ok_or_else(short)?;
    let (checksum, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    let bytes = usize::from(u16::from_le_bytes(*len));
    if bytes > MAX_DELTA {
        return Err(UnpackError::TooLong { page, bytes });
    }
    let (delta, rest) = rest.split_at_checked(bytes).ok_or_else(short)?;
    let run = Run {
        first: page,
        pages: 1,
    };
    let mut content = [0; PAGE];
    ram.read(run, &mut content)
        .ok_or(UnpackError::Outside(run))?;
    delta::apply(delta, &mut content).map_err(|source| UnpackError::Delta { page, source })?;
    let (expected, found) = (u32::from_le_bytes(*checksum), crc32fast::hash(&content));
    if expected != found {
        return Err(UnpackError::Checksum {
            page,
            expected,
            found,
        });
    }
    ram.write(run, &content).ok_or(UnpackError::Outside(run))?;
    Ok(rest)
}
