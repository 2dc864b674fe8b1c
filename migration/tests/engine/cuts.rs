//! The connection is cut at every frame boundary and in the middle of every frame, in both directions. What
//! must hold each time: never two guests, never none without somebody being told, and never a wrong page.

use crate::support;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread::JoinHandle;

use migration::cancel::CancelToken;
use migration::guest::PausedGuest;
use migration::options::Options;
use migration::report::Outcome;
use migration::source::After;
use migration::wire::codec::{self, HEADER, Header};
use migration::wire::frame::Frame;
use migration::wire::preamble::PREAMBLE;
use support::run::{back, options, receiving, send, verify};
use support::{Holder, World, boot};

/// Where the line is cut: before the frame of that number, or in its middle.
#[derive(Debug, Clone, Copy)]
struct Cut {
    from_source: bool,
    frame: usize,
    middle: bool,
}

/// Reads one frame as bytes, data and all; the preamble counts as one. `None` at the end.
fn read_frame(from: &mut UnixStream, number: usize) -> Option<(Vec<u8>, &'static str)> {
    if number == 0 {
        let mut bytes = vec![0; PREAMBLE];
        from.read_exact(&mut bytes).ok()?;
        return Some((bytes, "preamble"));
    }
    let mut header = [0; HEADER];
    from.read_exact(&mut header).ok()?;
    let mut bytes = header.to_vec();
    let len = u32::from_le_bytes(header[4..].try_into().unwrap());
    let mut body = vec![0; usize::try_from(len).unwrap()];
    from.read_exact(&mut body).ok()?;
    bytes.extend_from_slice(&body);
    let frame = codec::parse(Header::parse(header).unwrap(), &body).unwrap();
    if let Frame::Pages { runs, .. } = &frame {
        let pages: u32 = runs.iter().map(|run| run.pages).sum();
        let mut data = vec![0; usize::try_from(pages).unwrap() * 4096];
        from.read_exact(&mut data).ok()?;
        bytes.extend_from_slice(&data);
    }
    Some((bytes, frame.name()))
}

/// Passes frames on until the cut; then the line is dead both ways. Gives the names of what went through.
fn forward(
    mut from: UnixStream,
    mut to: UnixStream,
    cut: Option<(usize, bool)>,
    passed: Arc<AtomicUsize>,
) -> JoinHandle<Vec<&'static str>> {
    std::thread::spawn(move || {
        let mut names = Vec::new();
        while let Some((bytes, name)) = read_frame(&mut from, names.len()) {
            match cut {
                Some((frame, middle)) if frame == names.len() => {
                    if middle {
                        let _ = to.write_all(&bytes[..bytes.len() / 2]);
                    }
                    break;
                }
                _ if to.write_all(&bytes).is_err() => break,
                _ => {}
            }
            names.push(name);
            passed.fetch_add(1, SeqCst);
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
        names
    })
}

/// One move with a cut, with the memories compared or not; gives what went through from the source and from the
/// destination.
fn travel(cut: Option<Cut>, verified: bool) -> (Vec<&'static str>, Vec<&'static str>) {
    let world = World::idle(&[2, 2]);
    let guest = boot(&world);
    let (source, near) = UnixStream::pair().unwrap();
    let (far, destination) = UnixStream::pair().unwrap();
    let passed = Arc::new(AtomicUsize::new(0));
    let half = |from_source| {
        cut.filter(|cut| cut.from_source == from_source)
            .map(|cut| (cut.frame, cut.middle))
    };
    let (near2, far2) = (near.try_clone().unwrap(), far.try_clone().unwrap());
    let there = forward(near, far, half(true), Arc::clone(&passed));
    let backward = forward(far2, near2, half(false), passed);
    let receiving = receiving(&world, destination);
    let cancel = CancelToken::new().unwrap();
    let options = Options {
        verify: verified,
        ..options()
    };
    let moved = send(guest, source, &options, &cancel, &mut |_| {});
    let arrived = receiving.join().unwrap();
    let names = (there.join().unwrap(), backward.join().unwrap());

    let go = names.0.contains(&"GO");
    let live = names.1.contains(&"LIVE");
    match moved.guest {
        After::Running(_) => {
            assert!(!go, "{cut:?}: the source resumed after GO arrived");
            assert!(arrived.is_err(), "{cut:?}");
            assert_eq!(moved.report.outcome, Outcome::Failed, "{cut:?}");
            assert_eq!(world.holder(), Some(Holder::Source), "{cut:?}");
            verify(&world, back(&world, moved.guest));
        }
        After::Gone(_) => {
            assert_eq!(world.holder(), Some(Holder::Destination), "{cut:?}");
            assert!(live, "{cut:?}");
            assert_eq!(moved.report.outcome, Outcome::Completed, "{cut:?}");
            assert_eq!(world.running(), 1, "{cut:?}");
            verify(&world, arrived.unwrap());
        }
        After::Unknown(paused) => {
            assert!(!live, "{cut:?}: LIVE arrived, and nothing is unknown");
            assert!(names.1.contains(&"READY"), "{cut:?}");
            assert_eq!(moved.report.outcome, Outcome::Unknown, "{cut:?}");
            // It runs there if GO came through, and nowhere if not. Never here.
            assert_eq!(world.running(), i64::from(go), "{cut:?}");
            assert_eq!(arrived.is_ok(), go, "{cut:?}");
            // Somebody who does not look at the destination first is stopped by the fence, if it has moved.
            match (arrived, paused.resume()) {
                (Ok(guest), Err(_)) => {
                    assert_eq!(world.holder(), Some(Holder::Destination), "{cut:?}");
                    assert_eq!(world.running(), 1, "{cut:?}");
                    verify(&world, guest);
                }
                (Err(_), Ok(guest)) => {
                    assert_eq!(world.holder(), Some(Holder::Source), "{cut:?}");
                    verify(&world, guest);
                }
                (there, here) => panic!("{cut:?}: {there:?} there, {here:?} here"),
            }
        }
        After::Stuck(_, error) => panic!("{cut:?}: {error}"),
    }
    names
}

#[test]
fn a_cut_anywhere_leaves_one_guest_or_says_that_it_does_not_know() {
    cut_everywhere(false);
}

#[test]
fn so_does_one_in_a_move_whose_memories_are_compared() {
    cut_everywhere(true);
}

fn cut_everywhere(verified: bool) {
    let (there, back) = travel(None, verified);
    assert_eq!(back.contains(&"DIGESTS"), verified);
    assert_eq!(there.last(), Some(&"GO"));
    assert_eq!(back.last(), Some(&"FIGURES"));
    for (from_source, count) in [(true, there.len()), (false, back.len())] {
        for frame in 0..count {
            for middle in [false, true] {
                let cut = Cut {
                    from_source,
                    frame,
                    middle,
                };
                travel(Some(cut), verified);
            }
        }
    }
}
