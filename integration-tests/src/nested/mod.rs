//! A host with a working `/dev/kvm` on any machine: QEMU's TCG emulates an AMD processor with SVM and
//! nested paging, and Debian's kernel in it brings its own kvm-amd.
//!
//! ```text
//!   this machine          QEMU, one process, no privileges          in it
//!   ------------          ---------------------------------         ------------------------------
//!   runner  <== frames == virtio-serial port "nested.control" ====> init (process 1) -> commands
//!   /         -- 9p, read-only ----------------------------------->  / (writes go to memory)
//!   a folder  -- 9p, read-write ---------------------------------->  the same path
//!   console tail <------- ttyS0 -----------------------------------  kernel messages
//! ```
//!
//! Programs and libraries are those of this machine, under the same paths, so a command runs inside as it
//! would outside. One boot serves many commands, one after another; what a command leaves running is ended.
//! When the runner goes away, so does QEMU; nothing is left on disk but the cached kernel.

mod frames;
mod host;
mod initramfs;
pub mod inside;
mod kernel;
mod place;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

pub use frames::{Command, Ended, Ready};
pub use host::{Host, Options, Stream};
pub use place::{Place, command_like_ours, run_or_enter};

/// Name of the virtio-serial port between runner and init.
const CONTROL_PORT: &str = "nested.control";
/// 9p tag of the outer machine's root.
const ROOT_TAG: &str = "outer-root";
/// 9p tag of the folder that is shared for writing.
const SHARE_TAG: &str = "outer-share";

/// Why there is no nested host, or no longer.
#[derive(Debug, Error)]
pub enum NestedError {
    /// Something with a file.
    #[error("cannot {act} {path}")]
    File {
        /// What was tried.
        act: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A program of the machine failed or is not there.
    #[error("{command} failed: {said}")]
    Tool {
        /// The command line.
        command: String,
        /// Its complaint.
        said: String,
    },
    /// apt does not know the package.
    #[error("apt offers no kernel package by {0}: run `apt-get update` first (Debian only)")]
    NoPackage(&'static str),
    /// The kernel package is not as expected.
    #[error("the kernel package has no module {0}")]
    NoModule(String),
    /// The init program would not run on its own.
    #[error("{0} is not a statically linked program: build it with -C target-feature=+crt-static")]
    NotStatic(PathBuf),
    /// A program of this workspace is not built.
    #[error("no program {0}: build it with `cargo build --release -p {1}`")]
    NotBuilt(PathBuf, &'static str),
    /// QEMU did not start.
    #[error(
        "cannot start qemu-system-x86_64: install it (Debian: apt-get install qemu-system-x86)"
    )]
    NoQemu(#[source] io::Error),
    /// The nested host ended, or did not come up.
    #[error("the nested host is gone ({why}); the end of its console:\n{console}")]
    Gone {
        /// What was noticed.
        why: String,
        /// The last lines.
        console: String,
    },
    /// The time given to the whole run is over.
    #[error("the nested host was ended after {0:?}, its time limit; the end of its console:\n{1}")]
    Timeout(Duration, String),
}

impl NestedError {
    /// Something with a file, as an error.
    pub fn file(act: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File {
            act,
            path: path.to_owned(),
            source,
        }
    }
}

/// The folder that keeps kernels between runs: `target/nested-host` of this workspace, or one in the user's
/// cache where the program was carried elsewhere.
pub fn default_cache() -> PathBuf {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    match crate_folder.parent().filter(|_| crate_folder.exists()) {
        Some(workspace) => workspace.join("target/nested-host"),
        None => std::env::var_os("HOME")
            .map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
            .join(".cache/nested-host"),
    }
}

/// Puts the newest kernel into the cache, if it is not there.
///
/// # Errors
/// It cannot be had: apt or dpkg are not there, or fail.
pub fn fetch(cache: &Path) -> Result<(), NestedError> {
    kernel::Kernel::newest(cache).map(|_| ())
}
