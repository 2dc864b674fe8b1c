//! The bare guest `pulse` in a Ferry, watched and checked past it.

use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use guest_images::fill;
use guest_images::verify::{self, Mode, Summary};
use serde_json::Value;

use super::{Ferry, Netns};
use crate::{Error, chain};

/// Time for anything that is quick on an idle machine.
const STEP: Duration = Duration::from_secs(60);
/// Below it lie pulse itself and its tables; from here on memory may be filled from outside.
const FILL_START: u64 = 8 << 20;

/// A guest to be started.
#[derive(Debug, Clone, Copy)]
pub struct PulseGuest<'a> {
    /// Pulse's command line, such as `beat=1 ws=16:64 rate=5000`.
    pub words: &'a str,
    /// Its vCPUs.
    pub cpus: u8,
    /// Its memory in MiB.
    pub mib: u64,
}

impl PulseGuest<'_> {
    /// Starts it and waits until it beats.
    ///
    /// # Errors
    /// It does not.
    pub fn boot(&self, netns: Option<&Netns>) -> Result<Ferry, Error> {
        self.boot_with(netns, &[])
    }

    /// The same with more words for `ferry run`.
    ///
    /// # Errors
    /// It does not.
    pub fn boot_with(&self, netns: Option<&Netns>, more: &[&str]) -> Result<Ferry, Error> {
        self.boot_in(netns, "", more)
    }

    /// The same with memory that can be handed to another Ferry as it is.
    ///
    /// # Errors
    /// It does not.
    pub fn boot_in_memfd(&self, more: &[&str]) -> Result<Ferry, Error> {
        self.boot_in(None, ",backing=memfd", more)
    }

    /// The same in huge pages that the host has set aside.
    ///
    /// # Errors
    /// It does not, or there are too few.
    pub fn boot_in_huge_pages(&self) -> Result<Ferry, Error> {
        self.boot_in(None, ",hugepages=on", &[])
    }

    fn boot_in(&self, netns: Option<&Netns>, backing: &str, more: &[&str]) -> Result<Ferry, Error> {
        let (cpus, memory) = (self.cpus.to_string(), format!("{}M{backing}", self.mib));
        let mut args = vec!["run", "--pulse", self.words];
        args.extend(["--cpus", &cpus, "--memory", &memory]);
        args.extend(more);
        let mut ferry = Ferry::start(netns, &args)?;
        ferry.wait_console("pulse's READY", STEP, |line| line.contains("pulse: READY"))?;
        ferry.wait_control(STEP)?;
        ferry.wait_beats(20)?;
        Ok(ferry)
    }

    /// What may be filled from outside, working sets included, of a guest that ends below the 32-bit gap.
    pub fn fillable(&self) -> Range<u64> {
        FILL_START..self.mib << 20
    }
}

impl Ferry {
    /// Waits until the guest, a pulse, has beaten so often more: seen in its memory, not told by Ferry.
    ///
    /// # Errors
    /// It does not in time, or there is none.
    pub fn wait_beats(&self, beats: u32) -> Result<(), Error> {
        let memory = self.memory()?;
        let beat = || Ok::<_, Error>(verify::status(&memory).map_err(as_error)?.beat);
        let (began, start) = (Instant::now(), beat()?);
        loop {
            let now = beat()?;
            if now.wrapping_sub(start) >= beats {
                return Ok(());
            }
            if began.elapsed() > STEP {
                return Err(Error::Unexpected(format!(
                    "waited {STEP:?} for {beats} heartbeats after {start}, and the guest is at {now}; ferry said:\n{}",
                    self.messages().tail()
                )));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether the guest does nothing, for as long as two hundred of its heartbeats of a millisecond take.
    ///
    /// # Errors
    /// It has no pulse.
    pub fn stands_still(&self) -> Result<bool, Error> {
        let memory = self.memory()?;
        let beat = || Ok::<_, Error>(verify::status(&memory).map_err(as_error)?.beat);
        let before = beat()?;
        std::thread::sleep(Duration::from_millis(200));
        Ok(before == beat()?)
    }

    /// Checks every page that pulse has stamped, the guest paused for it.
    ///
    /// # Errors
    /// The first page that is not as it should be; or the guest cannot be paused or resumed.
    pub fn check_pulse(&self) -> Result<Summary, Error> {
        self.act("pause")?;
        let summary = self.check_still_pulse()?;
        self.act("resume")?;
        Ok(summary)
    }

    /// The same for a guest that stands still already.
    ///
    /// # Errors
    /// The first page that is not as it should be.
    pub fn check_still_pulse(&self) -> Result<Summary, Error> {
        verify::check(&self.memory()?, Mode::Stopped).map_err(as_error)
    }

    /// What `ferry status` says that it is doing.
    ///
    /// # Errors
    /// It says nothing.
    pub fn state(&self) -> Result<String, Error> {
        let status = self.status()?;
        Ok(status["state"].as_str().unwrap_or_default().to_owned())
    }

    /// Waits until it is doing that.
    ///
    /// # Errors
    /// It has not begun to in time.
    pub fn wait_state(&self, wanted: &str, limit: Duration) -> Result<(), Error> {
        self.wait_status(limit, |status| status["state"] == wanted)
            .map(drop)
    }

    /// Waits until `ferry status` is as wanted, and gives it.
    ///
    /// # Errors
    /// It says nothing, or is not so in time.
    pub fn wait_status(
        &self,
        limit: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value, Error> {
        let began = Instant::now();
        loop {
            let status = self.status()?;
            if wanted(&status) {
                return Ok(status);
            }
            if began.elapsed() > limit {
                let said = self.messages().tail();
                return Err(Error::Unexpected(format!(
                    "after {limit:?} the status is still another: {status}; {said}"
                )));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Runs a command that has to succeed.
    ///
    /// # Errors
    /// It does not; with what it said.
    pub fn act(&self, act: &str) -> Result<(), Error> {
        let output = self.command(act, &[])?;
        if output.status.success() {
            return Ok(());
        }
        Err(Error::Unexpected(format!(
            "ferry {act}: {}",
            String::from_utf8_lossy(&output.stderr)
        )))
    }

    /// Runs a command that has to be refused, with one line that says why. Gives the line.
    ///
    /// # Errors
    /// It succeeds, or complains in no line, or in several.
    pub fn refused(&self, act: &str, args: &[&str]) -> Result<String, Error> {
        let output = self.command(act, args)?;
        let said = String::from_utf8_lossy(&output.stderr);
        let mut complaints = said.lines();
        if let (Some(1), Some(complaint), None) =
            (output.status.code(), complaints.next(), complaints.next())
        {
            return Ok(complaint.to_owned());
        }
        Err(Error::Unexpected(format!(
            "ferry {act} was to be refused in one line, but: {}, {said}",
            output.status
        )))
    }

    /// Puts to a path of the control socket with an empty body, by HTTP. Gives the status and the body.
    ///
    /// # Errors
    /// There is no answer.
    pub fn put(&self, path: &str) -> Result<(u16, String), Error> {
        let failed = |e| Error::file("ask", &self.control(), e);
        let mut socket = UnixStream::connect(self.control()).map_err(failed)?;
        socket.set_read_timeout(Some(STEP)).map_err(failed)?;
        let request = format!(
            "PUT {path} HTTP/1.1\r\nHost: ferry\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        socket.write_all(request.as_bytes()).map_err(failed)?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).map_err(failed)?;
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
        let body = answer.split_once("\r\n\r\n");
        match (status, body) {
            (Some(status), Some((_, body))) => Ok((status, body.to_owned())),
            _ => Err(Error::Unexpected(format!(
                "no answer to PUT {path}: {answer}"
            ))),
        }
    }

    /// Fills guest memory from outside. Ferry does not see it: not to be done during a move.
    ///
    /// # Errors
    /// Some of it is not the guest's.
    pub fn fill(&self, seed: u64, ranges: &[Range<u64>]) -> Result<(), Error> {
        let memory = self.memory()?;
        for range in ranges {
            fill::write(seed, range.clone(), |gpa, bytes| memory.write(gpa, bytes))
                .map_err(as_error)?;
        }
        Ok(())
    }

    /// Checks such a fill.
    ///
    /// # Errors
    /// The first page that does not hold it.
    pub fn check_fill(&self, seed: u64, ranges: &[Range<u64>]) -> Result<(), Error> {
        let memory = self.memory()?;
        for range in ranges {
            fill::check(seed, range.clone(), &memory).map_err(as_error)?;
        }
        Ok(())
    }
}

fn as_error(error: impl std::error::Error) -> Error {
    Error::Unexpected(chain(&error))
}
