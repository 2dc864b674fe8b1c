//! Traffic between two ends, measured: a service that takes it in, and a client that makes it. The guest's agent has
//! both, and so has whoever measures guests; so either end of any flow can begin it.
//!
//! A flow is a TCP connection whose first byte says of which [`Kind`] it is.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

/// The service's port.
pub const PORT: u16 = 12;
/// Bytes of a message of a stream.
const MESSAGE: usize = 8 << 10;
/// Bytes of a socket's buffer, at either end of a stream.
const BUFFER: usize = 64 << 10;
/// Bytes of a datagram: with its headers as long as an Ethernet frame carries, over IPv4.
const DATAGRAM: usize = 1472;
/// After so much silence no datagram is on its way any more.
const SILENCE: Duration = Duration::from_millis(100);
/// The other end is gone if nothing moves for so much longer than the flow is to take.
const PATIENCE: Duration = Duration::from_secs(20);
/// The longest flow.
pub const LONGEST: Duration = Duration::from_secs(60);

/// What flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// As many bytes as TCP carries, in messages of 8 KiB.
    TcpStream,
    /// As many datagrams as the sender can send; those that arrive are counted.
    UdpStream,
    /// A byte there, a byte back, one after the other.
    TcpRr,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 3] = [Kind::TcpStream, Kind::UdpStream, Kind::TcpRr];

    /// Its name, as netperf's tests have it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::TcpStream => "TCP_STREAM",
            Kind::UdpStream => "UDP_STREAM",
            Kind::TcpRr => "TCP_RR",
        }
    }

    fn first_byte(self) -> u8 {
        match self {
            Kind::TcpStream => b's',
            Kind::UdpStream => b'u',
            Kind::TcpRr => b'r',
        }
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut all = Self::ALL.into_iter();
        all.find(|kind| kind.name() == text)
            .ok_or_else(|| format!("no traffic {text:?}; there are TCP_STREAM, UDP_STREAM, TCP_RR"))
    }
}

/// What a flow has carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carried {
    /// Bytes that arrived, at both ends together.
    pub bytes: u64,
    /// From the first to the last, in microseconds; at least 1.
    pub micros: u64,
}

impl Carried {
    fn of(bytes: u64, time: Duration) -> Self {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
        Self { bytes, micros }
    }

    fn send(self, stream: &mut TcpStream) -> io::Result<()> {
        stream.write_all(&self.bytes.to_le_bytes())?;
        stream.write_all(&self.micros.to_le_bytes())
    }

    fn receive(stream: &mut TcpStream) -> io::Result<Self> {
        let mut numbers = [[0; 8]; 2];
        for number in &mut numbers {
            stream.read_exact(number)?;
        }
        let [bytes, micros] = numbers.map(u64::from_le_bytes);
        Ok(Self { bytes, micros })
    }
}

/// Listens where the service is to be.
///
/// # Errors
/// The address is taken.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    // Connections inherit it; set later it would come after the window was negotiated.
    setsockopt(&listener, sockopt::RcvBuf, &BUFFER)?;
    Ok(listener)
}

/// Serves, for ever, each flow on a thread of its own. A flow that fails ends, and its client notices.
pub fn serve(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        let _ = thread::Builder::new().spawn(move || take_in(stream));
    }
}

fn take_in(mut stream: TcpStream) -> io::Result<()> {
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    match kind {
        [b's'] => drain(stream),
        [b'u'] => collect(stream),
        [b'r'] => answer(stream),
        _ => Ok(()),
    }
}

fn drain(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let (mut bytes, began) = (0, Instant::now());
    loop {
        match stream.read(&mut buffer)? {
            0 => return Carried::of(bytes, began.elapsed()).send(&mut stream),
            read => bytes += read as u64,
        }
    }
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

/// Counts datagrams that come to a socket of the flow's own until the client has ended the connection.
fn collect(mut stream: TcpStream) -> io::Result<()> {
    let socket = UdpSocket::bind((stream.local_addr()?.ip(), 0))?;
    socket.set_read_timeout(Some(SILENCE))?;
    stream.write_all(&socket.local_addr()?.port().to_le_bytes())?;
    let ended = Arc::new(AtomicBool::new(false));
    let watched = thread::Builder::new().spawn({
        let (ended, mut stream) = (ended.clone(), stream.try_clone()?);
        move || {
            let _ = stream.read(&mut [0]);
            ended.store(true, Ordering::Relaxed);
        }
    })?;
    let mut buffer = [0; DATAGRAM];
    let (mut bytes, mut first, mut last) = (0, None, Instant::now());
    loop {
        match socket.recv(&mut buffer) {
            Ok(read) => {
                bytes += read as u64;
                last = Instant::now();
                first.get_or_insert(last);
            }
            Err(_) if ended.load(Ordering::Relaxed) => break,
            Err(_) => {}
        }
    }
    let _ = watched.join();
    let time = first.map_or(SILENCE, |first| last - first);
    Carried::of(bytes, time).send(&mut stream)
}

/// Makes a flow to the service at `to` for so long, and says what it carried.
///
/// # Errors
/// It breaks.
pub fn run(kind: Kind, to: IpAddr, how_long: Duration) -> io::Result<Carried> {
    let how_long = how_long.min(LONGEST);
    // An end that is gone must not be waited for.
    let patience = how_long + PATIENCE;
    let mut stream = TcpStream::connect_timeout(&(to, PORT).into(), patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.write_all(&[kind.first_byte()])?;
    match kind {
        Kind::TcpStream => {
            setsockopt(&stream, sockopt::SndBuf, &BUFFER)?;
            let (message, began) = (vec![0x5a; MESSAGE], Instant::now());
            while began.elapsed() < how_long {
                stream.write_all(&message)?;
            }
            stream.shutdown(std::net::Shutdown::Write)?;
            Carried::receive(&mut stream)
        }
        Kind::UdpStream => {
            let mut port = [0; 2];
            stream.read_exact(&mut port)?;
            let socket = UdpSocket::bind((stream.local_addr()?.ip(), 0))?;
            socket.connect((to, u16::from_le_bytes(port)))?;
            let (datagram, began) = ([0x5a; DATAGRAM], Instant::now());
            while began.elapsed() < how_long {
                // A full queue on the way is what is measured, not an error.
                let _ = socket.send(&datagram);
            }
            stream.shutdown(std::net::Shutdown::Write)?;
            Carried::receive(&mut stream)
        }
        Kind::TcpRr => {
            stream.set_nodelay(true)?;
            let (mut exchanges, mut byte, began) = (0, [0x5a], Instant::now());
            while began.elapsed() < how_long {
                stream.write_all(&byte)?;
                stream.read_exact(&mut byte)?;
                exchanges += 1;
            }
            Ok(Carried::of(2 * exchanges, began.elapsed()))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_flows_over_loopback() {
        // An address of its own: the port is the same for everybody.
        let [low, high, ..] = std::process::id().to_le_bytes();
        let address = IpAddr::from([127, 77, high, low.max(1)]);
        let listener = listen((address, PORT).into()).unwrap();
        thread::spawn(move || serve(&listener));
        for kind in Kind::ALL {
            let carried = run(kind, address, Duration::from_millis(50)).unwrap();
            assert!(
                carried.bytes > 0 && carried.micros > 1,
                "{kind:?} {carried:?}"
            );
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        assert!("TCP".parse::<Kind>().is_err());
    }
}
