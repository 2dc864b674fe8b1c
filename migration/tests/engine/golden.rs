//! The frames kept as bytes under `golden/`: none is missing, and each is read, and said again, as it is. What each of
//! them means is in `wire.rs`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use migration::wire::codec::{self, FrameError, HEADER, Header};
use migration::wire::preamble;

fn files() -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let byte = |word| u8::from_str_radix(word, 16).unwrap();
        (path, text.split_whitespace().map(byte).collect())
    };
    std::fs::read_dir(folder).unwrap().map(read).collect()
}

fn is_preamble(path: &Path) -> bool {
    path.to_string_lossy().ends_with("-preamble.hex")
}

/// Adding a frame, or a version, without its bytes fails here.
#[test]
fn every_kind_of_frame_and_every_version_is_kept() {
    let known = |kind: &u16| {
        let [low, high] = kind.to_le_bytes();
        let header = Header::parse([low, high, 0, 0, 0, 0, 0, 0]);
        !matches!(header, Err(FrameError::Unknown(_)))
    };
    let known: BTreeSet<u16> = (0..=u16::MAX).filter(known).collect();
    let frames = files();
    let frames = frames.iter().filter(|(path, _)| !is_preamble(path));
    let kept: BTreeSet<u16> = frames
        .map(|(_, bytes)| u16::from_le_bytes([bytes[0], bytes[1]]))
        .collect();
    assert_eq!(kept, known, "kinds of frames");
    let preambles = files();
    let preambles = preambles.iter().filter(|(path, _)| is_preamble(path));
    let kept: BTreeSet<u16> = preambles
        .map(|(_, bytes)| preamble::agree(bytes[..].try_into().unwrap(), "it").unwrap())
        .collect();
    let spoken: BTreeSet<u16> = (preamble::OLDEST..=preamble::VERSION).collect();
    assert_eq!(kept, spoken, "versions");
}

#[test]
fn every_kept_frame_is_read_and_said_again_in_the_same_bytes() {
    for (path, bytes) in files().iter().filter(|(path, _)| !is_preamble(path)) {
        let (header, body) = bytes.split_first_chunk::<HEADER>().unwrap();
        let frame = codec::parse(Header::parse(*header).unwrap(), body).unwrap();
        let mut said = Vec::new();
        codec::encode(&frame, &mut said).unwrap();
        assert!(said == *bytes, "{}", path.display());
    }
}
