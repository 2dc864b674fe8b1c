//! What a process prints, line by line, as it comes.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::lock;

/// The lines printed so far. Clones see the same lines.
#[derive(Debug, Clone, Default)]
pub struct Lines(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<String>,
    /// What came after the last end of a line. A guest's console may stop in mid-line when the guest moves.
    open: String,
    ended: bool,
}

impl Lines {
    /// Collects what a process prints, until it closes the pipe.
    pub fn collect(from: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let shared = Arc::clone(&lines.0);
        thread::spawn(move || {
            let mut from = BufReader::new(from);
            let mut bytes = Vec::new();
            while let Ok(1..) = from.read_until(b'\n', &mut bytes) {
                let text = String::from_utf8_lossy(&bytes);
                let mut state = lock(&shared.state);
                match text.strip_suffix('\n') {
                    Some(line) => state.lines.push(line.trim_end().to_owned()),
                    None => state.open = text.into_owned(),
                }
                shared.changed.notify_all();
                drop(state);
                bytes.clear();
            }
            let mut state = lock(&shared.state);
            state.ended = true;
            shared.changed.notify_all();
        });
        lines
    }

    /// The number of lines so far: a place to wait from.
    pub fn count(&self) -> usize {
        self.with(|state| state.lines.len())
    }

    /// A copy of the lines from `start` on.
    pub fn since(&self, start: usize) -> Vec<String> {
        self.with(|state| state.lines.get(start..).unwrap_or_default().to_vec())
    }

    /// All of it, a line that is not ended included.
    pub fn text(&self) -> String {
        self.with(|state| {
            let lines = state.lines.iter().flat_map(|line| [line.as_str(), "\n"]);
            lines.chain([state.open.as_str()]).collect()
        })
    }

    /// The last few lines, for error messages.
    pub fn tail(&self) -> String {
        self.with(|state| {
            let start = state.lines.len().saturating_sub(25);
            state.lines[start..]
                .iter()
                .chain([&state.open])
                .filter(|line| !line.is_empty())
                .map(|line| format!("  {line}\n"))
                .collect()
        })
    }

    /// The first line from `start` on that `wanted` takes; `None` once the time is over or nothing more can
    /// come.
    pub fn wait(
        &self,
        start: usize,
        limit: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Option<String> {
        let deadline = Instant::now() + limit;
        let mut state = lock(&self.0.state);
        let mut next = start;
        loop {
            while let Some(line) = state.lines.get(next) {
                if wanted(line) {
                    return Some(line.clone());
                }
                next += 1;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                return None;
            }
            state = self
                .0
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits until all that was printed is here: the process has closed the pipe. False if it takes longer.
    pub fn wait_closed(&self, limit: Duration) -> bool {
        self.wait(self.count(), limit, |_| false);
        self.with(|state| state.ended)
    }

    fn with<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&lock(&self.0.state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a line only after a while, as a busy machine does.
    struct Late(Option<&'static [u8]>);

    impl Read for Late {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            thread::sleep(Duration::from_millis(50));
            let bytes = self.0.take().unwrap_or_default();
            buffer[..bytes.len()].copy_from_slice(bytes);
            Ok(bytes.len())
        }
    }

    #[test]
    fn the_last_line_is_waited_for() {
        let lines = Lines::collect(Late(Some(b"first\nKernel panic")));
        assert!(!lines.wait_closed(Duration::ZERO));
        assert!(lines.wait_closed(Duration::from_secs(60)));
        assert_eq!(lines.text(), "first\nKernel panic");
    }
}
