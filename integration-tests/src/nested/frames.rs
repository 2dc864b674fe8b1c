//! What the runner and the init program of the nested host say to each other.
//!
//! One virtio-serial port carries frames both ways: `{kind: u8, length: u32 little endian, bytes}`. The
//! runner sends [`Frame::Run`], the other side streams [`Frame::Stdout`] and [`Frame::Stderr`] and closes
//! with [`Frame::Ended`]. One command at a time. All the while the other side says [`Frame::Alive`], so that a
//! machine that stands still is told from a command that takes long.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The most bytes in one frame. An argument list of the kernel is at most 2 MiB.
const MAX_LENGTH: u32 = 4 << 20;

/// A command to be run in the nested host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Its whole environment.
    pub env: BTreeMap<String, String>,
    /// Where it starts.
    pub cwd: PathBuf,
    /// After this time it says what each process is doing, and is ended.
    pub limit: Option<Duration>,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// It exited with this status.
    Exited(i32),
    /// This signal ended it.
    Signaled(i32),
    /// It was not found or could not be executed; the reason went to stderr.
    NotStarted,
}

impl Ended {
    /// The status that a shell would give: 127 for a command that did not start, 128 + n for signal n.
    pub fn status(self) -> i32 {
        match self {
            Self::Exited(status) => status,
            Self::Signaled(signal) => 128 + signal,
            Self::NotStarted => 127,
        }
    }
}

/// What the nested host says of itself when it is up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Release of its kernel.
    pub kernel: String,
    /// API version of its `/dev/kvm`, or why there is none.
    pub kvm: Result<i32, String>,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// From inside: the host is up.
    Ready(Ready),
    /// To inside: run this.
    Run(Command),
    /// From inside: bytes of the command's standard output.
    Stdout(Vec<u8>),
    /// From inside: bytes of the command's standard error.
    Stderr(Vec<u8>),
    /// From inside: the command and everything that it left behind are gone.
    Ended(Ended),
    /// From inside, every [`ALIVE_PERIOD`] from then on that it is ready: its kernel still schedules.
    Alive,
}

/// How often the nested host says that it lives.
pub const ALIVE_PERIOD: Duration = Duration::from_secs(2);

const READY: u8 = 1;
const RUN: u8 = 2;
const STDOUT: u8 = 3;
const STDERR: u8 = 4;
const ENDED: u8 = 5;
const ALIVE: u8 = 6;

impl Frame {
    /// Writes the frame in one go.
    ///
    /// # Errors
    /// The port is gone, or the frame is longer than 4 MiB.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let (kind, bytes) = match self {
            Self::Ready(ready) => (READY, serde_json::to_vec(ready)?),
            Self::Run(command) => (RUN, serde_json::to_vec(command)?),
            Self::Stdout(bytes) => (STDOUT, bytes.clone()),
            Self::Stderr(bytes) => (STDERR, bytes.clone()),
            Self::Ended(ended) => (ENDED, serde_json::to_vec(ended)?),
            Self::Alive => (ALIVE, Vec::new()),
        };
        let length = u32::try_from(bytes.len())
            .ok()
            .filter(|&length| length <= MAX_LENGTH)
            .ok_or_else(|| invalid(format!("a frame of {} bytes is too long", bytes.len())))?;
        let mut whole = vec![kind];
        whole.extend_from_slice(&length.to_le_bytes());
        whole.extend_from_slice(&bytes);
        to.write_all(&whole)
    }

    /// Reads one frame.
    ///
    /// # Errors
    /// The port is gone, or what came is not a frame.
    pub fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut header = [0; 5];
        from.read_exact(&mut header)?;
        let [kind, length @ ..] = header;
        let length = u32::from_le_bytes(length);
        if length > MAX_LENGTH {
            return Err(invalid(format!("a frame of {length} bytes is too long")));
        }
        let mut bytes = vec![0; length as usize];
        from.read_exact(&mut bytes)?;
        match kind {
            READY => parse(&bytes).map(Self::Ready),
            RUN => parse(&bytes).map(Self::Run),
            STDOUT => Ok(Self::Stdout(bytes)),
            STDERR => Ok(Self::Stderr(bytes)),
            ENDED => parse(&bytes).map(Self::Ended),
            ALIVE if bytes.is_empty() => Ok(Self::Alive),
            other => Err(invalid(format!("no frame is of kind {other}"))),
        }
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_wire() {
        let command = Command {
            argv: vec!["ls".into(), "-l".into()],
            env: BTreeMap::from([("A".into(), "b".into())]),
            cwd: "/tmp".into(),
            limit: Some(Duration::from_millis(1500)),
        };
        let frames = [
            Frame::Ready(Ready {
                kernel: "6.1".into(),
                kvm: Ok(12),
            }),
            Frame::Run(command),
            Frame::Stdout(vec![0, 255, b'\n']),
            Frame::Stderr(Vec::new()),
            Frame::Ended(Ended::Signaled(9)),
            Frame::Alive,
        ];
        let mut wire = Vec::new();
        for frame in &frames {
            frame.write(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        for frame in &frames {
            assert_eq!(&Frame::read(&mut rest).unwrap(), frame);
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn lengths_are_bounded_before_they_are_believed() {
        let error = Frame::read(&mut [STDOUT, 255, 255, 255, 255].as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let error = Frame::read(&mut [77, 0, 0, 0, 0].as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
