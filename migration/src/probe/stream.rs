//! One stream of a probe: fillers go out, each with a PING behind it, and the PONGs say when they had arrived.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::{ProbeError, instead_of, memory};
use crate::ram::PAGE;
use crate::source::Pacer;
use crate::wire::channel::Channel;
use crate::wire::frame::{Frame, MAX_FILLER};
use crate::wire::iov::Out;

/// What a stream may have under way at first, and at most.
const WINDOW: (u64, u64) = (64 << 10, 32 << 20);
/// The smallest filler.
const SMALLEST: u64 = 4 << 10;
/// With answers that take so much longer than two round trips there is enough under way.
const QUEUE: Duration = Duration::from_millis(60);
/// With a bandwidth limit so many fillers leave in a second at least.
const FILLERS_PER_SECOND: u64 = 100;

/// Bytes to be sent, of all streams in turn. They look like chance, so that nothing between the hosts makes them fewer;
/// and they do not come from the processor's cache, as a guest's pages do not.
pub(super) fn source() -> Vec<u8> {
    const BLOCK: usize = 64 << 10;
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut block = Vec::with_capacity(BLOCK);
    while block.len() < BLOCK {
        // xorshift64, as in predictions.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        block.extend_from_slice(&state.to_le_bytes());
    }
    // However little memory is free, the largest filler comes out of it in one piece.
    let least = usize::try_from(MAX_FILLER).unwrap_or(BLOCK);
    block.repeat(memory().max(least) / BLOCK)
}

/// How long it takes to see that a page is not all zeros, as a move looks at each: nearly all of it is the wait for its
/// first bytes, 0.05 to 0.3 us by the machine (docs/performance.md).
pub(super) fn look(source: &[u8]) -> Duration {
    let began = Instant::now();
    let first = source.chunks_exact(PAGE).flat_map(|page| &page[..64]);
    std::hint::black_box(first.fold(0, |any, byte| any | byte));
    let pages = u32::try_from(source.len() / PAGE).unwrap_or(u32::MAX);
    began.elapsed() / pages.max(1)
}

/// What has arrived, on all streams.
pub(super) struct Acks {
    began: Instant,
    time: Duration,
    bytes: u64,
    slow: Duration,
    sent: AtomicU64,
    came: Mutex<Vec<(Duration, u64)>>,
    ended: OnceLock<Duration>,
}

impl Acks {
    /// To be filled for so long, with at most so many bytes.
    pub fn new(time: Duration, bytes: u64, round_trip: Duration) -> Self {
        Self {
            began: Instant::now(),
            time,
            bytes,
            slow: round_trip * 2 + QUEUE,
            sent: AtomicU64::new(0),
            came: Mutex::default(),
            ended: OnceLock::new(),
        }
    }

    /// Whether so many bytes more may be sent.
    fn admits(&self, bytes: u64) -> bool {
        let admits = self.began.elapsed() < self.time
            && self.sent.fetch_add(bytes, Ordering::Relaxed) < self.bytes;
        if !admits {
            self.ended.get_or_init(|| self.began.elapsed());
        }
        admits
    }

    fn came(&self, bytes: u64) {
        let mut came = self.came.lock().unwrap_or_else(PoisonError::into_inner);
        came.push((self.began.elapsed(), bytes));
    }

    /// When how many bytes had come, in this order, and until when all streams sent.
    pub fn into_times(self) -> (Vec<(Duration, u64)>, Duration) {
        let came = self.came.into_inner();
        let ended = self.ended.get().copied().unwrap_or(self.time);
        (came.unwrap_or_else(PoisonError::into_inner), ended)
    }
}

/// A connection that is filled.
pub(super) struct Stream {
    channel: Channel,
    /// The number of the next PING.
    next: u64,
    /// What is under way: its PING, its bytes, and when it was sent.
    under_way: VecDeque<(u64, u64, Instant)>,
    bytes_under_way: u64,
    window: u64,
}

impl Stream {
    pub fn new(channel: Channel) -> Self {
        Self {
            channel,
            next: 0,
            under_way: VecDeque::new(),
            bytes_under_way: 0,
            window: WINDOW.0,
        }
    }

    /// Whether the other end is on this host, over loopback.
    pub fn is_on_this_host(&self) -> bool {
        self.channel.shared_processor().is_some()
    }

    /// Both ends run on one processor.
    pub fn share_processor(&self) {
        self.channel.share_processor();
    }

    pub fn peer(&self) -> &str {
        self.channel.peer()
    }

    /// How long a message there and back takes with nothing else under way.
    pub fn round_trip(&mut self) -> Result<Duration, ProbeError> {
        let began = Instant::now();
        self.ping(0)?;
        let frame = self.channel.receive()?;
        self.answered(&frame, None)?;
        Ok(began.elapsed())
    }

    /// Sends until all streams together have sent enough, and waits until that has arrived. `source` is taken from `at`
    /// on, round and round: two streams at one place would find it in the cache.
    pub fn fill(
        &mut self,
        acks: &Acks,
        pacer: &Pacer,
        source: &[u8],
        mut at: usize,
    ) -> Result<(), ProbeError> {
        let most = (pacer.bandwidth())
            .map_or(u64::MAX, |bandwidth| bandwidth / FILLERS_PER_SECOND)
            .clamp(SMALLEST, u64::from(MAX_FILLER));
        loop {
            let bytes = (self.window / 4).clamp(SMALLEST, most);
            if !acks.admits(bytes) {
                break;
            }
            let len = usize::try_from(bytes).unwrap_or(0);
            if at + len > source.len() {
                at = 0;
            }
            pacer.pace(bytes, self.channel.cancel_token())?;
            let frame = Frame::Filler {
                bytes: u32::try_from(bytes).unwrap_or(MAX_FILLER),
            };
            let data = Out::filler(&source[at..at + len]);
            self.channel.send_with(&frame, &[data])?;
            at += len;
            self.ping(bytes)?;
            while let Some(frame) = self.channel.poll_frame()? {
                self.answered(&frame, Some(acks))?;
            }
            while self.bytes_under_way >= self.window {
                let frame = self.channel.receive()?;
                self.answered(&frame, Some(acks))?;
            }
        }
        while !self.under_way.is_empty() {
            let frame = self.channel.receive()?;
            self.answered(&frame, Some(acks))?;
        }
        Ok(())
    }

    /// Asks for a sign that these bytes have arrived.
    fn ping(&mut self, bytes: u64) -> Result<(), ProbeError> {
        self.channel.send(&Frame::Ping(self.next))?;
        self.under_way.push_back((self.next, bytes, Instant::now()));
        self.bytes_under_way += bytes;
        self.next += 1;
        Ok(())
    }

    /// Takes the answer to the oldest PING; anything else ends the probe.
    fn answered(&mut self, frame: &Frame, acks: Option<&Acks>) -> Result<(), ProbeError> {
        let oldest = self.under_way.front().copied();
        let Some((number, bytes, sent)) = oldest else {
            return Err(instead_of("nothing", frame, &self.channel));
        };
        if *frame != Frame::Pong(number) {
            return Err(instead_of("its answer to PING", frame, &self.channel));
        }
        self.under_way.pop_front();
        self.bytes_under_way -= bytes;
        if let Some(acks) = acks {
            acks.came(bytes);
            if sent.elapsed() < acks.slow {
                self.window = (self.window + bytes).min(WINDOW.1);
            }
        }
        Ok(())
    }
}
