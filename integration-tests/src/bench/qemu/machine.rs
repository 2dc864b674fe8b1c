//! A QEMU with a pulse in it, or waiting for one.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::Package;
use super::qmp::Qmp;
use crate::bench::setting::QemuSetting;
use crate::ferry::{Lines, Netns};
use crate::{Error, chain};
use vmm::study::child::spawn_bound;

/// Time for anything that is quick on an idle machine.
const STEP: Duration = Duration::from_secs(60);

/// A running QEMU. Ended by force when dropped.
#[derive(Debug)]
pub struct Machine {
    /// Which of the two it is, for people.
    name: &'static str,
    child: Child,
    qmp: Qmp,
    console: Lines,
    messages: Lines,
    /// Holds the monitor's socket and the guest's image.
    _folder: TempDir,
}

impl Machine {
    /// Starts one with a pulse that is given `words` and `mib` of memory; it waits for the guest to come instead if
    /// there is an `incoming` setting. The smallest machine that QEMU has is the best setting here: it has the least
    /// state.
    ///
    /// # Errors
    /// It cannot be started, or its monitor does not answer.
    pub fn start(
        package: &Package,
        netns: Option<&Netns>,
        words: &str,
        mib: u64,
        incoming: Option<&QemuSetting>,
    ) -> Result<Self, Error> {
        let folder = tempfile::Builder::new()
            .prefix("ferry-bench-")
            .tempdir()
            .map_err(|e| Error::file("make", "(temporary folder)".as_ref(), e))?;
        let (socket, image) = (
            folder.path().join("qmp.sock"),
            folder.path().join("pulse.elf"),
        );
        std::fs::write(&image, guest_images::PULSE).map_err(|e| Error::file("write", &image, e))?;
        let mut command = match netns {
            Some(netns) => netns.command(package.program()),
            None => Command::new(package.program()),
        };
        package.prepare(&mut command);
        command
            // `-cpu host` sets an MSR that a KVM which only emulates does not take.
            .args([
                "-machine",
                "microvm",
                "-accel",
                "kvm",
                "-cpu",
                "qemu64,-sse3",
            ])
            .args([
                "-bios",
                "qboot.rom",
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
            ])
            .args([
                "-smp",
                "1",
                "-m",
                &mib.to_string(),
                "-serial",
                "stdio",
                "-no-reboot",
            ])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .arg("-kernel")
            .arg(&image)
            .args(["-append", words])
            .args(incoming.map_or(&[][..], |_| &["-incoming", "defer"]))
            .args(
                incoming
                    .is_some_and(|setting| setting.prealloc)
                    .then_some("-mem-prealloc"),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = spawn_bound(command, Vec::new()).map_err(Error::NoQemu)?;
        let console = child.stdout.take().map(Lines::collect).unwrap_or_default();
        let messages = child.stderr.take().map(Lines::collect).unwrap_or_default();
        let qmp = Qmp::connect(&socket, STEP).inspect_err(|_| {
            eprintln!("{}", messages.tail());
            let _ = child.kill();
            let _ = child.wait();
        })?;
        let name = if incoming.is_some() {
            "the destination"
        } else {
            "the source"
        };
        Ok(Self {
            name,
            child,
            qmp,
            console,
            messages,
            _folder: folder,
        })
    }

    /// Waits until pulse says that it is at work.
    ///
    /// # Errors
    /// It does not.
    pub fn wait_ready(&self) -> Result<(), Error> {
        let ready = |line: &str| line.contains(guest_images::pulse::READY);
        match self.console.wait(0, STEP, ready) {
            Some(_) => Ok(()),
            None => Err(Error::Unexpected(format!(
                "pulse did not start in QEMU:\n{}{}",
                self.console.tail(),
                self.messages.tail()
            ))),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its version.
    pub fn version(&self) -> &str {
        self.qmp.version()
    }

    /// Gives its monitor a command and waits for the answer.
    ///
    /// # Errors
    /// QEMU refuses it, or is gone; with its last words.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, Error> {
        let answer = self.qmp.execute(command, arguments);
        answer.map_err(|e| self.last_words(&e))
    }

    /// Waits for an event that `wanted` takes, and gives its data.
    ///
    /// # Errors
    /// It does not come in time, or QEMU is gone; with its last words.
    pub fn wait_event(
        &mut self,
        name: &str,
        limit: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value, Error> {
        let event = self.qmp.wait_event(name, limit, wanted);
        event.map_err(|e| self.last_words(&e))
    }

    fn last_words(&mut self, cause: &Error) -> Error {
        // What it says in its last moment is read by another thread.
        std::thread::sleep(Duration::from_millis(100));
        let end = match self.child.try_wait() {
            Ok(Some(status)) => format!("it ended: {status}"),
            _ => "it still runs".to_owned(),
        };
        let shutdown = match self.qmp.shutdown_reason() {
            Some(reason) => format!(", since the guest was shut down: {reason}"),
            None => String::new(),
        };
        Error::Unexpected(format!(
            "{} ({}); {end}{shutdown}. {}",
            chain(cause),
            self.name,
            self.messages.tail().trim()
        ))
    }

    /// Sets what a side of a migration has to know beforehand.
    ///
    /// # Errors
    /// QEMU refuses it.
    pub fn configure(&mut self, setting: &QemuSetting) -> Result<(), Error> {
        let multifd = json!({ "capability": "multifd", "state": setting.channels.is_some() });
        let events = json!({ "capability": "events", "state": true });
        let converge = json!({ "capability": "auto-converge", "state": setting.auto_converge });
        let capabilities = json!({ "capabilities": [multifd, events, converge] });
        self.execute("migrate-set-capabilities", capabilities)?;
        let mut parameters = json!({});
        if let Some(channels) = setting.channels {
            parameters["multifd-channels"] = channels.into();
        }
        if let Some(limit) = setting.downtime_ms {
            parameters["downtime-limit"] = limit.into();
        }
        if setting.unlimited {
            // Bytes a second: more than any link, and few enough for QEMU's arithmetic.
            parameters["max-bandwidth"] = (1u64 << 40).into();
        }
        self.execute("migrate-set-parameters", parameters)?;
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
