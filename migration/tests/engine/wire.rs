//! The bytes of every frame: golden ones kept in the tree, round trips of random ones, and what becomes of
//! damaged ones.

use std::fmt::Write as _;
use std::path::Path;

use migration::guest::Description;
use migration::pack::Codec;
use migration::pages::{MemoryLayout, REGION_ALIGN, Region};
use migration::state::{Kind, Section, VmState};
use migration::wire::codec::{self, FrameError, HEADER, Header};
use migration::wire::frame::{
    Figures, Frame, Hello, Live, MAX_DIGESTS, MAX_FILLER, MAX_RUNS, Question, Run,
};
use migration::wire::preamble;
use proptest::collection::vec;
use proptest::prelude::*;

fn encode(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    codec::encode(frame, &mut bytes).unwrap();
    bytes
}

/// As a receiver does it: the header says how long the body is.
fn decode(bytes: &[u8]) -> Result<Frame, FrameError> {
    let (header, body) = bytes
        .split_first_chunk::<HEADER>()
        .ok_or(FrameError::Short("header"))?;
    let header = Header::parse(*header)?;
    let len = u32::from_le_bytes(bytes[4..8].try_into().unwrap());
    let len = usize::try_from(len).unwrap();
    codec::parse(header, body.get(..len).ok_or(FrameError::Short("body"))?)
}

fn description() -> Description {
    let regions = vec![
        Region {
            gpa: 0,
            bytes: 3 << 30,
        },
        Region {
            gpa: 4 << 30,
            bytes: 1 << 30,
        },
    ];
    Description {
        layout: MemoryLayout::new(regions).unwrap(),
        vcpus: 4,
        sections: sections(),
    }
}

fn sections() -> VmState {
    let section = |kind, instance, version, bytes: &[u8]| Section {
        kind,
        instance,
        version,
        bytes: bytes.to_vec(),
    };
    VmState::from_sections(vec![
        section(Kind::CPU_MODEL, 0, 1, &[1, 2, 3]),
        section(Kind(0x0102_0304), 5, 6, &[]),
    ])
}

/// One frame of every kind.
fn samples() -> Vec<Frame> {
    let runs = vec![
        Run { first: 0, pages: 1 },
        Run {
            first: 0x0010_0203,
            pages: 300,
        },
    ];
    let packed_runs = vec![
        Run {
            first: 7,
            pages: 200,
        },
        Run {
            first: 0x0010_0203,
            pages: 56,
        },
    ];
    vec![
        Frame::Hello(Box::new(Hello {
            session: *b"0123456789abcdef",
            boot: [0xb0; 16],
            streams: 2,
            by_descriptor: false,
            verify: false,
            page_size: 4096,
            description: description(),
        })),
        Frame::Accept {
            boot: [0xb1; 16],
            streams: 1,
        },
        Frame::Refuse("no CPU like that: é".into()),
        Frame::Join {
            session: *b"0123456789abcdef",
            index: 3,
        },
        Frame::Probe {
            session: *b"0123456789abcdef",
            streams: 2,
        },
        Frame::Filler { bytes: 0x0001_0203 },
        Frame::Memory { files: 0x0102_0304 },
        Frame::Ping(0x0102_0304_0506_0708),
        Frame::Pong(7),
        Frame::Pages {
            round: 2,
            runs: runs.clone(),
        },
        Frame::Packed {
            round: 2,
            runs: packed_runs.clone(),
            codec: Codec::Zstd,
            bytes: 0x0001_0203,
        },
        Frame::Delta {
            round: 4,
            runs: packed_runs,
            bytes: 0x0001_0203,
        },
        Frame::Zero { round: 3, runs },
        Frame::RoundEnd {
            round: 3,
            pages: 0x0001_0000_0000,
        },
        Frame::Verify(Question::Pages { block: 0x0102 }),
        Frame::Digests {
            first: 0x0001_0200,
            digests: vec![0x0102_0304_0506_0708, u64::MAX],
        },
        Frame::State(sections()),
        Frame::Ready,
        Frame::Go,
        Frame::Live(Live {
            restore_ns: 1,
            resume_ns: 2,
            resumed_at_ns: 3,
        }),
        Frame::Failed("why".into()),
        Frame::Abort(String::new()),
        Frame::Figures(Figures {
            first_heartbeat_ns: 4,
            largest_gap_ns: 5,
        }),
        Frame::Snapshot {
            id: *b"0123456789abcdef",
            base: Some([0xba; 16]),
        },
        Frame::End {
            bytes: 0x0102_0304_0506,
            digest: 0x1112_1314_1516_1718,
        },
    ]
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for line in bytes.chunks(16) {
        let words: Vec<_> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(text, "{}", words.join(" ")).unwrap();
    }
    text
}

fn unhex(text: &str) -> Vec<u8> {
    let byte = |word| u8::from_str_radix(word, 16).unwrap();
    text.split_whitespace().map(byte).collect()
}

/// The bytes of a frame, in the version that it first came with.
fn golden(name: &str) -> String {
    let since = match name {
        "PROBE" | "FILLER" => 2,
        "VERIFY" | "DIGESTS" | "SNAPSHOT" | "END" => 3,
        _ => 1,
    };
    kept(since, name)
}

fn kept(version: u16, name: &str) -> String {
    let name = format!("v{version}-{}.hex", name.to_lowercase());
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Frames and preamble are the bytes that earlier builds of this version sent, and those are read as what
/// they meant. To add a frame, add its file; a file that is there never changes.
#[test]
fn golden_bytes() {
    let ours = kept(preamble::VERSION, "preamble");
    assert_eq!(ours, hex(&preamble::ours()), "preamble");
    for version in preamble::OLDEST..=preamble::VERSION {
        let theirs = unhex(&kept(version, "preamble"));
        let agreed = preamble::agree(theirs.try_into().unwrap(), "an old one");
        assert_eq!(agreed, Ok(version));
    }
    for frame in samples() {
        let name = frame.name();
        assert_eq!(golden(name), hex(&encode(&frame)), "{name}");
        assert_eq!(decode(&unhex(&golden(name))).unwrap(), frame, "{name}");
    }
}

/// What a frame can say since a later version than it came with.
#[test]
fn golden_bytes_of_what_frames_have_learnt() {
    let Some(Frame::Hello(mut hello)) = samples().into_iter().next() else {
        panic!("the first sample is HELLO");
    };
    hello.verify = true;
    let rows = [
        (Frame::Hello(hello), "hello"),
        (Frame::Verify(Question::Blocks), "verify-blocks"),
    ];
    for (frame, name) in rows {
        assert_eq!(kept(3, name), hex(&encode(&frame)), "{name}");
        assert_eq!(decode(&unhex(&kept(3, name))).unwrap(), frame, "{name}");
    }
}

#[test]
fn every_frame_cut_at_every_byte_is_refused() {
    for frame in samples() {
        let bytes = encode(&frame);
        for len in 0..bytes.len() {
            assert!(
                decode(&bytes[..len]).is_err(),
                "{} cut to {len}",
                frame.name()
            );
            // With a header that says so, the body itself has to notice; a shorter text is a text.
            if len >= HEADER {
                let mut cut = bytes[..len].to_vec();
                let body = u32::try_from(len - HEADER).unwrap();
                cut[4..8].copy_from_slice(&body.to_le_bytes());
                let texts = ["REFUSE", "FAILED", "ABORT"];
                assert_eq!(decode(&cut).is_ok(), texts.contains(&frame.name()));
            }
        }
        let mut long = bytes.clone();
        long.push(0);
        let body = u32::try_from(long.len() - HEADER).unwrap();
        long[4..8].copy_from_slice(&body.to_le_bytes());
        let texts = ["REFUSE", "FAILED", "ABORT"];
        assert_eq!(decode(&long).is_ok(), texts.contains(&frame.name()));
    }
}

#[test]
fn every_flipped_bit_is_an_error_or_another_valid_frame() {
    for frame in samples() {
        let bytes = encode(&frame);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if let Ok(other) = decode(&flipped) {
                // Whatever was understood can be said again.
                assert_eq!(decode(&encode(&other)).unwrap(), other);
            }
        }
    }
}

#[test]
fn what_is_too_large_is_neither_sent_nor_read() {
    let run = Run { first: 0, pages: 1 };
    let runs = vec![run; MAX_RUNS + 1];
    let mut bytes = Vec::new();
    let error = codec::encode(&Frame::Zero { round: 0, runs }, &mut bytes).unwrap_err();
    assert!(error.to_string().contains("body of 12020 bytes"), "{error}");
    assert!(bytes.is_empty());
    // 17 MiB behind one frame.
    let runs = vec![Run {
        first: 0,
        pages: 17 * 256,
    }];
    assert!(decode(&encode(&Frame::Pages { round: 0, runs })).is_err());
    // A run of no pages, and one that begins beyond any memory.
    for run in [
        Run { first: 1, pages: 0 },
        Run {
            first: u64::MAX,
            pages: 1,
        },
    ] {
        let runs = vec![run];
        assert!(decode(&encode(&Frame::Zero { round: 0, runs })).is_err());
    }
    // More filler than there may be, and none at all.
    for bytes in [MAX_FILLER + 1, 0] {
        assert!(decode(&encode(&Frame::Filler { bytes })).is_err());
    }
    // 257 pages packed; a codec that nobody knows; more packed than unpacked, nothing at all.
    let packed = |pages, bytes| Frame::Packed {
        round: 0,
        runs: vec![Run { first: 0, pages }],
        codec: Codec::Lz4,
        bytes,
    };
    assert!(decode(&encode(&packed(256, 1 << 20))).is_ok());
    assert!(decode(&encode(&packed(257, 1))).is_err());
    for bytes in [0, 8193, u32::MAX] {
        assert!(decode(&encode(&packed(2, bytes))).is_err());
    }
    let mut bytes = encode(&packed(1, 1));
    for codec in [0u16, 3, 256, u16::MAX] {
        bytes[HEADER + 20..HEADER + 22].copy_from_slice(&codec.to_le_bytes());
        let error = decode(&bytes).unwrap_err().to_string();
        assert!(error.contains("codec"), "{error}");
    }
    // Fewer bytes than the deltas of two pages have at least, and more than at most.
    let delta = |pages, bytes| Frame::Delta {
        round: 1,
        runs: vec![Run { first: 0, pages }],
        bytes,
    };
    for (bytes, ok) in [(11, false), (12, true), (4108, true), (4109, false)] {
        assert_eq!(decode(&encode(&delta(2, bytes))).is_ok(), ok, "{bytes}");
    }
    assert!(decode(&encode(&delta(257, 257 * 6))).is_err());
    // Blocks and pages beyond any memory; digests of another kind, none, and more than there may be.
    for block in [1 << 23, u64::MAX] {
        let question = Question::Pages { block };
        assert!(decode(&encode(&Frame::Verify(question))).is_err());
    }
    let mut bytes = encode(&Frame::Verify(Question::Blocks));
    for (at, byte) in [(0, 2), (2, 2), (4, 1)] {
        bytes[HEADER + at] ^= byte;
        assert!(decode(&bytes).is_err(), "{at}");
        bytes[HEADER + at] ^= byte;
    }
    let digests = |first, count| Frame::Digests {
        first,
        digests: vec![7; count],
    };
    assert!(decode(&encode(&digests((1 << 32) - 1, 1))).is_ok());
    assert!(decode(&encode(&digests(1 << 32, 1))).is_err());
    let mut bytes = Vec::new();
    for count in [0, MAX_DIGESTS + 1] {
        assert!(codec::encode(&digests(0, count), &mut bytes).is_err());
    }
    // Memory by descriptor is one: nothing to compare.
    let mut bytes = encode(&samples()[0]);
    for (flags, ok) in [(0u8, true), (1, true), (2, true), (3, false), (4, false)] {
        bytes[HEADER + 34] = flags;
        assert_eq!(decode(&bytes).is_ok(), ok, "{flags}");
    }
    // Four thousand million sections in four bytes.
    let mut bytes = encode(&Frame::State(VmState::default()));
    bytes[HEADER..].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(decode(&bytes).is_err());
    let long = Frame::Failed("é".repeat(4096));
    let Frame::Failed(text) = decode(&encode(&long)).unwrap() else {
        panic!("another frame");
    };
    assert_eq!(text, "é".repeat(2048));
    let sly = Frame::Failed("a\x1b[2Jb\nc".into());
    assert_eq!(
        decode(&encode(&sly)).unwrap(),
        Frame::Failed("a [2Jb c".into())
    );
}

fn any_sections() -> impl Strategy<Value = VmState> {
    let section = (
        any::<u32>(),
        any::<u32>(),
        any::<u32>(),
        vec(any::<u8>(), 0..100),
    );
    vec(section, 0..10).prop_map(|sections| {
        let section = |(kind, instance, version, bytes)| Section {
            kind: Kind(kind),
            instance,
            version,
            bytes,
        };
        VmState::from_sections(sections.into_iter().map(section).collect())
    })
}

fn any_layout() -> impl Strategy<Value = MemoryLayout> {
    vec((0u64..1000, 1u64..1000), 1..=16).prop_map(|steps| {
        let mut end = 0;
        let region = |(hole, size)| {
            let gpa = end + hole * REGION_ALIGN;
            let bytes = size * REGION_ALIGN;
            end = gpa + bytes;
            Region { gpa, bytes }
        };
        MemoryLayout::new(steps.into_iter().map(region).collect()).unwrap()
    })
}

fn any_runs() -> impl Strategy<Value = Vec<Run>> {
    let run = (0u64..1 << 32, 1u32..4).prop_map(|(first, pages)| Run { first, pages });
    vec(run, 1..=MAX_RUNS)
}

/// At most 256 pages, and a length that they may have.
fn any_packed_runs() -> impl Strategy<Value = (Vec<Run>, u32)> {
    let run = (0u64..1 << 32, 1u32..4).prop_map(|(first, pages)| Run { first, pages });
    (vec(run, 1..=85), 6u32..=2054).prop_map(|(runs, each)| {
        let pages: u32 = runs.iter().map(|run| run.pages).sum();
        (runs, pages * each)
    })
}

fn any_codec() -> impl Strategy<Value = Codec> {
    prop_oneof![Just(Codec::Lz4), Just(Codec::Zstd)]
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let text = "[^\\p{Cc}]{0,200}";
    let hello = (
        any::<[u8; 16]>(),
        any::<[u8; 16]>(),
        1u16..,
        1u32..=4096,
        any::<bool>(),
        any_layout(),
        any_sections(),
    );
    prop_oneof![
        hello.prop_map(
            |(session, boot, streams, vcpus, verify, layout, sections)| {
                Frame::Hello(Box::new(Hello {
                    session,
                    boot,
                    streams,
                    by_descriptor: false,
                    verify,
                    page_size: 4096,
                    description: Description {
                        layout,
                        vcpus,
                        sections,
                    },
                }))
            }
        ),
        (any::<[u8; 16]>(), 1u16..).prop_map(|(boot, streams)| Frame::Accept { boot, streams }),
        (any::<[u8; 16]>(), 1u16..).prop_map(|(session, index)| Frame::Join { session, index }),
        text.prop_map(Frame::Refuse),
        text.prop_map(Frame::Failed),
        text.prop_map(Frame::Abort),
        any::<u64>().prop_map(Frame::Ping),
        any::<u64>().prop_map(Frame::Pong),
        (any::<u32>(), any_runs()).prop_map(|(round, runs)| Frame::Pages { round, runs }),
        (any::<u32>(), any_runs()).prop_map(|(round, runs)| Frame::Zero { round, runs }),
        (any::<u32>(), any_packed_runs(), any_codec()).prop_map(|(round, (runs, bytes), codec)| {
            Frame::Packed {
                round,
                runs,
                codec,
                bytes,
            }
        }),
        (any::<u32>(), any_packed_runs()).prop_map(|(round, (runs, bytes))| Frame::Delta {
            round,
            runs,
            bytes
        }),
        (any::<u32>(), any::<u64>()).prop_map(|(round, pages)| Frame::RoundEnd { round, pages }),
        Just(Frame::Verify(Question::Blocks)),
        (0u64..1 << 23).prop_map(|block| Frame::Verify(Question::Pages { block })),
        (0u64..1 << 32, vec(any::<u64>(), 1..=MAX_DIGESTS))
            .prop_map(|(first, digests)| Frame::Digests { first, digests }),
        any_sections().prop_map(Frame::State),
        Just(Frame::Ready),
        Just(Frame::Go),
        any::<[u64; 3]>().prop_map(|[restore_ns, resume_ns, resumed_at_ns]| Frame::Live(Live {
            restore_ns,
            resume_ns,
            resumed_at_ns
        })),
        any::<[u64; 2]>().prop_map(|[first_heartbeat_ns, largest_gap_ns]| Frame::Figures(
            Figures {
                first_heartbeat_ns,
                largest_gap_ns
            }
        )),
    ]
}

proptest! {
    #[test]
    fn what_is_sent_is_what_is_read(frame in any_frame()) {
        prop_assert_eq!(decode(&encode(&frame)).unwrap(), frame);
    }

    #[test]
    fn random_bytes_are_read_without_a_panic(mut bytes in vec(any::<u8>(), 0..400), kind in 0u8..40, len in 0u32..400) {
        let _ = decode(&bytes);
        // With a header that holds, the body gets its turn.
        if bytes.len() >= HEADER {
            bytes[..8].copy_from_slice(&[kind, 0, 0, 0, 0, 0, 0, 0]);
            bytes[4..8].copy_from_slice(&len.to_le_bytes());
            let _ = decode(&bytes);
        }
    }
}
