//! A TCP connection to which guest memory is lent: the kernel is given the pages themselves instead of bytes to copy.
//!
//! vmsplice(2) puts references to pages into a pipe, splice(2) moves them on to the socket. What a page holds may still
//! change then, until the peer has read it. For a guest's pages that is as good as a copy: they were armed in the dirty
//! log before they were looked at, so what is written to them from then on goes once more, behind it; and once the guest
//! stands still nothing is written to them before the peer has said that it has all. If the move fails then, the peer
//! throws away what it has. The kernel holds on to each page: given back by a balloon, or no longer mapped by anybody, it
//! is nobody else's before the peer has read it.
//!
//! A peer that is gone makes splice(2) raise SIGPIPE, as no flag forbids there: programs in Rust ignore it.
//!
//! Where it is slower than copying, bytes are copied ([`Trial`]); also where a pipe cannot be had.

mod trial;

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;

use self::trial::{Trial, Way};
use super::iov::{self, Follows, In, Out, Waits};
use super::transport::Transport;

/// Bytes that a pipe holds: the pages behind a PAGES frame. As much as everyone may have
/// (/proc/sys/fs/pipe-max-size), but not without end (pipe-user-pages-soft).
const PIPE: i32 = 1 << 20;
/// Less is copied: two system calls more cost as much as that.
const WORTHWHILE: usize = 16 << 10;

/// A connection to which memory may be lent.
#[derive(Debug)]
pub(super) struct Lending {
    stream: TcpStream,
    pipe: Lazy,
    trial: Trial,
}

/// A pipe is made when it is needed first: many connections never carry a page.
#[derive(Debug)]
enum Lazy {
    Unmade,
    Made(Pipe),
    /// There is none to be had, or memory cannot go through it.
    Refused,
}

/// Pages on their way to the socket.
#[derive(Debug)]
struct Pipe {
    end: OwnedFd,
    start: OwnedFd,
    /// Bytes in it.
    held: usize,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (end, start) = pipe2(OFlag::O_CLOEXEC)?;
        fcntl(&start, FcntlArg::F_SETPIPE_SZ(PIPE))?;
        Ok(Self {
            end,
            start,
            held: 0,
        })
    }

    /// Hands on what it holds. An error means that it still holds some.
    fn drain(&mut self, into: &TcpStream, follows: Follows) -> io::Result<()> {
        let flags = match follows {
            Follows::More => SpliceFFlags::SPLICE_F_MORE,
            Follows::Nothing => SpliceFFlags::empty(),
        };
        while self.held > 0 {
            match splice(&self.end, None, into, None, self.held, flags)? {
                0 => return Err(io::ErrorKind::BrokenPipe.into()),
                count => self.held -= count,
            }
        }
        Ok(())
    }
}

impl From<TcpStream> for Lending {
    fn from(stream: TcpStream) -> Self {
        Self {
            stream,
            pipe: Lazy::Unmade,
            trial: Trial::new(),
        }
    }
}

impl Lending {
    /// Sends of the first pieces those that are of one kind.
    fn send_by_kind(&mut self, from: &[Out<'_>], waits: Waits) -> io::Result<usize> {
        let kind = from.first().is_some_and(Out::may_be_lent);
        let alike = from.iter().take(iov::MAX_PIECES);
        let alike = alike.take_while(|piece| piece.may_be_lent() == kind);
        let (pieces, rest) = from.split_at(alike.count());
        let follows = match rest {
            [] => Follows::Nothing,
            _ => Follows::More,
        };
        let lent = match kind {
            true => self.lend(pieces, follows),
            false => None,
        };
        lent.unwrap_or_else(|| iov::send(self.stream.as_fd(), pieces, waits, follows))
    }

    /// Lends the pieces, as many bytes as fit into the pipe; says how many, `None` where that cannot be done.
    fn lend(&mut self, pieces: &[Out<'_>], follows: Follows) -> Option<io::Result<usize>> {
        if matches!(self.pipe, Lazy::Unmade) {
            self.pipe = Pipe::new().map_or(Lazy::Refused, Lazy::Made);
        }
        let Lazy::Made(pipe) = &mut self.pipe else {
            return None;
        };
        match iov::lend(pipe.start.as_fd(), pieces) {
            Ok(count) if count > 0 => pipe.held = count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Some(Err(error)),
            // Nothing is in it, and nothing will ever be.
            _ => {
                self.pipe = Lazy::Refused;
                return None;
            }
        }
        let taken = pipe.held;
        let bytes: usize = pieces.iter().map(Out::len).sum();
        let follows = if taken < bytes {
            Follows::More
        } else {
            follows
        };
        match pipe.drain(&self.stream, follows) {
            Err(error) if !is_passing(&error) => Some(Err(error)),
            // What has no room yet is held back.
            _ => Some(Ok(taken)),
        }
    }
}

/// Whether the same call may succeed later.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

impl Transport for Lending {
    fn prepare(&self, peer_timeout: Duration) -> io::Result<()> {
        self.stream.prepare(peer_timeout)
    }

    fn send(&mut self, from: &[Out<'_>], waits: Waits) -> io::Result<usize> {
        if let Lazy::Made(pipe) = &mut self.pipe {
            pipe.drain(&self.stream, Follows::More)?;
        }
        let lendable: usize = (from.iter().filter(|piece| piece.may_be_lent()))
            .map(Out::len)
            .sum();
        // splice(2) waits as the socket says, so not where nothing may wait.
        let copied = lendable < WORTHWHILE || waits == Waits::No;
        if copied || matches!(self.pipe, Lazy::Refused) {
            return iov::send(self.stream.as_fd(), from, waits, Follows::Nothing);
        }
        let taken = match self.trial.way() {
            Way::Lent => self.send_by_kind(from, waits)?,
            Way::Copied => iov::send(self.stream.as_fd(), from, waits, Follows::Nothing)?,
        };
        self.trial.sent(taken, Instant::now());
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.pipe {
            Lazy::Made(pipe) => pipe.drain(&self.stream, Follows::Nothing),
            Lazy::Unmade | Lazy::Refused => Ok(()),
        }
    }

    fn receive(&mut self, into: &mut [In<'_>], waits: Waits) -> io::Result<usize> {
        self.stream.receive(into, waits)
    }

    fn shared_processor(&self) -> Option<usize> {
        self.stream.shared_processor()
    }

    fn share_processor(&self) {
        self.stream.share_processor();
    }

    fn limit_unsent(&self, bytes: u32) {
        self.stream.limit_unsent(bytes);
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    fn shutdown(&mut self, how: Shutdown) {
        Transport::shutdown(&mut self.stream, how);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;
    use std::thread;

    use super::*;
    use crate::wire::iov::advance_out;

    fn pair() -> (Lending, TcpStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let lending = Lending::from(stream);
        lending.prepare(Duration::from_secs(5)).unwrap();
        (lending, listener.accept().unwrap().0)
    }

    /// Other bytes at each place.
    fn memory(bytes: usize) -> Vec<u8> {
        let words = u32::try_from(bytes / 4).unwrap();
        (0..words).flat_map(u32::to_le_bytes).collect()
    }

    /// Sends all as a channel does.
    fn send_all(lending: &mut Lending, mut rest: &mut [Out<'_>], waits: Waits) {
        loop {
            let done = rest.is_empty();
            let sent = match done {
                false => lending.send(rest, waits),
                true => lending.flush().map(|()| 0),
            };
            match sent {
                Ok(_) if done => return,
                Ok(count) => rest = advance_out(rest, count),
                Err(error) => assert!(is_passing(&error), "{error}"),
            }
        }
    }

    /// What is lent, what is copied and what is held back arrive in the order in which they were sent, whatever their
    /// lengths and places in a page.
    #[test]
    fn all_arrives_in_its_order() {
        let (mut lending, mut peer) = pair();
        let memory = memory(9 << 20);
        let lengths = [
            24,
            1 << 20,
            24,
            4096,
            24,
            3_000_001,
            7,
            1,
            65_537,
            24,
            WORTHWHILE,
            16,
            2 << 20,
        ];
        let (mut wanted, mut at) = (Vec::new(), 0);
        for (index, &len) in lengths.iter().enumerate() {
            wanted.push((&memory[at..at + len], index % 2 == 1));
            at += len;
        }
        let bytes = at;
        thread::scope(|scope| {
            let reader = scope.spawn(move || {
                let mut came = vec![0; bytes];
                // Some of it only once the sender has no room.
                peer.read_exact(&mut came[..100]).unwrap();
                thread::sleep(Duration::from_millis(100));
                peer.read_exact(&mut came[100..]).unwrap();
                came
            });
            for frame in wanted.chunks(2) {
                let piece = |&(bytes, lendable)| match lendable {
                    true => Out::filler(bytes),
                    false => Out::bytes(bytes),
                };
                let mut pieces: Vec<_> = frame.iter().map(piece).collect();
                send_all(&mut lending, &mut pieces, Waits::Yes);
            }
            assert!(reader.join().unwrap() == memory[..bytes]);
        });
        assert!(matches!(lending.pipe, Lazy::Made(Pipe { held: 0, .. })));
    }

    /// Pages that lie apart go in one piece; more of them than a pipe or a call takes follow.
    #[test]
    fn scattered_pages_are_lent_together() {
        let (mut lending, mut peer) = pair();
        let memory = memory(3 * 4096 * (iov::MAX_PIECES + 100));
        let pages = || memory.chunks(3 * 4096).map(|three| &three[..4096]);
        let wanted: Vec<u8> = pages().flatten().copied().collect();
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut came = vec![0; wanted.len()];
                peer.read_exact(&mut came).unwrap();
                came
            });
            let mut pieces: Vec<_> = pages().map(Out::filler).collect();
            send_all(&mut lending, &mut pieces, Waits::Yes);
            assert!(reader.join().unwrap() == wanted);
        });
    }

    /// What was taken is not lost where the reader is late.
    #[test]
    fn what_has_no_room_is_held_back() {
        let (mut lending, mut peer) = pair();
        let memory = memory(1 << 20);
        let mut taken = Vec::new();
        let full = loop {
            match lending.send(&[Out::filler(&memory)], Waits::Yes) {
                Ok(count) => taken.extend_from_slice(&memory[..count]),
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(
            lending.flush().unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        thread::scope(|scope| {
            let reader = scope.spawn(move || {
                let mut came = Vec::new();
                peer.read_to_end(&mut came).unwrap();
                came
            });
            send_all(&mut lending, &mut [Out::bytes(b"last")], Waits::No);
            Transport::shutdown(&mut lending, Shutdown::Write);
            taken.extend_from_slice(b"last");
            assert!(reader.join().unwrap() == taken);
        });
    }

    /// A pipe that cannot be had, or memory that it does not take, is no reason to fail.
    #[test]
    fn without_a_pipe_bytes_are_copied() {
        let (mut lending, mut peer) = pair();
        lending.pipe = Lazy::Refused;
        let memory = memory(1 << 18);
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut came = vec![0; memory.len()];
                peer.read_exact(&mut came).unwrap();
                came
            });
            send_all(&mut lending, &mut [Out::filler(&memory)], Waits::Yes);
            assert!(reader.join().unwrap() == memory);
        });
    }

    #[test]
    fn a_peer_that_is_gone_is_an_error() {
        let (mut lending, peer) = pair();
        drop(peer);
        let memory = memory(1 << 20);
        let error = (0..64).find_map(|_| lending.send(&[Out::filler(&memory)], Waits::Yes).err());
        assert!(!is_passing(&error.unwrap()));
    }
}
