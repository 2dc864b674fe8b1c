//! What carries the bytes, and how a source gets at it. A transport is a stream socket today; an encrypted
//! stream fits behind the same trait.

use std::fmt::Debug;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use socket2::SockRef;

use super::iov::{self, In, Out};

/// A connected byte stream that never blocks: waiting is the channel's work, so that it can be cancelled.
pub trait Transport: Send + Debug {
    /// Makes the stream ready for a move: non-blocking, no delay of small frames, and a kernel that gives up
    /// on data not acknowledged for `peer_timeout`.
    ///
    /// # Errors
    /// The stream does not take one of the settings.
    fn prepare(&self, peer_timeout: Duration) -> io::Result<()>;

    /// Takes some of the bytes; says how many. An error means that not one of them was taken.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room, else as the stream has it.
    fn send(&mut self, from: &[Out<'_>]) -> io::Result<usize>;

    /// Gives some bytes; says how many, 0 at the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` when there are none, else as the stream has it.
    fn receive(&mut self, into: &mut [In<'_>]) -> io::Result<usize>;

    /// What poll(2) waits on.
    fn poll_fd(&self) -> BorrowedFd<'_>;

    /// Ends one direction, or both; the peer sees the end of the stream behind what was sent.
    fn shutdown(&self, how: Shutdown);
}

impl Transport for TcpStream {
    fn prepare(&self, peer_timeout: Duration) -> io::Result<()> {
        self.set_nonblocking(true)?;
        self.set_nodelay(true)?;
        SockRef::from(self).set_tcp_user_timeout(Some(peer_timeout))
    }

    fn send(&mut self, from: &[Out<'_>]) -> io::Result<usize> {
        iov::send(self.as_fd(), from)
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

    fn send(&mut self, from: &[Out<'_>]) -> io::Result<usize> {
        iov::send(self.as_fd(), from)
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
