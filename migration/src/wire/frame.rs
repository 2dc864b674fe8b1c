//! All messages of the protocol. Their meaning is here, their bytes in [`codec`](super::codec), and who says
//! what when in PROTOCOL.md.

use crate::guest::Description;
use crate::pack::Codec;
use crate::pack::delta::MAX_DELTA;
use crate::pages::{MAX_REGIONS, PAGE_SIZE};
use crate::state::VmState;

/// The most runs in one frame; with a header in front they still fit one system call.
pub const MAX_RUNS: usize = 1000;
/// The most bytes of pages behind one frame: 16 MiB.
pub const MAX_DATA: u64 = 16 << 20;
/// Bytes in front of every delta behind a DELTA frame: its length (2), checksum of the page (4).
pub const DELTA_HEADER: usize = 6;
/// The most bytes behind one FILLER frame: 1 MiB, as couriers send pages.
pub const MAX_FILLER: u32 = 1 << 20;
/// The most bytes in a STATE frame: 64 MiB.
pub const MAX_STATE: u32 = 64 << 20;
/// The most bytes in a HELLO frame: 1 MiB.
pub const MAX_HELLO: u32 = 1 << 20;
/// The most bytes in a reason sent as text.
pub const MAX_TEXT: u32 = 4096;
/// The most sections in a state.
pub const MAX_SECTIONS: u32 = 4096;

/// The most vCPUs of a guest: KVM_MAX_VCPUS of Linux on x86 is 4096 at most.
pub const MAX_VCPUS: u32 = 4096;

/// The most digests in one DIGESTS frame.
pub const MAX_DIGESTS: usize = 1024;

/// Names one move: 16 random bytes.
pub type SessionId = [u8; 16];
/// Names one snapshot: 16 random bytes, not all of them 0.
pub type SnapshotId = [u8; 16];
/// Names one boot of a kernel; all zeros where it is not known.
pub type BootId = [u8; 16];

/// Neighbouring pages within one region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Index of the first.
    pub first: u64,
    /// How many; not 0.
    pub pages: u32,
}

/// What the source says first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The move's name; further streams join by it.
    pub session: SessionId,
    /// Which kernel the source runs on.
    pub boot: BootId,
    /// How many streams it would like, this one counted.
    pub streams: u16,
    /// The memory itself comes by descriptor, with a MEMORY frame, instead of its bytes.
    pub by_descriptor: bool,
    /// Memory is to be compared before GO. From version 3 on, and not of memory that comes by descriptor.
    pub verify: bool,
    /// Bytes in a page; always 4096.
    pub page_size: u32,
    /// The guest.
    pub description: Description,
}

/// What the destination learnt by making the guest live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Live {
    /// From the state's last byte to a guest that could run, in nanoseconds.
    pub restore_ns: u64,
    /// From GO to the return of resume, in nanoseconds.
    pub resume_ns: u64,
    /// When resume returned: CLOCK_BOOTTIME of the destination, in nanoseconds.
    pub resumed_at_ns: u64,
}

/// What the destination saw afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Figures {
    /// When the guest's first heartbeat was seen: CLOCK_BOOTTIME of the destination, in nanoseconds; 0 for
    /// none.
    pub first_heartbeat_ns: u64,
    /// The largest distance between two heartbeats so far, in nanoseconds; 0 for unknown.
    pub largest_gap_ns: u64,
}

/// Of what the destination is to give the digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Of all blocks of memory.
    Blocks,
    /// Of the pages of one block.
    Pages {
        /// Its number.
        block: u64,
    },
}

/// A message. S: said by the source, D: by the destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// S: who I am and what the guest is.
    Hello(Box<Hello>),
    /// D: the guest is welcome; its memory is there.
    Accept {
        /// Which kernel the destination runs on.
        boot: BootId,
        /// How many streams it takes; 1 to what HELLO asked for.
        streams: u16,
    },
    /// D: the guest cannot be taken, with the reason.
    Refuse(String),
    /// S, first on a further stream: which move it belongs to.
    Join {
        /// The move's name.
        session: SessionId,
        /// The stream's number, from 1.
        index: u16,
    },
    /// S, instead of HELLO: there is no guest to come, only the link is to be measured.
    Probe {
        /// The probe's name; further streams join by it.
        session: SessionId,
        /// How many streams it would like, this one counted.
        streams: u16,
    },
    /// S: bytes that mean nothing follow the frame, in a probe.
    Filler {
        /// How many.
        bytes: u32,
    },
    /// S, behind a HELLO that announces it: the files of guest memory, whose descriptors come with its first byte.
    Memory {
        /// How many: one for each region.
        files: u32,
    },
    /// S: answer as soon as everything before this has arrived.
    Ping(u64),
    /// D: the answer, with the same number.
    Pong(u64),
    /// S: pages; their bytes follow the frame.
    Pages {
        /// The round that they belong to.
        round: u32,
        /// Which pages, in the order of their bytes.
        runs: Vec<Run>,
    },
    /// S: pages that hold nothing but zeros.
    Zero {
        /// The round that they belong to.
        round: u32,
        /// Which pages.
        runs: Vec<Run>,
    },
    /// S: pages, compressed together; the packed bytes follow the frame.
    Packed {
        /// The round that they belong to.
        round: u32,
        /// Which pages, in the order of their bytes.
        runs: Vec<Run>,
        /// How they are compressed.
        codec: Codec,
        /// How many bytes they were compressed to.
        bytes: u32,
    },
    /// S: pages, as what changed in each since it was last sent; the deltas follow the frame.
    Delta {
        /// The round that they belong to.
        round: u32,
        /// Which pages, in the order of their deltas.
        runs: Vec<Run>,
        /// How many bytes of deltas follow, their headers too.
        bytes: u32,
    },
    /// S: the round is over.
    RoundEnd {
        /// Which round.
        round: u32,
        /// How many pages it had, zero pages counted.
        pages: u64,
    },
    /// S: give the digests of memory, of which no more pages come.
    Verify(Question),
    /// D: digests of neighbouring blocks, or pages. Frames of them need no order.
    Digests {
        /// The index of the first block, or page.
        first: u64,
        /// The digest of each.
        digests: Vec<u64>,
    },
    /// S: all state besides memory; no page follows.
    State(VmState),
    /// D: the guest could run now.
    Ready,
    /// S: it shall. From here the source never resumes the guest by itself.
    Go,
    /// D: it runs.
    Live(Live),
    /// D: it does not and will not run here, with the reason; the source may resume it.
    Failed(String),
    /// S: the move ends here, with the reason; the guest stays with the source.
    Abort(String),
    /// D: afterthoughts for the report.
    Figures(Figures),
    /// In files alone, in front of HELLO: what is kept here.
    Snapshot {
        /// The snapshot's name, random.
        id: SnapshotId,
        /// The snapshot that it stands on; `None` for one that is whole by itself.
        base: Option<SnapshotId>,
    },
    /// In files alone, behind STATE: the file is whole, and nothing follows.
    End {
        /// How many bytes there are before this frame.
        bytes: u64,
        /// Their digest: XXH3, 64 bits, seed 0.
        digest: u64,
    },
}

/// The first two bytes of a frame. Numbers are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameKind {
    Hello = 1,
    Accept = 2,
    Refuse = 3,
    Join = 4,
    Ping = 5,
    Pong = 6,
    Memory = 7,
    Probe = 8,
    Pages = 16,
    Zero = 17,
    RoundEnd = 18,
    Packed = 19,
    Delta = 20,
    Filler = 21,
    Verify = 22,
    Digests = 23,
    State = 32,
    Ready = 33,
    Go = 34,
    Live = 35,
    Failed = 36,
    Abort = 37,
    Figures = 38,
    Snapshot = 48,
    End = 49,
}

impl FrameKind {
    pub(crate) const ALL: [FrameKind; 25] = [
        FrameKind::Hello,
        FrameKind::Accept,
        FrameKind::Refuse,
        FrameKind::Join,
        FrameKind::Ping,
        FrameKind::Pong,
        FrameKind::Memory,
        FrameKind::Probe,
        FrameKind::Pages,
        FrameKind::Zero,
        FrameKind::RoundEnd,
        FrameKind::Packed,
        FrameKind::Delta,
        FrameKind::Filler,
        FrameKind::Verify,
        FrameKind::Digests,
        FrameKind::State,
        FrameKind::Ready,
        FrameKind::Go,
        FrameKind::Live,
        FrameKind::Failed,
        FrameKind::Abort,
        FrameKind::Figures,
        FrameKind::Snapshot,
        FrameKind::End,
    ];

    pub(crate) fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u16 == number)
    }

    /// The fewest and the most bytes of its body.
    pub(crate) fn body_len(self) -> (u32, u32) {
        // A run is 12 bytes behind a round and a count of 4 bytes each.
        const RUNS: (u32, u32) = (8 + 12, 8 + 12 * 1000);
        const _: () = assert!(MAX_DIGESTS == 1024);
        const _: () = assert!(MAX_RUNS == 1000 && MAX_REGIONS <= 16);
        const _: () = assert!(MAX_DATA.is_multiple_of(PAGE_SIZE));
        match self {
            FrameKind::Hello => (48 + 16 + 4, MAX_HELLO),
            FrameKind::Accept => (18, 18),
            FrameKind::Join | FrameKind::Probe => (18, 18),
            FrameKind::Refuse | FrameKind::Failed | FrameKind::Abort => (0, MAX_TEXT),
            FrameKind::Ping | FrameKind::Pong => (8, 8),
            FrameKind::Memory | FrameKind::Filler => (4, 4),
            FrameKind::Pages | FrameKind::Zero => RUNS,
            // Behind the runs: codec (2), reserved (2), length (4); and a length alone.
            FrameKind::Packed => (RUNS.0 + 8, RUNS.1 + 8),
            FrameKind::Delta => (RUNS.0 + 4, RUNS.1 + 4),
            FrameKind::RoundEnd | FrameKind::Verify => (12, 12),
            // An index (8), a count (4), digests of 8 bytes.
            FrameKind::Digests => (12 + 8, 12 + 8 * 1024),
            FrameKind::State => (4, MAX_STATE),
            FrameKind::Ready | FrameKind::Go => (0, 0),
            FrameKind::Live => (24, 24),
            FrameKind::Figures | FrameKind::End => (16, 16),
            FrameKind::Snapshot => (32, 32),
        }
    }
}

impl Frame {
    pub(crate) fn kind(&self) -> FrameKind {
        match self {
            Frame::Hello(_) => FrameKind::Hello,
            Frame::Accept { .. } => FrameKind::Accept,
            Frame::Refuse(_) => FrameKind::Refuse,
            Frame::Join { .. } => FrameKind::Join,
            Frame::Ping(_) => FrameKind::Ping,
            Frame::Pong(_) => FrameKind::Pong,
            Frame::Memory { .. } => FrameKind::Memory,
            Frame::Probe { .. } => FrameKind::Probe,
            Frame::Filler { .. } => FrameKind::Filler,
            Frame::Verify(_) => FrameKind::Verify,
            Frame::Digests { .. } => FrameKind::Digests,
            Frame::Pages { .. } => FrameKind::Pages,
            Frame::Zero { .. } => FrameKind::Zero,
            Frame::Packed { .. } => FrameKind::Packed,
            Frame::Delta { .. } => FrameKind::Delta,
            Frame::RoundEnd { .. } => FrameKind::RoundEnd,
            Frame::State(_) => FrameKind::State,
            Frame::Ready => FrameKind::Ready,
            Frame::Go => FrameKind::Go,
            Frame::Live(_) => FrameKind::Live,
            Frame::Failed(_) => FrameKind::Failed,
            Frame::Abort(_) => FrameKind::Abort,
            Frame::Figures(_) => FrameKind::Figures,
            Frame::Snapshot { .. } => FrameKind::Snapshot,
            Frame::End { .. } => FrameKind::End,
        }
    }

    /// Its name in PROTOCOL.md.
    pub fn name(&self) -> &'static str {
        self.kind().name()
    }
}

/// The fewest and the most bytes of deltas for so many pages.
pub(crate) fn delta_len(pages: u64) -> (u64, u64) {
    let header = u64::try_from(DELTA_HEADER).unwrap_or(u64::MAX);
    let most = u64::try_from(DELTA_HEADER + MAX_DELTA).unwrap_or(u64::MAX);
    (pages * header, pages * most)
}

impl FrameKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            FrameKind::Hello => "HELLO",
            FrameKind::Accept => "ACCEPT",
            FrameKind::Refuse => "REFUSE",
            FrameKind::Join => "JOIN",
            FrameKind::Ping => "PING",
            FrameKind::Pong => "PONG",
            FrameKind::Memory => "MEMORY",
            FrameKind::Probe => "PROBE",
            FrameKind::Filler => "FILLER",
            FrameKind::Verify => "VERIFY",
            FrameKind::Digests => "DIGESTS",
            FrameKind::Pages => "PAGES",
            FrameKind::Zero => "ZERO",
            FrameKind::Packed => "PACKED",
            FrameKind::Delta => "DELTA",
            FrameKind::RoundEnd => "ROUND_END",
            FrameKind::State => "STATE",
            FrameKind::Ready => "READY",
            FrameKind::Go => "GO",
            FrameKind::Live => "LIVE",
            FrameKind::Failed => "FAILED",
            FrameKind::Abort => "ABORT",
            FrameKind::Figures => "FIGURES",
            FrameKind::Snapshot => "SNAPSHOT",
            FrameKind::End => "END",
        }
    }
}
