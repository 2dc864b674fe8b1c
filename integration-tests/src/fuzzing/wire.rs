//! Preamble and frames, as a receiver of them reads them one after the other.

use migration::guest::Description;
use migration::pack::Codec;
use migration::pages::{MemoryLayout, Region};
use migration::state::{Kind, Section, VmState};
use migration::wire::codec::{self, HEADER, Header};
use migration::wire::frame::{Figures, Frame, Hello, Live, Run};
use migration::wire::preamble::{self, PREAMBLE};

/// The input is what a peer sends: a preamble, if it begins like one, and frames.
pub fn run(input: &[u8]) {
    let mut rest = input;
    let _ = preamble::check_magic(input, "the peer");
    if let Some((first, behind)) = input.split_first_chunk::<PREAMBLE>()
        && first.starts_with(&preamble::MAGIC)
    {
        if let Ok(version) = preamble::agree(*first, "the peer") {
            assert!((preamble::OLDEST..=preamble::VERSION).contains(&version));
        }
        rest = behind;
    }
    while let Some((header, behind)) = rest.split_first_chunk::<HEADER>() {
        let Ok(parsed) = Header::parse(*header) else {
            return;
        };
        let [.., a, b, c, d] = *header;
        let len = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap();
        let Some((body, behind)) = behind.split_at_checked(len) else {
            return;
        };
        if let Ok(frame) = codec::parse(parsed, body) {
            check(&frame, &rest[..HEADER + len]);
        }
        rest = behind;
    }
}

/// A frame that was understood is said again in the same bytes. A text is cleaned on its way in, so for those only
/// what is clean already stays as it is.
fn check(frame: &Frame, came: &[u8]) {
    let mut said = Vec::new();
    codec::encode(frame, &mut said).unwrap();
    if let Frame::Refuse(text) | Frame::Failed(text) | Frame::Abort(text) = frame {
        assert!(!text.chars().any(char::is_control));
        let (header, body) = said.split_first_chunk::<HEADER>().unwrap();
        assert_eq!(
            &codec::parse(Header::parse(*header).unwrap(), body).unwrap(),
            frame
        );
    } else {
        assert_eq!(said, came, "{}", frame.name());
    }
}

/// One frame of every kind, and a move's worth of them.
pub fn seeds() -> Vec<Vec<u8>> {
    let frames = frames();
    let mut seeds: Vec<Vec<u8>> = frames
        .iter()
        .map(|frame| encode(std::slice::from_ref(frame)))
        .collect();
    let mut all = preamble::ours().to_vec();
    all.extend(encode(&frames));
    seeds.push(all);
    seeds.push(preamble::ours().to_vec());
    seeds
}

pub fn encode(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for frame in frames {
        codec::encode(frame, &mut bytes).unwrap();
    }
    bytes
}

fn frames() -> Vec<Frame> {
    let session = *b"0123456789abcdef";
    let sections = VmState::from_sections(vec![Section {
        kind: Kind::CPU_MODEL,
        instance: 0,
        version: 1,
        bytes: vec![1, 2, 3],
    }]);
    let regions = [(0, 2 << 20), (4 << 30, 4 << 20)];
    let regions = regions.map(|(gpa, bytes)| Region { gpa, bytes });
    let hello = Hello {
        session,
        boot: [8; 16],
        streams: 2,
        by_descriptor: false,
        verify: false,
        page_size: 4096,
        description: Description {
            layout: MemoryLayout::new(regions.to_vec()).unwrap(),
            vcpus: 2,
            sections: sections.clone(),
        },
    };
    let runs = vec![Run { first: 1, pages: 3 }, Run { first: 9, pages: 1 }];
    vec![
        Frame::Hello(Box::new(hello)),
        Frame::Accept {
            boot: [9; 16],
            streams: 2,
        },
        Frame::Refuse("no room".into()),
        Frame::Join { session, index: 1 },
        Frame::Probe {
            session,
            streams: 1,
        },
        Frame::Filler { bytes: 4096 },
        Frame::Memory { files: 2 },
        Frame::Ping(1),
        Frame::Pong(1),
        Frame::Pages {
            round: 0,
            runs: runs.clone(),
        },
        Frame::Packed {
            round: 1,
            runs: runs.clone(),
            codec: Codec::Zstd,
            bytes: 100,
        },
        Frame::Delta {
            round: 1,
            runs: runs.clone(),
            bytes: 40,
        },
        Frame::Zero { round: 1, runs },
        Frame::RoundEnd { round: 1, pages: 4 },
        Frame::State(sections),
        Frame::Ready,
        Frame::Go,
        Frame::Live(Live::default()),
        Frame::Failed("cannot".into()),
        Frame::Abort("enough".into()),
        Frame::Figures(Figures::default()),
        Frame::Snapshot {
            id: session,
            base: Some([5; 16]),
        },
        Frame::End {
            bytes: 4096,
            digest: 7,
        },
    ]
}
