//! A KVM that does to rings in plain memory what Linux does (virt/kvm/dirty_ring.c), overflows included, and a guest whose
//! pages are sent as a move sends them.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use migration::guest::GuestError;
use migration::pages::{MemoryLayout, PageSet, REGION_ALIGN, Region};

use crate::kvm::ring::entry::{Entry, Place};
use crate::kvm::ring::rings::Rings;

pub type Shared = Arc<[Entry]>;

pub fn entries(count: usize) -> Shared {
    (0..count).map(|_| Entry::default()).collect()
}

pub fn place(offset: u64) -> Place {
    Place { slot: 0, offset }
}

/// KVM's side of a ring: it counts, and goes by that alone.
pub struct Side {
    pub entries: Shared,
    pub written: usize,
    pub taken: usize,
}

impl Side {
    pub fn new(entries: Shared) -> Self {
        Self {
            entries,
            written: 0,
            taken: 0,
        }
    }

    pub fn at(&self, count: usize) -> &Entry {
        &self.entries[count % self.entries.len()]
    }

    pub fn push(&mut self, place: Place) {
        self.at(self.written).write(place);
        self.written += 1;
    }

    pub fn used(&self) -> usize {
        self.written - self.taken
    }

    /// Takes back what is marked, at most so many entries: then a signal has come.
    pub fn reset(&mut self, most: usize, protect: &mut dyn FnMut(Place)) -> u32 {
        let before = self.taken;
        while self.taken - before < most
            && let Some(place) = self.at(self.taken).take_back()
        {
            self.taken += 1;
            assert!(self.taken <= self.written, "KVM was led past its own end");
            protect(place);
        }
        u32::try_from(self.taken - before).unwrap()
    }
}

/// Entries that KVM keeps back for writes between two looks.
pub const RESERVE: usize = 16;
/// Entries of a ring.
pub const SIZE: usize = 64;
/// Pages of the guest, half of them in each memory slot.
pub const PAGES: u64 = 1024;

/// A VM: KVM's sides of its rings, which pages can be written without KVM noticing, and what is in them.
pub struct Vm {
    pub sides: Vec<Side>,
    pub open: BTreeSet<u64>,
    pub memory: Vec<u64>,
    resets: usize,
}

impl Vm {
    pub fn reset(&mut self) -> u32 {
        self.resets += 1;
        let most = match self.resets % 8 {
            0..3 => 0,
            3 => 5,
            _ => usize::MAX,
        };
        let Self { sides, open, .. } = self;
        let mut protect = |Place { slot, offset }| {
            if slot < 2 && offset < PAGES / 2 {
                open.remove(&(u64::from(slot) * PAGES / 2 + offset));
            }
        };
        let taken = sides.iter_mut().map(|side| side.reset(most, &mut protect));
        taken.sum()
    }
}

pub fn index(page: u64) -> usize {
    usize::try_from(page).unwrap()
}

/// A guest that is moved: its memory is what arrives.
pub struct Move {
    pub vm: Arc<Mutex<Vm>>,
    pub rings: Rings<Shared>,
    arrived: Mutex<Vec<u64>>,
}

impl Move {
    pub fn new(vcpus: usize) -> Self {
        let regions = [0, 4 << 30].map(|gpa| Region {
            gpa,
            bytes: REGION_ALIGN,
        });
        let layout = MemoryLayout::new(regions.to_vec()).unwrap();
        assert_eq!(layout.pages(), PAGES);
        let shared: Vec<_> = (0..vcpus).map(|_| entries(SIZE)).collect();
        let vm = Arc::new(Mutex::new(Vm {
            sides: shared.iter().cloned().map(Side::new).collect(),
            open: BTreeSet::new(),
            memory: vec![0; index(PAGES)],
            resets: 0,
        }));
        let theirs = vm.clone();
        let reset = Box::new(move || Ok(theirs.lock().unwrap().reset()));
        Self {
            vm,
            rings: Rings::new(shared, &layout, reset),
            arrived: Mutex::new(vec![0; index(PAGES)]),
        }
    }

    /// A vCPU writes to a page, and leaves the guest first if KVM notices that its ring is full, which it does so many
    /// writes late.
    pub fn write(&self, vcpu: usize, page: u64, late: usize) {
        for attempt in 0.. {
            assert!(attempt < 100, "the ring of vCPU {vcpu} stays full");
            let mut vm = self.vm.lock().unwrap();
            if vm.sides[vcpu].used() < SIZE - RESERVE + late {
                if vm.open.insert(page) {
                    let slot = u32::from(page >= PAGES / 2);
                    let offset = page % (PAGES / 2);
                    vm.sides[vcpu].push(Place { slot, offset });
                }
                vm.memory[index(page)] += 1;
                return;
            }
            drop(vm);
            self.rings.make_room(vcpu);
        }
    }

    /// A round: takes the log, then reads the pages. Says which.
    pub fn round(&self) -> PageSet {
        let mut set = PageSet::empty(PAGES);
        let protect = || {
            self.vm.lock().unwrap().open.clear();
            Ok::<_, GuestError>(())
        };
        self.rings.take(&mut set, &protect).unwrap();
        let (vm, mut arrived) = (self.vm.lock().unwrap(), self.arrived.lock().unwrap());
        for page in set.runs(0..PAGES, 1) {
            let page = index(page.start);
            arrived[page] = vm.memory[page];
        }
        set
    }

    /// With all vCPUs stopped, one more round has to bring what is missing.
    pub fn ends_whole(&self) {
        self.round();
        let (vm, arrived) = (self.vm.lock().unwrap(), self.arrived.lock().unwrap());
        assert_eq!(vm.memory, *arrived);
        assert!(
            vm.open.is_empty(),
            "writes to {:?} would go unseen",
            vm.open
        );
    }
}
