//! The dirty log of a guest: KVM's log of what vCPUs write, and our own bitmap of what the VMM writes.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_ioctls::VmFd;
use migration::dirty::DirtyLog;
use migration::guest::{GuestError, GuestRam};
use migration::pages::{MemoryLayout, PageSet};
use migration::touched::touched;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::{LogMode, raw};
use crate::memory;

/// The most pages (1 GiB) that are protected in one go when the log starts: vCPUs cannot fault pages in for
/// about 2 ms.
const IN_ONE_GO: u64 = 1 << 18;

/// KVM's dirty log over all memory slots, joined with the bitmap of guest memory itself.
#[derive(Debug)]
pub struct KvmDirtyLog {
    vm: Arc<VmFd>,
    ram: GuestRam,
    layout: MemoryLayout,
    mode: LogMode,
    /// The next `take` names every page, whatever KVM says.
    everything: AtomicBool,
    on: AtomicBool,
}

impl KvmDirtyLog {
    /// The log of a VM whose slots are the regions of `layout`, in order.
    pub fn new(vm: Arc<VmFd>, ram: GuestRam, layout: MemoryLayout, mode: LogMode) -> Self {
        Self {
            vm,
            ram,
            layout,
            mode,
            everything: AtomicBool::new(false),
            on: AtomicBool::new(false),
        }
    }

    /// How KVM logs here, in a word.
    pub fn kind(&self) -> &'static str {
        match self.mode {
            LogMode::InitiallySet | LogMode::Manual => "manual_protect",
            LogMode::Plain => "get_and_clear",
        }
    }

    /// Whether the log is on.
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// How to start the log at the least cost. With all bits set at the start, every page of the guest has to be
    /// re-armed once, touched or not, 1.7 ms a GiB; without, KVM protects those that are mapped at the start, in
    /// one go, and again when they are re-armed.
    fn gentler(&self) -> LogMode {
        let few = touched(&self.ram, &self.layout)
            .is_ok_and(|set| set.len() <= IN_ONE_GO && set.len() * 2 < self.layout.pages());
        match few {
            true => LogMode::Manual,
            false => LogMode::InitiallySet,
        }
    }

    /// Sets the logging flag of every slot.
    fn set_flag(&self, on: bool) -> Result<(), GuestError> {
        memory::register(&self.vm, &self.ram, on).map_err(|source| {
            let act = if on { "start" } else { "stop" };
            GuestError::new(format!("{act} KVM's dirty log"), source)
        })
    }
}

impl DirtyLog for KvmDirtyLog {
    fn start(&self) -> Result<(), GuestError> {
        // Off first: KVM sets all bits anew only when the flag goes from off to on.
        if self.on.swap(false, Ordering::AcqRel) {
            self.set_flag(false)?;
        }
        if self.mode == LogMode::InitiallySet {
            super::set_manual_protect(&self.vm, self.gentler())
                .map_err(|source| GuestError::new("start KVM's dirty log", source))?;
        }
        self.set_flag(true)?;
        self.on.store(true, Ordering::Release);
        self.everything.store(true, Ordering::Release);
        Ok(())
    }

    fn take(&self, into: &mut PageSet) -> Result<(), GuestError> {
        for ((slot, region), (_, range)) in (0u32..).zip(self.ram.iter()).zip(self.layout.ranges())
        {
            let bytes = usize::try_from(region.len()).unwrap_or(usize::MAX);
            let log = self.vm.get_dirty_log(slot, bytes).map_err(|source| {
                GuestError::new(
                    format!("read KVM's dirty log of memory slot {slot}"),
                    source,
                )
            })?;
            into.insert_words(range.start, &log);
            // The mapping's own marks; the trait's method of the same name gives a view of a part.
            (**region).bitmap().take(range.start, into);
        }
        if self.everything.swap(false, Ordering::AcqRel) {
            into.fill();
        }
        Ok(())
    }

    fn rearm(&self, set: &PageSet, range: Range<u64>) -> Result<(), GuestError> {
        if self.mode == LogMode::Plain {
            return Ok(());
        }
        for (slot, (_, pages)) in (0u32..).zip(self.layout.ranges()) {
            let part = range.start.max(pages.start)..range.end.min(pages.end);
            if part.is_empty() {
                continue;
            }
            let within = part.start - pages.start..part.end - pages.start;
            raw::clear_dirty_log(&self.vm, slot, within, set.words(part.clone())).map_err(
                |source| {
                    GuestError::new(
                        format!("re-arm pages {part:?} of KVM's dirty log, memory slot {slot}"),
                        source,
                    )
                },
            )?;
        }
        Ok(())
    }

    fn stop(&self) -> Result<(), GuestError> {
        if self.on.swap(false, Ordering::AcqRel) {
            self.set_flag(false)?;
        }
        Ok(())
    }
}
