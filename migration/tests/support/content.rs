//! What the pages of a test guest hold, by page and stamp.

use migration::pages::PAGE_SIZE;

/// What the pages of a guest hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Content {
    /// Words that depend on page and stamp.
    #[default]
    Stamped,
    /// Lines that repeat themselves.
    Text,
    /// What no codec makes smaller.
    Noise,
    /// 64 pages of the one, 64 of the other.
    Mixed,
    /// Noise that stays, with the stamp somewhere in it.
    Counter,
    /// The same, but every seventh time all zeros.
    Blinking,
}

impl Content {
    /// What a page with that stamp holds; zeros for stamp 0.
    pub fn page(self, page: u64, stamp: u64) -> Vec<u8> {
        match self {
            _ if stamp == 0 => stamped(page, 0),
            Content::Stamped => stamped(page, stamp),
            Content::Text => text(page, stamp),
            Content::Noise => noise(page, stamp),
            Content::Mixed if (page / 64).is_multiple_of(2) => text(page, stamp),
            Content::Mixed => noise(page, stamp),
            Content::Blinking if stamp.is_multiple_of(7) => stamped(page, 0),
            Content::Counter | Content::Blinking => {
                let mut bytes = noise(page, 0);
                let at = usize::try_from(page % 500).unwrap() * 8;
                bytes[at..at + 8].copy_from_slice(&stamp.to_le_bytes());
                bytes
            }
        }
    }
}

fn text(page: u64, stamp: u64) -> Vec<u8> {
    let line = |n| format!("{stamp}: line {n} of a page of words, number {page} of its kind\n");
    let mut bytes: Vec<_> = (0..80).flat_map(|n: u64| line(n).into_bytes()).collect();
    bytes.truncate(4096);
    bytes
}

fn noise(page: u64, stamp: u64) -> Vec<u8> {
    let mut state = (page << 32) ^ stamp;
    let mut bytes = Vec::with_capacity(4096);
    for _ in 0..PAGE_SIZE / 8 {
        // SplitMix64 (Steele, Lea, Flood 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(z ^ (z >> 31)).to_le_bytes());
    }
    bytes
}

/// What a page with that stamp holds: all of it depends on both numbers.
pub fn stamped(page: u64, stamp: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4096);
    for word in 0..PAGE_SIZE / 8 {
        let value = if stamp == 0 {
            0
        } else {
            stamp ^ (page << 40) ^ word
        };
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    bytes
}
