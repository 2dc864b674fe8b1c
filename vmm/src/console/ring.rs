//! What comes from the guest's serial port: a bounded ring between the vCPU that writes and the thread that hands on.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes kept at most: some thousand lines.
pub(super) const CAPACITY: usize = 256 << 10;

/// What happens to a byte that finds the ring full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WhenFull {
    /// The oldest byte makes room; a note says how many did.
    DropOldest,
    /// The writer waits. Only for a reader that never stops, such as a file.
    Wait,
}

/// The ring.
#[derive(Debug)]
pub(super) struct Ring {
    state: Mutex<State>,
    changed: Condvar,
    when_full: WhenFull,
    /// A byte in it wakes a thread that waits in poll(2) for more than the ring.
    bell: UnixStream,
    ring_bell: UnixStream,
}

#[derive(Debug, Default)]
struct State {
    bytes: VecDeque<u8>,
    /// Dropped since the last note.
    lost: u64,
    /// No more will be written.
    closed: bool,
    /// The thread that hands on has ended.
    drained: bool,
}

impl Ring {
    pub(super) fn new(when_full: WhenFull) -> io::Result<Arc<Self>> {
        let (bell, ring_bell) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        ring_bell.set_nonblocking(true)?;
        Ok(Arc::new(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            when_full,
            bell,
            ring_bell,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The ring is whole at any moment, whoever panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the bytes, by the rule of this ring.
    pub(super) fn push(&self, bytes: &[u8]) {
        let mut state = self.lock();
        let mut was_empty = state.bytes.is_empty();
        for &byte in bytes {
            if state.bytes.len() >= CAPACITY {
                match self.when_full {
                    WhenFull::DropOldest => {
                        state.bytes.pop_front();
                        state.lost += 1;
                    }
                    WhenFull::Wait => {
                        self.changed.notify_all();
                        while state.bytes.len() >= CAPACITY && !state.drained {
                            state = self.wait(state);
                        }
                        was_empty |= state.bytes.is_empty();
                    }
                }
            }
            if state.drained {
                return;
            }
            state.bytes.push_back(byte);
        }
        drop(state);
        if was_empty {
            self.changed.notify_all();
            // Full means that it rings already.
            let _ = (&self.ring_bell).write(&[1]);
        }
    }

    /// All that is there, with a note first where something was dropped. Never waits.
    pub(super) fn take(&self) -> Vec<u8> {
        let mut state = self.lock();
        self.take_from(&mut state)
    }

    fn take_from(&self, state: &mut State) -> Vec<u8> {
        let mut bytes = Vec::new();
        if state.lost > 0 {
            let lost = std::mem::take(&mut state.lost);
            bytes.extend_from_slice(
                format!(
                    "\r\n[ferry: {lost} bytes of output dropped: nobody read them in time]\r\n"
                )
                .as_bytes(),
            );
        }
        bytes.extend(state.bytes.drain(..));
        self.changed.notify_all();
        bytes
    }

    /// Waits for something and takes it; None when the ring is closed and empty.
    pub(super) fn next(&self) -> Option<Vec<u8>> {
        let mut state = self.lock();
        loop {
            if !state.bytes.is_empty() {
                return Some(self.take_from(&mut state));
            }
            if state.closed {
                return None;
            }
            state = self.wait(state);
        }
    }

    /// Says that the thread that hands on has ended: what is written from now on goes nowhere.
    pub(super) fn set_drained(&self) {
        let mut state = self.lock();
        state.drained = true;
        state.bytes.clear();
        drop(state);
        self.changed.notify_all();
    }

    /// Says that nothing more will be written.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
        let _ = (&self.ring_bell).write(&[1]);
    }

    /// Waits until everything was handed on; false if it takes longer.
    pub(super) fn wait_drained(&self, within: Duration) -> bool {
        let until = Instant::now() + within;
        let mut state = self.lock();
        while !state.drained {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = match self.changed.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        true
    }

    /// Readable when something was written to the empty ring, or it was closed.
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Quiets the bell; to be called before [`take`](Self::take).
    pub(super) fn quiet(&self) {
        use std::io::Read;
        let mut bytes = [0; 64];
        while (&self.bell)
            .read(&mut bytes)
            .is_ok_and(|count| count == bytes.len())
        {}
    }
}

/// The guest's end of the ring; without a ring, what is written vanishes.
#[derive(Debug, Clone)]
pub struct Output(Option<Arc<Ring>>);

impl Output {
    pub(super) fn new(ring: Option<Arc<Ring>>) -> Self {
        Self(ring)
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(ring) = &self.0 {
            ring.push(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_comes_out_as_it_went_in() {
        let ring = Ring::new(WhenFull::DropOldest).unwrap();
        let mut output = Output::new(Some(Arc::clone(&ring)));
        output.write_all(b"one ").unwrap();
        output.write_all(b"two").unwrap();
        assert_eq!(ring.next().unwrap(), b"one two");
        assert!(ring.take().is_empty());
        ring.push(b"three");
        ring.close();
        assert_eq!(ring.next().unwrap(), b"three");
        assert_eq!(ring.next(), None);
    }

    #[test]
    fn the_newest_is_kept_and_the_gap_is_told() {
        let ring = Ring::new(WhenFull::DropOldest).unwrap();
        ring.push(&vec![b'a'; CAPACITY]);
        ring.push(b"end");
        let bytes = ring.take();
        let text = String::from_utf8(bytes).unwrap();
        assert!(
            text.starts_with("\r\n[ferry: 3 bytes of output dropped"),
            "{}",
            &text[..60]
        );
        assert!(text.ends_with("aend"));
        assert_eq!(text.split_once("]\r\n").unwrap().1.len(), CAPACITY);
        // Told once.
        ring.push(b"next");
        assert_eq!(ring.take(), b"next");
    }

    #[test]
    fn a_file_loses_nothing() {
        let ring = Ring::new(WhenFull::Wait).unwrap();
        let writer = Arc::clone(&ring);
        let total = CAPACITY * 3 + 17;
        let thread = std::thread::spawn(move || {
            writer.push(&vec![b'x'; total]);
            writer.close();
        });
        let mut seen = 0;
        while let Some(bytes) = ring.next() {
            assert!(bytes.iter().all(|byte| *byte == b'x'));
            seen += bytes.len();
        }
        thread.join().unwrap();
        assert_eq!(seen, total);
    }

    #[test]
    fn a_writer_is_let_go_when_the_reader_ends() {
        let ring = Ring::new(WhenFull::Wait).unwrap();
        let writer = Arc::clone(&ring);
        let thread = std::thread::spawn(move || writer.push(&vec![0; CAPACITY * 2]));
        ring.set_drained();
        thread.join().unwrap();
        assert!(ring.wait_drained(Duration::ZERO));
    }
}
