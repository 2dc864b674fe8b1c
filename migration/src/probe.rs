//! The link to a destination, measured before a move: how long a connection and a message take, and how many bytes a
//! second arrive there, over as many streams as the move will have.
//!
//! It is the move's own connections that are measured, with the move's own bandwidth limit, into memory that the
//! destination has not touched yet, as a new guest's. Not measured is what the move spends on looking for zeros, which
//! is reckoned with where the processors are what limits it, and on arming the dirty log. The time is bounded, and the
//! bytes, and what is under way at once: on a slow link a socket's buffer alone would take minutes to arrive.

mod stream;

use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::sysinfo::sysinfo;
use thiserror::Error;

use self::stream::{Acks, Stream, source};
use crate::cancel::{CancelToken, Cancelled};
use crate::clock::session_id;
use crate::confined::{self, Role};
use crate::options::Options;
use crate::pages::PAGE_SIZE;
use crate::placement::{Bound, Processors};
use crate::predict::{LinkModel, Spread};
use crate::source::Pacer;
use crate::wire::channel::{Channel, ChannelError};
use crate::wire::frame::{Frame, SessionId};
use crate::wire::{Connect, ConnectError};

/// The first version of the protocol that has probes.
const SINCE: u16 = 2;
/// So long bytes are sent. What is in queues on the way comes and goes by some 60 ms worth of it.
const TIME: Duration = Duration::from_secs(3);
/// The most bytes that are sent, of all streams together.
const BYTES: u64 = 16 << 30;
/// Until so much of the time is over, the streams get up to speed, and on a quick link the destination's memory is
/// touched for the first time since it rested.
const WARM_UP: f64 = 1.0 / 3.0;
/// The rest is cut in so many parts, to see how much the link goes up and down.
const PARTS: usize = 8;
/// The bandwidth of a link is never known better than this, in percent.
const CERTAIN: u64 = 2;

/// Memory for the bytes of all streams together at either end, whatever is sent: more than a processor's cache keeps of
/// it. With 32 and 64 MiB they came out of a large one, and a link looked a fifth quicker than a guest found it.
const MEMORY: u64 = 256 << 20;
/// Of the memory that a host has free no larger part is used.
const PART: u64 = 8;

/// How much memory an end of a probe takes, in bytes.
pub(crate) fn memory() -> usize {
    let free = sysinfo().map_or(0, |info| info.ram_unused());
    usize::try_from((free / PART).min(MEMORY)).unwrap_or(0)
}

/// What a link turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// The link, as predictions want it.
    pub link: LinkModel,
    /// Streams that the destination granted.
    pub streams: u16,
    /// Bytes that were sent for it.
    pub bytes: u64,
}

/// Why the link was not measured.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// Somebody did not want to wait for it.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// There is no connection.
    #[error(transparent)]
    Connect(ConnectError),
    /// The connection failed.
    #[error(transparent)]
    Channel(ChannelError),
    /// The destination is of a version that cannot be asked.
    #[error(
        "{peer} speaks version {version} of the migration protocol, and its link can be measured from version {SINCE} on: use a newer ferry there, or give the link by hand"
    )]
    Version {
        /// The destination.
        peer: String,
        /// What it speaks.
        version: u16,
    },
    /// The destination does not want to.
    #[error("{peer} does not let its link be measured: {reason}")]
    Refused {
        /// The destination.
        peer: String,
        /// Its reason.
        reason: String,
    },
    /// The destination said something that does not belong there.
    #[error("{peer} sent {frame} while {expected} was expected; run the same ferry on both ends")]
    Unexpected {
        /// The destination.
        peer: String,
        /// What it said.
        frame: &'static str,
        /// What was expected.
        expected: &'static str,
    },
    /// So little came back that nothing can be said.
    #[error(
        "{peer} acknowledged {bytes} bytes within {seconds:.1} s, which is too little to say anything; give the link by hand"
    )]
    Slow {
        /// The destination.
        peer: String,
        /// How many.
        bytes: u64,
        /// In how long.
        seconds: f64,
    },
    /// No thread, or no descriptor, is left on this host.
    #[error("cannot {act}")]
    Host {
        /// What was tried.
        act: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
}

impl From<ConnectError> for ProbeError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Cancelled(cancelled) => Self::Cancelled(cancelled),
            error => Self::Connect(error),
        }
    }
}

impl From<ChannelError> for ProbeError {
    fn from(error: ChannelError) -> Self {
        match error {
            ChannelError::Cancelled(cancelled) => Self::Cancelled(cancelled),
            error => Self::Channel(error),
        }
    }
}

/// Measures the link to a destination that waits for a guest, and that goes on waiting afterwards. Of the options those
/// count that say how to connect, with how many streams, and how many bytes a second may be sent. A destination on this
/// host that is handed the guest's memory by descriptor is asked for its round trip alone.
///
/// `sending` is called right before the streams begin to send, and once more when they have ended: for who wants to know
/// what that takes from others on this host.
///
/// # Errors
/// What went wrong. The destination is none the worse for it.
pub fn measure(
    target: &dyn Connect,
    options: &Options,
    cancel: &CancelToken,
    sending: &mut dyn FnMut(),
) -> Result<Measured, ProbeError> {
    let alarm = CancelToken::new().map_err(|source| ProbeError::Host {
        act: "make the alarm of the probe's streams",
        source,
    })?;
    let dialer = Dialer {
        target,
        options,
        cancel,
        alarm: &alarm,
        session: session_id(),
    };
    let began = Instant::now();
    let mut first = dialer.dial()?;
    let connect = began.elapsed();
    first.greet()?;
    if first.version() < SINCE {
        return Err(ProbeError::Version {
            peer: first.peer().to_owned(),
            version: first.version(),
        });
    }
    let streams = match target.is_local() {
        true => 1,
        false => Pacer::new(options.bandwidth).streams(options.streams),
    };
    first.send(&Frame::Probe {
        session: dialer.session,
        streams,
    })?;
    let granted = match first.receive()? {
        Frame::Accept { streams, .. } => streams,
        frame => return Err(instead_of("ACCEPT", &frame, &first)),
    };
    let mut all = vec![Stream::new(first)];
    for index in 1..granted.min(streams) {
        all.push(Stream::new(dialer.join(index)?));
    }
    // As a move does it.
    let streams = u16::try_from(all.len()).unwrap_or(u16::MAX);
    let processors = match all[0].is_on_this_host() {
        true => Processors::shared(streams),
        false => None,
    };
    if processors.is_some() {
        all.iter().for_each(Stream::share_processor);
    }
    let first = &mut all[0];
    let mut round_trip = Duration::MAX;
    for _ in 0..3 {
        round_trip = round_trip.min(first.round_trip()?);
    }
    let (bytes_per_s, bytes) = match target.is_local() {
        // Nothing but state goes over it.
        true => (Spread::within(1 << 30, 50), 0),
        false => {
            let source = source();
            sending();
            let fill = fill(
                all,
                &source,
                round_trip,
                processors.as_ref(),
                options,
                &alarm,
            );
            sending();
            let (carried, bytes) = fill?;
            match processors {
                // A link that is slower than the processors hides that; where both ends have the same few, nothing
                // does.
                Some(_) => (looking(carried, streams, stream::look(&source)), bytes),
                None => (carried, bytes),
            }
        }
    };
    Ok(Measured {
        link: LinkModel {
            bytes_per_s,
            round_trip,
            connect,
        },
        streams,
        bytes,
    })
}

/// Sends on all streams until the time is over. Gives the bandwidth, and how many bytes it took.
fn fill(
    mut streams: Vec<Stream>,
    source: &[u8],
    round_trip: Duration,
    processors: Option<&Processors>,
    options: &Options,
    alarm: &CancelToken,
) -> Result<(Spread, u64), ProbeError> {
    let apart = source.len() / streams.len().max(1);
    let acks = Acks::new(TIME, BYTES, round_trip);
    let pacer = Pacer::new(options.bandwidth);
    let failed: Mutex<Option<ProbeError>> = Mutex::new(None);
    let fail = |error: ProbeError| {
        // An alarm is only the echo of what went wrong first.
        if !matches!(error, ProbeError::Channel(ChannelError::Alarm)) {
            let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
            failed.get_or_insert(error);
        }
        // Cannot fail on a token that is never committed.
        let _ = alarm.cancel();
    };
    thread::scope(|scope| {
        for (index, stream) in streams.iter_mut().enumerate() {
            let (acks, pacer, fail) = (&acks, &pacer, &fail);
            let thread = thread::Builder::new().name("probe".into());
            let spawned = thread.spawn_scoped(scope, move || {
                confined::started(Role::Stream);
                let mut bound = Bound::new(processors.cloned());
                bound.follow(|| Some(processors?.of_stream(index)));
                if let Err(error) = stream.fill(acks, pacer, source, index * apart) {
                    fail(error);
                }
            });
            if let Err(source) = spawned {
                let act = "start the thread of a probe's stream";
                fail(ProbeError::Host { act, source });
            }
        }
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let (came, ended) = acks.into_times();
    let bytes = came.iter().map(|(_, bytes)| bytes).sum();
    let bandwidth = bandwidth(&came, ended).ok_or_else(|| ProbeError::Slow {
        peer: streams[0].peer().to_owned(),
        bytes,
        seconds: came.last().map_or(0.0, |(at, _)| at.as_secs_f64()),
    })?;
    Ok((bandwidth, bytes))
}

/// From when how many bytes had arrived, and until when all streams sent, to the bandwidth: the mean after the warm-up,
/// and twice its standard error. What comes of the queues once nobody sends any more would make a link of 1 Gbit/s look
/// 1 % quicker than it is; but on a slow one that is all there is.
fn bandwidth(came: &[(Duration, u64)], ended: Duration) -> Option<Spread> {
    let meanwhile = came.partition_point(|(at, _)| *at <= ended);
    let came = match meanwhile >= came.len() / 2 {
        true => came.get(..meanwhile)?,
        false => came,
    };
    let end = came.last()?.0.as_secs_f64();
    let from = end * WARM_UP;
    let part = (end - from) / PARTS as f64;
    if part <= 0.0 {
        return None;
    }
    // Bytes of an acknowledgement have come evenly since the one before.
    let mut parts = [0.0; PARTS];
    let mut before = 0.0;
    for (at, bytes) in came {
        let at = at.as_secs_f64().max(before);
        let rate = *bytes as f64 / (at - before).max(1e-9);
        for (index, sum) in (0u8..).zip(&mut parts) {
            let start = from + f64::from(index) * part;
            let both = (at.min(start + part) - before.max(start)).max(0.0);
            *sum += rate * both;
        }
        before = at;
    }
    let mean = parts.iter().sum::<f64>() / PARTS as f64;
    let squares = parts.iter().map(|sum| (sum - mean).powi(2)).sum::<f64>();
    let error = (squares / (PARTS * (PARTS - 1)) as f64).sqrt();
    let per_second = |bytes: f64| {
        // Saturates.
        #[expect(clippy::cast_possible_truncation)]
        let rate = (bytes / part).round() as u64;
        rate
    };
    let expected = per_second(mean);
    let certain = Spread::within(expected, CERTAIN);
    (expected > 0).then(|| Spread {
        low: per_second((mean - 2.0 * error).max(mean / 4.0)).min(certain.low),
        expected,
        high: per_second(mean + 2.0 * error).max(certain.high),
    })
}

/// What is carried of a move where so many streams look at each page, too, on processors that have nothing else to wait
/// for.
fn looking(carried: Spread, streams: u16, look: Duration) -> Spread {
    let look = look.as_secs_f64() / f64::from(streams.max(1)) / PAGE_SIZE as f64;
    let less = |bytes: u64| {
        // Less than before, so it converts.
        #[expect(clippy::cast_possible_truncation)]
        let less = (1.0 / (1.0 / bytes.max(1) as f64 + look)).round() as u64;
        less.max(1)
    };
    Spread {
        low: less(carried.low),
        expected: less(carried.expected),
        high: less(carried.high),
    }
}

/// The error behind a frame other than the one expected.
fn instead_of(expected: &'static str, frame: &Frame, channel: &Channel) -> ProbeError {
    let peer = channel.peer().to_owned();
    match frame {
        Frame::Refuse(reason) | Frame::Failed(reason) => ProbeError::Refused {
            peer,
            reason: reason.clone(),
        },
        frame => ProbeError::Unexpected {
            peer,
            frame: frame.name(),
            expected,
        },
    }
}

/// What it takes to open one stream.
#[derive(Clone, Copy)]
struct Dialer<'a> {
    target: &'a dyn Connect,
    options: &'a Options,
    cancel: &'a CancelToken,
    alarm: &'a CancelToken,
    session: SessionId,
}

impl Dialer<'_> {
    fn dial(self) -> Result<Channel, ProbeError> {
        let transport = self
            .target
            .connect(self.options.connect_timeout, self.cancel)?;
        let (name, patience) = (self.target.name(), self.options.peer_timeout);
        let mut channel = Channel::new(transport, name, patience, self.cancel)?;
        channel.listen_to(self.alarm);
        Ok(channel)
    }

    fn join(self, index: u16) -> Result<Channel, ProbeError> {
        let mut channel = self.dial()?;
        channel.greet()?;
        channel.send(&Frame::Join {
            session: self.session,
            index,
        })?;
        Ok(channel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn an_even_link_is_known_to_two_percent() {
        // 1 MB each 10 ms, after a slow start.
        let slow = (1..=10).map(|n| (ms(10 * n), 1000));
        let even = (11..=100).map(|n| (ms(10 * n), 1_000_000));
        let mut came: Vec<_> = slow.chain(even).collect();
        let certain = Some(Spread::within(100_000_000, 2));
        assert_eq!(bandwidth(&came, ms(1000)), certain);
        // What was held up in queues.
        came.extend([(ms(1001), 7_000_000)]);
        assert_eq!(bandwidth(&came, ms(1000)), certain);
    }

    /// Nearly all of it arrives when nobody sends any more.
    #[test]
    fn a_slow_link_is_known_by_what_is_in_its_queues() {
        let came: Vec<_> = (1..=30).map(|n| (ms(1000 * n), 4096)).collect();
        assert_eq!(bandwidth(&came, ms(3000)).unwrap().expected, 4096);
    }

    #[test]
    fn an_uneven_link_is_known_less_well() {
        let came: Vec<_> = (1..=300)
            .map(|n| {
                (
                    ms(10 * n),
                    if n / 20 % 2 == 0 {
                        2_000_000
                    } else {
                        1_000_000
                    },
                )
            })
            .collect();
        let Spread {
            low,
            expected,
            high,
        } = bandwidth(&came, ms(3000)).unwrap();
        assert!((145_000_000..155_000_000).contains(&expected), "{expected}");
        assert!(
            low < expected * 9 / 10 && high > expected * 11 / 10,
            "{low} {high}"
        );
        assert!(low > expected / 2);
    }

    #[test]
    fn to_look_at_pages_costs_what_it_costs() {
        // 4096 bytes in 0.85 us, and 0.15 us more.
        let carried = Spread::within(4_818_823_529, 2);
        let look = Duration::from_nanos(300);
        let looked = looking(carried, 2, look).expected;
        assert!((4_090_000_000..4_100_000_000).contains(&looked), "{looked}");
        // Not worth mentioning on a slow link.
        let slow = Spread::within(1000, 0);
        assert_eq!(looking(slow, 1, look), slow);
        assert_eq!(looking(Spread::within(0, 0), 0, look).expected, 1);
    }

    #[test]
    fn nothing_says_nothing() {
        assert_eq!(bandwidth(&[], ms(100)), None);
        assert_eq!(bandwidth(&[(Duration::ZERO, 5)], ms(100)), None);
        assert_eq!(bandwidth(&[(ms(100), 0)], ms(100)), None);
    }
}
