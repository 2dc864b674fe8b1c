//! Stock Linux guests with the agent in them, and the agent's word over the network.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Ferry, Netns, World};
use crate::{Error, chain, nested, programs};

/// Port of the agent's echo service.
const ECHO_PORT: u16 = 7;
/// Port of the agent's control service: one word a line, one line of JSON back.
const CONTROL_PORT: u16 = 9;
/// A guest under two layers of emulation on a busy machine takes its time; on hardware it is seconds.
const BOOT_LIMIT: Duration = Duration::from_secs(100);
/// What the agent prints when it can be asked.
const AGENT_READY: &str = "AGENT READY";
/// How often a boot is tried in the nested host, each failure told. QEMU's emulation of SVM itself loses a boot in
/// about a hundred, by a triple fault or a hang, whatever hypervisor runs in it; on real hardware one attempt has to
/// do.
const BOOTS_NESTED: u32 = 3;

/// A kernel and its initramfs, built by `guest-images/build`.
#[derive(Debug, Clone)]
pub struct Image {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs with the agent.
    pub initramfs: PathBuf,
}

impl Image {
    /// The image of that name: `cloud`, `generic` or `rt`.
    ///
    /// # Errors
    /// It is not built.
    pub fn built(name: &str) -> Result<Self, Error> {
        let folder = programs::target()
            .unwrap_or_default()
            .join("guest-images")
            .join(name);
        let image = Self {
            kernel: folder.join("vmlinuz"),
            initramfs: folder.join("initramfs.cpio"),
        };
        if image.kernel.exists() && image.initramfs.exists() {
            return Ok(image);
        }
        Err(Error::Unexpected(format!(
            "no guest image in {}: build it with `guest-images/build {name}`",
            folder.display()
        )))
    }
}

/// A Linux guest to be started.
#[derive(Debug, Clone)]
pub struct LinuxGuest {
    /// What it boots.
    pub image: Image,
    /// Its vCPUs.
    pub cpus: u8,
    /// The CPU that they are (`--cpu`).
    pub cpu: &'static str,
    /// Its memory, in Ferry's words (`512M`).
    pub memory: String,
    /// Its NICs: `tap0`… of the namespace, with the addresses of [`World::guest_address`].
    pub nics: u8,
    /// Queue pairs of each NIC.
    pub queues: u16,
    /// Its disks, in the words of `--disk`.
    pub disks: Vec<String>,
    /// Its balloon, in the words of `--balloon`.
    pub balloon: Option<&'static str>,
    /// What these are behind (`--virtio`).
    pub virtio: &'static str,
    /// More words of kernel command line, such as `agent.ws=64 agent.rate=2000`.
    pub append: String,
    /// What is in the line of its console by which it is up.
    pub ready: &'static str,
    /// How long it may take until then.
    pub boot_limit: Duration,
}

impl LinuxGuest {
    /// A guest with 2 vCPUs, 512 MiB and one NIC.
    pub fn new(image: Image) -> Self {
        Self {
            image,
            cpus: 2,
            cpu: "host",
            memory: "512M".into(),
            nics: 1,
            queues: 1,
            disks: Vec::new(),
            balloon: None,
            virtio: "pci",
            append: String::new(),
            ready: AGENT_READY,
            boot_limit: BOOT_LIMIT,
        }
    }

    /// Starts it and waits until it is up: for its agent to be ready, if nothing else is said.
    ///
    /// # Errors
    /// It does not come up in time.
    pub fn boot(&self, netns: Option<&Netns>) -> Result<Ferry, Error> {
        let mut append = self.append.clone();
        let mut nets = Vec::new();
        for nic in 0..self.nics {
            append.push_str(&format!(" agent.ip{nic}={}/24", World::guest_address(nic)));
            nets.push(format!("tap=tap{nic},queues={}", self.queues));
        }
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let (kernel, initramfs) = (text(&self.image.kernel), text(&self.image.initramfs));
        let cpus = self.cpus.to_string();
        let mut args = vec!["run", &kernel, "--initramfs", &initramfs];
        args.extend(["--virtio", self.virtio]);
        args.extend(["--cpus", &cpus, "--cpu", self.cpu, "--memory", &self.memory]);
        for net in &nets {
            args.extend(["--net", net]);
        }
        for disk in &self.disks {
            args.extend(["--disk", disk]);
        }
        if let Some(balloon) = self.balloon {
            args.extend(["--balloon", balloon]);
        }
        let attempt = |more: &str| {
            let append = format!("{more}{append}");
            let args = [&args[..], &["--append", append.trim()]].concat();
            let mut ferry = Ferry::start(netns, &args)?;
            ferry.wait_console(self.ready, self.boot_limit, |line| {
                line.contains(self.ready)
            })?;
            Ok(ferry)
        };
        // The kernel's messages are some 20,000 exits, seconds where those are emulated, and come in between the
        // agent's words. If it does not come up, they are what is needed.
        let mut result = attempt("quiet ");
        for _ in 1..if nested::inside() { BOOTS_NESTED } else { 1 } {
            if let Err(error) = &result {
                eprintln!(
                    "the guest did not boot in the nested host, once more: {}",
                    chain(error)
                );
                result = attempt("");
            }
        }
        result
    }

    /// Starts a receiver with this guest's taps and disks that listens on `address`.
    ///
    /// # Errors
    /// It cannot be started, or its control socket does not answer.
    pub fn receive(&self, netns: &Netns, address: &str) -> Result<Ferry, Error> {
        self.receive_with(netns, address, &[])
    }

    /// The same with more words for `ferry receive`; if these name disks, they name all.
    ///
    /// # Errors
    /// It cannot be started, or its control socket does not answer.
    pub fn receive_with(
        &self,
        netns: &Netns,
        address: &str,
        more: &[&str],
    ) -> Result<Ferry, Error> {
        let nets: Vec<_> = (0..self.nics).map(|n| format!("{n}=tap=tap{n}")).collect();
        let numbered = self.disks.iter().enumerate();
        let disks: Vec<_> = numbered.map(|(n, disk)| format!("{n}={disk}")).collect();
        let mut args = more.to_vec();
        if !more.contains(&"--disk") {
            args.extend(disks.iter().flat_map(|disk| ["--disk", disk]));
        }
        if !more.contains(&"--tls") {
            args.push("--insecure-plaintext");
        }
        for net in &nets {
            args.extend(["--net", net]);
        }
        Ferry::receive(Some(netns), &format!("tcp:{address}"), &args)
    }
}

/// The agent of a guest, asked over the network from a namespace.
#[derive(Debug)]
pub struct Agent<'a> {
    from: &'a Netns,
    nic: u8,
}

impl<'a> Agent<'a> {
    /// The agent behind a NIC of the guest.
    pub fn new(from: &'a Netns, nic: u8) -> Self {
        Self { from, nic }
    }

    /// Where its echo service listens.
    ///
    /// # Errors
    /// Never: the address is of our own making.
    pub fn echo_address(&self) -> Result<SocketAddr, Error> {
        self.address(ECHO_PORT)
    }

    fn address(&self, port: u16) -> Result<SocketAddr, Error> {
        let text = format!("{}:{port}", World::guest_address(self.nic));
        text.parse()
            .map_err(|e| Error::Unexpected(format!("{text} is no address: {e}")))
    }

    /// Asks `status`, `check`, `uptime`…, anew until `limit` if it does not answer, and gives back what it
    /// says.
    ///
    /// # Errors
    /// It does not answer in time.
    pub fn ask(&self, word: &str, limit: Duration) -> Result<Value, Error> {
        let address = self.address(CONTROL_PORT)?;
        let start = Instant::now();
        loop {
            match self.from.within(|| ask(address, word, limit))? {
                Ok(answer) => return Ok(answer),
                Err(error) if start.elapsed() > limit => {
                    return Err(Error::file(
                        "ask",
                        format!("the agent at {address} ({word})").as_ref(),
                        error,
                    ));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }
}

fn ask(address: SocketAddr, word: &str, limit: Duration) -> std::io::Result<Value> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(format!("{word}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

/// The agent's ticks on the consoles that the guest had one after another.
#[derive(Debug, Clone, PartialEq)]
pub struct Ticks {
    /// How many lines there are.
    pub count: u64,
    /// `/proc/uptime` at the last, in seconds.
    pub last_uptime: f64,
}

impl Ticks {
    /// Reads `tick N MONOTONIC_NS UPTIME_S` lines and demands that none is missing, repeated or goes back in
    /// time, where the consoles meet in mid-line too.
    ///
    /// # Errors
    /// The first line that breaks the sequence.
    pub fn unbroken(consoles: &[String]) -> Result<Self, Error> {
        let text = without_kernel_messages(&consoles.concat());
        let mut last: Option<(u64, u64)> = None;
        let mut ticks = Self {
            count: 0,
            last_uptime: 0.0,
        };
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        for (index, line) in whole.lines().enumerate() {
            let Some((number, nanoseconds, uptime)) = parse_tick(line) else {
                continue;
            };
            let follows = last.is_none_or(|(n, ns)| number == n + 1 && nanoseconds > ns);
            if !follows || uptime < ticks.last_uptime {
                let around: Vec<_> = whole
                    .lines()
                    .skip(index.saturating_sub(5))
                    .take(8)
                    .collect();
                return Err(Error::Unexpected(format!(
                    "\"{line}\" does not follow tick {last:?} in {around:#?}"
                )));
            }
            last = Some((number, nanoseconds));
            ticks.count += 1;
            ticks.last_uptime = uptime;
        }
        Ok(ticks)
    }
}

/// The kernel writes its messages, `[   31.035979] …`, to the console in the middle of what a program writes.
fn without_kernel_messages(text: &str) -> String {
    let mut rest = text;
    let mut kept = String::with_capacity(text.len());
    while let Some((before, behind)) = rest.split_once('[') {
        kept.push_str(before);
        let stamp = behind.split_once("] ").map_or("", |(stamp, _)| stamp);
        let seconds = stamp.trim_start().split_once('.');
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if seconds.is_some_and(|(whole, part)| digits(whole) && digits(part) && part.len() == 6) {
            rest = behind.split_once('\n').map_or("", |(_, next)| next);
        } else {
            kept.push('[');
            rest = behind;
        }
    }
    kept + rest
}

fn parse_tick(line: &str) -> Option<(u64, u64, f64)> {
    let mut words = line.trim().strip_prefix("tick ")?.split(' ');
    let tick = (
        words.next()?.parse().ok()?,
        words.next()?.parse().ok()?,
        words.next()?.parse().ok()?,
    );
    words.next().is_none().then_some(tick)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ticks_go_on_across_consoles() {
        let a = "AGENT READY\ntick 1 100 0.10\r\nchecksum ok 1\ntick 2 200 0.2".to_owned();
        let b = "0\ntick 3 300 0.30\ntick 4 4".to_owned();
        let ticks = Ticks::unbroken(&[a.clone(), b]).unwrap();
        assert_eq!((ticks.count, ticks.last_uptime), (3, 0.3));
        let amid = "0\ntick 3 3[   31.035979] hrtimer: interrupt took 94 ns\r\n00 0.30\n[x] y\n"
            .to_owned();
        let ticks = Ticks::unbroken(&[a.clone(), amid]).unwrap();
        assert_eq!((ticks.count, ticks.last_uptime), (3, 0.3));
        for broken in [
            "0\ntick 4 400 0.40\n",
            "0\ntick 3 150 0.30\n",
            "0\ntick 2 300 0.30\n",
        ] {
            assert!(
                Ticks::unbroken(&[a.clone(), broken.to_owned()]).is_err(),
                "{broken}"
            );
        }
    }
}
