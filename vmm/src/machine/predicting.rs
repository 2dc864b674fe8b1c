//! A guest about which somebody asks what its move would cost: the thread that watches it, measures the link, and
//! predicts. Nothing of the guest changes; it runs on, a little slower while it is watched.

use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use migration::cancel::{CancelToken, Cancelled};
use migration::dirty_rate::{self, RateError, Rhythm, Window};
use migration::guest::{GuestRam, RunningGuest};
use migration::pages::{MemoryLayout, PageSet};
use migration::predict::{Curve, Estimate, Memory, Question, Survey, predict, survey};
use migration::probe::{self, Measured, ProbeError};
use migration::wire::Connect;
use thiserror::Error;

use super::supervisor::{FromThread, Notifier, chain};
use crate::control::{PredictEvent, PredictRequest};
use crate::sandbox::{self, Kind};
use crate::vcpu::CpuClock;
use crate::vm::RunningVm;

/// Why there is no prediction.
#[derive(Debug, Error)]
enum PredictError {
    #[error("the prediction was cancelled")]
    Cancelled,
    /// Whoever asked is gone: no reason is needed.
    #[error("nobody listens any more")]
    Unheard,
    #[error(transparent)]
    Rate(RateError),
    #[error(transparent)]
    Link(ProbeError),
    #[error(transparent)]
    Curve(#[from] migration::predict::CurveError),
    #[error(transparent)]
    Guest(#[from] migration::guest::GuestError),
}

impl From<RateError> for PredictError {
    fn from(error: RateError) -> Self {
        match error {
            RateError::Cancelled(Cancelled) => Self::Cancelled,
            error => Self::Rate(error),
        }
    }
}

impl From<ProbeError> for PredictError {
    fn from(error: ProbeError) -> Self {
        match error {
            ProbeError::Cancelled(Cancelled) => Self::Cancelled,
            error => Self::Link(error),
        }
    }
}

/// Starts the thread. Until it tells the main loop that it is done the dirty log is its own.
///
/// # Errors
/// The thread cannot be had.
pub fn spawn(
    vm: &RunningVm,
    request: &PredictRequest,
    target: Box<dyn Connect + Send>,
    cancel: CancelToken,
    notify: Notifier,
) -> std::io::Result<Receiver<PredictEvent>> {
    let (asker, events) = mpsc::channel();
    let log = vm.dirty_log();
    let (ram, layout) = (vm.ram().clone(), vm.describe().layout);
    let clocks = vm.cpu_clocks();
    let request = request.clone();
    let predict = move || {
        sandbox::enter(Kind::Source);
        let mut tell = |event| asker.send(event).is_ok();
        let study = Study {
            log: &*log,
            ram: &ram,
            layout: &layout,
            clocks: &clocks,
            request: &request,
            target: &*target,
            cancel: &cancel,
        };
        let last = match study.question(&mut tell) {
            Ok(question) => PredictEvent::Prediction {
                prediction: Box::new(predict(&question)),
            },
            Err(error) => PredictEvent::Failed {
                reason: chain(&error),
            },
        };
        // The main loop first: who hears the end may move the guest at once.
        notify.send(FromThread::Measured);
        let _ = asker.send(last);
    };
    (std::thread::Builder::new()
        .name("predict".into())
        .spawn(predict))
    .map(|_| events)
}

/// What was seen of a guest.
struct Guest {
    /// How it writes.
    curve: Curve,
    /// When, if not all the time: the curve is that of its bursts then.
    bursts: Option<Rhythm>,
    /// How busy the busiest vCPU is meanwhile of those that write, above 0 and at most 1.
    busy: f64,
    /// That vCPU, and its processor time a second, the time between bursts counted; of a guest that writes in bursts
    /// nothing, since that of any other few seconds is another.
    pace: Option<(CpuClock, f64)>,
    /// Which pages it wrote.
    pages: PageSet,
}

/// A guest and a link that are looked at.
struct Study<'a> {
    log: &'a dyn migration::dirty::DirtyLog,
    ram: &'a GuestRam,
    layout: &'a MemoryLayout,
    clocks: &'a [CpuClock],
    request: &'a PredictRequest,
    target: &'a dyn Connect,
    cancel: &'a CancelToken,
}

impl Study<'_> {
    /// All that a prediction stands on, measured one after the other: together they would disturb each other.
    fn question(
        &self,
        tell: &mut dyn FnMut(PredictEvent) -> bool,
    ) -> Result<Question, PredictError> {
        let options = self.request.wanted.options();
        let Guest {
            curve,
            bursts,
            busy,
            pace,
            pages,
        } = self.watch(tell)?;
        let Survey { memory, before } = survey(self.ram, self.layout, &pages)?;
        let Memory {
            bytes,
            touched,
            zero,
        } = memory;
        let heard = tell(PredictEvent::Memory {
            memory_bytes: bytes,
            touched_pages: touched,
            zero_percent: zero * 100.0,
            busy_percent: busy * 100.0,
        });
        listening(heard)?;
        let mut ran = Vec::new();
        let mut sending = || ran.push((Instant::now(), pace.and_then(|(clock, _)| clock.now())));
        let measured = probe::measure(self.target, &options, self.cancel, &mut sending)?;
        let left = match (pace, &ran[..]) {
            (Some((_, pace)), [(began, Some(before)), (ended, Some(after))]) => {
                left(pace, after.saturating_sub(*before), *ended - *began)
            }
            _ => 1.0,
        };
        listening(tell(of_link(&measured, left)))?;
        // What is written was touched by that at the latest.
        let writes = curve.fit(touched.max(written(&curve)));
        Ok(Question {
            busy,
            left,
            bursts,
            before,
            by_descriptor: self.target.is_local(),
            ..Question::new(memory, writes, measured.link, options)
        })
    }

    fn watch(&self, tell: &mut dyn FnMut(PredictEvent) -> bool) -> Result<Guest, PredictError> {
        let lengths = dirty_rate::windows(self.request.watch().longest());
        let mut windows = Vec::new();
        let mut heard = true;
        let ran = || self.clocks.iter().map(|clock| clock.now());
        let (before, began): (Vec<_>, _) = (ran().collect(), Instant::now());
        let mut hear = |window: Window| {
            windows.push(window.clone());
            heard = tell(PredictEvent::Window { window });
            heard
        };
        let seen = dirty_rate::measure(self.log, self.layout, &lengths, 1, self.cancel, &mut hear)?;
        let watched = began.elapsed();
        listening(heard)?;
        let ran = (before.iter().zip(ran())).map(|(before, now)| now?.checked_sub((*before)?));
        let writers = windows.last().and_then(writers);
        // One that does nothing but compute is not slowed down where the log knows who writes.
        let ran = (0..).zip(ran).filter_map(|(vcpu, ran)| {
            let counts = writers
                .as_ref()
                .is_none_or(|writers| writers.contains(&vcpu));
            Some((ran.filter(|_| counts)?, vcpu))
        });
        let busiest = ran.max();
        let most = busiest.map_or(watched, |(ran, _)| ran).as_secs_f64();
        let busy = most / watched.as_secs_f64().max(1e-6);
        let pace = busiest.and_then(|(_, vcpu)| Some((*self.clocks.get(vcpu)?, busy)));
        let (bursts, windows) = match seen.bursts {
            Some(bursts) => (Some(bursts.rhythm), bursts.windows),
            None => (None, windows),
        };
        // A guest that rests between bursts does not do so in them.
        let share = bursts.map_or(1.0, |rhythm| rhythm.share());
        Ok(Guest {
            curve: Curve::measured(&windows)?,
            bursts,
            busy: (busy / share).clamp(0.01, 1.0),
            pace: pace.filter(|_| bursts.is_none()),
            pages: seen.written,
        })
    }
}

/// A vCPU that runs less than this share of its time is not asked what others leave to it: it hardly asks for anything.
const ASKS: f64 = 0.25;
/// So much less than before is chance: a guest that rests in between takes a tenth more or less from one few seconds to
/// the next. Where a move does take processors from a guest it is a third and more.
const CHANCE: f64 = 0.15;
/// Nobody is left with less.
const LEAST_LEFT: f64 = 0.05;

/// What is left of its usual `pace`, in seconds a second, to a vCPU that `ran` so long within `time`: a share.
fn left(pace: f64, ran: Duration, time: Duration) -> f64 {
    let now = ran.as_secs_f64() / time.as_secs_f64().max(1e-6);
    let left = now / pace;
    match pace > ASKS && left < 1.0 - CHANCE {
        true => left.max(LEAST_LEFT),
        false => 1.0,
    }
}

fn listening(heard: bool) -> Result<(), PredictError> {
    match heard {
        true => Ok(()),
        false => Err(PredictError::Unheard),
    }
}

/// Of what was written, a vCPU that writes has written a part of so many at least.
const WRITES: u64 = 10;

/// The vCPUs that write, where the log knows.
fn writers(window: &Window) -> Option<Vec<usize>> {
    let pages = window.pages_by_vcpu.as_ref()?;
    let least = pages.iter().sum::<u64>() / WRITES;
    let writes = |(vcpu, pages): (usize, &u64)| (*pages > least).then_some(vcpu);
    Some(pages.iter().enumerate().filter_map(writes).collect())
}

fn written(curve: &Curve) -> u64 {
    curve.points().last().map_or(0, |(_, pages)| *pages)
}

fn of_link(measured: &Measured, left: f64) -> PredictEvent {
    let link = &measured.link;
    PredictEvent::Link {
        bandwidth_bytes_per_s: Estimate {
            expected: link.bytes_per_s.expected,
            low: link.bytes_per_s.low,
            high: link.bytes_per_s.high,
        },
        round_trip_ms: link.round_trip.as_secs_f64() * 1000.0,
        connect_ms: link.connect.as_secs_f64() * 1000.0,
        streams: measured.streams,
        probe_bytes: measured.bytes,
        left_percent: left * 100.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_a_share_of_what_was_taken() {
        let second = Duration::from_secs(1);
        let of = |pace: f64, ran: f64| left(pace, Duration::from_secs_f64(ran), second);
        assert_eq!(of(1.0, 0.4), 0.4);
        assert_eq!(of(0.5, 0.25), 0.5);
        // By chance less, or more; next to nothing; and time that is none.
        assert_eq!(of(1.0, 0.86), 1.0);
        assert_eq!(of(0.5, 0.9), 1.0);
        assert_eq!(of(0.2, 0.01), 1.0);
        assert_eq!(of(0.0, 0.0), 1.0);
        assert_eq!(of(1.0, 0.0), LEAST_LEFT);
        assert_eq!(left(1.0, second, Duration::ZERO), 1.0);
    }
}
