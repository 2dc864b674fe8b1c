//! Peers that are not what they should be: other programs, other versions, silence, and a peer that speaks
//! the protocol and means harm. The source keeps its guest and says why; the receiver is left with nothing.

use crate::support;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use migration::cancel::CancelToken;
use migration::guest::Description;
use migration::options::Options;
use migration::pack::Codec;
use migration::pack::codec::Compressor;
use migration::pages::PAGE_SIZE;
use migration::report::{Outcome, Report};
use migration::source::After;
use migration::state::{Kind, VmState};
use migration::wire::codec;
use migration::wire::frame::{Figures, Frame, Hello, Live, Run};
use migration::wire::preamble::{self, MAGIC};
use support::run::{PATIENCE, back, options, receiving, receiving_with, send, verify};
use support::{World, boot};

fn frames(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = preamble::ours().to_vec();
    frames
        .iter()
        .for_each(|frame| codec::encode(frame, &mut bytes).unwrap());
    bytes
}

/// A preamble of a version from the future.
fn future() -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&[9, 0, 8, 0, 0, 0, 0, 0]);
    bytes
}

/// Says `bytes` and reads whatever comes until the other side hangs up. Gives what came.
fn say(mut socket: UnixStream, bytes: Vec<u8>, hang_up: bool) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let _ = socket.write_all(&bytes);
        if hang_up {
            let _ = socket.shutdown(Shutdown::Write);
        }
        let mut heard = Vec::new();
        let _ = socket.read_to_end(&mut heard);
        heard
    })
}

/// A source against a peer that says `bytes`; gives the reason why the move failed.
fn source_against(bytes: Vec<u8>, hang_up: bool, options: &Options) -> (String, Vec<u8>) {
    let world = World::idle(&[2, 2]);
    let (a, b) = UnixStream::pair().unwrap();
    let peer = say(b, bytes, hang_up);
    let cancel = CancelToken::new().unwrap();
    let moved = send(boot(&world), a, options, &cancel, &mut |_| {});
    assert_eq!(moved.report.outcome, Outcome::Failed);
    verify(&world, back(&world, moved.guest));
    (moved.report.reason, peer.join().unwrap())
}

/// A receiver against a peer that says `bytes`; gives its error and what the peer was told.
fn receiver_against(world: &Arc<World>, bytes: Vec<u8>, hang_up: bool) -> (String, Vec<u8>) {
    let (a, b) = UnixStream::pair().unwrap();
    let peer = say(a, bytes, hang_up);
    let error = receiving(world, b).join().unwrap().unwrap_err();
    assert_eq!(world.running(), 0);
    let text = error.to_string();
    assert!(!text.is_empty() && text.len() < 2000, "{text}");
    (text, peer.join().unwrap())
}

#[test]
fn other_programs_are_recognized_by_the_source() {
    let rows: [(&[u8], &str); 4] = [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP/1.1 400 Bad"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH-2.0-OpenSSH_"),
        (&[0x15, 3, 1, 0], r"\x15\x03\x01\x00"),
        (b"X", "\"X\""),
    ];
    for (bytes, text) in rows {
        let (reason, _) = source_against(bytes.to_vec(), false, &options());
        assert!(
            reason.contains("is not Ferry") && reason.contains(text),
            "{reason}"
        );
    }
}

#[test]
fn other_programs_are_recognized_by_the_receiver() {
    let rows: [(&[u8], &str); 2] = [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "GET / HTTP/1.1"),
        (b"\n", r"\n"),
    ];
    for (bytes, text) in rows {
        let (error, heard) = receiver_against(&World::idle(&[2]), bytes.to_vec(), false);
        assert!(
            error.contains("is not Ferry") && error.contains(text),
            "{error}"
        );
        // Whoever it is gets to see what it has reached.
        assert!(heard.starts_with(&MAGIC));
        assert!(String::from_utf8_lossy(&heard).contains("is not Ferry"));
    }
    // One that would be let in, had both ends been told the same.
    let tls = vec![0x16, 3, 1, 2, 0, 1];
    let (error, _) = receiver_against(&World::idle(&[2]), tls, false);
    assert!(error.contains("the source speaks TLS"), "{error}");
    assert!(error.contains("--tls DIR"), "{error}");
}

#[test]
fn another_version_is_refused_on_both_sides_with_both_versions() {
    let (reason, _) = source_against(future(), false, &options());
    assert!(
        reason.contains("versions 8 to 9") && reason.contains("1 to 3"),
        "{reason}"
    );
    let (error, heard) = receiver_against(&World::idle(&[2]), future(), false);
    assert!(error.contains("versions 8 to 9"), "{error}");
    assert!(String::from_utf8_lossy(&heard).contains("versions 8 to 9"));
}

#[test]
fn silence_is_noticed_in_every_phase() {
    let impatient = Options {
        peer_timeout: Duration::from_millis(200),
        ..options()
    };
    let accept = Frame::Accept {
        boot: [0; 16],
        streams: 1,
    };
    let pongs = (0..3).map(Frame::Pong);
    let mut agreed = vec![accept.clone()];
    agreed.extend(pongs);
    for said in [
        vec![],
        MAGIC[..4].to_vec(),
        frames(&[]),
        frames(&[accept]),
        frames(&agreed),
    ] {
        let (reason, _) = source_against(said, false, &impatient);
        assert!(reason.contains("sent nothing for 0.2 s"), "{reason}");
    }
    let world = World::idle(&[2]);
    for said in [vec![], frames(&[]), frames(&[hello(&world)])] {
        let (a, b) = UnixStream::pair().unwrap();
        let peer = say(a, said, false);
        let cancel = CancelToken::new().unwrap();
        let impatient = Duration::from_millis(200);
        let error = receiving_with(&world, b, &cancel, impatient)
            .join()
            .unwrap();
        let error = error.unwrap_err().to_string();
        assert!(error.contains("sent nothing for 0.2 s"), "{error}");
        peer.join().unwrap();
    }
}

#[test]
fn a_peer_that_hangs_up_is_noticed_at_once() {
    for said in [vec![], frames(&[])] {
        let (reason, _) = source_against(said.clone(), true, &options());
        assert!(reason.contains("closed the connection"), "{reason}");
        let (error, _) = receiver_against(&World::idle(&[2]), said, true);
        assert!(error.contains("closed the connection"), "{error}");
    }
}

fn hello(world: &World) -> Frame {
    hello_of(Description {
        layout: world.layout.clone(),
        vcpus: 2,
        sections: {
            let mut sections = VmState::default();
            sections.put(Kind::CPU_MODEL, 0, 1, &"fake").unwrap();
            sections
        },
    })
}

fn hello_of(description: Description) -> Frame {
    Frame::Hello(Box::new(Hello {
        session: [7; 16],
        boot: [8; 16],
        streams: 1,
        by_descriptor: false,
        verify: false,
        page_size: u32::try_from(PAGE_SIZE).unwrap(),
        description,
    }))
}

/// Everything a source may say, in the wrong place, with the wrong numbers, or twice.
#[test]
fn a_source_that_does_not_keep_to_the_protocol_gets_nothing() {
    let world = World::idle(&[2]);
    let zero = |round, first, pages| Frame::Zero {
        round,
        runs: vec![Run { first, pages }],
    };
    let end = |round, pages| Frame::RoundEnd { round, pages };
    let mut other = VmState::default();
    other.put(Kind::VCPU, 0, 2, &1u64).unwrap();
    let rows: Vec<(Vec<Frame>, &str)> = vec![
        (
            vec![Frame::Go],
            "GO while the receiver was waiting for HELLO",
        ),
        (vec![zero(0, 0, 1)], "ZERO while"),
        (
            vec![hello(&world), hello(&world)],
            "HELLO while the receiver was waiting for pages",
        ),
        (
            vec![hello(&world), Frame::Go],
            "GO while the receiver was waiting for pages",
        ),
        (vec![hello(&world), Frame::Ready], "READY while"),
        (
            vec![
                hello(&world),
                Frame::Join {
                    session: [7; 16],
                    index: 1,
                },
            ],
            "JOIN while",
        ),
        (
            vec![hello(&world), zero(1, 0, 1)],
            "round 1 came in round 0",
        ),
        (vec![hello(&world), zero(0, 512, 1)], "not in one region"),
        (
            vec![hello(&world), zero(0, 0, 513)],
            "513 pages in round 0, the guest has 512",
        ),
        (
            vec![hello(&world), zero(0, 0, 300), zero(0, 0, 300)],
            "600 pages in round 0",
        ),
        (
            vec![hello(&world), zero(0, 0, 3), end(0, 2)],
            "3 pages received, 2 were sent",
        ),
        (
            vec![hello(&world), end(0, 0), end(0, 0)],
            "round 0 came in round 1",
        ),
        (
            vec![hello(&world), Frame::State(VmState::default())],
            "cannot load the state",
        ),
        (
            vec![hello(&world), Frame::State(other)],
            "cannot load the state",
        ),
        (
            vec![hello(&world), Frame::Abort("changed my mind".into())],
            "ended the move: changed my mind",
        ),
        (vec![hello(&World::idle(&[4]))], "that is another guest"),
    ];
    for (said, expected) in rows {
        let (error, heard) = receiver_against(&world, frames(&said), false);
        assert!(error.contains(expected), "{said:?}: {error}");
        let heard = String::from_utf8_lossy(&heard).into_owned();
        let aborted = matches!(said.last(), Some(Frame::Abort(_)));
        assert!(aborted || heard.contains(expected), "{said:?}: {heard}");
    }
}

/// Frames, the last of them with `data` behind it.
fn with_data(said: &[Frame], data: &[u8]) -> Vec<u8> {
    let mut bytes = frames(said);
    bytes.extend_from_slice(data);
    bytes
}

/// A delta of a page, with its header.
fn delta(checksum: u32, patches: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(patches.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes.extend_from_slice(patches);
    bytes
}

#[test]
fn packed_pages_that_are_not_what_they_say_end_the_move() {
    let world = World::idle(&[2]);
    let page_of_ones = |codec| {
        let mut packed = vec![0; Compressor::bound(8192)];
        let len = Compressor::default().pack(codec, &[1; 8192], &mut packed);
        packed.truncate(len.unwrap());
        packed
    };
    let packed = |codec, first, pages, data: &[u8]| {
        let frame = Frame::Packed {
            round: 0,
            runs: vec![Run { first, pages }],
            codec,
            bytes: u32::try_from(data.len()).unwrap(),
        };
        with_data(&[hello(&world), frame], data)
    };
    let mut rows = Vec::new();
    for codec in Codec::ALL {
        let good = page_of_ones(codec);
        rows.push((packed(codec, 7, 1, &good), "broke the protocol"));
        rows.push((packed(codec, 7, 3, &good), "broke the protocol"));
        rows.push((packed(codec, 7, 2, &good[1..]), "broke the protocol"));
        rows.push((packed(codec, 7, 2, &[0xff; 100]), "broke the protocol"));
        rows.push((packed(codec, 511, 2, &good), "not in one region"));
        rows.push((
            packed(codec, u64::MAX >> 20, 2, &good),
            "broke the protocol",
        ));
    }
    for (said, expected) in rows {
        let (error, heard) = receiver_against(&world, said, false);
        let heard = String::from_utf8_lossy(&heard).into_owned();
        assert!(error.contains("broke the protocol"), "{error}");
        assert!(heard.contains(expected), "{heard}");
    }
}

#[test]
fn deltas_that_are_not_what_they_say_end_the_move() {
    let world = World::idle(&[2]);
    let end = Frame::RoundEnd { round: 0, pages: 0 };
    let deltas = |round, first, pages, data: &[u8]| {
        let frame = Frame::Delta {
            round,
            runs: vec![Run { first, pages }],
            bytes: u32::try_from(data.len()).unwrap(),
        };
        with_data(&[hello(&world), end.clone(), frame], data)
    };
    // CRC-32 of a page of zeros, as the destination has it.
    let zeros = 0xc71c_0011;
    let good = delta(zeros, &[]);
    let twice = [good.clone(), good.clone()].concat();
    for (said, expected) in [
        (
            deltas(1, 9, 1, &delta(zeros, &[0, 1, 5])),
            "another page of it",
        ),
        (deltas(1, 9, 1, &delta(1, &[])), "another page of it"),
        (deltas(1, 9, 1, &delta(zeros, &[0, 0])), "patch of no bytes"),
        (deltas(1, 9, 1, &delta(zeros, &[0, 9, 1])), "within a patch"),
        (
            deltas(1, 9, 1, &delta(zeros, &[0xff, 0x7f, 1, 0])),
            "beyond the page",
        ),
        (deltas(1, 9, 1, &twice), "too many"),
        (deltas(1, 9, 1, &good[..6].repeat(20)), "too many"),
        (
            deltas(
                1,
                9,
                2,
                &[&good[..], &delta(zeros, &[])[..6]].concat()[..12],
            ),
            "closed",
        ),
        (deltas(1, 9, 1, &[0xff, 0xff, 0, 0, 0, 0]), "at most 2048"),
        (deltas(1, 9, 1, &[9, 0, 0, 0, 0, 0]), "end within page 9"),
        (deltas(1, 511, 2, &twice), "not in one region"),
        (deltas(2, 9, 1, &good), "round 2 came in round 1"),
    ] {
        let (error, heard) = receiver_against(&world, said, expected == "closed");
        if expected == "closed" {
            // Nothing was wrong with these: zeros that stay zeros.
            assert!(error.contains("closed the connection"), "{error}");
            continue;
        }
        let heard = String::from_utf8_lossy(&heard).into_owned();
        assert!(heard.contains(expected), "{expected}: {heard}");
        assert!(error.contains("broke the protocol"), "{error}");
    }
    let early = Frame::Delta {
        round: 0,
        runs: vec![Run { first: 9, pages: 1 }],
        bytes: 6,
    };
    let said = with_data(&[hello(&world), early], &good);
    let (error, _) = receiver_against(&world, said, false);
    assert!(error.contains("in round 0, before the pages"), "{error}");
}

#[test]
fn a_source_that_is_ready_but_never_says_go_gets_nothing() {
    let world = World::idle(&[2]);
    let mut state = VmState::default();
    state.put(Kind::VCPU, 0, 1, &1u64).unwrap();
    let said = [hello(&world), Frame::State(state)];
    let (error, _) = receiver_against(&world, frames(&said), true);
    assert!(error.contains("closed the connection"), "{error}");
    let mut and_more = said.to_vec();
    and_more.push(Frame::Ping(1));
    let (error, _) = receiver_against(&world, frames(&and_more), false);
    assert!(
        error.contains("PING while the receiver was waiting for GO"),
        "{error}"
    );
}

/// What a good source says, with every bit of its frames flipped in turn, at a receiver.
#[test]
fn a_receiver_survives_every_flipped_bit() {
    let world = World::idle(&[2]);
    let good = frames(&[
        hello(&world),
        Frame::Zero {
            round: 0,
            runs: vec![Run { first: 5, pages: 7 }],
        },
        Frame::RoundEnd { round: 0, pages: 7 },
    ]);
    for bit in 0..good.len() * 8 {
        let mut flipped = good.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        // The line ends behind it, so there is always an error, if only for that.
        receiver_against(&world, flipped, true);
    }
}

/// Destinations that say the wrong thing: before GO the guest comes back.
#[test]
fn a_destination_that_does_not_keep_to_the_protocol_does_not_get_the_guest() {
    let accept = Frame::Accept {
        boot: [0; 16],
        streams: 1,
    };
    let agreed = |more: Frame| {
        let mut said = vec![accept.clone()];
        said.extend((0..3).map(Frame::Pong));
        said.push(more);
        said
    };
    let live = Frame::Live(Live {
        restore_ns: u64::MAX,
        resume_ns: u64::MAX,
        resumed_at_ns: u64::MAX,
    });
    let rows = [
        (
            vec![Frame::Refuse("full".into())],
            "refuses the guest: full",
        ),
        (
            vec![Frame::Ready],
            "READY while the source was waiting for ACCEPT",
        ),
        (
            vec![accept.clone(), Frame::Pong(9)],
            "PONG while the source was waiting for its answer to PING",
        ),
        (vec![accept.clone(), live.clone()], "LIVE while"),
        (
            agreed(live),
            "LIVE while the source was waiting for nothing but signs of life",
        ),
        (agreed(Frame::Ready), "READY while"),
        (
            agreed(Frame::Failed("no memory".into())),
            "failed: no memory",
        ),
        (agreed(Frame::Figures(Figures::default())), "FIGURES while"),
        (agreed(Frame::Go), "GO while"),
        (
            agreed(Frame::Pong(u64::MAX)),
            "PONG while the source was waiting for nothing but signs of life",
        ),
    ];
    for (said, expected) in rows {
        let (reason, _) = source_against(frames(&said), false, &options());
        assert!(reason.contains(expected), "{said:?}: {reason}");
    }
}

/// Plays a destination well, but for the time that it takes for each frame of pages, and answers GO with
/// `last`.
fn play(socket: UnixStream, time: Duration, last: Frame) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let cancel = CancelToken::new().unwrap();
        let socket = Box::new(socket);
        let mut channel =
            migration::wire::channel::Channel::new(socket, "x", PATIENCE, &cancel).unwrap();
        channel.greet().unwrap();
        loop {
            let answer = match channel.receive().unwrap() {
                Frame::Hello(_) => Frame::Accept {
                    boot: [0; 16],
                    streams: 1,
                },
                Frame::Ping(number) => Frame::Pong(number),
                Frame::Pages { runs, .. } => {
                    let pages: u32 = runs.iter().map(|run| run.pages).sum();
                    let mut sink = vec![0; usize::try_from(pages).unwrap() * 4096];
                    let mut piece = [migration::wire::iov::In::bytes(&mut sink)];
                    channel.receive_data(&mut piece).unwrap();
                    std::thread::sleep(time);
                    continue;
                }
                Frame::State(_) => Frame::Ready,
                Frame::Go => {
                    channel.send(&last).unwrap();
                    return;
                }
                _ => continue,
            };
            channel.send(&answer).unwrap();
        }
    })
}

#[test]
fn nonsense_instead_of_live_leaves_the_guest_paused() {
    let world = World::idle(&[2]);
    let (a, b) = UnixStream::pair().unwrap();
    let peer = play(b, Duration::ZERO, Frame::Ready);
    let cancel = CancelToken::new().unwrap();
    let moved = send(boot(&world), a, &options(), &cancel, &mut |_| {});
    peer.join().unwrap();
    assert!(matches!(moved.guest, After::Unknown(_)));
    assert_eq!(moved.report.outcome, Outcome::Unknown);
    assert_eq!(world.running(), 0);
    let reason = moved.report.reason;
    assert!(
        reason.contains("nobody knows") && reason.contains("READY"),
        "{reason}"
    );
}

/// A destination that takes long for each frame, with many of them waiting in the socket's buffer.
#[test]
fn a_destination_that_is_slow_is_not_taken_for_dead() {
    let world = World::idle(&[12]);
    let (a, b) = UnixStream::pair().unwrap();
    // As much as the system allows; the pages are 4 MiB.
    socket2::SockRef::from(&a)
        .set_send_buffer_size(8 << 20)
        .unwrap();
    let live = Frame::Live(Live {
        restore_ns: 0,
        resume_ns: 0,
        resumed_at_ns: 0,
    });
    let peer = play(b, Duration::from_millis(700), live);
    let cancel = CancelToken::new().unwrap();
    let options = Options {
        peer_timeout: Duration::from_secs(2),
        ..options()
    };
    let moved = send(boot(&world), a, &options, &cancel, &mut |_| {});
    peer.join().unwrap();
    let Report {
        outcome, reason, ..
    } = moved.report;
    assert_eq!(outcome, Outcome::Completed, "{reason}");
}
