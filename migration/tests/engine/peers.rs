//! A peer that stops in the middle of a move, at every frame: it is noticed within the peer's time, and a cancel does
//! not wait for that. The guest is back at the source, or, behind GO, kept there.

use crate::support;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use migration::cancel::CancelToken;
use migration::options::Options;
use migration::report::Outcome;
use migration::source::{After, Moved};
use migration::state::{Kind, VmState};
use migration::wire::channel::Channel;
use migration::wire::frame::{Frame, Run};
use migration::wire::iov::In;
use migration::wire::{codec, preamble};
use support::run::{PATIENCE, back, hello, options, receiving_with, send, verify};
use support::{Running, World, boot};

/// What a source says in a move of this guest with its memories compared, in order.
const PHASES: [&str; 7] = [
    "HELLO",
    "PING",
    "PAGES",
    "ROUND_END",
    "VERIFY",
    "STATE",
    "GO",
];

/// Plays a destination well until a frame of that name comes; then it does nothing any more, but keeps the connection.
/// `stalled` is called then.
fn stalls_at(
    name: &'static str,
    socket: UnixStream,
    world: &Arc<World>,
    stalled: impl FnOnce() + Send + 'static,
) -> JoinHandle<Channel> {
    let blocks = usize::try_from(world.layout.pages() / 512).unwrap();
    std::thread::spawn(move || {
        let cancel = CancelToken::new().unwrap();
        let mut channel = Channel::new(Box::new(socket), "x", PATIENCE, &cancel).unwrap();
        channel.greet().unwrap();
        loop {
            let frame = channel.receive_up_to(1 << 20).unwrap();
            if frame.name() == name {
                stalled();
                return channel;
            }
            let answer = match frame {
                Frame::Hello(_) => Frame::Accept {
                    boot: [0; 16],
                    streams: 1,
                },
                Frame::Ping(number) => Frame::Pong(number),
                Frame::Pages { runs, .. } => {
                    let pages: u32 = runs.iter().map(|run| run.pages).sum();
                    let mut sink = vec![0; usize::try_from(pages).unwrap() * 4096];
                    channel.receive_data(&mut [In::bytes(&mut sink)]).unwrap();
                    continue;
                }
                // Of nothing: a source that verifies is not let on.
                Frame::Verify(_) => Frame::Digests {
                    first: 0,
                    digests: vec![0; blocks],
                },
                Frame::State(_) => Frame::Ready,
                _ => continue,
            };
            channel.send(&answer).unwrap();
        }
    })
}

fn against(
    name: &'static str,
    world: &Arc<World>,
    cancel: &CancelToken,
    peer_timeout: Duration,
    stalled: impl FnOnce() + Send + 'static,
) -> Moved<Running> {
    let guest = boot(world);
    let (a, b) = UnixStream::pair().unwrap();
    let peer = stalls_at(name, b, world, stalled);
    let options = Options {
        peer_timeout,
        // What comes behind it is only come to without.
        verify: name == "VERIFY",
        ..options()
    };
    let moved = send(guest, a, &options, cancel, &mut |_| {});
    drop(peer.join().unwrap());
    moved
}

#[test]
fn a_destination_that_stops_is_noticed_in_every_phase() {
    for name in PHASES {
        let world = World::idle(&[4]);
        let cancel = CancelToken::new().unwrap();
        let impatient = Duration::from_millis(700);
        let moved = against(name, &world, &cancel, impatient, || {});
        let (report, reason) = (&moved.report, &moved.report.reason);
        // While the guest stands still there is a second limit, from the stop on, that is hardly longer.
        let says = ["nothing for 0.7 s", "standing still for 0.7 s"];
        let noticed = says.iter().any(|says| reason.contains(says));
        assert!(noticed, "{name}: {reason}");
        if name == "GO" {
            assert_eq!(report.outcome, Outcome::Unknown, "{name}: {reason}");
            assert!(matches!(moved.guest, After::Unknown(_)));
            assert_eq!(world.running(), 0);
        } else {
            assert_eq!(report.outcome, Outcome::Failed, "{name}: {reason}");
            verify(&world, back(&world, moved.guest));
        }
    }
}

/// The peer's time is so long that a move which waits for it does not end within any test's.
#[test]
fn a_cancel_waits_for_no_peer_in_any_phase_before_go() {
    for name in PHASES.into_iter().filter(|name| *name != "GO") {
        let world = World::idle(&[4]);
        let cancel = CancelToken::new().unwrap();
        let other = cancel.clone();
        let patient = Duration::from_secs(3600);
        let moved = against(name, &world, &cancel, patient, move || {
            other.cancel().unwrap();
            // Once more is as good as once.
            other.cancel().unwrap();
        });
        let reason = &moved.report.reason;
        assert_eq!(moved.report.outcome, Outcome::Cancelled, "{name}: {reason}");
        verify(&world, back(&world, moved.guest));
    }
}

/// What a source may have said when it stops, with the bytes behind the last frame.
fn beginnings(world: &World) -> Vec<(&'static str, Vec<u8>)> {
    let frame = |frame: &Frame| {
        let mut bytes = Vec::new();
        codec::encode(frame, &mut bytes).unwrap();
        bytes
    };
    let mut state = VmState::default();
    state.put(Kind::VCPU, 0, 1, &1u64).unwrap();
    let state = frame(&Frame::State(state));
    let pages = frame(&Frame::Pages {
        round: 0,
        runs: vec![Run { first: 0, pages: 9 }],
    });
    let greeted = preamble::ours().to_vec();
    let hello = frame(&Frame::Hello(Box::new(hello(world))));
    let accepted = [greeted.clone(), hello.clone()].concat();
    vec![
        ("nothing", Vec::new()),
        ("half a preamble", greeted[..7].to_vec()),
        ("a preamble", greeted.clone()),
        ("half a HELLO", [&greeted, &hello[..40]].concat()),
        ("HELLO", accepted.clone()),
        ("half a header", [&accepted, &pages[..3]].concat()),
        ("PAGES without pages", [&accepted, &pages[..]].concat()),
        (
            "PAGES with some pages",
            [&accepted, &pages[..], &[7; 9999]].concat(),
        ),
        (
            "half a STATE",
            [&accepted, &state[..state.len() / 2]].concat(),
        ),
        ("STATE", [&accepted, &state[..]].concat()),
    ]
}

#[test]
fn a_source_that_stops_is_noticed_in_every_phase() {
    let world = World::idle(&[4]);
    for (said, bytes) in beginnings(&world) {
        let (mut a, b) = UnixStream::pair().unwrap();
        let cancel = CancelToken::new().unwrap();
        let receiving = receiving_with(&world, b, &cancel, Duration::from_millis(300));
        a.write_all(&bytes).unwrap();
        let error = receiving.join().unwrap().unwrap_err().to_string();
        assert!(error.contains("sent nothing for 0.3 s"), "{said}: {error}");
        assert_eq!(world.running(), 0);
    }
}

#[test]
fn a_cancel_at_the_destination_waits_for_no_source_in_any_phase() {
    let world = World::idle(&[4]);
    for (said, bytes) in beginnings(&world) {
        let (mut a, b) = UnixStream::pair().unwrap();
        let cancel = CancelToken::new().unwrap();
        let receiving = receiving_with(&world, b, &cancel, Duration::from_secs(3600));
        a.write_all(&bytes).unwrap();
        // Most often it waits by now; if not, it is cancelled a little earlier.
        std::thread::sleep(Duration::from_millis(30));
        cancel.cancel().unwrap();
        let error = receiving.join().unwrap().unwrap_err().to_string();
        assert!(error.contains("cancelled"), "{said}: {error}");
    }
}

/// A byte now and then is no sign of life: a frame has to be whole within the peer's time. Also where the next byte
/// always comes before this end has begun to wait for it.
#[test]
fn a_destination_that_trickles_is_not_waited_for() {
    for every in [50, 10].map(Duration::from_millis) {
        let world = World::idle(&[2]);
        let guest = boot(&world);
        let (a, mut b) = UnixStream::pair().unwrap();
        let peer = std::thread::spawn(move || {
            let mut bytes = preamble::ours().to_vec();
            let message = "no guest comes in here today".into();
            codec::encode(&Frame::Refuse(message), &mut bytes).unwrap();
            let (greeting, trickle) = bytes.split_at(16);
            b.write_all(greeting).unwrap();
            for byte in trickle {
                std::thread::sleep(every);
                if b.write_all(&[*byte]).is_err() {
                    return;
                }
            }
        });
        let cancel = CancelToken::new().unwrap();
        let impatient = Options {
            peer_timeout: Duration::from_millis(200),
            ..options()
        };
        let moved = send(guest, a, &impatient, &cancel, &mut |_| {});
        let reason = &moved.report.reason;
        let late = ["sent nothing", "sent too little"];
        assert!(late.iter().any(|late| reason.contains(late)), "{reason}");
        verify(&world, back(&world, moved.guest));
        peer.join().unwrap();
    }
}
