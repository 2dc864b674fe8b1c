//! Started by a service manager: the socket that it listens on already (sd_listen_fds(3)), and where it wants to be
//! told how things are (sd_notify(3)).
//!
//! Both are looked for before the process is confined. The place for news is connected then and kept: libraries for
//! sd_notify open it anew for each word, which a confined process cannot.

use std::io;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};

use listenfd::ListenFd;
use nix::sys::socket::{getsockopt, sockopt};

/// A listening socket that was passed to this process.
#[derive(Debug)]
pub enum Passed {
    /// Of TCP.
    Tcp(TcpListener),
    /// Of the Unix family. Who may connect is the service manager's business (SocketMode).
    Unix(UnixListener),
}

/// Takes the one socket that was passed. Accepting from it will not block.
///
/// # Errors
/// None was passed, several were, or it is no listening TCP or Unix socket.
pub fn passed() -> io::Result<Passed> {
    let mut all = ListenFd::from_env();
    match all.len() {
        1 => {}
        0 => {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "none was passed (LISTEN_FDS): start this by a socket unit, or name an address",
            ));
        }
        many => {
            let text = format!("{many} were passed: give the unit one ListenStream=");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
    }
    let passed = match all.take_tcp_listener(0) {
        Ok(listener) => listener.map(Passed::Tcp),
        Err(_) => all.take_unix_listener(0)?.map(Passed::Unix),
    };
    let passed = passed.ok_or(io::ErrorKind::NotFound)?;
    let listens = match &passed {
        Passed::Tcp(socket) => {
            socket.set_nonblocking(true)?;
            getsockopt(socket, sockopt::AcceptConn)?
        }
        Passed::Unix(socket) => {
            socket.set_nonblocking(true)?;
            getsockopt(socket, sockopt::AcceptConn)?
        }
    };
    match listens {
        true => Ok(passed),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it does not listen: the socket unit needs ListenStream= and Accept=no",
        )),
    }
}

/// Whoever started this process and waits for news; nobody, outside of a service.
#[derive(Debug)]
pub struct Manager(Option<UnixDatagram>);

impl Manager {
    /// Connects to NOTIFY_SOCKET, where there is one. What is no address is nobody: the guest is worth more than the
    /// news.
    pub fn connect() -> Self {
        let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
            return Self(None);
        };
        let connect = || {
            let address = match path.as_bytes().strip_prefix(b"@") {
                Some(name) => SocketAddr::from_abstract_name(name)?,
                None => SocketAddr::from_pathname(&path)?,
            };
            let socket = UnixDatagram::unbound()?;
            socket.connect_addr(&address)?;
            // A manager that does not read must not hold up a guest.
            socket.set_nonblocking(true)?;
            Ok::<_, io::Error>(socket)
        };
        match connect() {
            Ok(socket) => Self(Some(socket)),
            Err(error) => {
                tracing::warn!("the service manager will not hear of this process: {error}");
                Self(None)
            }
        }
    }

    /// The start is over, as far as the manager waits for it.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", line(status)));
    }

    /// A line for `systemctl status`.
    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={}", line(status)));
    }

    fn send(&self, news: &str) {
        if let Some(socket) = &self.0
            && let Err(error) = socket.send(news.as_bytes())
        {
            tracing::debug!("the service manager was not told: {error}");
        }
    }
}

/// One assignment is one line, whatever is in the text (a peer's name, for example).
fn line(text: &str) -> String {
    text.replace(|c: char| c.is_control(), " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_stays_on_its_line() {
        assert_eq!(line("a\nREADY=1\0b\u{85}c"), "a READY=1 b c");
    }

    #[test]
    fn news_reach_whoever_listens_and_nobody_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let socket = UnixDatagram::unbound().unwrap();
        socket.connect(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let told = Manager(Some(socket));
        told.ready("x");
        let mut buffer = [0; 64];
        let count = manager.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"READY=1\nSTATUS=x");
        for _ in 0..10_000 {
            told.status("nobody reads this");
        }
        drop(manager);
        told.status("gone");
        Manager(None).ready("nobody");
    }
}
