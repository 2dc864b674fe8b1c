//! How long the vCPUs of a Ferry sleep at a time while they are throttled, seen from outside.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use guest_images::procmem::ProcMem;
use guest_images::verify;

use super::Ferry;
use crate::Error;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(1);

/// The sleeps that were seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Naps {
    /// How many.
    pub count: u32,
    /// The longest: from the first look that found the vCPU asleep to the last, so never longer than it was,
    /// however late the looks came.
    pub longest: Duration,
}

/// Looks at the vCPU threads of a running guest with a pulse, until it is gone.
#[derive(Debug)]
pub struct NapWatch {
    vcpus: Vec<Watched>,
    memory: ProcMem,
}

#[derive(Debug)]
struct Watched {
    task: PathBuf,
    /// The sleep that it is in: how often it had run before, and from when to when it was seen.
    now: Option<(String, Instant, Instant)>,
    /// Sleeps that ended while the guest's last heartbeat was this one.
    ended: Option<(u32, Naps)>,
}

impl NapWatch {
    /// Finds the threads of the vCPUs.
    ///
    /// # Errors
    /// There are none, or the guest's memory cannot be read.
    pub fn new(ferry: &Ferry) -> Result<Self, Error> {
        let folder = PathBuf::from(format!("/proc/{}/task", ferry.pid()));
        let failed = |e| Error::file("read", &folder, e);
        let mut vcpus = Vec::new();
        for task in fs::read_dir(&folder).map_err(failed)? {
            let task = task.map_err(failed)?.path();
            let name = fs::read_to_string(task.join("comm")).unwrap_or_default();
            if name.starts_with("vcpu") {
                vcpus.push(Watched {
                    task,
                    now: None,
                    ended: None,
                });
            }
        }
        if vcpus.is_empty() {
            return Err(Error::Unexpected(format!(
                "no thread of {} is called vcpu…",
                folder.display()
            )));
        }
        Ok(Self {
            vcpus,
            memory: ferry.memory()?,
        })
    }

    /// Watches until the process lets go of the guest. A sleep counts once the guest has beaten after it: in
    /// the blackout vCPUs stand still too, and that is none of throttling's.
    pub fn until_gone(mut self) -> Naps {
        let mut naps = Naps::default();
        while let Ok(status) = verify::status(&self.memory) {
            for vcpu in &mut self.vcpus {
                vcpu.look(status.beat);
                if let Some((beat, ended)) = vcpu.ended
                    && beat != status.beat
                {
                    naps.count += ended.count;
                    naps.longest = naps.longest.max(ended.longest);
                    vcpu.ended = None;
                }
            }
            thread::sleep(PAUSE);
        }
        naps
    }
}

impl Watched {
    fn look(&mut self, beat: u32) {
        let asleep = asleep(&self.task);
        let now = Instant::now();
        match (&mut self.now, asleep) {
            // It has not run in between: this is one sleep.
            (Some((before, _, to)), Some(runs)) if *before == runs => *to = now,
            (was, runs) => {
                if let Some((_, from, to)) = was.take() {
                    let (last, ended) = self.ended.get_or_insert_default();
                    *last = beat;
                    ended.count += 1;
                    ended.longest = ended.longest.max(to - from);
                }
                *was = runs.map(|runs| (runs, now, now));
            }
        }
    }
}

/// Whether the thread waits for a time or an order, not for an interrupt of the guest; if so, what tells this
/// sleep from the next: how long and how often it had a processor.
fn asleep(task: &Path) -> Option<String> {
    let read = |name: &str| fs::read_to_string(task.join(name)).ok();
    let before = read("schedstat")?;
    let waits = read("wchan")?.contains("futex");
    let after = read("schedstat")?;
    (waits && before == after).then_some(after)
}
