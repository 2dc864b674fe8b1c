//! What a process has cost so far, as the kernel keeps it: processor time and resident memory.

use std::fs;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;

use crate::Error;

/// The processor time of a process: user and system time of all its threads, ended ones too, to the
/// nanosecond. Can also be read after the process has ended, until its parent has collected it.
#[derive(Debug, Clone, Copy)]
pub struct CpuClock {
    pid: Pid,
    clock: ClockId,
}

impl CpuClock {
    /// The clock of process `pid`.
    ///
    /// # Errors
    /// There is no such process.
    pub fn of(pid: u32) -> Result<Self, Error> {
        let number = i32::try_from(pid).unwrap_or(i32::MAX);
        let pid = Pid::from_raw(number);
        match clock_getcpuclockid(pid) {
            Ok(clock) => Ok(Self { pid, clock }),
            Err(errno) => Err(failed("find the CPU clock of", pid, errno)),
        }
    }

    /// Processor time so far.
    ///
    /// # Errors
    /// The process is gone.
    pub fn now(&self) -> Result<Duration, Error> {
        let time = (self.clock.now()).map_err(|e| failed("read the CPU clock of", self.pid, e))?;
        Ok(time.into())
    }

    /// Waits until the process, a child of ours, has ended, without collecting it, and gives what it cost in
    /// all: the freeing of its memory included.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn at_the_end(&self, limit: Duration) -> Result<Duration, Error> {
        let began = Instant::now();
        let how = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        loop {
            match waitid(Id::Pid(self.pid), how) {
                Ok(WaitStatus::StillAlive) => (),
                Ok(_) => return self.now(),
                Err(errno) => return Err(failed("wait for the end of", self.pid, errno)),
            }
            if began.elapsed() > limit {
                return Err(Error::Unexpected(format!(
                    "process {} had to end, and has not in {limit:?}",
                    self.pid
                )));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn failed(act: &'static str, pid: Pid, errno: Errno) -> Error {
    Error::file(act, format!("process {pid}").as_ref(), errno.into())
}

/// The most memory that the process had resident at a time, in bytes (`VmHWM` of `/proc/PID/status`); `None`
/// once it has ended.
pub fn peak_rss(pid: u32) -> Option<u64> {
    bytes_of(&format!("/proc/{pid}/status"), "VmHWM:")
}

/// How much of its memory is in huge pages, in bytes; `None` once it has ended.
pub fn huge_pages(pid: u32) -> Option<u64> {
    bytes_of(&format!("/proc/{pid}/smaps_rollup"), "AnonHugePages:")
}

/// The figure of a line as `/proc` writes them: `NAME   123 kB`.
pub fn bytes_of(path: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}
