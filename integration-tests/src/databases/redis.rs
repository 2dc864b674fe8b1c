//! A steady load on Redis: long-lived connections on each of which one key after the other is set, and counted when
//! Redis has said that it is on the disk. Afterwards each of them is read again.

use std::io::{self, BufReader};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::resp::{self, Reply};
use crate::ferry::{Netns, World};
use crate::{Error, lock};

const PORT: u16 = 6379;
/// Connections that write.
const CONNECTIONS: usize = 4;
/// The least time between two writes of a connection.
const PERIOD: Duration = Duration::from_millis(10);
/// A connection whose answer takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(60);
/// Keys that are read again by one command.
const BATCH: u64 = 100;

/// What came of the writes.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Outcome {
    /// Writes that Redis has acknowledged.
    pub acknowledged: u64,
    /// Those of them that were not there afterwards.
    pub lost: u64,
    /// Connections that wrote.
    pub connections: usize,
    /// Those of them that broke before the power was cut.
    pub connections_lost: u64,
    /// The longest that a connection waited for an answer, in milliseconds.
    pub largest_stall_ms: u64,
    /// What `redis-check-aof` said of the file, last.
    pub check: String,
}

/// A running load.
#[derive(Debug)]
pub struct Load {
    writers: Vec<Writer>,
    /// From now on a connection may break.
    over: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Writer {
    stream: TcpStream,
    acknowledged: Arc<AtomicU64>,
    largest_stall: Arc<Mutex<Duration>>,
    thread: JoinHandle<Result<(), io::Error>>,
}

/// How many writes of each connection were acknowledged: all up to that number.
#[derive(Debug, Clone)]
pub struct Acknowledged(Vec<u64>);

impl Load {
    /// Connects from a namespace and begins to write.
    ///
    /// # Errors
    /// Redis cannot be reached.
    pub fn start(from: &Netns) -> Result<Self, Error> {
        let over = Arc::new(AtomicBool::new(false));
        let writers = (0..CONNECTIONS)
            .map(|number| {
                let stream = connect(from)?;
                Writer::start(number, stream, Arc::clone(&over)).map_err(failed)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { writers, over })
    }

    /// Writes acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.counts().sum()
    }

    /// Waits until each connection has had so many more writes acknowledged.
    ///
    /// # Errors
    /// One has not in time.
    pub fn wait_more(&self, writes: u64, limit: Duration) -> Result<(), Error> {
        let start = Instant::now();
        let wanted: Vec<u64> = self.counts().map(|count| count + writes).collect();
        while self
            .counts()
            .zip(&wanted)
            .any(|(count, &least)| count < least)
        {
            if start.elapsed() > limit {
                let counts: Vec<u64> = self.counts().collect();
                return Err(Error::Unexpected(format!(
                    "Redis has acknowledged {counts:?} writes in {limit:?}, not {wanted:?}"
                )));
            }
            thread::sleep(PERIOD);
        }
        Ok(())
    }

    /// Whatever breaks from now on is no fault of anybody's.
    pub fn expect_the_end(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    /// Ends the writers, and says what they know.
    pub fn finish(self) -> (Acknowledged, Outcome) {
        self.expect_the_end();
        let mut outcome = Outcome {
            connections: self.writers.len(),
            ..Outcome::default()
        };
        let mut counts = Vec::new();
        for writer in self.writers {
            let _ = writer.stream.shutdown(Shutdown::Both);
            if !matches!(writer.thread.join(), Ok(Ok(()))) {
                outcome.connections_lost += 1;
            }
            let stall = writer.largest_stall.lock();
            let stall = stall.unwrap_or_else(PoisonError::into_inner).as_millis();
            let stall = u64::try_from(stall).unwrap_or(u64::MAX);
            outcome.largest_stall_ms = outcome.largest_stall_ms.max(stall);
            counts.push(writer.acknowledged.load(Ordering::SeqCst));
        }
        outcome.acknowledged = counts.iter().sum();
        (Acknowledged(counts), outcome)
    }

    fn counts(&self) -> impl Iterator<Item = u64> {
        let count = |writer: &Writer| writer.acknowledged.load(Ordering::SeqCst);
        self.writers.iter().map(count)
    }
}

impl Writer {
    fn start(number: usize, stream: TcpStream, over: Arc<AtomicBool>) -> io::Result<Self> {
        let acknowledged = Arc::new(AtomicU64::new(0));
        let largest_stall = Arc::new(Mutex::new(Duration::ZERO));
        let thread = thread::spawn({
            let (mut writes, stream) = (stream.try_clone()?, stream.try_clone()?);
            let (acknowledged, largest) = (Arc::clone(&acknowledged), Arc::clone(&largest_stall));
            move || {
                let mut replies = BufReader::new(stream);
                let mut write = |n| set(&mut writes, &mut replies, number, n);
                for n in 1.. {
                    let start = Instant::now();
                    match write(n) {
                        Ok(()) => acknowledged.store(n, Ordering::SeqCst),
                        Err(_) if over.load(Ordering::SeqCst) => break,
                        Err(error) => return Err(error),
                    }
                    let took = start.elapsed();
                    let mut largest = lock(&largest);
                    *largest = took.max(*largest);
                    drop(largest);
                    thread::sleep(PERIOD.saturating_sub(took));
                }
                Ok(())
            }
        });
        Ok(Self {
            stream,
            acknowledged,
            largest_stall,
            thread,
        })
    }
}

fn set(
    to: &mut TcpStream,
    from: &mut BufReader<TcpStream>,
    connection: usize,
    number: u64,
) -> io::Result<()> {
    let key = key(connection, number);
    resp::send(to, &["SET", &key, &value(&key)])?;
    match resp::receive(from)? {
        Reply::Simple(ok) if ok == "OK" => Ok(()),
        other => Err(io::Error::other(format!("Redis answers {other:?}"))),
    }
}

impl Acknowledged {
    /// Reads all of them again; how many are not there as they were written.
    ///
    /// # Errors
    /// Redis cannot be asked.
    pub fn lost(&self, from: &Netns) -> Result<u64, Error> {
        let mut stream = connect(from)?;
        let mut replies = BufReader::new(stream.try_clone().map_err(failed)?);
        let mut lost = 0;
        for (connection, &last) in self.0.iter().enumerate() {
            for first in (1..=last).step_by(usize::try_from(BATCH).unwrap_or(1)) {
                let keys: Vec<String> = (first..=last.min(first + BATCH - 1))
                    .map(|number| key(connection, number))
                    .collect();
                let words: Vec<&str> = std::iter::once("MGET")
                    .chain(keys.iter().map(String::as_str))
                    .collect();
                resp::send(&mut stream, &words).map_err(failed)?;
                lost += missing(&keys, &resp::receive(&mut replies).map_err(failed)?)?;
            }
        }
        Ok(lost)
    }
}

/// How many of the keys do not have their value.
fn missing(keys: &[String], reply: &Reply) -> Result<u64, Error> {
    let Reply::Array(values) = reply else {
        return Err(Error::Unexpected(format!("Redis answers {reply:?}")));
    };
    let right = keys
        .iter()
        .zip(values)
        .filter(|(key, found)| **found == Reply::Value(Some(value(key).into_bytes())))
        .count();
    Ok((keys.len() - right) as u64)
}

fn key(connection: usize, number: u64) -> String {
    format!("write:{connection}:{number}")
}

/// Long enough to be told from any other, and to fill blocks.
fn value(key: &str) -> String {
    format!("{key} ").repeat(16)
}

fn connect(from: &Netns) -> Result<TcpStream, Error> {
    let address = SocketAddr::new(World::guest_ip(0), PORT);
    let connect = || {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    };
    from.within(connect)?.map_err(failed)
}

fn failed(error: io::Error) -> Error {
    Error::file("talk to", "Redis in the guest".as_ref(), error)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// A server that acknowledges `writes` commands and closes.
    fn against(writes: usize) -> Writer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        thread::spawn(move || {
            let mut commands = BufReader::new(peer.try_clone().unwrap());
            for _ in 0..writes {
                // A command is an array of values: a reply, to who reads it.
                assert!(matches!(resp::receive(&mut commands), Ok(Reply::Array(_))));
                io::Write::write_all(&mut peer, b"+OK\r\n").unwrap();
            }
        });
        Writer::start(0, stream, Arc::new(AtomicBool::new(false))).unwrap()
    }

    #[test]
    fn a_broken_connection_is_told_and_what_was_acknowledged_counts() {
        let load = Load {
            writers: vec![against(3)],
            over: Arc::default(),
        };
        assert!(load.wait_more(4, Duration::from_millis(300)).is_err());
        let (counts, outcome) = load.finish();
        assert_eq!(counts.0, [3]);
        assert_eq!((outcome.acknowledged, outcome.connections_lost), (3, 1));
    }

    #[test]
    fn what_is_missing_or_wrong_is_lost() {
        let keys = [key(0, 1), key(0, 2), key(0, 3)];
        let right = |key| Reply::Value(Some(value(key).into_bytes()));
        let all = Reply::Array(keys.iter().map(|key| right(key)).collect());
        assert_eq!(missing(&keys, &all).unwrap(), 0);
        let some = Reply::Array(vec![right(&keys[0]), Reply::Value(None), right(&keys[1])]);
        assert_eq!(missing(&keys, &some).unwrap(), 2);
        assert_eq!(missing(&keys, &Reply::Array(vec![])).unwrap(), 3);
        assert!(missing(&keys, &Reply::Refused("LOADING".into())).is_err());
    }
}
