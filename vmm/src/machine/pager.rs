//! `pager`: fills the memory of a guest that runs already, out of snapshots. Pages that somebody waits for come first,
//! all others in the order of the files. What the guest gives away before it has come is not put in: it is zeros.
//!
//! Until it is done the guest cannot be moved, saved or measured: what has not come yet looks to the engine as if
//! nobody had ever touched it.

use std::io::ErrorKind;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use migration::destination::{Lazy, RestoreError};
use migration::guest::{GuestError, GuestRam};
use migration::pages::{PAGE_SIZE, PageSet};
use migration::wire::frame::Run;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::End;
use super::supervisor::{FromThread, Notifier, chain};
use crate::cli::exit;
use crate::log;
use crate::memory::{Filled, host_addresses};
use crate::sandbox::{self, Kind};
use crate::userfault::UserFaults;

/// How long the main loop has to end a guest whose memory cannot be had. It may itself wait for a device (to read its
/// counters, to pause it) whose thread waits for a page: nothing but the end of the process ends that.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many bytes of the snapshots are still to be read; shared with whoever asks.
#[derive(Debug, Clone, Default)]
pub struct ToCome(Arc<AtomicU64>);

impl ToCome {
    /// In bytes; 0 when all is there.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// What fills the memory of one guest.
pub struct Pager {
    faults: UserFaults,
    /// Pages, and where in this process the first of them is.
    regions: Vec<(Range<u64>, u64)>,
    lazy: Lazy,
    filled: Filled,
    to_come: ToCome,
}

impl Pager {
    /// Starts to watch all memory, of which nothing may have been touched yet, and the thread that fills it. It tells
    /// `notify` of its end, good or bad.
    ///
    /// # Errors
    /// The memory cannot be watched, or there is no thread.
    pub fn start(
        faults: UserFaults,
        ram: &GuestRam,
        lazy: Lazy,
        filled: Filled,
        to_come: ToCome,
        notify: Notifier,
    ) -> Result<(), GuestError> {
        let failed = |e| GuestError::new("fill the guest's memory as it is touched", e);
        // Pages are counted through all regions.
        let mut pages = 0;
        let mut regions = Vec::new();
        for (region, start) in ram.iter().zip(host_addresses(ram)) {
            let first = pages;
            pages += region.len() / PAGE_SIZE;
            regions.push((first..pages, start));
        }
        for (pages, start) in &regions {
            let bytes = (pages.end - pages.start) * PAGE_SIZE;
            faults.watch(*start, bytes).map_err(failed)?;
        }
        to_come.0.store(lazy.left(), Ordering::Release);
        filled.begin(pages);
        let mut pager = Self {
            faults,
            regions,
            lazy,
            filled,
            to_come,
        };
        // The mapping must outlive the addresses.
        let ram = ram.clone();
        let run = move || {
            sandbox::enter(Kind::Pager);
            let filled = pager.run().map_err(|error| chain(&error));
            let reason = filled.as_ref().err().cloned();
            notify.send(FromThread::Filled(filled));
            if let Some(reason) = reason {
                // The pager stays: were its descriptor closed, whoever waits for a page would find zeros there, and go
                // on with them.
                std::thread::sleep(PATIENCE);
                end_here(reason);
            }
            drop(ram);
        };
        let thread = std::thread::Builder::new().name("pager".into());
        thread.spawn(run).map(drop).map_err(failed)
    }

    /// Fills all memory. After an error pages are missing for which others wait; they wait for ever.
    fn run(&mut self) -> Result<(), RestoreError> {
        loop {
            while let Some(address) = self.faults.waited_for().map_err(watching)? {
                self.serve(address)?;
            }
            let Self {
                faults,
                regions,
                lazy,
                filled,
                to_come,
            } = self;
            let mut install = |run: Run, bytes: &[u8]| {
                put_missing(faults, regions, &mut filled.lock(), run, bytes)
            };
            let more = lazy.advance(&mut install)?;
            if more {
                // None is left when the last digest is right, too.
                to_come.0.store(lazy.left().max(1), Ordering::Release);
                continue;
            }
            for (pages, start) in regions {
                let bytes = (pages.end - pages.start) * PAGE_SIZE;
                let let_be = faults.let_be(*start, bytes);
                let_be.map_err(watching)?;
            }
            filled.end();
            to_come.0.store(0, Ordering::Release);
            return Ok(());
        }
    }

    /// Puts a page in that somebody waits for.
    fn serve(&mut self, address: u64) -> Result<(), RestoreError> {
        let mut regions = self.regions.iter();
        let page = regions.find_map(|(pages, start)| {
            let page = pages.start + address.checked_sub(*start)? / PAGE_SIZE;
            pages.contains(&page).then_some(page)
        });
        let Some(page) = page else {
            let what = format!("a fault at {address:#x}, where no guest memory is");
            return Err(GuestError::bare(what).into());
        };
        // Not under the lock: files may be slow.
        let is_filled = self.filled.lock().contains(page);
        let bytes = match is_filled {
            true => None,
            false => self.lazy.fetch(page)?,
        };
        let put = put_awaited(&self.faults, &mut self.filled.lock(), page, address, bytes);
        put.map_err(watching)
    }
}

/// Puts in a page that somebody waits for: these bytes, or zeros.
fn put_awaited(
    faults: &UserFaults,
    filled: &mut PageSet,
    page: u64,
    address: u64,
    bytes: Option<&[u8]>,
) -> std::io::Result<()> {
    // Several may have waited for it. One that is in the set and missing was given away by the guest since, and is
    // zeros.
    let put = match bytes.filter(|_| !filled.contains(page)) {
        Some(bytes) => faults.put(address, bytes),
        None => faults.put_zeros(address),
    };
    filled.insert(page);
    match put {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => faults.wake(address),
        put => put,
    }
}

/// Puts in what is missing of a run.
fn put_missing(
    faults: &UserFaults,
    regions: &[(Range<u64>, u64)],
    filled: &mut PageSet,
    run: Run,
    bytes: &[u8],
) -> Result<(), GuestError> {
    let end = run.first + u64::from(run.pages);
    let mut regions = regions.iter();
    let Some((pages, start)) = regions.find(|(pages, _)| pages.contains(&run.first)) else {
        return Err(GuestError::bare("pages where no guest memory is"));
    };
    let mut next = run.first;
    while next < end {
        let from = filled.first_outside(next, end);
        let to = filled.first_from(from).unwrap_or(end).min(end);
        if from < to {
            let of =
                |page: u64| usize::try_from((page - run.first) * PAGE_SIZE).unwrap_or(usize::MAX);
            let at = start + (from - pages.start) * PAGE_SIZE;
            let put = faults.put(at, bytes.get(of(from)..of(to)).unwrap_or_default());
            put.map_err(|e| GuestError::new("put a page into guest memory", e))?;
            filled.insert_run(from..to);
        }
        next = to.max(from);
    }
    Ok(())
}

/// Ends the process in the main loop's stead.
fn end_here(reason: String) -> ! {
    let end = End::NoMemory { reason };
    log::complain(&end.to_string());
    std::process::exit(i32::from(exit::of_end(&end)));
}

fn watching(error: std::io::Error) -> RestoreError {
    GuestError::new("fill the guest's memory as it is touched", error).into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use devices::virtio::balloon::GiveBack;
    use migration::touched::touched;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::memory::{Backing, map};
    use crate::vm::BalloonHost;

    #[test]
    fn what_was_given_away_before_it_came_is_zeros_and_is_not_filled() {
        const MIB: u64 = 1 << 20;
        let layout = crate::layout::memory_layout(16 * MIB).unwrap();
        let ram = map(&layout, Backing::Anonymous).unwrap();
        let start = host_addresses(&ram)[0];
        let regions = [(0..layout.pages(), start)];
        let faults = UserFaults::new().unwrap();
        faults.watch(start, 16 * MIB).unwrap();
        let filled = Filled::default();
        filled.begin(layout.pages());
        let mut host = BalloonHost {
            filled: filled.clone(),
        };
        let mut give_back = |pages: Range<u64>| {
            let bytes = pages.start * PAGE_SIZE..pages.end * PAGE_SIZE;
            host.give_back(&ram, &bytes).unwrap();
        };
        let put = |first: u64, pages: u32| {
            let bytes = vec![7; usize::try_from(u64::from(pages) * PAGE_SIZE).unwrap()];
            let run = Run { first, pages };
            put_missing(&faults, &regions, &mut filled.lock(), run, &bytes).unwrap();
        };
        let there = || {
            let touched = touched(&ram, &layout).unwrap();
            touched
                .runs(0..layout.pages(), u64::MAX)
                .collect::<Vec<_>>()
        };
        put(0, 8);
        // Some that have come, some that have not, and some that come while they are fetched.
        give_back(6..12);
        assert_eq!(there(), std::slice::from_ref(&(0..6)));
        put(8, 8);
        assert_eq!(there(), [0..6, 12..16]);
        let address = |page: u64| start + page * PAGE_SIZE;
        let awaited = |page: u64, bytes: Option<&[u8]>| {
            put_awaited(&faults, &mut filled.lock(), page, address(page), bytes).unwrap();
        };
        awaited(10, Some(&[7; 4096]));
        awaited(20, Some(&[7; 4096]));
        awaited(6, None);
        put(16, 8);
        assert_eq!(there(), [0..6, 12..24]);
        faults.let_be(start, 16 * MIB).unwrap();
        let read = |page: u64| {
            ram.read_obj::<u8>(GuestAddress(page * PAGE_SIZE + 9))
                .unwrap()
        };
        for page in 0..32 {
            let expected = match page {
                6..12 | 24.. => 0,
                _ => 7,
            };
            assert_eq!(read(page), expected, "{page}");
        }
    }
}
