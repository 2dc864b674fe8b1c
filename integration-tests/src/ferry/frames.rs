//! The bytes of a move as `migration/PROTOCOL.md` has them, read by ourselves: nothing of the engine is in here.

use super::End;

/// Bytes of a preamble.
pub const PREAMBLE: usize = 16;
/// Bytes of a frame before its body.
pub const HEADER: usize = 8;

const PAGE: u64 = 4096;
/// Offset of the runs in the body of a frame of pages.
const RUNS: usize = 8;
const RUN: usize = 12;
/// Bytes behind the runs of PACKED (codec, reserved, count) and of DELTA (count): the count comes last.
const COUNT: usize = 4;

/// A kind of frame, by its number; [`Kind::PREAMBLE`] stands for what comes before all frames.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct Kind(pub u16);

#[allow(missing_docs, reason = "they are named as in the protocol")]
impl Kind {
    pub const PREAMBLE: Self = Self(0);
    pub const HELLO: Self = Self(1);
    pub const ACCEPT: Self = Self(2);
    pub const JOIN: Self = Self(4);
    pub const PING: Self = Self(5);
    pub const PONG: Self = Self(6);
    pub const PAGES: Self = Self(16);
    pub const ROUND_END: Self = Self(18);
    pub const PACKED: Self = Self(19);
    pub const DELTA: Self = Self(20);
    pub const FILLER: Self = Self(21);
    pub const STATE: Self = Self(32);
    pub const READY: Self = Self(33);
    pub const GO: Self = Self(34);
    pub const LIVE: Self = Self(35);
    pub const FIGURES: Self = Self(38);

    /// Its name in the protocol; `None` for a number that has none here.
    pub fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::PREAMBLE => "preamble",
            Self::HELLO => "HELLO",
            Self::ACCEPT => "ACCEPT",
            Self::JOIN => "JOIN",
            Self::PING => "PING",
            Self::PONG => "PONG",
            Self::PAGES => "PAGES",
            Self::ROUND_END => "ROUND_END",
            Self::PACKED => "PACKED",
            Self::DELTA => "DELTA",
            Self::FILLER => "FILLER",
            Self::STATE => "STATE",
            Self::READY => "READY",
            Self::GO => "GO",
            Self::LIVE => "LIVE",
            Self::FIGURES => "FIGURES",
            _ => return None,
        })
    }

    /// Who says it, of those that only one end says.
    pub fn said_by(self) -> End {
        match self {
            Self::ACCEPT | Self::PONG | Self::READY | Self::LIVE | Self::FIGURES => {
                End::Destination
            }
            _ => End::Source,
        }
    }

    /// Whether it begins with a round's number and names pages.
    pub fn has_round(self) -> bool {
        matches!(self, Self::PAGES | Self::PACKED | Self::DELTA)
    }

    /// Bytes that follow its body without being counted in it.
    pub fn behind(self, body: &[u8]) -> u64 {
        let last = || number(&body[body.len().saturating_sub(COUNT)..]);
        match self {
            Self::PAGES => {
                let runs = body.get(RUNS..).unwrap_or_default().chunks_exact(RUN);
                runs.map(|run| number(&run[8..]) * PAGE).sum()
            }
            Self::PACKED | Self::DELTA | Self::FILLER => last(),
            _ => 0,
        }
    }
}

/// Kind and length of the body, from the bytes of a header.
pub fn header(bytes: &[u8]) -> (Kind, usize) {
    let kind = u16::try_from(number(&bytes[..2])).unwrap_or(0);
    let length = usize::try_from(number(&bytes[4..HEADER])).unwrap_or(0);
    (Kind(kind), length)
}

/// A number of up to eight bytes, the least first.
pub fn number(bytes: &[u8]) -> u64 {
    (bytes.iter().rev()).fold(0, |value, &byte| value << 8 | u64::from(byte))
}
