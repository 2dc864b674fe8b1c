//! What a round with few dirty pages costs besides the pages themselves, by the size of the guest: reading the log
//! (sync), finding the pages in the set (scan), and arming them again.
//! `cargo bench -p vmm --bench dirty` prints a table; it needs /dev/kvm, one that emulates will do.
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
/// A guest that is reckoned, in GiB.
const FAR: u64 = 128;
/// Pages that the guest writes in a round, evenly over its memory below the 32-bit gap.
const PAGES: u32 = 64;
/// Rounds of which the median is taken.
const ROUNDS: usize = 301;
/// Times that all is measured; the middle one counts.
const PASSES: usize = 7;
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

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Medians of sync, scan and arming.
type Costs = [Duration; 3];

/// The middle ones of several passes.
fn middle(passes: &[Costs]) -> [f64; 3] {
    [0, 1, 2].map(|part| {
        let all = passes.iter().map(|costs| costs[part]).collect();
        median(all).as_secs_f64() * 1e6
    })
}

fn row(guest: &str, [bitmap, ring]: [[f64; 3]; 2]) {
    let cells = |costs: [f64; 3]| costs.map(|cost| format!("{cost:.1}")).join(" | ");
    println!("| {guest} | {} | {} |", cells(bitmap), cells(ring));
}

fn main() {
    let logs = [Tracking::Bitmap, Tracking::Ring];
    let mut all = SIZES.map(|_| [Vec::new(), Vec::new()]);
    // All sizes in each pass, so that a busy moment of the machine does not hit one alone.
    for _ in 0..PASSES {
        for (gib, both) in SIZES.iter().zip(&mut all) {
            for (tracking, costs) in logs.iter().zip(both) {
                let Spent { sync, scan, arm } = rounds(&mut Writer::new(*gib, *tracking));
                costs.push([sync, scan, arm].map(median));
            }
        }
    }
    println!("Microseconds in a round over {PAGES} dirty pages: sync, scan and arming");
    println!("| guest | bitmap | | | ring | | |\n|---|---|---|---|---|---|---|");
    let all = all.map(|both| both.map(|passes| middle(&passes)));
    for (gib, costs) in SIZES.iter().zip(all) {
        row(&format!("{gib} GiB"), costs);
    }
    // What grows, grows with memory: a straight line through the smallest and the largest.
    let (first, last) = (all[0], all[SIZES.len() - 1]);
    let [from, to] = [SIZES[0], SIZES[SIZES.len() - 1]];
    let more = (FAR - to) as f64 / (to - from) as f64;
    let far = [0, 1].map(|log| {
        [0, 1, 2].map(|part| {
            let grown: f64 = last[log][part] - first[log][part];
            last[log][part] + grown.max(0.0) * more
        })
    });
    row(&format!("{FAR} GiB, by arithmetic"), far);
}
