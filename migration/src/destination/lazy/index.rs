//! Where pages lie in the files of snapshots: their frames are read, and the pages behind them passed over.

use std::fs::File;

use super::super::restore::{RestoreError, unexpected_in};
use super::Whole;
use crate::cancel::CancelToken;
use crate::pack::Codec;
use crate::pages::{MemoryLayout, PAGE_SIZE};
use crate::state::VmState;
use crate::wire::codec::{self, HEADER, Header};
use crate::wire::frame::{Frame, MAX_STATE, Run};

/// A frame with pages.
#[derive(Debug)]
pub(super) struct Piece {
    /// The file's number.
    pub file: usize,
    /// Where in it the pages begin, and how many bytes they are there.
    pub at: u64,
    pub bytes: u64,
    /// How they are packed, if they are.
    pub packing: Option<Codec>,
    /// Which pages, in their order.
    pub runs: Vec<Run>,
}

impl Piece {
    /// A frame has bounded them: 16 MiB, or 1 MiB if they are packed.
    pub fn pages(&self) -> u32 {
        self.runs.iter().map(|run| run.pages).sum()
    }
}

/// Where the newest bytes of a page are: in which piece, and the how-manieth of its pages it is. None for zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Place(u64);

impl Place {
    fn of(piece: usize, nth: u32) -> Self {
        // Pieces are counted from 1, so that 0 is nowhere. There are fewer than 2^32: each has a page of 2^32 at most.
        Self((u64::try_from(piece).unwrap_or(u64::MAX) + 1) << 32 | u64::from(nth))
    }

    pub fn is_zero(self) -> bool {
        self.0 == 0
    }

    pub fn get(self) -> Option<(usize, u32)> {
        let piece = usize::try_from((self.0 >> 32).checked_sub(1)?).ok()?;
        #[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
        Some((piece, self.0 as u32))
    }
}

/// What the files hold.
pub(super) struct Index {
    layout: MemoryLayout,
    pub files: Vec<Whole>,
    pub pieces: Vec<Piece>,
    pub places: Vec<Place>,
}

/// A file that is being looked through.
struct Looked<'a> {
    whole: &'a Whole,
    /// How long the file is.
    len: u64,
    at: u64,
    round: u32,
    /// Pages of the round so far.
    admitted: u64,
}

impl Index {
    pub fn new(layout: &MemoryLayout) -> Self {
        let pages = usize::try_from(layout.pages()).unwrap_or(usize::MAX);
        Self {
            layout: layout.clone(),
            files: Vec::new(),
            pieces: Vec::new(),
            places: vec![Place::default(); pages],
        }
    }

    /// Looks through a file from `start` on, which is behind its HELLO; gives the state that is in it. What it says is
    /// newer than what the files before it say.
    pub fn read(
        &mut self,
        file: File,
        name: &str,
        start: u64,
        cancel: &CancelToken,
    ) -> Result<VmState, RestoreError> {
        let mut whole = Whole {
            file,
            name: name.to_owned(),
            bytes: 0,
            digest: 0,
        };
        let mut looked = Looked {
            whole: &whole,
            len: whole.len()?,
            at: start,
            round: 0,
            admitted: 0,
        };
        let state = loop {
            if cancel.is_cancelled() {
                return Err(crate::cancel::Cancelled.into());
            }
            match looked.frame()? {
                Frame::Pages { round, runs } => {
                    let bytes = looked.admit(round, &runs, &self.layout)? * PAGE_SIZE;
                    self.keep(&mut looked, runs, bytes, None)?;
                }
                Frame::Packed {
                    round,
                    runs,
                    codec,
                    bytes,
                } => {
                    looked.admit(round, &runs, &self.layout)?;
                    self.keep(&mut looked, runs, bytes.into(), Some(codec))?;
                }
                Frame::Delta { .. } => {
                    let what = "it holds differences of pages, which cannot be fetched one by one; restore it without --lazy";
                    return Err(looked.damaged(what.to_owned()));
                }
                Frame::Zero { round, runs } => {
                    looked.admit(round, &runs, &self.layout)?;
                    for page in pages_of(&runs) {
                        self.places[page] = Place::default();
                    }
                }
                Frame::RoundEnd { round, pages } => looked.round_end(round, pages)?,
                Frame::State(_) if looked.admitted > 0 => {
                    let what = format!("STATE came in the middle of round {}", looked.round);
                    return Err(looked.damaged(what));
                }
                Frame::State(state) => break state,
                frame => {
                    let at = looked.at;
                    return Err(unexpected_in(name, at, &frame, "pages or STATE"));
                }
            }
        };
        let end = looked.at;
        let last = looked.frame()?;
        let (behind, len) = (looked.at, looked.len);
        match last {
            Frame::End { bytes, digest } if bytes == end && len == behind => {
                (whole.bytes, whole.digest) = (bytes, digest);
            }
            Frame::End { bytes, .. } => {
                let what = format!(
                    "an end mark for {bytes} bytes stands behind {end}, and does not end it"
                );
                return Err(whole.damaged(behind, what));
            }
            frame => return Err(unexpected_in(name, end, &frame, "END")),
        }
        self.files.push(whole);
        Ok(state)
    }

    /// Keeps where the pages behind a frame are, and passes over them.
    fn keep(
        &mut self,
        looked: &mut Looked<'_>,
        runs: Vec<Run>,
        bytes: u64,
        packing: Option<Codec>,
    ) -> Result<(), RestoreError> {
        let at = looked.at;
        for (nth, page) in (0..).zip(pages_of(&runs)) {
            self.places[page] = Place::of(self.pieces.len(), nth);
        }
        self.pieces.push(Piece {
            file: self.files.len(),
            at,
            bytes,
            packing,
            runs,
        });
        looked.pass(bytes)
    }
}

/// The pages of runs that were checked, as indices.
fn pages_of(runs: &[Run]) -> impl Iterator<Item = usize> + '_ {
    let all = runs
        .iter()
        .flat_map(|run| run.first..run.first + u64::from(run.pages));
    all.filter_map(|page| usize::try_from(page).ok())
}

impl Looked<'_> {
    /// The next frame.
    fn frame(&mut self) -> Result<Frame, RestoreError> {
        let mut header = [0; HEADER];
        header.copy_from_slice(&self.take(HEADER)?);
        let parsed = Header::parse(header);
        let header = parsed.map_err(|e| self.damaged(e.to_string()))?;
        if header.len > MAX_STATE {
            return Err(self.damaged(format!("a frame of {} bytes", header.len)));
        }
        let body = self.take(usize::try_from(header.len).unwrap_or(usize::MAX))?;
        codec::parse(header, &body).map_err(|e| self.damaged(e.to_string()))
    }

    /// The next bytes. Nothing is allocated for more than the file has.
    fn take(&mut self, len: usize) -> Result<Vec<u8>, RestoreError> {
        let at = self.at;
        self.pass(u64::try_from(len).unwrap_or(u64::MAX))?;
        let mut bytes = vec![0; len];
        self.whole.read(at, &mut bytes)?;
        Ok(bytes)
    }

    /// Goes on by so many bytes, which have to be there.
    fn pass(&mut self, bytes: u64) -> Result<(), RestoreError> {
        match self.at.checked_add(bytes) {
            Some(end) if end <= self.len => {
                self.at = end;
                Ok(())
            }
            _ => Err(self.damaged("it ends in a frame".into())),
        }
    }

    /// Checks pages of a round; says how many they are.
    fn admit(
        &mut self,
        round: u32,
        runs: &[Run],
        layout: &MemoryLayout,
    ) -> Result<u64, RestoreError> {
        if round != self.round {
            let what = format!("pages of round {round} came in round {}", self.round);
            return Err(self.damaged(what));
        }
        let within = |run: &&Run| {
            let end = run.first.checked_add(u64::from(run.pages));
            let mut ranges = layout.ranges();
            end.is_some_and(|end| {
                ranges.any(|(_, pages)| pages.start <= run.first && end <= pages.end)
            })
        };
        if let Some(run) = runs.iter().find(|run| !within(run)) {
            return Err(self.damaged(format!(
                "{} pages from page {} on are not in one region of the guest's memory",
                run.pages, run.first
            )));
        }
        let more: u64 = runs.iter().map(|run| u64::from(run.pages)).sum();
        self.admitted += more;
        if self.admitted > layout.pages() {
            let (total, all) = (self.admitted, layout.pages());
            return Err(self.damaged(format!(
                "{total} pages in round {round}, the guest has {all}"
            )));
        }
        Ok(more)
    }

    fn round_end(&mut self, round: u32, pages: u64) -> Result<(), RestoreError> {
        if (round, pages) != (self.round, self.admitted) {
            return Err(self.damaged(format!(
                "round {} ends with {} pages, END of round {round} says {pages}",
                self.round, self.admitted
            )));
        }
        (self.round, self.admitted) = (round.saturating_add(1), 0);
        Ok(())
    }

    fn damaged(&self, what: String) -> RestoreError {
        self.whole.damaged(self.at, what)
    }
}
