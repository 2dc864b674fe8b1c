//! Whatever a peer sends, it costs this side a bounded amount of memory. Every allocation is counted; guest memory is a
//! mapping of its own and not among them.
#![allow(clippy::unwrap_used)]
#![allow(unsafe_code, reason = "an allocator that counts")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use migration::cancel::CancelToken;
use migration::destination::{ReceiveError, ReceiveOptions, receive};
use migration::options::Options;
use migration::report::Outcome;
use migration::state::{Kind, Section, VmState};
use migration::wire::codec::{self, HEADER, Header};
use migration::wire::frame::{Frame, MAX_HELLO, MAX_STATE, Run};
use migration::wire::preamble;
use support::run::{back, hello, options, send, verify};
use support::{FakeHost, World, boot};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// What this thread has taken in all. What others do, the test harness for one, does not count.
    static TAKEN: Cell<usize> = const { Cell::new(0) };
}

fn taken(bytes: usize) {
    TAKEN.with(|taken| taken.set(taken.get().wrapping_add(bytes)));
}

// SAFETY: every call is passed on to the system's allocator as it came, and its answer back; counting touches neither.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        taken(layout.size());
        let now = NOW.fetch_add(layout.size(), SeqCst) + layout.size();
        MOST.fetch_max(now, SeqCst);
        // SAFETY: the caller keeps to the contract of `alloc`, which is that of the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), SeqCst);
        // SAFETY: `memory` comes from `alloc` above, with this layout, so from the system's allocator.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        taken(size);
        let now = NOW.fetch_add(size, SeqCst) + size;
        let now = now - layout.size();
        NOW.fetch_sub(layout.size(), SeqCst);
        MOST.fetch_max(now, SeqCst);
        // SAFETY: as in `dealloc`; the caller sees to it that `size` is not 0 and fits.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One test at a time: they share the count.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// What a receiver or a source has anyway: buffers of its channels, threads, texts.
const ANYWAY: usize = 1536 * KIB;

struct Count {
    before: usize,
}

impl Count {
    fn begin() -> Self {
        let before = NOW.load(SeqCst);
        MOST.store(before, SeqCst);
        Self { before }
    }

    fn most(&self) -> usize {
        MOST.load(SeqCst).saturating_sub(self.before)
    }
}

/// A header with any length, as an honest peer's encoder would not make it.
fn header(kind: u16, len: u32) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes
}

fn frame(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    codec::encode(frame, &mut bytes).unwrap();
    bytes
}

const HELLO: u16 = 1;
const STATE: u16 = 32;

/// A receiver whose source says `said` and then so many bytes of `filling`, and reads what it is told only where it is
/// `polite`; gives the error and how much was allocated at most.
fn receiver_against(said: &[u8], filling: (u8, usize), polite: bool) -> (ReceiveError, usize) {
    let world = World::idle(&[4]);
    let (mut a, b) = UnixStream::pair().unwrap();
    let mut greeting = preamble::ours().to_vec();
    greeting.extend_from_slice(said);
    let (byte, mut left) = filling;
    let count = Count::begin();
    let other = a.try_clone().unwrap();
    let peer = std::thread::spawn(move || {
        let chunk = [byte; 16 * KIB];
        let mut gone = a.write_all(&greeting).is_err();
        while left > 0 && !gone {
            let some = left.min(chunk.len());
            gone = a.write_all(&chunk[..some]).is_err();
            left -= some;
        }
        let _ = a.shutdown(Shutdown::Write);
    });
    let reader = polite.then(|| {
        std::thread::spawn(move || {
            let mut sink = [0; 4 * KIB];
            let mut other = other;
            while other.read(&mut sink).is_ok_and(|count| count > 0) {}
        })
    });
    let cancel = CancelToken::new().unwrap();
    let options = ReceiveOptions {
        peer_timeout: Duration::from_secs(2),
        ..ReceiveOptions::default()
    };
    let mut host = FakeHost(Arc::clone(&world));
    let received = receive(
        &mut host,
        Box::new(b),
        "a stranger",
        None,
        &options,
        &cancel,
        &mut |_| {},
    );
    let most = count.most();
    peer.join().unwrap();
    if let Some(reader) = reader {
        reader.join().unwrap();
    }
    (received.map(|_| ()).unwrap_err(), most)
}

fn accepted(world: &World) -> Vec<u8> {
    frame(&Frame::Hello(Box::new(hello(world))))
}

/// Its name; what is said, and so many bytes of a filling; how much that may cost, and what comes of it.
type Row = (&'static str, Vec<u8>, (u8, usize), usize, &'static str);

#[test]
fn a_receiver_allocates_no_more_than_it_may() {
    let _turn = turn();
    let world = World::idle(&[4]);
    let accepted = accepted(&world);
    let then = |more: Vec<u8>| [accepted.clone(), more].concat();
    let state = usize::try_from(MAX_STATE).unwrap();
    let hello_len = usize::try_from(MAX_HELLO).unwrap();
    let ping = frame(&Frame::Ping(7));
    let rows: Vec<Row> = vec![
        // Not even announced ones: where they do not belong nothing is allocated for them.
        (
            "STATE before HELLO",
            header(STATE, MAX_STATE),
            (0, state),
            ANYWAY,
            "does not belong here",
        ),
        (
            "a HELLO of 4 GiB",
            header(HELLO, u32::MAX),
            (0, 9),
            ANYWAY,
            "expected 68 to 1048576",
        ),
        (
            "a large HELLO of nothing",
            header(HELLO, MAX_HELLO),
            (0, hello_len),
            ANYWAY + MIB,
            "number of streams",
        ),
        (
            "a large HELLO that does not come",
            header(HELLO, MAX_HELLO),
            (0, 5),
            ANYWAY + MIB,
            "closed",
        ),
        (
            "a second HELLO",
            then(header(HELLO, MAX_HELLO)),
            (0, hello_len),
            ANYWAY + MIB,
            "number of streams",
        ),
        (
            "a STATE that does not come",
            then(header(STATE, MAX_STATE)),
            (0, MIB),
            ANYWAY + 3 * MIB,
            "closed",
        ),
        (
            "a STATE of nothing",
            then(header(STATE, MAX_STATE)),
            (0, state),
            ANYWAY + state,
            "bytes too many",
        ),
        (
            "a STATE of 4 thousand million sections",
            then(header(STATE, MAX_STATE)),
            (0xff, state),
            ANYWAY + state,
            "number of sections",
        ),
        (
            "PAGES and no end",
            then(frame(&Frame::Pages {
                round: 0,
                runs: vec![Run {
                    first: 0,
                    pages: 1024,
                }],
            })),
            (0xff, 16 * MIB),
            ANYWAY,
            "unknown frame kind 65535",
        ),
    ];
    for (name, said, filling, bound, expected) in rows {
        let (error, most) = receiver_against(&said, filling, true);
        let text = migration_text(&error);
        assert!(text.contains(expected), "{name}: {text}");
        assert!(most <= bound, "{name}: {most} bytes, {bound} are allowed");
    }
    // PINGs whose answers nobody reads: the receiver waits for room, and not for ever.
    let said = then(ping.repeat(100_000));
    let (error, most) = receiver_against(&said, (0, 0), false);
    let text = migration_text(&error);
    assert!(text.contains("took nothing for 2.0 s"), "{text}");
    assert!(most <= ANYWAY, "{most} bytes");
}

fn migration_text(error: &dyn std::error::Error) -> String {
    let source = error.source().map(migration_text).unwrap_or_default();
    format!("{error}: {source}")
}

/// What sections are, is copied once out of what came.
#[test]
fn a_state_of_the_largest_size_is_held_twice() {
    let _turn = turn();
    let world = World::idle(&[4]);
    let bytes = vec![0; 8 * MIB];
    let section = |instance| Section {
        kind: Kind(9),
        instance,
        version: 1,
        bytes: bytes.clone(),
    };
    let said = {
        let state = VmState::from_sections((0..7).map(section).collect());
        [accepted(&world), frame(&Frame::State(state))].concat()
    };
    // The peer of the test copies what it says once, too.
    let copied = said.len();
    let (error, most) = receiver_against(&said, (0, 0), true);
    assert!(migration_text(&error).contains("cannot load"), "{error}");
    let bound = ANYWAY + 2 * usize::try_from(MAX_STATE).unwrap() + copied;
    assert!(most <= bound, "{most} bytes, {bound} are allowed");
}

#[test]
fn a_source_allocates_no_more_than_it_may() {
    let _turn = turn();
    let accept = frame(&Frame::Accept {
        boot: [0; 16],
        streams: 1,
    });
    for (name, said, expected) in [
        ("STATE", header(STATE, MAX_STATE), "does not belong here"),
        ("HELLO", header(HELLO, MAX_HELLO), "does not belong here"),
        ("REFUSE", header(3, u32::MAX), "expected 0 to 4096"),
        (
            "PONG",
            [accept.clone(), frame(&Frame::Pong(9)).repeat(1000)].concat(),
            "PONG while",
        ),
        (
            "STATE later",
            [accept.clone(), header(STATE, MAX_STATE)].concat(),
            "does not belong here",
        ),
    ] {
        let world = World::idle(&[2]);
        let guest = boot(&world);
        let (a, mut b) = UnixStream::pair().unwrap();
        let count = Count::begin();
        let peer = std::thread::spawn(move || {
            let mut bytes = preamble::ours().to_vec();
            bytes.extend_from_slice(&said);
            let _ = b.write_all(&bytes);
            let chunk = [0; 16 * KIB];
            // As much as it takes, and the source reads none of it.
            for _ in 0..4096 {
                if b.write_all(&chunk).is_err() {
                    break;
                }
            }
        });
        let cancel = CancelToken::new().unwrap();
        let impatient = Options {
            peer_timeout: Duration::from_secs(2),
            ..options()
        };
        let moved = send(guest, a, &impatient, &cancel, &mut |_| {});
        let most = count.most();
        peer.join().unwrap();
        let reason = &moved.report.reason;
        assert_eq!(moved.report.outcome, Outcome::Failed, "{name}");
        assert!(reason.contains(expected), "{name}: {reason}");
        assert!(most <= ANYWAY, "{name}: {most} bytes");
        verify(&world, back(&world, moved.guest));
    }
}

/// Every kind of frame that there is, from the golden files.
fn golden() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut frames = Vec::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if name.ends_with("preamble") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let byte = |word| u8::from_str_radix(word, 16).unwrap();
        frames.push((name, text.split_whitespace().map(byte).collect()));
    }
    assert!(frames.len() >= 23);
    frames
}

fn parse(bytes: &[u8]) -> Option<Frame> {
    let (header, body) = bytes.split_first_chunk::<HEADER>()?;
    codec::parse(Header::parse(*header).ok()?, body).ok()
}

/// Cut at each byte, with each bit flipped, and with each byte at its extremes: an error or a frame, and no more memory
/// than a few times what came.
#[test]
fn a_damaged_frame_costs_no_memory() {
    let _turn = turn();
    for (name, good) in golden() {
        assert!(parse(&good).is_some(), "{name}");
        let mut damaged = Vec::new();
        for len in 0..good.len() {
            damaged.push(good[..len].to_vec());
        }
        for bit in 0..good.len() * 8 {
            let mut flipped = good.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            damaged.push(flipped);
        }
        for at in 0..good.len() {
            for byte in [0, 0x7f, 0xff] {
                let mut extreme = good.clone();
                extreme[at] = byte;
                damaged.push(extreme);
            }
        }
        for bytes in damaged {
            // All that is taken, also what is given back again: no less than the most at a time.
            let before = TAKEN.get();
            let _ = parse(&bytes);
            let most = TAKEN.get().wrapping_sub(before);
            assert!(most <= 4 * KIB + 8 * bytes.len(), "{name}: {most} bytes");
        }
    }
}
