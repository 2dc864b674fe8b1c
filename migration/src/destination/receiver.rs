//! From HELLO to STATE: what the receiver is waiting for, and what each frame makes of it.

use std::fs::File;
use std::sync::Arc;
use std::time::Instant;

use super::alarm::Alarm;
use super::intake::Intake;
use super::probed;
use super::streams::{Accept, Joining, Streams};
use super::verify;
use super::{ReceiveError, ReceiveOptions};
use crate::clock::boot_id;
use crate::event::Arrival;
use crate::guest::{BlankGuest, Description, Host};
use crate::pack::unpacker::Unpacker;
use crate::placement::{Bound, Processors};
use crate::ram::RamView;
use crate::state::VmState;
use crate::verify::SINCE;
use crate::wire::channel::Channel;
use crate::wire::frame::{Frame, Hello, MAX_HELLO, MAX_STATE};

/// A blank guest whose memory is being filled. What is left of it when it goes: first the streams.
pub(super) struct Filling<B> {
    streams: Streams,
    intake: Arc<Intake>,
    unpacker: Unpacker,
    /// Where the first stream's bytes come in, this thread runs.
    bound: Bound,
    blank: B,
    /// The source may ask for digests.
    verify: bool,
    /// When it first did: the guest's state was saved by then, and how long the comparing takes is its memory's size.
    compared: Option<Instant>,
}

impl<B: BlankGuest> Filling<B> {
    /// A guest whose memory is there already, to be written over by the rounds of another file.
    pub fn again(blank: B, description: &Description, alarm: &Alarm) -> Result<Self, ReceiveError> {
        let (ram, layout) = (blank.ram().clone(), description.layout.clone());
        let intake = Arc::new(Intake::new(ram, layout, 1, alarm.clone()));
        Ok(Self {
            unpacker: Unpacker::default(),
            streams: Streams::start(Vec::new(), &intake, None, alarm)?,
            bound: Bound::new(None),
            intake,
            blank,
            verify: false,
            compared: None,
        })
    }
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
    Filling(Box<Filling<H::Blank>>),
    /// All is there; the state is still to be loaded.
    Filled(Box<Filled<H::Blank>>),
}

/// A blank guest whose memory is whole. What is left of it when it goes: first the streams.
pub(super) struct Filled<B> {
    /// They end when the guest runs, lest that cost it time.
    pub streams: Streams,
    pub blank: B,
    pub state: VmState,
    /// The state is no younger than this.
    pub saved_by: Instant,
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
                let filling = prepare(means, *hello, channel)?;
                Ok(Self::Filling(Box::new(filling)))
            }
            (Self::Waiting, Frame::Probe { session, streams })
                if channel.version() >= probed::SINCE =>
            {
                Err(probed::answer(means, session, streams, channel))
            }
            (Self::Filling(mut filling), Frame::Pages { round, runs }) => {
                filling.bound.follow(|| channel.shared_processor());
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
                let Filling {
                    intake, unpacker, ..
                } = &mut *filling;
                intake.packed(round, &runs, (codec, bytes), unpacker, channel)?;
                Ok(Self::Filling(filling))
            }
            (Self::Filling(mut filling), Frame::Delta { round, runs, bytes }) => {
                let Filling {
                    intake, unpacker, ..
                } = &mut *filling;
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
            (Self::Filling(mut filling), Frame::Verify(question)) if filling.verify => {
                filling.compared.get_or_insert_with(Instant::now);
                // Its threads would be where this one is.
                filling.bound.release();
                verify::answer(question, &filling.intake, channel)?;
                Ok(Self::Filling(filling))
            }
            (Self::Filling(filling), Frame::State(state)) => {
                filling.intake.seal(channel)?;
                let Filling {
                    blank,
                    streams,
                    compared,
                    ..
                } = *filling;
                Ok(Self::Filled(Box::new(Filled {
                    streams,
                    blank,
                    state,
                    saved_by: compared.unwrap_or_else(Instant::now),
                })))
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

    /// How long the body of the next frame may be, beyond what most frames have.
    pub fn largest(&self) -> u32 {
        match self {
            Self::Waiting => MAX_HELLO,
            Self::Filling(_) => MAX_STATE,
            Self::Filled(_) => 0,
        }
    }

    fn expects(&self) -> &'static str {
        match self {
            Self::Waiting => "HELLO or PROBE",
            Self::Filling(_) => "pages or STATE",
            Self::Filled(_) => "nothing",
        }
    }
}

/// Makes the guest, says so, and waits for the streams that were granted.
fn prepare<H: Host>(
    means: &mut Means<'_, H>,
    hello: Hello,
    channel: &mut Channel,
) -> Result<Filling<H::Blank>, ReceiveError> {
    if hello.verify && channel.version() < SINCE {
        let peer = channel.peer().to_owned();
        let what = "HELLO asks for digests, which are not in this version".to_owned();
        return Err(ReceiveError::Pages { peer, what });
    }
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
    // Asked before this thread is bound, and the others inherit that.
    let processors = Processors::shared(streams);
    Ok(Filling {
        unpacker: Unpacker::default(),
        streams: Streams::start(channels, &intake, processors.as_ref(), means.alarm)?,
        bound: Bound::new(processors),
        intake,
        blank,
        verify: hello.verify,
        compared: None,
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
