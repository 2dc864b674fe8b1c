//! Which pages of guest memory anybody has ever touched. The others are zeros that exist nowhere: they need
//! neither be read nor sent, and asking costs nothing that grows with them.
//!
//! The kernel is asked by PAGEMAP_SCAN (Linux 6.7; Documentation/admin-guide/mm/pagemap.rst), else by reading
//! the page map, eight bytes a page.
#![allow(unsafe_code, reason = "an ioctl that libraries do not wrap")]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::guest::GuestRam;
use crate::pages::{MemoryLayout, PAGE_SIZE, PageSet};

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
    let seek = |from: u64, whence| -> io::Result<u64> {
        let from = i64::try_from(from).map_err(io::Error::other)?;
        match lseek(file, from, whence) {
            Ok(offset) => Ok(u64::try_from(offset).unwrap_or(u64::MAX)),
            // Nothing of that kind up to the end.
            Err(Errno::ENXIO) => Ok(u64::MAX),
            Err(error) => Err(error.into()),
        }
    };
    let mut at = bytes.start;
    while at < bytes.end {
        let start = seek(at, Whence::SeekData)?.min(bytes.end);
        let end = match start {
            start if start < bytes.end => seek(start, Whence::SeekHole)?.min(bytes.end),
            start => start,
        };
        if start < end {
            found(start - bytes.start..end - bytes.start);
        }
        at = end.max(at + 1);
    }
    Ok(())
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
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::pages::{REGION_ALIGN, Region};

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
