//! The signals that ask a process to end, as something to poll.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// SIGINT, SIGTERM, SIGHUP and SIGQUIT, blocked and readable here instead, so that whoever gets one ends in order: the
/// guest stopped, the terminal and the taps given back.
///
/// To be made before any thread: threads inherit the mask, and a thread without it would take the signal the old way.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
    before: SigSet,
}

impl Signals {
    /// Blocks them in this thread and in those that it starts from now on.
    ///
    /// # Errors
    /// The process is out of descriptors.
    pub fn block() -> io::Result<Self> {
        let mut set = SigSet::empty();
        for signal in [
            Signal::SIGINT,
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGQUIT,
        ] {
            set.add(signal);
        }
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        // Never taken: a write beyond what a file may have (setrlimit(2)) then fails, and ends nothing.
        set.add(Signal::SIGXFSZ);
        let before = set.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        Ok(Self { fd, before })
    }

    /// The next signal that came, if one did. Never blocks.
    pub fn take(&self) -> Option<Signal> {
        let info = self.fd.read_signal().ok().flatten()?;
        Signal::try_from(i32::try_from(info.ssi_signo).ok()?).ok()
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Signals {
    /// The mask of this thread is what it was before. A signal that still waits is dropped: whoever sent two
    /// (timeout(1) does, to the process and to its group) has got the end in order that the first asked for, and the
    /// exit status.
    fn drop(&mut self) {
        while self.take().is_some() {}
        let _ = self.before.thread_set_mask();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_taken_once_and_ends_nothing() {
        let signals = Signals::block().unwrap();
        assert_eq!(signals.take(), None);
        // raise(3) is to this thread alone: other tests run beside it in the same process.
        nix::sys::signal::raise(Signal::SIGTERM).unwrap();
        assert_eq!(signals.take(), Some(Signal::SIGTERM));
        assert_eq!(signals.take(), None);
        nix::sys::signal::raise(Signal::SIGTERM).unwrap();
        drop(signals);
    }
}
