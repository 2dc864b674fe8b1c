//! TLS 1.3 under the frames: both ends prove by certificates of one CA who they are, and nobody between them reads or
//! changes a byte. The cryptography is rustls; what is here fits it to a [`Transport`], which hardly waits.
//!
//! Nothing of the protocol above changes. There is no resumption, no early data and no older version: a move makes a
//! handful of connections, each with a whole handshake.

mod credentials;
mod session;
mod words;

use std::io;
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::{ClientConfig, ServerConfig};

pub use self::credentials::{Credentials, Demand, peer_name};
use self::session::{Outgoing, Session, Wish};
pub use self::words::TlsError;
use super::codec;
use super::connect::{Connect, ConnectError};
use super::frame::Frame;
use super::iov::{self, In, Out, Place, Waits};
use super::preamble::{self, MAGIC};
use super::transport::{Identity, Transport, Wait};
use crate::cancel::CancelToken;

/// What is received with one call at most. Records have 16 KiB.
const RAW: usize = 256 << 10;
/// A record at its longest (RFC 8446, 5.2): so much room there is for each call at least.
const RECORD: usize = 5 + (16 << 10) + 256;
/// Where memory begins that bytes are received into, modulo this: a sender that is not ahead puts what it sends at the
/// beginning of a page, and a copy to some bytes behind that is slow (docs/performance.md).
const PAGE: usize = 4096;
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

/// An encrypted stream over another.
///
/// # When bytes are taken
/// The handover needs to know whether a frame may have arrived (GO), so [`send`](Transport::send) has to be exact about
/// what it took. Bytes are taken when they are put into a record: from then on they go out, by this call or by
/// [`flush`](Transport::flush). An error therefore means that no record with any of them exists that could still go
/// out: either none was made, because older records or the socket had no room yet (`WouldBlock`), or the socket refused
/// the first byte of it for good, and then the session is broken and sends nothing ever after. Everything else is
/// reported as taken, also where the socket fails behind the first byte; the peer drops a record that is not whole, but
/// whether it was cannot be known.
#[derive(Debug)]
struct Tls {
    inner: Box<dyn Transport>,
    session: Session,
    /// `raw[start..end]` has come from the peer, and is not decrypted yet; none of it lies in front of `first`.
    raw: Vec<u8>,
    first: usize,
    start: usize,
    end: usize,
    /// `plain[given..]` was decrypted, and nobody has asked for it yet: the rest of a record, and what had come when
    /// this end wrote.
    plain: Vec<u8>,
    given: usize,
    /// On the way from guest memory into records: what is encrypted must not change while it is.
    bounce: Vec<u8>,
    outgoing: Outgoing,
    /// The session broke. Nothing is sent or received any more.
    broken: bool,
    /// Why it broke, to be told once what came before is given.
    fault: Option<io::Error>,
    /// Nothing has come yet.
    untried: bool,
    identity: Option<Identity>,
}

impl Tls {
    fn new(inner: Box<dyn Transport>, session: impl Into<Session>) -> Self {
        let raw = vec![0; PAGE + RAW];
        let first = raw.as_ptr().align_offset(PAGE).min(PAGE);
        Self {
            inner,
            session: session.into(),
            raw,
            first,
            start: first,
            end: first,
            plain: Vec::new(),
            given: 0,
            bounce: vec![0; BOUNCE],
            outgoing: Outgoing::default(),
            broken: false,
            fault: None,
            untried: true,
            identity: None,
        }
    }

    fn client(
        inner: Box<dyn Transport>,
        config: &Arc<ClientConfig>,
        name: &ServerName<'static>,
    ) -> io::Result<Self> {
        let session = UnbufferedClientConnection::new(Arc::clone(config), name.clone());
        Ok(Self::new(inner, session.map_err(TlsError::from)?))
    }

    fn server(inner: Box<dyn Transport>, config: &Arc<ServerConfig>) -> io::Result<Self> {
        let session = UnbufferedServerConnection::new(Arc::clone(config));
        Ok(Self::new(inner, session.map_err(TlsError::from)?))
    }

    /// Breaks the session: what is in it stays there.
    fn broken<E>(&mut self, error: E) -> E {
        self.broken = true;
        error
    }

    fn sound(&self) -> io::Result<()> {
        match self.broken {
            true => Err(io::ErrorKind::BrokenPipe.into()),
            false => Ok(()),
        }
    }

    /// Hands records to the socket until there are none left; says how many bytes it took, also where that ended in an
    /// error.
    fn push(&mut self, waits: Waits) -> (usize, io::Result<()>) {
        let mut pushed = 0;
        while !self.outgoing.is_empty() {
            match self.inner.send(&[Out::bytes(self.outgoing.rest())], waits) {
                Ok(count) => {
                    self.outgoing.gone(count);
                    pushed += count;
                }
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
    fn seal(&mut self, from: &[Out<'_>]) -> Result<usize, TlsError> {
        let mut place = Place::default();
        let mut sealed = 0;
        while sealed < BATCH {
            let count = iov::gather(from, &mut place, &mut self.bounce);
            if count == 0 {
                break;
            }
            self.write(|bounce| Wish::Content(&bounce[..count]))?;
            sealed += count;
        }
        Ok(sealed)
    }

    /// Puts what is wished for, which may be in `bounce`, into records. What has come meanwhile is decrypted.
    fn write(&mut self, wish: impl FnOnce(&[u8]) -> Wish<'_>) -> Result<(), TlsError> {
        let wish = wish(&self.bounce);
        let incoming = &mut self.raw[self.start..self.end];
        let deliver = |plain: &[u8]| self.plain.extend_from_slice(plain);
        let (done, made) = (self.session).write(wish, incoming, &mut self.outgoing, deliver);
        self.start += done;
        Ok(made?)
    }

    /// Receives what comes, behind what is there.
    fn fill(&mut self, waits: Waits) -> io::Result<()> {
        if self.start == self.end || self.raw.len() - self.end < RECORD {
            self.raw.copy_within(self.start..self.end, self.first);
            (self.start, self.end) = (self.first, self.first + self.end - self.start);
        }
        let into = &mut self.raw[self.end..];
        let count = self.inner.receive(&mut [In::bytes(into)], waits)?;
        if count == 0 {
            return Err(self.broken(TlsError::Cut.into()));
        }
        self.end += count;
        if std::mem::take(&mut self.untried) && self.raw[self.start] == MAGIC[0] {
            return Err(self.not_encrypted());
        }
        Ok(())
    }

    /// Decrypts records until `into` is full, or no whole one is left; says how many bytes it was given.
    fn open(&mut self, into: &mut [In<'_>]) -> io::Result<usize> {
        let mut place = Place::default();
        let mut given = iov::scatter(into, &mut place, &self.plain[self.given..]);
        self.given += given;
        while !self.broken && self.given == self.plain.len() {
            self.plain.clear();
            self.given = 0;
            let plain = &mut self.plain;
            let deliver = |content: &[u8]| {
                let count = iov::scatter(into, &mut place, content);
                plain.extend_from_slice(&content[count..]);
                given += count;
            };
            let incoming = &mut self.raw[self.start..self.end];
            let (done, more) = self.session.step(incoming, &mut self.outgoing, deliver);
            self.start += done;
            match more {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    self.fault = Some(self.failed(error));
                    break;
                }
            }
        }
        match self.fault.take_if(|_| given == 0) {
            Some(fault) => Err(fault),
            None => Ok(given),
        }
    }

    /// Tells the peer why this end goes no further.
    fn failed(&mut self, error: rustls::Error) -> io::Error {
        // Over the same bytes: the session has counted those of a message that is not whole, and panics over less.
        let incoming = &mut self.raw[self.start..self.end];
        let _ = self.session.step(incoming, &mut self.outgoing, |_| {});
        let _ = self.push(Waits::No);
        self.broken(TlsError::from(error).into())
    }

    /// The other end is Ferry, and does not speak TLS: no record begins like that. A source hears why, in its own
    /// terms.
    fn not_encrypted(&mut self) -> io::Error {
        let error = match self.session.is_client() {
            true => TlsError::PlainReceiver,
            false => {
                let mut bytes = preamble::ours().to_vec();
                let reason = "this receiver takes guests over TLS alone; give `ferry migrate` (or `ferry run` before it) \
                              --tls DIR with a certificate of the receiver's CA";
                if codec::encode(&Frame::Refuse(reason.into()), &mut bytes).is_ok() {
                    // Nothing else was sent, so there is room. If not, it only sees the end.
                    let _ = self.inner.send(&[Out::bytes(&bytes)], Waits::No);
                }
                TlsError::PlainSource
            }
        };
        self.broken(error.into())
    }

    /// Tells the peer that this is the end, unless what it was sent before is not whole.
    fn say_goodbye(&mut self) {
        let ready = !self.broken && !self.session.common().is_handshaking();
        if ready && self.outgoing.is_empty() {
            // If there is no room for it the peer sees a cut. It has no better news coming.
            let _ = self.write(|_| Wish::Goodbye);
            let _ = self.push(Waits::No);
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
            match self.push(Waits::No).1 {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Some(Wait::Send));
                }
                Err(error) => return Err(error),
            }
            if !self.session.common().is_handshaking() {
                self.identity = credentials::identity(self.session.common());
                return Ok(None);
            }
            self.open(&mut [])?;
            if !self.outgoing.is_empty() || !self.session.common().is_handshaking() {
                continue;
            }
            match self.fill(Waits::No) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Some(Wait::Receive));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn send(&mut self, from: &[Out<'_>], waits: Waits) -> io::Result<usize> {
        self.sound()?;
        self.push(waits).1?;
        // Asked before there is a record that would have to go: after this the socket takes at least a byte of it.
        if !has_room(self.inner.poll_fd())? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let sealed = match self.seal(from) {
            Ok(sealed) => sealed,
            // What is in it may be part of a record.
            Err(error) => return Err(self.broken(error.into())),
        };
        match self.push(waits) {
            (0, Err(error)) if self.broken => Err(error),
            // Whatever is wrong with the rest shows with the next call.
            _ => Ok(sealed),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sound()?;
        self.push(Waits::No).1
    }

    fn receive(&mut self, into: &mut [In<'_>], waits: Waits) -> io::Result<usize> {
        let mut given = self.open(into)?;
        if given == 0 && !self.session.has_ended() {
            self.sound()?;
            self.fill(waits)?;
            given = self.open(into)?;
        }
        if given > 0 || self.session.has_ended() {
            return Ok(given);
        }
        self.sound()?;
        // A record that is not whole, or an empty one. Who dribbles them is waited for by the channel, which knows how
        // long, and hears a cancel.
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn discard(&mut self, sink: &mut [u8]) -> io::Result<usize> {
        self.inner.receive(&mut [In::bytes(sink)], Waits::No)
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

    fn limit_unsent(&self, bytes: u32) {
        self.inner.limit_unsent(bytes);
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

/// Whether a socket takes bytes right now; also where it would answer with an error.
fn has_room(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let mut fds = [PollFd::new(socket, PollFlags::POLLOUT)];
    Ok(poll(&mut fds, PollTimeout::ZERO)? > 0)
}

#[cfg(test)]
mod tests;
