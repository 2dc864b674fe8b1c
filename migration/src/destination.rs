//! The receiving side of a move: a guest is made, filled, and run once the source says GO. Until then the
//! source owns it, and whatever goes wrong here costs nothing but the attempt.

use std::time::{Duration, Instant};

use thiserror::Error;

use crate::cancel::{CancelToken, Cancelled};
use crate::clock::{boot_id, boottime_ns};
use crate::event::Arrival;
use crate::guest::{BlankGuest, GuestError, Heartbeat, Host, PausedGuest};
use crate::pages::MemoryLayout;
use crate::ram::RamView;
use crate::source::chain;
use crate::state::VmState;
use crate::wire::Transport;
use crate::wire::channel::{Channel, ChannelError};
use crate::wire::frame::{Figures, Frame, Hello, Live, Run};

/// The running guest that a [`Host`] ends up with.
pub type Arrived<H> = <Paused<H> as PausedGuest>::Running;
type Paused<H> = <<H as Host>::Blank as BlankGuest>::Paused;

/// How long the source may take to hear why this side does not go on.
const LINGER: Duration = Duration::from_secs(1);
/// How often the guest's heartbeats are looked at after LIVE. They bear their own times.
const GLANCE: Duration = Duration::from_millis(5);

/// What a receiver allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiveOptions {
    /// A peer from which nothing comes, or that takes nothing, for so long is dead.
    pub peer_timeout: Duration,
    /// How long the first heartbeat is waited for after LIVE, at most.
    pub heartbeat_timeout: Duration,
}

impl Default for ReceiveOptions {
    fn default() -> Self {
        Self {
            peer_timeout: Duration::from_secs(5),
            heartbeat_timeout: Duration::from_secs(1),
        }
    }
}

/// Why there is no guest.
#[derive(Debug, Error)]
pub enum ReceiveError {
    /// Somebody cancelled it here.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// The connection failed. The guest is still the source's.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The source ended the move.
    #[error("{peer} ended the move: {reason}")]
    Aborted {
        /// The source.
        peer: String,
        /// Its reason.
        reason: String,
    },
    /// The source said something that does not belong there.
    #[error("{peer} sent {frame} while the receiver was waiting for {expected}")]
    Unexpected {
        /// The source.
        peer: String,
        /// What it said.
        frame: &'static str,
        /// What was expected.
        expected: &'static str,
    },
    /// Pages that do not exist, or of another round.
    #[error("{peer} broke the protocol: {what}")]
    Pages {
        /// The source.
        peer: String,
        /// What is wrong, with the values.
        what: String,
    },
    /// This host does not take the guest, or could not make it run.
    #[error(transparent)]
    Guest(#[from] GuestError),
}

/// A guest that has arrived, and runs.
#[derive(Debug)]
pub struct Received<G> {
    /// The guest. It is this side's from now on, whatever becomes of the connection.
    pub guest: G,
    /// What is left to be said.
    pub finish: Finish,
}

/// What a receiver still owes the source after LIVE: figures for its report. Dropping it is fine too.
#[derive(Debug)]
pub struct Finish {
    channel: Channel,
    timeout: Duration,
}

impl Finish {
    /// Waits for the guest's first heartbeat, for as long as the options say, and tells the source of it;
    /// without delay for a guest that reports none (`None`). Best run on a thread of its own.
    pub fn run(mut self, mut heartbeat: impl FnMut() -> Option<Heartbeat>) {
        let deadline = Instant::now() + self.timeout;
        let seen = loop {
            match heartbeat() {
                None => break Heartbeat::default(),
                Some(seen) if seen.count > 0 || Instant::now() >= deadline => break seen,
                Some(_) => std::thread::sleep(GLANCE),
            }
        };
        let figures = Figures {
            first_heartbeat_ns: seen.first_ns,
            largest_gap_ns: seen.largest_gap_ns,
        };
        self.channel.farewell(&Frame::Figures(figures), LINGER);
    }
}

/// Receives one guest over a connection just made; `peer` is what people call the other end. Returns as soon
/// as the guest runs.
///
/// # Errors
/// There is no guest here, and none is left half-made. The source was told why where it could be.
pub fn receive<H: Host>(
    host: &mut H,
    transport: Box<dyn Transport>,
    peer: &str,
    options: &ReceiveOptions,
    cancel: &CancelToken,
    events: &mut dyn FnMut(Arrival),
) -> Result<Received<Arrived<H>>, ReceiveError> {
    let mut channel = Channel::new(transport, peer, options.peer_timeout, cancel)?;
    let mut accepted = false;
    match converse(host, &mut channel, &mut accepted, events) {
        Ok(guest) => Ok(Received {
            guest,
            finish: Finish {
                channel,
                timeout: options.heartbeat_timeout,
            },
        }),
        Err(error) => {
            explain(&mut channel, accepted, &error);
            Err(error)
        }
    }
}

/// Tells the source why this side does not go on, if somebody is there to hear it. By now nothing is left of
/// the guest here, so the source may take that as leave to resume.
fn explain(channel: &mut Channel, accepted: bool, error: &ReceiveError) {
    use ChannelError::{Closed, Io};
    if let ReceiveError::Aborted { .. } | ReceiveError::Channel(Closed { .. } | Io { .. }) = error {
        return;
    }
    let reason = chain(error);
    let frame = if accepted {
        Frame::Failed(reason)
    } else {
        Frame::Refuse(reason)
    };
    channel.farewell(&frame, LINGER);
}

/// The whole exchange, up to LIVE.
fn converse<H: Host>(
    host: &mut H,
    channel: &mut Channel,
    accepted: &mut bool,
    events: &mut dyn FnMut(Arrival),
) -> Result<Arrived<H>, ReceiveError> {
    channel.greet()?;
    let mut receiver = Receiver::Waiting;
    loop {
        let frame = channel.receive()?;
        receiver = receiver.take(frame, host, channel, events)?;
        *accepted = true;
        if let Receiver::Live(guest) = receiver {
            return Ok(guest);
        }
    }
}

/// What has become of the guest so far. The arms of [`take`](Receiver::take) name the frames that each state
/// accepts; everything else ends the move.
enum Receiver<H: Host> {
    /// Nobody knows what is to come.
    Waiting,
    /// Memory is filled, round by round.
    Filling(Filling<H::Blank>),
    /// All is there and the source knows it.
    Ready { paused: Paused<H>, restore_ns: u64 },
    /// The guest runs here.
    Live(Arrived<H>),
}

impl<H: Host> Receiver<H> {
    fn take(
        self,
        frame: Frame,
        host: &mut H,
        channel: &mut Channel,
        events: &mut dyn FnMut(Arrival),
    ) -> Result<Self, ReceiveError> {
        match (self, frame) {
            (Self::Waiting, Frame::Hello(hello)) => {
                let filling = prepare(host, *hello, channel, events)?;
                Ok(Self::Filling(filling))
            }
            (Self::Filling(mut filling), Frame::Pages { round, runs }) => {
                filling.pages(round, &runs, channel)?;
                Ok(Self::Filling(filling))
            }
            (Self::Filling(mut filling), Frame::Zero { round, runs }) => {
                filling.zero(round, &runs, channel)?;
                Ok(Self::Filling(filling))
            }
            (Self::Filling(mut filling), Frame::RoundEnd { round, pages }) => {
                events(filling.round_end(round, pages, channel)?);
                Ok(Self::Filling(filling))
            }
            (Self::Filling(filling), Frame::State(state)) => {
                let (paused, restore_ns) = load::<H>(filling.blank, &state)?;
                channel.send(&Frame::Ready)?;
                events(Arrival::Ready);
                Ok(Self::Ready { paused, restore_ns })
            }
            (Self::Ready { paused, restore_ns }, Frame::Go) => {
                Ok(Self::Live(go::<H>(paused, restore_ns, channel, events)?))
            }
            (receiver @ Self::Filling(_), Frame::Ping(number)) => {
                channel.send(&Frame::Pong(number))?;
                Ok(receiver)
            }
            (_, Frame::Abort(reason)) => Err(ReceiveError::Aborted {
                peer: channel.peer().to_owned(),
                reason,
            }),
            (receiver, frame) => Err(ReceiveError::Unexpected {
                peer: channel.peer().to_owned(),
                frame: frame.name(),
                expected: receiver.expects(),
            }),
        }
    }

    fn expects(&self) -> &'static str {
        match self {
            Self::Waiting => "HELLO",
            Self::Filling(_) => "pages or STATE",
            Self::Ready { .. } => "GO",
            Self::Live(_) => "nothing",
        }
    }
}

/// Makes the guest and says so.
fn prepare<H: Host>(
    host: &mut H,
    hello: Hello,
    channel: &mut Channel,
    events: &mut dyn FnMut(Arrival),
) -> Result<Filling<H::Blank>, ReceiveError> {
    let description = hello.description;
    let blank = host.prepare(&description)?;
    // Looked at once here, so that a guest made with other memory is refused and not failed.
    RamView::new(blank.ram(), &description.layout)?;
    channel.send(&Frame::Accept {
        boot: boot_id().unwrap_or_default(),
        streams: 1,
    })?;
    events(Arrival::Accepted {
        peer: channel.peer().to_owned(),
        memory_bytes: description.layout.bytes(),
        vcpus: description.vcpus,
    });
    Ok(Filling {
        blank,
        layout: description.layout,
        round: 0,
        pages: 0,
        zero_pages: 0,
    })
}

/// Makes the filled guest one that can run.
fn load<H: Host>(blank: H::Blank, state: &VmState) -> Result<(Paused<H>, u64), ReceiveError> {
    let began = Instant::now();
    let paused = blank.load(state)?;
    Ok((paused, nanos(began.elapsed())))
}

/// Runs the guest and says so. Whether that can be heard does not matter any more: it runs here.
fn go<H: Host>(
    paused: Paused<H>,
    restore_ns: u64,
    channel: &mut Channel,
    events: &mut dyn FnMut(Arrival),
) -> Result<Arrived<H>, ReceiveError> {
    let began = Instant::now();
    channel.cancel_token().commit()?;
    let guest = match paused.resume() {
        Ok(guest) => guest,
        Err(failed) => {
            // Gone before the source hears that it may resume its own.
            drop(failed.guest);
            return Err(failed.error.into());
        }
    };
    let resume = began.elapsed();
    let live = Live {
        restore_ns,
        resume_ns: nanos(resume),
        resumed_at_ns: boottime_ns(),
    };
    if let Err(error) = channel.send(&Frame::Live(live)) {
        tracing::warn!(
            "the guest runs here, but the source could not be told: {}",
            chain(&error)
        );
    }
    events(Arrival::Live {
        restore: Duration::from_nanos(restore_ns),
        resume,
    });
    Ok(guest)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A blank guest whose memory is being filled.
struct Filling<B> {
    blank: B,
    layout: MemoryLayout,
    /// The round that is under way. A round's pages are complete before the next one's begin.
    round: u32,
    /// Its pages with bytes so far.
    pages: u64,
    /// Its zero pages so far.
    zero_pages: u64,
}

impl<B: BlankGuest> Filling<B> {
    /// Takes the bytes behind a PAGES frame straight into guest memory.
    fn pages(
        &mut self,
        round: u32,
        runs: &[Run],
        channel: &mut Channel,
    ) -> Result<(), ReceiveError> {
        self.pages += self.admit(round, runs, channel)?;
        let ram = RamView::new(self.blank.ram(), &self.layout)?;
        let mut places = Vec::with_capacity(runs.len());
        for &run in runs {
            places.push(ram.place(run).ok_or_else(|| outside(run, channel))?);
        }
        channel.receive_data(&mut places)?;
        Ok(())
    }

    fn zero(&mut self, round: u32, runs: &[Run], channel: &Channel) -> Result<(), ReceiveError> {
        self.zero_pages += self.admit(round, runs, channel)?;
        let ram = RamView::new(self.blank.ram(), &self.layout)?;
        for &run in runs {
            ram.clear(run).ok_or_else(|| outside(run, channel))?;
        }
        Ok(())
    }

    /// Checks that pages belong to this round, and that it has no more of them than the guest: each comes at
    /// most once in a round. Says how many they are.
    fn admit(&self, round: u32, runs: &[Run], channel: &Channel) -> Result<u64, ReceiveError> {
        self.same_round(round, channel)?;
        let more: u64 = runs.iter().map(|run| u64::from(run.pages)).sum();
        let total = self.pages + self.zero_pages + more;
        if total > self.layout.pages() {
            let all = self.layout.pages();
            let what = format!("{total} pages in round {round}, the guest has {all}");
            return Err(broken(channel, what));
        }
        Ok(more)
    }

    fn round_end(
        &mut self,
        round: u32,
        pages: u64,
        channel: &Channel,
    ) -> Result<Arrival, ReceiveError> {
        self.same_round(round, channel)?;
        let got = self.pages + self.zero_pages;
        if got != pages {
            return Err(broken(
                channel,
                format!("round {round} ends with {got} pages received, {pages} were sent"),
            ));
        }
        let done = Arrival::RoundFinished {
            index: round,
            pages: self.pages,
            zero_pages: self.zero_pages,
        };
        (self.pages, self.zero_pages) = (0, 0);
        self.round = self.round.saturating_add(1);
        Ok(done)
    }

    fn same_round(&self, round: u32, channel: &Channel) -> Result<(), ReceiveError> {
        if round == self.round {
            return Ok(());
        }
        Err(broken(
            channel,
            format!("pages of round {round} came in round {}", self.round),
        ))
    }
}

fn outside(run: Run, channel: &Channel) -> ReceiveError {
    broken(
        channel,
        format!(
            "{} pages from page {} on are not in one region of the guest's memory",
            run.pages, run.first
        ),
    )
}

fn broken(channel: &Channel, what: String) -> ReceiveError {
    ReceiveError::Pages {
        peer: channel.peer().to_owned(),
        what,
    }
}
