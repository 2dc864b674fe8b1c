//! A `ferry run` or `ferry receive` process, and the commands given to it by its control socket.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use guest_images::procmem::{Mapping, ProcMem};
use serde_json::Value;
use tempfile::TempDir;

use super::{Lines, Netns, User};
use crate::{Error, programs};
use vmm::study::child::spawn_bound;

/// How long the end of a process may take to be read from its pipes.
const LAST_LINES: Duration = Duration::from_secs(10);

/// A Ferry that holds a guest or waits for one. Ended, if need be by force, when dropped.
#[derive(Debug)]
pub struct Ferry {
    child: Child,
    console: Lines,
    messages: Lines,
    /// Holds the control socket and the reports.
    folder: TempDir,
    name: String,
}

/// How a `ferry migrate` went.
#[derive(Debug)]
pub struct Migration {
    /// Its exit status: 0 completed, 1 failed, 2 usage, 3 cancelled, 4 unknown.
    pub status: i32,
    /// What it printed: rounds and the table.
    pub stdout: String,
    /// Its complaints.
    pub stderr: String,
    /// The report; `Null` if none was written.
    pub report: Value,
}

impl Ferry {
    /// Starts `ferry ARGS --serial stdio --control SOCK`, in a network namespace if one is given. `args`
    /// begin with the subcommand; they may have a `--serial` of their own.
    ///
    /// # Errors
    /// There is no ferry binary, or it cannot be started.
    pub fn start(netns: Option<&Netns>, args: &[&str]) -> Result<Self, Error> {
        let ferry = programs::ferry()?;
        let command = match netns {
            Some(netns) => netns.command(&ferry),
            None => Command::new(&ferry),
        };
        Self::launch(command, folder()?, args, Vec::new())
    }

    /// The same by a user who is not root, with descriptors passed open, by the same numbers.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_as(
        user: &User,
        netns: &Netns,
        args: &[&str],
        inherited: Vec<OwnedFd>,
    ) -> Result<Self, Error> {
        let folder = folder()?;
        user.own(folder.path())?;
        Self::launch(user.command(netns), folder, args, inherited)
    }

    /// Starts `ferry receive --listen systemd ARGS` as a service manager does, with a listening socket, and the socket
    /// on which it says how it is.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn activated(listener: OwnedFd, notify: &Path, args: &[&str]) -> Result<Self, Error> {
        let mut command = Command::new(programs::ferry()?);
        command
            .env("LISTEN_FDS", "1")
            .env("LISTEN_FDS_FIRST_FD", listener.as_raw_fd().to_string())
            .env("NOTIFY_SOCKET", notify);
        let first = ["receive", "--listen", "systemd"];
        Self::launch(command, folder()?, &[&first, args].concat(), vec![listener])
    }

    fn launch(
        mut command: Command,
        folder: TempDir,
        args: &[&str],
        inherited: Vec<OwnedFd>,
    ) -> Result<Self, Error> {
        command.args(args);
        if !args.contains(&"--serial") {
            command.args(["--serial", "stdio"]);
        }
        command
            .arg("--control")
            .arg(folder.path().join("control.sock"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = spawn_bound(command, inherited)
            .map_err(|e| Error::file("start", "ferry".as_ref(), e))?;
        let console = child.stdout.take().map(Lines::collect).unwrap_or_default();
        let messages = child.stderr.take().map(Lines::collect).unwrap_or_default();
        let name = format!("ferry {}", args.first().unwrap_or(&""));
        Ok(Self {
            child,
            console,
            messages,
            folder,
            name,
        })
    }

    /// Starts `ferry receive --listen TARGET --once ARGS` and waits until it can be reached.
    ///
    /// # Errors
    /// It cannot be started, or its control socket does not answer.
    pub fn receive(netns: Option<&Netns>, target: &str, args: &[&str]) -> Result<Self, Error> {
        let first = ["receive", "--listen", target, "--once"];
        let mut ferry = Self::start(netns, &[&first, args].concat())?;
        ferry.wait_control(Duration::from_secs(20))?;
        Ok(ferry)
    }

    /// Its process id, inside a network namespace too.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the guest printed on its serial console.
    pub fn console(&self) -> &Lines {
        &self.console
    }

    /// What Ferry itself said (standard error).
    pub fn messages(&self) -> &Lines {
        &self.messages
    }

    /// Its control socket.
    pub fn control(&self) -> PathBuf {
        self.folder.path().join("control.sock")
    }

    /// Waits for a line of the console, from its beginning.
    ///
    /// # Errors
    /// It did not come in time, or the process ended without it.
    pub fn wait_console(
        &mut self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<String, Error> {
        match self.console.wait(0, limit, wanted) {
            Some(line) => Ok(line),
            None => Err(self.waited(what, limit)),
        }
    }

    /// Waits until the control socket answers.
    ///
    /// # Errors
    /// It did not in time.
    pub fn wait_control(&mut self, limit: Duration) -> Result<(), Error> {
        let start = Instant::now();
        while self.status().is_err() {
            if start.elapsed() > limit || self.ended().is_some() {
                return Err(self.waited("its control socket", limit));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Waits for the process to end by itself.
    ///
    /// # Errors
    /// It did not in time.
    pub fn wait_end(&mut self, limit: Duration) -> Result<ExitStatus, Error> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return Ok(status);
            }
            if start.elapsed() > limit {
                return Err(self.waited("its end", limit));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// How it ended, all that it printed being read then; `None` while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().ok().flatten()?;
        // The pipes may hold what the threads that read them have not yet come to.
        self.console.wait_closed(LAST_LINES);
        self.messages.wait_closed(LAST_LINES);
        Some(status)
    }

    /// Ends it by SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Runs `ferry ACT --control SOCK ARGS` and waits for it.
    ///
    /// # Errors
    /// The command cannot be run; what it answers is not judged.
    pub fn command(&self, act: &str, args: &[&str]) -> Result<Output, Error> {
        self.prepare(act, args)?
            .output()
            .map_err(|e| Error::file("run", "ferry".as_ref(), e))
    }

    /// The same command, not started: for acts that are watched while they go on.
    ///
    /// # Errors
    /// There is no ferry binary.
    pub fn prepare(&self, act: &str, args: &[&str]) -> Result<Command, Error> {
        let mut command = Command::new(programs::ferry()?);
        command
            .arg(act)
            .arg("--control")
            .arg(self.control())
            .args(args)
            .stdin(Stdio::null());
        Ok(command)
    }

    /// What `ferry status --json` says.
    ///
    /// # Errors
    /// It fails, or says no JSON.
    pub fn status(&self) -> Result<Value, Error> {
        let output = self.command("status", &["--json"])?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(Error::Unexpected(format!("ferry status: {said}")));
        }
        serde_json::from_slice(&output.stdout)
            .map_err(|e| Error::Unexpected(format!("ferry status --json is no JSON: {e}")))
    }

    /// Moves the guest: `ferry migrate … PEER ARGS --report F`.
    ///
    /// # Errors
    /// The command cannot be run; how the move went is in the answer.
    pub fn migrate(&self, peer: &str, args: &[&str]) -> Result<Migration, Error> {
        let path = self.folder.path().join("report.json");
        let _ = std::fs::remove_file(&path);
        let output = self
            .prepare("migrate", &[peer])?
            .args(args)
            .arg("--report")
            .arg(&path)
            .output()
            .map_err(|e| Error::file("run", "ferry".as_ref(), e))?;
        Ok(Migration::from_output(&output, &path))
    }

    /// What the process has in memory, in bytes; nearly all of it is the guest's.
    ///
    /// # Errors
    /// It has ended.
    pub fn resident(&self) -> Result<u64, Error> {
        let path = format!("/proc/{}/status", self.pid());
        let gone = || Error::file("read", path.as_ref(), std::io::ErrorKind::NotFound.into());
        crate::bench::cpu::bytes_of(&path, "VmRSS:").ok_or_else(gone)
    }

    /// The guest's memory, read past Ferry: a witness independent of what it says of itself.
    ///
    /// # Errors
    /// `ferry status` does not say where it lies, or it cannot be read.
    pub fn memory(&self) -> Result<ProcMem, Error> {
        ProcMem::open(self.pid(), self.mappings()?)
            .map_err(|e| Error::file("open", format!("/proc/{}/mem", self.pid()).as_ref(), e))
    }

    /// Where the guest's memory lies in the process.
    ///
    /// # Errors
    /// `ferry status` does not say.
    pub fn mappings(&self) -> Result<Vec<Mapping>, Error> {
        let status = self.status()?;
        status["memory_regions"]
            .as_array()
            .and_then(|regions| regions.iter().map(mapping).collect::<Option<Vec<_>>>())
            .ok_or_else(|| {
                Error::Unexpected(format!("no memory_regions in ferry status: {status}"))
            })
    }

    fn waited(&mut self, what: &str, limit: Duration) -> Error {
        // A process that closed its console is about to end.
        std::thread::sleep(Duration::from_millis(100));
        let end = match self.ended() {
            None => format!("{} still runs", self.name),
            Some(status) => format!("{} ended: {status}", self.name),
        };
        Error::Waited {
            limit,
            what: what.to_owned(),
            end,
            tail: self.console.tail() + &self.messages.tail(),
        }
    }
}

impl Drop for Ferry {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Migration {
    /// What `ferry migrate` left behind.
    pub fn from_output(output: &Output, report: &Path) -> Self {
        let status = output.status;
        let report = std::fs::read(report)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self {
            status: status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            report: report.unwrap_or(Value::Null),
        }
    }

    /// The same, if the move completed.
    ///
    /// # Errors
    /// It did not; with what it printed.
    pub fn completed(self) -> Result<Self, Error> {
        if self.status == 0 && self.report["outcome"] == "completed" {
            return Ok(self);
        }
        Err(Error::Unexpected(format!(
            "the move did not complete (status {}, outcome {}):\n{}{}",
            self.status, self.report["outcome"], self.stdout, self.stderr
        )))
    }
}

/// For the control socket and the reports.
fn folder() -> Result<TempDir, Error> {
    tempfile::Builder::new()
        .prefix("ferry-test-")
        .tempdir()
        .map_err(|e| Error::file("make", "(temporary folder)".as_ref(), e))
}

fn mapping(region: &Value) -> Option<Mapping> {
    Some(Mapping {
        gpa: region["gpa"].as_u64()?,
        bytes: region["bytes"].as_u64()?,
        host: region["host_address"].as_u64()?,
    })
}
