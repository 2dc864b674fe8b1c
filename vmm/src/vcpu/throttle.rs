//! Slowing vCPUs down: of every period, a slice asleep.
//!
//! One thread gives out slices; the vCPU thread, kicked out of the guest, sleeps them. A pause ends a slice,
//! so throttling adds nothing to the blackout.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use migration::guest::ThrottlePercent;

use super::VcpuHandle;
use super::kick::Kick;

/// The time from one slice's start to the next. Short, so that the guest is slowed smoothly; long against
/// the few tens of microseconds that a kick costs.
const PERIOD: Duration = Duration::from_millis(10);

/// The slice that a vCPU shall sleep next, in nanoseconds; zero is none.
#[derive(Debug, Default)]
pub struct Slice(AtomicU64);

impl Slice {
    /// Takes the slice: it is slept once.
    pub fn take(&self) -> Option<Duration> {
        match self.0.swap(0, Ordering::AcqRel) {
            0 => None,
            nanos => Some(Duration::from_nanos(nanos)),
        }
    }

    fn give(&self, slice: Duration) {
        let nanos = u64::try_from(slice.as_nanos()).unwrap_or(u64::MAX);
        self.0.store(nanos, Ordering::Release);
    }
}

/// What was asked for.
#[derive(Debug, Default)]
struct Setting {
    percents: Vec<ThrottlePercent>,
    longest_slice: Duration,
    end: bool,
}

impl Setting {
    fn idle(&self) -> bool {
        self.percents.iter().all(|p| p.get() == 0)
    }

    /// The period in force and each vCPU's slice of it. A slice that would exceed the longest allowed makes
    /// the period shorter instead: the percentage is kept.
    fn plan(&self) -> (Duration, Vec<Duration>) {
        let highest = self.percents.iter().map(|p| p.get()).max().unwrap_or(0);
        let mut period = PERIOD;
        let slice = period * u32::from(highest) / 100;
        if slice > self.longest_slice && highest > 0 {
            period = self.longest_slice * 100 / u32::from(highest);
        }
        let slices = self
            .percents
            .iter()
            .map(|p| period * u32::from(p.get()) / 100)
            .collect();
        (period, slices)
    }
}

#[derive(Debug, Default)]
struct Shared {
    setting: Mutex<Setting>,
    changed: Condvar,
}

/// The throttle of a VM's vCPUs. Dropping it lets go of them.
#[derive(Debug)]
pub struct Throttle {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Throttle {
    /// Starts the thread that gives out slices; it sleeps until there is something to give.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn spawn(vcpus: &[VcpuHandle]) -> std::io::Result<Self> {
        let vcpus: Vec<_> = vcpus.iter().map(VcpuHandle::throttle).collect();
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        let thread = std::thread::Builder::new()
            .name("throttle".into())
            .spawn(move || give_out(&theirs, &vcpus))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Sets what each vCPU sleeps; an empty list lets go of all.
    pub fn set(&self, percents: &[ThrottlePercent], longest_slice: Duration) {
        self.change(|setting| {
            setting.percents = percents.to_vec();
            setting.longest_slice = longest_slice;
        });
    }

    fn change(&self, change: impl FnOnce(&mut Setting)) {
        let mut setting = self
            .shared
            .setting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        change(&mut setting);
        self.shared.changed.notify_one();
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.change(|setting| setting.end = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The thread: waits while there is nothing to give, else gives a slice to each vCPU, period by period.
fn give_out(shared: &Shared, vcpus: &[(Arc<Slice>, Kick)]) {
    let mut setting = shared
        .setting
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    loop {
        while setting.idle() && !setting.end {
            setting = shared
                .changed
                .wait(setting)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if setting.end {
            return;
        }
        let start = Instant::now();
        let (period, slices) = setting.plan();
        for ((slice, kick), &length) in vcpus.iter().zip(&slices) {
            if !length.is_zero() {
                slice.give(length);
                kick.kick();
            }
        }
        let left = period.saturating_sub(start.elapsed());
        (setting, _) = shared
            .changed
            .wait_timeout(setting, left)
            .unwrap_or_else(PoisonError::into_inner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(percents: &[u8], longest_ms: u64) -> Setting {
        Setting {
            percents: percents.iter().map(|&p| ThrottlePercent::new(p)).collect(),
            longest_slice: Duration::from_millis(longest_ms),
            end: false,
        }
    }

    #[test]
    fn a_slice_is_its_share_of_the_period() {
        let (period, slices) = setting(&[50, 0, 99], 300).plan();
        assert_eq!(period, PERIOD);
        assert_eq!(slices, [PERIOD / 2, Duration::ZERO, PERIOD * 99 / 100]);
    }

    #[test]
    fn no_slice_is_longer_than_allowed_and_the_share_is_kept() {
        let (period, slices) = setting(&[80, 40], 4).plan();
        assert_eq!(slices, [Duration::from_millis(4), Duration::from_millis(2)]);
        assert_eq!(period, Duration::from_millis(5));
    }
}
