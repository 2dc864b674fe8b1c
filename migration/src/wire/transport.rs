//! What carries the bytes, and how a source gets at it: a stream socket, or an encrypted stream over one
//! ([`tls`](super::tls)).

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

use super::iov::{self, Follows, In, Out, Waits};

/// What a sender may have under way to a processor that it shares, in bytes; the kernel doubles it (socket(7)). With
/// less the two ends take turns more often, with more it no longer lies in the processor's cache (docs/performance.md);
/// and Linux allows as much without being told otherwise (net.core.wmem_max).
const SHARED_BUFFER: usize = 208 << 10;

/// Congestion control of streams that do not leave this host.
const LOOPBACK_CONGESTION: &[u8] = b"reno";

/// What a transport has to be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Until it takes bytes.
    Send,
    /// Until bytes have come.
    Receive,
}

/// Who the other end of a stream has proved to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The first name in its certificate.
    pub name: String,
    /// The certificate itself, as DER.
    pub certificate: Vec<u8>,
}

/// Bytes of a file, in front of its end mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// How many.
    pub bytes: u64,
    /// XXH3 of them, 64 bits, seed 0.
    pub digest: u64,
}

/// A connected byte stream that hardly ever blocks: waiting for long is the channel's work, so that it can be
/// cancelled. A call may be allowed to wait a little ([`Waits::Yes`]: [`LINGER`]), which the kernel does at less cost
/// than poll(2) and another call; a stream need not.
pub trait Transport: Send + Debug {
    /// Makes the stream ready for a move: no long waits, no delay of small frames, and a kernel that gives up
    /// on data not acknowledged for `peer_timeout`.
    ///
    /// # Errors
    /// The stream does not take one of the settings.
    fn prepare(&self, peer_timeout: Duration) -> io::Result<()>;

    /// Gets on with what has to happen before the first byte can go; what has to be waited for then, or `None` when all
    /// is done.
    ///
    /// # Errors
    /// The other end is not the right one, or gone.
    fn handshake(&mut self) -> io::Result<Option<Wait>> {
        Ok(None)
    }

    /// Takes some of the bytes; says how many. An error means that not one of them was taken, and none will ever
    /// arrive. Bytes taken may need [`flush`](Self::flush) to get out.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room, else as the stream has it.
    fn send(&mut self, from: &[Out<'_>], waits: Waits) -> io::Result<usize>;

    /// Hands on what was taken and is still held back.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room for all of it, else as the stream has it.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Gives some bytes; says how many, 0 at the end of the stream. Bytes may have come that [`poll_fd`](Self::poll_fd)
    /// knows nothing of any more: ask here before waiting there.
    ///
    /// # Errors
    /// `WouldBlock` when there are none, else as the stream has it.
    fn receive(&mut self, into: &mut [In<'_>], waits: Waits) -> io::Result<usize>;

    /// Receives bytes that nobody wants to know; `sink` is only room for them. Says how many, 0 at the end of the
    /// stream.
    ///
    /// # Errors
    /// As [`receive`](Self::receive), but also works where nothing can be understood any more.
    fn discard(&mut self, sink: &mut [u8]) -> io::Result<usize> {
        self.receive(&mut [In::bytes(sink)], Waits::No)
    }

    /// Who the other end has proved to be, where it had to.
    fn identity(&self) -> Option<&Identity> {
        None
    }

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

    /// The processor on which the last bytes came in, over loopback: there it is the one that sent them.
    fn shared_processor(&self) -> Option<usize> {
        None
    }

    /// Lets little be under way at a time, where both ends run on one processor: so it is still in that one's cache
    /// when it is read, and the kernel takes it in at once instead of leaving it to a thread that a busy host keeps
    /// waiting. Ends with a processor each would wait for each other. It is a wish.
    fn share_processor(&self) {}

    /// Takes no more than so many bytes that cannot go yet; what is under way does not count. A page that only waits in
    /// the kernel is sent as it was when it was taken, and what the guest writes to it meanwhile has to be sent again.
    /// It is a wish.
    fn limit_unsent(&self, bytes: u32) {
        let _ = bytes;
    }

    /// Where bytes are kept instead of carried: makes what was taken so far last.
    ///
    /// # Errors
    /// As the file has it.
    fn settle(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Where bytes are kept instead of carried: how many there are in front of the end mark, and their digest.
    fn kept(&self) -> Option<Kept> {
        None
    }

    /// What poll(2) waits on.
    fn poll_fd(&self) -> BorrowedFd<'_>;

    /// Ends one direction, or both; the peer sees the end of the stream behind what was sent.
    fn shutdown(&mut self, how: Shutdown);
}

/// How long a call may wait in the kernel, where nothing but the socket wakes it: a cancel is noticed so much later.
const LINGER: Duration = Duration::from_millis(20);

/// Has calls wait for [`LINGER`] at most, but for those that are told not to.
fn linger(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(LINGER))?;
    socket.set_write_timeout(Some(LINGER))
}

impl Transport for TcpStream {
    fn prepare(&self, peer_timeout: Duration) -> io::Result<()> {
        let socket = SockRef::from(self);
        linger(&socket)?;
        self.set_nodelay(true)?;
        if self.peer_addr().is_ok_and(|peer| peer.ip().is_loopback()) {
            // Nothing is congested on the way to oneself, and BBR, the choice of some systems, paces there for nothing.
            // Reno is in every Linux, and free to all: any other may be refused to a process without capabilities. It
            // is a wish.
            let _ = socket.set_tcp_congestion(LOOPBACK_CONGESTION);
        }
        // Where nothing is under way that could stay unacknowledged, the kernel asks by itself: a stream that waits for
        // its next page notices a dead host too. Its unit is a second.
        let between = Duration::from_secs((peer_timeout.as_secs() / 3).max(1));
        let keepalive = TcpKeepalive::new()
            .with_time(between)
            .with_interval(between);
        socket.set_tcp_keepalive(&keepalive.with_retries(2))?;
        socket.set_tcp_user_timeout(Some(peer_timeout))
    }

    fn send(&mut self, from: &[Out<'_>], waits: Waits) -> io::Result<usize> {
        iov::send(self.as_fd(), from, waits, Follows::Nothing)
    }

    fn receive(&mut self, into: &mut [In<'_>], waits: Waits) -> io::Result<usize> {
        iov::receive(self.as_fd(), into, waits)
    }

    fn shared_processor(&self) -> Option<usize> {
        let peer = self.peer_addr().ok()?;
        let cpu = || SockRef::from(self).cpu_affinity().ok();
        peer.ip().is_loopback().then(cpu)?
    }

    fn share_processor(&self) {
        let _ = SockRef::from(self).set_send_buffer_size(SHARED_BUFFER);
    }

    fn limit_unsent(&self, bytes: u32) {
        // TCP_NOTSENT_LOWAT, tcp(7): calls that wait and poll(2) go by it alike.
        let _ = SockRef::from(self).set_tcp_notsent_lowat(bytes);
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }

    fn shutdown(&mut self, how: Shutdown) {
        // An error means that the stream is already gone.
        let _ = TcpStream::shutdown(self, how);
    }
}

impl Transport for UnixStream {
    fn prepare(&self, _peer_timeout: Duration) -> io::Result<()> {
        linger(&SockRef::from(self))
    }

    fn send(&mut self, from: &[Out<'_>], waits: Waits) -> io::Result<usize> {
        iov::send(self.as_fd(), from, waits, Follows::Nothing)
    }

    fn receive(&mut self, into: &mut [In<'_>], waits: Waits) -> io::Result<usize> {
        iov::receive(self.as_fd(), into, waits)
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }

    fn shutdown(&mut self, how: Shutdown) {
        // An error means that the stream is already gone.
        let _ = UnixStream::shutdown(self, how);
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Whoever makes a stream ready holds no capability, and may not choose freely.
    #[test]
    fn over_loopback_no_stream_is_paced() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.prepare(Duration::from_secs(5)).unwrap();
        let congestion = SockRef::from(&stream).tcp_congestion().unwrap();
        assert!(congestion.starts_with(b"reno"), "{congestion:?}");
    }

    /// A call that waits does not do so for long; one that does not wait never does.
    #[test]
    fn a_call_waits_a_little_or_not_at_all() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let mut tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _peer = listener.accept().unwrap();
        let (mut unix, _other) = UnixStream::pair().unwrap();
        let both: [&mut dyn Transport; 2] = [&mut tcp, &mut unix];
        for transport in both {
            transport.prepare(Duration::from_secs(5)).unwrap();
            let mut byte = [0];
            let none = transport.receive(&mut [In::bytes(&mut byte)], Waits::No);
            assert_eq!(none.unwrap_err().kind(), io::ErrorKind::WouldBlock);
            let none = transport.receive(&mut [In::bytes(&mut byte)], Waits::Yes);
            assert_eq!(none.unwrap_err().kind(), io::ErrorKind::WouldBlock);
            let much = vec![0; 1 << 20];
            let full =
                (0..1024).find_map(|_| transport.send(&[Out::bytes(&much)], Waits::Yes).err());
            assert_eq!(full.unwrap().kind(), io::ErrorKind::WouldBlock);
            let full =
                (0..1024).find_map(|_| transport.send(&[Out::bytes(&much)], Waits::No).err());
            assert_eq!(full.unwrap().kind(), io::ErrorKind::WouldBlock);
        }
    }

    /// Ends with a processor each would stand still in turns if little were under way: 776 ms a GiB instead of 300.
    #[test]
    fn little_is_under_way_only_where_ends_share_a_processor() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let buffer = || SockRef::from(&stream).send_buffer_size().unwrap();
        let usual = buffer();
        stream.prepare(Duration::from_secs(5)).unwrap();
        assert_eq!(buffer(), usual);
        stream.share_processor();
        // The kernel doubles it.
        assert_eq!(buffer(), 2 * SHARED_BUFFER);
    }

    /// Only what has left does not count: nobody reads here, so a window of the receiver's goes, and then no more.
    #[test]
    fn little_waits_in_the_kernel_where_that_is_wished() {
        let taken = |limit: Option<u32>| {
            let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
            SockRef::from(&listener)
                .set_recv_buffer_size(64 << 10)
                .unwrap();
            let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let _peer = listener.accept().unwrap();
            stream.prepare(Duration::from_secs(5)).unwrap();
            if let Some(bytes) = limit {
                stream.limit_unsent(bytes);
            }
            let much = vec![0; 16 << 10];
            let sent = std::iter::from_fn(|| stream.send(&[Out::bytes(&much)], Waits::No).ok());
            sent.sum::<usize>()
        };
        let (usual, limited) = (taken(None), taken(Some(64 << 10)));
        assert!(
            limited < 512 << 10 && usual > 1 << 20,
            "{limited} of {usual}"
        );
    }
}
