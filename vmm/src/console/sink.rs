//! The thread that writes the guest's output to a file, a pipe or a terminal.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::ring::Ring;
use crate::sandbox::{self, Kind};

/// What comes so soon behind what was written is written together with it. A guest prints byte by byte, and each one
/// that is written by itself takes a processor that it shares with its host from it, twice; nobody sees it come a
/// little later.
const PAUSE: Duration = Duration::from_millis(4);

/// Starts the thread. It ends when the ring is closed and empty; if the file takes no more it goes on to empty the
/// ring, so that the guest does not notice.
pub(super) fn start(ring: Arc<Ring>, mut file: File) -> io::Result<()> {
    thread::Builder::new()
        .name("console-out".to_owned())
        .spawn(move || {
            sandbox::enter(Kind::Console);
            let mut broken = false;
            while let Some(bytes) = ring.next() {
                if broken {
                    continue;
                }
                if let Err(error) = write_all(&mut file, &bytes) {
                    tracing::warn!(%error, "serial output is lost from here on");
                    broken = true;
                }
                thread::sleep(PAUSE);
            }
            ring.set_drained();
        })
        .map(drop)
}

/// Like `write_all`, also for a file that somebody else has made non-blocking: standard output is shared with the
/// shell and its other children.
fn write_all(file: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
                let _ = poll(&mut fds, PollTimeout::NONE);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
