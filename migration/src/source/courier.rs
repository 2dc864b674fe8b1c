//! The worker that carries pages: looks which are zero, and sends them. Each stream of a move has one; together
//! they share a round.

use std::time::{Duration, Instant};

use super::error::MoveError;
use super::line::Line;
use super::pacer::Pacer;
use super::streams::{SIGN, Tally};
use super::work_list::Piece;
use crate::dirty::DirtyLog;
use crate::guest::GuestRam;
use crate::pages::{MemoryLayout, PageSet};
use crate::ram::RamView;
use crate::touched;
use crate::wire::frame::{Frame, MAX_RUNS, Run};
use crate::wire::iov::Out;

/// Pages in one PAGES frame: 1 MiB. A header for each costs nothing beside that, and what the search for
/// zeros brought into the processor's cache is still there when the kernel copies it.
pub(super) const BATCH: u64 = 256;
/// The least that is packed together, however low the bandwidth: what a codec sees at once decides what it saves.
const PACKED_BATCH: u64 = 64;
/// But all streams send theirs in so much time, also where that saves nothing: no stream is silent for longer, waiting
/// for its turn.
const PACKED_TIME: Duration = Duration::from_millis(250);
/// After so many runs the destination is asked for a sign of life. Runs far apart are slow to take in, since
/// each may be the first touch of a huge page there, and a socket's buffer holds thousands of them: without
/// an answer in between, a destination that is busy could not be told from one that is dead.
const SIGN_EVERY: usize = 64;

/// What all couriers of a round work on.
#[derive(Clone, Copy)]
pub(super) struct Load<'a> {
    pub ram: &'a GuestRam,
    pub layout: &'a MemoryLayout,
    pub log: &'a dyn DirtyLog,
    pub pacer: &'a Pacer,
    /// The pages to be carried.
    pub set: &'a PageSet,
    pub round: u32,
    /// How many lines carry them.
    pub streams: u16,
    /// So many of them are armed before their turn, and left out if they are written again before it comes.
    pub ahead: u64,
}

/// What was carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub sent_pages: u64,
    /// Zero pages, told or not.
    pub zero_pages: u64,
    /// Zero pages that the destination was not told of: in the first round its memory is zero by itself.
    pub untold_pages: u64,
    /// Pages left to the next round, since they were written again before their turn.
    pub rewritten_pages: u64,
    /// Time spent in handing bytes to the connection, pacing included; of several streams the longest.
    pub sending: Duration,
}

impl Counts {
    /// Pages that PAGES and ZERO frames have named.
    pub fn named(&self) -> u64 {
        self.sent_pages + self.zero_pages - self.untold_pages
    }

    /// Together with what was carried beside it at the same time.
    pub fn beside(self, other: Self) -> Self {
        Self {
            sent_pages: self.sent_pages + other.sent_pages,
            zero_pages: self.zero_pages + other.zero_pages,
            untold_pages: self.untold_pages + other.untold_pages,
            rewritten_pages: self.rewritten_pages + other.rewritten_pages,
            sending: self.sending.max(other.sending),
        }
    }
}

/// Carries pages of one guest over one line.
pub(super) struct Courier<'a> {
    load: Load<'a>,
    ram: RamView<'a>,
    line: &'a mut Line,
    tally: &'a Tally,
    batch: u64,
    data: Batch,
    zero: Batch,
    /// Runs sent since the destination was last asked for a sign of life.
    unasked: usize,
    /// When this line last said something.
    last_sent: Instant,
    pub counts: Counts,
}

/// Runs that wait to be sent together.
#[derive(Debug, Default)]
struct Batch {
    runs: Vec<Run>,
    pages: u64,
}

impl Batch {
    fn push(&mut self, page: u64) {
        self.pages += 1;
        match self.runs.last_mut() {
            Some(run) if run.first + u64::from(run.pages) == page && run.pages < u32::MAX => {
                run.pages += 1;
            }
            _ => self.runs.push(Run {
                first: page,
                pages: 1,
            }),
        }
    }
}

impl<'a> Courier<'a> {
    pub fn new(load: Load<'a>, line: &'a mut Line, tally: &'a Tally) -> Result<Self, MoveError> {
        let least = match line.packer.is_used() {
            true => PACKED_BATCH.min(load.pacer.pages(PACKED_TIME) / u64::from(load.streams)),
            false => 0,
        };
        let batch = load.pacer.batch(BATCH).max(least);
        Ok(Self {
            load,
            ram: RamView::new(load.ram, load.layout)?,
            line,
            tally,
            batch,
            data: Batch::default(),
            zero: Batch::default(),
            unasked: 0,
            last_sent: Instant::now(),
            counts: Counts::default(),
        })
    }

    /// Carries the pages of a piece.
    pub fn carry(&mut self, piece: &Piece) -> Result<(), MoveError> {
        let (set, range) = (self.load.set, &piece.range);
        let (untold, rewritten) = (self.counts.untold_pages, self.counts.rewritten_pages);
        // Where the kernel does not say, a look does, and takes the page.
        let holes = touched::holes(self.load.ram, self.load.layout, set, range).unwrap_or_default();
        for run in set.runs(range.clone(), u64::MAX) {
            for page in run {
                if piece.is_written_again(page) {
                    self.counts.rewritten_pages += 1;
                } else if !holes.contains(page) && !self.ram.is_zero(page) {
                    self.data.push(page);
                } else if self.load.round > 0 {
                    self.zero.push(page);
                } else {
                    self.counts.untold_pages += 1;
                }
                if self.data.pages == self.batch || self.zero.runs.len() == MAX_RUNS {
                    self.flush()?;
                }
            }
        }
        self.tally.add(self.counts.untold_pages - untold, 0);
        self.tally
            .leave_out(self.counts.rewritten_pages - rewritten);
        self.flush()
    }

    /// Sends what waits. Before that it listens: a destination that cannot go on says so at any time, and where zeros
    /// are looked through and nothing is sent, a cancel would not be noticed, nor this side's life on the other.
    fn flush(&mut self) -> Result<(), MoveError> {
        self.line.channel.interrupted()?;
        self.line.listen()?;
        let began = Instant::now();
        let before = self.line.channel.sent_bytes();
        let round = self.load.round;
        let data = std::mem::take(&mut self.data);
        let zero = std::mem::take(&mut self.zero);
        self.unasked += data.runs.len() + zero.runs.len();
        if data.pages > 0 {
            self.counts.sent_pages += data.pages;
            let Line {
                channel, packer, ..
            } = &mut *self.line;
            let pacer = self.load.pacer;
            packer.send(round, data.runs, &self.ram, |frame, data| {
                let bytes: usize = data.iter().map(Out::len).sum();
                let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
                pacer.pace(bytes, channel.cancel_token())?;
                Ok::<_, MoveError>(channel.send_with(frame, data)?)
            })?;
        }
        if zero.pages > 0 {
            self.counts.zero_pages += zero.pages;
            self.line.packer.zero(&zero.runs);
            let runs = zero.runs;
            self.line.channel.send(&Frame::Zero { round, runs })?;
        }
        if self.line.channel.sent_bytes() != before {
            self.last_sent = Instant::now();
        }
        if self.unasked >= SIGN_EVERY || self.last_sent.elapsed() >= SIGN {
            self.unasked = 0;
            self.last_sent = Instant::now();
            self.line.ask()?;
        }
        self.counts.sending += began.elapsed();
        let bytes = self.line.channel.sent_bytes() - before;
        self.tally.add(data.pages + zero.pages, bytes);
        Ok(())
    }

    /// What was carried in all.
    pub fn finish(mut self) -> Counts {
        self.counts.zero_pages += self.counts.untold_pages;
        self.counts
    }
}
