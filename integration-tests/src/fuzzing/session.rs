//! A whole conversation with a peer that means harm, over a socket pair: a source against the real receiver, and a
//! destination against the real source, with guests of memory and a thread in place of KVM.
//!
//! All that a hostile source has to say is written at once; a hostile destination waits where its part begins with what
//! it hears, but not for long. Then its half of the connection ends: nobody waits for it, so that a session takes some
//! milliseconds. What it says is a move as it should be, step by step, with as much of it
//! spoilt as the input asks for.

pub mod file;
mod peer;
#[path = "../../../migration/tests/support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use migration::cancel::CancelToken;
use migration::guest::PausedGuest;
use migration::options::{OnTimeout, Options};
use migration::pack::{Codec, Compress};
use migration::source::After;
use migration::wire::frame::Frame;

use super::input::Program;
use super::wire;
pub use peer::seeds;
use peer::{Destination, Part, Source, was_said};
use support::run::{receiving_with, send};
use support::{World, boot};

/// Within a second a session has to be over, whatever is said; nothing waits so long for a peer that has hung up.
const PATIENCE: Duration = Duration::from_millis(300);

/// How a conversation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// The receiver has a guest.
    Arrived,
    /// The receiver has none.
    Refused,
    /// The source has given its guest away.
    Gone,
    /// The source keeps its guest paused, and cannot know.
    Unknown,
    /// The source's guest runs.
    Back,
}

/// The input: who is hostile, how the move is to be, and what the peer says.
pub fn run(input: &[u8]) {
    end(input);
}

fn end(input: &[u8]) -> End {
    let mut program = Program::new(input);
    match program.u8() % 2 {
        0 => hostile_source(&mut program),
        _ => hostile_destination(&mut program),
    }
}

/// The receiver has a guest only if GO was said, and then one.
fn hostile_source(program: &mut Program<'_>) -> End {
    let world = World::idle(&[2]);
    let said = Source::new(&world).all(program);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let receiving = receiving_with(&world, theirs, &CancelToken::new().unwrap(), PATIENCE);
    let went = was_said(&said, peer::GO);
    let part = Part {
        said,
        ..Part::default()
    };
    converse(ours, vec![part]);
    let end = match receiving.join().unwrap() {
        Ok(mut guest) => {
            assert!(went, "a guest runs without GO");
            assert_eq!(world.running(), 1);
            guest.halt().unwrap();
            End::Arrived
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            End::Refused
        }
    };
    assert_eq!(world.running(), 0);
    end
}

/// The source's guest comes back, unless the source has said GO; and it is given away only for a LIVE.
fn hostile_destination(program: &mut Program<'_>) -> End {
    let world = World::idle(&[2]);
    let options = options(program.u8());
    let said = Destination.all(program);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let lives = said.iter().any(|part| was_said(&part.said, peer::LIVE));
    let peer = std::thread::spawn(move || converse(ours, said));
    let cancel = CancelToken::new().unwrap();
    let moved = send(boot(&world), theirs, &options, &cancel, &mut |_| {});
    let heard = peer.join().unwrap();
    let end = match moved.guest {
        After::Running(mut guest) => {
            assert_eq!(world.running(), 1);
            assert!(!guest.log_is_on());
            assert_eq!(guest.throttle_now(), 0);
            guest.halt().unwrap();
            End::Back
        }
        After::Gone(_) => {
            assert!(lives, "a guest was given away without LIVE");
            assert_eq!(world.running(), 0);
            End::Gone
        }
        After::Unknown(paused) => {
            let went = peer::frames(&heard).contains(&Frame::Go);
            assert!(went, "unknown without GO");
            assert_eq!(world.running(), 0);
            // Everything was kept.
            let mut guest = paused.resume().map_err(|failed| failed.error).unwrap();
            let body = guest.halt().unwrap();
            assert!(world.wrong_pages(&body.ram).is_empty());
            End::Unknown
        }
        After::Stuck(_, error) => panic!("the guest is stuck: {error}"),
    };
    assert_eq!(world.running(), 0);
    end
}

fn options(bits: u8) -> Options {
    Options {
        peer_timeout: PATIENCE,
        connect_timeout: PATIENCE,
        streams: 1 + u16::from(bits & 1),
        compress: [
            Compress::None,
            Compress::Auto,
            Compress::Always(Codec::Lz4),
            Compress::Always(Codec::Zstd),
        ][usize::from(bits >> 1 & 3)],
        max_rounds: 3,
        max_total: Duration::from_millis(500),
        on_timeout: OnTimeout::SwitchOver,
        ..Options::default()
    }
}

/// What has been heard so far, and whether that is all.
type Ear = (Mutex<(Vec<u8>, bool)>, Condvar);

/// Says every part in its time, hangs up, and hears what the other has to say to the end.
fn converse(mut socket: UnixStream, parts: Vec<Part>) -> Vec<u8> {
    let ear = Arc::new(Ear::default());
    let hearing = std::thread::spawn({
        let (ear, socket) = (ear.clone(), socket.try_clone().unwrap());
        move || hear(socket, &ear)
    });
    let until = Instant::now() + PATIENCE;
    let (mut answers, mut answered) = (0, 0);
    for part in parts {
        answers += part.answers;
        loop {
            let frames = peer::frames(&ear.0.lock().unwrap().0);
            for number in pings(&frames).take(answers).skip(answered) {
                let _ = socket.write_all(&wire::encode(&[Frame::Pong(number)]));
                answered += 1;
            }
            let enough = part
                .behind
                .is_none_or(|name| frames.iter().any(|f| f.name() == name));
            if enough || !more(&ear, frames.len(), until) {
                break;
            }
        }
        let _ = socket.write_all(&part.said);
    }
    let _ = socket.shutdown(Shutdown::Write);
    hearing.join().unwrap();
    std::mem::take(&mut ear.0.lock().unwrap().0)
}

fn hear(mut socket: UnixStream, (heard, news): &Ear) {
    let mut piece = [0; 64 << 10];
    loop {
        let count = socket.read(&mut piece).unwrap_or(0);
        let mut heard = heard.lock().unwrap();
        heard.0.extend(&piece[..count]);
        heard.1 = count == 0;
        news.notify_all();
        if heard.1 {
            return;
        }
    }
}

fn pings(frames: &[Frame]) -> impl Iterator<Item = u64> {
    frames.iter().filter_map(|frame| match frame {
        Frame::Ping(number) => Some(*number),
        _ => None,
    })
}

/// Waits until more frames are heard than so many; `false` where nothing more can come, or the time is over.
fn more((heard, news): &Ear, than: usize, until: Instant) -> bool {
    let mut heard = heard.lock().unwrap();
    while peer::frames(&heard.0).len() <= than {
        let left = until.saturating_duration_since(Instant::now());
        if heard.1 || left.is_zero() {
            return false;
        }
        heard = news.wait_timeout(heard, left).unwrap().0;
    }
    true
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What the fuzzer begins with goes all the way.
    #[test]
    fn the_seeds_reach_every_end() {
        let ends: BTreeSet<_> = seeds().iter().map(|seed| end(seed)).collect();
        let all = [
            End::Arrived,
            End::Refused,
            End::Gone,
            End::Unknown,
            End::Back,
        ];
        assert_eq!(ends, BTreeSet::from(all));
    }
}
