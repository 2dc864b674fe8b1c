//! What TCP carries between two threads: no protocol, no guest, the bytes alone.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Barrier;
use std::time::Instant;

use nix::fcntl::{FcntlArg, SpliceFFlags, fcntl, splice, vmsplice};
use nix::sys::socket::{getsockopt, setsockopt, sockopt::TcpCongestion};

use super::memory::Buffer;

/// Bytes of one system call.
const BLOCK: usize = 1 << 20;

/// How the sender hands bytes to the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// `write`: the kernel copies them.
    Write,
    /// `vmsplice` into a pipe and `splice` from there: the kernel sends the pages themselves.
    Vmsplice,
}

impl By {
    /// As the names of limits have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Vmsplice => "vmsplice",
        }
    }
}

/// Connected pairs, sender first.
pub type Streams = Vec<(TcpStream, TcpStream)>;

/// The congestion control that the system gives without being asked.
pub fn default_congestion(socket: &TcpStream) -> io::Result<String> {
    let name = getsockopt(socket, TcpCongestion)?;
    Ok(name.to_string_lossy().trim_end_matches('\0').to_owned())
}

/// Connects `count` streams to the listener, by `connect`, with the given congestion control or the system's.
///
/// # Errors
/// They cannot be had.
pub fn connect(
    listener: &TcpListener,
    count: usize,
    congestion: Option<&str>,
    connect: impl Fn() -> io::Result<TcpStream>,
) -> io::Result<Streams> {
    let one = |_| {
        let sender = connect()?;
        let (receiver, _) = listener.accept()?;
        if let Some(name) = congestion {
            setsockopt(&sender, TcpCongestion, &name.into())?;
        }
        Ok((sender, receiver))
    };
    (0..count).map(one).collect()
}

/// Sends `from` over the streams, each a part of it, into `to`: bytes a second from the first to the last.
///
/// # Errors
/// A socket fails.
pub fn rate(streams: Streams, from: &Buffer, to: &mut Buffer, by: By) -> io::Result<f64> {
    let bytes = from.bytes().len();
    let share = bytes.div_ceil(streams.len()).next_multiple_of(BLOCK);
    let start = Barrier::new(streams.len() * 2 + 1);
    let parts = from
        .bytes()
        .chunks(share)
        .zip(to.bytes_mut().chunks_mut(share));
    std::thread::scope(|scope| {
        let mut workers = Vec::new();
        for ((sender, mut receiver), (from, to)) in streams.into_iter().zip(parts) {
            let start = &start;
            workers.push(scope.spawn(move || {
                start.wait();
                match by {
                    By::Write => by_write(sender, from),
                    By::Vmsplice => by_vmsplice(&sender, from),
                }
            }));
            workers.push(scope.spawn(move || {
                start.wait();
                (to.chunks_mut(BLOCK)).try_for_each(|block| receiver.read_exact(block))
            }));
        }
        start.wait();
        let began = Instant::now();
        for worker in workers {
            let ended = worker.join();
            ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(bytes as f64 / began.elapsed().as_secs_f64())
    })
}

fn by_write(mut socket: TcpStream, from: &[u8]) -> io::Result<()> {
    from.chunks(BLOCK)
        .try_for_each(|block| socket.write_all(block))
}

fn by_vmsplice(socket: &TcpStream, from: &[u8]) -> io::Result<()> {
    let (out, into) = nix::unistd::pipe()?;
    let (out, into) = (File::from(out), File::from(into));
    fcntl(&into, FcntlArg::F_SETPIPE_SZ(1 << 20))?;
    let mut left = from;
    while !left.is_empty() {
        let block = &left[..left.len().min(BLOCK)];
        let taken = vmsplice(into.as_fd(), &[IoSlice::new(block)], SpliceFFlags::empty())?;
        let mut inside = taken;
        while inside > 0 {
            let more = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_MORE;
            inside -= splice(out.as_fd(), None, socket.as_fd(), None, inside, more)?;
        }
        left = &left[taken..];
    }
    Ok(())
}
