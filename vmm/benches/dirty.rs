//! What a round with few dirty pages costs besides the pages themselves, by the size of the guest: reading the log
//! (sync), finding the pages in the set (scan), and arming them again.
//! `cargo bench -p vmm` prints a table; it needs /dev/kvm, one that emulates will do.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuExit, VcpuFd};
use migration::dirty::{DirtyLog, Tracking};
use migration::pages::{MemoryLayout, PageSet};
use vm_memory::{Bytes, GuestAddress};
use vmm::kvm::dirty::KvmDirtyLog;
use vmm::kvm::ring::log::{LOOK, RingLog};
use vmm::kvm::ring::{DEFAULT_ENTRIES, offer};
use vmm::kvm::{self, tiny};
use vmm::layout::{LOW_RAM_END, memory_layout};
use vmm::memory;

/// Guests, in GiB.
const SIZES: [u64; 4] = [1, 2, 4, 8];
/// Pages that the guest writes in a round, evenly over its memory below the 32-bit gap.
const PAGES: u32 = 64;
/// Rounds of which the median is taken.
const ROUNDS: usize = 301;
/// Pages that are armed at once on a quick link, see `migration::source::precopy`.
const PIECE: u64 = 2048;
/// Where the code lies.
const CODE: u64 = 0x1000;

/// A guest that writes its pages whenever it is run.
struct Writer {
    vcpu: VcpuFd,
    log: Arc<dyn DirtyLog>,
    layout: MemoryLayout,
}

impl Writer {
    fn new(gib: u64, tracking: Tracking) -> Self {
        let kvm = kvm::open().unwrap();
        let layout = memory_layout(gib << 30).unwrap();
        let vm = Arc::new(kvm::create_vm(&kvm).unwrap());
        if tracking == Tracking::Ring {
            offer::enable(&kvm, &vm, DEFAULT_ENTRIES).unwrap();
        }
        let ram = memory::map(&layout, memory::Backing::Anonymous).unwrap();
        memory::register(&vm, &ram, false).unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        tiny::enter_protected_mode(&vcpu).unwrap();
        ram.write_slice(&tiny::PAGE_WRITER, GuestAddress(CODE))
            .unwrap();
        let vcpus = [vcpu];
        let log: Arc<dyn DirtyLog> = match tracking {
            Tracking::Bitmap => Arc::new(KvmDirtyLog::new(vm, ram, layout.clone())),
            Tracking::Ring => {
                let layout = layout.clone();
                Arc::new(RingLog::new(vm, ram, layout, &vcpus, DEFAULT_ENTRIES, LOOK).unwrap())
            }
        };
        let [vcpu] = vcpus;
        Self { vcpu, log, layout }
    }

    fn write(&mut self) {
        let low = self.layout.bytes().min(LOW_RAM_END);
        let stride = u32::try_from(low / u64::from(PAGES + 1)).unwrap();
        let regs = tiny::write_pages(CODE, stride, stride, PAGES, 0);
        self.vcpu.set_regs(&regs).unwrap();
        match self.vcpu.run().unwrap() {
            VcpuExit::IoOut(tiny::DONE_PORT, _) => {}
            other => panic!("the writer left with {other:?}"),
        }
    }
}

/// What each part of a round took.
#[derive(Default)]
struct Spent {
    sync: Vec<Duration>,
    scan: Vec<Duration>,
    arm: Vec<Duration>,
}

fn rounds(writer: &mut Writer) -> Spent {
    let mut spent = Spent::default();
    let mut set = PageSet::empty(writer.layout.pages());
    writer.log.start().unwrap();
    // The first names everything.
    writer.log.take(&mut set).unwrap();
    for piece in set.pieces(&writer.layout, PIECE) {
        writer.log.rearm(&set, piece).unwrap();
    }
    for round in 0..ROUNDS + 5 {
        writer.write();
        let began = Instant::now();
        set.clear();
        writer.log.take(&mut set).unwrap();
        let sync = began.elapsed();

        let began = Instant::now();
        assert!(set.len() >= u64::from(PAGES) && set.len() < 2 * u64::from(PAGES));
        let pieces: Vec<_> = set.pieces(&writer.layout, PIECE).collect();
        let runs = |piece: &Range<u64>| set.runs(piece.clone(), u64::MAX).count();
        let runs: usize = pieces.iter().map(runs).sum();
        let scan = began.elapsed();
        assert!(runs >= PAGES as usize);

        let began = Instant::now();
        for piece in pieces {
            writer.log.rearm(&set, piece).unwrap();
        }
        let arm = began.elapsed();
        if round >= 5 {
            spent.sync.push(sync);
            spent.scan.push(scan);
            spent.arm.push(arm);
        }
    }
    writer.log.stop().unwrap();
    spent
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e6
}

fn main() {
    println!("| guest | log | sync us | scan us | arm us |\n|---|---|---|---|---|");
    for gib in SIZES {
        for tracking in [Tracking::Bitmap, Tracking::Ring] {
            let Spent { sync, scan, arm } = rounds(&mut Writer::new(gib, tracking));
            let [sync, scan, arm] = [sync, scan, arm].map(median);
            println!("| {gib} GiB | {tracking:?} | {sync:.1} | {scan:.1} | {arm:.1} |");
        }
    }
}
