//! How much memory this process has in RAM, and how much of it is the guest's: /proc/self/smaps (proc_pid_smaps(5)).
//!
//! The kernel walks the process's page tables for each reading: some microseconds for a guest in huge pages, tens of
//! milliseconds for each GiB in small ones. So a reading is made where it is asked for, on a control connection's
//! thread, never by the main one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::status::MemoryRegion;

/// The most text that is read. A mapping is described in about 700 bytes, and a process with a guest has some hundred.
const LONGEST: usize = 4 << 20;
/// How much is asked for at once.
const PIECE: usize = 64 << 10;

/// The open file; later a confined process could not open it.
#[derive(Debug)]
pub struct Footprint(File);

/// What is in RAM, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resident {
    /// Guest memory.
    pub guest: u64,
    /// Everything else of the process: program, heap, stacks, the descriptors' pages.
    pub vmm: u64,
}

impl Footprint {
    /// Opens the file.
    ///
    /// # Errors
    /// There is none: /proc is not mounted, or the kernel was built without it.
    pub fn open() -> io::Result<Self> {
        File::open("/proc/self/smaps").map(Self)
    }

    /// What is in RAM now, with guest memory in these regions.
    ///
    /// # Errors
    /// The kernel does not say, or says more than it should.
    pub fn read(&self, regions: &[MemoryRegion]) -> io::Result<Resident> {
        let mut text = Vec::new();
        let mut piece = vec![0; PIECE];
        loop {
            let at = u64::try_from(text.len()).unwrap_or(u64::MAX);
            match self.0.read_at(&mut piece, at)? {
                0 => return Ok(parse(&String::from_utf8_lossy(&text), regions)),
                count => text.extend_from_slice(&piece[..count]),
            }
            if text.len() > LONGEST {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
        }
    }
}

/// Sums `Rss:` over the mappings; one that overlaps a region of the guest's is the guest's.
fn parse(text: &str, regions: &[MemoryRegion]) -> Resident {
    let mut resident = Resident::default();
    let mut of_guest = false;
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("Rss:") => {
                let kib: u64 = words.next().and_then(|kib| kib.parse().ok()).unwrap_or(0);
                let of = match of_guest {
                    true => &mut resident.guest,
                    false => &mut resident.vmm,
                };
                *of = of.saturating_add(kib.saturating_mul(1024));
            }
            Some(word) => {
                if let Some((start, end)) = addresses(word) {
                    of_guest = regions.iter().any(|region| {
                        start < region.host_address.saturating_add(region.bytes)
                            && region.host_address < end
                    });
                }
            }
            None => {}
        }
    }
    resident
}

/// `7f0000000000-7f0000200000`, the first word of a mapping.
fn addresses(word: &str) -> Option<(u64, u64)> {
    let (start, end) = word.split_once('-')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    Some((hex(start)?, hex(end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_overlaps_the_guest_is_the_guests() {
        let text = "\
55d0-55e0 r-xp 00000000 fe:01 12 /usr/bin/ferry\nSize: 4 kB\nRss:     4 kB\nPss: 4 kB\nVmFlags: rd ex\n\
7000-9000 rw-p 00000000 00:00 0\nRss:    8 kB\nVmFlags: rd wr\n\
9000-a000 rw-p 00000000 00:00 0 [stack]\nRss:   12 kB\n";
        let region = MemoryRegion {
            gpa: 0,
            bytes: 0x2000,
            host_address: 0x7000,
        };
        let resident = parse(text, &[region]);
        assert_eq!((resident.guest, resident.vmm), (8 << 10, 16 << 10));
        assert_eq!(parse(text, &[]).vmm, 24 << 10);
        let odd = "x-y\nRss:\nRss: -1 kB\nRss: 99999999999999999999 kB\n\n-\n";
        assert_eq!(parse(odd, &[region]), Resident::default());
    }

    #[test]
    fn this_process_has_a_footprint_and_its_heap_in_it() {
        let footprint = Footprint::open().unwrap();
        let block = vec![1u8; 16 << 20];
        let region = MemoryRegion {
            gpa: 0,
            bytes: block.len() as u64,
            host_address: block.as_ptr() as u64,
        };
        let resident = footprint.read(&[region]).unwrap();
        assert!(resident.guest >= 16 << 20, "{resident:?}");
        assert!(resident.vmm > 100 << 10, "{resident:?}");
        drop(block);
    }
}
