//! Memory that comes in round by round over several streams, straight to where it belongs.
//!
//! Within a round a page comes at most once, so its streams need no order among them. The next round may
//! bring the same page over another stream: nothing of it is taken before all of the last one has landed.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::ReceiveError;
use super::alarm::Alarm;
use crate::event::Arrival;
use crate::guest::GuestRam;
use crate::pack::Codec;
use crate::pack::unpacker::{UnpackError, Unpacker};
use crate::pages::MemoryLayout;
use crate::ram::RamView;
use crate::wire::channel::Channel;
use crate::wire::frame::Run;
use crate::wire::iov::In;

/// A wait for another stream looks so often whether the move is over.
const GLANCE: Duration = Duration::from_millis(20);

/// So many pages are made zero at once: 16 MiB.
const CLEARED_PAGES: u32 = 4096;
const CLEARED: usize = CLEARED_PAGES as usize;

/// A blank guest's memory while it is filled, shared by all streams.
#[derive(Debug)]
pub(super) struct Intake {
    ram: GuestRam,
    layout: MemoryLayout,
    streams: u16,
    progress: Mutex<Progress>,
    changed: Condvar,
    alarm: Alarm,
}

#[derive(Debug, Default)]
struct Progress {
    /// The round that is under way.
    round: u32,
    /// Its pages that were announced by a frame.
    admitted: u64,
    /// Those with bytes that are in memory.
    pages: u64,
    /// Those of zeros that are in memory.
    zero_pages: u64,
    /// All of them are here: no further page is taken.
    sealed: bool,
}

impl Progress {
    fn landed(&self) -> u64 {
        self.pages + self.zero_pages
    }
}

impl Intake {
    pub fn new(ram: GuestRam, layout: MemoryLayout, streams: u16, alarm: Alarm) -> Self {
        Self {
            ram,
            layout,
            streams,
            progress: Mutex::default(),
            changed: Condvar::new(),
            alarm,
        }
    }

    /// Takes the bytes behind a PAGES frame straight into guest memory.
    pub fn pages(
        &self,
        round: u32,
        runs: &[Run],
        channel: &mut Channel,
    ) -> Result<(), ReceiveError> {
        let count = self.admit(round, runs, channel)?;
        let ram = RamView::new(&self.ram, &self.layout)?;
        let mut places = Vec::with_capacity(runs.len());
        for &run in runs {
            places.push(ram.place(run).ok_or_else(|| outside(run, channel))?);
        }
        channel.receive_data(&mut places)?;
        self.lock().pages += count;
        self.changed.notify_all();
        Ok(())
    }

    /// Takes what is behind a PACKED frame and unpacks it into guest memory.
    pub fn packed(
        &self,
        round: u32,
        runs: &[Run],
        (codec, bytes): (Codec, u32),
        unpacker: &mut Unpacker,
        channel: &mut Channel,
    ) -> Result<(), ReceiveError> {
        let count = self.admit(round, runs, channel)?;
        let ram = RamView::new(&self.ram, &self.layout)?;
        channel.receive_data(&mut [In::bytes(unpacker.buffer(bytes))])?;
        let unpacked = unpacker.unpack(codec, runs, &ram);
        self.landed(count, unpacked, channel)
    }

    /// Takes what is behind a DELTA frame and changes guest memory by it.
    pub fn delta(
        &self,
        round: u32,
        runs: &[Run],
        bytes: u32,
        unpacker: &mut Unpacker,
        channel: &mut Channel,
    ) -> Result<(), ReceiveError> {
        if round == 0 {
            let what = "differences of pages came in round 0, before the pages".to_owned();
            return Err(broken(channel, what));
        }
        let count = self.admit(round, runs, channel)?;
        let ram = RamView::new(&self.ram, &self.layout)?;
        channel.receive_data(&mut [In::bytes(unpacker.buffer(bytes))])?;
        let applied = unpacker.apply(runs, &ram);
        self.landed(count, applied, channel)
    }

    /// So many pages are in memory, if they could be unpacked.
    fn landed(
        &self,
        count: u64,
        unpacked: Result<(), UnpackError>,
        channel: &Channel,
    ) -> Result<(), ReceiveError> {
        unpacked.map_err(|source| ReceiveError::Packed {
            peer: channel.peer().to_owned(),
            source,
        })?;
        self.lock().pages += count;
        self.changed.notify_all();
        Ok(())
    }

    /// Makes the pages of a ZERO frame zero.
    pub fn zero(&self, round: u32, runs: &[Run], channel: &Channel) -> Result<(), ReceiveError> {
        let count = self.admit(round, runs, channel)?;
        let ram = RamView::new(&self.ram, &self.layout)?;
        for &run in runs {
            ram.place(run).ok_or_else(|| outside(run, channel))?;
            // In pieces: a run may be all of memory, and a cancel is to be noticed.
            for first in (0..run.pages).step_by(CLEARED) {
                channel.interrupted()?;
                let piece = Run {
                    first: run.first.saturating_add(u64::from(first)),
                    pages: (run.pages - first).min(CLEARED_PAGES),
                };
                ram.clear(piece).ok_or_else(|| outside(run, channel))?;
            }
        }
        self.lock().zero_pages += count;
        self.changed.notify_all();
        Ok(())
    }

    /// On a further stream: has pages of the next round wait for its beginning. On the first one nobody waits, since
    /// there the end of a round comes before the next; without it he would wait for himself.
    pub fn wait_for(&self, round: u32, channel: &Channel) -> Result<(), ReceiveError> {
        let mut progress = self.lock();
        while !progress.sealed && progress.round.checked_add(1) == Some(round) {
            progress = self.pause(progress, channel)?;
        }
        Ok(())
    }

    /// Lets pages of this round pass; checks that a round has no more pages than the guest. Says how many they are.
    fn admit(&self, round: u32, runs: &[Run], channel: &Channel) -> Result<u64, ReceiveError> {
        let more: u64 = runs.iter().map(|run| u64::from(run.pages)).sum();
        let mut progress = self.lock();
        let what = if progress.sealed {
            format!("pages of round {round} came after VERIFY or STATE")
        } else if round != progress.round {
            format!("pages of round {round} came in round {}", progress.round)
        } else if progress.admitted + more > self.layout.pages() {
            let (total, all) = (progress.admitted + more, self.layout.pages());
            format!("{total} pages in round {round}, the guest has {all}")
        } else {
            progress.admitted += more;
            return Ok(more);
        };
        Err(broken(channel, what))
    }

    /// The first stream has heard that the round has so many pages: waits until they are all in memory, and
    /// begins the next.
    pub fn round_end(
        &self,
        round: u32,
        pages: u64,
        channel: &Channel,
    ) -> Result<Arrival, ReceiveError> {
        let mut progress = self.lock();
        if round != progress.round {
            let what = format!("the end of round {round} came in round {}", progress.round);
            return Err(broken(channel, what));
        }
        if progress.sealed {
            let what = format!("the end of round {round} came after VERIFY or STATE");
            return Err(broken(channel, what));
        }
        let (mut landed, mut since) = (progress.landed(), Instant::now());
        while self.streams > 1 && progress.landed() < pages && since.elapsed() < channel.patience()
        {
            progress = self.pause(progress, channel)?;
            if progress.landed() != landed {
                (landed, since) = (progress.landed(), Instant::now());
            }
        }
        let got = progress.landed();
        if got != pages || got != progress.admitted {
            let what = format!("round {round} ends with {got} pages received, {pages} were sent");
            return Err(broken(channel, what));
        }
        let done = Arrival::RoundFinished {
            index: round,
            pages: progress.pages,
            zero_pages: progress.zero_pages,
        };
        *progress = Progress {
            round: round.saturating_add(1),
            ..Progress::default()
        };
        self.changed.notify_all();
        Ok(done)
    }

    /// What is filled, and how it is laid out.
    pub fn memory(&self) -> (&GuestRam, &MemoryLayout) {
        (&self.ram, &self.layout)
    }

    /// All pages are here. From now on memory is the guest's alone.
    pub fn seal(&self, channel: &Channel) -> Result<(), ReceiveError> {
        let mut progress = self.lock();
        if progress.admitted > 0 {
            let what = format!(
                "VERIFY or STATE came in the middle of round {}",
                progress.round
            );
            return Err(broken(channel, what));
        }
        progress.sealed = true;
        Ok(())
    }

    /// A further stream has ended. While pages are taken that is the end of the move.
    pub fn stream_ended(&self, error: ReceiveError) {
        if !self.lock().sealed {
            self.alarm.raise(error);
        }
    }

    /// Waits for other streams.
    fn pause<'a>(
        &self,
        progress: MutexGuard<'a, Progress>,
        channel: &Channel,
    ) -> Result<MutexGuard<'a, Progress>, ReceiveError> {
        let waited = self.changed.wait_timeout(progress, GLANCE);
        channel.interrupted()?;
        Ok(waited.unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Whoever panicked with this lock has changed counts at most; what they are checked against does not lie.
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn outside(run: Run, channel: &Channel) -> ReceiveError {
    let what = format!(
        "{} pages from page {} on are not in one region of the guest's memory",
        run.pages, run.first
    );
    broken(channel, what)
}

fn broken(channel: &Channel, what: String) -> ReceiveError {
    ReceiveError::Pages {
        peer: channel.peer().to_owned(),
        what,
    }
}
