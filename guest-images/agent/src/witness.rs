//! What the agent has seen so far: counters that all its threads share, and the lines about them.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};

use crate::disk::Journal;
use crate::memory::Mismatch;
use crate::parameters::Parameters;
use crate::worker::{CheckRequest, Checked, Worker};

/// The most mismatches that are printed one by one; after a real loss there may be thousands.
const MOST_PRINTED: u64 = 20;

#[derive(Debug)]
struct WorkerCounters {
    requests: Mutex<Sender<CheckRequest>>,
    writes: AtomicU64,
    passes: AtomicU64,
}

/// The counters of the whole agent.
#[derive(Debug)]
pub struct Witness {
    workers: Vec<WorkerCounters>,
    ws_pages: usize,
    ticks: AtomicU64,
    mismatches: AtomicU64,
    echoed: AtomicU64,
    /// Passes over the whole working set that were printed.
    printed: Mutex<u64>,
    /// What is written to a disk, once that was asked for.
    journal: OnceLock<Arc<Journal>>,
}

impl Witness {
    /// The counters, and the workers that will keep them.
    pub fn new(parameters: &Parameters) -> (Self, Vec<Worker>) {
        let (counters, workers): (Vec<_>, Vec<_>) = (0..parameters.workers)
            .map(|index| {
                let (requests, receiver) = channel();
                let counters = WorkerCounters {
                    requests: Mutex::new(requests),
                    writes: AtomicU64::new(0),
                    passes: AtomicU64::new(0),
                };
                (counters, Worker::new(index, parameters, receiver))
            })
            .unzip();
        let witness = Self {
            workers: counters,
            ws_pages: workers.iter().map(Worker::pages).sum(),
            ticks: AtomicU64::new(0),
            mismatches: AtomicU64::new(0),
            echoed: AtomicU64::new(0),
            printed: Mutex::new(0),
            journal: OnceLock::new(),
        };
        (witness, workers)
    }

    /// Begins to write to the disk, unless that was begun before.
    ///
    /// # Errors
    /// There is no disk.
    pub fn begin_journal(&self) -> io::Result<()> {
        if self.journal.get().is_none() {
            let journal = Journal::begin()?;
            let _ = self.journal.set(journal);
        }
        Ok(())
    }

    /// What is written to the disk.
    pub fn journal(&self) -> Option<&Journal> {
        self.journal.get().map(|journal| &**journal)
    }

    /// Counts a tick and gives its number, from 1.
    pub fn tick(&self) -> u64 {
        self.ticks.fetch_add(1, Relaxed) + 1
    }

    /// Ticks so far.
    pub fn ticks(&self) -> u64 {
        self.ticks.load(Relaxed)
    }

    /// Pages in the working set.
    pub fn ws_pages(&self) -> usize {
        self.ws_pages
    }

    /// Mismatches found since the start, those of checksums included.
    pub fn mismatches(&self) -> u64 {
        self.mismatches.load(Relaxed)
    }

    /// Bytes sent back by the echo service.
    pub fn echoed(&self) -> u64 {
        self.echoed.load(Relaxed)
    }

    /// Counts bytes sent back.
    pub fn echo(&self, bytes: usize) {
        self.echoed.fetch_add(bytes as u64, Relaxed);
    }

    /// Page writes so far.
    pub fn writes(&self) -> u64 {
        self.workers.iter().map(|w| w.writes.load(Relaxed)).sum()
    }

    /// Complete passes over the working set.
    pub fn passes(&self) -> u64 {
        let passes = self.workers.iter().map(|w| w.passes.load(Relaxed));
        passes.min().unwrap_or(0)
    }

    /// Counts page writes of a worker.
    pub fn wrote(&self, worker: usize, pages: u64) {
        self.workers[worker].writes.fetch_add(pages, Relaxed);
    }

    /// A worker found a page that is not as it left it.
    pub fn mismatch(&self, worker: usize, mismatch: &Mismatch) {
        self.complain(&format!("{mismatch} worker={worker}"));
    }

    fn complain(&self, what: &str) {
        if self.mismatches.fetch_add(1, Relaxed) < MOST_PRINTED {
            println!("CHECKSUM MISMATCH {what}");
        }
    }

    /// A worker came to the end of a pass. The last of them to do so prints the line of the whole set.
    pub fn passed(&self, worker: usize, held: bool) {
        if !held {
            self.complain(&format!("checksum of worker={worker}"));
        }
        self.workers[worker].passes.fetch_add(1, Relaxed);
        let passes = self.passes();
        let Ok(mut printed) = self.printed.lock() else {
            return;
        };
        if passes > *printed && self.mismatches() == 0 {
            *printed = passes;
            println!(
                "checksum ok {passes} pages={} writes={}",
                self.ws_pages,
                self.writes()
            );
        }
    }

    /// Has every worker check all its pages, now. Gives back pages and checksum over all.
    pub fn check_all(&self) -> Option<Checked> {
        let (sender, answers) = channel();
        for worker in &self.workers {
            worker.requests.lock().ok()?.send(sender.clone()).ok()?;
        }
        drop(sender);
        let answers: Vec<Checked> = answers.iter().collect();
        (answers.len() == self.workers.len()).then(|| Checked {
            pages: answers.iter().map(|a| a.pages).sum(),
            checksum: answers
                .iter()
                .fold(0, |sum, a| sum.wrapping_add(a.checksum)),
        })
    }
}
