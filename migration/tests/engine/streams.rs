//! Moves over several streams: whole under load, fast to end when one stream fails, and closed to strangers.

use crate::support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use migration::cancel::CancelToken;
use migration::event::Event;
use migration::options::{MIN_BANDWIDTH, OnTimeout, Options};
use migration::pack::{Codec, Compress};
use migration::report::Outcome;
use migration::source::{Moved, migrate};
use migration::wire::codec;
use migration::wire::frame::{Frame, Run};
use migration::wire::iov::{self, In, Out, Waits};
use migration::wire::preamble;
use migration::wire::{Connect, ConnectError, TcpTarget, Transport};
use support::run::{Further, back, options, receiving_over, receiving_streams, verify};
use support::{Faults, Running, World, Writer, boot};

fn busy() -> Arc<World> {
    let writer = Writer {
        pages: 0..12_000,
        per_ms: 400,
    };
    World::new(&[64, 32], writer, Faults::default())
}

fn over(streams: u16) -> Options {
    Options {
        streams,
        ..options()
    }
}

fn go(
    guest: Running,
    target: &dyn Connect,
    options: &Options,
    events: &mut dyn FnMut(Event),
) -> Moved<Running> {
    let cancel = CancelToken::new().unwrap();
    migrate(guest, target, options, &cancel, events)
}

#[test]
fn a_busy_guest_arrives_whole_over_any_number_of_streams() {
    for streams in [1, 2, 4, 16] {
        let world = busy();
        let (address, receiving) = receiving_streams(&world);
        let target = TcpTarget::new(address);
        let moved = go(boot(&world), &target, &over(streams), &mut |_| {});
        let report = moved.report;
        assert_eq!(report.outcome, Outcome::Completed, "{}", report.reason);
        assert_eq!(report.streams, streams);
        verify(&world, receiving.join().unwrap().unwrap());
    }
}

/// At the least bandwidth a page takes 63 ms: of sixteen streams each would wait a second for its turn, and the first
/// would be taken for dead.
#[test]
fn streams_that_would_wait_long_for_their_turn_are_not_opened() {
    for compress in [Compress::None, Compress::Always(Codec::Lz4)] {
        // Enough for sixteen, and for minutes.
        let world = World::idle(&[64]);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let there = Arc::clone(&world);
        let receiving = std::thread::spawn(move || {
            let (socket, _) = listener.accept().unwrap();
            let cancel = CancelToken::new().unwrap();
            let further = Some(Box::new(Further(listener)) as _);
            let patience = Duration::from_millis(800);
            receiving_over(&there, Box::new(socket), further, &cancel, patience).join()
        });
        let slow = Options {
            bandwidth: Some(MIN_BANDWIDTH),
            compress,
            ..over(16)
        };
        let cancel = CancelToken::new().unwrap();
        let ends = cancel.clone();
        let mut ending = None;
        let target = TcpTarget::new(address);
        let moved = migrate(boot(&world), &target, &slow, &cancel, &mut |event| {
            if matches!(event, Event::RoundStarted { .. }) {
                let ends = ends.clone();
                ending = Some(std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_secs(2));
                    ends.cancel().unwrap();
                }));
            }
        });
        // It went on until then.
        let reason = &moved.report.reason;
        assert_eq!(moved.report.outcome, Outcome::Cancelled, "{reason}");
        assert_eq!(moved.report.streams, 1);
        let sent = moved.report.wire_bytes;
        assert!(sent < 4 * MIN_BANDWIDTH, "{sent}");
        ending.unwrap().join().unwrap();
        assert!(receiving.join().unwrap().unwrap().is_err());
        verify(&world, back(&world, moved.guest));
    }
}

/// Opens streams, and lets the test do something to one of them.
struct Meddler {
    target: TcpTarget,
    opened: AtomicUsize,
    /// Which stream, counted in the order of connecting, which need not be that of their numbers.
    which: usize,
    meddle: fn(TcpStream),
}

impl Connect for Meddler {
    fn connect(
        &self,
        timeout: Duration,
        cancel: &CancelToken,
    ) -> Result<Box<dyn Transport>, ConnectError> {
        if self.opened.fetch_add(1, SeqCst) != self.which {
            return self.target.connect(timeout, cancel);
        }
        let name = self.target.name();
        let socket = TcpStream::connect(name.trim_start_matches("tcp:")).unwrap();
        (self.meddle)(socket.try_clone().unwrap());
        Ok(Box::new(socket))
    }

    fn name(&self) -> String {
        self.target.name()
    }
}

/// Moves with one stream meddled with: fails with all of `reasons`, the guest runs on, and moves at the second
/// try.
fn meddled(which: usize, meddle: fn(TcpStream), reasons: &[&str]) {
    let world = busy();
    let (address, receiving) = receiving_streams(&world);
    let target = Meddler {
        target: TcpTarget::new(address),
        opened: AtomicUsize::new(0),
        which,
        meddle,
    };
    let moved = go(boot(&world), &target, &over(3), &mut |_| {});
    assert_eq!(moved.report.outcome, Outcome::Failed);
    let there = receiving.join().unwrap().unwrap_err();
    let reason = moved.report.reason;
    for expected in reasons {
        assert!(reason.contains(expected), "{reason}; there: {there}");
    }
    let guest = back(&world, moved.guest);
    let (address, receiving) = receiving_streams(&world);
    let moved = go(guest, &TcpTarget::new(address), &over(3), &mut |_| {});
    assert_eq!(moved.report.outcome, Outcome::Completed);
    verify(&world, receiving.join().unwrap().unwrap());
}

#[test]
fn a_further_stream_that_is_cut_ends_the_move_and_the_reason_is_told() {
    meddled(
        1,
        |socket| {
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(30));
                socket.shutdown(std::net::Shutdown::Both).unwrap();
            });
        },
        &["of the move failed"],
    );
}

/// Says a frame before the source itself has said anything on that stream.
fn say(mut socket: TcpStream, frames: &[Frame]) {
    let mut bytes = preamble::ours().to_vec();
    for frame in frames {
        codec::encode(frame, &mut bytes).unwrap();
    }
    socket.write_all(&bytes).unwrap();
}

#[test]
fn a_stream_of_another_move_is_turned_away() {
    let world = busy();
    let (address, receiving) = receiving_streams(&world);
    let target = TcpTarget::new(address.clone());
    // Before the streams of the move itself come, since nothing else is accepted afterwards.
    let strange = Stranger {
        target,
        address,
        opened: AtomicUsize::new(0),
    };
    let moved = go(boot(&world), &strange, &over(2), &mut |_| {});
    let report = moved.report;
    assert_eq!(report.outcome, Outcome::Completed, "{}", report.reason);
    // The stranger came, before the second.
    assert_eq!((strange.opened.load(SeqCst), report.streams), (2, 2));
    verify(&world, receiving.join().unwrap().unwrap());
}

/// Before the second stream of a move, somebody else comes to the same port.
struct Stranger {
    target: TcpTarget,
    address: String,
    opened: AtomicUsize,
}

impl Connect for Stranger {
    fn connect(
        &self,
        timeout: Duration,
        cancel: &CancelToken,
    ) -> Result<Box<dyn Transport>, ConnectError> {
        if self.opened.fetch_add(1, SeqCst) == 1 {
            let mut socket = TcpStream::connect(&self.address).unwrap();
            let join = Frame::Join {
                session: [7; 16],
                index: 1,
            };
            say(socket.try_clone().unwrap(), &[join]);
            let mut heard = Vec::new();
            let _ = socket.read_to_end(&mut heard);
            let heard = String::from_utf8_lossy(&heard).into_owned();
            assert!(heard.contains("another move is coming in"), "{heard}");
        }
        self.target.connect(timeout, cancel)
    }

    fn name(&self) -> String {
        self.target.name()
    }
}

/// A move of whose streams one says a frame of its own behind its first. Gives the reason why it failed, at both ends.
fn lied(stream: usize, frame: Frame) -> (String, String) {
    let world = busy();
    let (address, receiving) = receiving_streams(&world);
    let target = Liar {
        target: TcpTarget::new(address),
        opened: AtomicUsize::new(0),
        stream,
        frame,
    };
    let moved = go(boot(&world), &target, &over(2), &mut |_| {});
    let there = receiving.join().unwrap().unwrap_err();
    let (reason, outcome) = (moved.report.reason, moved.report.outcome);
    assert_eq!(outcome, Outcome::Failed, "{reason}");
    back(&world, moved.guest);
    (reason, format!("{there:?}"))
}

#[test]
fn nonsense_on_a_further_stream_is_refused_with_its_reason() {
    let run = |first, pages| vec![Run { first, pages }];
    let rows: [(Frame, &str); 4] = [
        (
            Frame::Zero {
                round: 2,
                runs: run(0, 1),
            },
            "pages of round 2 came in round 0",
        ),
        (
            Frame::Zero {
                round: 0,
                runs: run(24_570, 100),
            },
            "not in one region",
        ),
        (Frame::Ready, "READY while the receiver was waiting for"),
        (
            Frame::RoundEnd { round: 0, pages: 0 },
            "ROUND_END while the receiver was waiting for",
        ),
    ];
    for (frame, expected) in rows {
        let (reason, there) = lied(1, frame);
        assert!(reason.contains(expected), "{reason}; there: {there}");
        assert!(reason.contains("stream 1 of the move failed"), "{reason}");
    }
}

/// A further stream may be a round ahead and waits. On the first one nothing but its own ROUND_END could end that wait.
#[test]
fn the_next_round_on_the_first_stream_before_the_end_of_this_one_ends_the_move() {
    let runs = vec![Run { first: 0, pages: 1 }];
    let (reason, there) = lied(0, Frame::Zero { round: 1, runs });
    let expected = "pages of round 1 came in round 0";
    assert!(there.contains(expected), "{reason}; there: {there}");
}

/// The first words of a connection have to come soon; what follows has the patience that a peer has.
#[test]
fn a_further_stream_may_be_as_slow_as_the_first() {
    let world = busy();
    let (address, receiving) = receiving_streams(&world);
    let target = Dozer {
        target: TcpTarget::new(address),
        opened: AtomicUsize::new(0),
        doze: Doze::Once,
    };
    let moved = go(boot(&world), &target, &over(2), &mut |_| {});
    let report = moved.report;
    assert_eq!(report.outcome, Outcome::Completed, "{}", report.reason);
    assert!(report.total_ms > 3000.0, "nobody dozed: {report:?}");
    verify(&world, receiving.join().unwrap().unwrap());
}

/// It takes some bytes all the time, so it is never silent; but the guest would stand still for a minute.
#[test]
fn a_trickle_does_not_hold_a_guest_that_stands_still() {
    let world = busy();
    let (address, receiving) = receiving_streams(&world);
    let target = Dozer {
        target: TcpTarget::new(address),
        opened: AtomicUsize::new(0),
        doze: Doze::OnceStopped(Arc::default()),
    };
    let Doze::OnceStopped(stopped) = target.doze.clone() else {
        return;
    };
    let options = Options {
        max_rounds: 1,
        on_timeout: OnTimeout::SwitchOver,
        downtime_limit: Duration::from_millis(1),
        ..over(2)
    };
    let moved = go(boot(&world), &target, &options, &mut |event| {
        if matches!(event, Event::SwitchingOver { .. }) {
            stopped.store(true, SeqCst);
        }
    });
    let report = moved.report;
    assert_eq!(report.outcome, Outcome::Failed, "{}", report.reason);
    assert!(
        report.reason.contains("kept the guest standing still"),
        "{}",
        report.reason
    );
    verify(&world, back(&world, moved.guest));
    receiving.join().unwrap().unwrap_err();
}

/// When a stream is slow.
#[derive(Debug, Clone)]
enum Doze {
    /// In the middle of a page, for less than a peer's patience.
    Once,
    /// From the time on that the guest stands still: 50 KB a second.
    OnceStopped(Arc<AtomicBool>),
}

/// Its second stream is slow; once the guest stands still, both are.
struct Dozer {
    target: TcpTarget,
    opened: AtomicUsize,
    doze: Doze,
}

#[derive(Debug)]
struct Dozing {
    inner: Box<dyn Transport>,
    sent: usize,
    doze: Doze,
    dozed: bool,
}

impl Dozing {
    /// How long it is to sleep behind the next bytes, if at all.
    fn nap(&mut self) -> Option<Duration> {
        match &self.doze {
            Doze::Once => {
                let now = self.sent >= 64 << 10 && !self.dozed;
                self.dozed |= now;
                now.then_some(Duration::from_secs(3))
            }
            Doze::OnceStopped(stopped) => stopped.load(SeqCst).then_some(Duration::from_millis(20)),
        }
    }
}

impl Transport for Dozing {
    fn prepare(&self, peer_timeout: Duration) -> std::io::Result<()> {
        self.inner.prepare(peer_timeout)
    }

    fn send(&mut self, from: &[Out<'_>], waits: Waits) -> std::io::Result<usize> {
        let Some(nap) = self.nap() else {
            let count = self.inner.send(from, waits)?;
            self.sent += count;
            return Ok(count);
        };
        let mut some = [0; 1000];
        let count = iov::gather(from, &mut iov::Place::default(), &mut some);
        let count = self.inner.send(&[Out::bytes(&some[..count])], waits)?;
        std::thread::sleep(nap);
        Ok(count)
    }

    fn receive(&mut self, into: &mut [In<'_>], waits: Waits) -> std::io::Result<usize> {
        self.inner.receive(into, waits)
    }

    fn poll_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.inner.poll_fd()
    }

    fn shutdown(&mut self, how: std::net::Shutdown) {
        self.inner.shutdown(how);
    }
}

impl Connect for Dozer {
    fn connect(
        &self,
        timeout: Duration,
        cancel: &CancelToken,
    ) -> Result<Box<dyn Transport>, ConnectError> {
        let inner = self.target.connect(timeout, cancel)?;
        let further = self.opened.fetch_add(1, SeqCst) == 1;
        // Few pages may be left at the stop, and those go on the first stream.
        if !further && matches!(self.doze, Doze::Once) {
            return Ok(inner);
        }
        Ok(Box::new(Dozing {
            inner,
            sent: 0,
            doze: self.doze.clone(),
            dozed: false,
        }))
    }

    fn name(&self) -> String {
        self.target.name()
    }
}

/// Adds a frame to what a stream says after its first, which is HELLO or JOIN.
struct Liar {
    target: TcpTarget,
    opened: AtomicUsize,
    stream: usize,
    frame: Frame,
}

#[derive(Debug)]
struct Lying {
    inner: Box<dyn Transport>,
    sent: usize,
    lie: Vec<u8>,
}

/// Bytes of a preamble.
const PREAMBLE: usize = 16;

impl Transport for Lying {
    fn prepare(&self, peer_timeout: Duration) -> std::io::Result<()> {
        self.inner.prepare(peer_timeout)
    }

    fn send(&mut self, from: &[Out<'_>], waits: Waits) -> std::io::Result<usize> {
        let count = self.inner.send(from, waits)?;
        self.sent += count;
        if self.sent > PREAMBLE && !self.lie.is_empty() {
            let lie = std::mem::take(&mut self.lie);
            self.inner.send(&[Out::bytes(&lie)], waits)?;
        }
        Ok(count)
    }

    fn receive(&mut self, into: &mut [In<'_>], waits: Waits) -> std::io::Result<usize> {
        self.inner.receive(into, waits)
    }

    fn poll_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.inner.poll_fd()
    }

    fn shutdown(&mut self, how: std::net::Shutdown) {
        self.inner.shutdown(how);
    }
}

impl Connect for Liar {
    fn connect(
        &self,
        timeout: Duration,
        cancel: &CancelToken,
    ) -> Result<Box<dyn Transport>, ConnectError> {
        let inner = self.target.connect(timeout, cancel)?;
        if self.opened.fetch_add(1, SeqCst) != self.stream {
            return Ok(inner);
        }
        let mut lie = Vec::new();
        codec::encode(&self.frame, &mut lie).unwrap();
        Ok(Box::new(Lying {
            inner,
            sent: 0,
            lie,
        }))
    }

    fn name(&self) -> String {
        self.target.name()
    }
}
