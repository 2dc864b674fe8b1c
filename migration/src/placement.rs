//! Which processor a stream runs on, where both of its ends are on one host with fewer processors than the move has
//! ends of streams.
//!
//! There both ends of a stream share a processor: what one has written the other reads out of that processor's cache,
//! and each wakes the other without an interrupt to another processor (in a virtual machine an exit to its hypervisor).
//! The source spreads its streams over the processors; the destination follows the processor on which a stream's bytes
//! come in, which over loopback is the one that sent them. docs/performance.md has the figures.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The calling thread; of sched_setaffinity(2).
const SELF: Pid = Pid::from_raw(0);

/// How many processors the calling thread may run on. (The standard library would open files of cgroups for that, in a
/// process that may have given up opening any.)
pub(crate) fn processors() -> usize {
    sched_getaffinity(SELF).map_or(1, |allowed| numbers(&allowed).count())
}

fn numbers(set: &CpuSet) -> impl Iterator<Item = usize> {
    (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false))
}

/// The processors that the two ends of a move share.
#[derive(Debug, Clone)]
pub(crate) struct Processors {
    allowed: CpuSet,
    numbers: Vec<usize>,
    /// The position in `numbers` of the first stream's.
    first: usize,
}

impl Processors {
    /// What streams of a move over loopback are to be spread over; `None` where each end of each stream may have a
    /// processor for itself, so that the scheduler does better alone. To be asked by a thread that is not bound to one
    /// yet.
    pub fn shared(streams: u16) -> Option<Self> {
        let allowed = sched_getaffinity(SELF).ok()?;
        let numbers: Vec<_> = numbers(&allowed).collect();
        let here = nix::sched::sched_getcpu().ok()?;
        let scarce = numbers.len() < 2 * usize::from(streams);
        scarce.then(|| Self {
            first: numbers.iter().position(|&cpu| cpu == here).unwrap_or(0),
            allowed,
            numbers,
        })
    }

    /// Where this side's end of a stream runs.
    pub fn of_stream(&self, index: usize) -> usize {
        self.numbers[(self.first + index) % self.numbers.len()]
    }
}

/// A thread bound to one processor; let go of when this is dropped, which the same thread must do.
#[derive(Debug)]
pub(crate) struct Bound {
    to: Option<Processors>,
    cpu: Option<usize>,
}

impl Bound {
    /// Not bound yet; never, where there are no processors to be shared.
    pub fn new(to: Option<Processors>) -> Self {
        Self { to, cpu: None }
    }

    /// Moves the calling thread to a processor, if that is one that it may use. A thread that cannot be moved stays
    /// where it is: that costs time and nothing else.
    ///
    /// `cpu` is asked only where that matters: a stream asks its socket, for each frame.
    pub fn follow(&mut self, cpu: impl FnOnce() -> Option<usize>) {
        let Some(to) = &self.to else {
            return;
        };
        let Some(cpu) = cpu() else {
            return;
        };
        if self.cpu == Some(cpu) || !to.numbers.contains(&cpu) {
            return;
        }
        let mut one = CpuSet::new();
        let moved = one.set(cpu).and_then(|()| sched_setaffinity(SELF, &one));
        if moved.is_ok() {
            self.cpu = Some(cpu);
        }
    }

    /// Lets the calling thread run anywhere again.
    pub fn release(&mut self) {
        if let (Some(to), Some(_)) = (&self.to, self.cpu.take()) {
            // Allowed before, so allowed now; if not, where it runs is where it stays.
            let _ = sched_setaffinity(SELF, &to.allowed);
        }
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_goes_where_its_stream_is_and_is_free_again() {
        let before = sched_getaffinity(SELF).unwrap();
        let processors = Processors::shared(u16::MAX).unwrap();
        for index in 0..3 {
            let cpu = processors.of_stream(index);
            let mut bound = Bound::new(Some(processors.clone()));
            bound.follow(|| Some(cpu));
            assert_eq!(nix::sched::sched_getcpu(), Ok(cpu));
            bound.follow(|| Some(usize::MAX));
            bound.follow(|| None);
            assert_eq!(nix::sched::sched_getcpu(), Ok(cpu));
            drop(bound);
            assert_eq!(sched_getaffinity(SELF).unwrap(), before);
        }
    }

    #[test]
    fn processors_are_those_that_the_thread_may_run_on() {
        let all = processors();
        assert!(all >= 1);
        let spread = Processors::shared(u16::MAX).unwrap();
        let mut bound = Bound::new(Some(spread.clone()));
        bound.follow(|| Some(spread.of_stream(0)));
        assert_eq!(processors(), 1);
        drop(bound);
        assert_eq!(processors(), all);
    }

    #[test]
    fn ends_with_a_processor_each_are_left_to_the_scheduler() {
        assert!(Processors::shared(0).is_none());
        let mut bound = Bound::new(None);
        let before = sched_getaffinity(SELF).unwrap();
        bound.follow(|| Some(0));
        assert_eq!(sched_getaffinity(SELF).unwrap(), before);
    }
}
