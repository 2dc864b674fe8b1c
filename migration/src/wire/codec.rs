//! Frames to bytes and back. Little-endian throughout. Parsing trusts nothing: lengths are bounded before
//! anything is allocated, and what does not fit is an error, never a panic.

use thiserror::Error;

use super::frame::{Frame, FrameKind, Hello, MAX_TEXT, Question, Run};
use crate::guest::Description;
use crate::pages::LayoutError;
use crate::state::VmState;

pub use super::parse::parse;

/// Bytes in front of every frame's body: kind (2), reserved (2, zero), length of the body (4).
pub const HEADER: usize = 8;

/// Flags of HELLO.
pub(super) const BY_DESCRIPTOR: u16 = 1;
pub(super) const VERIFY: u16 = 2;
/// The one kind of digests that there is: XXH3, 64 bits, seed 0.
pub(super) const XXH3: u16 = 1;

/// What is wrong with the bytes of a frame, or with a frame that cannot be written.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    /// No frame has that number.
    #[error("unknown frame kind {0}")]
    Unknown(u16),
    /// The two reserved bytes are not zero.
    #[error("frame {kind}: reserved bytes are {found:#06x} instead of 0")]
    Reserved {
        /// The frame's name.
        kind: &'static str,
        /// What was there.
        found: u16,
    },
    /// A large frame where none belongs. Nothing is allocated for it.
    #[error("frame {kind} of {len} bytes does not belong here")]
    Unwanted {
        /// The frame's name.
        kind: &'static str,
        /// The body's length.
        len: u32,
    },
    /// The body is shorter or longer than this kind of frame can be.
    #[error("frame {kind}: body of {len} bytes, expected {min} to {max}")]
    Length {
        /// The frame's name.
        kind: &'static str,
        /// The body's length.
        len: u64,
        /// The least.
        min: u32,
        /// The most.
        max: u32,
    },
    /// The body ends before its last field.
    #[error("frame {0}: body ends early")]
    Short(&'static str),
    /// The body goes on behind its last field.
    #[error("frame {kind}: {extra} bytes too many")]
    Trailing {
        /// The frame's name.
        kind: &'static str,
        /// How many.
        extra: usize,
    },
    /// A value is out of its range.
    #[error("frame {kind}: {field} is {value}, expected {expected}")]
    Value {
        /// The frame's name.
        kind: &'static str,
        /// The field's name.
        field: &'static str,
        /// What was there.
        value: u64,
        /// What should have been there.
        expected: &'static str,
    },
    /// The memory layout makes no sense.
    #[error("frame HELLO: {0}")]
    Layout(LayoutError),
}

/// A checked frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub(crate) kind: FrameKind,
    /// Length of the body, within what the kind allows.
    pub(crate) len: u32,
}

impl Header {
    /// Checks a header.
    ///
    /// # Errors
    /// Unknown kind, reserved bytes in use, or a length that this kind cannot have.
    pub fn parse(bytes: [u8; HEADER]) -> Result<Self, FrameError> {
        let [k0, k1, r0, r1, l0, l1, l2, l3] = bytes;
        let number = u16::from_le_bytes([k0, k1]);
        let kind = FrameKind::from_number(number).ok_or(FrameError::Unknown(number))?;
        let found = u16::from_le_bytes([r0, r1]);
        if found != 0 {
            let kind = kind.name();
            return Err(FrameError::Reserved { kind, found });
        }
        let len = u32::from_le_bytes([l0, l1, l2, l3]);
        check_len(kind, u64::from(len))?;
        Ok(Self { kind, len })
    }
}

impl Header {
    /// The frame's name.
    pub(crate) fn name(&self) -> &'static str {
        self.kind.name()
    }
}

fn check_len(kind: FrameKind, len: u64) -> Result<u32, FrameError> {
    let (min, max) = kind.body_len();
    match u32::try_from(len) {
        Ok(len) if (min..=max).contains(&len) => Ok(len),
        _ => Err(FrameError::Length {
            kind: kind.name(),
            len,
            min,
            max,
        }),
    }
}

/// Appends a frame, header first. Texts are cut to [`MAX_TEXT`] bytes and freed of control characters.
///
/// # Errors
/// The frame is larger than its kind may be; nothing is appended.
pub fn encode(frame: &Frame, into: &mut Vec<u8>) -> Result<(), FrameError> {
    let start = into.len();
    let kind = frame.kind();
    into.extend_from_slice(&(kind as u16).to_le_bytes());
    into.extend_from_slice(&[0; HEADER - 2]);
    let checked = body(frame, into).and_then(|()| {
        let len = into.len() - start - HEADER;
        check_len(kind, u64::try_from(len).unwrap_or(u64::MAX))
    });
    match checked {
        Ok(len) => {
            into[start + 4..start + HEADER].copy_from_slice(&len.to_le_bytes());
            Ok(())
        }
        Err(error) => {
            into.truncate(start);
            Err(error)
        }
    }
}

fn body(frame: &Frame, into: &mut Vec<u8>) -> Result<(), FrameError> {
    match frame {
        Frame::Hello(hello) => hello_body(hello, into)?,
        Frame::Accept { boot, streams } => {
            into.extend_from_slice(boot);
            into.extend_from_slice(&streams.to_le_bytes());
        }
        Frame::Join { session, index } => {
            into.extend_from_slice(session);
            into.extend_from_slice(&index.to_le_bytes());
        }
        Frame::Refuse(text) | Frame::Failed(text) | Frame::Abort(text) => {
            into.extend_from_slice(clean(text).as_bytes());
        }
        Frame::Probe { session, streams } => {
            into.extend_from_slice(session);
            into.extend_from_slice(&streams.to_le_bytes());
        }
        Frame::Verify(question) => {
            let (what, block) = match *question {
                Question::Blocks => (0u16, 0),
                Question::Pages { block } => (1, block),
            };
            into.extend_from_slice(&XXH3.to_le_bytes());
            into.extend_from_slice(&what.to_le_bytes());
            into.extend_from_slice(&block.to_le_bytes());
        }
        Frame::Digests { first, digests } => {
            into.extend_from_slice(&first.to_le_bytes());
            put_count(frame.name(), digests.len(), into)?;
            for digest in digests {
                into.extend_from_slice(&digest.to_le_bytes());
            }
        }
        Frame::Filler { bytes } => into.extend_from_slice(&bytes.to_le_bytes()),
        Frame::Memory { files } => into.extend_from_slice(&files.to_le_bytes()),
        Frame::Ping(number) | Frame::Pong(number) => into.extend_from_slice(&number.to_le_bytes()),
        Frame::Pages { round, runs } | Frame::Zero { round, runs } => {
            runs_body(*round, runs, into);
        }
        Frame::Packed {
            round,
            runs,
            codec,
            bytes,
        } => {
            runs_body(*round, runs, into);
            into.extend_from_slice(&codec.number().to_le_bytes());
            into.extend_from_slice(&0u16.to_le_bytes());
            into.extend_from_slice(&bytes.to_le_bytes());
        }
        Frame::Delta { round, runs, bytes } => {
            runs_body(*round, runs, into);
            into.extend_from_slice(&bytes.to_le_bytes());
        }
        Frame::RoundEnd { round, pages } => {
            into.extend_from_slice(&round.to_le_bytes());
            into.extend_from_slice(&pages.to_le_bytes());
        }
        Frame::State(state) => sections_body(frame.name(), state, into)?,
        Frame::Ready | Frame::Go => {}
        Frame::Live(live) => {
            for ns in [live.restore_ns, live.resume_ns, live.resumed_at_ns] {
                into.extend_from_slice(&ns.to_le_bytes());
            }
        }
        Frame::Figures(figures) => {
            for ns in [figures.first_heartbeat_ns, figures.largest_gap_ns] {
                into.extend_from_slice(&ns.to_le_bytes());
            }
        }
        Frame::Snapshot { id, base } => {
            into.extend_from_slice(id);
            into.extend_from_slice(&base.unwrap_or_default());
        }
        Frame::End { bytes, digest } => {
            into.extend_from_slice(&bytes.to_le_bytes());
            into.extend_from_slice(&digest.to_le_bytes());
        }
    }
    Ok(())
}

fn hello_body(hello: &Hello, into: &mut Vec<u8>) -> Result<(), FrameError> {
    let Hello {
        session,
        boot,
        streams,
        by_descriptor,
        verify,
        page_size,
        description,
    } = hello;
    let Description {
        layout,
        vcpus,
        sections,
    } = description;
    into.extend_from_slice(session);
    into.extend_from_slice(boot);
    into.extend_from_slice(&streams.to_le_bytes());
    let mut flags = 0;
    if *by_descriptor {
        flags |= BY_DESCRIPTOR;
    }
    if *verify {
        flags |= VERIFY;
    }
    into.extend_from_slice(&flags.to_le_bytes());
    into.extend_from_slice(&page_size.to_le_bytes());
    into.extend_from_slice(&vcpus.to_le_bytes());
    put_count("HELLO", layout.regions().len(), into)?;
    for region in layout.regions() {
        into.extend_from_slice(&region.gpa.to_le_bytes());
        into.extend_from_slice(&region.bytes.to_le_bytes());
    }
    sections_body("HELLO", sections, into)
}

fn sections_body(
    kind: &'static str,
    state: &VmState,
    into: &mut Vec<u8>,
) -> Result<(), FrameError> {
    put_count(kind, state.sections().len(), into)?;
    for section in state.sections() {
        into.extend_from_slice(&section.kind.0.to_le_bytes());
        into.extend_from_slice(&section.instance.to_le_bytes());
        into.extend_from_slice(&section.version.to_le_bytes());
        put_count(kind, section.bytes.len(), into)?;
        into.extend_from_slice(&section.bytes);
    }
    Ok(())
}

fn put_count(kind: &'static str, count: usize, into: &mut Vec<u8>) -> Result<(), FrameError> {
    let count = u32::try_from(count).map_err(|_| FrameError::Length {
        kind,
        len: u64::try_from(count).unwrap_or(u64::MAX),
        min: 0,
        max: u32::MAX,
    })?;
    into.extend_from_slice(&count.to_le_bytes());
    Ok(())
}

fn runs_body(round: u32, runs: &[Run], into: &mut Vec<u8>) {
    into.extend_from_slice(&round.to_le_bytes());
    // More than MAX_RUNS makes the body too long, which `encode` refuses.
    let count = u32::try_from(runs.len()).unwrap_or(u32::MAX);
    into.extend_from_slice(&count.to_le_bytes());
    for run in runs {
        into.extend_from_slice(&run.first.to_le_bytes());
        into.extend_from_slice(&run.pages.to_le_bytes());
    }
}

/// A text that is safe to show: of bounded length, and nothing in it that a terminal would obey.
pub(crate) fn clean(text: &str) -> String {
    const MAX: usize = MAX_TEXT as usize;
    let mut clean = String::new();
    for c in text.chars() {
        let c = if c.is_control() { ' ' } else { c };
        if clean.len() + c.len_utf8() > MAX {
            break;
        }
        clean.push(c);
    }
    clean
}
