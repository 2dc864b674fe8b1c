//! What a process with a guest has under a path of its own: opened before it gives up opening, used by threads that
//! start afterwards.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::MachineError;
use super::supervisor::Supervisor;
use crate::config::SerialConfig;
use crate::console::{Console, Opened, Signals};
use crate::control::socket::OwnedSocket;
use crate::control::{self, ControlServer, Footprint};
use crate::sandbox::Reach;

/// The control socket and the serial port's other end.
pub struct Paths {
    control: Option<OwnedSocket>,
    console: Opened,
    /// Sockets, whose files go with them.
    sockets: Vec<PathBuf>,
    /// Where whoever asks by the control socket reads how much memory this takes.
    footprint: Option<Arc<Footprint>>,
}

impl Paths {
    /// Opens them.
    ///
    /// # Errors
    /// One of them cannot be used.
    pub fn open(control: Option<&Path>, serial: &SerialConfig) -> Result<Self, MachineError> {
        let mut sockets: Vec<PathBuf> = control.map(Path::to_owned).into_iter().collect();
        if let SerialConfig::Socket(path) = serial {
            sockets.push(path.clone());
        }
        let footprint = control.and_then(|_| {
            let opened = Footprint::open();
            opened
                .inspect_err(|error| tracing::warn!("no metrics of memory: {error}"))
                .ok()
        });
        let control = control.map(OwnedSocket::listen).transpose();
        Ok(Self {
            control: control.map_err(control::ControlError::from)?,
            console: Opened::open(serial)?,
            sockets,
            footprint: footprint.map(Arc::new),
        })
    }

    /// What of them the process still needs later. Only by a control socket is a guest ever moved away.
    pub fn reach(&self) -> Reach {
        Reach {
            removes: self.sockets.clone(),
            connects: self.control.is_some(),
        }
    }

    /// Starts their threads.
    ///
    /// # Errors
    /// No thread or file descriptor can be had.
    pub fn supervisor(self, signals: Signals) -> Result<Supervisor, MachineError> {
        let (sender, calls) = control::calls().map_err(MachineError::host("make a queue"))?;
        let serve = |socket| ControlServer::serve(socket, sender);
        let server = self.control.map(serve).transpose()?;
        let console = Console::start(self.console)?;
        let mut supervisor = Supervisor::new(signals, console, calls, server)?;
        supervisor.footprint = self.footprint;
        Ok(supervisor)
    }
}
