//! A `ferry` process of a study: started, spoken to by its control socket, and watched past it.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use guest_images::procmem::{Mapping, ProcMem};
use guest_images::verify;
use tempfile::TempDir;

use super::child::spawn_bound;
use super::netns::Netns;
use super::trial::TrialError;
use crate::control::client::Client;

/// Time for whatever is quick on an idle machine.
const STEP: Duration = Duration::from_secs(30);
/// Time to touch the memory of a study's largest guest where each GiB takes seconds.
const MEMORY: Duration = Duration::from_secs(300);
/// How often it is looked whether it has been done.
const LOOK: Duration = Duration::from_millis(20);
/// So many heartbeats say that a guest is at work.
const BEATS: u32 = 20;
/// What a process said last is quoted up to here.
const LAST_WORDS: usize = 500;

/// A Ferry that holds a guest or waits for one; killed when dropped.
#[derive(Debug)]
pub struct Host {
    child: Child,
    /// Its control socket and what it said.
    folder: TempDir,
    name: &'static str,
}

impl Host {
    /// Starts this very program with other words, in a network namespace if one is given, and waits until its control
    /// socket answers.
    ///
    /// # Errors
    /// It cannot be started, or ends at once; with its last words.
    pub fn start(
        netns: Option<&Netns>,
        name: &'static str,
        args: &[&str],
        stop: &AtomicBool,
    ) -> Result<Self, TrialError> {
        let failed = TrialError::io;
        let program = std::env::current_exe().map_err(failed("find this program"))?;
        let folder = tempfile::Builder::new()
            .prefix("ferry-study-")
            .tempdir()
            .map_err(failed("make a temporary folder"))?;
        let said = File::create(folder.path().join("said")).map_err(failed("make a file"))?;
        let mut command = match netns {
            Some(netns) => netns.command(&program),
            None => Command::new(&program),
        };
        command
            .arg(name)
            .args(args)
            .args(["--serial", "none", "--control"])
            .arg(folder.path().join("control"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(said);
        let child = spawn_bound(command, Vec::new()).map_err(failed("start ferry"))?;
        let mut host = Self {
            child,
            folder,
            name,
        };
        let client = host.client();
        host.wait("an answer of its control socket", STEP, stop, || {
            Ok(client.status().is_ok())
        })?;
        Ok(host)
    }

    /// Speaks to it.
    pub fn client(&self) -> Client {
        Client::new(&self.folder.path().join("control"))
    }

    /// Waits until it waits for a guest: one that touches memory beforehand takes a while to get there.
    ///
    /// # Errors
    /// It does not.
    pub fn wait_waiting(&mut self, stop: &AtomicBool) -> Result<(), TrialError> {
        let said = self.folder.path().join("said");
        self.wait("its memory to be ready", MEMORY, stop, || {
            let said = std::fs::read_to_string(&said);
            let said = said.map_err(TrialError::io("read what it said"))?;
            Ok(said.contains("waiting for a guest on "))
        })
    }

    /// Waits until the guest, a pulse, beats.
    ///
    /// # Errors
    /// It does not.
    pub fn wait_beating(&mut self, stop: &AtomicBool) -> Result<(), TrialError> {
        let memory = self.memory()?;
        let mut first = None;
        self.wait("the guest's heartbeat", STEP, stop, || {
            let Ok(status) = verify::status(&memory) else {
                return Ok(false);
            };
            let first = *first.get_or_insert(status.beat);
            Ok(status.beat.wrapping_sub(first) >= BEATS)
        })
    }

    /// The guest's memory, past Ferry.
    ///
    /// # Errors
    /// Ferry does not say where it lies, or it cannot be opened.
    pub fn memory(&self) -> Result<ProcMem, TrialError> {
        ProcMem::open(self.child.id(), self.mappings()?)
            .map_err(TrialError::io("open the guest's memory"))
    }

    /// Where the guest's memory lies in the process.
    ///
    /// # Errors
    /// Ferry does not say.
    pub fn mappings(&self) -> Result<Vec<Mapping>, TrialError> {
        let regions = self.client().status()?.memory_regions;
        let mapping = |region: &crate::control::MemoryRegion| Mapping {
            gpa: region.gpa,
            bytes: region.bytes,
            host: region.host_address,
        };
        Ok(regions.iter().map(mapping).collect())
    }

    /// Waits for something of this process.
    fn wait(
        &mut self,
        what: &'static str,
        limit: Duration,
        stop: &AtomicBool,
        mut done: impl FnMut() -> Result<bool, TrialError>,
    ) -> Result<(), TrialError> {
        let began = Instant::now();
        while !done()? {
            if stop.load(Ordering::Relaxed) {
                return Err(TrialError::Interrupted);
            }
            let ended = self.child.try_wait().ok().flatten();
            if ended.is_some() || began.elapsed() > limit {
                return Err(TrialError::Waited {
                    name: self.name,
                    what,
                    end: match ended {
                        Some(status) => format!("it ended: {status}"),
                        None => format!("{} s were not enough", limit.as_secs()),
                    },
                    said: last_words(&self.folder.path().join("said")),
                });
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn last_words(path: &Path) -> String {
    let said: io::Result<Vec<u8>> = fs::read(path);
    let said = said.unwrap_or_default();
    let end = &said[said.len().saturating_sub(LAST_WORDS)..];
    let words = String::from_utf8_lossy(end);
    match words.trim() {
        "" => "nothing".to_owned(),
        words => words.to_owned(),
    }
}
