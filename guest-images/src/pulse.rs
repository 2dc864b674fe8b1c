//! What `pulse` leaves in guest memory: where, and how to read it.
//!
//! ```text
//! 0x0000_8000  trampoline of vCPUs 1.. (written after the start info and the command line were read)
//! 0x0010_0000  image, variables, stacks
//! 0x0011_0000  status page
//! 0x0011_1000  one page a vCPU
//! 0x0020_0000  stamp tables, one u32 for each page of a working set
//! 0x0080_0000  working sets; pulse touches nothing else from here on
//! ```
//! A page of a working set holds a stamp in its first and last word and its identity in the second word;
//! bytes 64 to 4032 are never touched. A stamp is the number of the page write of its vCPU (low 32 bits).
//! The vCPU stores it in its table first, then at the head of the page, then at the tail.

use thiserror::Error;

/// I/O port to which each heartbeat's number is written, 4 bytes, after the number is in the status page.
pub const HEARTBEAT_PORT: u16 = 0x5f0;
/// GPA of the status page.
pub const STATUS_GPA: u64 = 0x11_0000;
/// GPA of the page of vCPU 0; the others follow, a page each.
pub const VCPU_GPA: u64 = 0x11_1000;
/// GPA of the first stamp table.
pub const TABLES_GPA: u64 = 0x20_0000;
/// Where working sets may begin, in MiB.
pub const WS_MIN_MIB: u32 = 8;
/// Where working sets must have ended, in MiB.
pub const WS_END_MIB: u32 = 3584;
/// The most vCPUs.
pub const MAX_VCPUS: u32 = 16;
/// The most pages that one step of work writes.
pub const MAX_STEP: u32 = 1024;
/// The most milliseconds of a burst, or of the calm after it.
pub const MAX_PHASE_MS: u32 = 60_000;
/// What spreads the ranks of [`Pattern::Zipf`] over the pages: a prime greater than any working set.
const SCATTER: u64 = 0x9e37_79b1;
/// The identity word of a page of a working set is its number (GPA / 4096) xor this.
pub const IDENTITY: u32 = 0x5055_4c53;
/// The first line on the serial port begins with this once all vCPUs are at work.
pub const READY: &str = "pulse: READY";

const MAGIC: &[u8; 8] = b"FERRYPLS";
const VERSION: u32 = 1;

/// Why bytes are not a page of pulse.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ParseError {
    /// The status page does not begin with the magic.
    #[error("no pulse at {STATUS_GPA:#x}: the page begins with {0:02x?}, not with \"FERRYPLS\"")]
    Magic([u8; 8]),
    /// Another version of the layout.
    #[error(
        "pulse has status version {0}, this build reads {VERSION}: use the ferry that started it"
    )]
    Version(u32),
    /// A value that pulse never writes.
    #[error("pulse's {field} holds {value}, which pulse never writes: the page is damaged")]
    Value {
        /// Which one.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
}

/// What a pulse, or one of its vCPUs, is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not yet there.
    Absent,
    /// Reading parameters, starting vCPUs, preparing working sets.
    Starting,
    /// At work.
    Running,
    /// Stopped over a bad parameter; the serial port says which.
    Refused,
}

impl Phase {
    fn parse(field: &'static str, value: u32) -> Result<Self, ParseError> {
        match value {
            0 => Ok(Self::Absent),
            1 => Ok(Self::Starting),
            2 => Ok(Self::Running),
            3 => Ok(Self::Refused),
            _ => Err(ParseError::Value {
                field,
                value: value.into(),
            }),
        }
    }
}

/// The status page. Read while the guest runs, its numbers may be one beat apart from each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// vCPUs at work.
    pub cpus: u32,
    /// The TSC frequency that pulse reckons with.
    pub tsc_khz: u32,
    /// What it is doing.
    pub phase: Phase,
    /// Number of the last heartbeat, from 1; wraps.
    pub beat: u32,
    /// The period of heartbeats.
    pub beat_ms: u32,
    /// The guest's TSC at the last heartbeat.
    pub beat_tsc: u64,
    /// The largest distance between two heartbeats, in TSC cycles.
    pub largest_gap_tsc: u64,
    /// How often vCPU 0 saw its TSC go backwards.
    pub tsc_backwards: u32,
}

fn word(page: &[u8; 4096], offset: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&page[offset..offset + 4]);
    u32::from_le_bytes(bytes)
}

fn long(page: &[u8; 4096], offset: usize) -> u64 {
    u64::from(word(page, offset)) | u64::from(word(page, offset + 4)) << 32
}

fn bounded(field: &'static str, value: u32, most: u32) -> Result<u32, ParseError> {
    if value > most {
        return Err(ParseError::Value {
            field,
            value: value.into(),
        });
    }
    Ok(value)
}

impl Status {
    /// Reads the status page.
    ///
    /// # Errors
    /// It is not one, or holds values that pulse never writes.
    pub fn parse(page: &[u8; 4096]) -> Result<Self, ParseError> {
        let mut magic = [0; 8];
        magic.copy_from_slice(&page[..8]);
        if &magic != MAGIC {
            return Err(ParseError::Magic(magic));
        }
        match word(page, 8) {
            VERSION => (),
            other => return Err(ParseError::Version(other)),
        }
        Ok(Self {
            cpus: bounded("vCPU count", word(page, 12), MAX_VCPUS)?,
            tsc_khz: word(page, 16),
            phase: Phase::parse("state", word(page, 20))?,
            beat: word(page, 24),
            beat_ms: word(page, 28),
            beat_tsc: long(page, 32),
            largest_gap_tsc: long(page, 40),
            tsc_backwards: word(page, 48),
        })
    }
}

/// How a vCPU chooses the pages that it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pattern {
    /// Any page of the working set with the same probability.
    #[default]
    Uniform,
    /// One page after the other, ascending, over and over.
    Sweep,
    /// A hot spot: the probability of a page falls as 1 / its rank (Zipf's law, exponent 1, in octaves of ranks). Hot
    /// pages lie apart: see [`page_of_rank`].
    Zipf,
}

/// The page of a working set of `pages` that has this `rank` (0 is the hottest) under [`Pattern::Zipf`]; both count
/// from 0, and each page has one rank.
pub fn page_of_rank(rank: u32, pages: u32) -> u32 {
    let page = u64::from(rank) * SCATTER % u64::from(pages.max(1));
    u32::try_from(page).expect("less than `pages`")
}

/// Bursts and calm in turn, beginning with a burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phases {
    /// Milliseconds in which it writes at its rate, 1 to [`MAX_PHASE_MS`].
    pub on_ms: u32,
    /// Milliseconds in which it rests, 1 to [`MAX_PHASE_MS`].
    pub off_ms: u32,
}

/// The page of one vCPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vcpu {
    /// What it is doing.
    pub phase: Phase,
    /// How it chooses pages.
    pub pattern: Pattern,
    /// Number of the first page of its working set (GPA / 4096).
    pub ws_first_page: u32,
    /// Pages in its working set.
    pub ws_pages: u32,
    /// GPA of its stamp table, an u32 for each page.
    pub table_gpa: u32,
    /// The most pages that it writes between two updates of `pages_written`.
    pub step: u32,
    /// Page writes done. Stored after each step.
    pub pages_written: u64,
    /// Loops counted, two instructions each; stored every millisecond. Only for `role=compute`.
    pub loops: u64,
    /// Time by which it fell behind its rate and which it gave up, in TSC cycles.
    pub forgiven_tsc: u64,
    /// How often it went to sleep; wraps.
    pub halts: u32,
    /// How often it saw its TSC go backwards.
    pub tsc_backwards: u32,
    /// Bursts and calm; None writes all the time.
    pub phases: Option<Phases>,
}

impl Vcpu {
    /// Reads the page of a vCPU.
    ///
    /// # Errors
    /// It holds values that pulse never writes.
    pub fn parse(page: &[u8; 4096]) -> Result<Self, ParseError> {
        let ws_end_page = WS_END_MIB << 8;
        let ws_first_page = bounded("working set", word(page, 16), ws_end_page)?;
        let ws_pages = bounded("working set", word(page, 20), ws_end_page - ws_first_page)?;
        let table_end = WS_MIN_MIB << 20;
        Ok(Self {
            phase: Phase::parse("vCPU state", word(page, 0))?,
            pattern: match word(page, 8) {
                0 => Pattern::Uniform,
                1 => Pattern::Sweep,
                2 => Pattern::Zipf,
                other => {
                    return Err(ParseError::Value {
                        field: "pattern",
                        value: other.into(),
                    });
                }
            },
            ws_first_page,
            ws_pages,
            table_gpa: bounded("table address", word(page, 24), table_end)?,
            step: bounded("step", word(page, 28), MAX_STEP)?,
            pages_written: long(page, 32),
            loops: long(page, 40),
            forgiven_tsc: long(page, 48),
            halts: word(page, 56),
            tsc_backwards: word(page, 60),
            phases: match (
                bounded("burst", word(page, 64), MAX_PHASE_MS)?,
                bounded("calm", word(page, 68), MAX_PHASE_MS)?,
            ) {
                (0, _) | (_, 0) => None,
                (on_ms, off_ms) => Some(Phases { on_ms, off_ms }),
            },
        })
    }
}
