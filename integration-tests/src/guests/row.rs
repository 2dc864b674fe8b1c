//! What came of one guest: a line of the table, and of the summary.

use std::fmt;

use serde::Serialize;

use super::Seen;
use crate::{Error, chain};

/// One guest.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The image that its kernel is of.
    pub image: &'static str,
    /// What runs in it: the agent, or a whole Debian.
    pub userland: &'static str,
    /// The vCPUs that it was given.
    pub cpus: u8,
    /// The processors that its kernel found; 0 if nobody could ask it.
    pub cpus_seen: u64,
    /// The release of its kernel.
    pub kernel: String,
    /// From its start until it was ready, in seconds.
    pub boot_s: f64,
    /// How long it stood still in its move, in milliseconds.
    pub blackout_ms: f64,
    /// What was not as it must be.
    pub trouble: Option<String>,
}

/// All of them.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Whether each booted, saw its vCPUs, and was the same after its move.
    pub clean: bool,
    /// Each guest.
    pub guests: Vec<Row>,
}

impl Row {
    /// Does what a guest is for, and writes down what came of it.
    pub(super) fn of(
        image: &'static str,
        userland: &'static str,
        cpus: u8,
        act: impl FnOnce() -> Result<Seen, Error>,
    ) -> Self {
        let mut row = Self {
            image,
            userland,
            cpus,
            cpus_seen: 0,
            kernel: String::new(),
            boot_s: 0.0,
            blackout_ms: 0.0,
            trouble: None,
        };
        match act() {
            Err(error) => row.trouble = Some(chain(&error)),
            Ok(seen) => {
                if seen.cpus != u64::from(cpus) {
                    row.trouble = Some(format!("it sees {} processors", seen.cpus));
                }
                row.cpus_seen = seen.cpus;
                row.kernel = seen.kernel;
                row.boot_s = seen.boot.as_secs_f64();
                row.blackout_ms = seen.blackout_ms;
            }
        }
        row
    }

    /// The head of the table whose lines rows are.
    pub fn head() -> String {
        format!(
            "{:<8}{:<24}{:<8}{:>6}{:>6}{:>10}{:>13}",
            "image", "kernel", "in it", "vCPUs", "seen", "ready s", "blackout ms"
        )
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            image,
            userland,
            cpus,
            cpus_seen,
            kernel,
            boot_s,
            blackout_ms,
            trouble,
        } = self;
        write!(
            f,
            "{image:<8}{kernel:<24}{userland:<8}{cpus:>6}{cpus_seen:>6}{boot_s:>10.1}{blackout_ms:>13.1}"
        )?;
        match trouble {
            Some(trouble) => write!(f, "  FAIL {trouble}"),
            None => write!(f, "  ok"),
        }
    }
}

impl Summary {
    /// Judges the rows.
    pub fn new(guests: Vec<Row>) -> Self {
        Self {
            clean: guests.iter().all(|row| row.trouble.is_none()),
            guests,
        }
    }
}
