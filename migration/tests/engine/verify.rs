//! Moves whose memory is compared before GO: nothing but what is wrong is found, and what is wrong keeps the guest at
//! the source.

use crate::support;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use migration::cancel::CancelToken;
use migration::event::Event;
use migration::guest::PausedGuest;
use migration::options::Options;
use migration::pack::{Codec, Compress};
use migration::report::{Outcome, Report};
use migration::source::{After, migrate};
use migration::state::{Kind, VmState};
use migration::touched::touched;
use migration::wire::channel::Channel;
use migration::wire::frame::{Frame, Hello, Question, Run};
use migration::wire::{TcpTarget, UnixTarget, codec};
use support::run::{
    PATIENCE, Receiving, back, options, receiving, receiving_streams, receiving_with, send, travel,
    verify,
};
use support::{Content, Faults, World, Writer, boot};
use vm_memory::{Bytes, GuestAddress};

fn verified() -> Options {
    Options {
        verify: true,
        ..options()
    }
}

fn busy(content: Content) -> Arc<World> {
    let writer = Writer {
        pages: 100..3000,
        per_ms: 50,
    };
    World::of(content, &[16, 8], writer, Faults::default())
}

fn assert_verified(report: &Report) {
    assert_eq!(report.outcome, Outcome::Completed, "{}", report.reason);
    let (took, parts) = (report.verify_ms.unwrap(), report.blackout.unwrap());
    assert!(took > 0.0 && took <= report.blackout_ms.unwrap());
    assert!((parts.verify_ms - took).abs() < 0.01, "{took} {parts:?}");
}

#[test]
fn a_move_that_is_right_is_found_to_be() {
    for (content, compress, delta_cache) in [
        (Content::Stamped, Compress::None, None),
        (Content::Text, Compress::Always(Codec::Lz4), Some(64 << 20)),
        (
            Content::Blinking,
            Compress::Always(Codec::Zstd),
            Some(8 << 20),
        ),
    ] {
        let world = busy(content);
        let packed = Options {
            compress,
            delta_cache,
            ..verified()
        };
        let (moved, arrived) = travel(&world, boot(&world), &packed);
        assert_verified(&moved.report);
        verify(&world, arrived.unwrap());
    }
}

#[test]
fn so_is_one_over_several_streams() {
    let world = busy(Content::Stamped);
    let (address, receiving) = receiving_streams(&world);
    let four = Options {
        streams: 4,
        ..verified()
    };
    let cancel = CancelToken::new().unwrap();
    let target = TcpTarget::new(address);
    let moved = migrate(boot(&world), &target, &four, &cancel, &mut |_| {});
    assert_eq!(moved.report.streams, 4);
    assert_verified(&moved.report);
    verify(&world, receiving.join().unwrap().unwrap());
}

#[test]
fn it_is_off_by_default_and_costs_nothing_then() {
    let world = World::idle(&[4]);
    let (moved, arrived) = travel(&world, boot(&world), &options());
    assert_eq!(moved.report.outcome, Outcome::Completed);
    assert_eq!(moved.report.verify_ms, None);
    assert!(moved.report.blackout.unwrap().verify_ms.abs() < f64::EPSILON);
    verify(&world, arrived.unwrap());
}

/// One byte in so many of the destination's pages is wrong by the time that they are compared.
fn damaged(pages: impl Iterator<Item = u64>) -> String {
    let world = World::idle(&[24, 24]);
    let (a, b) = UnixStream::pair().unwrap();
    let cancel = CancelToken::new().unwrap();
    let guest = boot(&world);
    let receiving = receiving(&world, b);
    let mut pages = Some(pages);
    let moved = send(guest, a, &verified(), &cancel, &mut |event| {
        if matches!(event, Event::SwitchingOver { .. }) {
            let there = world.there.lock().unwrap().clone().unwrap();
            for page in pages.take().unwrap() {
                let at = GuestAddress(world.layout.gpa(page).unwrap() + 1234);
                let byte: u8 = there.read_obj(at).unwrap();
                there.write_obj(byte ^ 0x10, at).unwrap();
            }
        }
    });
    let report = &moved.report;
    assert_eq!(report.outcome, Outcome::Failed, "{}", report.reason);
    let there = receiving.join().unwrap().unwrap_err().to_string();
    assert!(there.contains("is not the guest's"), "{there}");
    // It stood still for nothing, and that is said.
    assert!(report.blackout_ms.unwrap() >= report.verify_ms.unwrap());
    let reason = report.reason.clone();
    verify(&world, back(&world, moved.guest));
    reason
}

#[test]
fn pages_that_are_wrong_are_named_and_the_guest_goes_on() {
    let reason = damaged([0].into_iter());
    assert!(
        reason
            .contains("1 page of 4 KiB in 1 of 24 blocks of 2 MiB differ, at guest-physical 0x0;"),
        "{reason}"
    );
    // One was stamped, one was zeros, one was never touched, neither here nor there; the last of all.
    let reason = damaged([3000, 3001, 3002, 12_286].into_iter());
    assert!(
        reason.contains("4 pages of 4 KiB in 2 of 24 blocks")
            && reason.contains("0xbb8000, 0xbb9000, 0xbba000, 0x1017fe000;"),
        "{reason}"
    );
    let reason = damaged((0..12_288).step_by(512));
    assert!(
        reason.contains("at least 16 pages of 4 KiB in 24 of 24 blocks")
            && reason.contains("0x0, 0x200000, 0x400000")
            && reason.contains("and more;"),
        "{reason}"
    );
}

/// Most of the guest was never touched. Comparing leaves that so on both sides.
#[test]
fn memory_that_nobody_touched_stays_untouched() {
    let world = World::idle(&[256]);
    let guest = support::unbooted(&world);
    for page in [0, 77, 40_000] {
        guest.0.stamp(page);
    }
    let here = Arc::clone(&guest.0.ram);
    let mut before = touched(&here, &world.layout).unwrap();
    // Saving the state writes to it.
    before.insert(world.layout.pages() - 1);
    let (moved, arrived) = travel(&world, guest.resume().unwrap(), &verified());
    assert_verified(&moved.report);
    assert!(touched(&here, &world.layout).unwrap() == before);
    let there = world.there.lock().unwrap().clone().unwrap();
    let there = touched(&there, &world.layout).unwrap();
    assert!(there.len() <= before.len().max(3 * 512), "{}", there.len());
    verify(&world, arrived.unwrap());
}

#[test]
fn a_cancel_while_it_is_compared_brings_the_guest_back() {
    let world = World::idle(&[16]);
    let (a, b) = UnixStream::pair().unwrap();
    let cancel = CancelToken::new().unwrap();
    let other = cancel.clone();
    let peer = play(b, move |_| {
        other.cancel().unwrap();
        None
    });
    let patient = Options {
        peer_timeout: Duration::from_secs(3600),
        ..verified()
    };
    let moved = send(boot(&world), a, &patient, &cancel, &mut |_| {});
    assert_eq!(
        moved.report.outcome,
        Outcome::Cancelled,
        "{}",
        moved.report.reason
    );
    verify(&world, back(&world, moved.guest));
    peer.join().unwrap();
}

/// A destination that is good until VERIFY, and answers that as `answer` says; `None` is silence.
fn play(
    socket: UnixStream,
    answer: impl FnOnce(Question) -> Option<Vec<Frame>> + Send + 'static,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let cancel = CancelToken::new().unwrap();
        let mut channel = Channel::new(Box::new(socket), "x", PATIENCE, &cancel).unwrap();
        channel.greet().unwrap();
        let mut answer = Some(answer);
        while let Ok(frame) = channel.receive() {
            match frame {
                Frame::Hello(hello) => {
                    assert!(hello.verify);
                    let boot = [0; 16];
                    channel.send(&Frame::Accept { boot, streams: 1 }).unwrap();
                }
                Frame::Ping(number) => channel.send(&Frame::Pong(number)).unwrap(),
                Frame::Pages { runs, .. } => {
                    let pages: u32 = runs.iter().map(|run| run.pages).sum();
                    let mut sink = vec![0; usize::try_from(pages).unwrap() * 4096];
                    let mut piece = [migration::wire::iov::In::bytes(&mut sink)];
                    channel.receive_data(&mut piece).unwrap();
                }
                Frame::Verify(question) => {
                    let Some(answer) = answer.take() else { return };
                    for frame in answer(question).into_iter().flatten() {
                        let _ = channel.send(&frame);
                    }
                }
                Frame::State(_) => panic!("the source went on"),
                _ => {}
            }
        }
    })
}

/// Digests of memory that there is not, too many, none at all, or something else.
#[test]
fn a_destination_that_answers_nonsense_does_not_get_the_guest() {
    let digests = |first, count| Frame::Digests {
        first,
        digests: vec![7; count],
    };
    let rows: Vec<(Vec<Frame>, &str)> = vec![
        (vec![digests(8, 1)], "DIGESTS of other memory"),
        (vec![digests(0, 9)], "DIGESTS of other memory"),
        (
            vec![digests(0, 4), digests(3, 1)],
            "DIGESTS of other memory",
        ),
        (vec![digests((1 << 32) - 1, 1)], "DIGESTS of other memory"),
        (
            vec![Frame::Ready],
            "READY while the source was waiting for DIGESTS",
        ),
        (vec![Frame::Failed("no time".into())], "failed: no time"),
        // All differ; then the pages of none are told.
        (vec![digests(0, 8)], "closed the connection"),
    ];
    for (said, expected) in rows {
        let world = World::idle(&[16]);
        let (a, b) = UnixStream::pair().unwrap();
        let peer = play(b, |question| {
            assert_eq!(question, Question::Blocks);
            Some(said)
        });
        let cancel = CancelToken::new().unwrap();
        let moved = send(boot(&world), a, &verified(), &cancel, &mut |_| {});
        let reason = &moved.report.reason;
        assert_eq!(moved.report.outcome, Outcome::Failed, "{reason}");
        assert!(reason.contains(expected), "{expected}: {reason}");
        verify(&world, back(&world, moved.guest));
        peer.join().unwrap();
    }
}

#[test]
fn an_older_destination_is_refused_in_words() {
    use std::io::{Read, Write};
    let world = World::idle(&[2]);
    let (a, mut b) = UnixStream::pair().unwrap();
    let peer = std::thread::spawn(move || {
        let mut theirs = *b"\x89FERRY\r\n\x02\0\x01\0\0\0\0\0";
        b.write_all(&theirs).unwrap();
        b.read_exact(&mut theirs).unwrap();
        let mut said = Vec::new();
        b.read_to_end(&mut said).unwrap();
        said
    });
    let cancel = CancelToken::new().unwrap();
    let moved = send(boot(&world), a, &verified(), &cancel, &mut |_| {});
    let reason = &moved.report.reason;
    assert!(
        reason.contains("speaks version 2") && reason.contains("--verify"),
        "{reason}"
    );
    verify(&world, back(&world, moved.guest));
    // Not a word of the guest: the reason alone.
    let said = peer.join().unwrap();
    let (header, body) = said.split_at(8);
    let header = codec::Header::parse(header.try_into().unwrap()).unwrap();
    assert!(matches!(codec::parse(header, body), Ok(Frame::Abort(_))));
}

/// A source as a test speaks it, which has said hello and whether it will compare; and what becomes of its receiver.
fn source(world: &Arc<World>, verify: bool) -> (Receiving, Channel) {
    let (a, b) = UnixStream::pair().unwrap();
    let cancel = CancelToken::new().unwrap();
    let receiving = receiving_with(world, b, &cancel, PATIENCE);
    let mut channel = Channel::new(Box::new(a), "x", PATIENCE, &cancel).unwrap();
    channel.greet().unwrap();
    let hello = Hello {
        verify,
        ..support::run::hello(world)
    };
    channel.send(&Frame::Hello(Box::new(hello))).unwrap();
    channel.receive().unwrap();
    (receiving, channel)
}

/// A source that asks although it did not say that it would, or goes on sending pages.
#[test]
fn a_receiver_answers_only_what_was_agreed() {
    for (asks, after, expected) in [
        (
            false,
            Frame::Verify(Question::Blocks),
            "VERIFY while the receiver was waiting for pages",
        ),
        (
            true,
            Frame::Verify(Question::Pages { block: 2 }),
            "there are 2",
        ),
        (
            true,
            Frame::Zero {
                round: 0,
                runs: vec![Run { first: 0, pages: 1 }],
            },
            "pages of round 0 came after VERIFY",
        ),
        // After which pages would be taken again.
        (
            true,
            Frame::RoundEnd { round: 0, pages: 0 },
            "the end of round 0 came after VERIFY",
        ),
    ] {
        let world = World::idle(&[4]);
        let (receiving, mut channel) = source(&world, asks);
        if asks {
            channel.send(&Frame::Verify(Question::Blocks)).unwrap();
            let heard = channel.receive().unwrap();
            let Frame::Digests { first: 0, digests } = heard else {
                panic!("{heard:?}");
            };
            assert_eq!(digests.len(), 2);
        }
        let _ = channel.send(&after);
        let error = receiving.join().unwrap().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// However long the source compares: the destination knows from VERIFY on that the guest stands still.
#[test]
fn while_it_is_compared_the_destination_counts_the_time_itself() {
    let world = World::idle(&[4]);
    let (receiving, mut channel) = source(&world, true);
    let comparing = Duration::from_millis(300);
    channel.send(&Frame::Verify(Question::Blocks)).unwrap();
    channel.receive().unwrap();
    std::thread::sleep(comparing);
    // Asking for more does not make it less.
    let pages = Question::Pages { block: 1 };
    channel.send(&Frame::Verify(pages)).unwrap();
    channel.receive().unwrap();
    let mut state = VmState::default();
    state.put(Kind::VCPU, 0, 1, &1u64).unwrap();
    channel.send(&Frame::State(state)).unwrap();
    assert_eq!(channel.receive().unwrap(), Frame::Ready);
    let stood = *world.stood.lock().unwrap();
    assert!(stood >= comparing, "{stood:?}");
    drop(channel);
    receiving.join().unwrap().unwrap_err();
}

#[test]
fn memory_by_descriptor_is_not_two_memories() {
    let world = World::idle(&[2]);
    let target = UnixTarget::new("/nonexistent/socket");
    let cancel = CancelToken::new().unwrap();
    let moved = migrate(boot(&world), &target, &verified(), &cancel, &mut |_| {});
    let reason = &moved.report.reason;
    assert!(reason.contains("no two to compare"), "{reason}");
    assert!(matches!(moved.guest, After::Running(_)));
}
