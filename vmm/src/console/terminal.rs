//! The terminal in raw mode, and back.
//!
//! Given back on every way out: by the guard's drop, which unwinding runs as well; by the panic hook, so that the
//! message of a panic can be read; and by atexit(3), for a process that ends by `exit`. Signals that end a process
//! are read from a descriptor (see [`Signals`](super::Signals)) and lead to the first of these.

#![allow(unsafe_code, reason = "atexit has no safe wrapper")]

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::sync::{Mutex, Once, PoisonError};

use nix::sys::termios::{
    LocalFlags, OutputFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr,
};
use nix::unistd::{getpgrp, tcgetpgrp};

/// How the terminal was before; empty while it is as it should be.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Standard input's terminal in raw mode: every key goes to the guest, Ctrl-C too. There is one at a time.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Takes the terminal of standard input, if it is one and ours to take.
    ///
    /// # Errors
    /// The terminal does not let itself be set; it is as it was.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() || is_background() {
            return Ok(None);
        }
        let mut before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
        if before.is_some() {
            return Ok(None);
        }
        let found = tcgetattr(stdin.as_fd())?;
        let mut raw = found.clone();
        cfmakeraw(&mut raw);
        // Our own messages end lines with a newline alone; the guest's carriage returns do no harm twice.
        raw.output_flags |= OutputFlags::OPOST | OutputFlags::ONLCR;
        debug_assert!(!raw.local_flags.contains(LocalFlags::ISIG));
        tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &raw)?;
        *before = Some(found);
        drop(before);
        guard_other_exits();
        Ok(Some(Self(())))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Whether this process has a terminal on standard input but another one owns it (a shell's background job).
pub(super) fn is_background() -> bool {
    let stdin = io::stdin();
    stdin.is_terminal() && tcgetpgrp(stdin.as_fd()).is_ok_and(|group| group != getpgrp())
}

/// Gives the terminal back, once.
fn restore() {
    // Never waits: at exit another thread may hold the lock for good. Then it is that thread that restores.
    let before = match BEFORE.try_lock() {
        Ok(mut before) => before.take(),
        Err(std::sync::TryLockError::Poisoned(before)) => before.into_inner().take(),
        Err(std::sync::TryLockError::WouldBlock) => None,
    };
    if let Some(before) = before {
        // Not drained: a reader that has stopped reading must not hold up the end.
        let _ = tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, &before);
    }
}

extern "C" fn restore_at_exit() {
    restore();
}

fn guard_other_exits() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            others(info);
        }));
        // SAFETY: the function is `extern "C"`, takes nothing, lives as long as the program and does not unwind: it
        // only locks without waiting and calls tcsetattr. A full table (the error) leaves the other two ways.
        let _ = unsafe { libc::atexit(restore_at_exit) };
    });
}
