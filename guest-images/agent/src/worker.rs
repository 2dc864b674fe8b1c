//! A thread that writes its part of the working set at its rate, and checks it in between.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::time::{Duration, Instant};

use crate::memory::WorkingSet;
use crate::parameters::{Parameters, Pattern, Rate};
use crate::witness::Witness;

/// How often a worker looks what is due.
const STEP: Duration = Duration::from_millis(5);
/// The same for one that never writes. A guest that only waits should cost its host next to nothing: in an emulated
/// host a look every few milliseconds is a large part of a processor.
const REST: Duration = Duration::from_secs(1);
/// Time behind the rate that is given up and not caught up, as after a pause of the whole guest.
const FORGIVEN: Duration = Duration::from_millis(50);
/// Pages written at once where the rate is unbounded.
const BURST: u32 = 256;

/// The answer to a request to check everything.
#[derive(Debug, Clone, Copy)]
pub struct Checked {
    /// Pages checked.
    pub pages: usize,
    /// The worker's checksum.
    pub checksum: u64,
}

/// A request to check everything at once; the answer goes back through it.
pub type CheckRequest = Sender<Checked>;

/// One writing thread.
#[derive(Debug)]
pub struct Worker {
    index: usize,
    set: WorkingSet,
    rate: Rate,
    pattern: Pattern,
    checks: Duration,
    requests: Receiver<CheckRequest>,
    random: u64,
    next_page: usize,
}

impl Worker {
    /// Worker `index` of those that the parameters ask for.
    pub fn new(index: u32, parameters: &Parameters, requests: Receiver<CheckRequest>) -> Self {
        let part =
            |whole: u32| whole / parameters.workers + u32::from(index < whole % parameters.workers);
        Self {
            index: index as usize,
            set: WorkingSet::new(part(parameters.ws_mib * 256) as usize),
            rate: match parameters.rate {
                Rate::PerSecond(pages) => Rate::PerSecond(part(pages)),
                Rate::Max => Rate::Max,
            },
            pattern: parameters.pattern,
            checks: parameters.checks,
            requests,
            random: u64::from(index) + 1,
            next_page: 0,
        }
    }

    /// Pages in its part of the working set.
    pub fn pages(&self) -> usize {
        self.set.pages()
    }

    /// Writes and checks until nobody can ask any more, which is for ever.
    pub fn run(mut self, witness: &Witness) {
        let mut last = Instant::now();
        // What is due is counted in billionths, so that slow rates lose nothing to rounding.
        let (mut writes_due, mut checks_due) = (0u64, 0u64);
        loop {
            let request = match self.rate {
                Rate::Max => match self.requests.try_recv() {
                    Ok(request) => Some(request),
                    Err(TryRecvError::Empty) => None,
                    Err(TryRecvError::Disconnected) => return,
                },
                Rate::PerSecond(rate) => {
                    let step = if rate == 0 { REST } else { STEP };
                    match self.requests.recv_timeout(step) {
                        Ok(request) => Some(request),
                        Err(RecvTimeoutError::Timeout) => None,
                        Err(RecvTimeoutError::Disconnected) => return,
                    }
                }
            };
            if let Some(request) = request {
                self.check_all(&request, witness);
            }

            let elapsed = nanos(last.elapsed().min(FORGIVEN));
            last = Instant::now();
            let writes = match self.rate {
                Rate::Max => u64::from(BURST),
                Rate::PerSecond(rate) => {
                    take_whole(&mut writes_due, elapsed * u64::from(rate), 1_000_000_000)
                }
            };
            for _ in 0..writes {
                let page = self.choose();
                self.set.write(page);
            }
            witness.wrote(self.index, writes);
            let checks = take_whole(
                &mut checks_due,
                elapsed * self.set.pages() as u64,
                nanos(self.checks),
            );
            self.check_some(usize::try_from(checks).unwrap_or(usize::MAX), witness);
        }
    }

    fn choose(&mut self) -> usize {
        let pages = self.set.pages();
        match self.pattern {
            Pattern::Sweep => {
                let page = self.next_page % pages;
                self.next_page = page + 1;
                page
            }
            Pattern::Uniform => {
                // xorshift64 (Marsaglia 2003).
                self.random ^= self.random << 13;
                self.random ^= self.random >> 7;
                self.random ^= self.random << 17;
                usize::try_from(self.random % pages as u64).unwrap_or(0)
            }
        }
    }

    fn check_some(&mut self, pages: usize, witness: &Witness) {
        let index = self.index;
        let passed = self.set.check_some(pages, |m| witness.mismatch(index, &m));
        if let Some(held) = passed {
            witness.passed(index, held);
        }
    }

    fn check_all(&mut self, request: &CheckRequest, witness: &Witness) {
        let index = self.index;
        let held = self.set.check_all(|m| witness.mismatch(index, &m));
        witness.passed(index, held);
        // Whoever asked may have gone; then nobody misses the answer.
        let _ = request.send(Checked {
            pages: self.set.pages(),
            checksum: self.set.checksum(),
        });
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Adds to what is due and takes the whole units out of it.
fn take_whole(due: &mut u64, more: u64, unit: u64) -> u64 {
    *due += more;
    let whole = *due / unit;
    *due %= unit;
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_rates_lose_nothing_to_rounding() {
        let mut due = 0;
        let taken: u64 = (0..1000)
            .map(|_| take_whole(&mut due, 5_000_000 * 3, 1_000_000_000))
            .sum();
        assert_eq!(taken, 15);
    }

    #[test]
    fn the_parts_of_all_workers_make_the_whole() {
        let parameters: Parameters = "agent.ws=1 agent.workers=3".parse().unwrap_or_default();
        let pages: usize = (0..3)
            .map(|i| Worker::new(i, &parameters, std::sync::mpsc::channel().1).pages())
            .sum();
        assert_eq!(pages, 256);
    }
}
