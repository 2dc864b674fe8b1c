//! Many guests from one host to another: 150 of them in 7 min 40 s by the faster of two 10 Gbit/s adapters, in 10 min
//! 40 s by the slower (ESXi 5.5). What the adapters differed in on the bare link: throughput (+39 %), round-trip time
//! (-42 %), the time to set a connection up (-54 %).

use std::thread;
use std::time::{Duration, Instant};

use migration::options::ThrottlePolicy;
use migration::predict::LinkModel;
use serde_json::Value;

use super::{Load, link};
use crate::Error;
use crate::ferry::{Ferry, PulseGuest, World};
use vmm::units::Rate;

/// Published: seconds for all, by the faster and the slower adapter.
pub const PUBLISHED: [f64; 2] = [460.0, 640.0];
/// Published: how many guests.
pub const GUESTS_THERE: u32 = 150;
/// Moved here.
pub const GUESTS: u16 = 16;
/// The memory of each, in MiB, all content.
pub const MIB: u64 = 128;
/// The link: 10 Gbit/s.
const LINK: Rate = Rate(1_250_000_000);
const SEED: u64 = 3;

/// What came of it.
#[derive(Debug, Clone)]
pub struct Crowd {
    /// Seconds for all guests, one after another.
    pub one_by_one_s: f64,
    /// Seconds for all guests at once.
    pub at_once_s: f64,
    /// The longest blackout in milliseconds, one after another and at once.
    pub longest_ms: [f64; 2],
    /// The memory that was fitted to the faster adapter's time, in GiB a guest.
    pub fitted_gib: f64,
    /// Seconds predicted for 150 such guests by the faster and the slower adapter.
    pub predicted: [f64; 2],
}

/// Measures and predicts.
///
/// # Errors
/// A move fails.
pub fn run() -> Result<Crowd, Error> {
    let (one_by_one_s, longest) = moved(false)?;
    let (at_once_s, longest_at_once) = moved(true)?;
    let (fitted_gib, predicted) = predicted();
    Ok(Crowd {
        one_by_one_s,
        at_once_s,
        longest_ms: [longest, longest_at_once],
        fitted_gib,
        predicted,
    })
}

/// Moves all guests; gives the seconds that it took and the longest blackout in milliseconds.
fn moved(at_once: bool) -> Result<(f64, f64), Error> {
    let world = World::new(0)?;
    world.a.shape(World::LINK, LINK)?;
    let guest = PulseGuest {
        words: "beat=10",
        cpus: 1,
        mib: MIB,
    };
    let target = |number: u16| format!("tcp:{}:{}", World::B, 4700 + number);
    let plain = ["--insecure-plaintext"];
    let mut guests = Vec::new();
    for number in 0..GUESTS {
        let source = guest.boot(Some(&world.a))?;
        source.fill(SEED + u64::from(number), &[guest.fillable()])?;
        let destination = Ferry::receive(Some(&world.b), &target(number), &plain)?;
        guests.push((number, source, destination));
    }
    let move_one = |number: u16, source: &Ferry| -> Result<Value, Error> {
        Ok(source.migrate(&target(number), &plain)?.completed()?.report)
    };
    let began = Instant::now();
    let reports: Vec<Value> = if at_once {
        thread::scope(|scope| {
            let moves = guests.iter().map(|(number, source, _)| {
                let move_one = &move_one;
                scope.spawn(move || move_one(*number, source))
            });
            let moves: Vec<_> = moves.collect();
            let ended = moves.into_iter().map(|thread| {
                let panicked = |_| Err(Error::Unexpected("a move panicked".to_owned()));
                thread.join().unwrap_or_else(panicked)
            });
            ended.collect::<Result<_, _>>()
        })?
    } else {
        let one_by_one = guests.iter();
        let moves = one_by_one.map(|(number, source, _)| move_one(*number, source));
        moves.collect::<Result<_, _>>()?
    };
    let seconds = began.elapsed().as_secs_f64();
    for (number, _, destination) in &guests {
        destination.act("pause")?;
        destination.check_fill(SEED + u64::from(*number), &[guest.fillable()])?;
    }
    let blackouts = reports
        .iter()
        .filter_map(|report| report["blackout_ms"].as_f64());
    Ok((seconds, blackouts.fold(0.0, f64::max)))
}

/// What a guest of that much memory takes over a link; idle, and its memory all content, since nothing is published of
/// either.
fn seconds(gib: f64, link: LinkModel) -> f64 {
    // Whole GiB are too coarse here: between them it is a straight line.
    let of = |gib: u64| {
        let load = Load {
            mib: gib << 10,
            working_set_mib: 0,
            bytes_per_s: 0.0,
            busy: 1.0,
        };
        load.predicted(link, ThrottlePolicy::Auto).total_ms.expected / 1000.0
    };
    let (low, high) = (of(1), of(9));
    low + (high - low) / 8.0 * (gib - 1.0)
}

fn predicted() -> (f64, [f64; 2]) {
    let fast = link(10.0);
    let times = f64::from(GUESTS_THERE);
    // Throughput is a share of the faster one's; the two times are published as reductions.
    let scaled = |value: u64| {
        let value = value as f64 / 1.39;
        // Below what it was.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let value = value as u64;
        value
    };
    let mut slow = fast;
    slow.bytes_per_s.low = scaled(fast.bytes_per_s.low);
    slow.bytes_per_s.expected = scaled(fast.bytes_per_s.expected);
    slow.bytes_per_s.high = scaled(fast.bytes_per_s.high);
    slow.round_trip = Duration::from_secs_f64(fast.round_trip.as_secs_f64() / (1.0 - 0.42));
    slow.connect = Duration::from_secs_f64(fast.connect.as_secs_f64() / (1.0 - 0.54));
    let (one, nine) = (seconds(1.0, fast), seconds(9.0, fast));
    let gib = 1.0 + (PUBLISHED[0] / times - one) / (nine - one) * 8.0;
    (
        gib,
        [times * seconds(gib, fast), times * seconds(gib, slow)],
    )
}
