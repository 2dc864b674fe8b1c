//! The outer side of a nested host: the QEMU process and the conversation with the init program in it.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{self, Child, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::frames::{Command, Ended, Frame, Ready};
use super::kernel::Kernel;
use super::{CONTROL_PORT, POKE_PERIOD, POKE_PORT, ROOT_TAG, SHARE_TAG, default_cache, initramfs};
use crate::qemu::Package;
use crate::{Error, lock};
use vmm::study::child::spawn_bound;

/// How long the nested kernel may take to its init. Seen: 4 s; busy machines are given much more.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// How many lines of the console are kept to explain an end.
const CONSOLE_LINES: usize = 40;

/// What a nested host is made of.
#[derive(Debug, Clone)]
pub struct Options {
    /// The static program that is process 1 inside: the `nested-host` binary.
    pub init: PathBuf,
    /// Where kernels are kept.
    pub cache: PathBuf,
    /// The folder that can be written inside, under the same path. Absolute.
    pub share: Option<PathBuf>,
    /// What it emulates, in QEMU's words; must have `svm`.
    pub cpu: String,
    /// Processors, 1 to 64.
    pub cpus: u32,
    /// Memory in MiB. Only what is used is taken from this machine.
    pub memory_mib: u32,
    /// Where all that the nested kernel prints goes, for a look at its troubles.
    pub console: Option<PathBuf>,
    /// A machine that says nothing for so long, not even that it lives, stands still. It says that every
    /// [`super::frames::ALIVE_PERIOD`].
    pub standstill: Duration,
    /// After this time QEMU is ended, whatever runs inside.
    pub timeout: Duration,
}

impl Options {
    /// The processor if nothing else is asked for.
    pub const CPU: &str = "EPYC,+svm";

    /// The usual ones: 4 GiB of memory, half an hour, a minute and a half of silence, nothing shared for writing, and
    /// one processor. With two, each on a thread of its own, QEMU 7.2 lost 5 of 40 boots of a guest inside (triple
    /// faults, hangs); with two on one thread 1 of 90, and moves took four minutes; with one 0 of 40, and the tests
    /// take half the time.
    pub fn new(init: PathBuf) -> Self {
        Self {
            init,
            cache: default_cache(),
            share: None,
            cpu: Self::CPU.into(),
            cpus: 1,
            memory_mib: 4096,
            console: None,
            standstill: Duration::from_secs(90),
            timeout: Duration::from_secs(30 * 60),
        }
    }
}

/// Which of a command's outputs some bytes belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A booted nested host. Dropping it ends QEMU.
#[derive(Debug)]
pub struct Host {
    port: UnixStream,
    ready: Ready,
    machine: Machine,
    standstill: Duration,
}

impl Host {
    /// Boots a nested host and waits until it takes commands.
    ///
    /// # Errors
    /// No kernel, no QEMU, or the machine did not come up in time.
    pub fn boot(options: &Options) -> Result<Self, Error> {
        let kernel = Kernel::newest(&options.cache)?;
        let archive = initramfs::build(&options.init, &kernel.modules)?;
        let socket = |e| Error::file("make", "(socket pair)".as_ref(), e);
        let (port, inner) = UnixStream::pair().map_err(socket)?;
        let (pokes, poked) = UnixStream::pair().map_err(socket)?;
        let inner = [inner, poked].map(OwnedFd::from);
        let ports = [CONTROL_PORT, POKE_PORT].into_iter().zip(&inner);
        let command = qemu(options, &kernel, &archive.path(), ports)?;
        let machine = Machine::start(command, inner.into(), options)?;
        pokes.set_nonblocking(true).map_err(socket)?;
        thread::spawn(move || poke(pokes));

        port.set_read_timeout(Some(BOOT_LIMIT.min(options.timeout)))
            .map_err(socket)?;
        let mut reader = &port;
        let ready = match Frame::read(&mut reader) {
            Ok(Frame::Ready(ready)) => ready,
            Ok(other) => return Err(machine.gone(format!("it began with {other:?}"))),
            Err(error) => return Err(machine.gone(format!("while it booted: {error}"))),
        };
        port.set_read_timeout(Some(options.standstill))
            .map_err(socket)?;
        Ok(Self {
            port,
            ready,
            machine,
            standstill: options.standstill,
        })
    }

    /// What it said of itself.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// The process id of its QEMU.
    pub fn qemu(&self) -> u32 {
        lock(&self.machine.child).id()
    }

    /// Runs a command to its end, handing on its output as it comes.
    ///
    /// # Errors
    /// The nested host ended meanwhile, or stands still; it takes no further commands.
    pub fn run(
        &mut self,
        command: &Command,
        mut output: impl FnMut(Stream, &[u8]),
    ) -> Result<Ended, Error> {
        let standstill = self.standstill;
        let lost = |machine: &Machine, error: io::Error| match error.kind() {
            io::ErrorKind::WouldBlock => Error::StandsStill(standstill, machine.last_lines()),
            _ => machine.gone(format!("while a command ran: {error}")),
        };
        Frame::Run(command.clone())
            .write(&mut self.port)
            .map_err(|e| lost(&self.machine, e))?;
        loop {
            match Frame::read(&mut self.port).map_err(|e| lost(&self.machine, e))? {
                Frame::Alive => {}
                Frame::Stdout(bytes) => output(Stream::Stdout, &bytes),
                Frame::Stderr(bytes) => output(Stream::Stderr, &bytes),
                Frame::Ended(ended) => return Ok(ended),
                other @ (Frame::Ready(_) | Frame::Run(_)) => {
                    return Err(self.machine.gone(format!("it answered {other:?}")));
                }
            }
        }
    }
}

/// The command line. The machine is emulated whole (TCG): `+svm` gives it AMD's virtualization, which TCG
/// implements with nested paging.
fn qemu<'a>(
    options: &Options,
    kernel: &Kernel,
    archive: &str,
    ports: impl Iterator<Item = (&'a str, &'a OwnedFd)>,
) -> Result<process::Command, Error> {
    // An emulated processor does not speculate, so what keeps a kernel from being spied on by that only costs time. With
    // two processors, kernels that did it were lost in one boot of three (a fault right behind VMRUN), others not yet.
    let mut append = String::from("console=ttyS0 panic=-1 quiet tsc=reliable mitigations=off");
    let mut command = Package::at_hand().command();
    command
        .args([
            "-M",
            "q35",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            &options.cpu,
        ])
        .args(["-nodefaults", "-display", "none", "-no-reboot"])
        .args(["-chardev", "stdio,id=console,signal=off"])
        .args(["-serial", "chardev:console"])
        .args(["-device", "virtio-serial-pci"])
        .args(["-smp", &options.cpus.to_string()])
        .args(["-m", &format!("{}M", options.memory_mib)])
        .arg("-kernel")
        .arg(&kernel.image)
        .args(["-initrd", archive]);
    for (name, fd) in ports {
        let fd = fd.as_raw_fd();
        command
            .args(["-chardev", &format!("socket,id={name},fd={fd}")])
            .args([
                "-device",
                &format!("virtserialport,chardev={name},name={name}"),
            ]);
    }
    share(&mut command, ROOT_TAG, "/", ",readonly=on");
    if let Some(folder) = &options.share {
        let folder = fs::canonicalize(folder).map_err(|e| Error::file("find", folder, e))?;
        let path = folder
            .to_str()
            .filter(|path| !path.contains([',', ' ', '"', '=']))
            .ok_or_else(|| {
                let error = std::io::Error::other("its path has a blank, comma or quote");
                Error::file("share", &folder, error)
            })?;
        share(&mut command, SHARE_TAG, path, "");
        append.push_str(&format!(" nested.share={path}"));
    }
    command
        .args(["-append", &append])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Ok(command)
}

/// Interrupts the machine now and then, until it is gone.
fn poke(mut port: UnixStream) {
    loop {
        match port.write(&[0]) {
            Ok(_) => {}
            // It has not looked at those before: it boots, or stands still.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
        thread::sleep(POKE_PERIOD);
    }
}

fn share(command: &mut process::Command, tag: &str, path: &str, extra: &str) {
    let fsdev = format!("local,id={tag},path={path},security_model=none,multidevs=remap{extra}");
    command.args(["-fsdev", &fsdev]).args([
        "-device",
        &format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"),
    ]);
}

/// The QEMU process, with the last of what it printed. It never outlives this value.
#[derive(Debug)]
struct Machine {
    child: Arc<Mutex<Child>>,
    console: Arc<Mutex<VecDeque<String>>>,
    timeout: Duration,
    /// Dropped, it ends the watchdog.
    stop: Option<mpsc::Sender<()>>,
    watchdog: Option<JoinHandle<()>>,
    timed_out: Arc<Mutex<bool>>,
}

impl Machine {
    fn start(
        command: process::Command,
        ports: Vec<OwnedFd>,
        options: &Options,
    ) -> Result<Self, Error> {
        let timeout = options.timeout;
        let copy = options
            .console
            .as_deref()
            .map(|path| File::create(path).map_err(|e| Error::file("make", path, e)))
            .transpose()?;
        let mut child = spawn_bound(command, ports).map_err(Error::NoQemu)?;
        let console = Arc::new(Mutex::new(VecDeque::new()));
        if let Some(stdout) = child.stdout.take() {
            keep_tail(stdout, &console, copy);
        }
        if let Some(stderr) = child.stderr.take() {
            keep_tail(stderr, &console, None);
        }
        let child = Arc::new(Mutex::new(child));
        let timed_out = Arc::new(Mutex::new(false));
        let (stop, stopped) = mpsc::channel();
        let watchdog = thread::spawn({
            let (child, timed_out) = (Arc::clone(&child), Arc::clone(&timed_out));
            move || {
                if stopped.recv_timeout(timeout) == Err(mpsc::RecvTimeoutError::Timeout) {
                    *lock(&timed_out) = true;
                    let _ = lock(&child).kill();
                }
            }
        });
        Ok(Self {
            child,
            console,
            timeout,
            stop: Some(stop),
            watchdog: Some(watchdog),
            timed_out,
        })
    }

    /// The error that explains why the conversation broke off.
    fn gone(&self, why: String) -> Error {
        let console = self.last_lines();
        if *lock(&self.timed_out) {
            Error::Timeout(self.timeout, console)
        } else {
            Error::Gone { why, console }
        }
    }

    /// The end of its console.
    fn last_lines(&self) -> String {
        // The last words of a dying machine are on their way through the pipes.
        thread::sleep(Duration::from_millis(300));
        let lines = lock(&self.console);
        lines.iter().map(|line| format!("  {line}\n")).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(watchdog) = self.watchdog.take() {
            let _ = watchdog.join();
        }
        let mut child = lock(&self.child);
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn keep_tail(
    from: impl std::io::Read + Send + 'static,
    console: &Arc<Mutex<VecDeque<String>>>,
    mut copy: Option<File>,
) {
    let console = Arc::clone(console);
    thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            // EPYC names features that TCG leaves out; QEMU says so for each, at every start.
            if line.contains("TCG doesn't support requested feature") {
                continue;
            }
            if let Some(copy) = &mut copy {
                let _ = writeln!(copy, "{line}");
            }
            let mut kept = lock(&console);
            kept.push_back(line);
            if kept.len() > CONSOLE_LINES {
                kept.pop_front();
            }
        }
    });
}
