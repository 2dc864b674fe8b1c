//! `--log` and `--log-format` of run and receive.

use crate::log::{self, Format, Level};

/// How a process that stays tells what happens.
#[derive(Debug, clap::Args)]
pub(super) struct Flags {
    /// Tell what happens inside, from this level on: error, warn, info, debug or trace; by part, info,migration=debug
    /// [default: what FERRY_LOG in the environment says, else warn]
    #[arg(long, value_name = "LEVEL")]
    log: Option<Level>,

    /// How messages are written to standard error: text, or json (one object a line)
    #[arg(long, value_name = "HOW", default_value = "text")]
    log_format: Format,
}

impl Flags {
    /// Starts the log so.
    pub fn start(&self) {
        log::start(self.log_format, self.log.as_ref());
    }
}
