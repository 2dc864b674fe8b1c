//! A bound on the memory of processes: a control group of version 1 or 2, whichever this host has.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use nix::mount::{MsFlags, mount};

use crate::Error;

/// Where a host that has mounted no memory controller gets one: in the nested host, which is thrown away.
const OWN: &str = "/run/ferry-cgroup2";

/// A control group with a bound on memory. Removed when dropped; its processes should have ended by then.
#[derive(Debug)]
pub struct MemoryBound {
    folder: PathBuf,
    version: u8,
}

impl MemoryBound {
    /// Makes one whose processes may have so many bytes altogether.
    ///
    /// # Errors
    /// There is no memory controller, or it is not ours to use (that takes root).
    pub fn new(bytes: u64) -> Result<Self, Error> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (root, version) = controller()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = root.join(format!("ferry-test-{}-{number}", std::process::id()));
        fs::create_dir(&folder).map_err(|e| Error::file("make", &folder, e))?;
        let bound = Self { folder, version };
        let file = if version == 1 {
            "memory.limit_in_bytes"
        } else {
            "memory.max"
        };
        bound.write(file, &bytes.to_string())?;
        if version == 2 {
            // Where there is no swap there is no such file.
            let _ = bound.write("memory.swap.max", "0");
        }
        Ok(bound)
    }

    /// Version of control groups: 1 or 2.
    pub fn version(&self) -> u8 {
        self.version
    }

    /// Puts a process under the bound. What it has already is not counted.
    ///
    /// # Errors
    /// It is gone.
    pub fn put(&self, pid: u32) -> Result<(), Error> {
        self.write("cgroup.procs", &pid.to_string())
    }

    fn write(&self, file: &str, text: &str) -> Result<(), Error> {
        let path = self.folder.join(file);
        fs::write(&path, text).map_err(|e| Error::file("write", &path, e))
    }
}

impl Drop for MemoryBound {
    fn drop(&mut self) {
        // A process that was just killed is in it for a moment more.
        for _ in 0..100 {
            if fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        eprintln!("{} could not be removed", self.folder.display());
    }
}

/// The memory controller's root, and its version.
fn controller() -> Result<(PathBuf, u8), Error> {
    let mounts = Path::new("/proc/mounts");
    let text = fs::read_to_string(mounts).map_err(|e| Error::file("read", mounts, e))?;
    let mut unified = None;
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [_, folder, kind, options, ..] = words[..] else {
            continue;
        };
        match kind {
            "cgroup" if options.split(',').any(|option| option == "memory") => {
                return Ok((folder.into(), 1));
            }
            "cgroup2" => unified = Some(PathBuf::from(folder)),
            _ => {}
        }
    }
    let root = match unified {
        Some(root) => root,
        None => {
            let own = PathBuf::from(OWN);
            fs::create_dir_all(&own).map_err(|e| Error::file("make", &own, e))?;
            let none: Option<&str> = None;
            mount(none, &own, Some("cgroup2"), MsFlags::empty(), none)
                .map_err(|e| Error::file("mount cgroup2 on", &own, e.into()))?;
            own
        }
    };
    let control = root.join("cgroup.subtree_control");
    fs::write(&control, "+memory").map_err(|e| Error::file("write +memory to", &control, e))?;
    Ok((root, 2))
}
