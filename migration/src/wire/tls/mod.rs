//! TLS 1.3 under the frames: both ends prove by certificates of one CA who they are, and nobody between them reads or
//! changes a byte. The cryptography is rustls; what is here fits it to a [`Transport`], which never waits.
//!
//! Nothing of the protocol above changes. There is no resumption, no early data and no older version: a move makes a
//! handful of connections, each with a whole handshake.

mod credentials;
mod words;

use std::io::{self, BufRead, IoSlice, Write};
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};

pub use self::credentials::{Credentials, Demand, peer_name};
pub use self::words::TlsError;
use super::codec;
use super::connect::{Connect, ConnectError};
use super::frame::Frame;
use super::iov::{self, In, Out, Place};
use super::preamble::{self, MAGIC};
use super::transport::{Identity, Transport, Wait};
use crate::cancel::CancelToken;

/// What is received with one call. Records have 16 KiB at most.
const RAW: usize = 256 << 10;
/// So much is put into records before they are handed to the socket: few calls, and it all stays in the cache.
const BATCH: usize = 256 << 10;
/// So much of it at a time is copied out of the guest's memory: four whole records.
const BOUNCE: usize = 64 << 10;

/// A destination that is reached over TLS.
#[derive(Debug)]
pub struct TlsTarget<C> {
    inner: C,
    demand: Demand,
}

impl<C: Connect> TlsTarget<C> {
    /// Connects as `inner` does, and then demands that the other end proves to be who it should.
    pub fn new(inner: C, demand: Demand) -> Self {
        Self { inner, demand }
    }
}

impl<C: Connect> Connect for TlsTarget<C> {
    fn connect(
        &self,
        timeout: Duration,
        cancel: &CancelToken,
    ) -> Result<Box<dyn Transport>, ConnectError> {
        let inner = self.inner.connect(timeout, cancel)?;
        let secured = self.demand.secure(inner);
        secured.map_err(|source| ConnectError::Io {
            name: self.name(),
            source,
        })
    }

    fn name(&self) -> String {
        self.inner.name()
    }
}

/// Whether the other end turned out to be sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    /// Nothing is known to be wrong.
    Sound,
    /// It said goodbye, so that nothing is missing of what it sent.
    Ended,
    /// The session broke. Nothing is sent or received any more.
    Broken,
}

/// An encrypted stream over another.
///
/// # When bytes are taken
/// The handover needs to know whether a frame may have arrived (GO), so [`send`](Transport::send) has to be exact about
/// what it took. Bytes are taken when they are put into a record: from then on they go out, by this call or by
/// [`flush`](Transport::flush). An error therefore means that no record with any of them exists that could still go out:
/// either none was made, because older records or the socket had no room yet (`WouldBlock`), or the socket refused the
/// first byte of it for good, and then the session is broken and sends nothing ever after. Everything else is reported
/// as taken, also where the socket fails behind the first byte; the peer drops a record that is not whole, but whether
/// it was cannot be known.
#[derive(Debug)]
struct Tls {
    inner: Box<dyn Transport>,
    session: Connection,
    /// `raw[start..end]` has come from the peer; the session has not seen it yet.
    raw: Vec<u8>,
    start: usize,
    end: usize,
    /// On the way from guest memory into records: what is encrypted must not change while it is.
    bounce: Vec<u8>,
    health: Health,
    /// Nothing has come yet.
    untried: bool,
    identity: Option<Identity>,
}

impl Tls {
    fn new(inner: Box<dyn Transport>, session: impl Into<Connection>) -> Self {
        let mut session = session.into();
        // The channel above decides how much is under way: it flushes before it gives more.
        session.set_buffer_limit(None);
        Self {
            inner,
            session,
            raw: vec![0; RAW],
            start: 0,
            end: 0,
            bounce: vec![0; BOUNCE],
            health: Health::Sound,
            untried: true,
            identity: None,
        }
    }

    fn client(
        inner: Box<dyn Transport>,
        config: &Arc<ClientConfig>,
        name: &ServerName<'static>,
    ) -> io::Result<Self> {
        let session = ClientConnection::new(Arc::clone(config), name.clone());
        Ok(Self::new(inner, session.map_err(TlsError::from)?))
    }

    fn server(inner: Box<dyn Transport>, config: &Arc<ServerConfig>) -> io::Result<Self> {
        let session = ServerConnection::new(Arc::clone(config));
        Ok(Self::new(inner, session.map_err(TlsError::from)?))
    }

    /// Breaks the session: what is in it stays there.
    fn broken<E>(&mut self, error: E) -> E {
        self.health = Health::Broken;
        error
    }

    fn sound(&self) -> io::Result<()> {
        match self.health {
            Health::Broken => Err(io::ErrorKind::BrokenPipe.into()),
            Health::Sound | Health::Ended => Ok(()),
        }
    }

    /// Hands records to the socket until there are none left; says how many bytes it took, also where that ended in an
    /// error.
    fn push(&mut self) -> (usize, io::Result<()>) {
        let mut pushed = 0;
        while self.session.wants_write() {
            match self.session.write_tls(&mut Socket(&mut *self.inner)) {
                Ok(count) => pushed += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return (pushed, Err(error));
                }
                Err(error) => return (pushed, Err(self.broken(error))),
            }
        }
        (pushed, Ok(()))
    }

    /// Makes records of the bytes, about [`BATCH`] of them; says how many.
    fn seal(&mut self, from: &[Out<'_>]) -> io::Result<usize> {
        let mut place = Place::default();
        let mut sealed = 0;
        while sealed < BATCH {
            let count = iov::gather(from, &mut place, &mut self.bounce);
            if count == 0 {
                break;
            }
            // Without a limit it takes all.
            self.session.writer().write_all(&self.bounce[..count])?;
            sealed += count;
        }
        Ok(sealed)
    }

    /// Receives what comes, decrypted or not.
    fn fill(&mut self) -> io::Result<()> {
        let count = self.inner.receive(&mut [In::bytes(&mut self.raw)])?;
        if count == 0 {
            return Err(self.broken(TlsError::Cut.into()));
        }
        (self.start, self.end) = (0, count);
        if std::mem::take(&mut self.untried) && self.raw[0] == MAGIC[0] {
            return Err(self.not_encrypted());
        }
        Ok(())
    }

    /// The other end is Ferry, and does not speak TLS: no record begins like that. A source hears why, in its own terms.
    fn not_encrypted(&mut self) -> io::Error {
        let error = match &self.session {
            Connection::Client(_) => TlsError::PlainReceiver,
            Connection::Server(_) => {
                let mut bytes = preamble::ours().to_vec();
                let reason = "this receiver takes guests over TLS alone; give `ferry migrate` (or `ferry run` before it) \
                              --tls DIR with a certificate of the receiver's CA";
                if codec::encode(&Frame::Refuse(reason.into()), &mut bytes).is_ok() {
                    // Nothing else was sent, so there is room. If not, it only sees the end.
                    let _ = self.inner.send(&[Out::bytes(&bytes)]);
                }
                TlsError::PlainSource
            }
        };
        self.broken(error.into())
    }

    /// Has the session look at what has come.
    fn digest(&mut self) -> io::Result<()> {
        let seen = self
            .session
            .read_tls(&mut &self.raw[self.start..self.end])?;
        self.start += seen;
        match self.session.process_new_packets() {
            Ok(state) => {
                if state.peer_has_closed() {
                    self.health = Health::Ended;
                }
                Ok(())
            }
            Err(error) => {
                // The alert that tells the peer why.
                let _ = self.push();
                Err(self.broken(TlsError::from(error).into()))
            }
        }
    }

    /// Gives what was decrypted; says how much.
    fn give(&mut self, into: &mut [In<'_>]) -> usize {
        let mut place = Place::default();
        let mut given = 0;
        let mut reader = self.session.reader();
        // An error means that there is nothing more: why, shows when more is asked of the peer.
        while let Ok(bytes) = reader.fill_buf() {
            let count = iov::scatter(into, &mut place, bytes);
            if count == 0 {
                break;
            }
            reader.consume(count);
            given += count;
        }
        given
    }

    /// Tells the peer that this is the end, unless what it was sent before is not whole.
    fn say_goodbye(&mut self) {
        if self.health != Health::Broken
            && !self.session.is_handshaking()
            && !self.session.wants_write()
        {
            self.session.send_close_notify();
            // If there is no room for it the peer sees a cut. It has no better news coming.
            let _ = self.push();
        }
    }
}

impl Transport for Tls {
    fn prepare(&self, peer_timeout: Duration) -> io::Result<()> {
        self.inner.prepare(peer_timeout)
    }

    fn handshake(&mut self) -> io::Result<Option<Wait>> {
        self.sound()?;
        loop {
            match self.push().1 {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Some(Wait::Send));
                }
                Err(error) => return Err(error),
            }
            if !self.session.is_handshaking() {
                self.identity = credentials::identity(&self.session);
                return Ok(None);
            }
            if self.start == self.end {
                match self.fill() {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        return Ok(Some(Wait::Receive));
                    }
                    Err(error) => return Err(error),
                }
            }
            self.digest()?;
        }
    }

    fn send(&mut self, from: &[Out<'_>]) -> io::Result<usize> {
        self.sound()?;
        self.push().1?;
        // Asked before there is a record that would have to go: after this the socket takes at least a byte of it.
        if !has_room(self.inner.poll_fd())? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let sealed = match self.seal(from) {
            Ok(sealed) => sealed,
            // What is in it may be part of a record.
            Err(error) => return Err(self.broken(error)),
        };
        match self.push() {
            (0, Err(error)) if self.health == Health::Broken => Err(error),
            // Whatever is wrong with the rest shows with the next call.
            _ => Ok(sealed),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sound()?;
        self.push().1
    }

    fn receive(&mut self, into: &mut [In<'_>]) -> io::Result<usize> {
        loop {
            let given = self.give(into);
            if given > 0 {
                return Ok(given);
            }
            match self.health {
                Health::Ended => return Ok(0),
                Health::Broken => return Err(io::ErrorKind::BrokenPipe.into()),
                Health::Sound => {}
            }
            if self.start == self.end {
                self.fill()?;
            }
            self.digest()?;
        }
    }

    fn discard(&mut self, sink: &mut [u8]) -> io::Result<usize> {
        self.inner.receive(&mut [In::bytes(sink)])
    }

    fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    fn shared_processor(&self) -> Option<usize> {
        self.inner.shared_processor()
    }

    fn share_processor(&self) {
        self.inner.share_processor();
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.inner.poll_fd()
    }

    fn shutdown(&mut self, how: Shutdown) {
        if how != Shutdown::Read {
            self.say_goodbye();
        }
        self.inner.shutdown(how);
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        self.say_goodbye();
    }
}

/// The stream below, as rustls writes to it.
struct Socket<'a>(&'a mut dyn Transport);

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(&[Out::bytes(bytes)])
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let pieces: Vec<_> = pieces.iter().map(|piece| Out::bytes(piece)).collect();
        self.0.send(&pieces)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a socket takes bytes right now; also where it would answer with an error.
fn has_room(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let mut fds = [PollFd::new(socket, PollFlags::POLLOUT)];
    Ok(poll(&mut fds, PollTimeout::ZERO)? > 0)
}

#[cfg(test)]
mod tests;
