//! How the kernel schedules a lane's thread against the vCPU that gives it work.
#![allow(
    unsafe_code,
    reason = "sched_setscheduler(2), which no library here wraps"
)]

use std::time::{Duration, Instant};

/// So many times a thread is woken up until it is known what waiting its turn brings.
const TRIAL: u32 = 4;
/// So many times it is then woken up without waiting, until that is tried again: first the one, then each time twice as
/// often, up to the other. What begins is tried often, since a connection's first frames are question and answer also
/// where a stream comes of them.
const REST: (u32, u32) = (4, 64);
/// Behind so much silence something else may begin: it is tried at once.
const SILENCE: Duration = Duration::from_millis(250);
/// Waiting is worth its while from so many requests in so many wake-ups on.
const WORTH: (u64, u64) = (3, 2);
/// Who has handled so many requests at once lets others have the processor for a moment, those above all that the
/// requests were for. On a processor of its own that is no more than a system call.
const LONG: u64 = 32;

/// Whether a lane's thread waits its turn when it is woken up on a processor where something runs (SCHED_BATCH,
/// sched(7)). On another processor that is free it runs at once as ever; on the vCPU's own it waits until the vCPU
/// halts, or has had its turn.
///
/// A guest that sends as fast as it can gains by that: else every doorbell takes the processor from it for the one
/// frame that it has just queued, and so each frame costs a doorbell, two switches and, as the device catches up each
/// time, another doorbell. One that waits for the answer to each request only waits longer. Which it is shows only in
/// waiting, so that is tried again and again.
#[derive(Debug, Default)]
pub struct Turns {
    waits: bool,
    /// How often it will be woken up without waiting when it next does not. The first wake-up is behind a silence,
    /// which sets it.
    rest: u32,
    /// Wake-ups since that was decided, and the requests handled until then.
    woken: u32,
    handled: u64,
    /// The requests handled until it was last woken up.
    before: u64,
    /// When that was.
    last: Option<Instant>,
}

impl Turns {
    /// It was woken up, and has handled so many requests in all. Says whether it shall wait its turn from now on, if
    /// that is new.
    fn woken(&mut self, handled: u64, now: Instant) -> Option<bool> {
        let last = self.last.replace(now);
        let waits = if last.is_none_or(|last| now.duration_since(last) >= SILENCE) {
            self.rest = REST.0;
            true
        } else {
            self.woken += 1;
            let requests = handled.saturating_sub(self.handled);
            match self.waits {
                true if self.woken < TRIAL => return None,
                true if requests * WORTH.1 >= u64::from(self.woken) * WORTH.0 => {
                    self.rest = REST.0;
                    true
                }
                true => false,
                false if self.woken < self.rest => return None,
                false => {
                    self.rest = REST.1.min(2 * self.rest);
                    true
                }
            }
        };
        (self.woken, self.handled) = (0, handled);
        (std::mem::replace(&mut self.waits, waits) != waits).then_some(waits)
    }

    /// The same, done: for the thread itself to call.
    pub fn take(&mut self, handled: u64) {
        if let Some(waits) = self.woken(handled, Instant::now()) {
            schedule(waits);
        }
        if handled.saturating_sub(self.before) >= LONG {
            std::thread::yield_now();
        }
        self.before = handled;
    }
}

/// Has the calling thread wait its turn, or not. It is a wish: without it all works.
fn schedule(waits: bool) {
    let none = libc::sched_param { sched_priority: 0 };
    let policy = match waits {
        true => libc::SCHED_BATCH,
        false => libc::SCHED_OTHER,
    };
    // SAFETY: 0 is the calling thread; the parameter is a `sched_param` that outlives the call, which only reads it.
    if unsafe { libc::sched_setscheduler(0, policy, &none) } != 0 {
        let error = std::io::Error::last_os_error();
        tracing::debug!("virtio I/O: be scheduled otherwise: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Lane {
        turns: Turns,
        handled: u64,
        now: Instant,
    }

    impl Lane {
        /// Wakes it up so often, each time with so many requests; says how often it waited.
        fn waited(&mut self, times: u32, requests: impl Fn(bool) -> u64) -> u32 {
            let mut count = 0;
            for _ in 0..times {
                self.now += Duration::from_millis(1);
                self.handled += requests(self.turns.waits);
                count += u32::from(self.turns.waits);
                self.turns.woken(self.handled, self.now);
            }
            count
        }
    }

    fn stream(waits: bool) -> u64 {
        if waits { 5 } else { 1 }
    }

    fn lane() -> Lane {
        Lane {
            turns: Turns::default(),
            handled: 0,
            now: Instant::now(),
        }
    }

    #[test]
    fn a_stream_waits_its_turn_and_question_and_answer_hardly_ever() {
        let mut lane = lane();
        lane.waited(REST.1, stream);
        assert_eq!(lane.waited(10_000, stream), 10_000);
        lane.waited(TRIAL, |_| 1);
        let few = lane.waited(10_000, |_| 1);
        assert!((10_000 / 20..10_000 / 15).contains(&few), "{few}");
        // And back: within a rest and a trial.
        lane.waited(REST.1 + TRIAL, stream);
        assert!(lane.turns.waits);
        // Woken up for nothing.
        let few = lane.waited(10_000, |_| 0);
        assert!(few < 10_000 / 15, "{few}");
    }

    #[test]
    fn what_begins_after_a_silence_is_tried_at_once_and_often() {
        let mut lane = lane();
        lane.waited(1000, |_| 1);
        assert!(!lane.turns.waits);
        lane.now += SILENCE;
        assert_eq!(lane.waited(100, stream), 99);
        lane.now += SILENCE;
        assert!((8..30).contains(&lane.waited(100, |_| 1)));
        // A stream that begins with a few questions and answers waits its turn soon.
        for first in 1..3 * TRIAL {
            lane.waited(1000, |_| 1);
            lane.now += SILENCE;
            lane.waited(first, |_| 1);
            lane.waited(4 * REST.0 + TRIAL, stream);
            assert!(lane.turns.waits, "{first}");
        }
    }
}
