//! From HELLO to LIVE: what the receiver is waiting for, and what each frame makes of it.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::alarm::Alarm;
use super::intake::Intake;
use super::probed;
use super::streams::{Accept, Joining, Streams};
use super::{Arrived, Paused, ReceiveError, ReceiveOptions};
use crate::clock::{boot_id, boottime_ns};
use crate::event::Arrival;
use crate::guest::{BlankGuest, Host, PausedGuest};
use crate::pack::unpacker::Unpacker;
use crate::ram::RamView;
use crate::source::chain;
use crate::state::VmState;
use crate::wire::channel::Channel;
use crate::wire::frame::{Frame, Hello, Live};

/// A blank guest whose memory is being filled. What is left of it when it goes: first the streams.
pub(super) struct Filling<B> {
    streams: Streams,
    intake: Arc<Intake>,
    unpacker: Unpacker,
    blank: B,
}

/// What a receiver works with besides the connection.
pub(super) struct Means<'a, H> {
    pub host: &'a mut H,
    /// Where further streams come in; without it there are none.
    pub accept: Option<&'a mut dyn Accept>,
    pub options: &'a ReceiveOptions,
    /// Raised by the first stream that fails.
    pub alarm: &'a Alarm,
    pub events: &'a mut dyn FnMut(Arrival),
}

/// What has become of the guest so far. The arms of [`take`](Receiver::take) name the frames that each state
/// accepts; everything else ends the move.
pub(super) enum Receiver<H: Host> {
    /// Nobody knows what is to come.
    Waiting,
    /// Memory is filled, round by round.
    Filling(Filling<H::Blank>),
    /// All is there and the source knows it.
    Ready {
        paused: Paused<H>,
        restore_ns: u64,
        streams: Streams,
    },
    /// The guest runs here.
    Live(Arrived<H>),
}

impl<H: Host> Receiver<H> {
    pub fn take(
        self,
        frame: Frame,
        means: &mut Means<'_, H>,
        channel: &mut Channel,
    ) -> Result<Self, ReceiveError> {
        let events = &mut *means.events;
        match (self, frame) {
            (Self::Waiting, Frame::Hello(hello)) => {
                Ok(Self::Filling(prepare(means, *hello, channel)?))
            }
            (Self::Waiting, Frame::Probe { session, streams })
                if channel.version() >= probed::SINCE =>
            {
                Err(probed::answer(means, session, streams, channel))
            }
            (Self::Filling(filling), Frame::Pages { round, runs }) => {
                filling.intake.pages(round, &runs, channel)?;
                Ok(Self::Filling(filling))
            }
            (
                Self::Filling(mut filling),
                Frame::Packed {
                    round,
                    runs,
                    codec,
                    bytes,
                },
            ) => {
                let (intake, unpacker) = (&filling.intake, &mut filling.unpacker);
                intake.packed(round, &runs, (codec, bytes), unpacker, channel)?;
                Ok(Self::Filling(filling))
            }
            (Self::Filling(mut filling), Frame::Delta { round, runs, bytes }) => {
                let (intake, unpacker) = (&filling.intake, &mut filling.unpacker);
                intake.delta(round, &runs, bytes, unpacker, channel)?;
                Ok(Self::Filling(filling))
            }
            (Self::Filling(filling), Frame::Zero { round, runs }) => {
                filling.intake.zero(round, &runs, channel)?;
                Ok(Self::Filling(filling))
            }
            (Self::Filling(filling), Frame::RoundEnd { round, pages }) => {
                events(filling.intake.round_end(round, pages, channel)?);
                Ok(Self::Filling(filling))
            }
            (Self::Filling(filling), Frame::State(state)) => {
                filling.intake.seal(channel)?;
                let Filling { blank, streams, .. } = filling;
                let (paused, restore_ns) = load::<H>(blank, &state)?;
                channel.send(&Frame::Ready)?;
                events(Arrival::Ready);
                Ok(Self::Ready {
                    paused,
                    restore_ns,
                    streams,
                })
            }
            (
                Self::Ready {
                    paused,
                    restore_ns,
                    streams,
                },
                Frame::Go,
            ) => {
                let guest = go::<H>(paused, restore_ns, channel, events)?;
                drop(streams);
                Ok(Self::Live(guest))
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
            Self::Waiting => "HELLO or PROBE",
            Self::Filling(_) => "pages or STATE",
            Self::Ready { .. } => "GO",
            Self::Live(_) => "nothing",
        }
    }
}

/// Makes the guest, says so, and waits for the streams that were granted.
fn prepare<H: Host>(
    means: &mut Means<'_, H>,
    hello: Hello,
    channel: &mut Channel,
) -> Result<Filling<H::Blank>, ReceiveError> {
    let description = hello.description;
    let memory = match hello.by_descriptor {
        true => Some(files(channel)?),
        false => None,
    };
    let blank = means.host.prepare(&description, memory)?;
    // Looked at once here, so that a guest made with other memory is refused and not failed.
    RamView::new(blank.ram(), &description.layout)?;
    let most = match means.accept {
        Some(_) => means.options.streams,
        None => 1,
    };
    let streams = hello.streams.min(most).max(1);
    channel.send(&Frame::Accept {
        boot: boot_id().unwrap_or_default(),
        streams,
    })?;
    let channels = match &mut means.accept {
        None => Vec::new(),
        Some(accept) => Joining {
            accept: &mut **accept,
            session: hello.session,
            identity: channel.identity().cloned(),
            streams,
            timeout: channel.patience(),
            cancel: channel.cancel_token(),
        }
        .channels()?,
    };
    let (ram, alarm) = (blank.ram().clone(), means.alarm.clone());
    let layout = description.layout.clone();
    let intake = Arc::new(Intake::new(ram, layout, streams, alarm));
    (means.events)(Arrival::Accepted {
        peer: channel.peer().to_owned(),
        memory_bytes: description.layout.bytes(),
        vcpus: description.vcpus,
    });
    Ok(Filling {
        unpacker: Unpacker::default(),
        streams: Streams::start(channels, &intake, means.alarm)?,
        intake,
        blank,
    })
}

/// The files of the guest's memory, which come behind a HELLO that says so.
fn files(channel: &mut Channel) -> Result<Vec<File>, ReceiveError> {
    match channel.receive()? {
        Frame::Memory { files: count } => {
            let files = channel.take_files();
            if u32::try_from(files.len()) == Ok(count) {
                return Ok(files);
            }
            let what = format!(
                "{count} files of memory were announced, {} came",
                files.len()
            );
            Err(ReceiveError::Pages {
                peer: channel.peer().to_owned(),
                what,
            })
        }
        frame => Err(ReceiveError::Unexpected {
            peer: channel.peer().to_owned(),
            frame: frame.name(),
            expected: "MEMORY",
        }),
    }
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
