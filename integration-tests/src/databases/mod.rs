//! Databases that are moved under load: Redis and PostgreSQL in a whole Debian, both of which have said of each write that it
//! is on the disk. After the moves the power is cut, in the middle of writing; then every such write has to be there.
//!
//! ```text
//!   world: writers to Redis, pgbench --- br0 --- virtio-net --- Redis, PostgreSQL --- ext4 --- virtio-blk --- one file
//!                                         |                          ^                                          |
//!                                       host A  <----- moves ----->  guest  <----- moves ----->  host B --------+
//! ```

mod pgbench;
mod redis;
mod resp;
mod summary;

use std::time::{Duration, Instant};

use crate::Error;
use crate::ferry::{Debian, Ferry, Image, LinuxGuest, Migration, Netns, Ssh, World};

pub use summary::{Move, Summary};

/// What is generous for one step on a slow machine.
const STEP: Duration = Duration::from_secs(180);
/// Writes of each connection to Redis that are acknowledged between two moves.
const BETWEEN: u64 = 25;
/// After what a silent peer is dead: not before both have had their turn on a machine that is emulated, and busy.
const PEER_TIMEOUT: &str = "60s";
/// What is written into the log of the guest's kernel as the load begins.
const LOAD_BEGINS: &str = "databases: load begins";
/// What it prints when something is wrong with its disk, its memory or its time. As it boots it finds fault with the
/// emulated processor, whatever hypervisor runs it: only what comes after that counts.
const TROUBLES: &str =
    "I/O error|EXT4-fs (error|warning)|lockup|rcu.*stall|Call Trace|blocked for more|clocksource:";

/// Boots the guest, moves it there and back under load, cuts its power, and looks at what is left.
///
/// # Errors
/// Something could not be done at all. What was lost is in the summary.
pub fn run(moves: u32, tell: &mut dyn FnMut(&str)) -> Result<Summary, Error> {
    let began = Instant::now();
    let debian = Debian::built()?;
    let world = World::new(1)?;
    let disk = debian.disk()?;
    let guest = debian.guest(Image::built("cloud")?, &disk);
    let ssh = debian.ssh(&world.world);

    let ferry = boot(&guest, &world.a, &ssh)?;
    tell("Debian runs on host A, with Redis and PostgreSQL");
    let mut summary = load(moves, &guest, &world, &debian, &ssh, ferry, tell)?;
    tell("the power is cut; Debian boots again, on host B");
    let after = boot(&guest, &world.b, &ssh)?;
    judge(&mut summary, &world, &ssh)?;
    drop(after);
    summary.disk_is_free = disk.is_free();
    summary.seconds = began.elapsed().as_secs_f64();
    Ok(summary)
}

/// Boots the guest, and waits until both databases answer.
fn boot(guest: &LinuxGuest, host: &Netns, ssh: &Ssh<'_>) -> Result<Ferry, Error> {
    let ferry = guest.boot(Some(host))?;
    let address = World::guest_address(0);
    ssh.wait(
        &format!("redis-cli -h {address} ping | grep -q PONG && pg_isready -q -h {address}"),
        STEP,
    )?;
    Ok(ferry)
}

/// The moves under load, until the power is cut.
fn load(
    moves: u32,
    guest: &LinuxGuest,
    world: &World,
    debian: &Debian,
    ssh: &Ssh<'_>,
    mut here: Ferry,
    tell: &mut dyn FnMut(&str),
) -> Result<Summary, Error> {
    ssh.run(&format!("echo {LOAD_BEGINS} >/dev/kmsg"))?;
    let transactions = pgbench::Load::start(&debian.pgbench(), &world.world)?;
    let writes = redis::Load::start(&world.world)?;
    let mut moved = Vec::new();
    for number in 0..moves {
        writes.wait_more(BETWEEN, STEP)?;
        transactions.wait_more(STEP)?;
        let (there, migration) = move_once(number, guest, world, &mut here)?;
        let one = Move::new(number, &migration.report, writes.acknowledged());
        tell(&one.to_string());
        moved.push(one);
        here = there;
    }
    writes.wait_more(BETWEEN, STEP)?;
    transactions.wait_more(STEP)?;
    let postgresql = transactions.finish()?;
    let log = format!("dmesg | sed '1,/{LOAD_BEGINS}/d'");
    let troubles = ssh.run(&format!("{log} | grep -E '{TROUBLES}' || true"))?;
    writes.wait_more(BETWEEN, STEP)?;
    writes.expect_the_end();
    here.kill();
    let (acknowledged, redis) = writes.finish();
    Ok(Summary {
        postgresql,
        redis,
        writes: Some(acknowledged),
        moved,
        troubles: troubles.lines().map(str::to_owned).collect(),
        ..Summary::default()
    })
}

/// Moves the guest to where it is not.
fn move_once(
    number: u32,
    guest: &LinuxGuest,
    world: &World,
    here: &mut Ferry,
) -> Result<(Ferry, Migration), Error> {
    let (host, address) = match number % 2 {
        0 => (&world.b, World::B),
        _ => (&world.a, World::A),
    };
    let address = format!("{address}:{}", 4700 + number % 20_000);
    let patience = ["--peer-timeout", PEER_TIMEOUT];
    let there = guest.receive_with(host, &address, &patience)?;
    let words = [&patience[..], &["--insecure-plaintext"]].concat();
    let moved = here
        .migrate(&format!("tcp:{address}"), &words)?
        .completed()?;
    here.wait_end(STEP)?;
    Ok((there, moved))
}

/// Counts what is there of what was acknowledged, and has both databases look at their files.
fn judge(summary: &mut Summary, world: &World, ssh: &Ssh<'_>) -> Result<(), Error> {
    if let Some(writes) = summary.writes.take() {
        summary.redis.lost = writes.lost(&world.world)?;
    }
    let file = "/var/lib/redis/appendonlydir/appendonly.aof.manifest";
    // It says last whether all is well; its status is 1 if not.
    summary.redis.check = ssh.run(&format!("redis-check-aof {file} 2>&1 | tail -n 1"))?;
    pgbench::check(ssh, &mut summary.postgresql)?;
    summary.settle();
    Ok(())
}
