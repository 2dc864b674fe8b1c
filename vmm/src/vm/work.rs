//! The work of a guest that counts it: the bare test guest `pulse`, vCPU by vCPU, in pages and loops.
//!
//! While it runs the main loop has a reading taken every [`PERIOD`], and the last ones are kept: what the guest did
//! lately is what it would have gone on doing, had it not been moved. Whatever holds it up from outside (a pause, a
//! move, a measurement of its writing) makes what was read before useless, so that the readings begin anew.
//! The counts are the guest's own memory: they are parsed, and believed to be numbers, no more.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use guest_images::ReadGuest;
use guest_images::pulse::Phase;
use guest_images::verify;
use migration::guest::GuestRam;
use migration::work::{Baseline, VcpuWork};
use vm_memory::{Bytes, GuestAddress};

use super::{Core, io_thread::lock};

/// The time between two readings.
pub const PERIOD: Duration = Duration::from_millis(250);
/// Readings kept: those of the last four seconds.
const KEPT: usize = 17;
/// A shorter time is no baseline: the guest's own steps and the host's scheduling show in it.
const SHORTEST: Duration = Duration::from_millis(500);

/// The last readings, the oldest first.
#[derive(Debug, Default)]
pub struct History(Mutex<VecDeque<(Instant, Vec<VcpuWork>)>>);

impl History {
    fn push(&self, at: Instant, counts: Vec<VcpuWork>) {
        let mut readings = lock(&self.0);
        if readings.len() == KEPT {
            readings.pop_front();
        }
        readings.push_back((at, counts));
    }

    fn forget(&self) {
        lock(&self.0).clear();
    }

    /// What was done from the oldest reading to this one, if that is long enough. Forgets all of them.
    fn take(&self, at: Instant, now: Vec<VcpuWork>) -> Option<Baseline> {
        let (begun, before) = std::mem::take(&mut *lock(&self.0)).pop_front()?;
        let over = at.saturating_duration_since(begun);
        let comparable = before.len() == now.len() && over >= SHORTEST;
        comparable.then_some(Baseline { over, before, now })
    }
}

impl Core {
    /// Whether the guest counts its work.
    pub fn counts_work(&self) -> bool {
        self.shape.heartbeat
    }

    /// What each vCPU has done.
    pub fn work(&self) -> Option<Vec<VcpuWork>> {
        if !self.counts_work() {
            return None;
        }
        let done = done(
            &|gpa, into: &mut [u8]| read(&self.ram, gpa, into),
            self.shape.vcpus,
        )?;
        let clocks = self.vcpus.iter().map(|vcpu| vcpu.cpu_clock().now());
        let counts = done.into_iter().zip(clocks);
        counts
            .map(|(done, cpu)| cpu.map(|cpu| VcpuWork { done, cpu }))
            .collect()
    }

    /// Takes a reading.
    pub fn note_work(&self) {
        if let Some(counts) = self.work() {
            self.history.push(Instant::now(), counts);
        }
    }

    /// What was read before is of no use.
    pub fn forget_work(&self) {
        self.history.forget();
    }

    /// What the guest did lately; the readings begin anew.
    pub fn take_baseline(&self) -> Option<Baseline> {
        let now = self.work()?;
        self.history.take(Instant::now(), now)
    }
}

fn read(ram: &GuestRam, gpa: u64, into: &mut [u8]) -> std::io::Result<()> {
    ram.read_slice(into, GuestAddress(gpa))
        .map_err(std::io::Error::other)
}

/// What each vCPU of a pulse at work has done; None of anything else.
fn done(memory: &impl ReadGuest, vcpus: u8) -> Option<Vec<u64>> {
    let status = verify::status(memory).ok()?;
    if status.phase != Phase::Running || status.cpus != u32::from(vcpus) {
        return None;
    }
    (0..status.cpus)
        .map(|index| {
            let vcpu = verify::vcpu(memory, index).ok()?;
            Some(vcpu.pages_written.saturating_add(vcpu.loops))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use guest_images::pulse::{STATUS_GPA, VCPU_GPA};

    use super::*;

    fn counts(done: u64) -> Vec<VcpuWork> {
        vec![VcpuWork {
            done,
            cpu: Duration::from_millis(done),
        }]
    }

    #[test]
    fn the_baseline_is_the_last_seconds_and_is_taken_once() {
        let history = History::default();
        let start = Instant::now();
        let at = |readings: u32| start + readings * PERIOD;
        assert_eq!(history.take(start, counts(0)), None, "never read");
        for reading in 0..40 {
            history.push(at(reading), counts(reading.into()));
        }
        let baseline = history.take(at(40), counts(40)).unwrap();
        assert_eq!(baseline.over, 17 * PERIOD);
        assert_eq!((baseline.before, baseline.now), (counts(23), counts(40)));
        assert_eq!(history.take(at(41), counts(41)), None, "taken");

        history.push(at(0), counts(0));
        assert_eq!(history.take(at(1), counts(1)), None, "too short");
        history.push(at(0), counts(0));
        history.forget();
        assert_eq!(history.take(at(9), counts(9)), None, "forgotten");
        history.push(at(0), counts(0));
        assert_eq!(history.take(at(9), Vec::new()), None, "of other vCPUs");
    }

    /// Memory with a status page of two vCPUs at work, which have done 300 and 70,000 so far.
    fn pulse() -> Vec<u8> {
        let mut memory = vec![0; usize::try_from(VCPU_GPA + 2 * 4096).unwrap()];
        let mut put = |gpa: u64, bytes: &[u8]| {
            let at = usize::try_from(gpa).unwrap();
            memory[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(STATUS_GPA, b"FERRYPLS");
        for (offset, value) in [(8, 1u32), (12, 2), (20, 2)] {
            put(STATUS_GPA + offset, &value.to_le_bytes());
        }
        for (gpa, value) in [(VCPU_GPA + 32, 300u64), (VCPU_GPA + 4096 + 40, 70_000)] {
            put(gpa - gpa % 4096, &2u32.to_le_bytes());
            put(gpa, &value.to_le_bytes());
        }
        memory
    }

    fn read_from(memory: &[u8], vcpus: u8) -> Option<Vec<u64>> {
        let read = |gpa: u64, into: &mut [u8]| {
            let from = usize::try_from(gpa).ok().and_then(|at| memory.get(at..));
            let from = from.and_then(|rest| rest.get(..into.len()));
            into.copy_from_slice(from.ok_or(std::io::ErrorKind::UnexpectedEof)?);
            Ok(())
        };
        done(&read, vcpus)
    }

    #[test]
    fn counts_are_read_from_a_pulse_at_work_alone() {
        assert_eq!(read_from(&pulse(), 2), Some(vec![300, 70_000]));
        assert_eq!(read_from(&pulse(), 3), None, "another number of vCPUs");
        let status = usize::try_from(STATUS_GPA).unwrap();
        for (offset, value) in [(0, b'f'), (8, 9), (12, 200), (20, 1), (20, 77)] {
            let mut memory = pulse();
            memory[status + offset] = value;
            assert_eq!(read_from(&memory, 2), None, "{offset}");
        }
        let mut memory = pulse();
        let first = usize::try_from(VCPU_GPA).unwrap();
        memory[first + 32..first + 48].fill(0xff);
        assert_eq!(read_from(&memory, 2), Some(vec![u64::MAX, 70_000]));
        memory.truncate(status + 4096);
        assert_eq!(read_from(&memory, 2), None, "no such memory");
    }
}
