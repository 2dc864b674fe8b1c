//! What goes to the guest's serial port: a short queue between the thread that reads and the main thread.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::escape::{Escape, HELP, Typed};
use crate::sandbox::{self, Kind};

/// Bytes that wait for the guest at most; whoever types or pastes more waits.
const CAPACITY: usize = 4096;

/// The queue. Its descriptor is readable when something new has come.
#[derive(Debug)]
pub struct Input {
    state: Mutex<State>,
    room: Condvar,
    ready: EventFd,
}

#[derive(Debug, Default)]
struct State {
    bytes: VecDeque<u8>,
    quit: bool,
    closed: bool,
}

/// What was taken from the queue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Taken {
    /// For the guest.
    pub bytes: Vec<u8>,
    /// Somebody pressed the keys that end the guest. Told once.
    pub quit: bool,
}

impl Input {
    pub(super) fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            state: Mutex::default(),
            room: Condvar::new(),
            ready: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The queue is whole at any moment, whoever panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes at most `max` bytes and quiets the descriptor. What is left stays queued without making it readable
    /// again: take it when the guest has read what it has.
    pub fn take(&self, max: usize) -> Taken {
        let _ = self.ready.read();
        let mut state = self.lock();
        let count = max.min(state.bytes.len());
        let taken = Taken {
            bytes: state.bytes.drain(..count).collect(),
            quit: std::mem::take(&mut state.quit),
        };
        drop(state);
        self.room.notify_all();
        taken
    }

    /// How many bytes the queue takes at once.
    pub(super) fn room(&self) -> usize {
        CAPACITY - self.lock().bytes.len()
    }

    /// Queues the bytes, waiting for room; false when the console is closed.
    pub(super) fn push(&self, mut bytes: &[u8]) -> bool {
        let mut state = self.lock();
        while !bytes.is_empty() {
            if state.closed {
                return false;
            }
            let count = bytes.len().min(CAPACITY - state.bytes.len());
            if count == 0 {
                state = self
                    .room
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let (now, later) = bytes.split_at(count);
            state.bytes.extend(now);
            bytes = later;
            let _ = self.ready.write(1);
        }
        !state.closed
    }

    fn quit(&self) {
        self.lock().quit = true;
        let _ = self.ready.write(1);
    }

    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.room.notify_all();
    }
}

impl AsRawFd for Input {
    fn as_raw_fd(&self) -> RawFd {
        self.ready.as_raw_fd()
    }
}

/// Starts the thread that reads `source` until its end, or until the other end of `stop` is dropped. The end of the
/// source is nothing to the guest: it just types no more.
pub(super) fn start(
    source: OwnedFd,
    escape: Option<Escape>,
    input: Arc<Input>,
    stop: UnixStream,
) -> io::Result<()> {
    std::thread::Builder::new()
        .name("console-in".to_owned())
        .spawn(move || {
            sandbox::enter(Kind::Console);
            read_all(File::from(source), escape, &input, &stop)
        })
        .map(drop)
}

fn read_all(mut source: File, mut escape: Option<Escape>, input: &Input, stop: &UnixStream) {
    let mut buffer = [0; 1024];
    loop {
        let mut fds = [
            PollFd::new(stop.as_fd(), PollFlags::POLLIN),
            PollFd::new(source.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(_) => return,
        }
        if fds[0].any().unwrap_or(true) {
            return;
        }
        let count = match source.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => count,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) =>
            {
                continue;
            }
            Err(_) => return,
        };
        let bytes = &buffer[..count];
        let typed = match &mut escape {
            Some(escape) => escape.feed(bytes),
            None => Typed {
                guest: bytes.to_vec(),
                ..Typed::default()
            },
        };
        if typed.help {
            let _ = writeln!(io::stderr(), "\n{HELP}");
        }
        // The keys that end the guest must get through although the guest reads nothing.
        if typed.quit {
            input.quit();
            return;
        }
        if !input.push(&typed.guest) {
            return;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn wait_for(input: &Input) -> bool {
        let limit = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while input.lock().bytes.is_empty() && !input.lock().quit {
            if std::time::Instant::now() > limit {
                return false;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        true
    }

    #[test]
    fn a_long_paste_arrives_whole_and_in_order() {
        let input = Input::new().unwrap();
        let (source, far) = UnixStream::pair().unwrap();
        let (_stop, stopped) = UnixStream::pair().unwrap();
        start(source.into(), None, Arc::clone(&input), stopped).unwrap();
        let sent: Vec<u8> = (0..CAPACITY * 4)
            .map(|i| u8::try_from(i % 251).unwrap())
            .collect();
        let paste = sent.clone();
        let thread = std::thread::spawn(move || (&far).write_all(&paste));
        let mut seen = Vec::new();
        while seen.len() < sent.len() && wait_for(&input) {
            assert!(input.room() <= CAPACITY);
            seen.extend(input.take(64).bytes);
        }
        thread.join().unwrap().unwrap();
        assert_eq!(seen, sent);
    }

    #[test]
    fn the_quit_keys_get_through_a_guest_that_reads_nothing() {
        let input = Input::new().unwrap();
        let (source, far) = UnixStream::pair().unwrap();
        let (_stop, stopped) = UnixStream::pair().unwrap();
        start(
            source.into(),
            Some(Escape::default()),
            Arc::clone(&input),
            stopped,
        )
        .unwrap();
        (&far).write_all(b"hi\x01x").unwrap();
        assert!(wait_for(&input));
        // Quit ends what is typed with it: nothing that follows or goes before matters to a guest that ends.
        let limit = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !input.take(0).quit {
            assert!(std::time::Instant::now() < limit);
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    #[test]
    fn the_end_of_the_source_is_nothing() {
        let input = Input::new().unwrap();
        let (source, far) = UnixStream::pair().unwrap();
        let (_stop, stopped) = UnixStream::pair().unwrap();
        (&far).write_all(b"last").unwrap();
        drop(far);
        start(source.into(), None, Arc::clone(&input), stopped).unwrap();
        assert!(wait_for(&input));
        let taken = input.take(100);
        assert_eq!((taken.bytes.as_slice(), taken.quit), (&b"last"[..], false));
        assert_eq!(input.take(100), Taken::default());
    }

    #[test]
    fn a_closed_console_lets_go_of_whoever_types() {
        let input = Input::new().unwrap();
        assert!(input.push(&vec![0; CAPACITY]));
        let other = Arc::clone(&input);
        let thread = std::thread::spawn(move || other.push(b"more"));
        input.close();
        assert!(!thread.join().unwrap());
    }
}
