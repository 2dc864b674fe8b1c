//! Guest memory by page index: the pieces behind runs of pages, and which pages are zero.
#![allow(
    unsafe_code,
    reason = "looks at guest memory that vCPUs write meanwhile, word by word"
)]

use std::ops::Range;

use vm_memory::bitmap::{BS, BitmapSlice};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, VolatileSlice};

use crate::guest::{GuestError, GuestRam};
use crate::marks::Marks;
use crate::pages::{MemoryLayout, PAGE_SIZE};
use crate::wire::frame::Run;
use crate::wire::iov::{In, Out};

/// Bytes in a page, as lengths in memory have it.
pub(crate) const PAGE: usize = 4096;
const _: () = assert!(PAGE as u64 == PAGE_SIZE);

type Slice<'a> = VolatileSlice<'a, BS<'a, Marks>>;

/// A guest's memory, laid out as its description says.
#[derive(Debug)]
pub struct RamView<'a> {
    regions: Vec<(Range<u64>, Slice<'a>)>,
}

impl<'a> RamView<'a> {
    /// Looks at `ram` as `layout`.
    ///
    /// # Errors
    /// The memory is not laid out like that.
    pub fn new(ram: &'a GuestRam, layout: &MemoryLayout) -> Result<Self, GuestError> {
        let mismatch = || {
            let found: Vec<_> = ram
                .iter()
                .map(|region| format!("{:#x}+{:#x}", region.start_addr().0, region.len()))
                .collect();
            GuestError::bare(format!(
                "guest memory is mapped as [{}], its description says {:x?}",
                found.join(", "),
                layout.regions()
            ))
        };
        let mut regions = Vec::with_capacity(layout.regions().len());
        for (region, pages) in layout.ranges() {
            let found = ram.iter().find(|r| r.start_addr().0 == region.gpa);
            let slice = found
                .filter(|r| r.len() == region.bytes)
                .and_then(|r| r.as_volatile_slice().ok())
                .ok_or_else(mismatch)?;
            // Words are read from it: its mapping starts at a page.
            let aligned = slice.ptr_guard().as_ptr().addr().is_multiple_of(PAGE);
            if !aligned {
                return Err(GuestError::bare(format!(
                    "guest memory at {:#x} is not mapped at a page boundary",
                    region.gpa
                )));
            }
            regions.push((pages, slice));
        }
        if ram.iter().count() != regions.len() {
            return Err(mismatch());
        }
        Ok(Self { regions })
    }

    /// The memory behind a run; `None` when it does not lie within one region.
    fn slice(&self, run: Run) -> Option<Slice<'a>> {
        let end = run.first.checked_add(u64::from(run.pages))?;
        let (range, slice) = self
            .regions
            .iter()
            .find(|(range, _)| run.first >= range.start && end <= range.end)?;
        let offset = usize::try_from((run.first - range.start).checked_mul(PAGE_SIZE)?).ok()?;
        let len = usize::try_from(u64::from(run.pages) * PAGE_SIZE).ok()?;
        slice.subslice(offset, len).ok()
    }

    /// The bytes of a run, to be sent as they are then; `None` when it does not lie within one region.
    pub fn out(&self, run: Run) -> Option<Out<'a>> {
        self.slice(run).map(|slice| Out::guest(&slice))
    }

    /// Where the bytes of a run belong; `None` when it does not lie within one region. The VMM's bitmap of
    /// written pages is not told: a log that starts later begins with everything written.
    pub fn place(&self, run: Run) -> Option<In<'a>> {
        self.slice(run).map(|slice| In::guest(&slice))
    }

    /// Whether a page held nothing but zeros while it was looked at.
    pub fn is_zero(&self, page: u64) -> bool {
        let run = Run {
            first: page,
            pages: 1,
        };
        self.slice(run).is_some_and(|slice| all_zero(&slice))
    }

    /// Copies the bytes of a run as they are at that moment into `into`, which is as long; `None` when they
    /// are not, or the run does not lie within one region.
    pub fn read(&self, run: Run, into: &mut [u8]) -> Option<()> {
        let slice = self.slice(run).filter(|slice| slice.len() == into.len())?;
        slice.copy_to(into);
        Some(())
    }

    /// Copies `bytes` to a run that is as long; `None` when it is not, or does not lie within one region.
    pub fn write(&self, run: Run, bytes: &[u8]) -> Option<()> {
        let slice = self.slice(run).filter(|slice| slice.len() == bytes.len())?;
        slice.copy_from(bytes);
        Some(())
    }

    /// Makes all pages of a run zero. Pages that are zero already are only read, so that memory which nobody
    /// has touched yet stays untouched. `None` when the run does not lie within one region.
    pub fn clear(&self, run: Run) -> Option<()> {
        let slice = self.slice(run)?;
        for page in 0..usize::try_from(run.pages).ok()? {
            let page = slice.subslice(page * PAGE, PAGE).ok()?;
            if !all_zero(&page) {
                page.copy_from(&[0u8; PAGE]);
            }
        }
        Some(())
    }
}

/// Whether a page is all zeros. Most pages that are not show it in their first bytes; the loop over lines of
/// 64 bytes ends there, and is bound by memory for those that are.
fn all_zero<B: BitmapSlice>(page: &VolatileSlice<'_, B>) -> bool {
    const WORDS: usize = 8;
    debug_assert_eq!(page.len(), PAGE);
    let guard = page.ptr_guard();
    let words = guard.as_ptr().cast::<u64>();
    for line in 0..page.len() / (WORDS * 8) {
        let mut any = 0;
        for word in 0..WORDS {
            // SAFETY: `line * 8 + word` is below `len / 8`, so the word lies within the slice, which is
            // mapped for its lifetime and kept accessible by the guard. RamView::new checked that regions
            // start at a page boundary and pages are whole, so the word is aligned. Guest memory changes
            // under our eyes; a volatile read of an integer takes whatever is there.
            any |= unsafe { words.add(line * WORDS + word).read_volatile() };
        }
        if any != 0 {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::pages::{REGION_ALIGN, Region};

    const HIGH: u64 = 4 << 30;

    fn ram() -> (GuestRam, MemoryLayout) {
        let bytes = usize::try_from(REGION_ALIGN).unwrap();
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), bytes), (GuestAddress(HIGH), bytes)]);
        let regions = [0, HIGH].map(|gpa| Region {
            gpa,
            bytes: REGION_ALIGN,
        });
        (ram.unwrap(), MemoryLayout::new(regions.to_vec()).unwrap())
    }

    #[test]
    fn every_byte_of_a_page_counts() {
        let (ram, layout) = ram();
        let view = RamView::new(&ram, &layout).unwrap();
        let page = 512 + 7;
        for offset in [0, 1, 63, 64, 2048, 4088, 4095] {
            let at = GuestAddress(HIGH + 7 * PAGE_SIZE + offset);
            assert!(view.is_zero(page));
            ram.write_obj(1u8, at).unwrap();
            assert!(!view.is_zero(page));
            assert!(view.is_zero(page - 1) && view.is_zero(page + 1));
            view.clear(Run {
                first: page - 1,
                pages: 3,
            })
            .unwrap();
        }
    }

    #[test]
    fn runs_stay_within_a_region() {
        let (ram, layout) = ram();
        let view = RamView::new(&ram, &layout).unwrap();
        let len = |first, pages| view.out(Run { first, pages }).map(|out| out.len());
        assert_eq!(len(0, 512), Some(512 * PAGE));
        assert_eq!(len(512, 512), Some(512 * PAGE));
        assert_eq!(len(511, 2), None);
        assert_eq!(len(1023, 2), None);
        assert_eq!(len(1024, 1), None);
        assert_eq!(len(u64::MAX, 1), None);
        assert!(!view.is_zero(1024));
    }

    #[test]
    fn another_layout_is_refused() {
        let (ram, layout) = ram();
        let less = MemoryLayout::new(layout.regions()[..1].to_vec()).unwrap();
        let error = RamView::new(&ram, &less).unwrap_err();
        assert!(
            error.to_string().contains("0x100000000+0x200000"),
            "{error}"
        );
        let region = Region {
            gpa: 0,
            bytes: 2 * REGION_ALIGN,
        };
        let other = MemoryLayout::new(vec![region]).unwrap();
        assert!(RamView::new(&ram, &other).is_err());
    }
}
