//! Network namespaces, links and shaping, made with `ip` and `tc`, of whole-VM tests and of studies.
//!
//! Everything lies in namespaces of our own with names of our own; deleting these deletes the rest.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use thiserror::Error;

use crate::units::Rate;

/// What a network is made of could not be had.
#[derive(Debug, Error)]
pub enum NetnsError {
    /// `ip` or `tc` refused.
    #[error("{command}: {said}; networks need root, and Debian's iproute2")]
    Tool {
        /// What was run.
        command: String,
        /// Its complaint.
        said: String,
    },
    /// A namespace cannot be entered.
    #[error("cannot enter the network namespace {}", .path.display())]
    Enter {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// htb hands out what its rate allows when a timer says so; what it could not hand out since the timer came late is
/// lost, but for its bursts, of which `tc` allows none at 10 Gbit/s if it is not told: on a busy host a link of 7.8
/// Gbit/s is left of that. So much time may be caught up on. It is what the ring of a network card holds: 1024 frames of
/// 1500 bytes take 1.2 ms at 10 Gbit/s.
const SLACK: Duration = Duration::from_millis(1);

/// The bytes that a link of that rate carries in [`SLACK`]; a frame's at least.
fn carried_in_slack(Rate(bytes_per_s): Rate) -> u64 {
    let bytes = u128::from(bytes_per_s) * SLACK.as_nanos() / 1_000_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX).max(1600)
}

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
    pub fn new(label: &str) -> Result<Self, NetnsError> {
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
    pub fn ip(&self, args: &str) -> Result<(), NetnsError> {
        run(Command::new("ip")
            .args(["-n", &self.name])
            .args(args.split_whitespace()))
    }

    /// Runs `tc ARGS` in it.
    ///
    /// # Errors
    /// It fails, with its complaint.
    pub fn tc(&self, args: &str) -> Result<(), NetnsError> {
        run(Command::new("tc")
            .args(["-n", &self.name])
            .args(args.split_whitespace()))
    }

    /// Adds a bridge that forwards from the first packet on.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn add_bridge(&self, name: &str) -> Result<(), NetnsError> {
        self.ip(&format!(
            "link add dev {name} type bridge forward_delay 0 stp_state 0"
        ))?;
        self.ip(&format!("link set dev {name} up"))
    }

    /// Adds a tap, as a port of a bridge if one is given.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn add_tap(&self, name: &str, bridge: Option<&str>) -> Result<(), NetnsError> {
        self.ip(&format!("tuntap add dev {name} mode tap vnet_hdr"))?;
        self.up(name, bridge)
    }

    /// Adds a tap of several queues, as a port of a bridge if one is given.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn add_multi_queue_tap(&self, name: &str, bridge: Option<&str>) -> Result<(), NetnsError> {
        self.ip(&format!(
            "tuntap add dev {name} mode tap multi_queue vnet_hdr"
        ))?;
        self.up(name, bridge)
    }

    /// Joins two namespaces by a pair of devices, each up.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn join(&self, device: &str, other: &Netns, other_device: &str) -> Result<(), NetnsError> {
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
    pub fn up(&self, device: &str, bridge: Option<&str>) -> Result<(), NetnsError> {
        if let Some(bridge) = bridge {
            self.ip(&format!("link set dev {device} master {bridge}"))?;
        }
        self.ip(&format!("link set dev {device} up"))
    }

    /// Limits what leaves by a device to `rate`, by htb, which may catch up on [`SLACK`].
    ///
    /// # Errors
    /// `tc` fails.
    pub fn shape(&self, device: &str, rate: Rate) -> Result<(), NetnsError> {
        let (bits, burst) = (rate.0.saturating_mul(8), carried_in_slack(rate));
        self.tc(&format!(
            "qdisc replace dev {device} root handle 1: htb default 1"
        ))?;
        self.tc(&format!(
            "class replace dev {device} parent 1: classid 1:1 htb rate {bits}bit quantum 60000 burst {burst} cburst {burst}"
        ))
    }

    /// Runs `work` on a thread of its own in the namespace: sockets made there belong to it for good.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        let path = format!("/run/netns/{}", self.name);
        let failed = |source| NetnsError::Enter {
            path: PathBuf::from(&path),
            source,
        };
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

fn run(command: &mut Command) -> Result<(), NetnsError> {
    let failed = |said: String| {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
        NetnsError::Tool {
            command: words.join(" "),
            said,
        }
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_link_catches_up_on_a_millisecond() {
        for (rate, bytes) in [
            ("10Gbit", 1_250_000),
            ("1Gbit", 125_000),
            ("300Mbit", 37_500),
            ("940Mbit", 117_500),
            ("1Mbit", 1600),
            ("64kbit", 1600),
        ] {
            assert_eq!(carried_in_slack(rate.parse().unwrap()), bytes, "{rate}");
        }
        assert_eq!(carried_in_slack(Rate(0)), 1600);
        assert_eq!(carried_in_slack(Rate(u64::MAX)), u64::MAX / 1000);
    }
}
