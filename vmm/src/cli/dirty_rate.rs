//! `ferry dirty-rate`: how fast a guest writes.

use std::io::Write;

use migration::dirty_rate::Window;
use serde_json::json;
use thiserror::Error;

use super::error::Failure;
use super::exit;
use super::migrate::millis;
use super::orders::Vm;
use crate::control::client::ClientError;
use crate::control::{DirtyRateRequest, RateEvent};
use crate::ui::{self, Style};
use crate::units::Span;

/// Watch how fast a running guest writes its memory, without moving it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each line says how many pages the guest wrote at least once since the start. A guest that rewrites
the same pages has a curve that flattens: what a move has to send again is what lies on it at the
duration of a round. The measurement costs the guest a fault for each page that it writes: of a
guest that writes in gigabytes, or where faults are dear, take a `--sample`, or `--contents`. Of a
guest with `--dirty-tracking ring` each line also says which vCPU was the first to write how many
of these pages. `ferry cancel` ends it early.")]
pub struct Args {
    #[command(flatten)]
    vm: Vm,

    /// How long to watch, 1 ms to 64 s
    #[arg(long, value_name = "TIME", default_value = "8s")]
    longest: Span,

    /// Watch one page of N neighbours, 1 to 1024, and tell what that makes of all
    #[arg(long, value_name = "N")]
    sample: Option<u32>,

    /// Compare what pages hold, instead of having KVM log who writes: the guest is not slowed down at all. Of a sample,
    /// one page in 64 unless told otherwise; what is written with what it held is not seen
    #[arg(long)]
    contents: bool,

    /// JSON, all at once at the end, instead of a table
    #[arg(long)]
    json: bool,
}

/// Why there is no curve.
#[derive(Debug, Error)]
enum RateError {
    /// The VM says why.
    #[error("the dirty rate was not measured: {0}; the guest runs on")]
    Failed(String),
    /// The VM says no more.
    #[error("the VM ended before the measurement did")]
    Silent,
    /// Nobody to ask, or it was refused.
    #[error(transparent)]
    Control(#[from] ClientError),
}

impl Args {
    pub(super) fn run(self) -> Result<u8, Failure> {
        let request = DirtyRateRequest {
            longest_ms: millis("longest", Some(self.longest))?,
            sample: self.sample,
            contents: self.contents,
        };
        let request = request.checked().map_err(Failure::usage)?;
        self.measure(request).map_err(Failure::error)?;
        Ok(exit::OK)
    }

    fn measure(&self, request: DirtyRateRequest) -> Result<(), RateError> {
        // A reader that has gone away has seen what it wanted.
        let print = |text: &str| drop(std::io::stdout().write_all(text.as_bytes()));
        let mut windows: Vec<Window> = Vec::new();
        for event in self.vm.client().dirty_rate(request)? {
            match event? {
                RateEvent::Window { window } => {
                    if !self.json {
                        print(&ui::rate_line(
                            &window,
                            windows.is_empty(),
                            Style::of_stdout(),
                        ));
                    }
                    windows.push(window);
                }
                RateEvent::Done {
                    memory_bytes,
                    bursts,
                } => {
                    if self.json {
                        let sample = request.sample();
                        let mut all = json!({ "memory_bytes": memory_bytes, "sample": sample, "contents": request.contents, "windows": windows });
                        if let Some(bursts) = bursts {
                            all["bursts"] = json!(bursts);
                        }
                        print(&format!("{all:#}\n"));
                    } else if let Some(bursts) = bursts {
                        print(&ui::rhythm_line(&bursts.rhythm, Style::of_stdout()));
                    }
                    return Ok(());
                }
                RateEvent::Failed { reason } => return Err(RateError::Failed(reason)),
                RateEvent::Other => {}
            }
        }
        Err(RateError::Silent)
    }
}
