//! Both dirty logs on this machine's /dev/kvm, with guests of a dozen instructions that write pages.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use devices::virtio::chain::{self, Segment};
use kvm_bindings::KVM_EXIT_DIRTY_RING_FULL;
use kvm_ioctls::{VcpuExit, VcpuFd};
use migration::dirty::Tracking;
use migration::guest::GuestRam;
use migration::pages::{MemoryLayout, PAGE_SIZE, PageSet};
use vm_memory::{Bytes, GuestAddress};
use vmm::kvm::dirty::{KvmDirtyLog, VmLog};
use vmm::kvm::ring::log::{LOOK, RingLog};
use vmm::kvm::ring::{DEFAULT_ENTRIES, MIN_ENTRIES, offer};
use vmm::kvm::{self, tiny};
use vmm::memory::{self, Backing};

const MIB: u64 = 1 << 20;
/// Where the code lies, in the first page.
const CODE: u64 = 0;

/// A VM with one vCPU in the hands of the test.
struct Guest {
    ram: GuestRam,
    layout: MemoryLayout,
    log: Arc<dyn VmLog>,
    writer: Writer,
}

/// Its vCPU.
struct Writer {
    vcpu: VcpuFd,
    log: Arc<dyn VmLog>,
    /// How often the ring was full.
    full: u32,
    /// The last number written.
    last: u32,
}

impl Guest {
    /// With rings of so many entries, or with the bitmap.
    fn new(entries: Option<u32>) -> Self {
        Self::with(entries, LOOK)
    }

    fn with(entries: Option<u32>, look: Duration) -> Self {
        let kvm = kvm::open().unwrap();
        let vm = Arc::new(kvm::create_vm(&kvm).unwrap());
        let layout = vmm::layout::memory_layout(64 * MIB).unwrap();
        if let Some(entries) = entries {
            offer::enable(&kvm, &vm, entries).unwrap();
        }
        let ram = memory::map(&layout, Backing::Anonymous).unwrap();
        ram.write_slice(&tiny::PAGE_WRITER, GuestAddress(CODE))
            .unwrap();
        memory::register(&vm, &ram, false).unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        tiny::enter_protected_mode(&vcpu).unwrap();
        let vcpus = [vcpu];
        let log: Arc<dyn VmLog> = match entries {
            None => Arc::new(KvmDirtyLog::new(vm, ram.clone(), layout.clone())),
            Some(entries) => {
                let (ram, layout) = (ram.clone(), layout.clone());
                Arc::new(RingLog::new(vm, ram, layout, &vcpus, entries, look).unwrap())
            }
        };
        let [vcpu] = vcpus;
        let writer = Writer {
            vcpu,
            log: log.clone(),
            full: 0,
            last: 0,
        };
        Self {
            ram,
            layout,
            log,
            writer,
        }
    }

    /// Takes the log, with its pages armed again.
    fn take(&self) -> PageSet {
        let mut set = PageSet::empty(self.layout.pages());
        self.log.take(&mut set).unwrap();
        self.log.rearm(&set, 0..self.layout.pages()).unwrap();
        set
    }

    /// Starts the log, and takes what it says at first: everything.
    fn start(&self) {
        self.log.start().unwrap();
        assert_eq!(self.take(), PageSet::full(self.layout.pages()));
    }
}

impl Writer {
    /// Writes to every `stride`th page from `first` on, `count` of them.
    fn write(&mut self, first: u64, stride: u64, count: u32) {
        let bytes = |pages| u32::try_from(pages * PAGE_SIZE).unwrap();
        let (first, stride) = (bytes(first), bytes(stride));
        let regs = tiny::write_pages(CODE, first, stride, count, self.last);
        self.last += count;
        self.vcpu.set_regs(&regs).unwrap();
        loop {
            match self.vcpu.run().unwrap() {
                VcpuExit::IoOut(tiny::DONE_PORT, _) => return,
                VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL) => {
                    self.full += 1;
                    self.log.make_room(0);
                }
                other => panic!("the writer left with {other:?}"),
            }
        }
    }
}

/// The bitmap, and rings of the usual and of the least size.
const LOGS: [Option<u32>; 3] = [None, Some(DEFAULT_ENTRIES), Some(MIN_ENTRIES)];

fn pages(range: Range<u64>, stride: usize) -> BTreeSet<u64> {
    range.step_by(stride).collect()
}

fn found(set: &PageSet) -> BTreeSet<u64> {
    set.runs(0..set.capacity(), 1)
        .map(|run| run.start)
        .collect()
}

#[test]
fn exactly_the_pages_that_were_written_are_named() {
    for entries in LOGS {
        let mut guest = Guest::new(entries);
        // Mapped, and may be written without anybody noticing, before the log is on.
        guest.writer.write(1, 1, 2000);
        guest.start();
        assert!(guest.take().is_empty());
        for _ in 0..3 {
            guest.writer.write(100, 3, 200);
            guest.writer.write(100, 3, 100);
            let at = GuestAddress(5000 * PAGE_SIZE + 17);
            guest.ram.write_obj(7u8, at).unwrap();
            let mut expected = pages(100..700, 3);
            expected.insert(5000);
            assert_eq!(found(&guest.take()), expected, "{entries:?}");
            assert!(guest.take().is_empty());
        }
        guest.log.stop().unwrap();
    }
}

#[test]
fn a_log_can_be_started_again() {
    for entries in LOGS {
        let mut guest = Guest::new(entries);
        guest.start();
        guest.writer.write(1, 1, 500);
        guest.log.stop().unwrap();
        assert!(!guest.log.is_on());
        guest.writer.write(1000, 1, 500);
        guest.start();
        assert!(guest.take().is_empty(), "{entries:?}");
        guest.writer.write(300, 1, 400);
        assert_eq!(found(&guest.take()), pages(300..700, 1), "{entries:?}");
        // Also while it is on.
        guest.writer.write(5, 1, 5);
        guest.start();
        assert!(guest.log.is_on());
        guest.writer.write(7, 1, 1);
        let left: BTreeSet<_> = found(&guest.take());
        assert!(left.contains(&7) && left.len() <= 6, "{left:?}");
    }
}

#[test]
fn the_ring_tells_who_writes_and_the_bitmap_does_not() {
    let guest = Guest::new(None);
    assert_eq!(guest.log.written_by_vcpu(), None);
    let kind = (guest.log.tracking(), guest.log.kind());
    assert_eq!(kind, (Tracking::Bitmap, "manual_protect"));

    let mut guest = Guest::new(Some(DEFAULT_ENTRIES));
    let kind = (guest.log.tracking(), guest.log.kind());
    assert_eq!(kind, (Tracking::Ring, "ring"));
    guest.start();
    let written = |guest: &Guest| guest.log.written_by_vcpu().unwrap();
    assert_eq!(written(&guest), [0]);
    // An exact count is not promised: KVM may log a page twice, and does so for every write that it emulates.
    let grows = |guest: &mut Guest, count: u32| {
        let before = written(guest)[0];
        guest.writer.write(1, 1, count);
        let more = written(guest)[0] - before;
        assert!(
            (u64::from(count)..2 * u64::from(count)).contains(&more),
            "{more}"
        );
    };
    grows(&mut guest, 300);
    guest.take();
    grows(&mut guest, 30);
    guest.log.stop().unwrap();
    let last = written(&guest);
    guest.writer.write(1, 1, 30);
    assert_eq!(written(&guest), last);
    guest.start();
    assert_eq!(written(&guest), [0]);
}

/// The guest writes five times as many pages as the ring holds between two looks.
#[test]
fn a_ring_that_fills_loses_nothing_and_goes_on() {
    let mut guest = Guest::with(Some(MIN_ENTRIES), Duration::from_secs(3600));
    guest.start();
    for turn in 1..4 {
        guest.writer.write(turn, 3, 5000);
        let set = found(&guest.take());
        let expected = pages(turn..turn + 15_000, 3);
        assert!(set.is_superset(&expected), "turn {turn}");
    }
    assert!(guest.writer.full > 5, "it was never full");
    // Where KVM has let the ring overflow, everything counted as written. Soon it is exact again.
    let exact = (0..5).any(|turn| {
        guest.writer.write(1000 + turn, 1, 50);
        let set = found(&guest.take());
        assert!(set.is_superset(&pages(1000 + turn..1050 + turn, 1)));
        set.len() == 50
    });
    assert!(exact, "the ring stays out of step");
}

/// As a move does it: rounds of taking and reading while the guest writes, then one more when it stands still.
#[test]
fn what_is_read_after_the_log_is_what_the_guest_has() {
    for entries in LOGS {
        let mut guest = Guest::new(entries);
        let count = guest.layout.pages();
        let (ram, log) = (&guest.ram, &guest.log);
        let read = |page: u64| -> u32 { ram.read_obj(GuestAddress(page * PAGE_SIZE)).unwrap() };
        let mut arrived = vec![0; usize::try_from(count).unwrap()];
        let mut round = || {
            let mut set = PageSet::empty(count);
            log.take(&mut set).unwrap();
            log.rearm(&set, 0..count).unwrap();
            for page in set.runs(0..count, 1) {
                arrived[usize::try_from(page.start).unwrap()] = read(page.start);
            }
        };
        log.start().unwrap();
        let (writer, done) = (&mut guest.writer, AtomicBool::new(false));
        thread::scope(|scope| {
            let writing = scope.spawn(|| {
                for turn in 0.. {
                    writer.write(1 + turn % 7, 1 + turn % 3, 5000);
                    if done.load(Ordering::Acquire) {
                        return;
                    }
                }
            });
            (0..20).for_each(|_| round());
            done.store(true, Ordering::Release);
            writing.join().unwrap();
        });
        round();
        let differ = (0..count).find(|&page| read(page) != arrived[usize::try_from(page).unwrap()]);
        assert_eq!(differ, None, "{entries:?}: a page that differs");
    }
}

/// Pages that are given back to the host under a running log: their marks name them, as zeros, and what the guest
/// writes to them afterwards is logged like any other write, though KVM has to map them anew.
#[test]
fn pages_that_are_given_away_are_named_and_so_are_later_writes() {
    for entries in LOGS {
        let mut guest = Guest::new(entries);
        let read = |guest: &Guest, page: u64| -> u32 {
            guest.ram.read_obj(GuestAddress(page * PAGE_SIZE)).unwrap()
        };
        guest.writer.write(1, 1, 2000);
        guest.start();
        guest.writer.write(100, 1, 50);
        assert_eq!(found(&guest.take()), pages(100..150, 1), "{entries:?}");
        // Written since it was taken, armed and untouched, and never touched at all.
        guest.writer.write(100, 1, 10);
        for given in [100..120, 700..710, 5000..5010] {
            let bytes = given.start * PAGE_SIZE..given.end * PAGE_SIZE;
            memory::release(&guest.ram, &bytes).unwrap();
            chain::mark_dirty(&guest.ram, &[segment(&bytes)], bytes.end - bytes.start).unwrap();
        }
        let expected = [100..120, 700..710, 5000..5010].map(|given| pages(given, 1));
        let expected: BTreeSet<u64> = expected.into_iter().flatten().collect();
        assert_eq!(found(&guest.take()), expected, "{entries:?}");
        assert!(expected.iter().all(|page| read(&guest, *page) == 0));
        assert_ne!(read(&guest, 120), 0);
        assert!(guest.take().is_empty());
        guest.writer.write(105, 1, 3);
        guest.writer.write(5000, 2, 2);
        let expected = pages(105..108, 1)
            .union(&pages(5000..5004, 2))
            .copied()
            .collect();
        assert_eq!(found(&guest.take()), expected, "{entries:?}");
    }
}

fn segment(bytes: &Range<u64>) -> Segment {
    Segment {
        addr: GuestAddress(bytes.start),
        len: u32::try_from(bytes.end - bytes.start).unwrap(),
    }
}
