//! Where the guest's serial port meets the world: the terminal, a file, or a socket.
//!
//! Two rules govern this room. The guest never waits for a reader: what it writes goes into a bounded ring that a
//! thread empties, and what does not fit is dropped, oldest first, with a note in its place. And the terminal is
//! given back as it was found, whichever way the process ends.
//!
//! ```text
//! vCPU ──write──▶ Output ─ring─▶ console thread ──▶ stdout, file or client
//! main ◀─take()── Input ◀─queue─ console thread ◀── stdin or client
//! ```

mod escape;
mod input;
mod ring;
mod signals;
mod sink;
mod socket;
mod terminal;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::config::SerialConfig;
use crate::control::socket::{OwnedSocket, SocketError};

pub use escape::{Escape, HELP, Typed};
pub use input::{Input, Taken};
pub use ring::Output;
pub use signals::Signals;
pub use terminal::RawTerminal;

use ring::{Ring, WhenFull};

/// How long the end waits for output that is still to be written.
const DRAIN: Duration = Duration::from_secs(1);

/// Why there is no console.
#[derive(Debug, Error)]
pub enum ConsoleError {
    /// The file cannot be made.
    #[error("cannot open {} for the serial port; take a file in a folder that exists and that you may write to", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket does not listen.
    #[error("cannot open the socket of the serial port")]
    Socket(#[from] SocketError),
    /// The terminal, a thread or a descriptor was refused.
    #[error("cannot set up the serial console")]
    Setup(#[from] io::Error),
}

/// An open console. Dropping it writes out what is left (for a second at most) and gives the terminal back.
#[derive(Debug)]
pub struct Console {
    ring: Option<Arc<Ring>>,
    input: Option<Arc<Input>>,
    /// Dropped to end the thread that waits for input.
    stop: Option<UnixStream>,
    terminal: Option<RawTerminal>,
}

/// What the configuration asks for, open, with no thread yet.
#[derive(Debug)]
pub enum Opened {
    /// Standard input and output.
    Stdio,
    /// A file.
    File(File),
    /// A socket that listens.
    Socket(OwnedSocket),
    /// Nothing.
    None,
}

impl Opened {
    /// Opens it: all that takes a path.
    ///
    /// # Errors
    /// See [`ConsoleError`].
    pub fn open(config: &SerialConfig) -> Result<Self, ConsoleError> {
        Ok(match config {
            SerialConfig::None => Self::None,
            SerialConfig::Stdio => Self::Stdio,
            SerialConfig::File(path) => {
                let failed = |source| ConsoleError::File {
                    path: path.clone(),
                    source,
                };
                Self::File(File::create(path).map_err(failed)?)
            }
            SerialConfig::Socket(path) => Self::Socket(OwnedSocket::listen(path)?),
        })
    }
}

impl Console {
    /// Opens what the configuration asks for, and starts.
    ///
    /// # Errors
    /// See [`ConsoleError`]; the terminal is as it was.
    pub fn open(config: &SerialConfig) -> Result<Self, ConsoleError> {
        Self::start(Opened::open(config)?)
    }

    /// Starts on what is open.
    ///
    /// # Errors
    /// See [`ConsoleError`]; the terminal is as it was.
    pub fn start(opened: Opened) -> Result<Self, ConsoleError> {
        match opened {
            Opened::None => Ok(Self {
                ring: None,
                input: None,
                stop: None,
                terminal: None,
            }),
            Opened::File(file) => {
                // A regular file takes everything without delay; a pipe or a terminal may not.
                let when_full = if file.metadata()?.is_file() {
                    WhenFull::Wait
                } else {
                    WhenFull::DropOldest
                };
                let ring = Ring::new(when_full)?;
                sink::start(Arc::clone(&ring), file)?;
                Ok(Self {
                    ring: Some(ring),
                    input: None,
                    stop: None,
                    terminal: None,
                })
            }
            Opened::Socket(listener) => {
                let ring = Ring::new(WhenFull::DropOldest)?;
                let input = Input::new()?;
                let (stop, stopped) = UnixStream::pair()?;
                socket::start(listener, Arc::clone(&ring), Arc::clone(&input), stopped)?;
                Ok(Self {
                    ring: Some(ring),
                    input: Some(input),
                    stop: Some(stop),
                    terminal: None,
                })
            }
            Opened::Stdio => Self::stdio(),
        }
    }

    fn stdio() -> Result<Self, ConsoleError> {
        let stdin = io::stdin().as_fd().try_clone_to_owned()?;
        let stdout: OwnedFd = io::stdout().as_fd().try_clone_to_owned()?;
        let ring = Ring::new(WhenFull::DropOldest)?;
        let input = Input::new()?;
        let (stop, stopped) = UnixStream::pair()?;
        let terminal = RawTerminal::enter()?;
        if terminal.is_some() {
            let _ = writeln!(io::stderr(), "{HELP}");
        }
        sink::start(Arc::clone(&ring), File::from(stdout))?;
        // In the background of a shell, reading the terminal would stop the whole process (SIGTTIN).
        if terminal.is_some() || !terminal::is_background() {
            let escape = terminal.is_some().then(Escape::default);
            input::start(stdin, escape, Arc::clone(&input), stopped)?;
        }
        Ok(Self {
            ring: Some(ring),
            input: Some(input),
            stop: Some(stop),
            terminal,
        })
    }

    /// Where the guest's output goes. It never blocks for long.
    pub fn output(&self) -> Output {
        Output::new(self.ring.clone())
    }

    /// Whether somebody types it, rather than a program that may be ahead of its guest.
    pub fn is_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// Where the guest's input comes from, if there is any.
    pub fn input(&self) -> Option<&Arc<Input>> {
        self.input.as_ref()
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some(input) = &self.input {
            input.close();
        }
        if let Some(ring) = &self.ring {
            ring.close();
        }
        drop(self.stop.take());
        if let Some(ring) = &self.ring
            && !ring.wait_drained(DRAIN)
        {
            tracing::warn!("the reader of the serial port does not read: its last output is lost");
        }
        drop(self.terminal.take());
    }
}

#[cfg(test)]
mod tests;
