//! First phase: reach the destination and agree on the guest. Until both ends have agreed nothing of the guest
//! is looked at; its dirty log alone is already started.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::error::MoveError;
use super::line::Line;
use super::pacer::Pacer;
use super::precopy::Precopy;
use super::trip::{Failed, Trip, give_back, instead_of};
use crate::cancel::CancelToken;
use crate::clock::{boot_id, millis, session_id};
use crate::confined::{self, Role};
use crate::event::Event;
use crate::guest::{Description, GuestError, GuestRam, RunningGuest, survive};
use crate::options::{Options, ThrottlePolicy};
use crate::pack::Compress;
use crate::pack::packer::{Packer, Resent};
use crate::pages::PAGE_SIZE;
use crate::placement::Processors;
use crate::report::Report;
use crate::verify;
use crate::wire::Connect;
use crate::wire::channel::{Channel, ChannelError};
use crate::wire::frame::{Frame, Hello, SessionId};
use crate::wire::tls::TlsError;

/// What may wait in the kernel until the link takes it. Left to itself, Linux lets some MiB wait: over 1 Gbit/s each
/// page was read 40 ms too early, and a guest that writes as fast as the link carries was left 0.12 s of the link to
/// send at least, in place of 0.08. Long against what it takes to wake a sender up.
const UNSENT_TIME: Duration = Duration::from_millis(4);
/// But a stream always has as much as goes in one piece (the most of GSO).
const LEAST_UNSENT: u32 = 64 << 10;

/// The guest runs, nobody else knows of it.
pub(super) struct Connecting<G> {
    pub guest: G,
}

/// What both ends agreed on.
pub(super) struct Link {
    /// The first stream: pages, and everything else that is said.
    pub main: Line,
    /// Further streams, for pages alone.
    pub others: Vec<Line>,
    /// Ends the waits of all streams as soon as one has failed.
    pub alarm: CancelToken,
    pub description: Description,
    /// Both ends run on one kernel, so that their CLOCK_BOOTTIME is one clock.
    pub shared_clock: bool,
    /// The quickest answer to a PING so far.
    pub round_trip: Duration,
    /// What the streams are spread over, where the destination's ends of them run on the same few processors.
    pub processors: Option<Processors>,
    /// The destination maps the very memory of the guest: there are no pages to send.
    pub by_descriptor: bool,
}

impl<G: RunningGuest> Connecting<G> {
    pub fn run(self, trip: &mut Trip<'_>) -> Result<Precopy<G>, Box<Failed<G>>> {
        let description = self.guest.describe();
        trip.baseline = self.guest.work().map(|work| (work, Instant::now()));
        trip.report.memory_bytes = description.layout.bytes();
        let blind = trip.options.throttle == ThrottlePolicy::DirtyLimit
            && self.guest.dirty_log().written_by_vcpu().is_none();
        let opened = match (blind, trip.options.verify && trip.target.is_local()) {
            (true, _) => Err(MoveError::WritersUnknown),
            (_, true) => Err(MoveError::NothingToVerify),
            _ => survive(|| Link::open(trip, description)),
        };
        let mut link = match opened {
            Ok(link) => link,
            // The log may be on for snapshots.
            Err(error) => return Err(give_back(self.guest, None, error)),
        };
        match survive(|| link.begin(&self.guest, trip)) {
            Ok(()) => Ok(Precopy::new(self.guest, link, 0, trip.options)),
            Err(error) => Err(give_back(self.guest, Some(link), error)),
        }
    }
}

impl Link {
    pub fn open(trip: &Trip<'_>, description: Description) -> Result<Self, MoveError> {
        let alarm = CancelToken::new()
            .map_err(|error| GuestError::new("make the alarm of the move's streams", error))?;
        let dialer = Dialer {
            target: trip.target,
            options: trip.options,
            cancel: trip.cancel,
            alarm: &alarm,
        };
        let main = dialer.dial()?;
        Ok(Self {
            main,
            others: Vec::new(),
            alarm,
            description,
            shared_clock: false,
            round_trip: Duration::MAX,
            processors: None,
            by_descriptor: trip.target.is_local(),
        })
    }

    /// How many connections carry pages.
    pub fn streams(&self) -> u16 {
        u16::try_from(self.others.len() + 1).unwrap_or(u16::MAX)
    }

    /// Bytes sent so far on all of them.
    pub fn sent_bytes(&self) -> u64 {
        let others = self.others.iter().map(|line| line.channel.sent_bytes());
        self.main.channel.sent_bytes() + others.sum::<u64>()
    }

    /// Has the kernel take no more of what cannot go yet than a link of `bandwidth` bytes a second carries in
    /// [`UNSENT_TIME`].
    pub fn limit_unsent(&mut self, bandwidth: u64) {
        let streams = u128::from(self.streams());
        let bytes = u128::from(bandwidth) * UNSENT_TIME.as_millis() / 1000 / streams;
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).max(LEAST_UNSENT);
        for line in self.lines() {
            line.channel.limit_unsent(bytes);
        }
    }

    fn lines(&mut self) -> impl Iterator<Item = &mut Line> {
        std::iter::once(&mut self.main).chain(&mut self.others)
    }

    /// From `since` on the destination has no more time in all than that, on all streams; see [`Channel::hurry`].
    ///
    /// [`Channel::hurry`]: crate::wire::channel::Channel::hurry
    pub fn hurry(&mut self, since: Instant, allowed: Option<Duration>) {
        for line in self.lines() {
            line.channel.hurry(since, allowed);
        }
    }

    /// From now on pages go packed as was asked for.
    pub fn pack(&mut self, compress: Compress, resent: Option<&Arc<Resent>>) {
        for line in self.lines() {
            line.packer = Packer::new(compress, resent.cloned());
        }
    }

    /// Enters what was sent so far.
    pub fn account(&mut self, report: &mut Report) {
        report.wire_bytes = self.sent_bytes();
        (report.compressed_bytes, report.delta_bytes) = (0, 0);
        for line in self.lines() {
            report.compressed_bytes += line.packer.sums.compressed;
            report.delta_bytes += line.packer.sums.delta;
        }
    }

    /// Agrees with the destination, and starts the dirty log while that makes the guest: both take some
    /// milliseconds.
    fn begin<G: RunningGuest>(&mut self, guest: &G, trip: &mut Trip<'_>) -> Result<(), MoveError> {
        let session = session_id();
        let files = match self.by_descriptor {
            true => files(guest.ram())?,
            false => Vec::new(),
        };
        self.introduce(session, &files, trip)?;
        // Asking starts the measurement of the largest gap.
        trip.heartbeat = guest.heartbeat();
        trip.brownout_began = Some(Instant::now());
        trip.report.setup_ms = millis(trip.started.elapsed());
        let started = match self.by_descriptor {
            true => Ok(()),
            false => {
                let log = guest.dirty_log();
                trip.report.dirty_tracking = Some(log.tracking());
                log.start()
            }
        };
        // Answered first, so that a destination that is about to speak hears why this ends.
        self.agree(session, trip)?;
        started?;
        trip.report.streams = self.streams();
        trip.tell(Event::Connected {
            peer: trip.target.name(),
            memory_bytes: self.description.layout.bytes(),
        });
        Ok(())
    }

    /// Says what the guest is.
    fn introduce(
        &mut self,
        session: SessionId,
        files: &[BorrowedFd<'_>],
        trip: &mut Trip<'_>,
    ) -> Result<(), MoveError> {
        let channel = &mut self.main.channel;
        let version = channel.greet()?;
        if trip.options.verify && version < verify::SINCE {
            let peer = channel.peer().to_owned();
            return Err(MoveError::CannotVerify { peer, version });
        }
        trip.report.secured_with(channel.identity());
        let streams = match self.by_descriptor {
            true => 1,
            false => wished(trip.options),
        };
        channel.send(&Frame::Hello(Box::new(Hello {
            session,
            boot: boot_id().unwrap_or_default(),
            streams,
            by_descriptor: self.by_descriptor,
            verify: trip.options.verify,
            page_size: u32::try_from(PAGE_SIZE).unwrap_or(u32::MAX),
            description: self.description.clone(),
        })))?;
        if self.by_descriptor {
            let count = u32::try_from(files.len()).unwrap_or(u32::MAX);
            channel.send_files(&Frame::Memory { files: count }, files)?;
        }
        Ok(())
    }

    /// Hears whether the destination takes the guest, and opens the streams that it grants.
    fn agree(&mut self, session: SessionId, trip: &Trip<'_>) -> Result<(), MoveError> {
        let channel = &mut self.main.channel;
        let granted = match channel.receive()? {
            Frame::Accept {
                boot: theirs,
                streams,
            } => {
                self.shared_clock = boot_id() == Some(theirs);
                streams
            }
            frame => return Err(instead_of("ACCEPT", &frame, channel)),
        };
        self.join(granted.min(wished(trip.options)), session, trip)?;
        if self.main.channel.shared_processor().is_some() {
            self.processors = Processors::shared(self.streams());
        }
        if self.processors.is_some() {
            let lines = std::iter::once(&self.main).chain(&self.others);
            lines.for_each(|line| line.channel.share_processor());
        }
        self.measure_round_trip()
    }

    /// Opens the further streams, all at a time: each costs two round trips.
    fn join(&mut self, streams: u16, session: SessionId, trip: &Trip<'_>) -> Result<(), MoveError> {
        let dialer = Dialer {
            target: trip.target,
            options: trip.options,
            cancel: trip.cancel,
            alarm: &self.alarm,
        };
        let joined: Vec<Result<_, MoveError>> = thread::scope(|scope| {
            let dial = |index| {
                let thread = thread::Builder::new().name("dial".into());
                thread.spawn_scoped(scope, move || {
                    confined::started(Role::Dial);
                    dialer.join(session, index)
                })
            };
            let threads: Vec<_> = (1..streams).map(dial).collect();
            let ended = threads.into_iter().map(|thread| {
                let failed = |error| GuestError::new("start the thread that opens a stream", error);
                let joined = thread.map_err(failed)?.join();
                // The guest is not to go down with it.
                joined.unwrap_or_else(|_| Err(GuestError::bare("open a stream: panicked").into()))
            });
            // All of them before the first error: one that panics and is not joined has the scope panic, too.
            ended.collect()
        });
        let joined: Vec<_> = joined.into_iter().collect::<Result<_, _>>()?;
        let mut channels = joined.iter().map(|line| &line.channel);
        if let Some(other) = channels.find(|other| other.identity() != self.main.channel.identity())
        {
            return Err(MoveError::Channel(ChannelError::Tls {
                peer: other.peer().to_owned(),
                source: TlsError::OtherHost,
            }));
        }
        self.others = joined;
        Ok(())
    }

    /// Asks three times on an idle connection and remembers the quickest answer.
    fn measure_round_trip(&mut self) -> Result<(), MoveError> {
        for number in 0..3 {
            let time = self.main.ping(number)?;
            self.round_trip = self.round_trip.min(time);
        }
        Ok(())
    }
}

/// How many streams the destination is asked for.
fn wished(options: &Options) -> u16 {
    Pacer::new(options.bandwidth).streams(options.streams)
}

/// The files behind guest memory, one a region and from its beginning.
fn files(ram: &GuestRam) -> Result<Vec<BorrowedFd<'_>>, GuestError> {
    let offsets = ram.iter().map(GuestMemoryRegion::file_offset);
    let files: Option<Vec<_>> = offsets
        .map(|offset| offset.filter(|offset| offset.start() == 0))
        .map(|offset| offset.map(|offset| offset.file().as_fd()))
        .collect();
    files.ok_or_else(|| {
        GuestError::bare(
            "a move over a Unix socket hands guest memory over as it is, and this guest's cannot be: \
             start it with --memory SIZE,backing=memfd, or move it over TCP (tcp:127.0.0.1:PORT)",
        )
    })
}

/// What it takes to open one stream.
#[derive(Clone, Copy)]
struct Dialer<'a> {
    target: &'a dyn Connect,
    options: &'a Options,
    cancel: &'a CancelToken,
    alarm: &'a CancelToken,
}

impl Dialer<'_> {
    fn dial(self) -> Result<Line, MoveError> {
        let timeout = self.options.connect_timeout;
        let transport = self.target.connect(timeout, self.cancel)?;
        let (name, patience) = (self.target.name(), self.options.peer_timeout);
        let mut channel = Channel::new(transport, name, patience, self.cancel)?;
        channel.listen_to(self.alarm);
        Ok(Line::new(channel))
    }

    fn join(self, session: SessionId, index: u16) -> Result<Line, MoveError> {
        let mut line = self.dial()?;
        line.channel.greet()?;
        line.channel.send(&Frame::Join { session, index })?;
        Ok(line)
    }
}
