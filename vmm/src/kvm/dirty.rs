//! The dirty log of a guest: KVM's bitmap of what vCPUs write, and our own marks of what the VMM writes. The other
//! kind, with a ring a vCPU, is in [`ring`](super::ring).

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
};
use kvm_ioctls::VmFd;
use migration::dirty::DirtyLog;
use migration::guest::{GuestError, GuestRam};
use migration::pages::{MemoryLayout, PageSet};
use migration::touched::touched;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::{KvmError, raw};
use crate::memory;

/// What the VMM itself needs of a dirty log, whichever it is.
pub trait VmLog: DirtyLog + fmt::Debug {
    /// How KVM logs, in a word.
    fn kind(&self) -> &'static str;

    /// Whether the log is on.
    fn is_on(&self) -> bool;

    /// Called by a vCPU's thread when KVM lets the vCPU go on only after its log was read.
    fn make_room(&self, _vcpu: u8) {}
}

/// The ways in which KVM can log dirty pages in a bitmap, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogMode {
    /// Manual protect with all pages set at the start: no stall when the log starts.
    InitiallySet,
    /// Manual protect alone.
    Manual,
    /// KVM_GET_DIRTY_LOG reads and clears in one go.
    Plain,
}

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
    pub fn new(vm: Arc<VmFd>, ram: GuestRam, layout: MemoryLayout) -> Self {
        Self {
            mode: enable_manual_protect(&vm),
            vm,
            ram,
            layout,
            everything: AtomicBool::new(false),
            on: AtomicBool::new(false),
        }
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

    /// Adds what KVM's log says.
    fn read(&self, into: &mut PageSet) -> Result<(), GuestError> {
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
        }
        Ok(())
    }
}

impl DirtyLog for KvmDirtyLog {
    fn start(&self) -> Result<(), GuestError> {
        // Off first: KVM sets all bits anew only when the flag goes from off to on.
        if self.on.swap(false, Ordering::AcqRel) {
            set_flag(&self.vm, &self.ram, false)?;
        }
        if self.mode == LogMode::InitiallySet {
            set_manual_protect(&self.vm, self.gentler())
                .map_err(|source| GuestError::new("start KVM's dirty log", source))?;
        }
        set_flag(&self.vm, &self.ram, true)?;
        self.on.store(true, Ordering::Release);
        self.everything.store(true, Ordering::Release);
        Ok(())
    }

    fn take(&self, into: &mut PageSet) -> Result<(), GuestError> {
        self.read(into)?;
        take_marks(&self.ram, &self.layout, into);
        if self.everything.swap(false, Ordering::AcqRel) {
            into.fill();
        }
        Ok(())
    }

    /// With manual protect KVM_GET_DIRTY_LOG leaves everything as it is.
    fn peek(&self, into: &mut PageSet) -> Result<bool, GuestError> {
        if self.mode == LogMode::Plain {
            return Ok(false);
        }
        self.read(into)?;
        peek_marks(&self.ram, &self.layout, into);
        Ok(true)
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
            set_flag(&self.vm, &self.ram, false)?;
        }
        Ok(())
    }
}

impl VmLog for KvmDirtyLog {
    fn kind(&self) -> &'static str {
        match self.mode {
            LogMode::InitiallySet | LogMode::Manual => "manual_protect",
            LogMode::Plain => "get_and_clear",
        }
    }

    fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }
}

/// Sets the logging flag of every slot, or of none where it cannot be set: those that had it would keep it, since a log
/// that has not started is not stopped.
pub(super) fn set_flag(vm: &VmFd, ram: &GuestRam, on: bool) -> Result<(), GuestError> {
    memory::register(vm, ram, on).map_err(|source| {
        if on {
            let _ = memory::register(vm, ram, false);
        }
        let act = if on { "start" } else { "stop" };
        GuestError::new(format!("{act} KVM's dirty log"), source)
    })
}

/// Adds the pages that the VMM itself has written.
pub(super) fn take_marks(ram: &GuestRam, layout: &MemoryLayout, into: &mut PageSet) {
    for (region, (_, range)) in ram.iter().zip(layout.ranges()) {
        // The mapping's own marks; the trait's method of the same name gives a view of a part.
        (**region).bitmap().take(range.start, into);
    }
}

/// The same, and they stay.
pub(super) fn peek_marks(ram: &GuestRam, layout: &MemoryLayout, into: &mut PageSet) {
    for (region, (_, range)) in ram.iter().zip(layout.ranges()) {
        (**region).bitmap().peek(range.start, into);
    }
}

/// Turns manual dirty-log protection on as far as this KVM has it (Documentation/virt/kvm/api.rst, 7.17 in
/// Linux 6.1: bit 0 manual protect, bit 1 initially set).
fn enable_manual_protect(vm: &VmFd) -> LogMode {
    let offered = vm.check_extension_raw(u64::from(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2));
    let offered = u32::try_from(offered).unwrap_or(0);
    let has = |flag| offered & flag != 0;
    let best = match has(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE) {
        true if has(KVM_DIRTY_LOG_INITIALLY_SET) => LogMode::InitiallySet,
        true => LogMode::Manual,
        false => return LogMode::Plain,
    };
    match set_manual_protect(vm, best) {
        Ok(()) => best,
        Err(_) => LogMode::Plain,
    }
}

/// Chooses between the two ways of manual protection for the next start of the log.
fn set_manual_protect(vm: &VmFd, mode: LogMode) -> Result<(), KvmError> {
    let flags = match mode {
        LogMode::InitiallySet => KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET,
        LogMode::Manual => KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
        LogMode::Plain => 0,
    };
    let act = "choose how the dirty log protects pages";
    super::enable_capability(vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, flags.into(), act)
}
