//! The program that the bench is about: two Ferries, and a pulse that goes from one to the other.

use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::guest_ram::GuestRam;
use super::setting::FerrySetting;
use super::trial::{Failure, Pair, Told};
use super::{Place, Scenario};
use crate::Error;
use crate::ferry::{Ferry, Hosts};

/// Time for anything that is quick on an idle machine.
const STEP: Duration = Duration::from_secs(60);

/// A guest in a Ferry, and another Ferry that waits for it.
#[derive(Debug)]
pub struct FerryPair {
    source: Ferry,
    destination: Ferry,
    target: String,
    migrate: Vec<String>,
    /// Holds the socket at which the two meet, if they do.
    _folder: TempDir,
    /// Holds the certificates, if there are any.
    _hosts: Option<Hosts>,
}

impl FerryPair {
    /// Starts both, and the guest.
    ///
    /// # Errors
    /// One of them does not start.
    pub fn start(
        scenario: &Scenario,
        setting: &FerrySetting,
        place: &Place,
    ) -> Result<Self, Error> {
        let memory = format!("{}M{}", scenario.mib, setting.memory);
        let run = ["run", "--pulse", scenario.words, "--memory", &memory];
        let mut source = Ferry::start(place.source(), &[&run[..], &["--cpus", "1"]].concat())?;
        let ready = |line: &str| line.contains(guest_images::pulse::READY);
        source.wait_console("pulse's READY", STEP, ready)?;
        source.wait_control(STEP)?;

        let folder = tempfile::tempdir()
            .map_err(|e| Error::file("make", "(temporary folder)".as_ref(), e))?;
        let target = if setting.unix {
            format!("unix:{}", folder.path().join("move.sock").display())
        } else {
            format!("tcp:{}:{}", place.address(), place.free_port()?)
        };
        let mut migrate = setting.migrate.clone();
        if let Some(limit) = scenario.downtime_ms {
            migrate.extend(["--downtime".to_owned(), format!("{limit}ms")]);
        }
        let hosts = match setting.tls {
            true => Some(Hosts::new(&[
                ("source", place.address()),
                ("destination", place.address()),
            ])?),
            false => None,
        };
        let (mut there, here) = match &hosts {
            Some(hosts) => (
                vec!["--tls".to_owned(), hosts.folder("destination")],
                vec!["--tls".to_owned(), hosts.folder("source")],
            ),
            None if place.is_shaped() => {
                let plaintext = vec!["--insecure-plaintext".to_owned()];
                (plaintext.clone(), plaintext)
            }
            None => (Vec::new(), Vec::new()),
        };
        migrate.extend(here);
        if setting.prefault {
            there.extend(["--prefault".to_owned(), format!("{}M", scenario.mib)]);
        }
        let args: Vec<&str> = there.iter().map(String::as_str).collect();
        let destination = Ferry::receive(place.destination(), &target, &args)?;
        Ok(Self {
            source,
            destination,
            target,
            migrate,
            _folder: folder,
            _hosts: hosts,
        })
    }

    fn ram(ferry: &Ferry) -> Result<GuestRam, Error> {
        Ok(GuestRam {
            pid: ferry.pid(),
            mappings: ferry.mappings()?,
        })
    }
}

impl Pair for FerryPair {
    fn source(&self) -> u32 {
        self.source.pid()
    }

    fn destination(&self) -> u32 {
        self.destination.pid()
    }

    fn version(&self) -> Result<String, Error> {
        let output = self.source.command("--version", &[])?;
        let said = String::from_utf8_lossy(&output.stdout);
        let word = said.split_whitespace().last();
        Ok(word.unwrap_or("unknown").to_owned())
    }

    fn source_ram(&self) -> Result<GuestRam, Error> {
        Self::ram(&self.source)
    }

    fn destination_ram(&self) -> Result<GuestRam, Error> {
        Self::ram(&self.destination)
    }

    fn migrate(&mut self) -> Result<Told, Failure> {
        let args: Vec<&str> = self.migrate.iter().map(String::as_str).collect();
        let report = self
            .source
            .migrate(&self.target, &args)?
            .completed()?
            .report;
        let ms = |name: &str| report[name].as_f64();
        Ok(Told {
            wall_ms: ms("total_ms").unwrap_or(f64::NAN),
            blackout_ms: ms("blackout_ms").unwrap_or(f64::NAN),
            reported_gap_ms: ms("guest_gap_ms"),
            predicted_blackout_ms: ms("predicted_blackout_ms"),
            wire_bytes: report["wire_bytes"].as_u64().unwrap_or_default(),
            rounds: report["rounds"]
                .as_array()
                .map_or(0, |rounds: &Vec<Value>| rounds.len() as u64),
            streams: report["streams"].as_u64().unwrap_or(1),
        })
    }

    fn end_source(&mut self) -> Result<(), Error> {
        // It ends by itself as soon as the guest lives elsewhere.
        Ok(())
    }

    fn stop_destination(&mut self) -> Result<(), Error> {
        self.destination.act("pause")
    }
}
