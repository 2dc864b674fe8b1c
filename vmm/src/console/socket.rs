//! The serial port on a Unix socket: one client at a time. What the guest wrote before it came is kept, as much as
//! the ring holds, and so is what a client leaves unread.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::input::Input;
use super::ring::Ring;
use crate::control::socket::{OwnedSocket, check_peer};
use crate::sandbox::{self, Kind};

/// How long the last output may take to a client at the end.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// How often a full input queue is looked at.
const FULL_WAIT_MS: u16 = 20;

/// Starts the thread; it ends when the other end of `stop` is dropped.
pub(super) fn start(
    listener: OwnedSocket,
    ring: Arc<Ring>,
    input: Arc<Input>,
    stop: UnixStream,
) -> io::Result<()> {
    let port = Port {
        listener,
        ring,
        input,
        client: None,
        pending: Vec::new(),
    };
    std::thread::Builder::new()
        .name("console".to_owned())
        .spawn(move || {
            sandbox::enter(Kind::Console);
            port.run(&stop)
        })
        .map(drop)
}

struct Port {
    listener: OwnedSocket,
    ring: Arc<Ring>,
    input: Arc<Input>,
    client: Option<UnixStream>,
    /// Taken from the ring and not written yet.
    pending: Vec<u8>,
}

/// What poll(2) found.
#[derive(Default)]
struct Found {
    stop: bool,
    knock: bool,
    output: bool,
    input: bool,
    /// The client has hung up, and what it said last cannot be read for want of room.
    gone: bool,
}

impl Port {
    fn run(mut self, stop: &UnixStream) {
        loop {
            self.refill();
            let Ok(found @ Found { stop: false, .. }) = self.wait(stop) else {
                break;
            };
            if found.knock {
                self.accept();
            }
            if found.output {
                self.ring.quiet();
            }
            if found.gone {
                self.client = None;
            }
            if found.input {
                self.read();
            }
            self.write();
        }
        self.last_words();
        self.ring.set_drained();
    }

    fn wait(&self, stop: &UnixStream) -> Result<Found, Errno> {
        let mut fds = vec![
            PollFd::new(stop.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.ring.bell(), PollFlags::POLLIN),
        ];
        let mut timeout = PollTimeout::NONE;
        if let Some(client) = &self.client {
            let mut flags = PollFlags::empty();
            if self.input.room() > 0 {
                flags |= PollFlags::POLLIN;
            } else {
                timeout = PollTimeout::from(FULL_WAIT_MS);
            }
            if !self.pending.is_empty() {
                flags |= PollFlags::POLLOUT;
            }
            fds.push(PollFd::new(client.as_fd(), flags));
        }
        match poll(&mut fds, timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Found::default()),
            Err(error) => return Err(error),
        }
        let any = |index: usize| fds.get(index).is_some_and(|fd| fd.any().unwrap_or(true));
        Ok(Found {
            stop: any(0),
            knock: any(1),
            output: any(2),
            input: any(3),
            gone: self.input.room() == 0
                && fds
                    .get(3)
                    .and_then(PollFd::revents)
                    .is_some_and(|flags| flags.intersects(PollFlags::POLLHUP | PollFlags::POLLERR)),
        })
    }

    fn accept(&mut self) {
        let Ok(stream) = self.listener.accept() else {
            return;
        };
        let refusal = match check_peer(&stream) {
            Err(text) => Some(text),
            Ok(()) if self.client.is_some() => {
                Some("another client has this serial port: try again when it is gone".to_owned())
            }
            Ok(()) => stream
                .set_nonblocking(true)
                .err()
                .map(|error| error.to_string()),
        };
        match refusal {
            None => self.client = Some(stream),
            Some(text) => {
                let _ = stream.set_nonblocking(true);
                let _ = (&stream).write(format!("ferry: {text}\r\n").as_bytes());
            }
        }
    }

    /// One read, no more than the queue has room for, so that queueing never waits.
    fn read(&mut self) {
        let Some(mut client) = self.client.as_ref() else {
            return;
        };
        let mut buffer = [0; 4096];
        let room = self.input.room().min(buffer.len());
        if room == 0 {
            return;
        }
        match client.read(&mut buffer[..room]) {
            Ok(count) if count > 0 => {
                self.input.push(&buffer[..count]);
            }
            Err(error) if is_passing(&error) => {}
            _ => self.client = None,
        }
    }

    /// Takes from the ring what the client is to get next. Without a client the ring keeps everything. It leaves the
    /// ring empty or something pending: either the bell or the client wakes us.
    fn refill(&mut self) {
        if self.client.is_some() && self.pending.is_empty() {
            self.pending = self.ring.take();
        }
    }

    /// As much as the client takes now.
    fn write(&mut self) {
        let Some(mut client) = self.client.as_ref() else {
            return;
        };
        if self.pending.is_empty() {
            return;
        }
        match client.write(&self.pending) {
            Ok(count) => {
                self.pending.drain(..count);
            }
            Err(error) if is_passing(&error) => {}
            Err(_) => self.client = None,
        }
    }

    fn last_words(&mut self) {
        let until = Instant::now() + LAST_WORDS;
        loop {
            self.refill();
            self.write();
            let (Some(client), false) = (&self.client, self.pending.is_empty()) else {
                return;
            };
            let left = until.saturating_duration_since(Instant::now());
            let Ok(left @ 1..) = u16::try_from(left.as_millis()) else {
                return;
            };
            let mut fds = [PollFd::new(client.as_fd(), PollFlags::POLLOUT)];
            let _ = poll(&mut fds, PollTimeout::from(left));
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
