//! The one error type of this crate: tests print it and end, nobody tells its cases apart for long.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
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
    /// No network, or not as wanted.
    #[error(transparent)]
    Network(#[from] vmm::study::netns::NetnsError),
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
    /// A process did not do in time what was waited for.
    #[error("waited for {what} (at most {limit:?}); {end}. Its last words:\n{tail}")]
    Waited {
        /// How long at most.
        limit: Duration,
        /// For what.
        what: String,
        /// Whether the process still runs, or how it ended.
        end: String,
        /// The end of its output.
        tail: String,
    },
    /// Something was not as it must be.
    #[error("{0}")]
    Unexpected(String),
    /// The nested host runs, but its kernel does not: it did not even say that it lives.
    #[error(
        "the nested host has been silent for {0:?}: it stands still; the end of its console:\n{1}"
    )]
    StandsStill(Duration, String),
    /// The time given to the whole run is over.
    #[error("the nested host was ended after {0:?}, its time limit; the end of its console:\n{1}")]
    Timeout(Duration, String),
}

impl Error {
    /// Something with a file, as an error.
    pub fn file(act: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File {
            act,
            path: path.to_owned(),
            source,
        }
    }
}
