//! How the kernel schedules a lane's thread against the vCPU that gives it work.
#![allow(
    unsafe_code,
    reason = "sched_setscheduler(2), which no library here wraps"
)]

/// So many times a thread is woken up until it is known what waiting its turn brings.
const TRIAL: u32 = 32;
/// So many times it is then woken up without waiting, until that is tried again.
const REST: u32 = 256;
/// Waiting is worth its while from so many requests in so many wake-ups on.
const WORTH: (u64, u64) = (3, 2);
/// Who has handled so many requests at once lets others have the processor for a moment, those above all that the requests
/// were for. On a processor of its own that is no more than a system call.
const LONG: u64 = 32;

/// Whether a lane's thread waits its turn when it is woken up on a processor where something runs (SCHED_BATCH, sched(7)). On
/// another processor that is free it runs at once as ever; on the vCPU's own it waits until the vCPU halts, or has had its turn.
///
/// A guest that sends as fast as it can gains by that: else every doorbell takes the processor from it for the one frame that it
/// has just queued, and so each frame costs a doorbell, two switches and, as the device catches up each time, another
/// doorbell. One that waits for the answer to each request only waits longer. Which it is shows only in waiting, so that is
/// tried again and again.
#[derive(Debug, Default)]
pub struct Turns {
    waits: bool,
    /// Wake-ups since that was decided, and the requests handled until then.
    woken: u32,
    handled: u64,
    /// The requests handled until it was last woken up.
    before: u64,
}

impl Turns {
    /// It was woken up, and has handled so many requests in all. Says whether it shall wait its turn from now on, if that is new.
    fn woken(&mut self, handled: u64) -> Option<bool> {
        self.woken += 1;
        let requests = handled.saturating_sub(self.handled);
        let waits = match self.waits {
            true if self.woken < TRIAL => return None,
            true => requests * WORTH.1 >= u64::from(self.woken) * WORTH.0,
            false if self.woken < REST => return None,
            false => true,
        };
        let changed = waits != self.waits;
        *self = Self {
            waits,
            woken: 0,
            handled,
            ..*self
        };
        changed.then_some(waits)
    }

    /// The same, done: for the thread itself to call.
    pub fn take(&mut self, handled: u64) {
        if let Some(waits) = self.woken(handled) {
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

    /// Wakes it up so often, each time with so many requests; says how often it waited.
    fn waited(
        turns: &mut Turns,
        handled: &mut u64,
        times: u32,
        requests: impl Fn(bool) -> u64,
    ) -> u32 {
        let mut count = 0;
        for _ in 0..times {
            *handled += requests(turns.waits);
            count += u32::from(turns.waits);
            turns.woken(*handled);
        }
        count
    }

    #[test]
    fn a_stream_waits_its_turn_and_question_and_answer_hardly_ever() {
        let (mut turns, mut handled) = (Turns::default(), 0);
        let stream = |waits| if waits { 5 } else { 1 };
        waited(&mut turns, &mut handled, REST, stream);
        assert_eq!(waited(&mut turns, &mut handled, 10_000, stream), 10_000);
        waited(&mut turns, &mut handled, TRIAL, |_| 1);
        let few = waited(&mut turns, &mut handled, 10_000, |_| 1);
        assert!((10_000 / 11..10_000 / 7).contains(&few), "{few}");
        // And back: within a rest and a trial.
        waited(&mut turns, &mut handled, REST + TRIAL, stream);
        assert!(turns.waits);
        // Woken up for nothing.
        waited(&mut turns, &mut handled, TRIAL, |_| 0);
        assert!(!turns.waits);
    }
}
