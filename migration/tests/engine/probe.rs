//! The measurement of a link: between two honest ends, against those that are not, and beside a move.

use crate::support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use migration::cancel::CancelToken;
use migration::destination::ReceiveError;
use migration::options::{MIN_BANDWIDTH, Options};
use migration::probe::{Measured, ProbeError, measure};
use migration::wire::codec;
use migration::wire::frame::{Frame, Run};
use migration::wire::preamble;
use migration::wire::{Connected, TcpTarget};
use support::World;
use support::run::{Further, options, receiving, receiving_over, receiving_streams};

const ACCEPT: Frame = Frame::Accept {
    boot: [0; 16],
    streams: 1,
};
const PROBE: Frame = Frame::Probe {
    session: [7; 16],
    streams: 1,
};

fn frames(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = preamble::ours().to_vec();
    for frame in frames {
        codec::encode(frame, &mut bytes).unwrap();
    }
    bytes
}

fn probe(address: &str, options: &Options) -> Result<Measured, ProbeError> {
    let cancel = CancelToken::new().unwrap();
    measure(&TcpTarget::new(address), options, &cancel, &mut || {})
}

fn probed(error: Result<support::Running, ReceiveError>) -> bool {
    matches!(error, Err(ReceiveError::Probed { .. }))
}

#[test]
fn two_ends_measure_the_link_between_them() {
    let world = World::idle(&[2]);
    for streams in [1, 2, 5] {
        let (address, receiving) = receiving_streams(&world);
        let options = Options {
            streams,
            ..options()
        };
        let measured = probe(&address, &options).unwrap();
        assert!(probed(receiving.join().unwrap()));
        assert_eq!(world.running(), 0);
        assert_eq!(measured.streams, streams);
        let link = measured.link;
        let bandwidth = link.bytes_per_s;
        assert!(measured.bytes > 0 && bandwidth.expected > 0);
        assert!(bandwidth.low < bandwidth.expected && bandwidth.expected < bandwidth.high);
        assert!(link.round_trip > Duration::ZERO && link.round_trip < Duration::from_secs(5));
    }
}

/// No more is sent than is allowed, and what is measured is that.
#[test]
fn the_limit_on_the_bandwidth_holds() {
    let (address, receiving) = receiving_streams(&World::idle(&[2]));
    let options = Options {
        bandwidth: Some(4_000_000),
        ..options()
    };
    let began = Instant::now();
    let measured = probe(&address, &options).unwrap();
    let seconds = began.elapsed().as_secs_f64();
    assert!(probed(receiving.join().unwrap()));
    // A burst of 5 ms at the beginning, and a filler of each stream under way.
    let most = 4_000_000.0 * (seconds + 0.005) + 100_000.0;
    assert!(
        (measured.bytes as f64) < most,
        "{measured:?} in {seconds} s"
    );
    assert!(
        measured.link.bytes_per_s.expected < 6_000_000,
        "{measured:?}"
    );
}

/// Each of sixteen streams would wait a second for its turn, which a destination may take for the end.
#[test]
fn at_the_least_bandwidth_one_stream_is_measured() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let receiving = std::thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        let cancel = CancelToken::new().unwrap();
        let further = Some(Box::new(Further(listener)) as _);
        let patience = Duration::from_millis(800);
        let world = World::idle(&[2]);
        receiving_over(&world, Box::new(socket), further, &cancel, patience).join()
    });
    let options = Options {
        bandwidth: Some(MIN_BANDWIDTH),
        streams: 16,
        ..options()
    };
    let measured = probe(&address, &options).unwrap();
    assert_eq!(measured.streams, 1);
    let expected = measured.link.bytes_per_s.expected;
    assert!(expected < 2 * MIN_BANDWIDTH, "{measured:?}");
    assert!(probed(receiving.join().unwrap().unwrap()));
}

#[test]
fn over_a_pair_of_sockets_there_is_one_stream() {
    let (a, b) = UnixStream::pair().unwrap();
    let receiving = receiving(&World::idle(&[2]), b);
    let cancel = CancelToken::new().unwrap();
    let measured = measure(&Connected::new(a, "pair"), &options(), &cancel, &mut || {}).unwrap();
    assert_eq!(measured.streams, 1);
    assert!(probed(receiving.join().unwrap()));
}

/// Plays the destination: says `bytes`, reads whatever comes, and closes when the other end has.
fn destination(bytes: Vec<u8>, hang_up: bool) -> (UnixStream, JoinHandle<()>) {
    let (a, mut b) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let _ = b.write_all(&bytes);
        if hang_up {
            let _ = b.shutdown(Shutdown::Write);
        }
        let _ = std::io::copy(&mut b, &mut std::io::sink());
    });
    (a, thread)
}

fn refused_by(bytes: Vec<u8>, hang_up: bool) -> String {
    let (socket, thread) = destination(bytes, hang_up);
    let cancel = CancelToken::new().unwrap();
    let impatient = Options {
        peer_timeout: Duration::from_millis(300),
        streams: 1,
        ..options()
    };
    let error = measure(
        &Connected::new(socket, "pair"),
        &impatient,
        &cancel,
        &mut || {},
    )
    .unwrap_err();
    thread.join().unwrap();
    error.to_string()
}

#[test]
fn a_destination_that_means_harm_gets_nothing_but_an_error() {
    let pongs = |numbers: &[u64]| {
        let pongs = numbers.iter().map(|number| Frame::Pong(*number));
        let all: Vec<Frame> = std::iter::once(ACCEPT).chain(pongs).collect();
        frames(&all)
    };
    let mut old = preamble::MAGIC.to_vec();
    old.extend_from_slice(&[1, 0, 1, 0, 0, 0, 0, 0]);
    let garbage = [frames(&[ACCEPT]), vec![0xff; 64]].concat();
    let rows = [
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
            false,
            "is not Ferry",
        ),
        (old, false, "speaks version 1"),
        (frames(&[]), false, "sent nothing for 0.3 s"),
        (frames(&[]), true, "closed the connection"),
        (
            frames(&[Frame::Refuse("busy".into())]),
            false,
            "measured: busy",
        ),
        (frames(&[Frame::Ready]), false, "sent READY while ACCEPT"),
        (pongs(&[1]), false, "sent PONG while its answer to PING"),
        (pongs(&[0, 1, 2]), true, "closed the connection"),
        (
            pongs(&[0, 1, 2, 9]),
            false,
            "sent PONG while its answer to PING",
        ),
        // Answers to what was not asked yet.
        (
            pongs(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
            true,
            "sent PONG while nothing was expected|closed the connection",
        ),
        (garbage, false, "broke the protocol"),
    ];
    for (bytes, hang_up, expected) in rows {
        let error = refused_by(bytes, hang_up);
        let found = expected.split('|').any(|text| error.contains(text));
        assert!(found, "{expected}: {error}");
    }
}

/// Says `bytes` to a receiver that waits for a guest; gives what that ends with.
fn receiver_against(world: &Arc<World>, bytes: Vec<u8>, hang_up: bool) -> ReceiveError {
    let (mut a, b) = UnixStream::pair().unwrap();
    let receiving = receiving(world, b);
    let thread = std::thread::spawn(move || {
        let _ = a.write_all(&bytes);
        if hang_up {
            let _ = a.shutdown(Shutdown::Write);
        }
        let _ = a.read_to_end(&mut Vec::new());
    });
    let error = receiving.join().unwrap().unwrap_err();
    thread.join().unwrap();
    assert_eq!(world.running(), 0);
    error
}

#[test]
fn a_source_that_means_harm_gets_nothing_done() {
    let world = World::idle(&[2]);
    let run = Run { first: 0, pages: 1 };
    let pages = Frame::Pages {
        round: 0,
        runs: vec![run],
    };
    let mut none = frames(&[PROBE, Frame::Filler { bytes: 1 }]);
    let count = none.len() - 4;
    none[count] = 0;
    let mut old = preamble::MAGIC.to_vec();
    old.extend_from_slice(&[1, 0, 1, 0, 0, 0, 0, 0]);
    codec::encode(&PROBE, &mut old).unwrap();
    let rows = [
        (
            frames(&[PROBE, pages]),
            "sent PAGES while the receiver was waiting for FILLER or PING",
        ),
        (
            frames(&[PROBE, PROBE]),
            "sent PROBE while the receiver was waiting for FILLER or PING",
        ),
        (frames(&[PROBE, Frame::Go]), "sent GO while"),
        (
            frames(&[Frame::Filler { bytes: 5 }]),
            "sent FILLER while the receiver was waiting for HELLO or PROBE",
        ),
        (old, "sent PROBE while the receiver was waiting for HELLO"),
        (none, "broke the protocol"),
    ];
    for (bytes, expected) in rows {
        let error = receiver_against(&world, bytes, false).to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    // Cut anywhere: before the probe has begun nobody came, afterwards it is over.
    let whole = frames(&[PROBE, Frame::Ping(1), Frame::Filler { bytes: 5 }]);
    let begun = preamble::PREAMBLE + 8 + 18;
    for len in 0..whole.len() {
        let error = receiver_against(&world, whole[..len].to_vec(), true);
        let over = matches!(error, ReceiveError::Probed { .. });
        assert_eq!(over, len >= begun, "cut to {len}: {error}");
    }
}

/// Whoever goes on for ever is sent away after some seconds.
#[test]
fn an_endless_probe_is_ended() {
    let (mut a, b) = UnixStream::pair().unwrap();
    let receiving = receiving(&World::idle(&[2]), b);
    let thread = std::thread::spawn(move || {
        a.write_all(&frames(&[PROBE])).unwrap();
        let mut more = frames(&[Frame::Filler { bytes: 1000 }])[preamble::PREAMBLE..].to_vec();
        more.extend_from_slice(&[1; 1000]);
        while a.write_all(&more).is_ok() {}
    });
    let error = receiving.join().unwrap().unwrap_err().to_string();
    assert!(error.contains("may be measured for 10 s"), "{error}");
    thread.join().unwrap();
}

/// While a move gathers its streams, a probe is sent away, and the move goes on.
#[test]
fn a_probe_does_not_disturb_a_move() {
    let world = World::idle(&[2]);
    let (address, receiving) = receiving_streams(&world);
    let relay = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = relay.local_addr().unwrap().to_string();
    // The move's second stream is held up until the probe has been sent away.
    let there = address.clone();
    let relaying = std::thread::spawn(move || {
        let mut threads = Vec::new();
        for index in 0..2 {
            let (near, _) = relay.accept().unwrap();
            if index == 1 {
                let error = probe(&there, &options()).unwrap_err().to_string();
                assert!(error.contains("another move is coming in"), "{error}");
            }
            let far = TcpStream::connect(&there).unwrap();
            for (mut from, mut to) in [
                (near.try_clone().unwrap(), far.try_clone().unwrap()),
                (far, near),
            ] {
                threads.push(std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                }));
            }
        }
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
    });
    let cancel = CancelToken::new().unwrap();
    let moved = migration::source::migrate(
        support::boot(&world),
        &TcpTarget::new(target),
        &options(),
        &cancel,
        &mut |_| {},
    );
    assert!(moved.error.is_none(), "{:?}", moved.error);
    drop(moved);
    let arrived = receiving.join().unwrap().unwrap();
    support::run::verify(&world, arrived);
    relaying.join().unwrap();
}

#[test]
fn a_cancel_ends_a_probe() {
    let (address, receiving) = receiving_streams(&World::idle(&[2]));
    let cancel = CancelToken::new().unwrap();
    let other = cancel.clone();
    let thread = std::thread::spawn(move || {
        let slow = Options {
            bandwidth: Some(1 << 20),
            ..options()
        };
        measure(&TcpTarget::new(address), &slow, &other, &mut || {})
    });
    // It has begun by then, and lasts longer.
    std::thread::sleep(Duration::from_secs(1));
    cancel.cancel().unwrap();
    let error = thread.join().unwrap().unwrap_err();
    assert!(matches!(error, ProbeError::Cancelled(_)), "{error}");
    assert!(probed(receiving.join().unwrap()));
}
