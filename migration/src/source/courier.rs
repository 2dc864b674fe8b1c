//! The worker that carries pages: re-arms them in the dirty log, looks which are zero, and sends them. It
//! works on one range of one set over one channel, so several of them can share a round.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::error::MoveError;
use super::pacer::Pacer;
use super::trip::instead_of;
use crate::dirty::DirtyLog;
use crate::guest::GuestError;
use crate::pages::{PAGE_SIZE, PageSet};
use crate::ram::RamView;
use crate::wire::channel::Channel;
use crate::wire::frame::{Frame, MAX_RUNS, Run};

/// Pages in one PAGES frame: 1 MiB. A header for each costs nothing beside that, and what the search for
/// zeros brought into the processor's cache is still there when the kernel copies it.
const BATCH: u64 = 256;
/// After so many runs the destination is asked for a sign of life. Runs far apart are slow to take in, since
/// each may be the first touch of a huge page there, and a socket's buffer holds thousands of them: without
/// an answer in between, a destination that is busy could not be told from one that is dead.
const SIGN_EVERY: usize = 256;
/// The number of the PINGs that ask for that. Those that measure have small ones.
const SIGN_OF_LIFE: u64 = u64::MAX;

/// A piece of a round: the pages of `set` within `range`, which lies in one region and starts at a multiple
/// of 64.
#[derive(Debug, Clone)]
pub(super) struct Work<'s> {
    pub round: u32,
    pub set: &'s PageSet,
    pub range: Range<u64>,
}

/// What was carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub sent_pages: u64,
    pub zero_pages: u64,
    /// Time spent in handing bytes to the connection, pacing included.
    pub sending: Duration,
}

/// Carries pages of one guest.
pub(super) struct Courier<'a> {
    ram: RamView<'a>,
    log: &'a dyn DirtyLog,
    pacer: &'a mut Pacer,
    batch: u64,
    data: Batch,
    zero: Batch,
    /// Runs sent since the destination was last asked for a sign of life.
    unasked: usize,
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
    pub fn new(ram: RamView<'a>, log: &'a dyn DirtyLog, pacer: &'a mut Pacer) -> Self {
        let batch = pacer.batch(BATCH);
        Self {
            ram,
            log,
            pacer,
            batch,
            data: Batch::default(),
            zero: Batch::default(),
            unasked: 0,
            counts: Counts::default(),
        }
    }

    /// Carries all pages of `work`.
    pub fn carry(&mut self, work: &Work<'_>, channel: &mut Channel) -> Result<(), MoveError> {
        let Work { round, set, range } = work;
        if set.words(range.clone()).iter().all(|&word| word == 0) {
            return Ok(());
        }
        // Armed first, read after: a write in between is in the next take.
        self.log.rearm(set, range.clone())?;
        for run in set.runs(range.clone(), u64::MAX) {
            for page in run {
                if self.ram.is_zero(page) {
                    self.zero.push(page);
                } else {
                    self.data.push(page);
                }
                if self.data.pages == self.batch || self.zero.runs.len() == MAX_RUNS {
                    self.flush(*round, channel)?;
                }
            }
        }
        self.flush(*round, channel)
    }

    /// Sends what waits. Before that it listens: a destination that cannot go on says so at any time.
    fn flush(&mut self, round: u32, channel: &mut Channel) -> Result<(), MoveError> {
        match channel.poll_frame()? {
            None | Some(Frame::Pong(SIGN_OF_LIFE)) => {}
            Some(frame) => return Err(instead_of("nothing", &frame, channel)),
        }
        let began = Instant::now();
        let data = std::mem::take(&mut self.data);
        let zero = std::mem::take(&mut self.zero);
        self.unasked += data.runs.len() + zero.runs.len();
        if data.pages > 0 {
            self.pacer
                .pace(data.pages * PAGE_SIZE, channel.cancel_token())?;
            self.counts.sent_pages += data.pages;
            let mut pieces = Vec::with_capacity(data.runs.len());
            for &run in &data.runs {
                pieces.push(self.ram.out(run).ok_or_else(|| outside(run))?);
            }
            let runs = data.runs;
            channel.send_with(&Frame::Pages { round, runs }, &pieces)?;
        }
        if zero.pages > 0 {
            self.counts.zero_pages += zero.pages;
            let runs = zero.runs;
            channel.send(&Frame::Zero { round, runs })?;
        }
        if self.unasked >= SIGN_EVERY {
            self.unasked = 0;
            channel.send(&Frame::Ping(SIGN_OF_LIFE))?;
        }
        self.counts.sending += began.elapsed();
        Ok(())
    }
}

/// The next frame that is more than a sign of life. Each of those gives the destination its time anew.
pub(super) fn answer(channel: &mut Channel) -> Result<Frame, MoveError> {
    loop {
        match channel.receive()? {
            Frame::Pong(SIGN_OF_LIFE) => {}
            frame => return Ok(frame),
        }
    }
}

fn outside(run: Run) -> GuestError {
    GuestError::bare(format!(
        "cannot send pages {} to {}: they are not in one region of guest memory",
        run.first,
        run.first + u64::from(run.pages)
    ))
}
