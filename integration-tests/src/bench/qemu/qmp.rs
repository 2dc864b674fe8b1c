//! QEMU's monitor: commands and events as lines of JSON on a Unix socket (QEMU, docs/interop/qmp-spec.rst).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Error;

/// Time for an answer.
const STEP: Duration = Duration::from_secs(30);

/// A connection to a monitor.
#[derive(Debug)]
pub struct Qmp {
    socket: UnixStream,
    lines: BufReader<UnixStream>,
    /// Bytes of a line that has not ended yet.
    open: Vec<u8>,
    /// Events that nobody asked for so far.
    events: Vec<Value>,
    version: String,
}

impl Qmp {
    /// Connects, once the socket is there.
    ///
    /// # Errors
    /// It does not come, or speaks something else.
    pub fn connect(path: &Path, limit: Duration) -> Result<Self, Error> {
        let began = Instant::now();
        let socket = loop {
            match UnixStream::connect(path) {
                Ok(socket) => break socket,
                Err(e) if began.elapsed() > limit => {
                    return Err(Error::file("connect to QEMU's monitor at", path, e));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        let failed = |e| Error::file("connect to QEMU's monitor at", path, e);
        let lines = BufReader::new(socket.try_clone().map_err(failed)?);
        let mut this = Self {
            socket,
            lines,
            open: Vec::new(),
            events: Vec::new(),
            version: String::new(),
        };
        let greeting = this.line(Instant::now() + STEP)?;
        let version = &greeting["QMP"]["version"]["qemu"];
        let number = |name: &str| version[name].as_u64().unwrap_or_default();
        this.version = format!(
            "{}.{}.{}",
            number("major"),
            number("minor"),
            number("micro")
        );
        this.execute("qmp_capabilities", json!({}))?;
        Ok(this)
    }

    /// QEMU's version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Gives a command and waits for its answer.
    ///
    /// # Errors
    /// QEMU refuses it, or does not answer.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, Error> {
        let said = json!({ "execute": command, "arguments": arguments }).to_string();
        let failed = |e| Error::file("write to", "QEMU's monitor".as_ref(), e);
        // At once: QEMU acts on a command as soon as its last brace is there.
        let line = format!("{said}\n");
        self.socket.write_all(line.as_bytes()).map_err(failed)?;
        let deadline = Instant::now() + STEP;
        loop {
            let mut answer = self.line(deadline)?;
            if let Some(refusal) = answer.get("error") {
                return Err(Error::Unexpected(format!("QEMU refuses {said}: {refusal}")));
            }
            match answer.get_mut("return") {
                Some(value) => return Ok(value.take()),
                None => self.events.push(answer),
            }
        }
    }

    /// Waits for an event that `wanted` takes, and gives its data. Events before it are dropped.
    ///
    /// # Errors
    /// It does not come in time.
    pub fn wait_event(
        &mut self,
        name: &str,
        limit: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value, Error> {
        let deadline = Instant::now() + limit;
        loop {
            let mut event = match self.events.is_empty() {
                false => self.events.remove(0),
                true => self.line(deadline)?,
            };
            if event["event"] == name && wanted(&event["data"]) {
                return Ok(event["data"].take());
            }
        }
    }

    /// Why the guest was shut down, if QEMU told that and nobody has read it yet.
    pub fn shutdown_reason(&mut self) -> Option<String> {
        let soon = Instant::now() + Duration::from_millis(100);
        while let Ok(line) = self.line(soon) {
            self.events.push(line);
        }
        let shutdown = self
            .events
            .iter()
            .find(|event| event["event"] == "SHUTDOWN")?;
        Some(shutdown["data"]["reason"].as_str()?.to_owned())
    }

    fn line(&mut self, deadline: Instant) -> Result<Value, Error> {
        let failed = |e| Error::file("read from", "QEMU's monitor".as_ref(), e);
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = left.max(Duration::from_millis(1));
        self.socket
            .set_read_timeout(Some(timeout))
            .map_err(failed)?;
        let count = self
            .lines
            .read_until(b'\n', &mut self.open)
            .map_err(failed)?;
        if count == 0 {
            return Err(failed(std::io::ErrorKind::UnexpectedEof.into()));
        }
        let line = std::mem::take(&mut self.open);
        serde_json::from_slice(&line)
            .map_err(|e| Error::Unexpected(format!("QEMU's monitor says no JSON: {e}")))
    }
}
