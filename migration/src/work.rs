//! What a move costs a guest in work: how much less of it was done than would have been without the move.
//!
//! A guest may count its work, vCPU by vCPU, in units of its own (pages written, loops, requests). Its rate of some
//! seconds before the move is the baseline. Against that stands what it did from the beginning of the move to the
//! pause, while time went on to its first instruction on the destination: rounds that slow it down, throttling and
//! the blackout are all in it. What a vCPU did in a second of processor time tells who took the rest: one that
//! merely shared its core with the move has lost nothing by that measure.

use std::time::Duration;

/// What one vCPU has done since the guest was started here or arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VcpuWork {
    /// Its count; the unit is the guest's own, and may be another for each vCPU.
    pub done: u64,
    /// How long its thread has had a processor.
    pub cpu: Duration,
}

/// What a guest did while nothing was done to it, up to now. One entry a vCPU.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Baseline {
    /// How long that was.
    pub over: Duration,
    /// The counts at its beginning.
    pub before: Vec<VcpuWork>,
    /// The counts now.
    pub now: Vec<VcpuWork>,
}

/// What was lost, in percent. Nothing is known of a vCPU that did nothing before the move, or of a guest none of whose
/// vCPUs did.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Lost {
    /// Of the guest: the mean over the vCPUs of which it is known, since their units differ.
    pub guest: Option<f64>,
    /// Of each vCPU in the time that went by.
    pub vcpus: Vec<Option<f64>>,
    /// Of each vCPU in the processor time that it had.
    pub per_cpu_s: Vec<Option<f64>>,
}

impl Baseline {
    /// What a move lost that found the counts `at_pause` and took so long from now to the first instruction on the
    /// destination.
    pub(crate) fn lost(&self, at_pause: &[VcpuWork], took: Duration) -> Lost {
        let mut lost = Lost::default();
        for ((before, now), then) in self.before.iter().zip(&self.now).zip(at_pause) {
            let (usual, moving) = (now.since(before), then.since(now));
            let shortfall = |usual_time: Duration, time: Duration| {
                let usual = per(usual.done, usual_time).filter(|usual| *usual > 0.0)?;
                // Less than nothing is lost by chance alone.
                Some((100.0 * (1.0 - per(moving.done, time)? / usual)).max(0.0))
            };
            lost.vcpus.push(shortfall(self.over, took));
            lost.per_cpu_s.push(shortfall(usual.cpu, moving.cpu));
        }
        let known: Vec<f64> = lost.vcpus.iter().flatten().copied().collect();
        let count = u32::try_from(known.len()).unwrap_or(u32::MAX);
        lost.guest = (count > 0).then(|| known.iter().sum::<f64>() / f64::from(count));
        lost
    }
}

impl VcpuWork {
    /// What was done since then. A guest's counts are its own to write: one that goes back has done nothing.
    fn since(&self, then: &VcpuWork) -> VcpuWork {
        VcpuWork {
            done: self.done.saturating_sub(then.done),
            cpu: self.cpu.saturating_sub(then.cpu),
        }
    }
}

/// So much in a second; None where no time went by.
fn per(done: u64, time: Duration) -> Option<f64> {
    (!time.is_zero()).then(|| done as f64 / time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn work(done: u64, cpu_ms: u64) -> VcpuWork {
        VcpuWork {
            done,
            cpu: Duration::from_millis(cpu_ms),
        }
    }

    /// 1000 a second on a processor of its own; 4000 in a second of processor time, of which it had half; nothing.
    fn baseline() -> Baseline {
        Baseline {
            over: 2 * SECOND,
            before: vec![work(500, 100), work(0, 0), work(7, 50)],
            now: vec![work(2500, 2100), work(4000, 1000), work(7, 50)],
        }
    }

    fn rounded(lost: &[Option<f64>]) -> Vec<Option<f64>> {
        let round = |lost: &f64| (lost * 100.0).round() / 100.0;
        lost.iter().map(|lost| lost.as_ref().map(round)).collect()
    }

    #[test]
    fn what_is_lost_is_told_by_vcpu_and_by_processor_time() {
        // In four seconds the first did a quarter of the usual in a quarter of the processor time; the second half of
        // it in all of the usual processor time.
        let at_pause = [work(3500, 3100), work(8000, 3000), work(7, 50)];
        let lost = baseline().lost(&at_pause, 4 * SECOND);
        assert_eq!(rounded(&lost.vcpus), [Some(75.0), Some(50.0), None]);
        assert_eq!(rounded(&lost.per_cpu_s), [Some(0.0), Some(50.0), None]);
        assert_eq!(rounded(&[lost.guest]), [Some(62.5)]);
    }

    #[test]
    fn luck_is_no_gain_and_counts_that_go_back_are_nothing_done() {
        let lost = baseline().lost(&[work(9000, 3100), work(3999, 1000)], SECOND);
        assert_eq!(rounded(&lost.vcpus), [Some(0.0), Some(100.0)]);
        assert_eq!(rounded(&lost.per_cpu_s), [Some(0.0), None]);
        let hostile = [work(u64::MAX, u64::MAX), work(0, 0), work(u64::MAX, 0)];
        let lost = baseline().lost(&hostile, SECOND);
        assert_eq!(rounded(&lost.vcpus), [Some(0.0), Some(100.0), None]);
    }

    #[test]
    fn nothing_is_known_of_a_guest_that_did_nothing() {
        let idle = Baseline {
            over: SECOND,
            before: vec![work(1, 1)],
            now: vec![work(1, 2)],
        };
        let lost = idle.lost(&[work(5, 3)], SECOND);
        assert_eq!((lost.guest, lost.vcpus), (None, vec![None]));
        assert_eq!(idle.lost(&[], SECOND), Lost::default());
        let no_time = baseline().lost(&[work(9000, 3100)], Duration::ZERO);
        assert_eq!(no_time.guest, None);
    }
}
