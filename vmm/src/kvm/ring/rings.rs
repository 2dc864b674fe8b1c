//! The rings of a VM: who reads them when, and when they are handed back.

use std::io;
use std::ops::{Deref, Range};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use migration::guest::GuestError;
use migration::pages::{MemoryLayout, PageSet};

use super::entry::Entry;
use super::found::Found;
use super::hand_back::{hand_back, pass_over};
use super::reader::{Course, Ring};

/// A vCPU that found no room in its ring and nothing to clear out waits for so long before it tries again.
const NOTHING_TO_CLEAR: Duration = Duration::from_millis(1);

const OVERFLOW: &str = "a dirty ring was full to its last entry, and KVM may have left writes out";

/// Tells KVM to take back what was read, and says how many entries that were.
pub type Reset = dyn Fn() -> io::Result<u32> + Send + Sync;

/// All rings of a VM, shared by its vCPUs, the collector and the log.
pub struct Rings<M> {
    reset: Box<Reset>,
    /// One thread at a time reads and hands back. KVM itself goes on writing.
    inner: Mutex<Inner<M>>,
}

struct Inner<M> {
    rings: Vec<Ring<M>>,
    /// For each ring: its vCPU found it full and there was nothing to clear out, and there has been nothing since.
    stalled: Vec<bool>,
    found: Found,
    /// When everything that was read was handed back last.
    handed_back: Instant,
}

impl<M: Deref<Target = [Entry]>> Inner<M> {
    /// Reads one ring. Says how many entries it had.
    fn read(&mut self, vcpu: usize) -> u64 {
        let Self {
            rings,
            stalled,
            found,
            ..
        } = self;
        let (Some(ring), Some(stalled)) = (rings.get_mut(vcpu), stalled.get_mut(vcpu)) else {
            return 0;
        };
        let look = ring.read(&mut |place| found.note(vcpu, place));
        *stalled &= look.pages == 0;
        if look.overflow {
            found.overflowed(vcpu);
        }
        look.pages
    }

    /// KVM says that a ring is full, and there is nothing in it. If it says so again, then there are entries where
    /// none should be, or it counts some that were written over.
    fn search(&mut self, vcpu: usize, reset: &Reset) -> io::Result<()> {
        let Self {
            rings,
            stalled,
            found,
            ..
        } = self;
        let (Some(ring), Some(stalled)) = (rings.get_mut(vcpu), stalled.get_mut(vcpu)) else {
            return Ok(());
        };
        if !std::mem::replace(stalled, true) {
            return Ok(());
        }
        ring.sweep(&mut |place| found.note(vcpu, place));
        found.overflowed(vcpu);
        if ring.unreturned() == 0 && pass_over(rings, vcpu, reset)? {
            found.lose(OVERFLOW);
        }
        Ok(())
    }

    fn read_all(&mut self) {
        for vcpu in 0..self.rings.len() {
            self.read(vcpu);
        }
    }

    fn hand_back(&mut self, reset: &Reset) -> io::Result<()> {
        let Self {
            rings,
            stalled,
            found,
            handed_back,
        } = self;
        for (stalled, ring) in stalled.iter_mut().zip(&*rings) {
            *stalled &= ring.unreturned() == 0;
        }
        let overflow = hand_back(rings, reset, &mut |vcpu, place| found.note(vcpu, place));
        if overflow? {
            found.lose(OVERFLOW);
        }
        found.handed_back();
        *handed_back = Instant::now();
        Ok(())
    }

    /// Reads all rings and hands them back: every page found so far is protected again.
    fn protect_found(&mut self, reset: &Reset) -> Result<(), GuestError> {
        self.read_all();
        self.hand_back(reset)
            .map_err(|source| GuestError::new("hand KVM's dirty rings back", source))
    }
}

impl<M: Deref<Target = [Entry]>> Rings<M> {
    /// The rings of a VM's vCPUs, in order, each with at least one entry; memory slot n is region n of the layout.
    pub fn new(rings: Vec<M>, layout: &MemoryLayout, reset: Box<Reset>) -> Self {
        let rings: Vec<_> = rings.into_iter().map(Ring::new).collect();
        let found = Found::new(layout, rings.len());
        Self {
            reset,
            inner: Mutex::new(Inner {
                stalled: vec![false; rings.len()],
                rings,
                found,
                handed_back: Instant::now(),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<M>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a vCPU that left the guest because its ring is full, by its own thread: clears it out. The others go on. For
    /// no other reason: a ring that is said to be full time and again, and is not, would be brought out of order.
    pub fn make_room(&self, vcpu: usize) {
        let mut inner = self.lock();
        let entries = inner.read(vcpu);
        let waiting = inner.rings.get(vcpu).map_or(0, Ring::unreturned);
        // The collector may have come before us, once.
        let nothing = entries == 0 && waiting == 0;
        let searched = match nothing {
            true => inner.search(vcpu, &*self.reset),
            false => Ok(()),
        };
        if let Err(error) = searched.and_then(|()| inner.hand_back(&*self.reset)) {
            // The next take meets the same, and tells who waits for it.
            tracing::debug!("make room in the dirty ring of vCPU {vcpu}: {error}");
        }
        drop(inner);
        if nothing {
            std::thread::sleep(NOTHING_TO_CLEAR);
        }
    }

    /// Reads all rings, and hands back where one is half full: not sooner, since a page that is handed back costs the
    /// guest another fault when it is written again.
    pub fn collect(&self) {
        let mut inner = self.lock();
        inner.read_all();
        let full = |ring: &Ring<M>| {
            ring.unreturned() >= ring.size() / 2
                || (ring.course() != Course::Sure && ring.unreturned() > 0)
        };
        if inner.rings.iter().any(full)
            && let Err(error) = inner.hand_back(&*self.reset)
        {
            // The next take meets the same, and tells who waits for it.
            tracing::debug!("hand back the dirty rings: {error}");
        }
    }

    /// Adds all pages found since the last time to `into`, every one of them protected again. Where pages may be
    /// missing, `protect` has to protect all memory, and every page is added.
    ///
    /// # Errors
    /// Pages could not be protected; nothing was taken.
    pub fn take(
        &self,
        into: &mut PageSet,
        protect: &dyn Fn() -> Result<(), GuestError>,
    ) -> Result<(), GuestError> {
        let mut inner = self.lock();
        inner.protect_found(&*self.reset)?;
        if inner.found.is_lost() {
            // A page whose entry was lost is not protected, and nothing would tell of further writes to it.
            protect()?;
        }
        inner.found.take(into);
        Ok(())
    }

    /// For pages of `set` within `range` that are about to be read: forgets those that were written since the last
    /// [`take`](Self::take) and are protected again. So that they are, the rings are read and handed back where that
    /// was not done for as long as `apart`: not more often, since the guest pays a fault for the next write to each
    /// page.
    ///
    /// # Errors
    /// Pages could not be protected; nothing was forgotten.
    pub fn rearm(
        &self,
        set: &PageSet,
        range: Range<u64>,
        apart: Duration,
    ) -> Result<(), GuestError> {
        let mut inner = self.lock();
        if inner.handed_back.elapsed() >= apart {
            inner.protect_found(&*self.reset)?;
        }
        inner.found.rearm(set, range);
        Ok(())
    }

    /// Adds all pages found since the last [`take`](Self::take) to `into`, and keeps them for the next one. They are
    /// not protected again.
    pub fn peek(&self, into: &mut PageSet) {
        let mut inner = self.lock();
        inner.read_all();
        inner.found.peek(into);
    }

    /// Forgets everything found so far, in the rings and out of them.
    ///
    /// # Errors
    /// KVM does not take the entries back.
    pub fn forget(&self) -> io::Result<()> {
        let mut inner = self.lock();
        inner.read_all();
        inner.hand_back(&*self.reset)?;
        inner.found.forget();
        Ok(())
    }

    /// How many pages each vCPU has logged since [`forget`](Self::forget): one that was taken and then
    /// written again counts again.
    pub fn written(&self) -> Vec<u64> {
        let mut inner = self.lock();
        inner.read_all();
        inner.found.written().to_vec()
    }
}
