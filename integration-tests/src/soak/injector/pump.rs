//! One direction of one stream: frames passed on, and the fault done to the one that it is about.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use super::super::fault::{Act, Cut, Part, Place};
use super::{Pair, Shared};
use crate::ferry::End;
use crate::ferry::frames::{HEADER, Kind, PREAMBLE, header, number};

/// How long the first of two frames is kept for the second.
const REORDER: Duration = Duration::from_millis(200);
/// Bytes passed on at once.
const CHUNK: usize = 64 << 10;
/// Bytes behind a frame that is to be dealt with as a whole: as many as the protocol allows.
const MAX_BEHIND: u64 = 16 << 20;
/// Of a preamble the bytes from here on mean nothing.
const PREAMBLE_MEANS: usize = 12;

/// A frame as it came.
struct Whole {
    kind: Kind,
    /// Header and body.
    frame: Vec<u8>,
    /// Bytes behind, not read yet.
    behind: u64,
}

/// One direction of one stream.
pub(super) struct Pump<'a> {
    pub end: End,
    pub stream: usize,
    pub pair: &'a Pair,
    pub shared: &'a Shared,
    /// Bytes passed on.
    pub sent: u64,
    /// Frames seen.
    pub frames: u32,
    /// How many bytes a millisecond, until when.
    pub slow: Option<(u16, Instant)>,
}

impl Pump<'_> {
    /// Passes frames on until the direction ends, which is an error: `UnexpectedEof` for a FIN.
    pub fn run(&mut self) -> io::Result<()> {
        if self.shared.orders.sealed {
            return self.run_sealed();
        }
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

    /// The same where frames cannot be told: bytes as they come.
    fn run_sealed(&mut self) -> io::Result<()> {
        let (from, _) = self.pair.sides(self.end);
        let mut chunk = vec![0; CHUNK];
        loop {
            match self.soon((&*from).read(&mut chunk))? {
                Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(count) => self.write(&chunk[..count])?,
                None => {}
            }
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
                Act::Garble { bit, .. } => {
                    let (first, rest) = bytes.split_at(1);
                    self.send(&[first[0] ^ (1 << (bit % 8))])?;
                    bytes = rest;
                }
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
