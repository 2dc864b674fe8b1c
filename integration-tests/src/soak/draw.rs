//! Faults drawn by chance, the same for the same seed and number.

use fastrand::Rng;

use super::fault::{Able, Act, Compress, Cut, Fault, Part, Place, Setting, Signal, Span, Whom};
use crate::ferry::End;
use crate::ferry::frames::Kind;

/// Frames of the first stream that come once, or few times, and decide much. The moment of the handover is drawn more
/// often.
const TURNS: [Kind; 15] = [
    Kind::PREAMBLE,
    Kind::HELLO,
    Kind::ACCEPT,
    Kind::PING,
    Kind::PONG,
    Kind::ROUND_END,
    Kind::STATE,
    Kind::STATE,
    Kind::READY,
    Kind::READY,
    Kind::GO,
    Kind::GO,
    Kind::LIVE,
    Kind::LIVE,
    Kind::FIGURES,
];

/// The fault of that number.
pub fn draw(seed: u64, index: u32, able: Able) -> Fault {
    // Neighbouring numbers are far apart behind this: the 64 bits of the golden ratio, as in SplitMix64.
    let spread = u64::from(index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut rng = Rng::with_seed(seed ^ spread);
    let mut setting = Setting {
        streams: rng.u16(1..=3),
        rounds: rng.u8(..3) == 0,
        compress: [
            Compress::None,
            Compress::None,
            Compress::Lz4,
            Compress::Zstd,
        ][rng.usize(..4)],
        delta: rng.u8(..5) == 0,
        verify: able.verify && rng.u8(..3) == 0,
        tls: rng.u8(..6) == 0,
    };
    let place = place(&mut rng, &mut setting);
    let act = act(&mut rng, place, setting);
    Fault {
        seed,
        index,
        place,
        act,
        setting,
    }
}

fn place(rng: &mut Rng, setting: &mut Setting) -> Place {
    if setting.tls {
        return match rng.u8(..10) {
            0 => Place::Connecting,
            _ => byte(rng, *setting),
        };
    }
    match rng.u8(..20) {
        0 => Place::Connecting,
        1..=9 => Place::Frame {
            kind: TURNS[rng.usize(..TURNS.len())],
            round: None,
            nth: 1,
            stream: Some(0),
        },
        10 => {
            setting.streams = setting.streams.max(2);
            Place::Frame {
                kind: [Kind::PREAMBLE, Kind::JOIN, Kind::JOIN][rng.usize(..3)],
                round: None,
                nth: 1,
                stream: Some(rng.usize(1..usize::from(setting.streams))),
            }
        }
        11..=14 => pages(rng, setting),
        15 | 16 => Place::Nth {
            from: end(rng),
            // There are hundreds, but what matters happens early.
            nth: 1 + rng.u32(..4) * rng.u32(..3),
            stream: 0,
        },
        _ => byte(rng, *setting),
    }
}

/// A byte, of any order of magnitude as likely as of the other: the source sends some 10 MiB, of which further streams
/// of a slow move get little; the destination says 100 bytes, and on a further stream only its preamble for sure. Over
/// TLS it says a certificate before that, on each.
fn byte(rng: &mut Rng, setting: Setting) -> Place {
    let stream = rng.usize(..usize::from(setting.streams));
    let (from, magnitudes) = match (rng.u8(..4), stream) {
        (0, _) if setting.tls => (End::Destination, 11),
        (0, 0) => (End::Destination, 6),
        (0, _) => (End::Destination, 3),
        (_, 0) => (End::Source, 22),
        (_, _) => (End::Source, 18),
    };
    let magnitude = rng.u32(..magnitudes);
    Place::Byte {
        from,
        offset: rng.u64(..2 << magnitude),
        stream,
    }
}

/// A frame of pages, in a move that has such.
fn pages(rng: &mut Rng, setting: &mut Setting) -> Place {
    let round = rng.u32(..2);
    setting.rounds |= round > 0;
    let mut kind = match setting.compress {
        Compress::None => Kind::PAGES,
        Compress::Lz4 | Compress::Zstd => Kind::PACKED,
    };
    if round > 0 && setting.delta {
        kind = Kind::DELTA;
    }
    Place::Frame {
        kind,
        round: Some(round),
        nth: if round == 0 { rng.u32(1..=6) } else { 1 },
        stream: None,
    }
}

fn end(rng: &mut Rng) -> End {
    if rng.bool() {
        End::Source
    } else {
        End::Destination
    }
}

fn act(rng: &mut Rng, place: Place, setting: Setting) -> Act {
    let kind = match place {
        Place::Byte { .. } if setting.tls && rng.u8(..3) == 0 => {
            return Act::Garble {
                part: Part::Rest,
                bit: rng.u32(..8),
            };
        }
        Place::Connecting | Place::Byte { .. } => {
            return match rng.u8(..6) {
                0 | 1 => cut(rng, false),
                2 => Act::Stall(span(rng)),
                3 => slow(rng),
                _ => signal(rng, false),
            };
        }
        Place::Frame { kind, .. } => Some(kind),
        Place::Nth { .. } => None,
    };
    match rng.u8(..16) {
        0..=2 => cut(rng, true),
        3 => Act::Truncate {
            keep: rng.u16(..1000),
        },
        4 => Act::Stall(span(rng)),
        5 => slow(rng),
        6 | 7 => Act::Garble {
            part: part(rng, kind, setting),
            bit: rng.u32(..),
        },
        8 => Act::Duplicate,
        9 => Act::Reorder,
        10 => Act::Drop,
        _ => signal(rng, true),
    }
}

fn cut(rng: &mut Rng, frame: bool) -> Act {
    Act::Cut {
        how: [Cut::Reset, Cut::Close, Cut::OneWay][rng.usize(..3)],
        whole: rng.bool(),
        behind: frame && rng.bool(),
    }
}

fn slow(rng: &mut Rng) -> Act {
    Act::Slow {
        bytes: 1 << rng.u16(..12),
        ms: rng.u16(10..300),
    }
}

fn span(rng: &mut Rng) -> Span {
    if rng.u8(..3) == 0 {
        Span::BeyondTimeout
    } else {
        Span::Ms(rng.u16(1..300))
    }
}

fn signal(rng: &mut Rng, frame: bool) -> Act {
    let to = [
        Whom::Source,
        Whom::Source,
        Whom::Source,
        Whom::Destination,
        Whom::Destination,
        Whom::Destination,
        Whom::Client,
    ][rng.usize(..7)];
    let signal = match rng.u8(..6) {
        0..=2 => Signal::Kill,
        3 | 4 => Signal::Stop(span(rng)),
        _ => Signal::Freeze,
    };
    let behind = (frame && rng.bool()).then(|| 1 << rng.u16(..14));
    Act::Signal { to, signal, behind }
}

/// A part of the frame in which a wrong bit cannot go unnoticed. TCP's checksum is what guards the rest of a plain
/// connection; memory is looked over by both ends only if that is asked for.
fn part(rng: &mut Rng, kind: Option<Kind>, setting: Setting) -> Part {
    let body = |first, count| Part::Body { first, count };
    let rest = match kind {
        Some(Kind::PING | Kind::PONG | Kind::ROUND_END | Kind::JOIN) => Part::Rest,
        // The session, which the further streams name.
        Some(Kind::HELLO) if setting.streams > 1 => body(0, 16),
        // The size of a page.
        Some(Kind::HELLO) => body(36, 4),
        // Each page's checksum is with it.
        Some(Kind::DELTA) => Part::Rest,
        Some(Kind::PAGES | Kind::PACKED) if setting.verify => Part::Rest,
        _ => Part::Header,
    };
    if rng.bool() { rest } else { Part::Header }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ABLE: Able = Able { verify: true };

    #[test]
    fn the_same_seed_draws_the_same() {
        for index in 0..1000 {
            let fault = draw(7, index, ABLE);
            assert_eq!(fault, draw(7, index, ABLE));
            let text = serde_json::to_string(&fault).unwrap();
            assert_eq!(fault, serde_json::from_str(&text).unwrap());
            assert_eq!(fault.to_string().lines().count(), 1);
        }
        let differ = (0..100).filter(|&i| draw(7, i, ABLE).act != draw(8, i, ABLE).act);
        assert!(differ.count() > 50);
    }

    #[test]
    fn all_acts_and_places_come_up() {
        let mut acts = std::collections::BTreeSet::new();
        let mut places = std::collections::BTreeSet::new();
        for index in 0..2000 {
            let fault = draw(1, index, ABLE);
            acts.insert(fault.act.word());
            places.insert(fault.place_word());
        }
        assert_eq!(acts.len(), 18, "{acts:?}");
        assert_eq!(places.len(), 19, "{places:?}");
    }

    /// Without `--verify` no bit of memory, state or page list is touched that nothing but TCP guards.
    #[test]
    fn no_bit_is_garbled_that_nobody_can_miss() {
        for index in 0..5000 {
            let fault = draw(3, index, Able { verify: false });
            let Act::Garble { part, .. } = fault.act else {
                continue;
            };
            if let Place::Frame { kind, .. } = fault.place
                && matches!(kind, Kind::PAGES | Kind::PACKED | Kind::STATE)
            {
                assert_eq!(part, Part::Header, "{fault}");
            }
        }
    }
}
