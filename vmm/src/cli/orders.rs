//! `ferry pause`, `resume`, `cancel` and `stop`: one request each.

use std::path::PathBuf;

use super::error::Failure;
use super::exit;
use crate::control::client::{Client, ClientError};

/// The VM that is meant.
#[derive(Debug, clap::Args)]
pub struct Vm {
    /// The VM's control socket, as given to its `ferry run`, `ferry receive` or `ferry restore`
    #[arg(long, value_name = "SOCKET")]
    control: PathBuf,
}

impl Vm {
    /// A client of its socket.
    pub fn client(&self) -> Client {
        Client::new(&self.control)
    }

    /// Sends one order; a refusal is an error.
    fn order(&self, order: impl FnOnce(&Client) -> Result<(), ClientError>) -> Result<u8, Failure> {
        order(&self.client()).map_err(Failure::error)?;
        Ok(exit::OK)
    }
}

/// Stop the guest's vCPUs and devices; `ferry resume` lets them go on
#[derive(Debug, clap::Args)]
pub struct PauseArgs {
    #[command(flatten)]
    vm: Vm,
}

/// Let a paused guest go on
#[derive(Debug, clap::Args)]
#[command(after_help = "\
After a move whose outcome is unknown, look at the destination first: if the guest runs there,
`ferry stop` this one; if it has none and waits, or is surely dead, `ferry resume --force` lets it
go on here. While it says that it is receiving, wait: within its peer timeout it has the guest or
has not. Two running copies of one guest destroy its disks.")]
pub struct ResumeArgs {
    #[command(flatten)]
    vm: Vm,

    /// Also after a move whose outcome is unknown: I made sure that the guest does not run on the destination
    #[arg(long)]
    force: bool,
}

/// Cancel what is under way (a move, in or out, a snapshot, a measurement); the guest stays where it is
#[derive(Debug, clap::Args)]
pub struct CancelArgs {
    #[command(flatten)]
    vm: Vm,
}

/// End the guest at once, as by pulling the plug, and its process
#[derive(Debug, clap::Args)]
pub struct StopArgs {
    #[command(flatten)]
    vm: Vm,
}

impl PauseArgs {
    pub(super) fn run(self) -> Result<u8, Failure> {
        self.vm.order(Client::pause)
    }
}

impl ResumeArgs {
    pub(super) fn run(self) -> Result<u8, Failure> {
        self.vm.order(|client| client.resume(self.force))
    }
}

impl CancelArgs {
    pub(super) fn run(self) -> Result<u8, Failure> {
        self.vm.order(Client::cancel)
    }
}

impl StopArgs {
    pub(super) fn run(self) -> Result<u8, Failure> {
        self.vm.order(Client::stop)
    }
}
