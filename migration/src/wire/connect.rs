//! Ways to reach a destination. Connecting obeys a deadline and a cancel like everything after it.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;

use super::lending::Lending;
use super::local::Local;
use super::transport::Transport;
use crate::cancel::{CancelToken, Cancelled};
use crate::confined::{self, Role};

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// Cancelled while it was tried.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// The name or the address is not usable.
    #[error("cannot find {name}; check the name, or give an address")]
    Resolve {
        /// Host and port as given.
        name: String,
        /// The resolver's answer.
        source: io::Error,
    },
    /// Nobody answered in time.
    #[error(
        "no answer from {name} within {seconds:.1} s: check the address, that `ferry receive` runs there, and the network between"
    )]
    Timeout {
        /// The address tried.
        name: String,
        /// How long.
        seconds: f64,
    },
    /// The kernel or the peer said no.
    #[error("cannot connect to {name}; start `ferry receive` there first, or check the address")]
    Io {
        /// The address tried.
        name: String,
        /// The system's answer.
        source: io::Error,
    },
}

/// A destination that can be connected to, once for each stream, from several threads at once.
pub trait Connect: Sync {
    /// Connects, within `timeout` and unless cancelled.
    ///
    /// # Errors
    /// Says what was tried and why it did not work.
    fn connect(
        &self,
        timeout: Duration,
        cancel: &CancelToken,
    ) -> Result<Box<dyn Transport>, ConnectError>;

    /// The destination's name, for people.
    fn name(&self) -> String;

    /// Whether the destination is on this host and takes guest memory by descriptor instead of its bytes.
    fn is_local(&self) -> bool {
        false
    }
}

/// A destination that listens on TCP.
#[derive(Debug, Clone)]
pub struct TcpTarget {
    /// `host:port`.
    name: String,
    /// Where it was first reached. A name may stand for several hosts, and all connections of a move go to one.
    reached: OnceLock<SocketAddr>,
}

impl TcpTarget {
    /// `host:port`; the host is a name or an address (IPv6 in brackets).
    pub fn new(address: impl Into<String>) -> Self {
        Self {
            name: address.into(),
            reached: OnceLock::new(),
        }
    }

    /// All addresses behind the name. Names are looked up on a thread of their own: the resolver can neither
    /// be cancelled nor told a deadline, and may finish after nobody waits any more.
    fn resolve(
        &self,
        deadline: Instant,
        cancel: &CancelToken,
    ) -> Result<Vec<SocketAddr>, ConnectError> {
        let known = self.reached.get().copied();
        if let Some(address) = known.or_else(|| self.name.parse().ok()) {
            return Ok(vec![address]);
        }
        let (answer, found) = mpsc::channel();
        let name = self.name.clone();
        let lookup = move || {
            confined::started(Role::Resolve);
            let addresses = name.to_socket_addrs().map(Iterator::collect::<Vec<_>>);
            // Nobody listens any more after a cancel.
            let _ = answer.send(addresses);
        };
        let failed = |source| ConnectError::Resolve {
            name: self.name.clone(),
            source,
        };
        std::thread::Builder::new()
            .name("resolver".into())
            .spawn(lookup)
            .map_err(failed)?;
        loop {
            match found.recv_timeout(Duration::from_millis(20)) {
                Ok(Ok(addresses)) if !addresses.is_empty() => return Ok(addresses),
                Ok(Ok(_)) => return Err(failed(io::ErrorKind::NotFound.into())),
                Ok(Err(error)) => return Err(failed(error)),
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(failed(io::ErrorKind::Interrupted.into()));
                }
                Err(mpsc::RecvTimeoutError::Timeout) if cancel.is_cancelled() => {
                    return Err(Cancelled.into());
                }
                Err(mpsc::RecvTimeoutError::Timeout) if Instant::now() >= deadline => {
                    return Err(failed(io::ErrorKind::TimedOut.into()));
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

impl Connect for TcpTarget {
    fn connect(
        &self,
        timeout: Duration,
        cancel: &CancelToken,
    ) -> Result<Box<dyn Transport>, ConnectError> {
        let deadline = Instant::now() + timeout;
        let mut last = None;
        let addresses = self.resolve(deadline, cancel)?;
        let mut others = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
        for address in addresses {
            // One that does not answer leaves their share of the time to the others.
            let share = deadline.saturating_duration_since(Instant::now()) / others;
            others = (others - 1).max(1);
            let until = Instant::now() + share;
            match dial(&address.into(), &self.name(), until, timeout, cancel) {
                Ok(socket) => {
                    let _ = self.reached.set(address);
                    return Ok(Box::new(Lending::from(TcpStream::from(socket))));
                }
                Err(ConnectError::Cancelled(cancelled)) => return Err(cancelled.into()),
                Err(error) => last = Some(error),
            }
        }
        // `resolve` gives at least one address.
        Err(last.unwrap_or(ConnectError::Cancelled(Cancelled)))
    }

    fn name(&self) -> String {
        format!("tcp:{}", self.name)
    }
}

/// A destination that listens on a Unix socket.
#[derive(Debug, Clone)]
pub struct UnixTarget(PathBuf);

impl UnixTarget {
    /// The socket's path.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }
}

impl Connect for UnixTarget {
    fn connect(
        &self,
        timeout: Duration,
        cancel: &CancelToken,
    ) -> Result<Box<dyn Transport>, ConnectError> {
        let address = SockAddr::unix(&self.0).map_err(|source| ConnectError::Resolve {
            name: self.name(),
            source,
        })?;
        let deadline = Instant::now() + timeout;
        let socket = dial(&address, &self.name(), deadline, timeout, cancel)?;
        Ok(Box::new(Local::from(UnixStream::from(socket))))
    }

    fn name(&self) -> String {
        format!("unix:{}", self.0.display())
    }

    fn is_local(&self) -> bool {
        true
    }
}

/// A connection that was made elsewhere; good for one stream.
#[derive(Debug)]
pub struct Connected {
    transport: Mutex<Option<Box<dyn Transport>>>,
    name: String,
}

impl Connected {
    /// Takes the connection; `name` is what people call the peer.
    pub fn new(transport: impl Transport + 'static, name: impl Into<String>) -> Self {
        Self {
            transport: Mutex::new(Some(Box::new(transport))),
            name: name.into(),
        }
    }
}

impl Connect for Connected {
    fn connect(
        &self,
        _timeout: Duration,
        cancel: &CancelToken,
    ) -> Result<Box<dyn Transport>, ConnectError> {
        if cancel.is_cancelled() {
            return Err(Cancelled.into());
        }
        let mut transport = self
            .transport
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        transport.take().ok_or_else(|| ConnectError::Io {
            name: self.name.clone(),
            source: io::ErrorKind::NotConnected.into(),
        })
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

/// Connects one socket to one address.
fn dial(
    address: &SockAddr,
    name: &str,
    deadline: Instant,
    timeout: Duration,
    cancel: &CancelToken,
) -> Result<Socket, ConnectError> {
    let failed = |source| ConnectError::Io {
        name: name.to_owned(),
        source,
    };
    let socket = Socket::new(
        Domain::from(i32::from(address.family())),
        Type::STREAM,
        None,
    )
    .map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    match socket.connect(address) {
        Ok(()) => return Ok(socket),
        // TCP says "in progress" (EINPROGRESS); a Unix socket with a full backlog says "would block".
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Err(failed(error)),
    }
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ConnectError::Timeout {
                name: name.to_owned(),
                seconds: timeout.as_secs_f64(),
            });
        }
        let mut fds = [
            PollFd::new(socket.as_fd(), PollFlags::POLLOUT),
            PollFd::new(cancel.wake_fd(), PollFlags::POLLIN),
        ];
        let slice = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, slice) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(failed(error.into())),
        }
        let writable = fds[0].any().unwrap_or(true);
        if cancel.is_cancelled() {
            return Err(Cancelled.into());
        }
        if writable {
            return match socket.take_error().map_err(failed)? {
                Some(error) => Err(failed(error)),
                None => Ok(socket),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(5);

    #[test]
    fn connects_to_a_listener_and_says_who_refused() {
        let cancel = CancelToken::new().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        TcpTarget::new(&address).connect(SECOND, &cancel).unwrap();
        drop(listener);
        let error = TcpTarget::new(&address)
            .connect(SECOND, &cancel)
            .unwrap_err();
        assert!(error.to_string().contains(&address), "{error}");
        let error = UnixTarget::new("/nonexistent/socket")
            .connect(SECOND, &cancel)
            .unwrap_err();
        assert!(error.to_string().contains("/nonexistent/socket"), "{error}");
    }

    #[test]
    fn all_connections_go_to_the_address_that_answered_first() {
        let cancel = CancelToken::new().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        // Often [::1], too, where nobody listens.
        let target = TcpTarget::new(format!("localhost:{}", address.port()));
        target.connect(SECOND, &cancel).unwrap();
        assert_eq!(target.reached.get(), Some(&address));
        assert_eq!(
            target.resolve(Instant::now(), &cancel).unwrap(),
            vec![address]
        );
        // No other is tried when that one is gone.
        drop(listener);
        let gone = target.connect(SECOND, &cancel).unwrap_err();
        assert!(gone.to_string().contains("localhost"), "{gone}");
    }

    /// A listener that nobody accepts from, with a full queue: further connects are left waiting.
    fn deaf() -> (Socket, Vec<Socket>, String) {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        listener.bind(&any.into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let waiting = (0..4).map(|_| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            let _ = socket.connect(&address);
            socket
        });
        let waiting = waiting.collect();
        let name = address.as_socket().unwrap().to_string();
        (listener, waiting, name)
    }

    #[test]
    fn nobody_answers() {
        let cancel = CancelToken::new().unwrap();
        let (_listener, _waiting, name) = deaf();
        let error = TcpTarget::new(name)
            .connect(Duration::from_millis(100), &cancel)
            .unwrap_err();
        assert!(matches!(error, ConnectError::Timeout { .. }), "{error}");
    }

    #[test]
    fn a_cancel_ends_the_wait_for_an_answer() {
        let cancel = CancelToken::new().unwrap();
        let (_listener, _waiting, name) = deaf();
        let other = cancel.clone();
        let thread = std::thread::spawn(move || {
            TcpTarget::new(name).connect(Duration::from_secs(3600), &other)
        });
        cancel.cancel().unwrap();
        let result = thread.join().unwrap();
        assert!(matches!(result, Err(ConnectError::Cancelled(_))));
        let (a, _b) = UnixStream::pair().unwrap();
        let result = Connected::new(a, "pair").connect(SECOND, &cancel);
        assert!(matches!(result, Err(ConnectError::Cancelled(_))));
    }
}
