//! `ferry predict`: what a move would cost, of a running guest or of one that is only described.

mod offline;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use migration::predict::{Prediction, predict};
use thiserror::Error;

use self::offline::Described;
use super::error::Failure;
use super::exit;
use super::migrate::millis;
use super::wanted::Wanted;
use crate::config::Target;
use crate::control::client::{Client, ClientError};
use crate::control::{PredictEvent, PredictRequest};
use crate::log;
use crate::ui::{self, Style};
use crate::units::Span;

/// Say what a move would cost, without making it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  A running guest and a waiting receiver: watches the one for 8 s, measures the link for 3 s:
    ferry predict --control /tmp/a.sock tcp:127.0.0.1:7000 --downtime 50ms
  A guest that is only described:
    ferry predict --memory 256G --link 40Gbit --dirty-rate 400MB/s --working-set 8G --pattern hot
  The same by the curve that `ferry dirty-rate` shows, or by the file that its --json gives:
    ferry predict --memory 4G --link 10Gbit \\
        --dirty-curve 125ms:2507,250ms:5030,500ms:9800,1s:18300,2s:31000
    ferry predict --memory 4G --link 10Gbit --dirty-curve curve.json

The move is simulated several times with the policies of a real one, over the guest's writing and
the link as they were measured and as far from that as may be; of each figure what is expected
comes first, then the least and the most. Compression and differences are not reckoned with. `ferry
cancel` ends the measurement early.

Exit status: 0 the move would converge, 1 error, 2 usage, 5 it would not converge.")]
pub struct Args {
    /// The running VM's control socket
    #[arg(long, value_name = "SOCKET", requires = "target")]
    control: Option<PathBuf>,

    /// Where `ferry receive` listens: tcp:HOST:PORT, tcp:[IPv6]:PORT or unix:PATH
    #[arg(value_name = "TARGET", requires = "control")]
    target: Option<Target>,

    /// How long to watch the guest, 1 ms to 64 s [default: 8s]
    #[arg(long, value_name = "TIME", conflicts_with = "memory")]
    watch: Option<Span>,

    #[command(flatten)]
    wanted: Wanted,

    /// JSON instead of a table
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    described: Described,
}

/// Why there is no prediction.
#[derive(Debug, Error)]
enum PredictError {
    /// The VM says why.
    #[error("nothing was predicted: {0}; the guest runs on")]
    Failed(String),
    /// The VM says no more.
    #[error("the VM ended before the prediction did")]
    Silent,
    /// Nobody to ask, or it was refused.
    #[error(transparent)]
    Control(#[from] ClientError),
}

impl Args {
    pub(super) fn run(self) -> Result<u8, Failure> {
        let prediction = match (&self.control, &self.target) {
            (Some(control), Some(target)) => {
                let request = self.request(target)?;
                let client = Client::new(control);
                measured(&client, &request, !self.json).map_err(Failure::error)?
            }
            // Where a move of the described guest would go does not matter to it.
            _ => {
                let target = Target::Tcp("localhost".to_owned(), 1);
                let wanted = self.wanted.request(target)?.checked();
                let options = wanted.map_err(Failure::usage)?.options();
                let question = self.described.question(options).map_err(Failure::usage)?;
                predict(&question)
            }
        };
        let text = match self.json {
            true => serde_json::to_string_pretty(&prediction).map_err(Failure::error)? + "\n",
            false => ui::prediction_table(&prediction, Style::of_stdout()),
        };
        // A reader that has gone away has seen what it wanted.
        let _ = std::io::stdout().write_all(text.as_bytes());
        Ok(match prediction.converges {
            true => exit::OK,
            false => exit::NOT_CONVERGING,
        })
    }

    /// The flags as a checked request.
    fn request(&self, target: &Target) -> Result<PredictRequest, Failure> {
        let request = PredictRequest {
            wanted: self.wanted.request(target.clone())?,
            watch_ms: millis("watch", self.watch)?,
        };
        request.checked().map_err(Failure::usage)
    }
}

/// Asks a VM, and tells a person at a terminal what it is at meanwhile.
fn measured(
    client: &Client,
    request: &PredictRequest,
    talkative: bool,
) -> Result<Prediction, PredictError> {
    let talkative = talkative && std::io::stderr().is_terminal();
    let note = |text: &str| {
        if talkative {
            log::say(text);
        }
    };
    let watch = Span(request.watch().longest());
    note(&format!("watching the guest for {watch}"));
    for event in client.predict(request)? {
        match event? {
            PredictEvent::Window { .. } | PredictEvent::Other => {}
            PredictEvent::Memory { touched_pages, .. } => note(&format!(
                "{} pages touched; measuring the link to {}",
                ui::count(touched_pages),
                request.wanted.target
            )),
            PredictEvent::Link {
                bandwidth_bytes_per_s,
                streams,
                ..
            } => note(&format!(
                "{streams} stream(s) carry {}",
                ui::rate(bandwidth_bytes_per_s.expected)
            )),
            PredictEvent::Prediction { prediction } => return Ok(*prediction),
            PredictEvent::Failed { reason } => return Err(PredictError::Failed(reason)),
        }
    }
    Err(PredictError::Silent)
}
