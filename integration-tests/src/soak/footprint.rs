//! What a process has open, and whether that grows.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::Error;

/// A process looked at from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Footprint {
    /// Open file descriptors.
    pub fds: u64,
    /// Threads.
    pub threads: u64,
    /// Memory that is there, in KiB.
    pub rss_kib: u64,
    /// Lines of /proc/PID/maps.
    pub mappings: u64,
}

/// What an allocator may keep, without that being a leak: arenas of threads that have ended.
const SPARE_KIB: u64 = 4 << 10;
const SPARE_MAPPINGS: u64 = 8;
/// How long what ends by itself (threads that still say something to a peer) may take to do so.
const CALM: Duration = Duration::from_secs(3);

impl Footprint {
    /// Looks at a process.
    ///
    /// # Errors
    /// It is gone, or not ours to look at.
    pub fn of(pid: u32) -> Result<Self, Error> {
        let proc = Path::new("/proc").join(pid.to_string());
        let count = |name: &str| {
            let path = proc.join(name);
            let entries = fs::read_dir(&path).map_err(|e| Error::file("read", &path, e))?;
            Ok::<_, Error>(entries.count() as u64)
        };
        let text = |name: &str| {
            let path = proc.join(name);
            fs::read_to_string(&path).map_err(|e| Error::file("read", &path, e))
        };
        let status = text("status")?;
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let rss_kib = rss.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        Ok(Self {
            fds: count("fd")?,
            threads: count("task")?,
            rss_kib: rss_kib.unwrap_or(0),
            mappings: text("maps")?.lines().count() as u64,
        })
    }

    /// What has grown since `before`, in words; what ends by itself is given time for that.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn growth(before: Self, pid: u32) -> Result<Option<String>, Error> {
        let began = Instant::now();
        loop {
            let now = Self::of(pid)?;
            if !now.exceeds(before) {
                return Ok(None);
            }
            if began.elapsed() > CALM {
                return Ok(Some(format!("{before:?} has become {now:?}")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn exceeds(self, before: Self) -> bool {
        self.fds > before.fds
            || self.threads > before.threads
            || self.rss_kib > before.rss_kib + SPARE_KIB
            || self.mappings > before.mappings + SPARE_MAPPINGS
    }
}

/// Children of ours that have ended and that nobody has waited for.
///
/// # Errors
/// /proc cannot be read.
pub fn zombies() -> Result<usize, Error> {
    let us = std::process::id().to_string();
    let proc = Path::new("/proc");
    let entries = fs::read_dir(proc).map_err(|e| Error::file("read", proc, e))?;
    let is_zombie = |entry: fs::DirEntry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name, in brackets, may hold anything.
        let mut words = stat.rsplit_once(") ")?.1.split(' ');
        Some(words.next()? == "Z" && words.next()? == us)
    };
    Ok(entries
        .flatten()
        .filter_map(is_zombie)
        .filter(|zombie| *zombie)
        .count())
}
