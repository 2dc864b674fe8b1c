//! A guest out of files: a snapshot that is whole by itself, and those that stand on it, in their order.
//!
//! They are read by what takes a guest from a source, frame for frame; nobody is answered. A file is looked at from its
//! end first: one that was not finished, or is cut, is refused before a guest is made for it. Its digest is known when
//! all of it is read, and until then nothing of it is loaded but memory.

use std::fs::File;
use std::io;
use std::time::Instant;

use thiserror::Error;

use super::alarm::Alarm;
use super::receiver::{Filled, Filling, Means, Receiver};
use super::{ReceiveError, ReceiveOptions};
use crate::cancel::{CancelToken, Cancelled};
use crate::event::Arrival;
use crate::guest::{BlankGuest, Description, GuestError, Host};
use crate::source::chain;
use crate::wire::channel::{Channel, ChannelError};
use crate::wire::file::{FileSource, NotWhole};
use crate::wire::frame::{Frame, Hello, MAX_HELLO, SnapshotId};
use crate::wire::preamble::PreambleError;

/// The guest that a [`Host`] ends up with, paused.
pub type Restored<H> = <<H as Host>::Blank as BlankGuest>::Paused;

/// Why no guest comes out of a file. The text of each says what to do.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// Somebody cancelled it.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// The file cannot be read.
    #[error("cannot read snapshot {name} at byte {offset}; check the disk it is on")]
    Read {
        /// The file.
        name: String,
        /// Where.
        offset: u64,
        /// The system's answer.
        source: io::Error,
    },
    /// It has no end mark.
    #[error(
        "{name} is no snapshot, or one that was not finished, is cut at byte {len}, or has bytes behind its end; take another copy of it, or another snapshot"
    )]
    NoEnd {
        /// The file.
        name: String,
        /// How long it is.
        len: u64,
    },
    /// It is something else, or of another version.
    #[error("{name} cannot be restored; give a file that `ferry snapshot` has written")]
    Foreign {
        /// The file.
        name: String,
        /// What it begins with, or its version.
        source: PreambleError,
    },
    /// Its bytes are not what was written.
    #[error(
        "snapshot {name} is damaged at byte {offset}: {what}; take another copy of it, or another snapshot"
    )]
    Damaged {
        /// The file.
        name: String,
        /// Where that was found out: the damage lies there, or before.
        offset: u64,
        /// What is wrong, with the values.
        what: String,
    },
    /// Files that do not belong together.
    #[error("snapshot {name} {what}")]
    Chain {
        /// The file.
        name: String,
        /// Why not, and what to do.
        what: String,
    },
    /// This host cannot run the guest.
    #[error(transparent)]
    Guest(#[from] GuestError),
}

/// A snapshot that is open; its first frame is read.
#[derive(Debug)]
pub struct Snapshot {
    channel: Channel,
    id: SnapshotId,
    base: Option<SnapshotId>,
}

impl Snapshot {
    /// Opens a snapshot: `file` stands at its beginning, `name` is what people call it.
    ///
    /// # Errors
    /// It is no snapshot, or not a whole one.
    pub fn open(
        file: File,
        name: impl Into<String>,
        cancel: &CancelToken,
    ) -> Result<Self, RestoreError> {
        let name = name.into();
        let source = FileSource::new(file).map_err(|error| match error {
            NotWhole::Io(source) => RestoreError::Read {
                name: name.clone(),
                offset: 0,
                source,
            },
            NotWhole::NoEnd(len) => RestoreError::NoEnd {
                name: name.clone(),
                len,
            },
        })?;
        let patience = ReceiveOptions::default().peer_timeout;
        let channel = Channel::new(Box::new(source), name, patience, cancel);
        let mut channel = channel.map_err(|error| explain(error.into(), "", 0))?;
        let first = channel
            .hear_beginning()
            .and_then(|_| channel.receive())
            .map_err(|error| located(&channel, error))?;
        match first {
            Frame::Snapshot { id, base } => Ok(Self { channel, id, base }),
            frame => Err(unexpected(&channel, &frame, "SNAPSHOT")),
        }
    }

    /// What people call it.
    pub(super) fn name(&self) -> &str {
        self.channel.peer()
    }

    /// Where its next frame begins.
    pub(super) fn position(&self) -> u64 {
        self.channel.position()
    }

    /// Its name, which one that stands on it gives.
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// The snapshot that it stands on.
    pub fn base(&self) -> Option<SnapshotId> {
        self.base
    }

    /// The frame behind the first: what the guest is.
    fn hello(&mut self) -> Result<Hello, RestoreError> {
        let frame = self.channel.receive_up_to(MAX_HELLO);
        match frame.map_err(|error| located(&self.channel, error))? {
            Frame::Hello(hello) if hello.by_descriptor || hello.verify => {
                let what = "HELLO has flags that do not belong into a file".into();
                Err(damaged(&self.channel, what))
            }
            Frame::Hello(hello) => Ok(*hello),
            frame => Err(unexpected(&self.channel, &frame, "HELLO")),
        }
    }

    fn refuse(&self, what: impl Into<String>) -> RestoreError {
        RestoreError::Chain {
            name: self.channel.peer().to_owned(),
            what: what.into(),
        }
    }
}

/// Makes the guest that the last of some snapshots holds, paused. The first has to be whole by itself, and each other
/// to stand on the one before it.
///
/// # Errors
/// There is no guest, and none is left half-made.
pub fn restore<H: Host>(
    host: &mut H,
    mut snapshots: Vec<Snapshot>,
    cancel: &CancelToken,
    events: &mut dyn FnMut(Arrival),
) -> Result<Restored<H>, RestoreError> {
    let hello = agree(&mut snapshots)?;
    let description = hello.description.clone();
    let alarm = Alarm::new().map_err(|error| explain(error.into(), "", 0))?;
    let options = ReceiveOptions::default();
    let mut means = Means {
        host,
        accept: None,
        options: &options,
        alarm: &alarm,
        events,
    };
    let mut hello = Some(hello);
    let mut filled: Option<Filled<H::Blank>> = None;
    for snapshot in &mut snapshots {
        let channel = &mut snapshot.channel;
        let receiver = match (hello.take(), filled.take()) {
            (Some(hello), _) => {
                let waiting = Receiver::Waiting;
                let taken = waiting.take(Frame::Hello(Box::new(hello)), &mut means, channel);
                taken.map_err(|error| located(channel, error))?
            }
            (None, Some(filled)) => {
                let filling = Filling::again(filled.blank, &description, means.alarm)
                    .map_err(|error| located(channel, error))?;
                Receiver::Filling(Box::new(filling))
            }
            (None, None) => break,
        };
        filled = Some(read(receiver, &mut means, channel)?);
    }
    let Some(Filled { blank, state, .. }) = filled else {
        return Err(GuestError::bare("no snapshot was given").into());
    };
    cancel.commit()?;
    let paused = blank.load(&state, Instant::now())?;
    (means.events)(Arrival::Ready);
    Ok(paused)
}

/// Checks that they belong together; gives what the guest is.
pub(super) fn agree(snapshots: &mut [Snapshot]) -> Result<Hello, RestoreError> {
    let mut before: Option<(SnapshotId, Description)> = None;
    let mut first = None;
    for snapshot in snapshots {
        match (snapshot.base, &before) {
            (None, None) => {}
            (Some(_), None) => {
                let what = "holds only what was written since another one: give that one first";
                return Err(snapshot.refuse(what));
            }
            (None, Some(_)) => {
                let what = "is whole by itself, and stands on no other: give it alone, or first";
                return Err(snapshot.refuse(what));
            }
            (Some(base), Some((id, _))) if base != *id => {
                let what = format!(
                    "stands on snapshot {}, not on the one given before it, {}: give all of a chain in their order",
                    hex(base),
                    hex(*id)
                );
                return Err(snapshot.refuse(what));
            }
            (Some(_), Some(_)) => {}
        }
        let hello = snapshot.hello()?;
        if let Some((_, description)) = &before
            && *description != hello.description
        {
            let what = "is of another guest than the one given before it";
            return Err(snapshot.refuse(what));
        }
        before = Some((snapshot.id, hello.description.clone()));
        first.get_or_insert(hello);
    }
    first.ok_or_else(|| GuestError::bare("no snapshot was given").into())
}

/// Reads one file to its end mark, and checks its digest.
fn read<H: Host>(
    mut receiver: Receiver<H>,
    means: &mut Means<'_, H>,
    channel: &mut Channel,
) -> Result<Filled<H::Blank>, RestoreError> {
    loop {
        let frame = channel.receive_up_to(receiver.largest());
        let frame = frame.map_err(|error| located(channel, error))?;
        let taken = receiver.take(frame, means, channel);
        receiver = taken.map_err(|error| located(channel, error))?;
        if let Receiver::Filled(filled) = receiver {
            check_end(channel)?;
            return Ok(*filled);
        }
    }
}

/// Behind STATE: the end mark, and nothing else.
fn check_end(channel: &mut Channel) -> Result<(), RestoreError> {
    let (found, frame) = (channel.position(), channel.receive());
    match frame.map_err(|error| located(channel, error))? {
        Frame::End { bytes, digest } => match channel.kept() {
            Some(kept) if kept.bytes == bytes && bytes == found && kept.digest == digest => Ok(()),
            Some(kept) if kept.bytes == bytes && bytes == found => Err(damaged(
                channel,
                format!(
                    "its digest says {digest:016x}, its bytes have {:016x}",
                    kept.digest
                ),
            )),
            _ => Err(damaged(
                channel,
                format!("an end mark for {bytes} bytes stands behind {found}"),
            )),
        },
        frame => Err(unexpected(channel, &frame, "END")),
    }
}

/// A snapshot's name in digits.
pub fn hex(id: SnapshotId) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn damaged(channel: &Channel, what: String) -> RestoreError {
    RestoreError::Damaged {
        name: channel.peer().to_owned(),
        offset: channel.position(),
        what,
    }
}

fn unexpected(channel: &Channel, frame: &Frame, expected: &str) -> RestoreError {
    unexpected_in(channel.peer(), channel.position(), frame, expected)
}

/// A frame that does not belong where it was found, in a file.
pub(super) fn unexpected_in(
    name: &str,
    offset: u64,
    frame: &Frame,
    expected: &str,
) -> RestoreError {
    RestoreError::Damaged {
        name: name.to_owned(),
        offset,
        what: format!("{} in the place of {expected}", frame.name()),
    }
}

fn located(channel: &Channel, error: impl Into<ReceiveError>) -> RestoreError {
    explain(error.into(), channel.peer(), channel.position())
}

/// What a peer's error means where there is a file.
fn explain(error: ReceiveError, name: &str, offset: u64) -> RestoreError {
    let name = name.to_owned();
    let what = match error {
        ReceiveError::Cancelled(cancelled)
        | ReceiveError::Channel(ChannelError::Cancelled(cancelled)) => return cancelled.into(),
        ReceiveError::Guest(error) => return error.into(),
        ReceiveError::Channel(ChannelError::Io { source, .. }) => {
            return RestoreError::Read {
                name,
                offset,
                source,
            };
        }
        ReceiveError::Channel(ChannelError::Preamble(source)) => {
            return RestoreError::Foreign { name, source };
        }
        ReceiveError::Channel(ChannelError::Closed { .. }) => "it ends in a frame".to_owned(),
        ReceiveError::Channel(ChannelError::Frame { source, .. }) => source.to_string(),
        ReceiveError::Pages { what, .. } => what,
        ReceiveError::Packed { source, .. } => chain(&source),
        ReceiveError::Unexpected {
            frame, expected, ..
        } => format!("{frame} in the place of {expected}"),
        ReceiveError::Aborted { reason, .. } => format!("it was given up: {reason}"),
        error => chain(&error),
    };
    RestoreError::Damaged { name, offset, what }
}
