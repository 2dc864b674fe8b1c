//! Memory that is touched before the guest comes for which it is meant.
//!
//! The first touch of memory that has rested takes many times as long as what is then written there
//! (docs/performance.md), and is paid in the middle of a move. Whoever waits for a guest has time for it before. The
//! guest's layout is not known then, so it is one piece of any size; its page tables are handed over to the guest's own
//! mapping by mremap(2), in microseconds.
#![allow(
    unsafe_code,
    reason = "mremap of mappings that this module and its callers own"
)]

use std::io;
use std::ptr;

use migration::guest::GuestRam;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MmapRegion};

use super::MemoryError;
use super::advise::{Advice, advise};

/// So much is touched by one call of the kernel's. Other threads of the process cannot map or unmap anything meanwhile,
/// so it is what takes tens of milliseconds at most.
const STEP: usize = 64 << 20;

/// Memory that is there: touched, zero but for what was lent, and nobody's yet.
#[derive(Debug)]
pub struct Prefaulted {
    region: MmapRegion,
    /// So many of its first bytes are touched.
    touched: usize,
    /// So many of its first bytes somebody may have written.
    lent: usize,
}

impl Prefaulted {
    /// Has so many bytes touched, in huge pages where the host has them, or as many of them as it could until it is
    /// `wanted`. It takes a tenth of a second to seconds for each GiB.
    ///
    /// # Errors
    /// The host does not have them, or a kernel before Linux 5.14 cannot.
    pub fn new(bytes: u64, wanted: &dyn Fn() -> bool) -> Result<Self, MemoryError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| MemoryError::Prefault {
            bytes,
            source,
        };
        let len = usize::try_from(bytes).map_err(|e| failed(e.into()))?;
        let region = MmapRegion::new(len).map_err(|e| failed(e.into()))?;
        // Without (a kernel without huge pages) it is slower, and that is all.
        let _ = advise(&region, 0..len, Advice::HugePages);
        let mut memory = Self {
            region,
            touched: 0,
            lent: 0,
        };
        memory.touch(wanted).map_err(|e| failed(e.into()))?;
        Ok(memory)
    }

    /// How many there are.
    pub fn bytes(&self) -> u64 {
        u64::try_from(self.region.size()).unwrap_or(u64::MAX)
    }

    /// How many of them are touched.
    pub fn touched(&self) -> u64 {
        u64::try_from(self.touched).unwrap_or(u64::MAX)
    }

    /// Lets somebody write to so many of the first bytes at most, until it is [renewed](Self::renew).
    pub fn lend(&mut self, most: usize) -> &MmapRegion {
        self.lent = self.lent.max(most.min(self.region.size()));
        &self.region
    }

    /// Makes what was lent zero again, and touches it, and what was not touched yet, until it is `wanted`.
    ///
    /// # Errors
    /// The kernel refuses; then it is of no use any more.
    pub fn renew(mut self, wanted: &dyn Fn() -> bool) -> io::Result<Self> {
        self.clean()?;
        if self.lent > 0 {
            (self.lent, self.touched) = (0, 0);
        }
        self.touch(wanted)?;
        Ok(self)
    }

    /// Touches what is not touched yet, until it is wanted. Where it is there already that takes no time.
    fn touch(&mut self, wanted: &dyn Fn() -> bool) -> io::Result<()> {
        let len = self.region.size();
        while self.touched < len && !wanted() {
            let end = len.min(self.touched + STEP);
            advise(&self.region, self.touched..end, Advice::Touch)?;
            self.touched = end;
        }
        Ok(())
    }

    /// Makes what was lent zero.
    fn clean(&self) -> io::Result<()> {
        if self.lent == 0 {
            return Ok(());
        }
        advise(&self.region, 0..self.lent, Advice::Drop)
    }

    /// Puts it in place of the first bytes of a guest's memory, which is anonymous and has nothing in it; gives back to
    /// the host what is more than that has.
    ///
    /// # Errors
    /// The kernel refuses. The guest's memory is of no use then, and is never unmapped.
    pub(super) fn give(self, ram: GuestRam) -> io::Result<GuestRam> {
        match self.clean().and_then(|()| self.move_to(&ram)) {
            Ok(()) => Ok(ram),
            Err(error) => {
                // A part of it may be unmapped already, and somebody else's by the time that it would be unmapped with
                // the rest.
                std::mem::forget(ram);
                Err(error)
            }
        }
    }

    fn move_to(&self, ram: &GuestRam) -> io::Result<()> {
        let mut from = 0;
        for region in ram.iter() {
            let len = usize::try_from(region.len()).unwrap_or(usize::MAX);
            let len = len.min(self.region.size() - from);
            if len == 0 {
                break;
            }
            // SAFETY: both ranges, of whole pages, lie within mappings that live longer than this call, and are not the
            // same mapping: `from + len` is at most the size of ours, and `len` the region's. What is at the target is
            // anonymous memory to which nothing refers yet; the pages of the source take its place. With
            // MREMAP_DONTUNMAP the source's range stays mapped, empty, so that its owner unmaps later what is still its
            // own.
            let at = unsafe {
                libc::mremap(
                    self.region.as_ptr().add(from).cast(),
                    len,
                    len,
                    libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP,
                    region.as_ptr().cast::<libc::c_void>(),
                )
            };
            if ptr::eq(at, libc::MAP_FAILED) {
                return Err(io::Error::last_os_error());
            }
            from += len;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use migration::pages::{MemoryLayout, Region};
    use migration::touched::touched;
    use vm_memory::{Bytes, GuestAddress, VolatileMemory};

    use super::*;
    use crate::memory::{Backing, map};

    const MIB: u64 = 1 << 20;

    fn given(bytes: u64, layout: &MemoryLayout) -> (GuestRam, u64) {
        let ready = Prefaulted::new(bytes, &|| false).unwrap();
        assert_eq!(ready.bytes(), bytes);
        let ram = map(layout, Backing::Prefaulted(ready)).unwrap();
        let touched = touched_bytes(&ram, layout);
        (ram, touched)
    }

    fn touched_bytes(ram: &GuestRam, layout: &MemoryLayout) -> u64 {
        touched(ram, layout).unwrap().len() * 4096
    }

    #[test]
    fn it_is_the_guests_as_far_as_it_goes() {
        let layout = crate::layout::memory_layout(32 * MIB).unwrap();
        for (ready, touched) in [(16, 16), (32, 32), (64, 32)] {
            let (ram, found) = given(ready * MIB, &layout);
            assert_eq!(found, touched * MIB, "{ready}");
            for at in [0, 16 * MIB - 8, 16 * MIB, 32 * MIB - 8].map(GuestAddress) {
                assert_eq!(ram.read_obj::<u64>(at).unwrap(), 0);
                ram.write_obj(7u64, at).unwrap();
                assert_eq!(ram.read_obj::<u64>(at).unwrap(), 7);
            }
        }
    }

    #[test]
    fn it_fills_one_region_after_the_other() {
        let ranges = [(GuestAddress(0), 4 << 20), (GuestAddress(1 << 32), 4 << 20)];
        let ready = Prefaulted::new(6 * MIB, &|| false).unwrap();
        let ram = ready.give(GuestRam::from_ranges(&ranges).unwrap()).unwrap();
        let region = |(gpa, bytes): (GuestAddress, usize)| Region {
            gpa: gpa.0,
            bytes: bytes.try_into().unwrap(),
        };
        let layout = MemoryLayout::new(ranges.map(region).into()).unwrap();
        assert_eq!(touched(&ram, &layout).unwrap().len() * 4096, 6 * MIB);
    }

    #[test]
    fn what_was_lent_is_zero_again_and_there() {
        let layout = crate::layout::memory_layout(16 * MIB).unwrap();
        for (renewed, missing) in [(true, 0), (false, 4 * MIB)] {
            let mut ready = Prefaulted::new(16 * MIB, &|| false).unwrap();
            let slice = ready.lend(4 << 20).get_slice(0, 4 << 20).unwrap();
            slice.copy_from(&[7u8; 4 << 20]);
            if renewed {
                ready = ready.renew(&|| false).unwrap();
            }
            let ram = map(&layout, Backing::Prefaulted(ready)).unwrap();
            let found = touched(&ram, &layout).unwrap().len() * 4096;
            assert_eq!(found + missing, 16 * MIB);
            for at in [0, 4 * MIB - 8].map(GuestAddress) {
                assert_eq!(ram.read_obj::<u64>(at).unwrap(), 0);
            }
        }
    }

    /// Whoever comes for it does not wait: it goes as it is, and is touched to the end for the next one.
    #[test]
    fn it_is_touched_until_somebody_wants_it() {
        let layout = crate::layout::memory_layout(160 * MIB).unwrap();
        for (renewed, touched) in [(false, 64), (true, 160)] {
            let asked = std::cell::Cell::new(0);
            let wanted = || asked.replace(asked.get() + 1) == 1;
            let mut ready = Prefaulted::new(160 * MIB, &wanted).unwrap();
            assert_eq!((ready.bytes(), ready.touched()), (160 * MIB, 64 * MIB));
            if renewed {
                ready = ready.renew(&|| false).unwrap();
            }
            assert_eq!(ready.touched(), touched * MIB);
            let ram = map(&layout, Backing::Prefaulted(ready)).unwrap();
            let found = touched_bytes(&ram, &layout);
            assert_eq!(found, touched * MIB);
        }
    }

    #[test]
    fn what_no_host_has_is_refused() {
        let text = Prefaulted::new(1 << 50, &|| false).unwrap_err().to_string();
        assert!(text.contains("have 1024T of memory ready"), "{text}");
        assert!(text.contains("smaller --prefault"), "{text}");
    }
}
