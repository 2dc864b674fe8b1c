//! The other program of the bench: two QEMUs, and a pulse that goes from one to the other.

mod machine;
mod qmp;

use std::time::Duration;

use guest_images::procmem::Mapping;
use serde_json::{Value, json};

use super::guest_ram::{GuestRam, locate};
use super::setting::QemuSetting;
use super::trial::{Failure, Pair, Told};
use super::{Place, Scenario};
use crate::Error;
use crate::qemu::Package;
use machine::Machine;

/// A guest in a QEMU, and another QEMU that waits for it.
#[derive(Debug)]
pub struct QemuPair<'a> {
    source: Machine,
    destination: Machine,
    setting: &'a QemuSetting,
    target: String,
    bytes: u64,
    patience: Duration,
}

impl<'a> QemuPair<'a> {
    /// Starts both, and the guest.
    ///
    /// # Errors
    /// One of them does not start.
    pub fn start(
        package: &Package,
        scenario: &Scenario,
        setting: &'a QemuSetting,
        place: &Place,
    ) -> Result<Self, Error> {
        let start = |netns, incoming| {
            Machine::start(package, netns, scenario.words, scenario.mib, incoming)
        };
        let mut source = start(place.source(), None)?;
        let mut destination = start(place.destination(), Some(setting))?;
        source.wait_ready()?;
        source.configure(setting)?;
        destination.configure(setting)?;
        let target = format!("tcp:{}:{}", place.address(), place.free_port()?);
        destination.execute("migrate-incoming", json!({ "uri": target }))?;
        Ok(Self {
            source,
            destination,
            setting,
            target,
            bytes: scenario.mib << 20,
            patience: scenario.link.patience(),
        })
    }

    fn find(&self, pid: u32) -> Result<GuestRam, Error> {
        let path = format!("/proc/{pid}");
        let found = locate(pid, self.bytes).map_err(|e| Error::file("read", path.as_ref(), e))?;
        // One mapping holds all of it, the part beyond the 32-bit gap too: what is filled and compared goes
        // by the place in that mapping.
        let mapping: Mapping = found.ok_or_else(|| {
            Error::Unexpected(format!(
                "QEMU ({path}) has no {} bytes with a pulse",
                self.bytes
            ))
        })?;
        Ok(GuestRam {
            pid,
            mappings: vec![mapping],
        })
    }
}

impl Pair for QemuPair<'_> {
    fn source(&self) -> u32 {
        self.source.pid()
    }

    fn destination(&self) -> u32 {
        self.destination.pid()
    }

    fn version(&self) -> Result<String, Error> {
        Ok(self.source.version().to_owned())
    }

    fn source_ram(&self) -> Result<GuestRam, Error> {
        self.find(self.source.pid())
    }

    fn destination_ram(&self) -> Result<GuestRam, Error> {
        self.find(self.destination.pid())
    }

    fn migrate(&mut self) -> Result<Told, Failure> {
        let source = &mut self.source;
        source.execute("migrate", json!({ "uri": self.target }))?;
        let ended = |data: &Value| data["status"] == "completed" || data["status"] == "failed";
        let waited = source.wait_event("MIGRATION", self.patience, ended);
        let figures = source.execute("query-migrate", json!({}))?;
        let ram = |name: &str| figures["ram"][name].as_u64().unwrap_or_default();
        if waited.is_err() && figures["status"] == "active" {
            return Err(Failure::Endless {
                after: self.patience,
                rounds: ram("dirty-sync-count"),
                wire_bytes: ram("transferred"),
            });
        }
        waited?;
        if figures["status"] != "completed" {
            let why = format!("QEMU's migration failed: {figures}");
            return Err(Error::Unexpected(why).into());
        }
        let ms = |name: &str| figures[name].as_f64().unwrap_or(f64::NAN);
        Ok(Told {
            wall_ms: ms("total-time"),
            blackout_ms: ms("downtime"),
            reported_gap_ms: None,
            predicted_blackout_ms: None,
            wire_bytes: ram("transferred"),
            rounds: ram("dirty-sync-count"),
            streams: self.setting.channels.map_or(1, u64::from),
        })
    }

    fn end_source(&mut self) -> Result<(), Error> {
        // It may be gone before its answer is; whether it is gone is looked at by whoever asked for it.
        let _ = self.source.execute("quit", json!({}));
        Ok(())
    }

    fn stop_destination(&mut self) -> Result<(), Error> {
        self.destination.execute("stop", json!({}))?;
        Ok(())
    }
}
