//! A peer of the guest: one TCP connection on which a numbered message goes out every 10 ms and has to come
//! back, once and in order.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::Netns;
use crate::{Error, lock};

/// Bytes in a message: its number and the time of its sending in nanoseconds since the start, little endian.
const MESSAGE: usize = 16;
const PERIOD: Duration = Duration::from_millis(10);
/// An echo that takes longer counts as late.
const LATE: Duration = Duration::from_millis(200);

/// What became of the messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct EchoCount {
    /// Messages sent.
    pub sent: u64,
    /// Echoes that came back in order.
    pub received: u64,
    /// Sent, but never came back.
    pub lost: u64,
    /// Came back a second time, or out of order, or altered.
    pub repeated: u64,
    /// Took longer than 200 ms.
    pub late: u64,
    /// The longest time without an echo, in milliseconds.
    pub largest_gap_ms: u64,
    /// Whether the one connection was whole to the end.
    pub connection_survived: bool,
}

/// A running echo client.
#[derive(Debug)]
pub struct EchoClient {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    count: Arc<Mutex<EchoCount>>,
    stream: TcpStream,
    sender: Option<JoinHandle<io::Result<()>>>,
    receiver: Option<JoinHandle<io::Result<()>>>,
}

impl EchoClient {
    /// Connects from within a namespace and begins.
    ///
    /// # Errors
    /// The guest does not accept within `limit`.
    pub fn start(from: &Netns, to: SocketAddr, limit: Duration) -> Result<Self, Error> {
        let failed = |e| {
            Error::file(
                "connect to",
                format!("the echo service at {to}").as_ref(),
                e,
            )
        };
        let stream = from.within(|| connect(to, limit))?.map_err(failed)?;
        Self::over(stream).map_err(failed)
    }

    fn over(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let count = Arc::new(Mutex::new(EchoCount::default()));
        let start = Instant::now();
        let sender = thread::spawn({
            let (stop, sent, stream) = (Arc::clone(&stop), Arc::clone(&sent), stream.try_clone()?);
            move || send(stream, start, &stop, &sent)
        });
        let receiver = thread::spawn({
            let (count, stream) = (Arc::clone(&count), stream.try_clone()?);
            move || receive(stream, start, &count)
        });
        Ok(Self {
            stop,
            sent,
            count,
            stream,
            sender: Some(sender),
            receiver: Some(receiver),
        })
    }

    /// Echoes so far.
    pub fn received(&self) -> u64 {
        lock(&self.count).received
    }

    /// Waits until so many echoes more have come.
    ///
    /// # Errors
    /// They did not in time.
    pub fn wait_more(&self, echoes: u64, limit: Duration) -> Result<(), Error> {
        let (start, wanted) = (Instant::now(), self.received() + echoes);
        while self.received() < wanted {
            if start.elapsed() > limit {
                return Err(Error::Unexpected(format!(
                    "waited {limit:?} for echo {wanted}, {} came of {} sent",
                    self.received(),
                    self.sent.load(Ordering::Relaxed)
                )));
            }
            thread::sleep(PERIOD);
        }
        Ok(())
    }

    /// Sends no more, waits up to `limit` for what is still out, and counts.
    pub fn finish(mut self, limit: Duration) -> EchoCount {
        self.stop.store(true, Ordering::Relaxed);
        let sending = self.sender.take().map(JoinHandle::join);
        // Our half is closed: the service echoes what it has and closes its half, which ends the receiver.
        let _ = self.stream.shutdown(Shutdown::Write);
        let _ = self.stream.set_read_timeout(Some(limit));
        let receiving = self.receiver.take().map(JoinHandle::join);
        let fine = |ended| matches!(ended, Some(Ok(Ok(()))));
        let mut count = *lock(&self.count);
        count.sent = self.sent.load(Ordering::Relaxed);
        count.lost = count.sent.saturating_sub(count.received);
        count.connection_survived = fine(sending) && fine(receiving);
        count
    }
}

impl Drop for EchoClient {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

fn connect(to: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    let start = Instant::now();
    loop {
        match TcpStream::connect_timeout(&to, Duration::from_secs(1)) {
            Ok(stream) => return Ok(stream),
            Err(error) if start.elapsed() > limit => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn send(
    mut stream: TcpStream,
    start: Instant,
    stop: &AtomicBool,
    sent: &AtomicU64,
) -> io::Result<()> {
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let number = sent.load(Ordering::Relaxed);
        let mut message = [0; MESSAGE];
        message[..8].copy_from_slice(&number.to_le_bytes());
        message[8..].copy_from_slice(&nanoseconds(start).to_le_bytes());
        stream.write_all(&message)?;
        sent.store(number + 1, Ordering::Relaxed);
        next += PERIOD;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

fn receive(mut stream: TcpStream, start: Instant, count: &Mutex<EchoCount>) -> io::Result<()> {
    let mut last = Instant::now();
    let mut message = [0; MESSAGE];
    loop {
        match stream.read_exact(&mut message) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(e) => return Err(e),
        }
        let [number, sent_at] = [&message[..8], &message[8..]]
            .map(|half| u64::from_le_bytes(half.try_into().unwrap_or([0; 8])));
        let took = nanoseconds(start).saturating_sub(sent_at);
        let gap = u64::try_from(last.elapsed().as_millis()).unwrap_or(u64::MAX);
        last = Instant::now();
        let mut count = lock(count);
        if number == count.received {
            count.received += 1;
        } else {
            count.repeated += 1;
        }
        count.late += u64::from(u128::from(took) > LATE.as_nanos());
        count.largest_gap_ms = count.largest_gap_ms.max(gap);
    }
}

fn nanoseconds(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// A service that does to every message what `serve` says, and closes when the client does.
    fn against(serve: fn(u64, &[u8]) -> Vec<u8>) -> EchoCount {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let service = thread::spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            let mut message = [0; MESSAGE];
            let mut number = 0;
            while peer.read_exact(&mut message).is_ok() {
                peer.write_all(&serve(number, &message)).unwrap();
                number += 1;
            }
        });
        let client = EchoClient::over(client).unwrap();
        client.wait_more(5, Duration::from_secs(10)).unwrap();
        let count = client.finish(Duration::from_secs(10));
        service.join().unwrap();
        count
    }

    #[test]
    fn a_true_echo_loses_nothing() {
        let count = against(|_, message| message.to_vec());
        assert!(count.connection_survived && count.sent >= 5);
        assert_eq!(
            (count.received, count.lost, count.repeated),
            (count.sent, 0, 0)
        );
    }

    #[test]
    fn repeats_and_losses_are_told() {
        let count = against(|number, message| match number {
            3 => message.repeat(2),
            _ => message.to_vec(),
        });
        assert_eq!((count.lost, count.repeated), (0, 1));
        // After a loss every later number is out of order: the count stands still where the stream broke.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (peer, _) = listener.accept().unwrap();
        let client = EchoClient::over(client).unwrap();
        thread::sleep(PERIOD * 3);
        drop(peer);
        thread::sleep(PERIOD * 3);
        let count = client.finish(Duration::from_secs(1));
        assert!(!count.connection_survived && count.lost > 0);
    }
}
