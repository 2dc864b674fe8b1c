//! How long a stock kernel takes to its init, in Ferry and in QEMU's smallest machine, one after the other in one
//! place; and how much memory each takes beside the guest's.
//!
//! Both get the same kernel, initramfs and command line, one vCPU and no device but the serial port. What is timed
//! begins with the start of the process and ends with the first line that the guest's init prints.

mod footprint;
mod summary;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::ferry::{Ferry, Image, Lines};
use crate::qemu::Package;
use crate::{Error, chain};
use vmm::boot::{DEFAULT_CMDLINE, NO_PCI};
use vmm::study::child::spawn_bound;

pub use footprint::Own;
pub use summary::{Figures, Summary};

/// The first that the init of `guest-images` prints.
const INIT: &str = "INIT begins";
/// A boot that takes longer is given up, and tried again.
const LIMIT: Duration = Duration::from_secs(100);
/// How often in a row. QEMU's emulation of SVM loses a boot in about a hundred, whatever runs in it.
const ATTEMPTS: u32 = 3;
/// The guest's memory, in MiB.
const MEMORY_MIB: u64 = 256;
/// What both kernels are told.
const WORDS: &str = "quiet";

/// One boot.
#[derive(Debug, Clone, Copy)]
pub struct Boot {
    /// From the start of the process to the first line of init.
    time: Duration,
    /// Resident memory of the process that is not the guest's, then.
    own: Own,
}

/// Boots each of the two so often, in turn; each boot is told as it is done.
///
/// # Errors
/// One of them does not boot.
pub fn run(runs: u32, tell: &mut dyn FnMut(&str)) -> Result<Summary, Error> {
    let image = Image::built("cloud")?;
    let (package, why_not) = Package::find()?;
    if let Some(why) = why_not {
        tell(&format!("QEMU is the installed one: {}", chain(&why)));
    }
    let (mut ferry, mut qemu) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let boot = patiently(|| boot_ferry(&image))?;
        tell(&format!("Ferry {boot}"));
        ferry.push(boot);
        let boot = patiently(|| boot_qemu(&package, &image))?;
        tell(&format!("QEMU  {boot}"));
        qemu.push(boot);
    }
    Ok(Summary::new(&ferry, &qemu, version(&package)?))
}

fn patiently(boot: impl Fn() -> Result<Boot, Error>) -> Result<Boot, Error> {
    let mut result = boot();
    for _ in 1..ATTEMPTS {
        if let Err(error) = &result {
            eprintln!("no boot, once more: {}", chain(error));
            result = boot();
        }
    }
    result
}

fn boot_ferry(image: &Image) -> Result<Boot, Error> {
    let (kernel, initramfs) = (
        image.kernel.to_string_lossy(),
        image.initramfs.to_string_lossy(),
    );
    let memory = format!("{MEMORY_MIB}M");
    let words = [
        "run",
        &kernel,
        "--initramfs",
        &initramfs,
        "--memory",
        &memory,
        "--append",
        WORDS,
    ];
    let start = Instant::now();
    let mut ferry = Ferry::start(None, &words)?;
    ferry.wait_console(INIT, LIMIT, |line| line.contains(INIT))?;
    Boot::now(start, ferry.pid())
}

fn boot_qemu(package: &Package, image: &Image) -> Result<Boot, Error> {
    let mut command = Command::new(package.program());
    package.prepare(&mut command);
    command
        // As QEMU's own manual makes it smallest.
        .args(["-machine", "microvm,pit=off,pic=off,rtc=off"])
        .args(["-accel", "kvm", "-cpu", "host", "-smp", "1"])
        .args(["-m", &MEMORY_MIB.to_string()])
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-no-reboot", "-serial", "stdio"])
        .arg("-kernel")
        .arg(&image.kernel)
        .arg("-initrd")
        .arg(&image.initramfs)
        .args(["-append", &format!("{DEFAULT_CMDLINE} {NO_PCI} {WORDS}")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let start = Instant::now();
    let mut qemu = Qemu(spawn_bound(command, Vec::new()).map_err(Error::NoQemu)?);
    let console = qemu.0.stdout.take().map(Lines::collect).unwrap_or_default();
    let messages = qemu.0.stderr.take().map(Lines::collect).unwrap_or_default();
    if console.wait(0, LIMIT, |line| line.contains(INIT)).is_none() {
        return Err(Error::Waited {
            limit: LIMIT,
            what: INIT.into(),
            end: "QEMU has not come so far".into(),
            tail: console.tail() + &messages.tail(),
        });
    }
    Boot::now(start, qemu.0.id())
}

/// What `qemu-system-x86_64 --version` says first.
fn version(package: &Package) -> Result<String, Error> {
    let output = package.command().arg("--version").output();
    let text = output.map_err(Error::NoQemu)?.stdout;
    let text = String::from_utf8_lossy(&text);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// A process that ends with this value.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Boot {
    fn now(start: Instant, pid: u32) -> Result<Self, Error> {
        Ok(Self {
            time: start.elapsed(),
            own: footprint::beside(pid, MEMORY_MIB << 20)?,
        })
    }
}

impl std::fmt::Display for Boot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (ms, kib) = (self.time.as_millis(), self.own.bytes >> 10);
        write!(
            f,
            "{ms:>6} ms to init, {kib:>7} KiB beside the guest's memory"
        )
    }
}
