//! A KVM that does to rings in plain memory what Linux does (virt/kvm/dirty_ring.c), overflows included, and a guest
//! whose pages are sent as a move sends them.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

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
    /// What the vCPUs write while the rings are being read and handed back, one after the other.
    meanwhile: VecDeque<Meanwhile>,
    /// The vCPU that is not in the guest, as it makes room.
    outside: Option<usize>,
    resets: usize,
}

/// What happens after so many looks at entries, counted since the one before.
#[derive(Debug, Clone, Copy)]
pub struct Meanwhile {
    pub looks: usize,
    pub writes: Writes,
}

thread_local! {
    static WATCHED: RefCell<Option<Arc<Mutex<Vm>>>> = const { RefCell::new(None) };
}

/// To be called at each look at an entry: in between, vCPUs write.
pub fn somebody_looks() {
    WATCHED.with_borrow(|vm| {
        // KVM's own looks are made with the lock held.
        if let Some(vm) = vm
            && let Ok(mut vm) = vm.try_lock()
        {
            vm.go_on();
        }
    });
}

/// A vCPU writes to neighbouring pages, as long as it may.
#[derive(Debug, Clone, Copy)]
pub struct Writes {
    pub vcpu: usize,
    pub first: u64,
    pub count: u64,
    /// So many writes late KVM notices that the ring is full.
    pub late: usize,
}

impl Vm {
    /// A vCPU writes to a page. `false`: it has to leave the guest first.
    pub fn write(&mut self, vcpu: usize, page: u64, late: usize) -> bool {
        let may = self.sides[vcpu].used() < SIZE - RESERVE + late;
        if may {
            if self.open.insert(page) {
                let slot = u32::from(page >= PAGES / 2);
                let offset = page % (PAGES / 2);
                self.sides[vcpu].push(Place { slot, offset });
            }
            self.memory[index(page)] += 1;
        }
        may
    }

    fn go_on(&mut self) {
        let Some(Meanwhile { looks, writes }) = self.meanwhile.front_mut() else {
            return;
        };
        if *looks > 0 {
            *looks -= 1;
            return;
        }
        let Writes {
            vcpu,
            first,
            count,
            late,
        } = *writes;
        self.meanwhile.pop_front();
        if self.outside != Some(vcpu) {
            let mut pages = first..first + count;
            while pages
                .next()
                .is_some_and(|page| self.write(vcpu, page % PAGES, late))
            {}
        }
    }

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
            meanwhile: VecDeque::new(),
            outside: None,
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
            if self.vm.lock().unwrap().write(vcpu, page, late) {
                return;
            }
            self.make_room(vcpu);
        }
    }

    fn make_room(&self, vcpu: usize) {
        self.vm.lock().unwrap().outside = Some(vcpu);
        self.rings.make_room(vcpu);
        self.vm.lock().unwrap().outside = None;
    }

    /// A vCPU leaves the guest because its ring is full, and the collector comes before it.
    pub fn make_room_too_late(&self, vcpu: usize) {
        if self.vm.lock().unwrap().sides[vcpu].used() >= SIZE - RESERVE {
            self.rings.collect();
            self.make_room(vcpu);
        }
    }

    /// Lets vCPUs write while this thread looks at entries.
    pub fn meanwhile(&self, what: Meanwhile) {
        self.vm.lock().unwrap().meanwhile.push_back(what);
        WATCHED.set(Some(self.vm.clone()));
    }

    /// A round: takes the log, then reads the pages. Says which.
    pub fn round(&self) -> PageSet {
        self.round_while(Duration::ZERO, &mut |_| {})
    }

    /// The same, piece by piece, with rings that are handed back so long apart; `meanwhile` is called before each
    /// piece, with its first page.
    pub fn round_while(&self, apart: Duration, meanwhile: &mut dyn FnMut(u64)) -> PageSet {
        let mut set = PageSet::empty(PAGES);
        let protect = || {
            self.vm.lock().unwrap().open.clear();
            Ok::<_, GuestError>(())
        };
        self.rings.take(&mut set, &protect).unwrap();
        let piece = PAGES / 16;
        for first in (0..PAGES).step_by(index(piece)) {
            meanwhile(first);
            let range = first..first + piece;
            self.rings.rearm(&set, range.clone(), apart).unwrap();
            let (vm, mut arrived) = (self.vm.lock().unwrap(), self.arrived.lock().unwrap());
            for page in set.runs(range, 1) {
                let page = index(page.start);
                arrived[page] = vm.memory[page];
            }
        }
        set
    }

    /// With all vCPUs stopped, one more round has to bring what is missing.
    pub fn ends_whole(&self) {
        self.vm.lock().unwrap().meanwhile.clear();
        self.round();
        let (vm, arrived) = (self.vm.lock().unwrap(), self.arrived.lock().unwrap());
        assert!(vm.memory == *arrived, "pages are missing");
        assert!(
            vm.open.is_empty(),
            "writes to {:?} would go unseen",
            vm.open
        );
    }
}
