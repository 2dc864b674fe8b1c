//! The further streams of a move: how they come in, and the thread that each has.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::ReceiveError;
use super::alarm::Alarm;
use super::intake::Intake;
use crate::cancel::CancelToken;
use crate::confined::{self, Role};
use crate::guest::GuestError;
use crate::pack::unpacker::Unpacker;
use crate::placement::{Bound, Processors};
use crate::source::chain;
use crate::wire::Transport;
use crate::wire::channel::Channel;
use crate::wire::frame::{Frame, SessionId};
use crate::wire::transport::Identity;

/// How long a new connection may take to say which move it belongs to. The source says so at once; a stranger
/// that says nothing holds the move up for so long.
const INTRODUCTION: Duration = Duration::from_secs(2);
/// How long somebody who is turned away may take to hear why.
const LINGER: Duration = Duration::from_millis(100);

/// Where further connections come in.
pub trait Accept {
    /// The next connection and what people call the other end; `None` if there was none until the deadline, or
    /// the move was cancelled.
    ///
    /// # Errors
    /// No connection can come in any more.
    fn accept(
        &mut self,
        deadline: Instant,
        cancel: &CancelToken,
    ) -> io::Result<Option<(Box<dyn Transport>, String)>>;
}

/// What the further streams of a move have in common.
pub(super) struct Joining<'a> {
    pub accept: &'a mut dyn Accept,
    pub session: SessionId,
    /// Who opened the first stream, where that had to be proved. Nobody else may open another.
    pub identity: Option<Identity>,
    /// Streams in all, the first counted.
    pub streams: u16,
    pub timeout: Duration,
    pub cancel: &'a CancelToken,
}

impl Joining<'_> {
    /// Waits until all streams are there. Who does not belong to the move is turned away.
    pub fn channels(&mut self) -> Result<Vec<Channel>, ReceiveError> {
        let mut lines: Vec<Option<Channel>> = (1..self.streams).map(|_| None).collect();
        let deadline = Instant::now() + self.timeout;
        while lines.iter().any(Option::is_none) {
            let accepted = self.accept.accept(deadline, self.cancel);
            let accepted = accepted.map_err(|error| {
                GuestError::new("accept the further streams of the move", error)
            })?;
            let Some((transport, peer)) = accepted else {
                self.cancel.sleep(Duration::ZERO)?;
                let there = 1 + lines.iter().flatten().count();
                return Err(GuestError::bare(format!(
                    "of {} streams {there} have come within {:.1} s; check the network between",
                    self.streams,
                    self.timeout.as_secs_f64()
                ))
                .into());
            };
            if let Some((index, channel)) = self.introduced(transport, &peer)
                && let Some(line @ None) = lines.get_mut(usize::from(index).wrapping_sub(1))
            {
                *line = Some(channel);
            }
        }
        Ok(lines.into_iter().flatten().collect())
    }

    /// The number of a stream of this move, with its channel.
    fn introduced(&self, transport: Box<dyn Transport>, peer: &str) -> Option<(u16, Channel)> {
        let mut channel = Channel::new(transport, peer, INTRODUCTION, self.cancel).ok()?;
        let said = channel.greet().and_then(|_| channel.receive());
        if said.is_ok() && channel.identity() != self.identity.as_ref() {
            tracing::warn!(
                "{} is not who began this move and was turned away",
                channel.peer()
            );
            let reason = "another host has begun this move, by its certificate".into();
            channel.farewell(&Frame::Refuse(reason), LINGER);
            return None;
        }
        match said {
            Ok(Frame::Join { session, index }) if session == self.session => {
                // Not a stranger any more: what holds for the first stream holds for this one too.
                channel.be_patient(self.timeout).ok()?;
                Some((index, channel))
            }
            said => {
                let said = match said {
                    Ok(frame) => format!("it sent {}", frame.name()),
                    Err(error) => chain(&error),
                };
                tracing::warn!("{peer} is no stream of this move and was turned away: {said}");
                let reason = "another move is coming in here; try again when it is over".into();
                channel.farewell(&Frame::Refuse(reason), LINGER);
                None
            }
        }
    }
}

/// The threads of the further streams. They end when this goes.
#[derive(Debug)]
pub(super) struct Streams {
    alarm: Alarm,
    threads: Vec<JoinHandle<()>>,
}

impl Streams {
    /// Starts a thread for each channel, which takes pages into `intake`.
    pub fn start(
        channels: Vec<Channel>,
        intake: &Arc<Intake>,
        processors: Option<&Processors>,
        alarm: &Alarm,
    ) -> Result<Self, ReceiveError> {
        let mut streams = Self {
            alarm: alarm.clone(),
            threads: Vec::with_capacity(channels.len()),
        };
        for (index, mut channel) in (1..).zip(channels) {
            channel.listen_to(&alarm.token);
            let intake = Arc::clone(intake);
            let mut bound = Bound::new(processors.cloned());
            let thread = thread::Builder::new().name("stream".into());
            let thread = thread.spawn(move || {
                confined::started(Role::Stream);
                if let Err(error) = fill(&intake, &mut bound, &mut channel) {
                    let source = Box::new(error);
                    intake.stream_ended(ReceiveError::Stream { index, source });
                }
            });
            let thread = thread.map_err(|e| GuestError::new("start the thread of a stream", e))?;
            streams.threads.push(thread);
        }
        Ok(streams)
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.alarm.ring();
        for thread in self.threads.drain(..) {
            // A panic there is told by its thread.
            let _ = thread.join();
        }
    }
}

/// What a further stream may say, until it ends.
fn fill(intake: &Intake, bound: &mut Bound, channel: &mut Channel) -> Result<(), ReceiveError> {
    let mut unpacker = Unpacker::default();
    loop {
        channel.wait_for_frame()?;
        match channel.receive()? {
            Frame::Pages { round, runs } => {
                intake.wait_for(round, channel)?;
                bound.follow(|| channel.shared_processor());
                intake.pages(round, &runs, channel)?;
            }
            Frame::Packed {
                round,
                runs,
                codec,
                bytes,
            } => {
                intake.wait_for(round, channel)?;
                intake.packed(round, &runs, (codec, bytes), &mut unpacker, channel)?;
            }
            Frame::Delta { round, runs, bytes } => {
                intake.wait_for(round, channel)?;
                intake.delta(round, &runs, bytes, &mut unpacker, channel)?;
            }
            Frame::Zero { round, runs } => {
                intake.wait_for(round, channel)?;
                intake.zero(round, &runs, channel)?;
            }
            Frame::Ping(number) => channel.send(&Frame::Pong(number))?,
            frame => {
                return Err(ReceiveError::Unexpected {
                    peer: channel.peer().to_owned(),
                    frame: frame.name(),
                    expected: "pages on a further stream",
                });
            }
        }
    }
}
