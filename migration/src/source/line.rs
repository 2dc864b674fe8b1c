//! One connection of a move, as the source uses it: frames go out, and now and then the destination is asked
//! whether it lives.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use super::error::MoveError;
use super::streams::SIGN;
use super::trip::instead_of;
use crate::confined::{self, Role};
use crate::guest::GuestError;
use crate::pack::packer::Packer;
use crate::wire::channel::Channel;
use crate::wire::frame::Frame;

/// The number of the PINGs that ask for a sign of life. Those that measure have small ones.
const SIGN_OF_LIFE: u64 = u64::MAX;

/// A channel, with the questions that are open on it.
pub(super) struct Line {
    pub channel: Channel,
    /// What makes pages fewer bytes, where that was asked for.
    pub packer: Packer,
    /// What is sent is kept in a file: nobody answers, and nothing is asked.
    pub kept: bool,
    /// Signs of life asked for and not given yet. More than that is not listened to: a destination that keeps
    /// answering what nobody asked could hold the move for ever.
    open: u32,
}

impl Line {
    pub fn new(channel: Channel) -> Self {
        Self {
            channel,
            packer: Packer::default(),
            kept: false,
            open: 0,
        }
    }

    /// Asks for a sign of life.
    pub fn ask(&mut self) -> Result<(), MoveError> {
        if self.kept {
            return Ok(());
        }
        self.open = self.open.saturating_add(1);
        Ok(self.channel.send(&Frame::Ping(SIGN_OF_LIFE))?)
    }

    /// For whoever waits for something else than the destination: hears what it says, and says that this side lives.
    pub fn keep_alive(&mut self) -> Result<(), MoveError> {
        self.listen()?;
        self.ask()
    }

    /// Does `act`, which may wait for something else for longer than the destination would in silence, and has it hear
    /// meanwhile that this side lives. What came of that comes beside: it undoes nothing of what was done.
    pub fn while_alive<T>(&mut self, act: impl FnOnce() -> T) -> (T, Result<(), MoveError>) {
        thread::scope(|scope| {
            let (acting, acted) = mpsc::channel::<()>();
            let signs = thread::Builder::new().name("signs".into());
            let signs = signs.spawn_scoped(scope, move || {
                confined::started(Role::Stream);
                while acted.recv_timeout(SIGN) == Err(RecvTimeoutError::Timeout) {
                    self.keep_alive()?;
                }
                Ok(())
            });
            let done = act();
            drop(acting);
            let heard = match signs.map(ScopedJoinHandle::join) {
                Ok(Ok(heard)) => heard,
                Ok(Err(_)) => Err(GuestError::bare("give signs of life: panicked").into()),
                Err(error) => {
                    Err(GuestError::new("start a thread that gives signs of life", error).into())
                }
            };
            (done, heard)
        })
    }

    /// Hears what has come without waiting: signs of life, or that the destination cannot go on.
    pub fn listen(&mut self) -> Result<(), MoveError> {
        if self.kept {
            return Ok(());
        }
        while let Some(frame) = self.channel.poll_frame()? {
            if !self.is_sign(&frame) {
                return Err(instead_of(
                    "nothing but signs of life",
                    &frame,
                    &self.channel,
                ));
            }
        }
        Ok(())
    }

    /// The next frame that is more than a sign of life. Each of those gives the destination its time anew.
    pub fn answer(&mut self) -> Result<Frame, MoveError> {
        loop {
            let frame = self.channel.receive()?;
            if !self.is_sign(&frame) {
                return Ok(frame);
            }
            // However many of them there are: a guest that stands still is not kept waiting by them.
            self.channel.in_time("sent signs of life")?;
        }
    }

    /// Waits until everything sent so far has arrived, in a file: until it is on the disk; says how long that took.
    pub fn ping(&mut self, number: u64) -> Result<Duration, MoveError> {
        let began = Instant::now();
        if self.kept {
            self.channel.settle()?;
            return Ok(began.elapsed());
        }
        self.channel.send(&Frame::Ping(number))?;
        match self.answer()? {
            Frame::Pong(answer) if answer == number => Ok(began.elapsed()),
            frame => Err(instead_of("its answer to PING", &frame, &self.channel)),
        }
    }

    fn is_sign(&mut self, frame: &Frame) -> bool {
        let sign = *frame == Frame::Pong(SIGN_OF_LIFE) && self.open > 0;
        self.open -= u32::from(sign);
        sign
    }
}
