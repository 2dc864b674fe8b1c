//! A guest without KVM: memory that threads write to, with a log of what they wrote, and a model of what the
//! memory must hold. Source and destination of a test share one [`World`], which knows the truth: what every
//! page holds, and how many guests run.
#![allow(
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    reason = "each test uses its part of it"
)]

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use migration::guest::{Description, GuestError, GuestRam};
use migration::pages::{MemoryLayout, PAGE_SIZE, Region};
use migration::state::{Kind, VmState};
use migration::work::{Baseline, VcpuWork};
use vm_memory::{Bytes, GuestAddress};

mod content;
mod guest;
mod log;
pub mod run;

pub use content::Content;
pub use guest::{FakeHost, Paused, Running, boot, unbooted, unbooted_in_files};
pub use log::FakeLog;

/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;

/// What goes wrong on purpose.
#[derive(Debug, Default)]
pub struct Faults {
    pub refuse: Option<&'static str>,
    pub pause: bool,
    pub save: bool,
    pub load: bool,
    pub resume_there: bool,
    /// Somebody else takes the fence as soon as the source lets go of it.
    pub thief: bool,
    pub let_go: bool,
    pub start_log: bool,
    pub take: bool,
    /// So long after its arrival no heartbeat of the guest is seen.
    pub quiet: Duration,
}

/// Where the source panics on purpose, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Panic {
    /// On a thread of a further stream, as it arms pages.
    Stream,
    /// Where the guest, paused, is saved.
    Save,
}

/// A panic to come.
#[derive(Debug, Clone, Default)]
pub struct ToPanic(Arc<Mutex<Option<Panic>>>);

impl ToPanic {
    pub fn set(&self, panic: Panic) {
        *self.0.lock().unwrap() = Some(panic);
    }

    pub fn at(&self, here: Panic) {
        let due = self.0.lock().unwrap().take_if(|panic| *panic == here);
        assert_eq!(due, None, "panics on purpose");
    }
}

/// How the guest writes.
#[derive(Debug, Clone, Default)]
pub struct Writer {
    /// Pages that it writes, round and round.
    pub pages: Range<u64>,
    /// How many of them in a millisecond, at full speed; each once at most between two looks at the clock.
    pub per_ms: u64,
}

/// Who may run a guest, as the lock of its disk has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    Source,
    Destination,
    Thief,
}

/// The truth about a guest.
#[derive(Debug)]
pub struct World {
    pub layout: MemoryLayout,
    /// The stamp of each page; 0 for a page of zeros.
    stamps: Vec<AtomicU64>,
    next: AtomicU64,
    running: AtomicI64,
    fence: Mutex<Option<Holder>>,
    /// Set when two guests ran at a time. Never forgiven.
    twice: AtomicBool,
    /// Throttles in the order in which they were asked for.
    pub throttles: Mutex<Vec<(u8, Duration)>>,
    pub writer: Writer,
    pub faults: Faults,
    pub panics: ToPanic,
    pub content: Content,
    /// The memory of the guest that the destination last made.
    pub there: Mutex<Option<Arc<GuestRam>>>,
    /// The destination touches its memory before it is filled, which costs more than the move itself.
    pub warm: AtomicBool,
    /// What the guest says of its work, when a move begins and when it is paused; None counts nothing.
    pub work: Mutex<Option<(Baseline, Vec<VcpuWork>)>>,
    /// How long what it has on disks takes to get there each time, one after the other; then nothing is left.
    pub settles: Mutex<Vec<Duration>>,
    /// How long its disks keep it each time that it is paused or saved.
    pub disks: Mutex<Duration>,
    /// How long its state had been saved, as the destination had seen, when it was loaded.
    pub stood: Mutex<Duration>,
}

/// A layout of regions of so many MiB: the first at 0, the others from 4 GiB on with gaps.
pub fn layout(mib: &[u64]) -> MemoryLayout {
    let regions = mib.iter().enumerate().map(|(i, mib)| Region {
        gpa: u64::try_from(i).unwrap() * (4 << 30),
        bytes: mib * MIB,
    });
    MemoryLayout::new(regions.collect()).unwrap()
}

impl World {
    pub fn new(mib: &[u64], writer: Writer, faults: Faults) -> Arc<Self> {
        Self::of(Content::Stamped, mib, writer, faults)
    }

    /// A guest with such pages.
    pub fn of(content: Content, mib: &[u64], writer: Writer, faults: Faults) -> Arc<Self> {
        let layout = layout(mib);
        let pages = layout.pages();
        Arc::new(Self {
            layout,
            stamps: (0..pages).map(|_| AtomicU64::new(0)).collect(),
            next: AtomicU64::new(1),
            running: AtomicI64::new(0),
            fence: Mutex::default(),
            twice: AtomicBool::new(false),
            throttles: Mutex::default(),
            writer,
            faults,
            panics: ToPanic::default(),
            content,
            there: Mutex::default(),
            warm: AtomicBool::new(false),
            work: Mutex::default(),
            settles: Mutex::default(),
            disks: Mutex::default(),
            stood: Mutex::default(),
        })
    }

    /// An idle guest.
    pub fn idle(mib: &[u64]) -> Arc<Self> {
        Self::new(mib, Writer::default(), Faults::default())
    }

    fn wait_for_disks(&self) {
        let wait = *self.disks.lock().unwrap();
        std::thread::sleep(wait);
    }

    pub fn running(&self) -> i64 {
        assert!(!self.twice.load(SeqCst), "two guests ran at the same time");
        self.running.load(SeqCst)
    }

    /// Who holds the fence now.
    pub fn holder(&self) -> Option<Holder> {
        *self.fence.lock().unwrap()
    }

    /// A thief lets go.
    pub fn give_back(&self) {
        *self.fence.lock().unwrap() = None;
    }

    fn started(&self) {
        if self.running.fetch_add(1, SeqCst) != 0 {
            self.twice.store(true, SeqCst);
        }
    }

    fn stopped(&self) {
        self.running.fetch_sub(1, SeqCst);
    }

    fn fault(&self, wanted: bool, act: &str) -> Result<(), GuestError> {
        match wanted {
            true => Err(GuestError::bare(format!("cannot {act} on purpose"))),
            false => Ok(()),
        }
    }

    fn description(&self) -> Description {
        let mut sections = VmState::default();
        sections.put(Kind::CPU_MODEL, 0, 1, &"fake").unwrap();
        Description {
            layout: self.layout.clone(),
            vcpus: 2,
            sections,
        }
    }

    /// Every page of `ram` that does not hold what it must.
    pub fn wrong_pages(&self, ram: &GuestRam) -> Vec<u64> {
        let mut page = vec![0u8; usize::try_from(PAGE_SIZE).unwrap()];
        let wrong = |&index: &u64| {
            let at = GuestAddress(self.layout.gpa(index).unwrap());
            ram.read_slice(&mut page, at).unwrap();
            let stamp = self.stamps[usize::try_from(index).unwrap()].load(SeqCst);
            let words = self.content.page(index, stamp);
            page[..] != words[..]
        };
        (0..self.layout.pages()).filter(wrong).collect()
    }
}
