//! Pieces of memory for one vectored system call: own bytes and guest memory side by side.
//!
//! Guest memory is written by vCPUs while the kernel reads it, so it is never a Rust slice. It stays an
//! address and a length from the `VolatileSlice` to the `iovec`.
#![allow(
    unsafe_code,
    reason = "hands addresses of guest memory to sendmsg(2) and recvmsg(2)"
)]

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// The most pieces that one call takes (IOV_MAX of Linux).
pub const MAX_PIECES: usize = 1024;

/// Memory to be sent.
#[derive(Debug, Clone, Copy)]
pub struct Out<'a> {
    piece: libc::iovec,
    lendable: bool,
    lives: PhantomData<&'a [u8]>,
}

/// Memory to be received into.
#[repr(transparent)]
#[derive(Debug)]
pub struct In<'a>(libc::iovec, PhantomData<&'a mut [u8]>);

fn iovec(base: *mut u8, len: usize) -> libc::iovec {
    libc::iovec {
        iov_base: base.cast(),
        iov_len: len,
    }
}

impl<'a> Out<'a> {
    /// Bytes of this process, which go as they are now.
    pub fn bytes(bytes: &'a [u8]) -> Self {
        // Never written through: only sendmsg(2) and `as_slice`-free reads see it.
        Self {
            piece: iovec(bytes.as_ptr().cast_mut(), bytes.len()),
            lendable: false,
            lives: PhantomData,
        }
    }

    /// Bytes of this process of which nobody minds what they are once the peer reads them.
    pub fn filler(bytes: &'a [u8]) -> Self {
        Self {
            lendable: true,
            ..Self::bytes(bytes)
        }
    }

    /// Guest memory, which goes as it is at some time until the peer reads it; see [`lending`](super::lending).
    pub fn guest<B: BitmapSlice>(slice: &VolatileSlice<'a, B>) -> Self {
        let guard = slice.ptr_guard();
        Self {
            piece: iovec(guard.as_ptr().cast_mut(), guard.len()),
            lendable: true,
            lives: PhantomData,
        }
    }

    /// Whether the kernel may be given the memory itself, to be read later.
    pub fn may_be_lent(&self) -> bool {
        self.lendable
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.piece.iov_len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<'a> In<'a> {
    /// A buffer of this process.
    pub fn bytes(bytes: &'a mut [u8]) -> Self {
        Self(iovec(bytes.as_mut_ptr(), bytes.len()), PhantomData)
    }

    /// Guest memory, written by the kernel. The caller sees to it that nothing relies on its old contents.
    pub fn guest<B: BitmapSlice>(slice: &VolatileSlice<'a, B>) -> Self {
        let guard = slice.ptr_guard_mut();
        Self(iovec(guard.as_ptr(), guard.len()), PhantomData)
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.0.iov_len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies as many bytes as fit and moves on behind them; says how many.
    pub fn fill(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.len());
        // SAFETY: `bytes` has at least `count` readable bytes. The piece was made from an exclusive slice or
        // from a mapped volatile slice that lives for 'a, so `count <= iov_len` bytes are writable. The two
        // do not overlap: `bytes` is a shared slice of this process, which neither an exclusive slice nor
        // guest memory can alias. Bytes have no alignment.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.iov_base.cast::<u8>(), count);
        }
        skip(&mut self.0, count);
        count
    }
}

/// Moves a piece's start by `count`, at most to its end.
fn skip(piece: &mut libc::iovec, count: usize) {
    let count = count.min(piece.iov_len);
    piece.iov_base = piece.iov_base.wrapping_byte_add(count);
    piece.iov_len -= count;
}

/// The pieces that are left once `count` bytes of them are done.
pub fn advance_out<'s, 'a>(mut pieces: &'s mut [Out<'a>], mut count: usize) -> &'s mut [Out<'a>] {
    while let Some(first) = pieces.first_mut() {
        if first.len() > count {
            skip(&mut first.piece, count);
            break;
        }
        count -= first.len();
        pieces = &mut pieces[1..];
    }
    pieces
}

/// The pieces that are left once `count` bytes of them are done.
pub fn advance_in<'s, 'a>(mut pieces: &'s mut [In<'a>], mut count: usize) -> &'s mut [In<'a>] {
    while let Some(first) = pieces.first_mut() {
        if first.len() > count {
            skip(&mut first.0, count);
            break;
        }
        count -= first.len();
        pieces = &mut pieces[1..];
    }
    pieces
}

/// How far a copy has come through a list of pieces.
#[derive(Debug, Clone, Copy, Default)]
pub struct Place {
    piece: usize,
    offset: usize,
}

impl Place {
    /// What is left of the piece at which it stands, the next if nothing is.
    fn rest(&mut self, pieces: impl Fn(usize) -> Option<libc::iovec>) -> Option<libc::iovec> {
        loop {
            let mut piece = pieces(self.piece)?;
            skip(&mut piece, self.offset);
            if piece.iov_len > 0 {
                return Some(piece);
            }
            *self = Self {
                piece: self.piece + 1,
                offset: 0,
            };
        }
    }
}

/// Copies bytes out of the pieces, from `place` on, as many as there are and fit; says how many. Guest memory is copied
/// as it is at that moment.
pub fn gather(from: &[Out<'_>], place: &mut Place, into: &mut [u8]) -> usize {
    let mut done = 0;
    while done < into.len()
        && let Some(piece) = place.rest(|index| from.get(index).map(|out| out.piece))
    {
        // SAFETY: the piece was made from a slice or from a mapped volatile slice, and `rest` only shortened it, so
        // `iov_len` bytes are readable for as long as `from` is borrowed. Whoever writes to them meanwhile (a vCPU)
        // does not matter: the volatile slice makes no reference to them.
        let slice = unsafe { VolatileSlice::new(piece.iov_base.cast(), piece.iov_len) };
        let count = slice.copy_to(&mut into[done..]);
        place.offset += count;
        done += count;
    }
    done
}

/// Copies bytes into the pieces, from `place` on, as many as fit; says how many.
pub fn scatter(into: &mut [In<'_>], place: &mut Place, bytes: &[u8]) -> usize {
    let mut done = 0;
    while done < bytes.len()
        && let Some(piece) = place.rest(|index| into.get(index).map(|piece| piece.0))
    {
        // SAFETY: the piece was made from an exclusive slice or from a mapped volatile slice, and `rest` only shortened
        // it, so `iov_len` bytes are writable for as long as `into` is borrowed, and no reference covers them.
        let slice = unsafe { VolatileSlice::new(piece.iov_base.cast(), piece.iov_len) };
        let count = piece.iov_len.min(bytes.len() - done);
        slice.copy_from(&bytes[done..done + count]);
        place.offset += count;
        done += count;
    }
    done
}

fn message(pieces: *mut libc::iovec, count: usize) -> libc::msghdr {
    // SAFETY: msghdr is a C struct of integers and pointers; all zeros is a valid value of each.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = pieces;
    header.msg_iovlen = count.min(MAX_PIECES);
    header
}

/// Whether a call waits for room, or for bytes: as long as its socket says (SO_SNDTIMEO, SO_RCVTIMEO), and not at all
/// if that is non-blocking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    /// It does.
    Yes,
    /// It does not.
    No,
}

impl Waits {
    fn flag(self) -> libc::c_int {
        match self {
            Self::Yes => 0,
            Self::No => libc::MSG_DONTWAIT,
        }
    }
}

/// Whether more bytes come right behind these, so that the kernel need not send what would fill no packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follows {
    /// They do.
    More,
    /// They do not.
    Nothing,
}

/// As many pieces as one call takes.
fn raw(pieces: &[Out<'_>]) -> Vec<libc::iovec> {
    let pieces = pieces.iter().take(MAX_PIECES);
    pieces.map(|out| out.piece).collect()
}

/// One sendmsg(2) that does not raise SIGPIPE; says how many bytes the kernel took.
///
/// # Errors
/// As sendmsg(2); nothing was taken.
pub fn send(
    socket: BorrowedFd<'_>,
    pieces: &[Out<'_>],
    waits: Waits,
    follows: Follows,
) -> io::Result<usize> {
    let more = match follows {
        Follows::More => libc::MSG_MORE,
        Follows::Nothing => 0,
    };
    let mut raw = raw(pieces);
    let header = message(raw.as_mut_ptr(), raw.len());
    let flags = libc::MSG_NOSIGNAL | waits.flag() | more;
    // SAFETY: the descriptor is open while borrowed. `header` points at `msg_iovlen <= raw.len()` iovecs
    // that the kernel only reads, each of which covers memory that is mapped for its lifetime.
    let count = unsafe { libc::sendmsg(socket.as_raw_fd(), &header, flags) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// One vmsplice(2) into a pipe, which does not wait; says how many bytes it has taken. Only for pieces that
/// [may be lent](Out::may_be_lent).
///
/// # Errors
/// As vmsplice(2); nothing was taken.
pub(super) fn lend(pipe: BorrowedFd<'_>, pieces: &[Out<'_>]) -> io::Result<usize> {
    debug_assert!(pieces.iter().all(Out::may_be_lent));
    let raw = raw(pieces);
    let flags = libc::SPLICE_F_NONBLOCK;
    // SAFETY: the descriptor is open while borrowed. `raw` has so many iovecs, which the kernel only reads; each covers
    // memory that is mapped for its lifetime. The kernel holds on to its pages, so none of them is given to anybody
    // else while they are in the pipe or the socket, even if this process has let go of them by then.
    let count = unsafe { libc::vmsplice(pipe.as_raw_fd(), raw.as_ptr(), raw.len(), flags) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Room for the descriptors that may come with bytes.
#[derive(Debug, Default)]
pub(super) struct Control {
    /// cmsghdr is aligned as usize is (CMSG_ALIGN), so is this.
    room: [u64; CONTROL_WORDS],
    descriptors: Vec<RawFd>,
}

/// For 16 descriptors: CMSG_SPACE(64) is 16 bytes of header and those.
const CONTROL_WORDS: usize = 10;

impl Control {
    /// The descriptors that came; each is given once and is the caller's to own.
    pub fn descriptors(&mut self) -> Vec<RawFd> {
        std::mem::take(&mut self.descriptors)
    }
}

/// One recvmsg(2); says how many bytes came, 0 at the end of the stream.
///
/// # Errors
/// As recvmsg(2); nothing came.
pub fn receive(socket: BorrowedFd<'_>, pieces: &mut [In<'_>], waits: Waits) -> io::Result<usize> {
    // `In` is a transparent iovec.
    let mut header = message(pieces.as_mut_ptr().cast(), pieces.len());
    // SAFETY: the descriptor is open while borrowed. `header` points at `msg_iovlen <= pieces.len()` iovecs,
    // each of which covers memory that is writable for its lifetime and that no Rust reference covers: own
    // buffers are borrowed exclusively, guest memory is volatile.
    let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut header, waits.flag()) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// The same, with the descriptors that come along; more than there is room for are closed by the kernel.
///
/// # Errors
/// As recvmsg(2); nothing came.
pub(super) fn receive_with(
    socket: BorrowedFd<'_>,
    pieces: &mut [In<'_>],
    control: &mut Control,
    waits: Waits,
) -> io::Result<usize> {
    let mut header = message(pieces.as_mut_ptr().cast(), pieces.len());
    header.msg_control = control.room.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control.room);
    let flags = waits.flag() | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: as in `receive`; besides, `msg_control` points at `msg_controllen` writable bytes of `control`,
    // which is borrowed exclusively.
    let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut header, flags) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: `header` was filled in by a recvmsg that succeeded, so its control part is a chain of whole
    // messages (or empty), which CMSG_FIRSTHDR and CMSG_NXTHDR walk within `msg_controllen`. Each header is
    // aligned, since `room` is and CMSG_NXTHDR keeps to CMSG_ALIGN. The data of an SCM_RIGHTS message are
    // `cmsg_len - CMSG_LEN(0)` bytes of descriptors, read without assuming alignment.
    unsafe {
        let mut next = libc::CMSG_FIRSTHDR(&header);
        while let Some(message) = next.as_ref() {
            if (message.cmsg_level, message.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let bytes = message.cmsg_len - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(next).cast::<RawFd>();
                for index in 0..bytes / size_of::<RawFd>() {
                    control.descriptors.push(data.add(index).read_unaligned());
                }
            }
            next = libc::CMSG_NXTHDR(&header, next);
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn pieces_go_over_in_order_and_partly() {
        let (a, b) = UnixStream::pair().unwrap();
        let mut out = [Out::bytes(b"ab"), Out::bytes(b""), Out::bytes(b"cdef")];
        let rest = advance_out(&mut out, 3);
        assert_eq!(rest.len(), 1);
        assert_eq!(
            send(a.as_fd(), rest, Waits::No, Follows::Nothing).unwrap(),
            3
        );
        let (mut x, mut y) = ([0; 2], [0; 8]);
        let mut into = [In::bytes(&mut x), In::bytes(&mut y)];
        assert_eq!(into[0].fill(b"z"), 1);
        assert_eq!(receive(b.as_fd(), &mut into, Waits::No).unwrap(), 3);
        assert_eq!(advance_in(&mut into, 3)[0].len(), 6);
        assert_eq!((&x, &y[..2]), (b"zd", &b"ef"[..]));
    }

    #[test]
    fn bytes_are_copied_across_pieces_and_the_pieces_stay() {
        let from = [Out::bytes(b"ab"), Out::bytes(b""), Out::bytes(b"cdef")];
        let mut place = Place::default();
        let mut three = [0; 3];
        assert_eq!(gather(&from, &mut place, &mut three), 3);
        assert_eq!(&three, b"abc");
        assert_eq!(gather(&from, &mut place, &mut three[..1]), 1);
        assert_eq!(gather(&from, &mut place, &mut three), 2);
        assert_eq!((&three[..2], from[2].len()), (&b"ef"[..], 4));
        assert_eq!(gather(&from, &mut place, &mut three), 0);

        let (mut x, mut y) = ([0; 2], [0; 3]);
        let mut into = [In::bytes(&mut x), In::bytes(&mut y)];
        let mut place = Place::default();
        assert_eq!(scatter(&mut into, &mut place, b"a"), 1);
        assert_eq!(scatter(&mut into, &mut place, b"bc"), 2);
        assert_eq!(scatter(&mut into, &mut place, b"defg"), 2);
        assert_eq!(scatter(&mut into, &mut place, b"fg"), 0);
        assert_eq!((&x, &y), (b"ab", b"cde"));
    }

    #[test]
    fn an_empty_socket_does_not_block() {
        let (a, b) = UnixStream::pair().unwrap();
        let mut byte = [0];
        let error = receive(a.as_fd(), &mut [In::bytes(&mut byte)], Waits::No).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(b);
        assert_eq!(
            receive(a.as_fd(), &mut [In::bytes(&mut byte)], Waits::No).unwrap(),
            0
        );
        assert!(send(a.as_fd(), &[Out::bytes(b"x")], Waits::No, Follows::Nothing).is_err());
    }
}
