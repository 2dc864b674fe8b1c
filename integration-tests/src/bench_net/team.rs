//! A program with its guests, and the flows between them and the host.

use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use guest_images::traffic::Kind;

use super::cpu;
use super::end::{End, Who};
use super::qemu::Qemu;
use crate::Error;
use crate::ferry::{Ferry, Netns};
use crate::programs;

/// Which way the bytes go; a request/response goes first that way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From each guest to the host.
    GuestToHost,
    /// From the host to each guest.
    HostToGuest,
    /// From every second guest to the next.
    GuestToGuest,
}

impl Direction {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::GuestToHost, Self::HostToGuest, Self::GuestToGuest];

    /// Its name in the figures.
    pub fn name(self) -> &'static str {
        match self {
            Self::GuestToHost => "guest->host",
            Self::HostToGuest => "host->guest",
            Self::GuestToGuest => "guest->guest",
        }
    }

    /// The least guests that it takes.
    pub fn least(self) -> usize {
        match self {
            Self::GuestToHost | Self::HostToGuest => 1,
            Self::GuestToGuest => 2,
        }
    }
}

/// What keeps a guest alive; it ends when this is dropped.
pub enum Keeper {
    /// A Ferry.
    Ferry(Ferry),
    /// A QEMU.
    Qemu(Qemu),
    /// A namespace stands in for the guest.
    Netns(Netns),
}

impl Keeper {
    fn pid(&self) -> u32 {
        match self {
            Self::Ferry(ferry) => ferry.pid(),
            Self::Qemu(qemu) => qemu.pid(),
            // The traffic is made by threads of this process.
            Self::Netns(_) => std::process::id(),
        }
    }
}

/// A program with its guests.
pub struct Team<'a> {
    /// The program's name in the figures.
    pub program: &'static str,
    /// The host's namespace.
    pub host: &'a Netns,
    /// Its number: its network is 10.8.NUMBER.0/24.
    pub number: u8,
    /// What keeps the guests, in their order.
    pub keepers: Vec<Keeper>,
}

/// What one run has shown.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// All flows together, in bits a second.
    pub bits_per_s: f64,
    /// Processor time of the program for each gigabit, in seconds.
    pub cpu_s_per_gbit: f64,
    /// Frames that went over the guests' taps, both ways, a second; natively 0.
    pub frames_per_s: f64,
}

/// The address of the host (0) or of a guest (from 1 on) in a program's network.
pub fn address(number: u8, of: usize) -> Ipv4Addr {
    // At most four guests.
    Ipv4Addr::new(10, 8, number, 1 + u8::try_from(of).unwrap_or(u8::MAX - 1))
}

/// The MAC address of a guest.
pub fn mac(number: u8, guest: usize) -> String {
    format!("02:00:00:00:{number:02x}:{guest:02x}")
}

/// The name of a guest's tap; those of one program begin alike.
pub fn tap(number: u8, guest: usize) -> String {
    format!("tap{number}-{guest}")
}

/// The words of a guest's kernel command line. It hardly ever ticks, and neither says nor writes anything.
pub fn kernel_words(number: u8, guest: usize) -> String {
    format!(
        "quiet agent.ip0={}/24 agent.tick=60000 agent.ws=1 agent.rate=0",
        address(number, guest + 1)
    )
}

/// Kernel and initramfs of all guests.
///
/// # Errors
/// They are not built.
pub fn image() -> Result<crate::ferry::Image, Error> {
    // Said before anything is started.
    programs::ferry()?;
    crate::ferry::Image::built("cloud")
}

impl<'a> Team<'a> {
    /// Without guests yet: the bridge with the host's address, and the service there.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn new(program: &'static str, host: &'a Netns, number: u8) -> Result<Self, Error> {
        let team = Self {
            program,
            host,
            number,
            keepers: Vec::new(),
        };
        let bridge = team.bridge();
        host.add_bridge(&bridge)?;
        host.ip(&format!(
            "address add {}/24 dev {bridge}",
            address(number, 0)
        ))?;
        team.host_end().serve()?;
        Ok(team)
    }

    /// The bridge that its guests are on.
    pub fn bridge(&self) -> String {
        format!("br{}", self.number)
    }

    fn host_end(&self) -> End<'a> {
        End {
            who: Who::Here(self.host),
            address: address(self.number, 0),
        }
    }

    fn guest_end(&self, guest: usize) -> End<'_> {
        let who = match self.keepers.get(guest) {
            Some(Keeper::Netns(netns)) => Who::Here(netns),
            _ => Who::Guest(self.host),
        };
        End {
            who,
            address: address(self.number, guest + 1),
        }
    }

    /// Adds a guest, and waits until it answers.
    ///
    /// # Errors
    /// It does not.
    pub fn join(&mut self, keeper: Keeper, limit: Duration) -> Result<(), Error> {
        self.keepers.push(keeper);
        let end = self.guest_end(self.keepers.len() - 1);
        end.serve()?;
        end.wait_for(&self.host_end(), limit).inspect_err(|_| {
            if let Some(Keeper::Ferry(ferry)) = self.keepers.last() {
                eprintln!("{}{}", ferry.console().tail(), ferry.messages().tail());
            }
        })
    }

    /// All flows of a row at once, for so long.
    ///
    /// # Errors
    /// One breaks.
    pub fn run(
        &self,
        direction: Direction,
        guests: usize,
        kind: Kind,
        time: Duration,
    ) -> Result<Seen, Error> {
        let flows: Vec<(End<'_>, End<'_>)> = match direction {
            Direction::GuestToHost => (0..guests)
                .map(|guest| (self.guest_end(guest), self.host_end()))
                .collect(),
            Direction::HostToGuest => (0..guests)
                .map(|guest| (self.host_end(), self.guest_end(guest)))
                .collect(),
            Direction::GuestToGuest => (0..guests / 2)
                .map(|pair| (self.guest_end(2 * pair), self.guest_end(2 * pair + 1)))
                .collect(),
        };
        let pids: Vec<u32> = match self.keepers.first() {
            Some(Keeper::Netns(_)) => vec![std::process::id()],
            _ => self.keepers.iter().take(guests).map(Keeper::pid).collect(),
        };
        let (before, frames_before) = (cpu::seconds(&pids), self.frames(guests)?);
        let carried = thread::scope(|scope| {
            let threads: Vec<_> = flows
                .iter()
                .map(|(from, to)| scope.spawn(|| from.flow(kind, to, time)))
                .collect();
            let ended = threads.into_iter().map(|thread| match thread.join() {
                Ok(carried) => carried,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            ended.collect::<Result<Vec<_>, _>>()
        })?;
        let cpu = cpu::seconds(&pids) - before;
        let frames = self.frames(guests)?.saturating_sub(frames_before);
        let bits: f64 = carried.iter().map(|flow| 8.0 * flow.bytes as f64).sum();
        let rates = carried
            .iter()
            .map(|flow| 8e6 * flow.bytes as f64 / flow.micros as f64);
        Ok(Seen {
            bits_per_s: rates.sum(),
            cpu_s_per_gbit: cpu / (bits / 1e9).max(f64::MIN_POSITIVE),
            frames_per_s: frames as f64 / time.as_secs_f64(),
        })
    }

    /// What the kernel has counted on the taps of the first guests (proc_pid_net(5)), both ways, lost ones left out.
    fn frames(&self, guests: usize) -> Result<u64, Error> {
        let path = "/proc/thread-self/net/dev";
        let text = self.host.within(|| std::fs::read_to_string(path))?;
        let text = text.map_err(|e| Error::file("read", path.as_ref(), e))?;
        let taps: Vec<String> = (0..guests).map(|n| tap(self.number, n)).collect();
        let of = |line: &str| {
            let (name, numbers) = line.trim().split_once(':')?;
            // Received: bytes, packets, and six more; then the same of what was sent.
            let number = |at| numbers.split_whitespace().nth(at)?.parse::<u64>().ok();
            let ours = taps.iter().any(|tap| tap == name);
            ours.then_some(number(1)? + number(9)?)
        };
        Ok(text.lines().filter_map(of).sum())
    }
}
