//! A Unix socket, over which the descriptors of guest memory can be handed: a move within one host.
#![allow(unsafe_code, reason = "takes descriptors out of a control message")]

use std::fs::File;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::iov::{self, In, Out, Waits};
use super::transport::Transport;
use crate::pages::MAX_REGIONS;

/// A stream between two processes of one host.
#[derive(Debug)]
pub struct Local {
    stream: UnixStream,
    /// Descriptors that have come and nobody has asked for yet; no more than a guest has regions.
    files: Vec<File>,
}

impl From<UnixStream> for Local {
    fn from(stream: UnixStream) -> Self {
        Self {
            stream,
            files: Vec::new(),
        }
    }
}

impl Transport for Local {
    fn prepare(&self, peer_timeout: Duration) -> io::Result<()> {
        self.stream.prepare(peer_timeout)
    }

    fn send(&mut self, from: &[Out<'_>], waits: Waits) -> io::Result<usize> {
        self.stream.send(from, waits)
    }

    fn receive(&mut self, into: &mut [In<'_>], waits: Waits) -> io::Result<usize> {
        let mut control = iov::Control::default();
        let count = iov::receive_with(self.stream.as_fd(), into, &mut control, waits)?;
        for descriptor in control.descriptors() {
            // SAFETY: the kernel has just made this descriptor for us (SCM_RIGHTS of a message received), and
            // `descriptors` gives each of them once, so nobody else owns it.
            let file = unsafe { File::from_raw_fd(descriptor) };
            if self.files.len() < MAX_REGIONS {
                self.files.push(file);
            }
        }
        Ok(count)
    }

    fn send_files(&mut self, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<usize> {
        let raw: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        let pieces = [io::IoSlice::new(bytes)];
        Ok(sendmsg::<()>(
            self.stream.as_raw_fd(),
            &pieces,
            &rights,
            flags,
            None,
        )?)
    }

    fn take_files(&mut self) -> Vec<File> {
        std::mem::take(&mut self.files)
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
    use std::io::{Read, Seek, Write};

    use super::*;

    #[test]
    fn files_come_with_the_bytes_and_only_so_many_are_kept() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut a, mut b) = (Local::from(a), Local::from(b));
        let path = std::env::temp_dir().join(format!("ferry-local-{}", std::process::id()));
        let mut file = File::options()
            .create(true)
            .truncate(true)
            .write(true)
            .read(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_all(b"guest").unwrap();
        for _ in 0..20 {
            assert_eq!(a.send_files(b"xy", &[file.as_fd()]).unwrap(), 2);
            let mut byte = [0; 8];
            assert_eq!(
                b.receive(&mut [In::bytes(&mut byte)], Waits::No).unwrap(),
                2
            );
        }
        let mut files = b.take_files();
        assert_eq!(files.len(), MAX_REGIONS);
        assert!(b.take_files().is_empty());
        let mut text = String::new();
        files[3].rewind().unwrap();
        files[3].read_to_string(&mut text).unwrap();
        assert_eq!(text, "guest");
    }
}
