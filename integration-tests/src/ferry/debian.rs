//! A whole Debian as a guest, made by `guest-images/build debian`: its disk, and a way to run commands in it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{DiskImage, Image, LinuxGuest, Netns, World};
use crate::{Error, programs};

/// `/etc/issue` as agetty prints it, just before `login:`, which has no end of line.
const LOGIN: &str = "Debian GNU/Linux 12 ferry ttyS0";
/// systemd and all it starts, under two layers of emulation on a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(400);

/// The files of `guest-images/build debian`.
#[derive(Debug)]
pub struct Debian {
    folder: PathBuf,
    /// ssh wants keys that nobody else can read, and of the user who runs it.
    keys: TempDir,
}

impl Debian {
    /// Finds them.
    ///
    /// # Errors
    /// They are not built, or the key cannot be copied.
    pub fn built() -> Result<Self, Error> {
        let folder = programs::target()
            .unwrap_or_default()
            .join("guest-images/debian");
        if !folder.join("manifest.json").exists() {
            return Err(Error::Unexpected(format!(
                "no Debian in {}: build it with `make image-debian`",
                folder.display()
            )));
        }
        let keys = tempfile::Builder::new().prefix("ferry-keys-").tempdir();
        let keys = keys.map_err(|e| Error::file("make", "(temporary folder)".as_ref(), e))?;
        let from = folder.join("keys/id_ed25519");
        std::fs::copy(&from, keys.path().join("id")).map_err(|e| Error::file("copy", &from, e))?;
        Ok(Self { folder, keys })
    }

    /// A disk of its own for a guest, gone when dropped.
    ///
    /// # Errors
    /// It cannot be copied.
    pub fn disk(&self) -> Result<DiskImage, Error> {
        DiskImage::copy_of(&self.folder.join("disk.raw"))
    }

    /// The guest that has this disk, with the kernel of an image.
    pub fn guest(&self, image: Image, disk: &DiskImage) -> LinuxGuest {
        LinuxGuest {
            disks: vec![disk.path().to_owned()],
            append: "root=/dev/vda quiet".into(),
            ready: LOGIN,
            boot_limit: BOOT_LIMIT,
            ..LinuxGuest::new(image)
        }
    }

    /// pgbench of the guest's own version.
    pub fn pgbench(&self) -> PathBuf {
        self.folder.join("client/pgbench")
    }

    /// A way into the guest from a namespace.
    pub fn ssh<'a>(&'a self, from: &'a Netns) -> Ssh<'a> {
        Ssh {
            from,
            key: self.keys.path().join("id"),
        }
    }
}

/// Commands in a guest, as root, over the network.
#[derive(Debug)]
pub struct Ssh<'a> {
    from: &'a Netns,
    key: PathBuf,
}

impl Ssh<'_> {
    /// Runs a line of shell and gives back what it printed.
    ///
    /// # Errors
    /// The guest cannot be reached, or the line ends with another status than 0.
    pub fn run(&self, line: &str) -> Result<String, Error> {
        let output = self.output(line)?;
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        if output.status.success() {
            return Ok(said(&output.stdout));
        }
        Err(Error::Tool {
            command: format!("in the guest: {line}"),
            said: format!(
                "{} ({})",
                said(&[output.stdout, output.stderr].concat()),
                output.status
            ),
        })
    }

    /// Waits until a line of shell ends with status 0: until a service is up, for example.
    ///
    /// # Errors
    /// It did not in time; with what it said last.
    pub fn wait(&self, line: &str, limit: Duration) -> Result<String, Error> {
        let start = Instant::now();
        loop {
            match self.run(line) {
                Err(error) if start.elapsed() > limit => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(500)),
                done => return done,
            }
        }
    }

    fn output(&self, line: &str) -> Result<Output, Error> {
        self.command(line)
            .output()
            .map_err(|e| Error::file("run", "ssh".as_ref(), e))
    }

    /// Whoever answers is the guest: nobody else is in these namespaces.
    fn command(&self, line: &str) -> Command {
        let mut command = self.from.command(Path::new("ssh"));
        command.args(["-F", "none", "-i"]).arg(&self.key);
        for option in [
            "BatchMode=yes",
            "ConnectTimeout=30",
            // A guest that dies while it is spoken to would be waited for without end.
            "ServerAliveInterval=30",
            "ServerAliveCountMax=4",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
        ] {
            command.args(["-o", option]);
        }
        let guest = format!("root@{}", World::guest_address(0));
        command.arg(guest).arg(line).stdin(Stdio::null());
        command
    }
}
