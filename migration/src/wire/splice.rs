//! Guest memory by reference into a socket: vmsplice(2) hands its pages to a pipe, splice(2) moves them on,
//! and nothing is copied on this side. A page may change until it has left; before the stop of the vCPUs the
//! dirty log then names it again, and after it nothing writes.
#![allow(unsafe_code, reason = "hands addresses of guest memory to vmsplice(2)")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;

use super::iov::{MAX_PIECES, Out};

/// Room for a whole batch of pages. What an ordinary user may ask for: /proc/sys/fs/pipe-max-size.
const CAPACITY: i32 = 1 << 20;

/// A pipe in front of a socket.
#[derive(Debug)]
pub struct Splice {
    from: OwnedFd,
    to: OwnedFd,
    /// Bytes in the pipe.
    waiting: usize,
}

impl Splice {
    /// A pipe with room for a batch.
    ///
    /// # Errors
    /// The process or the user has no more pipes, or none of that size.
    pub fn new() -> io::Result<Self> {
        let (from, to) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        fcntl(&to, FcntlArg::F_SETPIPE_SZ(CAPACITY))?;
        Ok(Self {
            from,
            to,
            waiting: 0,
        })
    }

    /// Takes some of the pieces and passes on what the socket has room for; says how many bytes were taken.
    ///
    /// # Errors
    /// `WouldBlock` while the socket has no room for what was taken before, else as splice(2); nothing was
    /// taken.
    pub fn send(&mut self, socket: BorrowedFd<'_>, pieces: &[Out<'_>]) -> io::Result<usize> {
        self.flush(socket)?;
        let count = self.take(pieces)?;
        self.waiting += count;
        match self.flush(socket) {
            // What stays in the pipe goes first next time.
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(count),
        }
    }

    /// Passes on what waits in the pipe.
    ///
    /// # Errors
    /// `WouldBlock` while the socket has no room for all of it, else as splice(2).
    pub fn flush(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        while self.waiting > 0 {
            match splice(&self.from, None, socket.as_fd(), None, self.waiting, flags)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => self.waiting -= count,
            }
        }
        Ok(())
    }

    /// One vmsplice(2) into the empty pipe.
    fn take(&self, pieces: &[Out<'_>]) -> io::Result<usize> {
        let count = pieces.len().min(MAX_PIECES);
        // SAFETY: the descriptor is open while `self` lives. `pieces` are transparent iovecs that the kernel
        // only reads, each over memory that is mapped for its lifetime; the kernel takes its own reference to
        // each page, so the bytes stay readable in the pipe even if the mapping goes. They may change there,
        // which the module's first lines allow for.
        let taken = unsafe {
            libc::vmsplice(
                self.to.as_raw_fd(),
                pieces.as_ptr().cast(),
                count,
                libc::SPLICE_F_NONBLOCK,
            )
        };
        usize::try_from(taken).map_err(|_| io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::wire::iov::advance_out;

    #[test]
    fn more_than_pipe_and_socket_hold_arrives_whole() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut peer = listener.accept().unwrap().0;
        let bytes: Vec<u8> = (0..64u32 << 18).flat_map(u32::to_le_bytes).collect();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            peer.read_to_end(&mut all).unwrap();
            all
        });
        let mut splice = Splice::new().unwrap();
        let mut pieces: Vec<_> = bytes.chunks(4096).map(Out::bytes).collect();
        let mut rest = &mut pieces[..];
        let mut blocked = 0;
        while !rest.is_empty() {
            match splice.send(socket.as_fd(), rest) {
                Ok(count) => rest = advance_out(rest, count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    blocked += 1;
                    std::thread::yield_now();
                }
                Err(error) => panic!("{error}"),
            }
        }
        while splice.flush(socket.as_fd()).is_err() {
            std::thread::yield_now();
        }
        drop(socket);
        let got = reader.join().unwrap();
        assert!(got == bytes, "{} of {} bytes", got.len(), bytes.len());
        assert!(blocked > 0, "64 MiB never filled the socket");
    }
}
