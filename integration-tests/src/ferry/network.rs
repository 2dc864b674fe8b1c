//! Networks for guests: namespaces, links, bridges, taps and shaped links, made with `ip` and `tc`.
//!
//! Everything lies in namespaces of our own with names of our own; deleting these deletes the rest.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use nix::sched::{CloneFlags, setns};

use crate::Error;

/// A network namespace with `lo` up. Deleted when dropped, with all devices in it.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes one; `label` is for people who look at `ip netns` meanwhile.
    ///
    /// # Errors
    /// `ip` fails: most likely we are not root.
    pub fn new(label: &str) -> Result<Self, Error> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ferry-{}-{number}-{label}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let netns = Self { name };
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// Its name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run in it, as the same process that is started.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs `ip ARGS` in it; the words of `args` are separated by blanks.
    ///
    /// # Errors
    /// It fails, with its complaint.
    pub fn ip(&self, args: &str) -> Result<(), Error> {
        run(Command::new("ip")
            .args(["-n", &self.name])
            .args(args.split_whitespace()))
    }

    /// Runs `tc ARGS` in it.
    ///
    /// # Errors
    /// It fails, with its complaint.
    pub fn tc(&self, args: &str) -> Result<(), Error> {
        run(Command::new("tc")
            .args(["-n", &self.name])
            .args(args.split_whitespace()))
    }

    /// Adds a bridge that forwards from the first packet on.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn add_bridge(&self, name: &str) -> Result<(), Error> {
        self.ip(&format!(
            "link add dev {name} type bridge forward_delay 0 stp_state 0"
        ))?;
        self.ip(&format!("link set dev {name} up"))
    }

    /// Adds a tap, as a port of a bridge if one is given.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn add_tap(&self, name: &str, bridge: Option<&str>) -> Result<(), Error> {
        self.ip(&format!("tuntap add dev {name} mode tap vnet_hdr"))?;
        self.up(name, bridge)
    }

    /// Joins two namespaces by a pair of devices, each up.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn join(&self, device: &str, other: &Netns, other_device: &str) -> Result<(), Error> {
        self.ip(&format!(
            "link add dev {device} type veth peer name {other_device} netns {}",
            other.name
        ))?;
        self.up(device, None)?;
        other.up(other_device, None)
    }

    /// Sets a device up, as a port of a bridge if one is given.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn up(&self, device: &str, bridge: Option<&str>) -> Result<(), Error> {
        if let Some(bridge) = bridge {
            self.ip(&format!("link set dev {device} master {bridge}"))?;
        }
        self.ip(&format!("link set dev {device} up"))
    }

    /// Limits what leaves by a device to `rate` (`tc`'s words: `1gbit`), by htb.
    ///
    /// # Errors
    /// `tc` fails.
    pub fn shape(&self, device: &str, rate: &str) -> Result<(), Error> {
        self.tc(&format!(
            "qdisc replace dev {device} root handle 1: htb default 1"
        ))?;
        self.tc(&format!(
            "class replace dev {device} parent 1: classid 1:1 htb rate {rate} quantum 60000"
        ))
    }

    /// Runs `work` on a thread of its own in the namespace: sockets made there belong to it for good.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let path = format!("/run/netns/{}", self.name);
        let failed = |e| Error::file("enter the network namespace", path.as_ref(), e);
        let netns = File::open(&path).map_err(failed)?;
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&netns, CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            });
            match thread.join() {
                Ok(result) => result.map_err(|e: nix::Error| failed(e.into())),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = run(Command::new("ip").args(["netns", "del", &self.name]));
    }
}

/// Two hosts and the network that guests and their peers share.
///
/// ```text
///            world  bridge br0 10.8.K.1/24, one for each of the guest's NICs (K)
///             |  |
///      toA-K  |  |  toB-K
///   +---------+  +----------+
///   a: br-K, tapK           b: br-K, tapK
///      move0 10.9.0.1 <--> move0 10.9.0.2       migration traffic
/// ```
#[derive(Debug)]
pub struct World {
    /// Where the guest's peers live.
    pub world: Netns,
    /// The host that has the guest first.
    pub a: Netns,
    /// The host that it is moved to.
    pub b: Netns,
}

impl World {
    /// Address of host A on the migration link.
    pub const A: &str = "10.9.0.1";
    /// Address of host B on the migration link.
    pub const B: &str = "10.9.0.2";

    /// Name of the migration link's device on both hosts.
    pub const LINK: &str = "move0";

    /// Builds it for guests with `nics` NICs (at most 8): `tap0`, `tap1`… on each host.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn new(nics: u8) -> Result<Self, Error> {
        let this = Self {
            world: Netns::new("world")?,
            a: Netns::new("a")?,
            b: Netns::new("b")?,
        };
        this.a.join(Self::LINK, &this.b, Self::LINK)?;
        this.a
            .ip(&format!("address add {}/24 dev {}", Self::A, Self::LINK))?;
        this.b
            .ip(&format!("address add {}/24 dev {}", Self::B, Self::LINK))?;
        for nic in 0..nics {
            let bridge = format!("br{nic}");
            this.world.add_bridge(&bridge)?;
            this.world
                .ip(&format!("address add 10.8.{nic}.1/24 dev {bridge}"))?;
            for (host, label) in [(&this.a, 'a'), (&this.b, 'b')] {
                host.add_bridge(&bridge)?;
                host.add_tap(&format!("tap{nic}"), Some(&bridge))?;
                let port = format!("to-{label}{nic}");
                this.world.join(&port, host, &format!("out{nic}"))?;
                this.world.up(&port, Some(&bridge))?;
                host.up(&format!("out{nic}"), Some(&bridge))?;
            }
        }
        Ok(this)
    }

    /// The address that a guest is to take on its NIC, within `/24`.
    pub fn guest_address(nic: u8) -> String {
        format!("10.8.{nic}.2")
    }
}

fn run(command: &mut Command) -> Result<(), Error> {
    let failed = |said: String| Error::Tool {
        command: format!("{command:?}"),
        said,
    };
    let mut again = Command::new(command.get_program());
    again.args(command.get_args());
    let output = again.output().map_err(|e| failed(e.to_string()))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(failed(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        ))
    }
}
