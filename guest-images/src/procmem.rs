//! Another process's guest memory by /proc/PID/mem: what is really there, whatever the VMM says of it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use crate::ReadGuest;
use crate::pulse::STATUS_GPA;

/// Where a piece of guest memory lies in the VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// Guest-physical address of its first byte.
    pub gpa: u64,
    /// Size in bytes.
    pub bytes: u64,
    /// Address of its first byte in the VMM's process.
    pub host: u64,
}

/// The guest memory of a VMM process.
#[derive(Debug)]
pub struct ProcMem {
    mem: File,
    mappings: Vec<Mapping>,
}

impl ProcMem {
    /// The memory of process `pid`, which is mapped there as given.
    ///
    /// # Errors
    /// /proc/PID/mem cannot be opened for reading and writing.
    pub fn open(pid: u32, mappings: Vec<Mapping>) -> io::Result<Self> {
        let mem = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/proc/{pid}/mem"))?;
        Ok(Self { mem, mappings })
    }

    /// Looks in process `pid` for the memory of a started `pulse`, `bytes` from GPA 0 on.
    ///
    /// # Errors
    /// The process cannot be read, or no pulse is in it ([`io::ErrorKind::NotFound`]).
    pub fn find_pulse(pid: u32, bytes: u64) -> io::Result<Self> {
        let mut found = Self::open(pid, Vec::new())?;
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        for (start, end) in maps.lines().filter_map(address_range) {
            // The kernel joins neighbouring mappings, so guest memory may begin within one.
            let spare = end.saturating_sub(start).checked_sub(bytes);
            for offset in spare.map_or(0..0, |s| 0..s / 4096 + 1) {
                let host = start + offset * 4096;
                let mut magic = [0; 8];
                if found
                    .mem
                    .read_exact_at(&mut magic, host + STATUS_GPA)
                    .is_ok()
                    && &magic == b"FERRYPLS"
                {
                    found.mappings = vec![Mapping {
                        gpa: 0,
                        bytes,
                        host,
                    }];
                    return Ok(found);
                }
            }
        }
        Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("process {pid} has no {bytes} bytes of memory with a pulse in it"),
        ))
    }

    /// Writes guest memory. Neither the guest nor the VMM's dirty log sees it.
    ///
    /// # Errors
    /// Some of it is not the guest's memory, or cannot be written.
    pub fn write(&self, gpa: u64, bytes: &[u8]) -> io::Result<()> {
        self.mem.write_all_at(bytes, self.host(gpa, bytes.len())?)
    }

    fn host(&self, gpa: u64, bytes: usize) -> io::Result<u64> {
        self.mappings
            .iter()
            .find_map(|m| {
                let offset = gpa.checked_sub(m.gpa)?;
                (offset.checked_add(bytes as u64)? <= m.bytes).then_some(m.host + offset)
            })
            .ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("{bytes} bytes at {gpa:#x} are not within the guest's memory"),
                )
            })
    }
}

impl ReadGuest for ProcMem {
    fn read(&self, gpa: u64, into: &mut [u8]) -> io::Result<()> {
        self.mem.read_exact_at(into, self.host(gpa, into.len())?)
    }
}

/// The addresses of a writable mapping in a line of /proc/PID/maps.
fn address_range(line: &str) -> Option<(u64, u64)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let parse = |text| u64::from_str_radix(text, 16).ok();
    rest.starts_with("rw")
        .then_some((parse(start)?, parse(end)?))
}
