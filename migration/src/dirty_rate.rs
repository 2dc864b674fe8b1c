//! How fast a running guest writes, found out without moving it: unique pages against the time watched.
//!
//! That is a curve, not a number: a guest that rewrites 64 MiB all the time has written 64 MiB after a second and
//! after a minute, and what a round of a move leaves behind depends on how long the round takes.
//!
//! Every page is armed once and looked at until the end, so the guest pays one fault for each page that it writes,
//! however often it does, and some for the few that are armed again to see whether it writes in bursts ([`Rhythm`]); by
//! dirty rings one more each time that a ring is half full and handed back, which arms what it names. Pages written
//! while they are being armed, about 2 ms a GiB, count in the first window, which is so long that it hardly matters.
//! Where that is too dear, a sample is armed, one page of each so many neighbours, and what is seen of it stands for
//! all: the guest pays for the sample alone, and sets of few pages are known less well. Rings also tell who writes: a
//! page is that vCPU's which wrote it first. A sample can also be read and compared ([`Contents`]), for which the guest
//! pays nothing.

mod contents;
mod rhythm;

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::cancel::{CancelToken, Cancelled};
use crate::clock::millis;
use crate::dirty::{DirtyLog, Tracking};
use crate::guest::GuestError;
use crate::pages::{MemoryLayout, PAGE_SIZE, PageSet};
pub use contents::Contents;
use rhythm::Stepping;
pub use rhythm::{Bursts, Rhythm};

/// The shortest window: as long as one of the last rounds of a move. What a guest writes again and again, whatever it
/// does, shows in no longer one.
pub const SHORTEST: Duration = Duration::from_nanos(7_812_500);
/// The longest window that may be asked for.
pub const LONGEST: Duration = Duration::from_secs(64);
/// The longest window unless another is asked for.
pub const DEFAULT: Duration = Duration::from_secs(8);
/// A sample is not thinner than one page of so many.
pub const THINNEST: u32 = 1024;
/// Unless another sample is asked for, one page of so many is compared: of 8 GiB 128 MiB, in some 10 ms.
pub const COMPARED: u32 = 64;
/// Pages (64 MiB) armed in one go: vCPUs cannot fault pages in meanwhile.
const ARMED: u64 = 16_384;
/// A window is so many times as long as arming took, or it is left out: what is written meanwhile is in it, too.
const TELLING: u32 = 8;

/// A time for which the guest was watched, and what it wrote in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// How long it was, in milliseconds, as measured.
    pub window_ms: f64,
    /// Pages written at least once.
    pub pages: u64,
    /// The same in bytes a second, each page counted once.
    pub bytes_per_s: u64,
    /// Of these pages, those that each vCPU was the first to write, where the log knows. What the VMM writes itself is
    /// nobody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pages_by_vcpu: Option<Vec<u64>>,
}

impl Window {
    /// That of so many pages in so much time.
    fn of(watched: Duration, pages: u64, pages_by_vcpu: Option<Vec<u64>>) -> Self {
        let bytes = u128::from(pages) * u128::from(PAGE_SIZE);
        let per_second = bytes * 1_000_000_000 / watched.as_nanos().max(1);
        Self {
            window_ms: millis(watched),
            pages,
            bytes_per_s: u64::try_from(per_second).unwrap_or(u64::MAX),
            pages_by_vcpu,
        }
    }
}

/// Why there is no curve.
#[derive(Debug, Error)]
pub enum RateError {
    /// The dirty log could not be used.
    #[error(transparent)]
    Log(#[from] GuestError),
    /// A ring has no samples.
    #[error(
        "a dirty ring names every page that is written: leave the sample out, or start the guest with --dirty-tracking bitmap"
    )]
    Sample,
    /// Somebody did not want to wait for it.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// What a watch came to, beside its windows.
#[derive(Debug, Clone, PartialEq)]
pub struct Watched {
    /// The pages that were written; of a sample, those of the sample.
    pub written: PageSet,
    /// The bursts in which the guest writes; nothing if it writes all the time. Not known where only a sample was
    /// watched, nor from rings.
    pub bursts: Option<Bursts>,
}

/// The windows up to `longest`: each twice as long as the one before, the last as long as asked for.
pub fn windows(longest: Duration) -> Vec<Duration> {
    let doubled = std::iter::successors(Some(SHORTEST), |window| Some(*window * 2));
    let mut windows: Vec<_> = doubled.take_while(|window| *window < longest).collect();
    windows.push(longest);
    windows
}

/// Watches a guest for the longest of `windows`, which ascend, and tells each as it ends. Ends early, without an error,
/// when `tell` says that nobody listens any more. The log is off before and after. With a `sample` of one page in so
/// many, if that is more than 1, windows tell what that makes of all.
///
/// # Errors
/// The log cannot be used, or the measurement was cancelled; the guest runs on.
pub fn measure(
    log: &dyn DirtyLog,
    layout: &MemoryLayout,
    windows: &[Duration],
    sample: u32,
    cancel: &CancelToken,
    tell: &mut dyn FnMut(Window) -> bool,
) -> Result<Watched, RateError> {
    if sample > 1 && log.tracking() == Tracking::Ring {
        return Err(RateError::Sample);
    }
    log.start()?;
    let watched = watch(log, layout, windows, sample, cancel, tell);
    let stopped = log.stop();
    let watched = watched?;
    stopped?;
    Ok(watched)
}

fn watch(
    log: &dyn DirtyLog,
    layout: &MemoryLayout,
    windows: &[Duration],
    sample: u32,
    cancel: &CancelToken,
    tell: &mut dyn FnMut(Window) -> bool,
) -> Result<Watched, RateError> {
    let mut written = PageSet::empty(layout.pages());
    log.take(&mut written)?;
    let armed = sampled(layout.pages(), sample);
    let arming = Instant::now();
    for piece in written.pieces(layout, ARMED) {
        // By contents this may take minutes.
        cancel.sleep(Duration::ZERO)?;
        log.rearm(&armed, piece)?;
    }
    // Pages that are not armed are named by every look.
    let mut others = PageSet::full(layout.pages());
    others.subtract(&armed);
    written.clear();
    // What a log that knows who writes has not given away, it counts once.
    let before = log.written_by_vcpu();
    let began = Instant::now();
    let least = began.duration_since(arming) * TELLING;
    let longest = windows.last();
    let telling = |window: &&Duration| **window >= least || Some(*window) == longest;
    // What a ring names is armed as it is taken, and of a sample there is no sample.
    let steps = before.is_none() && sample <= 1;
    let mut stepping = steps.then(|| Stepping::new(layout.pages()));
    let mut named = PageSet::empty(layout.pages());
    for window in windows.iter().filter(telling) {
        while let Some(stepping) = stepping.as_mut().filter(|steps| steps.due() <= *window) {
            cancel.sleep(stepping.due().saturating_sub(began.elapsed()))?;
            named.clear();
            log.take(&mut named)?;
            written.union(&named);
            let again = stepping.over(began.elapsed(), &named, &written);
            for piece in again.pieces(layout, ARMED) {
                log.rearm(again, piece)?;
            }
        }
        cancel.sleep(window.saturating_sub(began.elapsed()))?;
        let watched = began.elapsed();
        let kept = before.is_some() && log.peek(&mut written)?;
        if !kept {
            log.take(&mut written)?;
        }
        written.subtract(&others);
        let pages = written.len() * u64::from(sample.max(1));
        let by_vcpu = before.as_deref().filter(|_| kept);
        let by_vcpu = by_vcpu.and_then(|before| since(before, log));
        if !tell(Window::of(watched, pages, by_vcpu)) {
            break;
        }
    }
    Ok(Watched {
        written,
        bursts: stepping.and_then(|stepping| stepping.bursts()),
    })
}

/// One page of each `sample` neighbours, not the same of each: guests write in strides.
fn sampled(pages: u64, sample: u32) -> PageSet {
    let step = u64::from(sample);
    if step <= 1 {
        return PageSet::full(pages);
    }
    let mut set = PageSet::empty(pages);
    for group in 0..pages.div_ceil(step) {
        // Fibonacci hashing: the upper bits of the product are mixed well.
        let which = (group.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % step;
        set.insert(group * step + which);
    }
    set
}

/// What each vCPU has logged since it had logged `before`.
fn since(before: &[u64], log: &dyn DirtyLog) -> Option<Vec<u64>> {
    let now = log.written_by_vcpu()?;
    let both = now.iter().zip(before);
    Some(
        both.map(|(now, before)| now.saturating_sub(*before))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::Mutex;

    use super::*;
    use crate::pages::{REGION_ALIGN, Region};

    #[test]
    fn windows_double_up_to_what_is_asked_for() {
        let ms =
            |ms: &[u64]| -> Vec<_> { ms.iter().map(|&ms| Duration::from_millis(ms)).collect() };
        assert_eq!(
            windows(DEFAULT),
            [SHORTEST, SHORTEST * 2, SHORTEST * 4, SHORTEST * 8]
                .into_iter()
                .chain(ms(&[125, 250, 500, 1000, 2000, 4000, 8000]))
                .collect::<Vec<_>>()
        );
        assert_eq!(
            windows(Duration::from_millis(600))[4..],
            ms(&[125, 250, 500, 600])
        );
        assert_eq!(windows(Duration::from_millis(5)), ms(&[5]));
    }

    /// A guest that writes another page before each look; pages that were not armed are never seen.
    #[derive(Default)]
    struct Log(Mutex<State>);

    /// The same on rings: two vCPUs take turns.
    #[derive(Default)]
    struct Knows(Log);

    impl DirtyLog for Knows {
        fn start(&self) -> Result<(), GuestError> {
            self.0.start()
        }

        fn take(&self, into: &mut PageSet) -> Result<(), GuestError> {
            self.0.take(into)
        }

        fn peek(&self, into: &mut PageSet) -> Result<bool, GuestError> {
            self.0.take(into).map(|()| true)
        }

        fn rearm(&self, set: &PageSet, range: Range<u64>) -> Result<(), GuestError> {
            self.0.rearm(set, range)
        }

        fn stop(&self) -> Result<(), GuestError> {
            self.0.stop()
        }

        fn tracking(&self) -> Tracking {
            Tracking::Ring
        }

        fn written_by_vcpu(&self) -> Option<Vec<u64>> {
            // Pages from before the watch do not count.
            let looks = self.0.0.lock().unwrap().taken - 1;
            Some(vec![100 + looks.div_ceil(2).min(1), 7 + (looks / 2).min(1)])
        }
    }

    #[derive(Default)]
    struct State {
        on: bool,
        armed: u64,
        taken: u64,
        fails: bool,
    }

    impl DirtyLog for Log {
        fn start(&self) -> Result<(), GuestError> {
            self.0.lock().unwrap().on = true;
            Ok(())
        }

        fn take(&self, into: &mut PageSet) -> Result<(), GuestError> {
            let mut state = self.0.lock().unwrap();
            assert!(state.on);
            if state.taken == 0 {
                into.union(&PageSet::full(1024));
            } else if state.fails {
                return Err(GuestError::bare("no log"));
            } else if state.armed == 1024 {
                into.insert(state.taken % 2);
            }
            state.taken += 1;
            Ok(())
        }

        fn peek(&self, _: &mut PageSet) -> Result<bool, GuestError> {
            Ok(false)
        }

        fn rearm(&self, set: &PageSet, range: Range<u64>) -> Result<(), GuestError> {
            assert!([1024, 64, 2, 1].contains(&set.len()));
            self.0.lock().unwrap().armed += range.end - range.start;
            Ok(())
        }

        fn stop(&self) -> Result<(), GuestError> {
            self.0.lock().unwrap().on = false;
            Ok(())
        }
    }

    fn layout() -> MemoryLayout {
        let (gpa, bytes) = (0, 2 * REGION_ALIGN);
        MemoryLayout::new(vec![Region { gpa, bytes }]).unwrap()
    }

    #[test]
    fn a_page_counts_once_and_the_log_is_off_again() {
        let (log, cancel) = (Log::default(), CancelToken::new().unwrap());
        let mut pages = Vec::new();
        let times = [Duration::from_millis(1); 4];
        measure(&log, &layout(), &times, 1, &cancel, &mut |window| {
            assert!(window.window_ms >= 1.0);
            pages.push(window.pages);
            true
        })
        .unwrap();
        assert_eq!(pages, [1, 2, 2, 2]);
        assert!(!log.0.lock().unwrap().on);
    }

    #[test]
    fn who_writes_is_told_where_it_is_known() {
        let cancel = CancelToken::new().unwrap();
        let times = [Duration::from_millis(1); 3];
        let by_vcpu = |log: &dyn DirtyLog| {
            let mut all = Vec::new();
            let mut tell = |window: Window| {
                all.push(window.pages_by_vcpu);
                true
            };
            measure(log, &layout(), &times, 1, &cancel, &mut tell).unwrap();
            all
        };
        assert_eq!(by_vcpu(&Log::default()), [None, None, None]);
        assert_eq!(
            by_vcpu(&Knows::default()),
            [vec![1, 0], vec![1, 1], vec![1, 1]].map(Some)
        );
    }

    #[test]
    fn a_sample_has_one_page_of_each_group_and_not_always_the_same() {
        assert_eq!(sampled(1000, 0).len(), 1000);
        assert_eq!(sampled(1000, 1).len(), 1000);
        let set = sampled(1 << 16, 16);
        let group = |group: u64| set.runs(group * 16..group * 16 + 16, u64::MAX);
        let places: Vec<u64> = (0..1 << 12)
            .map(|index| {
                let runs: Vec<_> = group(index).collect();
                assert!(runs.len() == 1 && runs[0].end - runs[0].start == 1);
                runs[0].start % 16
            })
            .collect();
        let often = |place| places.iter().filter(|one| **one == place).count();
        assert!((0..16).all(|place| (200..320).contains(&often(place))));
        assert!(sampled(1000, 1024).len() <= 1);
    }

    #[test]
    fn what_a_sample_shows_stands_for_all_and_a_ring_has_none() {
        let (log, cancel) = (Log::default(), CancelToken::new().unwrap());
        let mut last = 0;
        let mut tell = |window: Window| {
            last = window.pages;
            true
        };
        let times = [Duration::from_millis(1); 3];
        let knows = Knows::default();
        let refused = measure(&knows, &layout(), &times, 2, &cancel, &mut tell);
        assert!(matches!(refused, Err(RateError::Sample)));
        // Of pages 0 and 1, which are written, at most one is in it.
        let seen = measure(&log, &layout(), &times, 16, &cancel, &mut tell).unwrap();
        let both = sampled(1024, 16).runs(0..2, 9).count() as u64;
        assert_eq!((seen.written.len(), last), (both, 16 * both));
    }

    #[test]
    fn a_cancel_a_failure_and_a_listener_that_leaves_end_it_with_the_log_off() {
        let times = [Duration::from_millis(1), Duration::from_secs(3600)];
        let (log, cancel) = (Log::default(), CancelToken::new().unwrap());
        let ended = measure(&log, &layout(), &times, 1, &cancel, &mut |_| {
            cancel.cancel().is_ok()
        });
        assert!(matches!(ended, Err(RateError::Cancelled(_))));
        assert!(!log.0.lock().unwrap().on);

        let (log, cancel) = (Log::default(), CancelToken::new().unwrap());
        measure(&log, &layout(), &times, 1, &cancel, &mut |_| false).unwrap();
        assert!(!log.0.lock().unwrap().on);

        log.0.lock().unwrap().fails = true;
        let ended = measure(&log, &layout(), &times, 1, &cancel, &mut |_| true);
        assert!(matches!(ended, Err(RateError::Log(_))));
        assert!(!log.0.lock().unwrap().on);
    }
}
