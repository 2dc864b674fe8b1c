//! Slowing vCPUs down: each may have so much of a processor's time and no more, and sleeps when it has had it.
//!
//! Each vCPU thread keeps its own account. What it has run, by its own processor time, it owes in sleep, so much
//! that the percentage asked for is asleep; what it was idle, or not let run by the host, counts as slept. It is
//! kicked out of the guest by a timer when it owes a slice, sleeps that, and goes on. So a vCPU that needs less
//! than it may have never sleeps, and no other thread has to be scheduled in time. What a late kick let it have
//! too much is owed, not lost.
//!
//! A slice is never longer than was asked for, and an order, a pause above all, ends it: throttling adds nothing
//! to the blackout. What it does add to is the time between the guest's last deed and the stop, up to one slice.
//! Waking all vCPUs for a moment before the stop would avoid that, but then they write at full speed in that
//! moment, and each page costs the blackout more than it took to write. So slices are short instead; the engine
//! asks for the shortest in which a vCPU still gets something done (see `migration::policy`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use migration::guest::ThrottlePercent;
use nix::time::{ClockId, clock_gettime};

use super::kick::KickTimer;
use super::{Nudge, VcpuHandle};

/// A vCPU runs at least so long between two slices: less would all be spent on entering and leaving the guest.
const LEAST_RUN: Duration = Duration::from_micros(50);
/// A vCPU that is idle is looked at so often at most, so that looking does not cost what throttling saves.
const IDLE: Duration = Duration::from_millis(1);
/// So many slices can be owed; what is beyond that is forgiven. More would be as good as one long slice.
const MOST_OWED: u32 = 2;

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
    /// Sleep that it had beforehand, up to a slice.
    spare: Duration,
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
    /// Books what the vCPU did last: it ran so long, and was idle or waited for a processor so long.
    fn awake(&mut self, run: Duration, idle: Duration, wanted: Wanted) -> Next {
        self.owed += wanted.sleep_for(run);
        self.pay(idle, wanted);
        self.owed = self.owed.min(wanted.slice * MOST_OWED);
        if self.owed >= wanted.slice {
            return Next::Sleep(wanted.slice);
        }
        let idle = run < self.granted / 2;
        self.grant(wanted, if idle { IDLE } else { LEAST_RUN })
    }

    /// Books a sleep; it may have been shorter than asked for, or longer.
    fn slept(&mut self, sleep: Duration, wanted: Wanted) -> Next {
        self.pay(sleep, wanted);
        self.grant(wanted, LEAST_RUN)
    }

    fn pay(&mut self, sleep: Duration, wanted: Wanted) {
        let paid = self.spare + sleep;
        self.spare = paid.saturating_sub(self.owed).min(wanted.slice);
        self.owed = self.owed.saturating_sub(paid);
    }

    fn grant(&mut self, wanted: Wanted, least: Duration) -> Next {
        let missing = (wanted.slice + self.spare).saturating_sub(self.owed);
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
    /// When the account was last settled, and this thread's processor time then.
    settled: (Instant, Duration),
}

impl Duty {
    /// Of a vCPU that runs at full speed.
    pub fn new(slot: Arc<Slot>) -> Self {
        Self {
            slot,
            timer: None,
            account: Account::default(),
            settled: (Instant::now(), Duration::ZERO),
        }
    }

    /// After a kick: how long to sleep now, if at all.
    pub fn due(&mut self) -> Option<Duration> {
        let wanted = self.slot.wanted();
        if wanted.is_none() {
            self.timer = None;
            return None;
        }
        let now = (Instant::now(), processor_time());
        let then = match self.timer {
            Some(_) => self.settled,
            None => {
                self.account = Account::default();
                let timer = KickTimer::of_this_thread();
                self.timer = timer
                    .inspect_err(|error| tracing::warn!("a vCPU is not slowed down: {error}"))
                    .ok();
                now
            }
        };
        self.settled = now;
        let run = now.1.saturating_sub(then.1);
        let idle = (now.0 - then.0).saturating_sub(run);
        match self.account.awake(run, idle, wanted) {
            // Without a timer nobody would ever be kicked again.
            Next::Sleep(slice) if self.timer.is_some() => Some(slice),
            next => {
                self.obey(next);
                None
            }
        }
    }

    /// What is left of a slice that it has slept so much of, now that the throttle may have changed: it is not woken up
    /// for less than a shorter slice or no throttle at all. A policy that changes its mind every millisecond would else
    /// let it run every millisecond.
    pub fn left(&self, slice: Duration, slept: Duration) -> Duration {
        let wanted = self.slot.wanted();
        match wanted.is_none() {
            true => Duration::ZERO,
            false => slice.min(wanted.slice).saturating_sub(slept),
        }
    }

    /// It has slept so long.
    pub fn slept(&mut self, sleep: Duration) {
        let nanos = u64::try_from(sleep.as_nanos()).unwrap_or(u64::MAX);
        self.slot.slept.fetch_add(nanos, Ordering::AcqRel);
        self.settled = (Instant::now(), processor_time());
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
    /// asleep now sleeps no longer than that.
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
    fn a_throttle_that_changes_wakes_nobody_up_too_early() {
        let slot = Arc::new(Slot::default());
        let duty = Duty::new(Arc::clone(&slot));
        let set = |percent, slice_us| slot.set(ThrottlePercent::new(percent), us(slice_us));
        set(97, 5000);
        assert_eq!(duty.left(us(6000), us(1000)), us(4000));
        set(50, 2000);
        assert_eq!(duty.left(us(6000), us(1000)), us(1000));
        assert_eq!(duty.left(us(6000), us(3000)), us(0));
        set(99, 9000);
        assert_eq!(duty.left(us(6000), us(1000)), us(5000));
        set(0, 9000);
        assert_eq!(duty.left(us(6000), us(1000)), us(0));
    }

    #[test]
    fn a_busy_vcpu_sleeps_its_share() {
        for (percent, slice, run) in [(50, 4000, 4000), (80, 4000, 1000), (99, 990_000, 10_000)] {
            let wanted = wanted(percent, slice);
            let mut account = Account::default();
            assert_eq!(account.awake(us(0), us(0), wanted), Next::Run(us(run)));
            for _ in 0..3 {
                assert_eq!(
                    account.awake(us(run), us(0), wanted),
                    Next::Sleep(us(slice))
                );
                assert_eq!(account.slept(us(slice), wanted), Next::Run(us(run)));
            }
        }
    }

    #[test]
    fn a_vcpu_that_needs_less_than_it_may_have_does_not_sleep() {
        let wanted = wanted(75, 3000);
        let mut account = Account::default();
        // A fifth of the time; a quarter is allowed.
        for _ in 0..1000 {
            let next = account.awake(us(200), us(800), wanted);
            assert!(matches!(next, Next::Run(_)), "{account:?}");
        }
        // What was saved up lasts for one slice more, however long it was.
        assert_eq!(
            account.awake(us(0), us(1_000_000), wanted),
            Next::Run(us(2000))
        );
        assert_eq!(account.awake(us(1900), us(0), wanted), Next::Run(us(100)));
        assert_eq!(account.awake(us(100), us(0), wanted), Next::Sleep(us(3000)));
    }

    #[test]
    fn a_vcpu_that_is_idle_is_hardly_looked_at() {
        let wanted = wanted(98, 1000);
        let mut account = Account::default();
        assert_eq!(account.awake(us(0), us(0), wanted), Next::Run(LEAST_RUN));
        for _ in 0..10 {
            assert_eq!(account.awake(us(2), us(998), wanted), Next::Run(IDLE));
        }
    }

    #[test]
    fn late_kicks_are_paid_for_and_sleeps_cut_short_are_owed() {
        let wanted = wanted(90, 1800);
        let mut account = Account::default();
        account.awake(us(0), us(0), wanted);
        // Kicked after 400 us instead of 200: two slices, with a moment between them.
        assert_eq!(account.awake(us(400), us(0), wanted), Next::Sleep(us(1800)));
        assert_eq!(account.slept(us(1800), wanted), Next::Run(LEAST_RUN));
        assert_eq!(account.awake(us(0), us(0), wanted), Next::Sleep(us(1800)));
        assert_eq!(account.slept(us(900), wanted), Next::Run(us(100)));
        // Held up for a second: two slices are enough.
        assert_eq!(
            account.awake(us(1_000_000), us(0), wanted),
            Next::Sleep(us(1800))
        );
        assert_eq!(account.owed, us(3600));
    }
}
