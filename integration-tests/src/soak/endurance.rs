//! Moves without end: a guest that is handed on again and again, and processes that try again and again.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use guest_images::verify::Summary;
use serde::Serialize;

use super::clock::{Rate, difference, distance};
use super::fault::{Act, Cut, Place};
use super::footprint::{Footprint, zombies};
use super::injector::{Injector, Orders};
use super::peers::Peers;
use crate::Error;
use crate::ferry::frames::Kind;
use crate::ferry::{Ferry, Netns, PulseGuest};

/// Time for anything that is quick on an idle machine.
const STEP: Duration = Duration::from_secs(60);
/// Of 32 MiB some were never touched, some are written all the time.
const GUEST: PulseGuest<'_> = PulseGuest {
    words: "beat=1 ws=8:8 rate=2000",
    cpus: 1,
    mib: 32,
};
/// Attempts after which a process has all that it needs for good: arenas, lazily made things.
const WARM: u32 = 12;

/// A guest moved back and forth.
#[derive(Debug, Clone, Default, Serialize)]
pub struct BackAndForth {
    /// Moves, all of which completed.
    pub moves: u32,
    /// By how much the guest's clocks have fallen behind CLOCK_BOOTTIME over all of them (ahead, if negative).
    pub drift_us: f64,
    /// The same for the mean move.
    pub drift_us_a_move: f64,
    /// And for the move with the largest step, in either direction. What it takes to see a heartbeat is in it.
    pub largest_drift_us: f64,
    /// The first VMM that got the guest, and the last.
    pub first: Footprint,
    /// See there.
    pub last: Footprint,
    /// What was left behind, or grew.
    pub leaks: Vec<String>,
    /// Pages checked in the end, each as it has to be.
    pub pages_checked: u64,
    /// How long it all took.
    pub seconds: f64,
}

/// Attempts by and at processes that go on living.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Attempts {
    /// Moves that one source tried.
    pub attempts: u32,
    /// Of these, by what they ended: nobody there, refused, cut, cancelled.
    pub nobody: u32,
    /// See there.
    pub refused: u32,
    /// See there.
    pub cut: u32,
    /// See there.
    pub cancelled: u32,
    /// The source after the first ones, and in the end.
    pub source: [Footprint; 2],
    /// The same of the receiver that refused.
    pub refuser: [Footprint; 2],
    /// The same of the receiver whose moves were cut or cancelled.
    pub receiver: [Footprint; 2],
    /// What grew.
    pub leaks: Vec<String>,
    /// How long it all took.
    pub seconds: f64,
}

/// Moves one guest `moves` times, each time to a new receiver, which is the next source. Every second one finds dirty
/// pages by the ring. `tell` hears how many there were so far.
///
/// # Errors
/// A move failed, or the guest is not whole.
pub fn back_and_forth(
    moves: u32,
    peers: &Peers,
    tell: &mut dyn FnMut(u32),
) -> Result<BackAndForth, Error> {
    let began = Instant::now();
    let host = Netns::new("endurance")?;
    let mut guest = GUEST.boot(Some(&host))?;
    let mut result = BackAndForth::default();
    let mut summary = guest.check_pulse()?;
    let rate = Rate::begin();
    let start = distance(&guest)?;
    let mut before = start;
    // Of each kind of receiver its own.
    let mut first: [Option<Footprint>; 2] = [None; 2];
    for number in 0..moves {
        let kind = (number % 2) as usize;
        guest = hand_on(guest, &host, number, peers, &mut result.leaks)?;
        let now = distance(&guest)?;
        let step = rate.micros(difference(now, before));
        if step.abs() > result.largest_drift_us.abs() {
            result.largest_drift_us = step;
        }
        before = now;
        let growth = match first[kind] {
            None => {
                first[kind] = Some(calm(guest.pid())?);
                None
            }
            Some(first) => Footprint::growth(first, guest.pid())?,
        };
        result
            .leaks
            .extend(growth.map(|how| format!("move {number}: {how}")));
        if number % 100 == 99 {
            summary = check(&guest, &summary)?;
        }
        result.moves = number + 1;
        tell(result.moves);
    }
    result.pages_checked = check(&guest, &summary)?.pages_checked;
    result.drift_us = rate.micros(difference(before, start));
    result.drift_us_a_move = result.drift_us / f64::from(moves.max(1));
    result.first = first[0].unwrap_or_default();
    result.last = calm(guest.pid())?;
    result.seconds = began.elapsed().as_secs_f64();
    Ok(result)
}

fn check(guest: &Ferry, last: &Summary) -> Result<Summary, Error> {
    let now = guest.check_pulse()?;
    now.follows(last)
        .map_err(|e| Error::Unexpected(crate::chain(&e)))?;
    Ok(now)
}

/// One move; what the old VMM leaves behind is a leak.
fn hand_on(
    guest: Ferry,
    host: &Netns,
    number: u32,
    peers: &Peers,
    leaks: &mut Vec<String>,
) -> Result<Ferry, Error> {
    let target = address(number);
    let target = format!("tcp:{target}");
    let mut args = peers.words();
    if number % 2 == 1 {
        args.extend(["--dirty-tracking", "ring"]);
    }
    let receiver = Ferry::receive(Some(host), &target, &args)?;
    guest.migrate(&target, &peers.words())?.completed()?;
    let mut source = guest;
    let status = source.wait_end(STEP)?;
    let mut leak = |what: String| leaks.push(format!("move {number}: {what}"));
    if status.code() != Some(0) {
        leak(format!("the source ended with {status}"));
    }
    if source.control().exists() {
        leak("the source left its control socket behind".into());
    }
    if receiver.status()?["dirty_log"]["on"] != false {
        leak("the dirty log is on after the move".into());
    }
    let zombies = zombies()?;
    if zombies > 0 {
        leak(format!("{zombies} processes ended that nobody waits for"));
    }
    Ok(receiver)
}

/// A port that was not used lately.
fn address(number: u32) -> SocketAddr {
    let port = 4700 + u16::try_from(number % 20_000).unwrap_or(0);
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A process once it has come to rest: the threads of its arrival have ended.
fn calm(pid: u32) -> Result<Footprint, Error> {
    let mut before = Footprint::of(pid)?;
    let mut same = 0;
    for _ in 0..300 {
        std::thread::sleep(Duration::from_millis(10));
        let now = Footprint::of(pid)?;
        same = if now.threads == before.threads && now.fds == before.fds {
            same + 1
        } else {
            0
        };
        before = now;
        if same == 20 {
            break;
        }
    }
    Ok(before)
}

/// Lets one source try `attempts` moves, none of which completes, at receivers that live as long, and then one that
/// does.
///
/// # Errors
/// An attempt ended in another way than it has to, or the guest is not whole.
pub fn attempts(
    attempts: u32,
    peers: &Peers,
    tell: &mut dyn FnMut(u32),
) -> Result<Attempts, Error> {
    let began = Instant::now();
    let host = Netns::new("attempts")?;
    let guest = GUEST.boot(Some(&host))?;
    let receiver = |number, more: &[&str]| {
        let target = format!("tcp:{}", address(number));
        let args = [&["receive", "--listen", &target], &peers.words()[..], more].concat();
        let mut ferry = Ferry::start(Some(&host), &args)?;
        ferry.wait_control(STEP)?;
        Ok::<_, Error>(ferry)
    };
    let lab = Trier {
        refuser: receiver(1, &["--max-memory", "16M"])?,
        receiver: receiver(2, &[])?,
        last: guest.check_pulse()?,
        host: &host,
        guest,
        peers,
    };
    let mut result = Attempts::default();
    for number in 0..attempts {
        lab.attempt(number, &mut result)?;
        if number + 1 == WARM.min(attempts) {
            result.source[0] = calm(lab.guest.pid())?;
            result.refuser[0] = calm(lab.refuser.pid())?;
            result.receiver[0] = calm(lab.receiver.pid())?;
        }
        result.attempts = number + 1;
        tell(result.attempts);
    }
    for (what, ferry, [first, last]) in [
        ("source", &lab.guest, &mut result.source),
        ("receiver that refuses", &lab.refuser, &mut result.refuser),
        ("receiver", &lab.receiver, &mut result.receiver),
    ] {
        let growth = Footprint::growth(*first, ferry.pid())?;
        result
            .leaks
            .extend(growth.map(|how| format!("the {what}: {how}")));
        *last = Footprint::of(ferry.pid())?;
    }
    let last = check(&lab.guest, &lab.last)?;
    let target = format!("tcp:{}", address(2));
    lab.guest.migrate(&target, &peers.words())?.completed()?;
    check(&lab.receiver, &last)?;
    result.seconds = began.elapsed().as_secs_f64();
    Ok(result)
}

/// Who tries.
struct Trier<'a> {
    host: &'a Netns,
    guest: Ferry,
    /// Takes no guest of this size.
    refuser: Ferry,
    receiver: Ferry,
    last: Summary,
    peers: &'a Peers,
}

impl Trier<'_> {
    fn attempt(&self, number: u32, result: &mut Attempts) -> Result<(), Error> {
        let port = |number| format!("tcp:{}", address(number));
        let (count, status) = match number % 4 {
            0 => (&mut result.nobody, self.migrate(&port(0), &[])?),
            1 => (&mut result.refused, self.migrate(&port(1), &[])?),
            2 => (&mut result.cut, self.cut(number)?),
            _ => (&mut result.cancelled, self.cancelled(&port(2))?),
        };
        let wanted = if number % 4 == 3 { 3 } else { 1 };
        if status != wanted {
            return Err(Error::Unexpected(format!(
                "attempt {number} ended with status {status}, not {wanted}"
            )));
        }
        *count += 1;
        let status = self.guest.status()?;
        if status["state"] != "running" || status["dirty_log"]["on"] != false {
            return Err(Error::Unexpected(format!(
                "the guest does not simply run on after attempt {number}: {status}"
            )));
        }
        self.receiver.wait_state("waiting", STEP)
    }

    fn migrate(&self, target: &str, more: &[&str]) -> Result<i32, Error> {
        let args = [&self.peers.words()[..], more].concat();
        Ok(self.guest.migrate(target, &args)?.status)
    }

    /// A move that is cut somewhere.
    fn cut(&self, number: u32) -> Result<i32, Error> {
        let kinds = [
            Kind::HELLO,
            Kind::ACCEPT,
            Kind::PAGES,
            Kind::STATE,
            Kind::READY,
        ];
        let place = Place::Frame {
            kind: kinds[number as usize / 4 % kinds.len()],
            round: None,
            nth: 1,
            stream: None,
        };
        let act = Act::Cut {
            how: [Cut::Reset, Cut::Close][number as usize / 20 % 2],
            whole: true,
            behind: false,
        };
        let orders = Orders {
            place,
            act,
            sealed: false,
            beyond: self.peers.beyond(),
            signal: Box::new(|| ()),
        };
        let injector = Injector::start(self.host, address(2), orders)?;
        // Where a busy machine fails the move before it comes to the place, that is an attempt as well.
        self.migrate(&injector.target(), &[])
    }

    /// A move that is cancelled in its first round, which would take seconds.
    fn cancelled(&self, target: &str) -> Result<i32, Error> {
        std::thread::scope(|scope| {
            let slow = ["--bandwidth", "1MB"];
            let moving = scope.spawn(move || self.migrate(target, &slow));
            let began = Instant::now();
            while began.elapsed() < STEP && !moving.is_finished() {
                if self.guest.state()? == "migrating" && self.receiver.state()? == "receiving" {
                    self.guest.act("cancel")?;
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            moving
                .join()
                .unwrap_or_else(|_| Err(Error::Unexpected("the move's thread panicked".into())))
        })
    }
}
