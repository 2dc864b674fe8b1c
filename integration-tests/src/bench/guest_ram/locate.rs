//! Finds the memory of a `pulse` in a process that does not say where it is.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use guest_images::procmem::Mapping;
use guest_images::pulse::STATUS_GPA;

const MAGIC: &[u8; 8] = b"FERRYPLS";
/// Guest memory is mapped at multiples of this where it does not begin its mapping.
const ALIGN: u64 = 2 << 20;

/// Looks in process `pid` for `bytes` of memory, from GPA 0 on, that hold a pulse. `None` if there are none
/// yet: what waits for a guest has its memory before the guest's status page has come.
///
/// Only looks where the process has touched its memory: looking must not touch it.
///
/// # Errors
/// The process cannot be read.
pub fn locate(pid: u32, bytes: u64) -> io::Result<Option<Mapping>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let (mem, pagemap) = (
        File::open(format!("/proc/{pid}/mem"))?,
        File::open(format!("/proc/{pid}/pagemap"))?,
    );
    let has_pulse = |host: u64| {
        let status = host + STATUS_GPA;
        let (mut entry, mut magic) = ([0; 8], [0; 8]);
        let touched = pagemap.read_exact_at(&mut entry, status / 4096 * 8).is_ok()
            && super::digest::is_present(u64::from_le_bytes(entry));
        touched && mem.read_exact_at(&mut magic, status).is_ok() && &magic == MAGIC
    };
    for (start, end) in maps.lines().filter_map(writable_range) {
        let Some(last) = end.checked_sub(bytes).filter(|last| *last >= start) else {
            continue;
        };
        // The kernel joins neighbouring mappings, so it may begin within one.
        let aligned = (start.div_ceil(ALIGN)..=last / ALIGN).map(|number| number * ALIGN);
        if let Some(host) = [start, last]
            .into_iter()
            .chain(aligned)
            .find(|&host| has_pulse(host))
        {
            return Ok(Some(Mapping {
                gpa: 0,
                bytes,
                host,
            }));
        }
    }
    Ok(None)
}

/// The addresses of a writable mapping in a line of /proc/PID/maps.
fn writable_range(line: &str) -> Option<(u64, u64)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let parse = |text| u64::from_str_radix(text, 16).ok();
    rest.starts_with("rw")
        .then_some((parse(start)?, parse(end)?))
}
