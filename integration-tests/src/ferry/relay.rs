//! A relay between two ends of a move that knows frames, to hold or cut a move exactly where a test wants it.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::Netns;
use super::frames::{HEADER, Kind, PREAMBLE, header, number};
use crate::{Error, lock};

/// The end of a move that says a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The one that has the guest.
    Source,
    /// The one that gets it.
    Destination,
}

/// A moment of a move: the `nth` frame of a kind, counted from 1; of one round, if that is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spot {
    kind: Kind,
    round: Option<u32>,
    nth: u32,
}

impl Spot {
    /// The destination is about to take the guest on.
    pub const ACCEPT: Self = Self::first(Kind::ACCEPT);
    /// The guest stands still and all its pages were sent; its state comes now.
    pub const STATE: Self = Self::first(Kind::STATE);
    /// The destination could run the guest.
    pub const READY: Self = Self::first(Kind::READY);
    /// The source gives the guest away.
    pub const GO: Self = Self::first(Kind::GO);
    /// The destination runs the guest.
    pub const LIVE: Self = Self::first(Kind::LIVE);

    const fn first(kind: Kind) -> Self {
        Self {
            kind,
            round: None,
            nth: 1,
        }
    }

    /// The `nth` frame of pages in a round.
    pub const fn pages(round: u32, nth: u32) -> Self {
        Self {
            kind: Kind::PAGES,
            round: Some(round),
            nth,
        }
    }

    fn is(&self, kind: Kind, body: &[u8]) -> bool {
        let round = || number(body.get(..4).unwrap_or_default());
        self.kind == kind && self.round.is_none_or(|wanted| u64::from(wanted) == round())
    }
}

/// What happens there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The frame, and all behind it in its direction, waits for [`Relay::release`].
    Hold,
    /// The connection ends at both ends; the frame never arrives.
    CutBefore,
    /// The frame arrives, and nothing after it in either direction.
    CutBehind,
}

/// A relay for the streams of one move. They end with it.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    seen: u32,
    reached: bool,
    released: bool,
    ended: bool,
    /// The source hears nothing any more.
    deaf: bool,
    sockets: Vec<TcpStream>,
}

impl Relay {
    /// Begins to listen on a free port of the namespace's loopback, for the streams of one move on to `to`.
    ///
    /// # Errors
    /// No port can be had.
    pub fn start(netns: &Netns, to: SocketAddr, spot: Spot, fault: Fault) -> Result<Self, Error> {
        // What is started by a thread in the namespace is in it as well.
        netns
            .within(|| Self::begin(to, spot, fault))?
            .map_err(|e| Error::file("start", "(a relay)".as_ref(), e))
    }

    fn begin(to: SocketAddr, spot: Spot, fault: Fault) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let relay = Self {
            address: listener.local_addr()?,
            shared: Arc::default(),
        };
        let shared = Arc::clone(&relay.shared);
        thread::Builder::new()
            .name("relay".to_owned())
            .spawn(move || {
                let _ = serve(&listener, to, spot, fault, &shared);
                shared.end();
            })?;
        Ok(relay)
    }

    /// Where the source is to connect, in Ferry's words.
    pub fn target(&self) -> String {
        format!("tcp:{}", self.address)
    }

    /// Waits until the move has come to the spot.
    ///
    /// # Errors
    /// It has not in time, or the connection ended before.
    pub fn wait_reached(&self, limit: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.lock();
        while !state.reached {
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                return Err(Error::Unexpected(format!(
                    "the move never came to the frame that the relay waits for (at most {limit:?}; connection ended: {})",
                    state.ended
                )));
            }
            state = self.shared.wait(state, left);
        }
        Ok(())
    }

    /// Ends the connection, as the death of either end does; what is held never arrives.
    pub fn cut(&self) {
        self.shared.end();
    }

    /// Lets go of what is held.
    pub fn release(&self) {
        self.shared.lock().released = true;
        self.shared.changed.notify_all();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.end();
        // The thread may still wait for a source.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_millis(100));
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn wait<'s>(
        &self,
        state: std::sync::MutexGuard<'s, State>,
        at_most: Duration,
    ) -> std::sync::MutexGuard<'s, State> {
        self.changed
            .wait_timeout(state, at_most)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    /// Ends the connection on both sides.
    fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        for socket in state.sockets.drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
        self.changed.notify_all();
    }

    fn hold(&self) {
        let mut state = self.lock();
        while !state.released && !state.ended {
            state = self.wait(state, Duration::from_secs(1));
        }
    }
}

fn serve(
    listener: &TcpListener,
    to: SocketAddr,
    spot: Spot,
    fault: Fault,
    shared: &Arc<Shared>,
) -> io::Result<()> {
    let first = Pair::next(listener, to, shared)?;
    // Further streams come until the first one ends; whoever ends the relay also connects once more.
    thread::scope(|scope| {
        let first = &first;
        for end in [End::Source, End::Destination] {
            scope.spawn(move || {
                // An end that is gone is gone for both, as without a relay.
                let _ = Pump::new(end, first, spot, fault, shared).run();
                shared.end();
                let _ = listener.local_addr().and_then(TcpStream::connect);
            });
        }
        while let Ok(pair) = Pair::next(listener, to, shared) {
            let pair = Arc::new(pair);
            for end in [End::Source, End::Destination] {
                let pair = Arc::clone(&pair);
                scope.spawn(
                    move || match Pump::new(end, &pair, spot, fault, shared).run() {
                        Ok(()) => shared.end(),
                        Err(_) => pair.end(),
                    },
                );
            }
        }
    });
    Ok(())
}

/// Both sides of one stream.
struct Pair {
    source: TcpStream,
    destination: TcpStream,
}

impl Pair {
    /// The next stream of the move, for as long as the relay has not ended.
    fn next(listener: &TcpListener, to: SocketAddr, shared: &Shared) -> io::Result<Self> {
        let (source, _) = listener.accept()?;
        if shared.lock().ended {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let destination = TcpStream::connect(to)?;
        source.set_nodelay(true)?;
        destination.set_nodelay(true)?;
        let mut state = shared.lock();
        state.sockets.push(source.try_clone()?);
        state.sockets.push(destination.try_clone()?);
        Ok(Self {
            source,
            destination,
        })
    }

    fn end(&self) {
        for socket in [&self.source, &self.destination] {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// One direction.
struct Pump<'a> {
    end: End,
    from: &'a TcpStream,
    to: &'a TcpStream,
    spot: Spot,
    fault: Fault,
    shared: &'a Shared,
}

impl<'a> Pump<'a> {
    fn new(end: End, pair: &'a Pair, spot: Spot, fault: Fault, shared: &'a Shared) -> Self {
        let (from, to) = match end {
            End::Source => (&pair.source, &pair.destination),
            End::Destination => (&pair.destination, &pair.source),
        };
        Self {
            end,
            from,
            to,
            spot,
            fault,
            shared,
        }
    }

    /// Passes frames on until an end is gone, which is an error, or a cut was to be made here.
    fn run(mut self) -> io::Result<()> {
        let mut preamble = [0; PREAMBLE];
        self.from.read_exact(&mut preamble)?;
        self.pass(&preamble)?;
        loop {
            let mut frame = vec![0; HEADER];
            self.from.read_exact(&mut frame)?;
            let (kind, length) = header(&frame);
            frame.resize(HEADER + length, 0);
            self.from.read_exact(&mut frame[HEADER..])?;
            if self.end == self.spot.kind.said_by()
                && self.spot.is(kind, &frame[HEADER..])
                && self.at_spot()
            {
                match self.fault {
                    Fault::Hold => self.shared.hold(),
                    Fault::CutBefore => return Ok(()),
                    Fault::CutBehind => return self.last(&frame),
                }
            }
            self.pass(&frame)?;
            self.pass_behind(kind, &frame[HEADER..])?;
        }
    }

    /// Whether this frame, of the right kind, is the right one of them.
    fn at_spot(&self) -> bool {
        let mut state = self.shared.lock();
        state.seen += 1;
        let here = state.seen == self.spot.nth;
        state.reached |= here;
        self.shared.changed.notify_all();
        here
    }

    fn pass(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.end == End::Destination && self.shared.lock().deaf {
            return Ok(());
        }
        self.to.write_all(bytes)
    }

    /// The bytes that follow a frame without being counted in it.
    fn pass_behind(&mut self, kind: Kind, body: &[u8]) -> io::Result<()> {
        let bytes = kind.behind(body);
        let mut from = self.from;
        let mut to = self.to;
        let passed = io::copy(&mut Read::by_ref(&mut from).take(bytes), &mut to)?;
        if passed < bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    /// Brings a frame over as the last. Its sender hears nothing any more, and only then that the connection has ended:
    /// whoever moves the guest ends the relay when it hears that. What the frame's receiver still says is read, since a
    /// connection closed with bytes unread takes back what was sent on it.
    fn last(&mut self, frame: &[u8]) -> io::Result<()> {
        self.shared.lock().deaf = true;
        self.to.write_all(frame)?;
        self.to.shutdown(Shutdown::Write)?;
        self.from.shutdown(Shutdown::Both)?;
        while !self.shared.lock().ended {
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}
