//! The guests that people run, beyond the one of the tests: other stock kernels, up to 16 vCPUs, and a whole Debian
//! with systemd on a disk. Each is booted, asked what it sees, moved, and asked again.

mod row;

use std::time::{Duration, Instant};

use crate::Error;
use crate::ferry::{Agent, Debian, Ferry, Image, LinuxGuest, World};

pub use row::{Row, Summary};

/// What is generous for one step on a slow machine.
const STEP: Duration = Duration::from_secs(120);
/// Stock kernels, with the vCPUs that they are given.
const KERNELS: [(&str, &[u8]); 3] = [("cloud", &[1, 2, 4, 16]), ("generic", &[2]), ("rt", &[2])];
/// The kernels that a whole Debian is booted with.
const DEBIANS: [(&str, u8); 3] = [("cloud", 2), ("generic", 1), ("rt", 1)];

/// How a guest is booted, moved and looked at.
type Act = fn(&str, u8) -> Result<Seen, Error>;

/// Boots and moves them all, or those whose `kernel userland vCPUs` has `only` in it; each is told as it is done.
pub fn run(only: Option<&str>, tell: &mut dyn FnMut(&Row)) -> Vec<Row> {
    let small = KERNELS.iter().flat_map(|(kernel, cpus)| {
        let act: Act = agent;
        cpus.iter().map(move |&cpus| (*kernel, "agent", cpus, act))
    });
    let act: Act = debian;
    let whole = DEBIANS.map(|(kernel, cpus)| (kernel, "Debian", cpus, act));
    let wanted = |(kernel, userland, cpus, _): &(&str, &str, u8, Act)| {
        only.is_none_or(|only| format!("{kernel} {userland} {cpus}").contains(only))
    };
    let guests = small.chain(whole).filter(wanted);
    let rows = guests.map(|(kernel, userland, cpus, act)| {
        let row = Row::of(kernel, userland, cpus, || act(kernel, cpus));
        tell(&row);
        row
    });
    rows.collect()
}

/// What a guest said before and after its move.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    boot: Duration,
    kernel: String,
    cpus: u64,
    blackout_ms: f64,
}

/// The small guest: a kernel and the agent.
fn agent(kernel: &str, cpus: u8) -> Result<Seen, Error> {
    let guest = LinuxGuest {
        cpus,
        ..LinuxGuest::new(Image::built(kernel)?)
    };
    let world = World::new(1)?;
    let (mut source, boot) = timed_boot(&guest, &world)?;
    let agent = Agent::new(&world.world, 0);
    let look = || {
        let status = agent.ask("status", STEP)?;
        let kernel = status["kernel"].as_str().unwrap_or_default().to_owned();
        Ok((kernel, status["cpus"].as_u64().unwrap_or_default()))
    };
    there(&guest, &world, &mut source, boot, &look)
}

/// A whole Debian, to its login prompt, and a command by ssh.
fn debian(kernel: &str, cpus: u8) -> Result<Seen, Error> {
    let debian = Debian::built()?;
    let disk = debian.disk()?;
    let guest = LinuxGuest {
        cpus,
        ..debian.guest(Image::built(kernel)?, &disk)
    };
    let world = World::new(1)?;
    let (mut source, boot) = timed_boot(&guest, &world)?;
    let ssh = debian.ssh(&world.world);
    let look = || {
        let said = ssh.wait("uname -r; grep -c ^processor /proc/cpuinfo", STEP)?;
        let (kernel, cpus) = said.split_once('\n').unwrap_or_default();
        Ok((kernel.to_owned(), cpus.trim().parse().unwrap_or_default()))
    };
    there(&guest, &world, &mut source, boot, &look)
}

fn timed_boot(guest: &LinuxGuest, world: &World) -> Result<(Ferry, Duration), Error> {
    let start = Instant::now();
    let ferry = guest.boot(Some(&world.a))?;
    Ok((ferry, start.elapsed()))
}

/// Moves the guest from A to B, and looks at it before and after.
fn there(
    guest: &LinuxGuest,
    world: &World,
    source: &mut Ferry,
    boot: Duration,
    look: &dyn Fn() -> Result<(String, u64), Error>,
) -> Result<Seen, Error> {
    let before = look()?;
    let destination = guest.receive(&world.b, &format!("{}:4700", World::B))?;
    let target = format!("tcp:{}:4700", World::B);
    let moved = source
        .migrate(&target, &["--insecure-plaintext"])?
        .completed()?;
    source.wait_end(STEP)?;
    let after = look()?;
    drop(destination);
    if before != after {
        return Err(Error::Unexpected(format!(
            "the guest was {before:?} before its move, and is {after:?}"
        )));
    }
    let (kernel, cpus) = after;
    Ok(Seen {
        boot,
        kernel,
        cpus,
        blackout_ms: moved.report["blackout_ms"].as_f64().unwrap_or(f64::NAN),
    })
}
