//! A stock Linux guest moved back and forth between two hosts, in a nested host where need be.

use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::clock::boottime;
use crate::ferry::{Agent, Image, LinuxGuest, Ticks, World};
use crate::nested::{self, Ended, Host, Options, Place, Stream};
use crate::{Error, programs};

const STEP: Duration = Duration::from_secs(90);
/// Questions for the time. The one that is answered soonest tells it.
const ASKED: u32 = 8;
/// What the guest's kernel or agent print when something is wrong with memory or time.
const TROUBLES: [&str; 5] = ["MISMATCH", "lockup", "rcu", "Call Trace", "clocksource:"];

/// What came of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LinuxMoves {
    /// Moves, all of which completed.
    pub moves: u32,
    /// By how much CLOCK_BOOTTIME of the guest has fallen behind that of the host over all of them (ahead, if
    /// negative).
    pub drift_ms: f64,
    /// The same for the mean move.
    pub drift_ms_a_move: f64,
    /// How exactly that is known: half of the quickest round trips of the first and the last question.
    pub within_ms: f64,
    /// Lines of the agent, one each 100 ms, none missing.
    pub ticks: u64,
    /// How long it all took.
    pub seconds: f64,
}

/// Runs it where Linux guests run: here, or as `argv` in a nested host, which is to call [`run`] and to leave the
/// result in `result`, in `folder`.
///
/// # Errors
/// There is no nested host, or a move failed.
pub fn run_or_enter(
    moves: u32,
    argv: Vec<String>,
    folder: &Path,
    result: &Path,
) -> Result<LinuxMoves, Error> {
    if let Place::Native(_) = Place::choose() {
        return run(moves, &mut |_| ());
    }
    let mut host = Host::boot(&Options {
        share: Some(folder.to_owned()),
        // A move takes some seconds there, and a boot a minute at worst.
        timeout: Duration::from_secs(600 + 60 * u64::from(moves)),
        ..Options::new(programs::nested_host()?)
    })?;
    let command = nested::command_like_ours(argv)
        .map_err(|e| Error::file("find", "(the current folder)".as_ref(), e))?;
    let ended = host.run(&command, |stream, bytes| {
        let text = String::from_utf8_lossy(bytes);
        match stream {
            Stream::Stdout => print!("{text}"),
            Stream::Stderr => eprint!("{text}"),
        }
    })?;
    if ended != Ended::Exited(0) {
        return Err(Error::Unexpected(format!(
            "moves of the Linux guest failed in the nested host: {ended:?}"
        )));
    }
    let text = std::fs::read(result).map_err(|e| Error::file("read", result, e))?;
    serde_json::from_slice(&text).map_err(|e| Error::file("read", result, e.into()))
}

/// Moves a guest back and forth on this machine.
///
/// # Errors
/// A move failed, or the guest is not whole.
pub fn run(moves: u32, tell: &mut dyn FnMut(u32)) -> Result<LinuxMoves, Error> {
    let began = Instant::now();
    let world = World::new(1)?;
    let guest = LinuxGuest {
        append: "agent.ws=16 agent.rate=500".into(),
        memory: "256M".into(),
        ..LinuxGuest::new(Image::built("cloud")?)
    };
    let mut source = guest.boot(Some(&world.a))?;
    let agent = Agent::new(&world.world, 0);
    let mut consoles = Vec::new();
    let (start, first) = behind(&agent)?;
    for number in 0..moves {
        let (host, address) = if number % 2 == 0 {
            (&world.b, World::B)
        } else {
            (&world.a, World::A)
        };
        let address = format!("{address}:{}", 4700 + number % 20_000);
        let destination = guest.receive(host, &address)?;
        source
            .migrate(&format!("tcp:{address}"), &["--insecure-plaintext"])?
            .completed()?;
        source.wait_end(STEP)?;
        consoles.push(source.console().text());
        source = destination;
        tell(number + 1);
    }
    let (end, last) = behind(&agent)?;
    let check = agent.ask("check", STEP)?;
    if check["ok"] != true || check["mismatches"] != 0 {
        return Err(Error::Unexpected(format!("the guest's memory: {check}")));
    }
    consoles.push(source.console().text());
    let ticks = Ticks::unbroken(&consoles)?.count;
    let text = consoles.concat();
    let after_boot = text
        .split_once("AGENT READY")
        .map_or("", |(_, after)| after);
    let odd = |line: &&str| TROUBLES.iter().any(|trouble| line.contains(trouble));
    if let Some(line) = after_boot.lines().find(odd) {
        return Err(Error::Unexpected(format!("the guest says: {line}")));
    }
    let drift_ms = (end - start) * 1e3;
    Ok(LinuxMoves {
        moves,
        drift_ms,
        drift_ms_a_move: drift_ms / f64::from(moves.max(1)),
        within_ms: (first + last) * 1e3,
        ticks,
        seconds: began.elapsed().as_secs_f64(),
    })
}

/// How far the guest's CLOCK_BOOTTIME is behind ours, and within what, in seconds.
fn behind(agent: &Agent<'_>) -> Result<(f64, f64), Error> {
    let mut best: Option<(f64, f64)> = None;
    for _ in 0..ASKED {
        let before = boottime();
        let answer = agent.ask("uptime", STEP)?;
        let half = (boottime() - before).as_secs_f64() / 2.0;
        let uptime = answer["uptime_s"]
            .as_f64()
            .ok_or_else(|| Error::Unexpected(format!("no uptime in {answer}")))?;
        if best.is_none_or(|(_, least)| half < least) {
            best = Some((before.as_secs_f64() + half - uptime, half));
        }
    }
    best.ok_or_else(|| Error::Unexpected("the agent was never asked".into()))
}
