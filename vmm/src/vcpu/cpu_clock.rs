//! How long a vCPU's thread has had a processor, read by another thread.
#![allow(unsafe_code, reason = "asking pthread for the clock of a thread")]

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// The processor-time clock of one thread.
#[derive(Debug, Clone, Copy)]
pub struct CpuClock(Option<ClockId>);

impl CpuClock {
    /// The clock of the calling thread.
    pub fn of_this_thread() -> Self {
        let mut clock = 0;
        // SAFETY: pthread_self is the id of a live thread, this one; the pointer is to a live variable of the right
        // type.
        let result = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &mut clock) };
        Self((result == 0).then(|| ClockId::from_raw(clock)))
    }

    /// What it shows; None once the thread has ended.
    pub fn now(self) -> Option<Duration> {
        clock_gettime(self.0?).ok().map(Duration::from)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_thread_is_seen_at_work_and_gone() {
        let (here, there) = mpsc::channel();
        let (more, work) = mpsc::channel::<()>();
        let worker = thread::spawn(move || {
            here.send(CpuClock::of_this_thread()).unwrap();
            let own = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
            let begun = Duration::from(own());
            while Duration::from(own()) < begun + Duration::from_millis(20) {}
            here.send(CpuClock(None)).unwrap();
            let _ = work.recv();
        });
        let clock = there.recv().unwrap();
        let before = clock.now().unwrap();
        assert!(there.recv().unwrap().now().is_none());
        let after = clock.now().unwrap();
        assert!(after > before && after >= Duration::from_millis(20));
        drop(more);
        worker.join().unwrap();
        // The kernel wakes who waits for a thread's end a little before it has done with it.
        let begun = Instant::now();
        while clock.now().is_some() {
            assert!(begun.elapsed() < Duration::from_secs(20));
            thread::yield_now();
        }
    }
}
