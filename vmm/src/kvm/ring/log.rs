//! The dirty log that stands on the rings of a VM's vCPUs.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kvm_ioctls::{VcpuFd, VmFd};
use migration::dirty::{DirtyLog, Tracking};
use migration::guest::{GuestError, GuestRam};
use migration::pages::{MemoryLayout, PageSet};

use super::mapping::Mapping;
use super::rings::Rings;
use crate::kvm::dirty::{VmLog, peek_marks, set_flag, take_marks};
use crate::kvm::raw;
use crate::sandbox::{self, Kind};

/// How often the collector looks as a rule, so that rings do not fill while a round is under way. A vCPU that writes a
/// page a microsecond fills half of 65,536 entries in 33 ms.
pub const LOOK: Duration = Duration::from_millis(5);

/// So long apart rings are handed back in the middle of a round. A page that was written up to so long before it is
/// sent goes again with the next; each page that is written all the time costs its vCPU a fault more in that time.
const HAND_BACK: Duration = Duration::from_millis(10);

/// The rings of a VM's vCPUs, joined with the marks of guest memory itself.
///
/// The marks are needed for what the VMM writes. Guest memory that KVM itself writes (kvmclock, steal time, APIC state)
/// it writes for a vCPU, and logs in that vCPU's ring. Writes for no vCPU, which KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP is
/// for, are arm64's interrupt tables; x86 has none of them and not that capability (api.rst, 8.29;
/// `kvm_arch_allow_write_without_running_vcpu` in virt/kvm/dirty_ring.c).
pub struct RingLog {
    rings: Arc<Rings<Mapping>>,
    vm: Arc<VmFd>,
    ram: GuestRam,
    layout: MemoryLayout,
    /// The next `take` names every page.
    everything: AtomicBool,
    on: AtomicBool,
    look: Duration,
    collector: Mutex<Option<Collector>>,
}

impl fmt::Debug for RingLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RingLog")
    }
}

impl RingLog {
    /// The log of a VM whose slots are the regions of `layout`, in order, that was made with rings of so many
    /// `entries`. Every `look` ([`LOOK`]) it is seen to it that none of them fills.
    ///
    /// # Errors
    /// A vCPU has no such ring.
    pub fn new(
        vm: Arc<VmFd>,
        ram: GuestRam,
        layout: MemoryLayout,
        vcpus: &[VcpuFd],
        entries: u32,
        look: Duration,
    ) -> Result<Self, GuestError> {
        let map = |(index, vcpu): (usize, &VcpuFd)| {
            Mapping::of(vcpu, entries).map_err(|source| {
                GuestError::new(format!("map the dirty ring of vCPU {index}"), source)
            })
        };
        let mappings: Result<Vec<_>, _> = vcpus.iter().enumerate().map(map).collect();
        let kvm = vm.clone();
        let reset = Box::new(move || raw::reset_dirty_rings(&kvm));
        Ok(Self {
            rings: Arc::new(Rings::new(mappings?, &layout, reset)),
            vm,
            ram,
            layout,
            everything: AtomicBool::new(false),
            on: AtomicBool::new(false),
            look,
            collector: Mutex::new(None),
        })
    }

    /// Starts or ends the collector.
    fn set_collector(&self, collector: Option<Collector>) {
        let mut place = self
            .collector
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *place = collector;
    }

    /// Takes the logging flag off every slot and sets it again: KVM protects all memory.
    fn protect(&self) -> Result<(), GuestError> {
        set_flag(&self.vm, &self.ram, false)?;
        set_flag(&self.vm, &self.ram, true)
    }
}

impl DirtyLog for RingLog {
    fn start(&self) -> Result<(), GuestError> {
        let collector = Collector::spawn(self.rings.clone(), self.look)
            .map_err(|source| GuestError::new("start the collector of dirty rings", source))?;
        // Before memory is protected: what is lost from then on must not be forgotten.
        self.rings
            .forget()
            .map_err(|source| GuestError::new("empty KVM's dirty rings", source))?;
        // Off first, where it was on: KVM protects memory only when the flag goes from off to on.
        self.protect()?;
        self.everything.store(true, Ordering::Release);
        self.on.store(true, Ordering::Release);
        self.set_collector(Some(collector));
        Ok(())
    }

    fn take(&self, into: &mut PageSet) -> Result<(), GuestError> {
        self.rings.take(into, &|| self.protect())?;
        take_marks(&self.ram, &self.layout, into);
        if self.everything.swap(false, Ordering::AcqRel) {
            into.fill();
        }
        Ok(())
    }

    /// Reads the rings and keeps what was in them for the next `take`.
    fn peek(&self, into: &mut PageSet) -> Result<bool, GuestError> {
        self.rings.peek(into);
        peek_marks(&self.ram, &self.layout, into);
        Ok(true)
    }

    /// `take` has handed back what it took, and that has protected the pages; what else there is has been protected
    /// since the log was started. Those that were written meanwhile need not be sent again, if they are protected.
    fn rearm(&self, set: &PageSet, range: Range<u64>) -> Result<(), GuestError> {
        self.rings.rearm(set, range, HAND_BACK)
    }

    fn stop(&self) -> Result<(), GuestError> {
        self.set_collector(None);
        if self.on.swap(false, Ordering::AcqRel) {
            set_flag(&self.vm, &self.ram, false)?;
        }
        Ok(())
    }

    fn tracking(&self) -> Tracking {
        Tracking::Ring
    }

    fn written_by_vcpu(&self) -> Option<Vec<u64>> {
        Some(self.rings.written())
    }
}

impl VmLog for RingLog {
    fn kind(&self) -> &'static str {
        "ring"
    }

    fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    fn make_room(&self, vcpu: u8) {
        self.rings.make_room(usize::from(vcpu));
    }
}

/// The thread that looks into the rings every few milliseconds while the log is on. Ends when dropped.
struct Collector {
    /// Closed to end it.
    alive: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    fn spawn(rings: Arc<Rings<Mapping>>, look: Duration) -> std::io::Result<Self> {
        let (alive, ended) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("dirty-ring".into())
            .spawn(move || {
                sandbox::enter(Kind::DirtyRing);
                while ended.recv_timeout(look) == Err(RecvTimeoutError::Timeout) {
                    rings.collect();
                }
            })?;
        Ok(Self {
            alive: Some(alive),
            thread: Some(thread),
        })
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.alive = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
