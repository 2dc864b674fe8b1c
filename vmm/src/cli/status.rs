//! `ferry status`: how a VM is.

use std::io::Write;

use super::error::Failure;
use super::exit;
use super::orders::Vm;
use crate::ui::{self, Style};

/// Show how a VM is: its state, devices, and the move under way
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    vm: Vm,

    /// JSON instead of a table
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self) -> Result<u8, Failure> {
        let client = self.vm.client();
        let text = if self.json {
            let value = client.status_json().map_err(Failure::error)?;
            format!("{value:#}\n")
        } else {
            let status = client.status().map_err(Failure::error)?;
            ui::status_table(&status, Style::of_stdout())
        };
        // A reader that has gone away has seen what it wanted.
        let _ = std::io::stdout().write_all(text.as_bytes());
        Ok(exit::OK)
    }
}
