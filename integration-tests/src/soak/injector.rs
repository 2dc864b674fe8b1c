//! The proxy that does a fault to a move, between the two ends.
//!
//! It passes all streams on, and where the fault's place comes by, does what the fault says. All else it passes on as it is,
//! ends of connections included: what one side closes or resets is closed or reset on the other.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::fault::{Act, Cut, Part, Place, Span};
use crate::Error;
use crate::ferry::frames::{HEADER, Kind, PREAMBLE, header, number};
use crate::ferry::{End, Netns};

/// How often who waits for bytes looks whether all is over.
const SLICE: Duration = Duration::from_millis(5);
/// How long the first of two frames is kept for the second.
const REORDER: Duration = Duration::from_millis(200);
/// Bytes passed on at once.
const CHUNK: usize = 64 << 10;
/// Bytes behind a frame that is to be dealt with as a whole: as many as the protocol allows.
const MAX_BEHIND: u64 = 16 << 20;
/// Of a preamble the bytes from here on mean nothing.
const PREAMBLE_MEANS: usize = 12;

/// A fault, and what it needs to be done.
pub struct Orders {
    /// Where.
    pub place: Place,
    /// What.
    pub act: Act,
    /// What "longer than either end waits" is.
    pub beyond: Duration,
    /// Sends the signal of [`Act::Signal`].
    pub signal: Box<dyn Fn() + Send + Sync>,
}

/// A proxy for one move. It ends with it.
pub struct Injector {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    orders: Orders,
    to: SocketAddr,
    fired: AtomicBool,
    /// All connections end, by RST if it says so.
    over: AtomicBool,
    /// LIVE came by: the destination runs the guest, whatever anybody says later.
    live: AtomicBool,
    streams: AtomicUsize,
    /// Frames seen of the kind, and of the round, of the place.
    of_kind: AtomicU32,
}

impl Injector {
    /// Begins to listen on a free port of the namespace's loopback, for the streams of one move on to `to`.
    ///
    /// # Errors
    /// No port can be had.
    pub fn start(netns: &Netns, to: SocketAddr, orders: Orders) -> Result<Self, Error> {
        let shared = Arc::new(Shared {
            orders,
            to,
            fired: AtomicBool::new(false),
            over: AtomicBool::new(false),
            live: AtomicBool::new(false),
            streams: AtomicUsize::new(0),
            of_kind: AtomicU32::new(0),
        });
        // What is started by a thread in the namespace is in it as well.
        netns
            .within(move || Self::begin(shared))?
            .map_err(|e| Error::file("start", "(an injector)".as_ref(), e))
    }

    fn begin(shared: Arc<Shared>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let injector = Self {
            address: listener.local_addr()?,
            shared: Arc::clone(&shared),
        };
        named("injector", move || shared.accept(&listener))?;
        Ok(injector)
    }

    /// Where the source is to connect, in Ferry's words.
    pub fn target(&self) -> String {
        format!("tcp:{}", self.address)
    }

    /// Whether the move has come to the place.
    pub fn fired(&self) -> bool {
        self.shared.fired.load(Ordering::Acquire)
    }

    /// Whether the destination has said that it runs the guest.
    pub fn live(&self) -> bool {
        self.shared.live.load(Ordering::Acquire)
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Release);
    }
}

fn named(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = thread::Builder::new().name(name.to_owned());
    thread.spawn(run).map(drop)
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        while !self.over() {
            match listener.accept() {
                // A connection that cannot be passed on is closed; the source sees that soon enough.
                Ok((source, _)) => drop(self.connected(source)),
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    fn connected(self: &Arc<Self>, source: TcpStream) -> io::Result<()> {
        let stream = self.streams.fetch_add(1, Ordering::AcqRel);
        source.set_nonblocking(false)?;
        if self.orders.place == Place::Connecting && self.fire() {
            match self.orders.act {
                Act::Cut { how, .. } => {
                    if how == Cut::Reset {
                        SockRef::from(&source).set_linger(Some(Duration::ZERO))?;
                    }
                    return Ok(());
                }
                Act::Stall(span) => self.sleep(self.time(span)),
                Act::Signal { .. } => (self.orders.signal)(),
                _ => {}
            }
        }
        let destination = TcpStream::connect(self.to)?;
        for socket in [&source, &destination] {
            socket.set_nodelay(true)?;
            socket.set_read_timeout(Some(SLICE))?;
            socket.set_write_timeout(Some(SLICE))?;
        }
        let pair = Arc::new(Pair {
            source,
            destination,
            over: AtomicBool::new(false),
        });
        for end in [End::Source, End::Destination] {
            let (shared, pair) = (Arc::clone(self), Arc::clone(&pair));
            named("pump", move || {
                let mut pump = Pump {
                    end,
                    stream,
                    pair: &pair,
                    shared: &shared,
                    sent: 0,
                    frames: 0,
                    slow: None,
                };
                if let Err(error) = pump.run() {
                    pair.ended(end, &error);
                }
            })?;
        }
        Ok(())
    }

    /// Whether this is the first to come to the place.
    fn fire(&self) -> bool {
        !self.fired.swap(true, Ordering::AcqRel)
    }

    fn over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    fn time(&self, span: Span) -> Duration {
        match span {
            Span::Ms(ms) => Duration::from_millis(ms.into()),
            Span::BeyondTimeout => self.orders.beyond,
        }
    }

    fn sleep(&self, time: Duration) {
        let end = Instant::now() + time;
        while !self.over() && Instant::now() < end {
            thread::sleep(SLICE.min(time));
        }
    }
}

/// Both sides of one stream. They are closed when both of its pumps have ended.
struct Pair {
    source: TcpStream,
    destination: TcpStream,
    over: AtomicBool,
}

impl Pair {
    fn sides(&self, end: End) -> (&TcpStream, &TcpStream) {
        match end {
            End::Source => (&self.source, &self.destination),
            End::Destination => (&self.destination, &self.source),
        }
    }

    /// One direction has ended: by FIN, which is passed on, or otherwise, which resets both sides.
    fn ended(&self, end: End, error: &io::Error) {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            let _ = self.sides(end).1.shutdown(Shutdown::Write);
        } else {
            self.reset();
        }
    }

    fn reset(&self) {
        for socket in [&self.source, &self.destination] {
            // With no time to linger, close(2) sends RST.
            let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
        }
        self.over.store(true, Ordering::Release);
    }

    fn close(&self) {
        for socket in [&self.source, &self.destination] {
            let _ = socket.shutdown(Shutdown::Both);
        }
        self.over.store(true, Ordering::Release);
    }
}

/// A frame as it came.
struct Whole {
    kind: Kind,
    /// Header and body.
    frame: Vec<u8>,
    /// Bytes behind, not read yet.
    behind: u64,
}

/// One direction of one stream.
struct Pump<'a> {
    end: End,
    stream: usize,
    pair: &'a Pair,
    shared: &'a Shared,
    /// Bytes passed on.
    sent: u64,
    /// Frames seen.
    frames: u32,
    /// How many bytes a millisecond, until when.
    slow: Option<(u16, Instant)>,
}

impl Pump<'_> {
    /// Passes frames on until the direction ends, which is an error: `UnexpectedEof` for a FIN.
    fn run(&mut self) -> io::Result<()> {
        let mut frame = vec![0; PREAMBLE];
        self.read(&mut frame)?;
        let mut next = Whole {
            kind: Kind::PREAMBLE,
            frame,
            behind: 0,
        };
        loop {
            if self.is_here(&next) && self.shared.fire() {
                self.strike(next)?;
            } else {
                self.pass(&next)?;
            }
            next = self.next()?;
        }
    }

    fn next(&mut self) -> io::Result<Whole> {
        let mut frame = vec![0; HEADER];
        self.read(&mut frame)?;
        let (kind, length) = header(&frame);
        frame.resize(HEADER + length, 0);
        self.read(&mut frame[HEADER..])?;
        let behind = kind.behind(&frame[HEADER..]);
        Ok(Whole {
            kind,
            frame,
            behind,
        })
    }

    fn is_here(&mut self, whole: &Whole) -> bool {
        self.frames += 1;
        match self.shared.orders.place {
            Place::Frame {
                kind,
                round,
                nth,
                stream,
            } => {
                let body = whole.frame.get(HEADER..).unwrap_or_default();
                let this_round = || number(body.get(..4).unwrap_or_default());
                // Both ends say a preamble; the source's counts.
                let is = self.end == kind.said_by()
                    && stream.is_none_or(|stream| self.stream == stream)
                    && whole.kind == kind
                    && round.is_none_or(|r| kind.has_round() && u64::from(r) == this_round());
                is && self.shared.of_kind.fetch_add(1, Ordering::AcqRel) + 1 == nth
            }
            Place::Nth { from, nth, stream } => {
                self.end == from && self.stream == stream && self.frames == nth
            }
            Place::Connecting | Place::Byte { .. } => false,
        }
    }

    /// Passes a frame on as it is.
    fn pass(&mut self, whole: &Whole) -> io::Result<()> {
        if whole.kind == Kind::LIVE && self.end == End::Destination {
            self.shared.live.store(true, Ordering::Release);
        }
        self.write(&whole.frame)?;
        let mut left = whole.behind;
        let mut chunk = vec![0; CHUNK];
        while left > 0 {
            let count = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
            self.read(&mut chunk[..count])?;
            self.write(&chunk[..count])?;
            left -= count as u64;
        }
        Ok(())
    }

    /// The fault, done to this frame.
    fn strike(&mut self, mut whole: Whole) -> io::Result<()> {
        match self.shared.orders.act {
            Act::Cut {
                how,
                whole: all,
                behind,
            } => {
                if behind {
                    self.pass(&whole)?;
                }
                self.cut(how, all)
            }
            Act::Stall(span) => {
                self.shared.sleep(self.shared.time(span));
                self.pass(&whole)
            }
            Act::Slow { bytes, ms } => {
                self.slow(bytes, ms);
                self.pass(&whole)
            }
            Act::Signal { behind: None, .. } => {
                (self.shared.orders.signal)();
                self.pass(&whole)
            }
            Act::Signal {
                behind: Some(micros),
                ..
            } => {
                self.pass(&whole)?;
                thread::sleep(Duration::from_micros(micros.into()));
                (self.shared.orders.signal)();
                Ok(())
            }
            Act::Truncate { keep } => {
                let bytes = self.all_of(whole)?;
                let kept = bytes.len() * usize::from(keep) / 1000;
                self.write(&bytes[..kept])?;
                self.cut(Cut::Close, true)
            }
            Act::Garble { part, bit } => {
                let body = whole.frame.len();
                let kind = whole.kind;
                if part == Part::Rest {
                    let bytes = self.all_of(whole)?;
                    whole = Whole {
                        kind,
                        frame: bytes,
                        behind: 0,
                    };
                }
                garble(&mut whole.frame, kind, body, part, bit);
                self.pass(&whole)
            }
            Act::Duplicate => {
                let bytes = self.all_of(whole)?;
                self.write(&bytes)?;
                self.write(&bytes)
            }
            Act::Drop => self.all_of(whole).map(drop),
            Act::Reorder => self.reorder(whole),
        }
    }

    /// A frame with the bytes behind it.
    fn all_of(&mut self, whole: Whole) -> io::Result<Vec<u8>> {
        if whole.kind == Kind::LIVE && self.end == End::Destination {
            self.shared.live.store(true, Ordering::Release);
        }
        let mut bytes = whole.frame;
        let start = bytes.len();
        let behind = usize::try_from(whole.behind.min(MAX_BEHIND)).unwrap_or(0);
        bytes.resize(start + behind, 0);
        self.read(&mut bytes[start..])?;
        Ok(bytes)
    }

    fn reorder(&mut self, whole: Whole) -> io::Result<()> {
        let first = self.all_of(whole)?;
        let (from, _) = self.pair.sides(self.end);
        let deadline = Instant::now() + REORDER;
        // Readable, or at its end.
        while Instant::now() < deadline && !self.over() {
            if let Ok(count) = from.peek(&mut [0]) {
                if count > 0 {
                    let second = self.next()?;
                    self.pass(&second)?;
                }
                break;
            }
        }
        self.write(&first)
    }

    fn slow(&mut self, bytes: u16, ms: u16) {
        let until = Instant::now() + Duration::from_millis(ms.into());
        self.slow = Some((bytes.max(1), until));
    }

    /// Ends connections. The error is the end of this pump.
    fn cut(&mut self, how: Cut, all: bool) -> io::Result<()> {
        let gone = Err(io::ErrorKind::ConnectionAborted.into());
        if all && how != Cut::OneWay {
            // The pumps of all streams see it, and reset their own.
            self.shared.over.store(true, Ordering::Release);
        }
        match how {
            Cut::Reset => {
                self.pair.reset();
                gone
            }
            Cut::Close => {
                self.pair.close();
                gone
            }
            Cut::OneWay => {
                let (from, to) = self.pair.sides(self.end);
                to.shutdown(Shutdown::Write)?;
                let mut nowhere = [0; 4096];
                loop {
                    match self.soon((&*from).read(&mut nowhere))? {
                        Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                        _ => continue,
                    }
                }
            }
        }
    }

    fn over(&self) -> bool {
        self.shared.over() || self.pair.over.load(Ordering::Acquire)
    }

    /// A result of a call that takes at most a slice of time; `None` if it has to be made again.
    fn soon(&self, result: io::Result<usize>) -> io::Result<Option<usize>> {
        if self.over() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        match result {
            Ok(count) => Ok(Some(count)),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock
                | io::ErrorKind::TimedOut
                | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            },
        }
    }

    fn read(&self, mut into: &mut [u8]) -> io::Result<()> {
        let (from, _) = self.pair.sides(self.end);
        while !into.is_empty() {
            match self.soon((&*from).read(into))? {
                Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(count) => into = &mut into[count..],
                None => {}
            }
        }
        Ok(())
    }

    /// Sends, and does the fault where its byte comes by.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut bytes = bytes;
        if let Place::Byte {
            from,
            offset,
            stream,
        } = self.shared.orders.place
            && (from, stream) == (self.end, self.stream)
            && let Some(before) = offset.checked_sub(self.sent)
            && before < bytes.len() as u64
            && self.shared.fire()
        {
            let (head, tail) = bytes.split_at(usize::try_from(before).unwrap_or(0));
            self.send(head)?;
            bytes = tail;
            match self.shared.orders.act {
                Act::Cut { how, whole, .. } => self.cut(how, whole)?,
                Act::Stall(span) => self.shared.sleep(self.shared.time(span)),
                Act::Slow { bytes, ms } => self.slow(bytes, ms),
                Act::Signal { .. } => (self.shared.orders.signal)(),
                _ => {}
            }
        }
        self.send(bytes)
    }

    fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let (_, to) = self.pair.sides(self.end);
        while !bytes.is_empty() {
            let mut most = bytes.len();
            if let Some((limit, until)) = self.slow {
                if Instant::now() < until {
                    most = most.min(limit.into());
                    thread::sleep(Duration::from_millis(1));
                } else {
                    self.slow = None;
                }
            }
            if let Some(count) = self.soon((&*to).write(&bytes[..most]))? {
                self.sent += count as u64;
                bytes = &bytes[count..];
            }
        }
        Ok(())
    }
}

/// Turns one bit over. `body` is where header and body end in the bytes.
fn garble(bytes: &mut [u8], kind: Kind, body: usize, part: Part, bit: u32) {
    let head = if kind == Kind::PREAMBLE {
        PREAMBLE_MEANS
    } else {
        HEADER
    };
    let (first, count) = match part {
        Part::Body { first, count } => (HEADER + usize::from(first), usize::from(count)),
        Part::Rest if bytes.len() > head => (head, bytes.len() - head),
        Part::Header | Part::Rest => (0, head),
    };
    let count = count
        .min(bytes.len().max(body).saturating_sub(first))
        .max(1);
    let at = bit as usize % (count * 8);
    if let Some(byte) = bytes.get_mut(first + at / 8) {
        *byte ^= 1 << (at % 8);
    }
}
