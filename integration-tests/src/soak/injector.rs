//! The proxy that does a fault to a move, between the two ends.
//!
//! It passes all streams on, and where the fault's place comes by, does what the fault says. All else it passes on as
//! it is, ends of connections included: what one side closes or resets is closed or reset on the other.

mod pump;

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

use self::pump::Pump;
use super::fault::{Act, Cut, Place, Span};
use crate::Error;
use crate::ferry::{End, Netns};

/// How often who waits for bytes looks whether all is over.
const SLICE: Duration = Duration::from_millis(5);
/// A fault, and what it needs to be done.
pub struct Orders {
    /// Where.
    pub place: Place,
    /// What.
    pub act: Act,
    /// The streams are encrypted: there are bytes, but no frames.
    pub sealed: bool,
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
    /// Nothing happens any more if it has not yet.
    disarmed: AtomicBool,
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
            disarmed: AtomicBool::new(false),
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

    /// From here on nothing happens any more if it has not yet.
    pub fn disarm(&self) {
        self.shared.disarmed.store(true, Ordering::Release);
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
        !self.disarmed.load(Ordering::Acquire) && !self.fired.swap(true, Ordering::AcqRel)
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
