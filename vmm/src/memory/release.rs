//! Guest memory that the guest has given away goes back to the host.

use std::io;
use std::ops::Range;

use migration::guest::GuestRam;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::GuestRegion;
use super::advise::{Advice, advise};

/// Bytes of a page, the least that the kernel takes back.
const PAGE: u64 = 4096;

/// Gives the pages from the first of these guest-physical addresses to the last back to the host: they read as zeros
/// from now on. Anonymous memory is dropped from this process; of a memfd the pages go themselves, whoever has it
/// mapped, and a hole stays. Nobody is told: who needs to know marks them.
///
/// Huge pages that were set aside stay, and are written with zeros: a kernel keeps them for the guest that had them
/// (since Linux 6.9), so that they are of no use to others, or gives them to whoever asks first, and kills a process
/// that touches memory for which none is left.
///
/// # Errors
/// They are no pages of one region, or the kernel does not take them.
pub fn release(ram: &GuestRam, pages: &Range<u64>) -> io::Result<()> {
    let refused = || io::Error::from(io::ErrorKind::InvalidInput);
    let region = ram
        .find_region(GuestAddress(pages.start))
        .ok_or_else(refused)?;
    let offset = pages.start - region.start_addr().raw_value();
    let bytes = pages.end.checked_sub(pages.start).ok_or_else(refused)?;
    let whole = offset.is_multiple_of(PAGE) && bytes.is_multiple_of(PAGE);
    let within = bytes > 0 && bytes <= region.len() - offset;
    let (true, true, Ok(offset), Ok(bytes)) = (
        whole,
        within,
        usize::try_from(offset),
        usize::try_from(bytes),
    ) else {
        return Err(refused());
    };
    if (**region).is_hugetlbfs() == Some(true) {
        return clear(region, offset, bytes);
    }
    let advice = match region.file_offset() {
        Some(_) => Advice::PunchHole,
        None => Advice::Drop,
    };
    advise(region, offset..offset + bytes, advice)
}

/// Writes zeros over memory of a region.
fn clear(region: &GuestRegion, offset: usize, bytes: usize) -> io::Result<()> {
    /// A page of them.
    const ZEROS: [u8; 4096] = [0; 4096];
    let memory = region.as_volatile_slice().map_err(io::Error::other)?;
    let memory = memory.subslice(offset, bytes).map_err(io::Error::other)?;
    for at in (0..bytes).step_by(ZEROS.len()) {
        let page = memory.subslice(at, ZEROS.len()).map_err(io::Error::other)?;
        page.copy_from(&ZEROS);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use migration::touched::touched;
    use vm_memory::Bytes;

    use super::*;
    use crate::memory::{Backing, map};

    /// Below and above the 32-bit gap: the layout of 3.5 GiB, of which next to nothing is touched.
    fn of(backing: Backing) {
        let layout = crate::layout::memory_layout((3 << 30) + (512 << 20)).unwrap();
        let [_, high] = layout.regions() else {
            panic!("{layout:?} has no gap");
        };
        let high = high.gpa;
        let ram = map(&layout, backing).unwrap();
        let write = |gpa| ram.write_obj(7u64, GuestAddress(gpa)).unwrap();
        let read = |gpa| ram.read_obj::<u64>(GuestAddress(gpa)).unwrap();
        let all = [0x1000, 0x2000, 0x3000, high, high + 0x1000];
        all.into_iter().for_each(write);
        let whole = [0..0x20_0000, high..high + 0x20_0000];
        for pages in [0x2000..0x3000, high..high + 0x1000] {
            release(&ram, &pages).unwrap();
        }
        assert_eq!(all.map(read), [7, 0, 7, 0, 7]);
        write(0x2000);
        assert_eq!(read(0x2000), 7, "it can be written again");
        // Nothing of it is left, and a move has nothing to send.
        for pages in whole {
            release(&ram, &pages).unwrap();
        }
        assert!(touched(&ram, &layout).unwrap().is_empty());
        assert_eq!(all.map(read), [0; 5]);
    }

    #[test]
    fn what_is_given_back_is_zero_and_was_never_touched() {
        of(Backing::Anonymous);
        of(Backing::Memfd);
    }

    /// Both ends of a move within one host map the same pages.
    #[test]
    fn pages_of_a_memfd_go_for_everyone() {
        let layout = crate::layout::memory_layout(16 << 20).unwrap();
        let ram = map(&layout, Backing::Memfd).unwrap();
        let files = ram.iter().map(|r| r.file_offset().unwrap().file());
        let files = files.map(|file| file.try_clone().unwrap()).collect();
        let other = map(&layout, Backing::Files(files)).unwrap();
        ram.write_obj(7u64, GuestAddress(0x5000)).unwrap();
        release(&other, &(0x5000..0x6000)).unwrap();
        assert_eq!(ram.read_obj::<u64>(GuestAddress(0x5000)).unwrap(), 0);
    }

    #[test]
    fn what_is_no_memory_is_not_touched() {
        let layout = crate::layout::memory_layout(16 << 20).unwrap();
        let end = layout.bytes();
        let ram = map(&layout, Backing::Anonymous).unwrap();
        ram.write_obj(7u64, GuestAddress(end - 8)).unwrap();
        let backwards = Range {
            start: 0x3000,
            end: 0x1000,
        };
        for pages in [
            end - 0x1000..end + 0x1000,
            end..end + 0x1000,
            u64::MAX - 0xfff..u64::MAX,
            end - 0x1000..end - 1,
            end - 0xfff..end,
            0x1000..0x1000,
            backwards,
        ] {
            assert!(release(&ram, &pages).is_err(), "{pages:x?}");
        }
        assert_eq!(ram.read_obj::<u64>(GuestAddress(end - 8)).unwrap(), 7);
    }
}
