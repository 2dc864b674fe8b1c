//! The server's side of the control socket: who may ask, and one thread a request.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use migration::cancel::CancelToken;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use serde_json::json;
use thiserror::Error;

use super::command::{CallSender, Reply};
use super::event::MoveEvent;
use super::http::{self, ReadError, Refusal};
use super::metrics;
use super::passed::Incoming;
use super::router::{Asked, OPENAPI, route};
use super::socket::{OwnedSocket, SocketError, check_peer};
use crate::sandbox::{self, Kind};

/// The most connections at a time; the next is told to come again.
const MAX_CONNECTIONS: usize = 16;
/// How long a request may take to come in, and a piece of the response to be taken.
const PATIENCE: Duration = Duration::from_secs(5);
/// Whether the client is still there is looked so often while something is measured for it.
const GLANCE: Duration = Duration::from_millis(100);
/// How long the main thread may take for an answer; a pause or the start of a move takes milliseconds.
const ANSWER_TIME: Duration = Duration::from_secs(30);

/// Why there is no control socket.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The socket does not listen.
    #[error("cannot open the control socket")]
    Socket(#[from] SocketError),
    /// No descriptor or no thread for it.
    #[error("cannot start the thread of the control socket")]
    Start(#[source] io::Error),
}

/// A listening control socket. Dropping it closes it and removes its file; requests under way go on.
#[derive(Debug)]
pub struct ControlServer {
    /// Dropped to end the thread: the other end of the pair becomes readable.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
    busy: Arc<Busy>,
}

/// How many connections there are, and how many of them have a request that was not answered yet.
#[derive(Debug, Default)]
struct Busy {
    counts: Mutex<Counts>,
    changed: Condvar,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    open: usize,
    asked: usize,
}

impl Busy {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        // The counts are whole at any moment, whoever panicked.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

/// One of the connections; gives its place back when dropped, also by a panic.
struct Place {
    busy: Arc<Busy>,
    asked: bool,
}

impl Place {
    fn take(busy: &Arc<Busy>) -> Option<Self> {
        let mut counts = busy.lock();
        if counts.open >= MAX_CONNECTIONS {
            return None;
        }
        counts.open += 1;
        Some(Self {
            busy: Arc::clone(busy),
            asked: false,
        })
    }

    fn asked(&mut self) {
        self.asked = true;
        self.busy.change(|counts| counts.asked += 1);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let asked = usize::from(self.asked);
        self.busy.change(|counts| {
            counts.open -= 1;
            counts.asked -= asked;
        });
    }
}

impl ControlServer {
    /// Listens on `path` and hands what comes to `calls`.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn start(path: &Path, calls: CallSender) -> Result<Self, ControlError> {
        Self::serve(OwnedSocket::listen(path)?, calls)
    }

    /// The same with a socket that listens already.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn serve(socket: OwnedSocket, calls: CallSender) -> Result<Self, ControlError> {
        let (stop, stopped) = UnixStream::pair().map_err(ControlError::Start)?;
        let busy = Arc::new(Busy::default());
        let counts = Arc::clone(&busy);
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                sandbox::enter(Kind::Control);
                listen(&socket, &stopped, &calls, &counts);
            })
            .map_err(ControlError::Start)?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
            busy,
        })
    }

    /// Takes no more requests, and waits until those that were made are answered, at most for `within`. To be called
    /// before the process ends, after the last answer was given.
    pub fn finish(mut self, within: Duration) {
        self.close();
        let until = Instant::now() + within;
        let mut counts = self.busy.lock();
        while counts.asked > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!(requests = counts.asked, "left without their whole answer");
                break;
            }
            counts = match self.busy.changed.wait_timeout(counts, left) {
                Ok((counts, _)) => counts,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    fn close(&mut self) {
        if let Some(thread) = self.thread.take() {
            drop(self.stop.take());
            let _ = thread.join();
        }
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.close();
    }
}

/// Takes connections until told to stop.
fn listen(socket: &OwnedSocket, stop: &UnixStream, calls: &CallSender, busy: &Arc<Busy>) {
    loop {
        let mut fds = [
            PollFd::new(stop.as_fd(), PollFlags::POLLIN),
            PollFd::new(socket.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => {
                tracing::error!(%error, "the control socket cannot be waited for any more");
                return;
            }
        }
        if fds[0].any().unwrap_or(false) {
            return;
        }
        match socket.accept() {
            Ok(stream) => take(stream, calls, busy),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                // Out of descriptors: the client still waits in the queue, so without a rest this would spin.
                tracing::warn!(%error, "a control connection was not accepted");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

/// Gives a connection its thread, or sends it away.
fn take(stream: UnixStream, calls: &CallSender, busy: &Arc<Busy>) {
    let _ = stream.set_write_timeout(Some(PATIENCE));
    let Some(place) = Place::take(busy) else {
        let text = format!("{MAX_CONNECTIONS} connections are open already: try again");
        refuse(&stream, &Refusal::new(503, text));
        return;
    };
    let calls = calls.clone();
    let spawned = std::thread::Builder::new()
        .name("control-client".to_owned())
        .spawn(move || {
            sandbox::enter(Kind::ControlClient);
            serve(&stream, &calls, place);
        });
    if let Err(error) = spawned {
        tracing::warn!(%error, "no thread for a control connection");
    }
}

/// One request, one response.
fn serve(stream: &UnixStream, calls: &CallSender, mut place: Place) {
    if let Err(text) = check_peer(stream) {
        return refuse(stream, &Refusal::new(403, text));
    }
    let mut writer = stream;
    let Ok(mut incoming) = Incoming::new(stream, PATIENCE) else {
        let text = "out of file descriptors: try again";
        return refuse(stream, &Refusal::new(503, text));
    };
    let request = match http::read_request(&mut incoming, &mut writer) {
        Ok(request) => http::Request {
            file: incoming.file(),
            ..request
        },
        Err(ReadError::Refused(refusal)) => return refuse(stream, &refusal),
        Err(ReadError::Gone) => return,
    };
    place.asked();
    // The client may be gone; what was asked is done all the same.
    let _ = match route(&request) {
        Ok(Asked::OpenApi) => http::respond(&mut writer, 200, None, OPENAPI),
        Ok(Asked::Command(command)) => answer(&mut writer, &calls.send(*command)),
        Err(refusal) => {
            refuse(stream, &refusal);
            Ok(())
        }
    };
}

fn refuse(stream: &UnixStream, refusal: &Refusal) {
    let body = json!({ "error": refusal.text }).to_string();
    let mut writer = stream;
    let _ = http::respond(&mut writer, refusal.status, refusal.allow.as_deref(), &body);
}

/// Waits for the main thread and writes what it says.
fn answer(writer: &mut &UnixStream, answer: &Receiver<Reply>) -> io::Result<()> {
    let (status, body) = match answer.recv_timeout(ANSWER_TIME) {
        Ok(Reply::Status(status)) => (200, json!(status)),
        Ok(Reply::Metrics(metrics)) => {
            return http::respond_as(writer, metrics::CONTENT_TYPE, &metrics.render());
        }
        Ok(Reply::Done) => (200, json!({})),
        Ok(Reply::Refused(text)) => (409, json!({ "error": text })),
        Ok(Reply::Failed(text)) => (500, json!({ "error": text })),
        Ok(Reply::Moving(events)) => return stream(writer, events, MoveEvent::is_passing),
        Ok(Reply::Measuring(events, cancel)) => return attend(writer, &events, &cancel),
        Ok(Reply::Predicting(events, cancel)) => return attend(writer, &events, &cancel),
        Err(RecvTimeoutError::Disconnected) => {
            (500, json!({ "error": "the VM ended before it answered" }))
        }
        Err(RecvTimeoutError::Timeout) => (
            500,
            json!({ "error": format!("no answer within {} s; it may still be done: ask for the status", ANSWER_TIME.as_secs()) }),
        ),
    };
    http::respond(writer, status, None, &body.to_string())
}

/// Writes what is measured, line by line, until the end, or until the client goes away: then nobody has the guest pay
/// for it any longer.
fn attend<E: Serialize>(
    writer: &mut &UnixStream,
    events: &Receiver<E>,
    cancel: &CancelToken,
) -> io::Result<()> {
    let client = *writer;
    let heard = std::iter::from_fn(|| {
        loop {
            match events.recv_timeout(GLANCE) {
                Ok(event) => return Some(event),
                Err(RecvTimeoutError::Timeout) if !is_gone(client) => {}
                Err(_) => return None,
            }
        }
    });
    let told = stream(writer, heard, |_| false);
    // Done already is done; it is never committed.
    let _ = cancel.cancel();
    told
}

/// Writes what happens, line by line, until the end. If the client goes away a move goes on without a listener; one
/// that does not read at the moment (it was stopped by Ctrl-Z, say) misses what is `passing`, lest it miss the end.
fn stream<E: Serialize>(
    writer: &mut &UnixStream,
    events: impl IntoIterator<Item = E>,
    passing: impl Fn(&E) -> bool,
) -> io::Result<()> {
    http::begin_lines(writer)?;
    for event in events {
        if passing(&event) && !has_room(writer) {
            continue;
        }
        let text = serde_json::to_string(&event).map_err(io::Error::other)?;
        http::line(writer, &text)?;
    }
    http::end_lines(writer)
}

/// Whether the other end is closed altogether. One that only has no more to ask still listens.
fn is_gone(client: &UnixStream) -> bool {
    let mut fds = [PollFd::new(client.as_fd(), PollFlags::empty())];
    // Said without being asked for: POLLHUP, or POLLERR where it has left something unread.
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Whether the other end reads what it is told; there is room for a good deal more where it does not (unix(7): a
/// socket is writable below a quarter of its buffer).
fn has_room(writer: &UnixStream) -> bool {
    let mut fds = [PollFd::new(writer.as_fd(), PollFlags::POLLOUT)];
    poll(&mut fds, PollTimeout::ZERO) != Ok(0)
}
