//! A listening Unix socket that belongs to one user: made with mode 0600, taken over from a dead process, removed at
//! the end.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::{fs, io};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::geteuid;
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;

/// The longest path of a Unix socket: `sun_path` of unix(7) without its closing zero.
const MAX_PATH: usize = 107;

/// Why a socket does not listen.
#[derive(Debug, Error)]
pub enum SocketError {
    /// The path does not fit a socket address.
    #[error("socket path {} has {} bytes: take one of at most {MAX_PATH}", .0.display(), .0.as_os_str().len())]
    TooLong(PathBuf),
    /// Another process listens there.
    #[error("socket {} is in use by another process: take another path, or stop that process", .0.display())]
    InUse(PathBuf),
    /// There is something else.
    #[error("{} exists and is not a socket: take another path", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot listen on socket {}; take a path in a folder that exists and that you may write to", .path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A listening socket; its file goes with it.
#[derive(Debug)]
pub struct OwnedSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file: if another has taken its place since, it stays.
    file: (u64, u64),
}

impl OwnedSocket {
    /// Listens on `path`, without blocking in [`accept`](Self::accept). A socket file that nobody listens on any more
    /// is replaced.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn listen(path: &Path) -> Result<Self, SocketError> {
        if path.as_os_str().len() > MAX_PATH {
            return Err(SocketError::TooLong(path.to_owned()));
        }
        clear_stale(path)?;
        let failed = |source| SocketError::Listen {
            path: path.to_owned(),
            source,
        };
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed)?;
        // unix(7): the mode of the socket, before bind, becomes that of its file. There is no moment at which others
        // could connect, as there would be with a chmod after bind.
        fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|error| failed(error.into()))?;
        let address = SockAddr::unix(path).map_err(failed)?;
        socket.bind(&address).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => SocketError::InUse(path.to_owned()),
            _ => failed(error),
        })?;
        socket.listen(16).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        let meta = fs::symlink_metadata(path).map_err(failed)?;
        Ok(Self {
            listener: socket.into(),
            path: path.to_owned(),
            file: (meta.dev(), meta.ino()),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next client, if one waits.
    ///
    /// # Errors
    /// None waits, or the process is out of descriptors.
    pub fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(false)?;
        Ok(stream)
    }
}

impl AsFd for OwnedSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for OwnedSocket {
    fn drop(&mut self) {
        tracing::debug!(path = %self.path.display(), fd = self.listener.as_raw_fd(), "socket closed");
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.file)
        {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes a socket that nobody listens on, left behind by a process that was killed.
fn clear_stale(path: &Path) -> Result<(), SocketError> {
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => Err(SocketError::NotASocket(path.to_owned())),
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                // If somebody else was quicker, bind below says so.
                let _ = fs::remove_file(path);
                Ok(())
            }
            _ => Err(SocketError::InUse(path.to_owned())),
        },
        Err(_) => Ok(()),
    }
}

/// Lets in root and whoever runs this process.
///
/// # Errors
/// Why the peer is sent away, for it to read.
pub fn check_peer(stream: &UnixStream) -> Result<(), String> {
    let mine = geteuid().as_raw();
    match getsockopt(&stream.as_fd(), PeerCredentials) {
        Ok(peer) if peer.uid() == mine || peer.uid() == 0 => Ok(()),
        Ok(peer) => Err(format!(
            "user {} may not control a VM of user {mine}",
            peer.uid()
        )),
        Err(error) => Err(format!("cannot tell who you are: {error}")),
    }
}
