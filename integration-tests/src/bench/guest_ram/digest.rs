//! The digest of a guest's memory, all of it but what the guest itself writes while it is moved; that part
//! is what [`guest_images::verify`] checks.

use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use guest_images::pulse::{MAX_VCPUS, VCPU_GPA};
use guest_images::{fill, verify};

use super::{CHUNK, GuestRam, PAGE};
use crate::{Error, chain};

/// Pulse's variables and stacks, its status page and the pages of its vCPUs.
const VARIABLES: Range<u64> = 0x10_0000..VCPU_GPA + MAX_VCPUS as u64 * PAGE as u64;

/// The digest of a guest's memory, piece by piece. Pages of zeros count for nothing, be they untouched or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest {
    /// GPA of the piece of 2 MiB, and the sum of the SipHashes of its pages.
    pieces: Vec<(u64, u64)>,
}

impl Digest {
    /// All of it in 16 hexadecimal digits.
    pub fn text(&self) -> String {
        let mut hasher = DefaultHasher::new();
        for (gpa, hash) in self.pieces.iter().filter(|(_, hash)| *hash != 0) {
            hasher.write_u64(*gpa);
            hasher.write_u64(*hash);
        }
        format!("{:016x}", hasher.finish())
    }

    /// The first piece of 2 MiB that is not the same in another digest.
    pub fn first_difference(&self, other: &Self) -> Option<u64> {
        let pairs = self.pieces.iter().zip(&other.pieces);
        let differing = pairs.into_iter().find(|(a, b)| a != b);
        let longer = self.pieces.len() != other.pieces.len();
        differing.map(|((gpa, _), _)| *gpa).or(longer.then_some(0))
    }
}

/// What the guest writes while it runs, and the digest therefore leaves out.
#[derive(Debug, Clone)]
pub struct Unstable {
    /// Whole pages.
    pages: Vec<Range<u64>>,
    /// Pages of working sets, of which only what is filled from outside stays.
    edges: Vec<Range<u64>>,
}

impl Unstable {
    /// What the pulse in this memory writes, by its own description.
    ///
    /// # Errors
    /// There is no pulse.
    pub fn of(ram: &GuestRam) -> Result<Self, Error> {
        let memory = ram.open()?;
        let wrong = |e| Error::Unexpected(chain(&e));
        let mut this = Self {
            pages: vec![VARIABLES],
            edges: Vec::new(),
        };
        for index in 0..verify::status(&memory).map_err(wrong)?.cpus {
            let vcpu = verify::vcpu(&memory, index).map_err(wrong)?;
            let (first, pages) = (u64::from(vcpu.ws_first_page), u64::from(vcpu.ws_pages));
            let table = u64::from(vcpu.table_gpa);
            let page = PAGE as u64;
            this.edges.push(first * page..(first + pages) * page);
            let table_end = (table + pages * 4).next_multiple_of(page);
            this.pages.push(table / page * page..table_end);
        }
        Ok(this)
    }

    /// What of the page stays as it is.
    fn stable(&self, gpa: u64) -> Range<usize> {
        let within = |ranges: &[Range<u64>]| ranges.iter().any(|range| range.contains(&gpa));
        if within(&self.pages) {
            0..0
        } else if within(&self.edges) {
            fill::FIRST..fill::END
        } else {
            0..PAGE
        }
    }
}

/// Whether an entry of /proc/PID/pagemap says that the page has contents of its own: in memory (bit 63) or
/// swapped out (bit 62); see Linux, Documentation/admin-guide/mm/pagemap.rst.
pub(super) fn is_present(entry: u64) -> bool {
    entry >> 62 != 0
}

impl GuestRam {
    /// The digest of the memory. Pages that nobody has touched are not read, since reading would touch them;
    /// `shared` memory (a memfd) may have contents that this process has not touched, and is read whole.
    ///
    /// # Errors
    /// Memory cannot be read.
    pub fn digest(&self, unstable: &Unstable, shared: bool) -> Result<Digest, Error> {
        let open = |what| {
            let path = format!("/proc/{}/{what}", self.pid);
            File::open(&path).map_err(|e| Error::file("open", path.as_ref(), e))
        };
        let (mem, pagemap) = (open("mem")?, open("pagemap")?);
        let by_worker = self.by_workers(|worker| {
            let mut bytes = vec![0; usize::try_from(CHUNK).unwrap_or(usize::MAX)];
            let mut pieces = Vec::new();
            for chunk in self.chunks(worker) {
                let pages = usize::try_from(chunk.bytes).unwrap_or(0) / PAGE;
                let present = present_pages(&pagemap, chunk.host, pages)?;
                let mut hash = 0u64;
                if shared || present.iter().any(|&present| present) {
                    let whole = &mut bytes[..pages * PAGE];
                    read_present(&mem, chunk.host, whole, &present, shared)?;
                    for (gpa, page) in (chunk.gpa..).step_by(PAGE).zip(whole.chunks_exact(PAGE)) {
                        hash = hash.wrapping_add(hash_page(gpa, &page[unstable.stable(gpa)]));
                    }
                }
                pieces.push((chunk.gpa, hash));
            }
            Ok(pieces)
        });
        let mut pieces = by_worker.map_err(|e| self.failed("read", e))?.concat();
        pieces.sort_unstable();
        Ok(Digest { pieces })
    }
}

fn present_pages(pagemap: &File, host: u64, pages: usize) -> io::Result<Vec<bool>> {
    let mut entries = vec![0; pages * 8];
    pagemap.read_exact_at(&mut entries, host / PAGE as u64 * 8)?;
    let (entries, _) = entries.as_chunks();
    Ok(entries
        .iter()
        .map(|entry| is_present(u64::from_le_bytes(*entry)))
        .collect())
}

/// Reads runs of pages that are there; the others read as zeros.
fn read_present(
    mem: &File,
    host: u64,
    into: &mut [u8],
    present: &[bool],
    all: bool,
) -> io::Result<()> {
    let mut at = 0;
    for run in present.chunk_by(|a, b| all || a == b) {
        let bytes = &mut into[at * PAGE..(at + run.len()) * PAGE];
        if all || run[0] {
            mem.read_exact_at(bytes, host + (at * PAGE) as u64)?;
        } else {
            bytes.fill(0);
        }
        at += run.len();
    }
    Ok(())
}

/// 0 for zeros, else a hash that depends on the place too.
fn hash_page(gpa: u64, bytes: &[u8]) -> u64 {
    if bytes.iter().all(|&byte| byte == 0) {
        return 0;
    }
    let mut hasher = DefaultHasher::new();
    hasher.write_u64(gpa);
    hasher.write(bytes);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use guest_images::procmem::Mapping;

    use super::*;

    fn ram_of(bytes: &[u8]) -> GuestRam {
        GuestRam {
            pid: std::process::id(),
            mappings: vec![Mapping {
                gpa: 0,
                bytes: bytes.len() as u64,
                host: bytes.as_ptr().addr() as u64,
            }],
        }
    }

    #[test]
    fn every_byte_counts_but_those_that_the_guest_writes() -> Result<(), Error> {
        let unstable = Unstable {
            pages: std::iter::once(0x1000..0x2000).collect(),
            edges: std::iter::once(0x3000..0x4000).collect(),
        };
        // A multiple of the page size, from a page on: the memory that a guest has.
        let whole = vec![7u8; 6 << 20];
        let skip = whole.as_ptr().align_offset(PAGE);
        let mut memory = whole;
        let place = skip..skip + (4 << 20) + PAGE;
        let before = ram_of(&memory[place.clone()]).digest(&unstable, false)?;
        let mut change = |offset: usize| {
            memory[skip + offset] ^= 1;
            let after = ram_of(&memory[place.clone()]).digest(&unstable, false);
            memory[skip + offset] ^= 1;
            after
        };
        for hidden in [0x1000, 0x1fff, 0x3000, 0x3fff] {
            assert_eq!(change(hidden)?, before, "{hidden:#x}");
        }
        for seen in [
            0,
            0xfff,
            0x2000,
            0x3000 + fill::FIRST,
            0x3000 + fill::END - 1,
            4 << 20,
        ] {
            let after = change(seen)?;
            assert_eq!(
                before.first_difference(&after),
                Some(seen as u64 / CHUNK * CHUNK),
                "{seen:#x}"
            );
            assert_ne!(before.text(), after.text());
        }
        Ok(())
    }
}
