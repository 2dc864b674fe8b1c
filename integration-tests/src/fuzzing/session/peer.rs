//! What a hostile peer says: the frames of a regular move, and what spoils them.

use migration::guest::Description;
use migration::pack::codec::Compressor;
use migration::pack::{Codec, delta};
use migration::state::{Kind, VmState};
use migration::wire::codec::{self, HEADER, Header};
use migration::wire::frame::{Figures, Frame, Hello, Live, Run};
use migration::wire::preamble;

use super::super::input::{Program, Written};
use super::support::World;

const PAGE: usize = 4096;
/// The most steps of one conversation, so that it stays short.
const STEPS: usize = 64;
/// The step that ends a file.
pub const OVER: u8 = 231;

/// Headers of the frames on which the handover turns: kind, reserved, length.
pub const GO: [u8; HEADER] = [34, 0, 0, 0, 0, 0, 0, 0];
pub const LIVE: [u8; HEADER] = [35, 0, 0, 0, 24, 0, 0, 0];

/// Whether a frame may have been said: its header is somewhere among the bytes.
pub fn was_said(bytes: &[u8], header: [u8; HEADER]) -> bool {
    bytes.windows(HEADER).any(|window| window == header)
}

/// The frames that a source has said so far.
pub fn frames(said: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    let mut rest = said.get(preamble::PREAMBLE..).unwrap_or_default();
    while let Some((header, behind)) = rest.split_first_chunk::<HEADER>() {
        let [.., a, b, c, d] = *header;
        let len = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap();
        let Some((body, behind)) = behind.split_at_checked(len) else {
            break;
        };
        let frame = codec::parse(Header::parse(*header).unwrap(), body).unwrap();
        let data = match &frame {
            Frame::Pages { runs, .. } => count(runs) * PAGE,
            Frame::Packed { bytes, .. } | Frame::Delta { bytes, .. } => {
                usize::try_from(*bytes).unwrap()
            }
            _ => 0,
        };
        frames.push(frame);
        rest = behind.get(data..).unwrap_or_default();
    }
    frames
}

/// A part of what is said.
#[derive(Default)]
pub struct Part {
    /// So many more PINGs are answered from here on, as they come.
    pub answers: usize,
    /// It is said when such a frame was heard.
    pub behind: Option<&'static str>,
    pub said: Vec<u8>,
}

fn put(frame: Frame, said: &mut Vec<u8>) {
    // What is larger than a frame may be cannot be said, not even by this peer.
    let _ = codec::encode(&frame, said);
}

/// The preamble of a peer of this version, an older or a newer one, or something else altogether.
fn greet(how: u8, said: &mut Vec<u8>) {
    let mut bytes = preamble::ours();
    match how % 8 {
        0 => return,
        1 => bytes[8..12].copy_from_slice(&[preamble::OLDEST.to_le_bytes()[0], 0, 1, 0]),
        2 => bytes[8..12].copy_from_slice(&[9, 0, 1, 0]),
        3 => bytes[8..12].copy_from_slice(&[9, 0, 9, 0]),
        _ => {}
    }
    said.extend(bytes);
}

/// What either peer does to spoil the conversation, or `None` for a step of its own.
fn spoil(step: u8, program: &mut Program<'_>, said: &mut Vec<u8>) -> Option<()> {
    match step {
        250.. => {
            let len = program.u8();
            said.extend(program.bytes(len.into()));
        }
        244..250 => {
            let at = usize::from(program.u16());
            let bit = program.u8() % 8;
            // Counted from the end: what was said last is spoilt most.
            if let Some(at) = said.len().checked_sub(at + 1) {
                said[at] ^= 1 << bit;
            }
        }
        238..244 => {
            let cut = usize::from(program.u16());
            said.truncate(said.len().saturating_sub(cut));
        }
        232..238 => {
            // A frame of any kind with any body, but a header that fits it.
            let (kind, len) = (program.u8(), program.u8());
            let body = program.bytes(len.into());
            let len = u32::try_from(body.len()).unwrap();
            said.extend([kind % 52, 0, 0, 0]);
            said.extend(len.to_le_bytes());
            said.extend(body);
        }
        _ => return None,
    }
    Some(())
}

/// A source that knows the guest that is expected.
pub struct Source {
    description: Description,
    round: u32,
    pages: u64,
    pings: u64,
}

impl Source {
    pub fn new(world: &World) -> Self {
        let mut sections = VmState::default();
        sections.put(Kind::CPU_MODEL, 0, 1, &"fake").unwrap();
        Self {
            description: Description {
                layout: world.layout.clone(),
                vcpus: 2,
                sections,
            },
            round: 0,
            pages: 0,
            pings: 0,
        }
    }

    pub fn all(mut self, program: &mut Program<'_>) -> Vec<u8> {
        let mut said = Vec::new();
        greet(program.u8(), &mut said);
        for _ in 0..STEPS {
            if program.is_over() {
                break;
            }
            let step = program.u8();
            if spoil(step, program, &mut said).is_none() {
                self.step(step, program, &mut said);
            }
        }
        said
    }

    /// The file of that number in a chain of which these are the names, up to its end mark.
    pub fn file(mut self, number: usize, ids: &[[u8; 16]], program: &mut Program<'_>) -> Vec<u8> {
        let mut said = Vec::new();
        greet(program.u8(), &mut said);
        let base = number.checked_sub(1).map(|before| ids[before]);
        let base = match program.u8() % 8 {
            7 => Some([0; 16]),
            6 => None,
            _ => base,
        };
        let id = ids[number];
        put(Frame::Snapshot { id, base }, &mut said);
        if program.u8() % 8 < 7 {
            put(self.hello(program.u8()), &mut said);
        }
        for _ in 0..STEPS {
            let step = if program.is_over() {
                OVER
            } else {
                program.u8()
            };
            if step == OVER {
                break;
            }
            if spoil(step, program, &mut said).is_none() {
                self.step(step, program, &mut said);
            }
        }
        said
    }

    fn step(&mut self, step: u8, program: &mut Program<'_>, said: &mut Vec<u8>) {
        match step % 14 {
            0 => put(self.hello(program.u8()), said),
            1 => {
                let runs = self.runs(program);
                let bytes = count(&runs) * PAGE;
                put(
                    Frame::Pages {
                        round: self.round,
                        runs,
                    },
                    said,
                );
                said.resize(said.len() + bytes, program.u8());
            }
            2 => {
                let runs = self.runs(program);
                let round = self.round;
                put(Frame::Zero { round, runs }, said);
            }
            3 => {
                let (round, pages) = (self.round, self.pages);
                put(Frame::RoundEnd { round, pages }, said);
                (self.round, self.pages) = (round.wrapping_add(1), 0);
            }
            4 => {
                let (round, pages) = (program.u8().into(), program.u16().into());
                put(Frame::RoundEnd { round, pages }, said);
            }
            5 => self.packed(program, said),
            6 => self.delta(program, said),
            7 => put(Frame::State(state(1)), said),
            8 => put(Frame::State(state(program.u8().into())), said),
            9 => put(Frame::Go, said),
            10 => {
                put(Frame::Ping(self.pings), said);
                self.pings += 1;
            }
            11 => put(Frame::Abort("enough".into()), said),
            12 => {
                let (session, streams) = ([7; 16], program.u8().into());
                put(Frame::Probe { session, streams }, said);
            }
            _ => {
                let bytes = u32::from(program.u8()) * 16;
                put(Frame::Filler { bytes }, said);
                said.resize(said.len() + usize::try_from(bytes).unwrap(), 0);
            }
        }
    }

    fn hello(&self, how: u8) -> Frame {
        let mut description = self.description.clone();
        if how & 8 != 0 {
            description.vcpus = 3;
        }
        Frame::Hello(Box::new(Hello {
            session: [7; 16],
            boot: [8; 16],
            streams: 1 + u16::from(how & 1),
            by_descriptor: how & 2 != 0,
            verify: how & 4 != 0,
            page_size: 4096,
            description,
        }))
    }

    /// One or two runs somewhere; the guest has 512 pages.
    fn runs(&mut self, program: &mut Program<'_>) -> Vec<Run> {
        let (first, pages, both) = (program.u16(), program.u8(), program.u8());
        let first = u64::from(first) % 520;
        let pages = u32::from(pages % 6) + 1;
        let mut runs = vec![Run { first, pages }];
        if both & 1 == 1 {
            runs.push(Run {
                first: first + 20,
                pages: 1,
            });
        }
        self.pages += runs.iter().map(|run| u64::from(run.pages)).sum::<u64>();
        runs
    }

    fn packed(&mut self, program: &mut Program<'_>, said: &mut Vec<u8>) {
        let runs = self.runs(program);
        let codec = Codec::ALL[usize::from(program.u8() % 2)];
        let pages = vec![program.u8(); count(&runs) * PAGE];
        let mut packed = vec![0; Compressor::bound(pages.len())];
        let len = Compressor::default().pack(codec, &pages, &mut packed);
        packed.truncate(len.unwrap());
        let (round, bytes) = (self.round, u32::try_from(packed.len()).unwrap());
        let frame = Frame::Packed {
            round,
            runs,
            codec,
            bytes,
        };
        put(frame, said);
        said.extend(packed);
    }

    /// Deltas on pages that hold nothing but one byte, as PAGES and PACKED leave them here.
    fn delta(&mut self, program: &mut Program<'_>, said: &mut Vec<u8>) {
        let runs = self.runs(program);
        let (old, new) = (program.u8(), program.u8());
        let (old, mut page) = ([old; PAGE], [old; PAGE]);
        page[100..120].fill(new);
        let mut delta = Vec::new();
        delta::encode(&old, &page, &mut delta);
        let mut deltas = Vec::new();
        for _ in 0..count(&runs) {
            deltas.extend(u16::try_from(delta.len()).unwrap().to_le_bytes());
            deltas.extend(crc32fast::hash(&page).to_le_bytes());
            deltas.extend(&delta);
        }
        let (round, bytes) = (self.round, u32::try_from(deltas.len()).unwrap());
        put(Frame::Delta { round, runs, bytes }, said);
        said.extend(deltas);
    }
}

fn count(runs: &[Run]) -> usize {
    let pages = runs.iter().map(|run| run.pages).sum::<u32>();
    usize::try_from(pages).unwrap()
}

/// The state of the guest of `support`: when it was saved, which is never 0.
fn state(saved_at: u64) -> VmState {
    let mut state = VmState::default();
    state.put(Kind::VCPU, 0, 1, &saved_at).unwrap();
    state
}

/// A destination.
pub struct Destination;

impl Destination {
    pub fn all(self, program: &mut Program<'_>) -> Vec<Part> {
        let mut parts = vec![Part::default()];
        greet(program.u8(), &mut parts[0].said);
        for _ in 0..STEPS {
            if program.is_over() {
                break;
            }
            let step = program.u8();
            let said = &mut parts.last_mut().unwrap().said;
            if spoil(step, program, said).is_none() {
                self.step(step, program, &mut parts);
            }
        }
        parts
    }

    fn step(&self, step: u8, program: &mut Program<'_>, parts: &mut Vec<Part>) {
        let said = &mut parts.last_mut().unwrap().said;
        match step % 9 {
            0 => {
                let (boot, streams) = ([9; 16], program.u8().into());
                put(Frame::Accept { boot, streams }, said);
            }
            1 => {
                parts.push(Part {
                    answers: usize::from(program.u8() % 32),
                    ..Part::default()
                });
            }
            2 => put(Frame::Pong(program.u64()), said),
            3 => put(Frame::Ready, said),
            4 => {
                let live = Live {
                    restore_ns: program.u64(),
                    resume_ns: program.u64(),
                    resumed_at_ns: program.u64(),
                };
                put(Frame::Live(live), said);
            }
            5 => {
                let figures = Figures {
                    first_heartbeat_ns: program.u64(),
                    largest_gap_ns: program.u64(),
                };
                put(Frame::Figures(figures), said);
            }
            6 => put(Frame::Failed("cannot".into()), said),
            7 => put(Frame::Refuse("will not".into()), said),
            _ => {
                let names = ["STATE", "GO", "ROUND_END", "HELLO"];
                let name = names[usize::from(program.u8()) % names.len()];
                parts.push(Part {
                    behind: Some(name),
                    ..Part::default()
                });
            }
        }
    }
}

/// Whole moves, from either side; and some that end badly.
pub fn seeds() -> Vec<Vec<u8>> {
    let source = || Written::default().u8(0).u8(4).u8(0).u8(0);
    // Steps of `Source::step` and what each reads.
    let pages = |seed: Written, first: u16, fill: u8| seed.u8(1).u16(first).u8(3).u8(1).u8(fill);
    let ended = |seed: Written| seed.u8(3).u8(10).u8(10);
    let handed_over = |seed: Written| seed.u8(7).u8(9);
    let plain = ended(pages(pages(source().u8(10).u8(10).u8(10), 0, 1), 100, 2));
    let plain = ended(pages(plain, 100, 3));
    let packed = ended(pages(source(), 0, 5));
    let packed = packed.u8(5).u16(40).u8(2).u8(0).u8(0).u8(7);
    let packed = packed.u8(6).u16(0).u8(3).u8(1).u8(5).u8(6);
    let packed = packed.u8(2).u16(200).u8(5).u8(0);
    let probe = Written::default()
        .u8(0)
        .u8(4)
        .u8(12)
        .u8(1)
        .u8(10)
        .u8(10)
        .u8(10)
        .u8(13)
        .u8(20)
        .u8(10);
    let cancelled = pages(source(), 0, 1).u8(11);
    // Steps of `Destination::step`; the first byte after who it is are the move's options.
    let destination = |options: u8| Written::default().u8(1).u8(options).u8(4).u8(0).u8(1);
    let agreed = |options| destination(options).u8(1).u8(31).u8(8).u8(0);
    let went = |options| agreed(options).u8(3).u8(8).u8(1);
    let live = |seed: Written| seed.u8(4).u64(1).u64(2).u64(3).u8(5).u64(4).u64(5);
    vec![
        handed_over(plain.clone()).0,
        handed_over(ended(packed)).0,
        probe.0,
        cancelled.0,
        plain.u8(7).0,
        live(went(0)).0,
        live(went(4)).0,
        live(went(2)).u8(250).u8(4).bytes(&[1, 2, 3, 4]).0,
        went(0).0,
        went(6).u8(6).0,
        went(0).u8(1).u8(1).0,
        live(agreed(0)).0,
        agreed(0).u8(3).u8(6).0,
        agreed(2).u8(6).0,
        destination(0).u8(7).0,
    ]
}
