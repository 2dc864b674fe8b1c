//! A whole conversation with a peer that means harm, over a socket pair: a source against the real receiver, and a
//! destination against the real source, with guests of memory and a thread in place of KVM.
//!
//! All that the peer has to say is written at once, and then its half of the connection ends: nobody waits for it, so
//! that a session takes some milliseconds. What it says is a move as it should be, step by step, with as much of it
//! spoilt as the input asks for.

mod peer;
#[path = "../../../migration/tests/support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use migration::cancel::CancelToken;
use migration::guest::PausedGuest;
use migration::options::{OnTimeout, Options};
use migration::pack::{Codec, Compress};
use migration::source::After;

use super::input::Program;
pub use peer::seeds;
use peer::{Destination, Source, was_said};
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
    converse(ours, said);
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
    let lives = was_said(&said, peer::LIVE);
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
            assert!(was_said(&heard, peer::GO), "unknown without GO");
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

/// Says everything, hangs up, and hears what the other has to say to the end.
fn converse(mut socket: UnixStream, said: Vec<u8>) -> Vec<u8> {
    let mut ear = socket.try_clone().unwrap();
    let hearing = std::thread::spawn(move || {
        let mut heard = Vec::new();
        let _ = ear.read_to_end(&mut heard);
        heard
    });
    let _ = socket.write_all(&said);
    let _ = socket.shutdown(Shutdown::Write);
    hearing.join().unwrap()
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
