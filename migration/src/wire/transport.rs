//! What carries the bytes, and how a source gets at it. A transport is a stream socket today; an encrypted
//! stream fits behind the same trait.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use socket2::SockRef;

use super::iov::{self, In, Out};
use super::splice::Splice;

/// A connected byte stream that never blocks: waiting is the channel's work, so that it can be cancelled.
pub trait Transport: Send + Debug {
    /// Makes the stream ready for a move: non-blocking, no delay of small frames, and a kernel that gives up
    /// on data not acknowledged for `peer_timeout`.
    ///
    /// # Errors
    /// The stream does not take one of the settings.
    fn prepare(&self, peer_timeout: Duration) -> io::Result<()>;

    /// Takes some of the bytes; says how many. An error means that not one of them was taken. `more`: others
    /// follow at once, so a small piece need not leave alone.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room, else as the stream has it.
    fn send(&mut self, from: &[Out<'_>], more: bool) -> io::Result<usize>;

    /// As [`send`](Self::send), for guest memory, which may be taken by reference: it stays mapped for as long
    /// as the kernel needs it, and may change until it has left. Nothing else may be sent before
    /// [`flush`](Self::flush) has done its work.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    fn send_guest(&mut self, from: &[Out<'_>]) -> io::Result<usize> {
        self.send(from, false)
    }

    /// Passes on what was taken and did not leave yet.
    ///
    /// # Errors
    /// `WouldBlock` while there is no room for all of it, else as the stream has it.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Gives some bytes; says how many, 0 at the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` when there are none, else as the stream has it.
    fn receive(&mut self, into: &mut [In<'_>]) -> io::Result<usize>;

    /// Takes some of the bytes, with descriptors that come with the first of them; says how many.
    ///
    /// # Errors
    /// `Unsupported` where the peer is not surely on this host, else as [`send`](Self::send).
    fn send_files(&mut self, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<usize> {
        let _ = (bytes, files);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The descriptors that have come with bytes received so far.
    fn take_files(&mut self) -> Vec<File> {
        Vec::new()
    }

    /// What poll(2) waits on.
    fn poll_fd(&self) -> BorrowedFd<'_>;

    /// Ends one direction, or both; the peer sees the end of the stream behind what was sent.
    fn shutdown(&self, how: Shutdown);
}

impl Transport for TcpStream {
    fn prepare(&self, peer_timeout: Duration) -> io::Result<()> {
        self.set_nonblocking(true)?;
        self.set_nodelay(true)?;
        let socket = SockRef::from(self);
        if self.peer_addr().is_ok_and(|peer| peer.ip().is_loopback()) {
            // Nothing is congested on the way to oneself, and BBR's pacing halves what two streams carry
            // there. Where the system has no cubic, its own choice stays.
            let _ = socket.set_tcp_congestion(b"cubic");
        }
        socket.set_tcp_user_timeout(Some(peer_timeout))
    }

    fn send(&mut self, from: &[Out<'_>], more: bool) -> io::Result<usize> {
        iov::send(self.as_fd(), from, more)
    }

    fn receive(&mut self, into: &mut [In<'_>]) -> io::Result<usize> {
        iov::receive(self.as_fd(), into)
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }

    fn shutdown(&self, how: Shutdown) {
        // An error means that the stream is already gone.
        let _ = TcpStream::shutdown(self, how);
    }
}

impl Transport for UnixStream {
    fn prepare(&self, _peer_timeout: Duration) -> io::Result<()> {
        self.set_nonblocking(true)
    }

    fn send(&mut self, from: &[Out<'_>], more: bool) -> io::Result<usize> {
        iov::send(self.as_fd(), from, more)
    }

    fn receive(&mut self, into: &mut [In<'_>]) -> io::Result<usize> {
        iov::receive(self.as_fd(), into)
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }

    fn shutdown(&self, how: Shutdown) {
        // An error means that the stream is already gone.
        let _ = UnixStream::shutdown(self, how);
    }
}

/// A TCP stream that sends guest memory by reference; what a source uses.
#[derive(Debug)]
pub struct Spliced {
    stream: TcpStream,
    splice: Splice,
}

impl Spliced {
    /// Takes over a stream.
    ///
    /// # Errors
    /// There is no pipe to be had; the stream comes back and can be used as it is.
    pub fn new(stream: TcpStream) -> Result<Self, TcpStream> {
        match Splice::new() {
            Ok(splice) => Ok(Self { stream, splice }),
            Err(error) => {
                tracing::debug!("pages are copied into the socket: no pipe: {error}");
                Err(stream)
            }
        }
    }
}

impl Transport for Spliced {
    fn prepare(&self, peer_timeout: Duration) -> io::Result<()> {
        self.stream.prepare(peer_timeout)
    }

    fn send(&mut self, from: &[Out<'_>], more: bool) -> io::Result<usize> {
        self.stream.send(from, more)
    }

    fn send_guest(&mut self, from: &[Out<'_>]) -> io::Result<usize> {
        self.splice.send(self.stream.as_fd(), from)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.splice.flush(self.stream.as_fd())
    }

    fn receive(&mut self, into: &mut [In<'_>]) -> io::Result<usize> {
        self.stream.receive(into)
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.stream.poll_fd()
    }

    fn shutdown(&self, how: Shutdown) {
        Transport::shutdown(&self.stream, how);
    }
}
