//! Digests of guest memory, by which two ends find out whether they hold the same without sending it again.
//!
//! Each page has a digest, and each block of 2 MiB one over those of its pages. Blocks are compared; what pages of a
//! block differ is asked for only where it does. Memory that nobody has touched is not touched by this either: its
//! digest is known, and the same as that of zeros that exist.
//!
//! XXH3 finds accidents: of memory, of a network card, of this program. It is no help against a peer that lies, which
//! would have the guest's memory anyway.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, Scope};

use twox_hash::XxHash3_64;

use crate::confined::{self, Role};
use crate::guest::{GuestError, GuestRam};
use crate::pages::{MemoryLayout, PAGE_SIZE, PageSet, REGION_ALIGN};
use crate::placement;
use crate::ram::RamView;
use crate::touched::{PAGEMAP, touched};
use crate::wire::frame::Run;

/// The first version of the protocol that can compare.
pub const SINCE: u16 = 3;
/// Pages in a block. Regions are multiples of it, so that none has a part of one.
pub const BLOCK_PAGES: u64 = REGION_ALIGN / PAGE_SIZE;
/// The most threads that compute digests: more of them than that wait for memory.
const THREADS: usize = 8;
/// Blocks that are done at once and told together: 64 MiB, some milliseconds.
const PIECE: u64 = 32;
/// Bytes in a page, as lengths in memory have it.
const PAGE: usize = 4096;
const _: () = assert!(PAGE as u64 == PAGE_SIZE);

/// Digests of neighbouring blocks, or pages: the index of the first, and each.
pub type Digests = (u64, Vec<u64>);

/// Memory that does not change any more, about to be compared.
#[derive(Debug)]
pub struct Memory<'a> {
    ram: &'a GuestRam,
    layout: &'a MemoryLayout,
    touched: PageSet,
    zero_page: u64,
    zero_block: u64,
    /// The first block that nobody has taken yet.
    next: AtomicU64,
    stop: AtomicBool,
}

impl<'a> Memory<'a> {
    /// Looks which pages there are. A kernel that does not say so has all of them read, and memory grows by what that
    /// costs.
    ///
    /// # Errors
    /// The memory is not laid out like that.
    pub fn new(ram: &'a GuestRam, layout: &'a MemoryLayout) -> Result<Self, GuestError> {
        RamView::new(ram, layout)?;
        let touched = touched(ram, layout).unwrap_or_else(|error| {
            tracing::info!("untouched pages are compared as all others are: {PAGEMAP}: {error}");
            PageSet::full(layout.pages())
        });
        let zero_page = XxHash3_64::oneshot(&[0; PAGE]);
        let zeros = (0..BLOCK_PAGES).map(|_| zero_page);
        Ok(Self {
            ram,
            layout,
            touched,
            zero_page,
            zero_block: of_block(zeros),
            next: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        })
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> u64 {
        self.layout.pages() / BLOCK_PAGES
    }

    /// Starts threads that compute the digests of all blocks, as many as there are processors. What is received ends
    /// when all are done, or after [`stop`](Self::stop).
    ///
    /// # Errors
    /// Not even one thread can be had.
    pub fn start<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
    ) -> Result<Receiver<Digests>, GuestError> {
        let threads = placement::processors();
        let (done, digests) = mpsc::channel();
        for index in 0..threads.min(THREADS) {
            let done = done.clone();
            let thread = thread::Builder::new().name("verify".into());
            match thread.spawn_scoped(scope, move || {
                confined::started(Role::Verify);
                self.work(&done);
            }) {
                Ok(_) => {}
                // The others do its part.
                Err(_) if index > 0 => break,
                Err(error) => return Err(GuestError::new("start a thread that verifies", error)),
            }
        }
        Ok(digests)
    }

    /// Ends the threads soon.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn work(&self, done: &Sender<Digests>) {
        // Checked when this was made.
        let Ok(ram) = RamView::new(self.ram, self.layout) else {
            return;
        };
        loop {
            let first = self.next.fetch_add(PIECE, Ordering::Relaxed);
            if first >= self.blocks() {
                return;
            }
            let blocks = first..(first + PIECE).min(self.blocks());
            let mut digests = Vec::new();
            for block in blocks {
                if self.stop.load(Ordering::Relaxed) {
                    return;
                }
                digests.push(self.block(&ram, block));
            }
            if done.send((first, digests)).is_err() {
                return;
            }
        }
    }

    fn block(&self, ram: &RamView<'_>, block: u64) -> u64 {
        let pages = pages(block);
        match self.touched.words(pages.clone()).iter().all(|&w| w == 0) {
            true => self.zero_block,
            false => of_block(pages.map(|page| self.page(ram, page))),
        }
    }

    /// The digests of all pages of a block; `None` for one that does not exist.
    pub fn pages_of(&self, block: u64) -> Option<Vec<u64>> {
        let ram = RamView::new(self.ram, self.layout).ok()?;
        (block < self.blocks()).then(|| pages(block).map(|page| self.page(&ram, page)).collect())
    }

    /// The digest of a page, of which `ram` is a view of the same memory.
    pub(crate) fn page(&self, ram: &RamView<'_>, page: u64) -> u64 {
        if !self.touched.contains(page) {
            return self.zero_page;
        }
        let mut bytes = [0; PAGE];
        let run = Run {
            first: page,
            pages: 1,
        };
        // Every page below the last block's end is there; a digest of zeros would only show a difference.
        let _ = ram.read(run, &mut bytes);
        XxHash3_64::oneshot(&bytes)
    }
}

/// The pages of a block.
pub fn pages(block: u64) -> Range<u64> {
    block * BLOCK_PAGES..(block + 1) * BLOCK_PAGES
}

fn of_block(pages: impl Iterator<Item = u64>) -> u64 {
    let bytes: Vec<u8> = pages.flat_map(u64::to_le_bytes).collect();
    XxHash3_64::oneshot(&bytes)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use vm_memory::{Bytes, FileOffset, GuestAddress};

    use super::*;
    use crate::pages::Region;

    /// Computed by the library of XXH3's author.
    const ZERO_PAGE: u64 = 0x93d7_6fe1_48c6_89ba;
    const ZERO_BLOCK: u64 = 0xaeab_efda_a3d0_4655;
    const COUNTING: u64 = 0x7135_ffa5_04f1_bc71;
    const BYTES: usize = 64 << 20;
    const HIGH: u64 = 4 << 30;

    fn layout() -> MemoryLayout {
        let bytes = u64::try_from(BYTES).unwrap();
        MemoryLayout::new([0, HIGH].map(|gpa| Region { gpa, bytes }).to_vec()).unwrap()
    }

    fn anonymous() -> GuestRam {
        GuestRam::from_ranges(&[0, HIGH].map(|gpa| (GuestAddress(gpa), BYTES))).unwrap()
    }

    fn of_files() -> GuestRam {
        let file = || {
            let file = File::from(memfd_create("verify", MFdFlags::MFD_CLOEXEC).unwrap());
            file.set_len(u64::try_from(BYTES).unwrap()).unwrap();
            Some(FileOffset::new(file, 0))
        };
        let ranges = [0, HIGH].map(|gpa| (GuestAddress(gpa), BYTES, file()));
        GuestRam::from_ranges_with_files(ranges).unwrap()
    }

    fn digests(ram: &GuestRam, layout: &MemoryLayout) -> Vec<u64> {
        let memory = Memory::new(ram, layout).unwrap();
        let mut all = vec![0; usize::try_from(memory.blocks()).unwrap()];
        thread::scope(|scope| {
            for (first, digests) in memory.start(scope).unwrap() {
                let first = usize::try_from(first).unwrap();
                all[first..first + digests.len()].copy_from_slice(&digests);
            }
        });
        all
    }

    /// The digests are on the wire: another version of the library must give the same.
    #[test]
    fn digests_are_what_the_protocol_says() {
        let memory = anonymous();
        let layout = layout();
        let memory = Memory::new(&memory, &layout).unwrap();
        // XXH3 of 4096 zeros, with seed 0.
        assert_eq!(memory.zero_page, ZERO_PAGE);
        assert_eq!(memory.zero_block, ZERO_BLOCK);
        let counting: Vec<u8> = (0..PAGE).map(|i| u8::try_from(i % 251).unwrap()).collect();
        assert_eq!(XxHash3_64::oneshot(&counting), COUNTING);
    }

    #[test]
    fn zeros_that_exist_are_zeros_that_do_not_and_stay_so() {
        let layout = layout();
        for ram in [anonymous(), of_files()] {
            let before = digests(&ram, &layout);
            assert_eq!(before.len(), 64);
            assert!(before.iter().all(|&digest| digest == ZERO_BLOCK));
            assert!(touched(&ram, &layout).unwrap().is_empty());
            for at in [5 << 20, HIGH + (63 << 20)] {
                ram.write_slice(&[0; 1 << 20], GuestAddress(at)).unwrap();
            }
            let there = touched(&ram, &layout).unwrap();
            assert_eq!(digests(&ram, &layout), before);
            assert_eq!(touched(&ram, &layout).unwrap(), there);
        }
    }

    #[test]
    fn every_byte_counts_and_its_page_is_found() {
        let layout = layout();
        let (a, b) = (anonymous(), of_files());
        for ram in [&a, &b] {
            for page in (0..layout.pages()).step_by(7) {
                let at = GuestAddress(layout.gpa(page).unwrap());
                ram.write_obj(page * 77, at).unwrap();
            }
        }
        let whole = digests(&a, &layout);
        assert_eq!(whole, digests(&b, &layout));
        for page in [0, 511, 512, 9_999, layout.pages() - 1] {
            let at = GuestAddress(layout.gpa(page).unwrap() + 4095);
            let byte: u8 = b.read_obj(at).unwrap();
            b.write_obj(byte ^ 1, at).unwrap();
            let other = digests(&b, &layout);
            let block = page / BLOCK_PAGES;
            for (index, (a, b)) in (0..).zip(whole.iter().zip(&other)) {
                assert_eq!(a != b, index == block, "page {page}, block {index}");
            }
            let pages_of = |ram| Memory::new(ram, &layout).unwrap().pages_of(block).unwrap();
            let (ours, theirs) = (pages_of(&a), pages_of(&b));
            let differ = (pages(block))
                .zip(ours.iter().zip(&theirs))
                .filter(|(_, (a, b))| a != b);
            assert_eq!(differ.map(|(page, _)| page).collect::<Vec<_>>(), [page]);
            b.write_obj(byte, at).unwrap();
        }
        assert!(Memory::new(&a, &layout).unwrap().pages_of(64).is_none());
    }

    #[test]
    fn threads_end_when_they_are_told_to() {
        let (ram, layout) = (anonymous(), layout());
        let memory = Memory::new(&ram, &layout).unwrap();
        memory.stop();
        thread::scope(|scope| assert_eq!(memory.start(scope).unwrap().iter().count(), 0));
    }
}
