//! Watches a guest's heartbeats in its memory, on both sides of a move, from outside.
//!
//! Pulse leaves the number of each heartbeat and its TSC in its status page. A thread looks there a few
//! thousand times a second, in the source's and in the destination's memory, whatever program these are. A
//! guest's TSC is the host's plus an offset, which is another one after a move (QEMU lets it stand still, Ferry
//! adds the standstill); and a heartbeat is never seen before it happened. So the smallest distance ever
//! seen between the host's TSC at a look and the heartbeat's TSC is that offset, to a few microseconds, and
//! both sides' heartbeats can be put on the host's clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use guest_images::ReadGuest;
use guest_images::procmem::{Mapping, ProcMem};
use guest_images::pulse::{STATUS_GPA, Status};

use super::guest_ram::locate;
use super::work::{self, Tally};
use super::{cpu, tsc};
use crate::Error;

/// Between two looks. A quarter of a heartbeat's period, so that none is missed.
const PERIOD: Duration = Duration::from_micros(250);
/// Looks between two searches for the guest in the destination: it is there early in a move, and a short move
/// is over after a hundred looks.
const SEARCH: u32 = 4;
/// Looks between two looks at the source's resident memory.
const RARELY: u32 = 20;

/// A heartbeat, as first seen.
#[derive(Debug, Clone, Copy)]
struct Beat {
    number: u32,
    /// The guest's TSC when it happened.
    tsc: u64,
    /// The host's when it was seen.
    seen: u64,
}

/// Watches, until asked for what it saw.
#[derive(Debug)]
pub struct Witness {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Watch>,
}

/// What a witness saw.
#[derive(Debug, Clone)]
pub struct Testimony {
    /// From the last heartbeat on the source to the first on the destination.
    pub gap: Duration,
    /// Heartbeats between the two that were not seen; a period each was taken off the gap.
    pub missed: u32,
    /// The most memory that the source had resident.
    pub source_rss: u64,
    /// What the guest had done on the source, moment by moment.
    pub work: Tally,
}

#[derive(Debug)]
struct Watch {
    source: u32,
    destination: u32,
    /// Bytes from GPA 0 on that lie in one piece.
    low_bytes: u64,
    source_memory: ProcMem,
    destination_memory: Option<ProcMem>,
    source_beats: Vec<Beat>,
    destination_beats: Vec<Beat>,
    source_rss: u64,
    work: Tally,
    beat_ms: u32,
    tsc_khz: u32,
}

impl Witness {
    /// Begins to watch. The guest lies in `source_memory` now; in process `destination` it will be found.
    ///
    /// # Errors
    /// No heartbeats are to be seen.
    pub fn begin(
        source_memory: ProcMem,
        source: u32,
        destination: u32,
        low_bytes: u64,
    ) -> Result<Self, Error> {
        let status = status(&source_memory)
            .ok_or_else(|| Error::Unexpected("there is no pulse to watch".to_owned()))?;
        let mut watch = Watch {
            source,
            destination,
            low_bytes,
            source_memory,
            destination_memory: None,
            source_beats: Vec::new(),
            destination_beats: Vec::new(),
            source_rss: 0,
            work: Tally::default(),
            beat_ms: status.beat_ms,
            tsc_khz: status.tsc_khz,
        };
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut looks = 0;
            while !stopped.load(Ordering::Relaxed) {
                watch.look(looks);
                looks += 1;
                thread::sleep(PERIOD);
            }
            watch
        });
        Ok(Self { stop, thread })
    }

    /// Ends it.
    ///
    /// # Errors
    /// Not enough was seen to tell the gap.
    pub fn end(self) -> Result<Testimony, Error> {
        self.stop.store(true, Ordering::Relaxed);
        let watch = self
            .thread
            .join()
            .map_err(|_| Error::Unexpected("the witness panicked".to_owned()))?;
        watch.testify().ok_or_else(|| {
            Error::Unexpected(format!(
                "too few heartbeats were seen: {} on the source, {} on the destination",
                watch.source_beats.len(),
                watch.destination_beats.len()
            ))
        })
    }
}

impl Watch {
    fn look(&mut self, looks: u32) {
        note(&self.source_memory, &mut self.source_beats);
        if let Some(done) = work::done(&self.source_memory) {
            self.work.note(Instant::now(), done);
        }
        match &self.destination_memory {
            Some(memory) => note(memory, &mut self.destination_beats),
            None if looks.is_multiple_of(SEARCH) => self.destination_memory = self.find(),
            None => (),
        }
        if looks.is_multiple_of(RARELY)
            && let Some(bytes) = cpu::peak_rss(self.source)
        {
            self.source_rss = self.source_rss.max(bytes);
        }
    }

    fn find(&self) -> Option<ProcMem> {
        let mapping: Mapping = locate(self.destination, self.low_bytes).ok()??;
        ProcMem::open(self.destination, vec![mapping]).ok()
    }

    fn testify(&self) -> Option<Testimony> {
        let last = self.source_beats.last()?;
        // Before the guest lives there, the destination shows copies of what was seen on the source.
        let newer = |beat: &&Beat| beat.number.wrapping_sub(last.number).cast_signed() > 0;
        let lived: Vec<Beat> = self
            .destination_beats
            .iter()
            .filter(newer)
            .copied()
            .collect();
        let first = lived.first()?;
        let (before, after) = (offset(&self.source_beats)?, offset(&lived)?);
        let on_host = |tsc: u64, offset: u64| tsc.wrapping_add(offset);
        let cycles = on_host(first.tsc, after).wrapping_sub(on_host(last.tsc, before));
        let missed = first.number.wrapping_sub(last.number) - 1;
        let ms =
            cycles as f64 / f64::from(self.tsc_khz) - f64::from(missed) * f64::from(self.beat_ms);
        Some(Testimony {
            gap: Duration::from_secs_f64(ms.max(0.0) / 1e3),
            missed,
            source_rss: self.source_rss,
            work: self.work.clone(),
        })
    }
}

/// The host's TSC less the guest's.
fn offset(beats: &[Beat]) -> Option<u64> {
    // Offsets may be negative, but lie close to each other: compared by their distance from the first.
    let distance = |beat: &Beat| beat.seen.wrapping_sub(beat.tsc);
    let first = distance(beats.first()?);
    let least = |beat: &Beat| distance(beat).wrapping_sub(first).cast_signed();
    let least = beats.iter().map(least).min()?;
    Some(first.wrapping_add_signed(least))
}

fn status(memory: &ProcMem) -> Option<Status> {
    let mut page = [0; 4096];
    // All that pulse keeps there fits the first line; the rest of the page stays zero.
    memory.read(STATUS_GPA, &mut page[..64]).ok()?;
    Status::parse(&page).ok()
}

/// Notes a heartbeat that was not seen before.
fn note(memory: &ProcMem, beats: &mut Vec<Beat>) {
    let known = beats.last().map(|beat| beat.number);
    let Some(first) = status(memory).filter(|status| known != Some(status.beat)) else {
        return;
    };
    // Number and TSC are stored one after the other: whoever reads both in between reads again.
    let Some(again) = status(memory).filter(|again| again.beat == first.beat) else {
        return;
    };
    beats.push(Beat {
        number: again.beat,
        tsc: again.beat_tsc,
        seen: tsc::now(),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beats(first: u32, offset: u64, at: &[(u64, u64)]) -> Vec<Beat> {
        let beat = |(number, &(host, late)): (u32, &(u64, u64))| Beat {
            number,
            tsc: host.wrapping_sub(offset),
            seen: host + late,
        };
        (first..).zip(at).map(beat).collect()
    }

    #[test]
    fn a_standing_tsc_hides_no_gap() {
        // 1 MHz: a cycle is a microsecond. The guest's TSC lost 5,000 cycles on its way.
        let source = [(1_000_000, 90), (1_001_000, 5), (1_002_000, 200)];
        let destination = [(1_009_000, 150), (1_010_000, 5), (1_011_000, 60)];
        let mut copied = beats(1, 400, &source);
        copied.extend(beats(4, 5_400, &destination));
        let memory = || ProcMem::open(std::process::id(), Vec::new());
        let watch = |destination_beats| {
            Some(Watch {
                source: 0,
                destination: 0,
                low_bytes: 0,
                source_memory: memory().ok()?,
                destination_memory: None,
                source_beats: beats(1, 400, &source),
                destination_beats,
                source_rss: 0,
                work: Tally::default(),
                beat_ms: 1,
                tsc_khz: 1000,
            })
        };
        let seen = watch(copied.clone()).and_then(|watch| watch.testify());
        let ms = |seen: Option<Testimony>| seen.map(|s| (s.gap.as_micros(), s.missed));
        assert_eq!(ms(seen), Some((7000, 0)));
        copied.remove(3);
        let seen = watch(copied).and_then(|watch| watch.testify());
        assert_eq!(ms(seen), Some((7000, 1)));
    }
}
