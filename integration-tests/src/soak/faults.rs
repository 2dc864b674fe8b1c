//! Many faults, by several pairs of ends side by side.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use super::draw::draw;
use super::fault::Fault;
use super::lab::Lab;
use super::outcome::{Outcome, Tally};
use super::peers::Peers;
use crate::{Error, lock};

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Campaign {
    /// What all faults are drawn from.
    pub seed: u64,
    /// The number of the first.
    pub first: u32,
    /// How many are to happen. Those to whose place a move never comes are not counted.
    pub faults: u32,
    /// No new one is begun after that.
    pub until: Option<Instant>,
    /// Pairs of ends side by side; of a single one, faults of odd numbers are left out.
    pub pairs: usize,
    /// The ends.
    pub peers: Peers,
}

impl Campaign {
    /// Does the faults, each told to `each` when it is over.
    ///
    /// # Errors
    /// A lab failed, which is none of ferry's doing: processes cannot be started, or are not ours to look into.
    pub fn run(&self, each: impl Fn(&Fault, &Outcome, &Tally) + Sync) -> Result<Tally, Error> {
        // Labs of even and of odd numbers differ, so each takes faults of its own kind: a fault is done again where it
        // was done.
        let next = [0, 1].map(|odd| AtomicU32::new(self.first + (self.first + odd) % 2));
        let tally = Mutex::new(Tally::default());
        let work = |number: usize| {
            let mut lab = Lab::new(number, self.seed, self.peers.clone())?;
            while self.until.is_none_or(|until| Instant::now() < until)
                && lock(&tally).faults < self.faults
            {
                let index = next[number % 2].fetch_add(2, Ordering::Relaxed);
                let fault = draw(self.seed, index, self.peers.able());
                let outcome = lab
                    .run(&fault)
                    .map_err(|e| Error::Unexpected(format!("{fault}: {}", crate::chain(&e))))?;
                let mut tally = lock(&tally);
                tally.add(&fault, &outcome);
                each(&fault, &outcome, &tally);
            }
            Ok(())
        };
        let done: Vec<Result<(), Error>> = thread::scope(|scope| {
            let work = &work;
            let labs: Vec<_> = (0..self.pairs)
                .map(|number| scope.spawn(move || work(number)))
                .collect();
            let died = || Error::Unexpected("a lab's thread has panicked".into());
            let join =
                |lab: thread::ScopedJoinHandle<'_, _>| lab.join().unwrap_or_else(|_| Err(died()));
            labs.into_iter().map(join).collect()
        });
        done.into_iter().collect::<Result<(), Error>>()?;
        Ok(tally.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}
