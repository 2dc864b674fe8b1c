//! Slowing vCPUs down: a vCPU that has run for a while sleeps for a while.
//!
//! Each vCPU thread keeps its own account, in processor time of its own: what it has run it owes in sleep, so
//! much that the percentage asked for is asleep. It is kicked out of the guest by a timer when it owes a slice,
//! sleeps that, and goes on. So a vCPU that halts, or that the host does not let run, is not put to sleep beside,
//! and no other thread has to be scheduled in time. Whatever comes too late is owed, not lost.
//!
//! A slice is never longer than was asked for, and an order, a pause above all, ends it: throttling adds nothing
//! to the blackout. What it does add to is the time between the guest's last deed and the stop, up to one slice;
//! therefore the engine asks for short ones when the end is near (see `migration::policy`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use migration::guest::ThrottlePercent;
use nix::time::{ClockId, clock_gettime};

use super::kick::KickTimer;
use super::{Nudge, VcpuHandle};

/// A vCPU runs at least so long between two slices: less would be spent on entering and leaving the guest.
const LEAST_RUN: Duration = Duration::from_micros(20);
/// A vCPU that is idle is looked at so often at most, so that looking does not cost what throttling saves.
const IDLE: Duration = Duration::from_millis(1);
/// So many slices can be owed; what is beyond that is forgiven. More would keep a vCPU slow that was held up once.
const MOST_OWED: u32 = 4;

/// What is asked of a vCPU, and what came of it.
#[derive(Debug, Default)]
pub struct Slot {
    /// Percent in the top byte, the slice in nanoseconds below it: both change together.
    wanted: AtomicU64,
    /// Nanoseconds asleep since the vCPU was made.
    slept: AtomicU64,
}

const SLICE_BITS: u32 = 56;

impl Slot {
    fn set(&self, percent: ThrottlePercent, slice: Duration) {
        let most = (1 << SLICE_BITS) - 1;
        let nanos = u64::try_from(slice.as_nanos()).unwrap_or(most).min(most);
        let wanted = u64::from(percent.get()) << SLICE_BITS | nanos;
        self.wanted.store(wanted, Ordering::Release);
    }

    fn wanted(&self) -> Wanted {
        let wanted = self.wanted.load(Ordering::Acquire);
        Wanted {
            percent: u32::try_from(wanted >> SLICE_BITS).unwrap_or(0),
            slice: Duration::from_nanos(wanted & ((1 << SLICE_BITS) - 1)),
        }
    }

    fn slept(&self) -> Duration {
        Duration::from_nanos(self.slept.load(Ordering::Acquire))
    }
}

/// What is asked of a vCPU; 0 % for nothing, and at most 99 %.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wanted {
    percent: u32,
    slice: Duration,
}

impl Wanted {
    fn is_none(self) -> bool {
        self.percent == 0 || self.slice.is_zero()
    }

    /// The sleep that belongs to a time run.
    fn sleep_for(self, run: Duration) -> Duration {
        run * self.percent / (100 - self.percent)
    }

    /// The run that belongs to a time asleep.
    fn run_for(self, sleep: Duration) -> Duration {
        sleep * (100 - self.percent) / self.percent.max(1)
    }
}

/// What a vCPU owes.
#[derive(Debug, Default)]
struct Account {
    owed: Duration,
    /// How long it might have run until now.
    granted: Duration,
}

/// What a vCPU is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Sleep(Duration),
    /// Go on for so long.
    Run(Duration),
}

impl Account {
    /// Books a run of the vCPU.
    fn ran(&mut self, run: Duration, wanted: Wanted) -> Next {
        self.owed = (self.owed + wanted.sleep_for(run)).min(wanted.slice * MOST_OWED);
        if self.owed >= wanted.slice {
            return Next::Sleep(wanted.slice);
        }
        let idle = run < self.granted / 2;
        self.grant(wanted, if idle { IDLE } else { LEAST_RUN })
    }

    /// Books a sleep; it may have been shorter than asked for, or longer.
    fn slept(&mut self, sleep: Duration, wanted: Wanted) -> Next {
        self.owed = self.owed.saturating_sub(sleep);
        self.grant(wanted, LEAST_RUN)
    }

    fn grant(&mut self, wanted: Wanted, least: Duration) -> Next {
        let missing = wanted.slice.saturating_sub(self.owed);
        self.granted = wanted.run_for(missing).max(least);
        Next::Run(self.granted)
    }
}

/// The throttle of one vCPU, in its thread.
#[derive(Debug)]
pub struct Duty {
    slot: Arc<Slot>,
    /// There while the vCPU is throttled.
    timer: Option<KickTimer>,
    account: Account,
    /// This thread's processor time when the account was last settled.
    settled: Duration,
}

impl Duty {
    /// Of a vCPU that runs at full speed.
    pub fn new(slot: Arc<Slot>) -> Self {
        Self {
            slot,
            timer: None,
            account: Account::default(),
            settled: Duration::ZERO,
        }
    }

    /// After a kick: how long to sleep now, if at all.
    pub fn due(&mut self) -> Option<Duration> {
        let wanted = self.slot.wanted();
        if wanted.is_none() {
            self.timer = None;
            return None;
        }
        let now = processor_time();
        let run = match self.timer {
            Some(_) => now.saturating_sub(self.settled),
            None => {
                self.account = Account::default();
                let timer = KickTimer::of_this_thread();
                self.timer = timer
                    .inspect_err(|error| tracing::warn!("a vCPU is not slowed down: {error}"))
                    .ok();
                Duration::ZERO
            }
        };
        self.settled = now;
        match self.account.ran(run, wanted) {
            // Without a timer nobody would ever be kicked again.
            Next::Sleep(slice) if self.timer.is_some() => Some(slice),
            next => {
                self.obey(next);
                None
            }
        }
    }

    /// It has slept so long.
    pub fn slept(&mut self, sleep: Duration) {
        let nanos = u64::try_from(sleep.as_nanos()).unwrap_or(u64::MAX);
        self.slot.slept.fetch_add(nanos, Ordering::AcqRel);
        self.settled = processor_time();
        let wanted = self.slot.wanted();
        if !wanted.is_none() {
            let next = self.account.slept(sleep, wanted);
            self.obey(next);
        }
    }

    /// The vCPU stays out of the guest: nothing is owed any more.
    pub fn rest(&mut self) {
        self.timer = None;
    }

    /// Before it enters the guest again.
    fn obey(&mut self, next: Next) {
        if let (Next::Run(time), Some(timer)) = (next, &mut self.timer) {
            timer.set(time);
        }
    }
}

/// How long this thread has had a processor. The clock exists on every Linux that has KVM.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// The throttle of a VM's vCPUs.
#[derive(Debug)]
pub struct Throttle {
    vcpus: Vec<(Arc<Slot>, Nudge)>,
}

impl Throttle {
    /// Of these vCPUs, which run at full speed.
    pub fn new(vcpus: &[VcpuHandle]) -> Self {
        Self {
            vcpus: vcpus.iter().map(VcpuHandle::throttle).collect(),
        }
    }

    /// Sets how much each vCPU sleeps, and how long at a time; those beyond the list are let go of. Who is
    /// asleep now is woken up.
    pub fn set(&self, percents: &[ThrottlePercent], slice: Duration) {
        let none = ThrottlePercent::default();
        let percents = percents.iter().chain(std::iter::repeat(&none));
        for ((slot, nudge), &percent) in self.vcpus.iter().zip(percents) {
            slot.set(percent, slice);
            nudge.nudge();
        }
    }

    /// How long each vCPU was kept asleep since it was made.
    pub fn slept(&self) -> Vec<Duration> {
        self.vcpus.iter().map(|(slot, _)| slot.slept()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    fn wanted(percent: u8, slice_us: u64) -> Wanted {
        let slot = Slot::default();
        slot.set(ThrottlePercent::new(percent), us(slice_us));
        slot.wanted()
    }

    #[test]
    fn what_is_asked_for_is_what_is_read() {
        assert!(wanted(0, 4000).is_none());
        assert!(wanted(50, 0).is_none());
        let all = wanted(99, 990_000);
        assert_eq!((all.percent, all.slice), (99, us(990_000)));
        let slot = Slot::default();
        slot.set(ThrottlePercent::new(1), Duration::MAX);
        assert_eq!(slot.wanted().percent, 1);
    }

    #[test]
    fn a_busy_vcpu_sleeps_its_share() {
        for (percent, slice, run) in [(50, 4000, 4000), (80, 4000, 1000), (99, 990_000, 10_000)] {
            let wanted = wanted(percent, slice);
            let mut account = Account::default();
            assert_eq!(account.ran(us(0), wanted), Next::Run(us(run).max(IDLE)));
            for _ in 0..3 {
                assert_eq!(account.ran(us(run), wanted), Next::Sleep(us(slice)));
                assert_eq!(account.slept(us(slice), wanted), Next::Run(us(run)));
            }
        }
    }

    #[test]
    fn a_vcpu_that_does_not_run_does_not_sleep() {
        let wanted = wanted(75, 3000);
        let mut account = Account::default();
        for _ in 0..1000 {
            // Half of what it might have run is idle enough to be left alone for a millisecond.
            assert_eq!(account.ran(us(0), wanted), Next::Run(IDLE));
        }
        assert_eq!(account.ran(us(600), wanted), Next::Run(us(400)));
        assert_eq!(account.ran(us(400), wanted), Next::Sleep(us(3000)));
    }

    #[test]
    fn late_kicks_are_paid_for_and_sleeps_cut_short_are_owed() {
        let wanted = wanted(90, 900);
        let mut account = Account::default();
        account.ran(us(0), wanted);
        // Kicked after 200 us instead of 100: two slices, with a moment between them.
        assert_eq!(account.ran(us(200), wanted), Next::Sleep(us(900)));
        assert_eq!(account.slept(us(900), wanted), Next::Run(LEAST_RUN));
        assert_eq!(account.ran(us(20), wanted), Next::Sleep(us(900)));
        assert_eq!(account.slept(us(540), wanted), Next::Run(us(40)));
        // Held up for a second: four slices are enough.
        assert_eq!(account.ran(us(1_000_000), wanted), Next::Sleep(us(900)));
        assert_eq!(account.owed, us(3600));
    }
}
