//! Which pages of guest memory anybody has ever touched. The others are zeros that exist nowhere: they need
//! neither be read nor sent, and asking costs nothing that grows with them.
//!
//! The kernel is asked by PAGEMAP_SCAN (Linux 6.7; Documentation/admin-guide/mm/pagemap.rst), else by reading
//! the page map, eight bytes a page.
//!
//! Memory of a file has holes where nobody has touched it, and where the guest has given it back. A read of a mapping
//! turns them into pages, of zeros, so they have to be found without one.
#![allow(
    unsafe_code,
    reason = "an ioctl and a system call that libraries do not wrap"
)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use crate::guest::GuestRam;
use crate::marks::Marks;
use crate::pages::{MemoryLayout, PAGE_SIZE, PageSet};
use crate::ram::PAGE;

pub(crate) const PAGEMAP: &str = "/proc/self/pagemap";
/// Regions that one ioctl gives back; a guest that is all touched is one, a scattered one needs several calls.
const REGIONS: usize = 1024;

// include/uapi/linux/fs.h
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
// Documentation/admin-guide/mm/pagemap.rst: bits of an entry.
const ENTRY_PRESENT: u64 = 1 << 63;
const ENTRY_SWAPPED: u64 = 1 << 62;

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Debug, Default)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

mod ioctl {
    nix::ioctl_readwrite!(pagemap_scan, b'f', 16, super::ScanArgument);
}

/// The page map, once [`open_map`] has opened it. It is the process's, whichever thread opened it.
static MAP: OnceLock<File> = OnceLock::new();

/// Opens the page map, for a process that will not be able to later.
pub(crate) fn open_map() -> io::Result<()> {
    if MAP.get().is_none() {
        let _ = MAP.set(File::open(PAGEMAP)?);
    }
    Ok(())
}

/// The pages that may hold something.
///
/// # Errors
/// The kernel does not say; every page may hold something then.
pub fn touched(ram: &GuestRam, layout: &MemoryLayout) -> io::Result<PageSet> {
    let opened;
    let map = match MAP.get() {
        Some(map) => map,
        None => {
            opened = File::open(PAGEMAP)?;
            &opened
        }
    };
    let mut set = PageSet::empty(layout.pages());
    for (region, (_, pages)) in ram.iter().zip(layout.ranges()) {
        if let Some(offset) = region.file_offset() {
            let mut found = |hit: Range<u64>| {
                let page = |byte: u64| pages.start + byte / PAGE_SIZE;
                set.insert_run(page(hit.start)..page(hit.end.next_multiple_of(PAGE_SIZE)));
            };
            let bytes = offset.start()..offset.start() + region.len();
            data(offset.file(), bytes, &mut found)?;
            continue;
        }
        let start = region.as_ptr() as u64;
        let addresses = start..start + region.len();
        let mut found = |hit: Range<u64>| {
            let page = |address: u64| pages.start + (address - start) / PAGE_SIZE;
            set.insert_run(page(hit.start)..page(hit.end));
        };
        match scan(map, addresses.clone(), &mut found) {
            // ENOTTY: older than 6.7.
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {
                read(map, addresses, &mut found)?;
            }
            result => result?,
        }
    }
    Ok(set)
}

/// In memory of a file, which others may map too: what is no hole. Offsets count from the region's beginning.
fn data(file: &File, bytes: Range<u64>, found: &mut dyn FnMut(Range<u64>)) -> io::Result<()> {
    let mut at = bytes.start;
    while at < bytes.end {
        let start = seek(file, at, Whence::SeekData)?.min(bytes.end);
        let end = match start {
            start if start < bytes.end => seek(file, start, Whence::SeekHole)?.min(bytes.end),
            start => start,
        };
        if start < end {
            found(start - bytes.start..end - bytes.start);
        }
        at = end.max(at + 1);
    }
    Ok(())
}

/// The next data, or hole, of a file from there on; beyond every file where there is none.
fn seek(file: &File, from: u64, whence: Whence) -> io::Result<u64> {
    let from = i64::try_from(from).map_err(io::Error::other)?;
    match lseek(file, from, whence) {
        Ok(offset) => Ok(u64::try_from(offset).unwrap_or(u64::MAX)),
        // Nothing of that kind up to the end.
        Err(Errno::ENXIO) => Ok(u64::MAX),
        Err(error) => Err(error.into()),
    }
}

/// Pages so near to each other are looked at by one call, which costs as much as the look at so many.
const NEAR: u64 = 32;

/// Pages that are holes in the file that memory is of: runs, ascending.
#[derive(Debug, Default)]
pub(crate) struct Holes(Vec<Range<u64>>);

impl Holes {
    /// Whether a page is one of them.
    pub fn contains(&self, page: u64) -> bool {
        let at = self.0.partition_point(|hole| hole.end <= page);
        self.0.get(at).is_some_and(|hole| hole.contains(&page))
    }
}

/// Which pages of `set` within `range`, that lies in one region, are holes. Anonymous memory has none: to read it takes
/// nothing.
///
/// Whatever was written before this is no hole. Who has armed the range before finds in the log what is written after.
///
/// # Errors
/// The kernel does not say; a read does, and takes a page where there was a hole.
pub(crate) fn holes(
    ram: &GuestRam,
    layout: &MemoryLayout,
    set: &PageSet,
    range: &Range<u64>,
) -> io::Result<Holes> {
    let mut holes = Holes::default();
    let mut regions = ram.iter().zip(layout.ranges());
    let region = regions.find(|(_, (_, pages))| pages.contains(&range.start));
    let Some((region, (_, pages))) = region else {
        return Ok(holes);
    };
    let Some(offset) = region.file_offset() else {
        return Ok(holes);
    };
    let mut spans: Vec<Range<u64>> = Vec::new();
    for run in set.runs(range.start..range.end.min(pages.end), u64::MAX) {
        match spans.last_mut() {
            Some(span) if run.start - span.end < NEAR => span.end = run.end,
            _ => spans.push(run),
        }
    }
    for span in spans {
        let bytes = |page: u64| (page - pages.start) * PAGE_SIZE;
        let there = in_memory(region, bytes(span.start)..bytes(span.end))?;
        // The end of the last hole.
        let mut data = span.start;
        for (page, there) in span.clone().zip(there) {
            // What is not in memory is a hole, or in swap.
            if !there && page >= data && set.contains(page) {
                let byte = offset.start() + bytes(page);
                let next = seek(offset.file(), byte, Whence::SeekData)?;
                data = (page + next.saturating_sub(byte) / PAGE_SIZE).min(span.end);
                if page < data {
                    holes.0.push(page..data);
                }
            }
        }
    }
    Ok(holes)
}

/// For each page of a region, from one offset to another, whether it is in memory, mapped here or not: mincore(2).
fn in_memory(
    region: &GuestRegionMmap<Marks>,
    bytes: Range<u64>,
) -> io::Result<impl Iterator<Item = bool>> {
    if bytes.start > bytes.end || bytes.end > region.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let from = usize::try_from(bytes.start).map_err(io::Error::other)?;
    let len = usize::try_from(bytes.end - bytes.start).map_err(io::Error::other)?;
    let mut there = vec![0u8; len.div_ceil(PAGE)];
    // SAFETY: the range lies in the region's mapping, as was just checked, which lives as long as the reference; the
    // kernel looks at it and changes nothing. It writes a byte for each page of it, as many as there are in `there`.
    let done = unsafe { libc::mincore(region.as_ptr().add(from).cast(), len, there.as_mut_ptr()) };
    match done {
        // The other bits mean nothing.
        0 => Ok(there.into_iter().map(|byte| byte & 1 == 1)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// By PAGEMAP_SCAN: present or in swap, and not the kernel's one page of zeros.
fn scan(map: &File, addresses: Range<u64>, found: &mut dyn FnMut(Range<u64>)) -> io::Result<()> {
    let mut regions = vec![PageRegion::default(); REGIONS];
    let mut argument = ScanArgument {
        size: size_of::<ScanArgument>() as u64,
        end: addresses.end,
        vec: regions.as_mut_ptr() as u64,
        vec_len: REGIONS as u64,
        category_inverted: PAGE_IS_PFNZERO,
        category_mask: PAGE_IS_PFNZERO,
        category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        return_mask: PAGE_IS_PRESENT,
        walk_end: addresses.start,
        ..ScanArgument::default()
    };
    while argument.walk_end < addresses.end {
        argument.start = argument.walk_end;
        // SAFETY: the descriptor is open. `argument` is a pm_scan_arg of its own size; `vec` points at
        // `vec_len` regions that live until after the call and that nothing else refers to meanwhile. With
        // flags of 0 the kernel changes nothing but those two.
        let count = unsafe { ioctl::pagemap_scan(map.as_raw_fd(), &mut argument) }?;
        if argument.walk_end <= argument.start {
            return Err(io::Error::other("PAGEMAP_SCAN makes no progress"));
        }
        for region in regions.iter().take(usize::try_from(count).unwrap_or(0)) {
            found(region.start..region.end);
        }
    }
    Ok(())
}

/// By the page map itself.
fn read(map: &File, addresses: Range<u64>, found: &mut dyn FnMut(Range<u64>)) -> io::Result<()> {
    let mut entries = vec![0u8; 8 << 13];
    let mut address = addresses.start;
    while address < addresses.end {
        let left = (addresses.end - address) / PAGE_SIZE * 8;
        let part = entries
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        map.read_exact_at(&mut entries[..part], address / PAGE_SIZE * 8)?;
        for entry in entries[..part].chunks_exact(8) {
            let entry = entry
                .iter()
                .rev()
                .fold(0, |sum, &byte| sum << 8 | u64::from(byte));
            if entry & (ENTRY_PRESENT | ENTRY_SWAPPED) != 0 {
                found(address..address + PAGE_SIZE);
            }
            address += PAGE_SIZE;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use vm_memory::{Bytes, FileOffset, GuestAddress};

    use super::*;
    use crate::pages::{REGION_ALIGN, Region};

    #[test]
    fn holes_are_found_and_stay_holes() {
        let bytes = 2 * REGION_ALIGN;
        let len = usize::try_from(bytes).unwrap();
        let file = File::from(memfd_create("holes", MFdFlags::MFD_CLOEXEC).unwrap());
        // Memory begins behind something else, of which nothing is told.
        let before = 3 * PAGE_SIZE;
        file.set_len(before + bytes).unwrap();
        file.write_all_at(&[1; 3 * PAGE], 0).unwrap();
        let blocks = || file.metadata().unwrap().blocks() * 512 / PAGE_SIZE;
        let other = file.try_clone().unwrap();
        let high = 4 << 30;
        let ram = GuestRam::from_ranges_with_files([
            (GuestAddress(0), len, None),
            (
                GuestAddress(high),
                len,
                Some(FileOffset::new(other, before)),
            ),
        ]);
        let ram = ram.unwrap();
        let region = |gpa| Region { gpa, bytes };
        let layout = MemoryLayout::new(vec![region(0), region(high)]).unwrap();
        // Of the second region: written here, and by somebody who has it mapped elsewhere.
        for page in [3, 4, 700, 1023] {
            let at = GuestAddress(high + page * PAGE_SIZE);
            ram.write_obj(1u8, at).unwrap();
        }
        file.write_all_at(&[1; PAGE], before + 500 * PAGE_SIZE)
            .unwrap();
        let data = [3, 4, 500, 700, 1023].map(|page| 1024 + page);
        let there = blocks();
        assert_eq!(there, 3 + 5);
        let mut set = PageSet::full(layout.pages());
        let found = holes(&ram, &layout, &set, &(1024..2048)).unwrap();
        for page in 0..=layout.pages() {
            let hole = (1024..2048).contains(&page) && !data.contains(&page);
            assert_eq!(found.contains(page), hole, "{page}");
        }
        // Only what was asked for.
        set.clear();
        set.insert_run(1024 + 690..1024 + 710);
        let found = holes(&ram, &layout, &set, &(1024 + 640..1024 + 704)).unwrap();
        let pages = (0..layout.pages()).filter(|page| found.contains(*page));
        let hole = |page: &u64| *page != 1024 + 700;
        assert!(pages.eq((1024 + 690..1024 + 704).filter(hole)));
        assert_eq!(blocks(), there);
        // Anonymous memory has none, nor has what is not there.
        let set = PageSet::full(layout.pages());
        for range in [0..1024, 2048..4096] {
            let found = holes(&ram, &layout, &set, &range).unwrap();
            assert!((0..4096).all(|page| !found.contains(page)));
        }
    }

    #[test]
    fn both_ways_find_what_was_written_and_no_more() {
        let bytes = 4 * REGION_ALIGN;
        let len = usize::try_from(bytes).unwrap();
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), len), (GuestAddress(4 << 30), len)]);
        let ram = ram.unwrap();
        let region = |gpa| Region { gpa, bytes };
        let layout = MemoryLayout::new(vec![region(0), region(4 << 30)]).unwrap();
        assert!(touched(&ram, &layout).unwrap().is_empty());
        let pages = [0, 7, 8, 511, 2048, 4095];
        for page in pages {
            let at = GuestAddress(layout.gpa(page).unwrap());
            ram.write_obj(1u8, at).unwrap();
        }
        // Read, so there is a mapping of the page of zeros.
        let _: u8 = ram.read_obj(GuestAddress(100 * PAGE_SIZE)).unwrap();
        let set = touched(&ram, &layout).unwrap();
        let found: Vec<_> = set
            .runs(0..layout.pages(), 1)
            .map(|run| run.start)
            .collect();
        // The kernel may have used huge pages: what was written is there in any case.
        assert!(pages.iter().all(|page| found.contains(page)), "{found:?}");
        assert!(found.len() < 4096 && !found.contains(&100), "{found:?}");

        let map = File::open(PAGEMAP).unwrap();
        let region = ram.iter().next().unwrap();
        let start = region.as_ptr() as u64;
        let mut read_pages = Vec::new();
        read(&map, start..start + bytes, &mut |hit| {
            read_pages.push((hit.start - start) / PAGE_SIZE);
        })
        .unwrap();
        assert!([0, 7, 8, 511].iter().all(|page| read_pages.contains(page)));
        assert!(!read_pages.contains(&2047), "{read_pages:?}");
    }
}
