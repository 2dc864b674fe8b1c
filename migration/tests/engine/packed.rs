//! Packed bytes that are damaged, or lie: every codec refuses them, none writes beyond its place.

use migration::pack::Codec;
use migration::pack::codec::{Compressor, Decompressor};
use proptest::collection::vec;
use proptest::prelude::*;

const PAGE: usize = 4096;

fn pack(codec: Codec, bytes: &[u8]) -> Vec<u8> {
    let mut packed = vec![0; Compressor::bound(bytes.len())];
    let len = Compressor::default()
        .pack(codec, bytes, &mut packed)
        .unwrap();
    packed.truncate(len);
    packed
}

/// Unpacks into `len` bytes with more behind them, which must stay as they are.
fn unpack(codec: Codec, packed: &[u8], len: usize) -> Result<Vec<u8>, String> {
    let mut place = vec![0xa5; len + PAGE];
    let unpacked = Decompressor::default().unpack(codec, packed, &mut place[..len]);
    assert!(place[len..].iter().all(|&byte| byte == 0xa5));
    place.truncate(len);
    unpacked.map(|()| place).map_err(|error| error.to_string())
}

fn words() -> Vec<u8> {
    let line = |n: usize| format!("line {n}: a page of words that repeat themselves, {n}\n");
    let mut text: Vec<_> = (0..2000).flat_map(|n| line(n).into_bytes()).collect();
    text.truncate(16 * PAGE);
    assert_eq!(text.len(), 16 * PAGE);
    text
}

#[test]
fn text_comes_back_and_is_shorter() {
    for codec in Codec::ALL {
        let text = words();
        let packed = pack(codec, &text);
        assert!(packed.len() < text.len() / 2, "{codec:?}: {}", packed.len());
        assert_eq!(unpack(codec, &packed, text.len()).unwrap(), text);
    }
}

#[test]
fn what_is_cut_or_longer_is_refused() {
    for codec in Codec::ALL {
        let text = words();
        let mut packed = pack(codec, &text);
        for len in 0..packed.len() {
            assert!(unpack(codec, &packed[..len], text.len()).is_err(), "{len}");
        }
        packed.push(0);
        assert!(unpack(codec, &packed, text.len()).is_err());
    }
}

#[test]
fn more_or_fewer_bytes_than_announced_are_refused() {
    for codec in Codec::ALL {
        let text = words();
        let packed = pack(codec, &text);
        for len in [0, PAGE, text.len() - 1, text.len() + 1, 2 * text.len()] {
            assert!(unpack(codec, &packed, len).is_err(), "{codec:?} {len}");
        }
        // A mebibyte of zeros in a few bytes, for a place of one page.
        let bomb = pack(codec, &vec![0; 1 << 20]);
        assert!(bomb.len() < 2 * PAGE);
        assert!(unpack(codec, &bomb, PAGE).is_err());
    }
}

#[test]
fn every_flipped_bit_is_an_error_or_other_bytes_of_the_same_length() {
    for codec in Codec::ALL {
        let text = &words()[..PAGE];
        let packed = pack(codec, text);
        for bit in 0..packed.len() * 8 {
            let mut flipped = packed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if let Ok(other) = unpack(codec, &flipped, PAGE) {
                assert_eq!(other.len(), PAGE);
            }
        }
    }
}

#[test]
fn one_codec_does_not_read_the_other() {
    let text = words();
    for (codec, other) in [(Codec::Lz4, Codec::Zstd), (Codec::Zstd, Codec::Lz4)] {
        assert!(unpack(other, &pack(codec, &text), text.len()).is_err());
    }
}

proptest! {
    #[test]
    fn whatever_is_packed_comes_back(
        bytes in vec(any::<u8>(), 1..64),
        times in 1usize..400,
        noise in vec(any::<u8>(), 0..PAGE),
    ) {
        let mut pages = bytes.repeat(times);
        pages.extend_from_slice(&noise);
        for codec in Codec::ALL {
            let packed = pack(codec, &pages);
            prop_assert_eq!(unpack(codec, &packed, pages.len()).unwrap(), pages.clone());
        }
    }

    #[test]
    fn random_bytes_are_refused_or_fill_their_place(
        bytes in vec(any::<u8>(), 0..400),
        len in 0usize..3 * PAGE,
    ) {
        for codec in Codec::ALL {
            let _ = unpack(codec, &bytes, len);
            // Behind Zstandard's magic number, its own parser gets its turn.
            let mut framed = vec![0x28, 0xb5, 0x2f, 0xfd];
            framed.extend_from_slice(&bytes);
            let _ = unpack(codec, &framed, len);
        }
    }
}
