//! A guest without KVM: memory that threads write to, with a log of what they wrote, and a model of what the
//! memory must hold. Source and destination of a test share one [`World`], which knows the truth: what every
//! page holds, and how many guests run.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test uses its part of it"
)]

use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use migration::clock::boottime_ns;
use migration::dirty::DirtyLog;
use migration::guest::{
    BlankGuest, Description, Failed, GuestError, GuestRam, Heartbeat, Host, PausedGuest,
    RunningGuest, Settle, ThrottlePercent,
};
use migration::pages::{MemoryLayout, PAGE_SIZE, PageSet, Region};
use migration::state::{Kind, VmState};
use migration::work::{Baseline, VcpuWork};
use vm_memory::{Bytes, GuestAddress};

pub mod run;

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

/// How the guest writes.
#[derive(Debug, Clone, Default)]
pub struct Writer {
    /// Pages that it writes, round and round.
    pub pages: Range<u64>,
    /// How many of them in a millisecond, at full speed; each once at most between two looks at the clock.
    pub per_ms: u64,
}

/// What the pages of a guest hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Content {
    /// Words that depend on page and stamp.
    #[default]
    Stamped,
    /// Lines that repeat themselves.
    Text,
    /// What no codec makes smaller.
    Noise,
    /// 64 pages of the one, 64 of the other.
    Mixed,
    /// Noise that stays, with the stamp somewhere in it.
    Counter,
    /// The same, but every seventh time all zeros.
    Blinking,
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
            content,
            there: Mutex::default(),
            warm: AtomicBool::new(false),
            work: Mutex::default(),
            settles: Mutex::default(),
            disks: Mutex::default(),
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

impl Content {
    /// What a page with that stamp holds; zeros for stamp 0.
    fn page(self, page: u64, stamp: u64) -> Vec<u8> {
        match self {
            _ if stamp == 0 => stamped(page, 0),
            Content::Stamped => stamped(page, stamp),
            Content::Text => text(page, stamp),
            Content::Noise => noise(page, stamp),
            Content::Mixed if (page / 64).is_multiple_of(2) => text(page, stamp),
            Content::Mixed => noise(page, stamp),
            Content::Blinking if stamp.is_multiple_of(7) => stamped(page, 0),
            Content::Counter | Content::Blinking => {
                let mut bytes = noise(page, 0);
                let at = usize::try_from(page % 500).unwrap() * 8;
                bytes[at..at + 8].copy_from_slice(&stamp.to_le_bytes());
                bytes
            }
        }
    }
}

fn text(page: u64, stamp: u64) -> Vec<u8> {
    let line = |n| format!("{stamp}: line {n} of a page of words, number {page} of its kind\n");
    let mut bytes: Vec<_> = (0..80).flat_map(|n: u64| line(n).into_bytes()).collect();
    bytes.truncate(4096);
    bytes
}

fn noise(page: u64, stamp: u64) -> Vec<u8> {
    let mut state = (page << 32) ^ stamp;
    let mut bytes = Vec::with_capacity(4096);
    for _ in 0..PAGE_SIZE / 8 {
        // SplitMix64 (Steele, Lea, Flood 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(z ^ (z >> 31)).to_le_bytes());
    }
    bytes
}

/// What a page with that stamp holds: all of it depends on both numbers.
fn stamped(page: u64, stamp: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4096);
    for word in 0..PAGE_SIZE / 8 {
        let value = if stamp == 0 {
            0
        } else {
            stamp ^ (page << 40) ^ word
        };
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// A log as KVM's with manual protect: `take` leaves the marks, `rearm` removes them.
#[derive(Debug)]
pub struct FakeLog {
    words: Vec<AtomicU64>,
    pages: u64,
    on: AtomicBool,
    faults: (bool, bool),
}

impl FakeLog {
    fn new(world: &World) -> Self {
        let pages = world.layout.pages();
        Self {
            words: (0..pages / 64).map(|_| AtomicU64::new(0)).collect(),
            pages,
            on: AtomicBool::new(false),
            faults: (world.faults.start_log, world.faults.take),
        }
    }

    fn mark(&self, page: u64) {
        if self.on.load(SeqCst) {
            let word = usize::try_from(page / 64).unwrap();
            self.words[word].fetch_or(1 << (page % 64), SeqCst);
        }
    }

    pub fn is_on(&self) -> bool {
        self.on.load(SeqCst)
    }
}

impl DirtyLog for FakeLog {
    fn start(&self) -> Result<(), GuestError> {
        if self.faults.0 {
            return Err(GuestError::bare("cannot start the log on purpose"));
        }
        for word in &self.words {
            word.store(u64::MAX, SeqCst);
        }
        self.on.store(true, SeqCst);
        Ok(())
    }

    fn take(&self, into: &mut PageSet) -> Result<(), GuestError> {
        assert!(self.is_on());
        if self.faults.1 {
            return Err(GuestError::bare("cannot take the log on purpose"));
        }
        for (index, word) in self.words.iter().enumerate() {
            into.insert_words(u64::try_from(index).unwrap() * 64, &[word.load(SeqCst)]);
        }
        Ok(())
    }

    fn peek(&self, into: &mut PageSet) -> Result<bool, GuestError> {
        self.take(into).map(|()| true)
    }

    fn rearm(&self, set: &PageSet, range: Range<u64>) -> Result<(), GuestError> {
        assert!(
            range.start.is_multiple_of(64)
                && (range.end.is_multiple_of(64) || range.end == self.pages)
        );
        let first = usize::try_from(range.start / 64).unwrap();
        for (index, word) in set.words(range).iter().enumerate() {
            self.words[first + index].fetch_and(!word, SeqCst);
        }
        Ok(())
    }

    fn stop(&self) -> Result<(), GuestError> {
        self.on.store(false, SeqCst);
        Ok(())
    }
}

/// All of a guest but its thread.
#[derive(Debug)]
pub struct Body {
    pub world: Arc<World>,
    pub ram: Arc<GuestRam>,
    pub log: Arc<FakeLog>,
    throttle: Arc<AtomicU8>,
    /// What throttling has kept it from, in ns.
    slept: Arc<AtomicU64>,
    beat: Arc<Mutex<Heartbeat>>,
    here: bool,
}

/// A guest that runs; on a thread of its own if it writes.
#[derive(Debug)]
pub struct Running {
    pub body: Option<Body>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// A guest that does not.
#[derive(Debug)]
pub struct Paused(pub Body);

/// A guest that waits for its memory.
#[derive(Debug)]
pub struct Blank(pub Body);

/// A guest before it runs first: of three pages one is stamped, one holds zeros, and one was never touched.
pub fn boot(world: &Arc<World>) -> Running {
    let paused = unbooted(world);
    for page in 0..world.layout.pages() {
        match page % 3 {
            0 => paused.0.stamp(page),
            1 => {
                let at = GuestAddress(world.layout.gpa(page).unwrap());
                paused.0.ram.write_slice(&stamped(page, 0), at).unwrap();
            }
            _ => {}
        }
    }
    paused.resume().unwrap()
}

/// A guest before it runs first, all zeros.
pub fn unbooted(world: &Arc<World>) -> Paused {
    Paused(Body::new(world, true))
}

impl Body {
    fn new(world: &Arc<World>, here: bool) -> Self {
        let ranges: Vec<_> = (world.layout.regions().iter())
            .map(|r| (GuestAddress(r.gpa), usize::try_from(r.bytes).unwrap()))
            .collect();
        Self {
            world: Arc::clone(world),
            ram: Arc::new(GuestRam::from_ranges(&ranges).unwrap()),
            log: Arc::new(FakeLog::new(world)),
            throttle: Arc::default(),
            slept: Arc::default(),
            beat: Arc::default(),
            here,
        }
    }

    /// Writes a new stamp to a page. First the bytes, then the mark: whoever removed the mark in between
    /// has read the page before or finds it marked again.
    pub fn stamp(&self, page: u64) {
        let stamp = self.world.next.fetch_add(1, SeqCst);
        self.world.stamps[usize::try_from(page).unwrap()].store(stamp, SeqCst);
        let at = GuestAddress(self.world.layout.gpa(page).unwrap());
        let bytes = self.world.content.page(page, stamp);
        self.ram.write_slice(&bytes, at).unwrap();
        self.log.mark(page);
    }

    fn side(&self) -> Holder {
        match self.here {
            true => Holder::Source,
            false => Holder::Destination,
        }
    }

    fn take_fence(&self) -> Result<(), GuestError> {
        let mut fence = self.world.fence.lock().unwrap();
        match *fence {
            Some(holder) if holder != self.side() => {
                Err(GuestError::bare(format!("{holder:?} holds the fence")))
            }
            _ => {
                *fence = Some(self.side());
                Ok(())
            }
        }
    }

    fn let_go(&self, to: Option<Holder>) {
        let mut fence = self.world.fence.lock().unwrap();
        if *fence == Some(self.side()) {
            *fence = to;
        }
    }

    fn throttled(&self) -> Vec<Duration> {
        vec![Duration::from_nanos(self.slept.load(SeqCst)); 2]
    }

    fn beat(&self) {
        let now = boottime_ns();
        let mut beat = self.beat.lock().unwrap();
        if beat.count == 0 {
            beat.first_ns = now;
        } else {
            beat.largest_gap_ns = beat.largest_gap_ns.max(now - beat.last_ns);
        }
        beat.count += 1;
        beat.last_ns = now;
    }

    fn share(&self) -> Self {
        Self {
            world: Arc::clone(&self.world),
            ram: Arc::clone(&self.ram),
            log: Arc::clone(&self.log),
            throttle: Arc::clone(&self.throttle),
            slept: Arc::clone(&self.slept),
            beat: Arc::clone(&self.beat),
            here: self.here,
        }
    }

    /// What the guest does: a heartbeat and some pages every millisecond.
    fn live(&self, stop: &AtomicBool) {
        let Writer { pages, per_ms } = self.world.writer.clone();
        let mut page = pages.start;
        let mut seen = Instant::now();
        let mut due = 0;
        while !stop.load(SeqCst) {
            self.beat();
            let passed = seen.elapsed();
            seen += passed;
            let passed_ns = u64::try_from(passed.as_nanos()).unwrap();
            let runs = u64::from(100 - self.throttle.load(SeqCst));
            self.slept.fetch_add((100 - runs) * passed_ns / 100, SeqCst);
            // By the time that has passed, since on a busy machine this thread is late.
            due += per_ms * runs * passed_ns;
            let (now, rest) = (due / 100_000_000, due % 100_000_000);
            due = rest;
            for _ in 0..now.min(pages.end - pages.start) {
                self.stamp(page);
                page = if page + 1 < pages.end {
                    page + 1
                } else {
                    pages.start
                };
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Running {
    fn body(&self) -> &Body {
        self.body.as_ref().unwrap()
    }

    pub fn log_is_on(&self) -> bool {
        self.body().log.is_on()
    }

    pub fn throttle_now(&self) -> u8 {
        self.body().throttle.load(SeqCst)
    }

    /// Its heartbeats, after it has been handed on.
    pub fn pulse(&self) -> impl FnMut() -> Option<Heartbeat> + Send + 'static {
        let beat = Arc::clone(&self.body().beat);
        let heard_from = Instant::now() + self.body().world.faults.quiet;
        move || match Instant::now() < heard_from {
            true => Some(Heartbeat::default()),
            false => Some(*beat.lock().unwrap()),
        }
    }

    /// Stops it for good, faults or not.
    pub fn halt(&mut self) -> Option<Body> {
        self.stop.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        let body = self.body.take()?;
        body.world.stopped();
        Some(body)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(body) = self.halt() {
            body.let_go(None);
        }
    }
}

impl RunningGuest for Running {
    type Paused = Paused;

    fn describe(&self) -> Description {
        self.body().world.description()
    }

    fn ram(&self) -> &GuestRam {
        &self.body().ram
    }

    fn dirty_log(&self) -> Arc<dyn DirtyLog> {
        Arc::clone(&self.body().log) as Arc<dyn DirtyLog>
    }

    fn throttle(&self, vcpus: &[ThrottlePercent], slice: Duration) {
        let percent = vcpus.first().copied().unwrap_or_default().get();
        self.body().throttle.store(percent, SeqCst);
        let mut throttles = self.body().world.throttles.lock().unwrap();
        throttles.push((percent, slice));
    }

    fn throttled(&self) -> Vec<Duration> {
        self.body().throttled()
    }

    fn heartbeat(&self) -> Option<Heartbeat> {
        Some(*self.body().beat.lock().unwrap())
    }

    fn work(&self) -> Option<Baseline> {
        let work = self.body().world.work.lock().unwrap();
        work.as_ref().map(|(baseline, _)| baseline.clone())
    }

    fn settle(&self) -> Option<Settle> {
        let next = self.body().world.settles.lock().unwrap().pop()?;
        Some(Box::new(move || {
            std::thread::sleep(next);
            Ok(())
        }))
    }

    fn pause(mut self) -> Result<Paused, Failed<Self>> {
        let world = &self.body().world;
        world.wait_for_disks();
        match world.fault(world.faults.pause, "pause") {
            Ok(()) => Ok(Paused(self.halt().unwrap())),
            Err(error) => Err(Failed { guest: self, error }),
        }
    }
}

impl PausedGuest for Paused {
    type Running = Running;

    fn ram(&self) -> &GuestRam {
        &self.0.ram
    }

    fn dirty_log(&self) -> Arc<dyn DirtyLog> {
        Arc::clone(&self.0.log) as Arc<dyn DirtyLog>
    }

    fn throttled(&self) -> Vec<Duration> {
        self.0.throttled()
    }

    fn heartbeat(&self) -> Option<Heartbeat> {
        Some(*self.0.beat.lock().unwrap())
    }

    fn work(&self) -> Option<Vec<VcpuWork>> {
        let work = self.0.world.work.lock().unwrap();
        work.as_ref().map(|(_, at_pause)| at_pause.clone())
    }

    fn save(&mut self) -> Result<VmState, GuestError> {
        let world = &self.0.world;
        world.wait_for_disks();
        world.fault(world.faults.save, "save")?;
        // As a device that writes back a status when it is saved.
        self.0.stamp(world.layout.pages() - 1);
        let mut state = VmState::default();
        state.put(Kind::VCPU, 0, 1, &boottime_ns()).unwrap();
        Ok(state)
    }

    fn let_go(&mut self) -> Result<(), GuestError> {
        let faults = &self.0.world.faults;
        self.0.let_go(faults.thief.then_some(Holder::Thief));
        self.0.world.fault(faults.let_go, "let go")
    }

    fn resume(self) -> Result<Running, Failed<Self>> {
        if let Err(error) = self.0.take_fence() {
            return Err(Failed { guest: self, error });
        }
        let world = &self.0.world;
        let here = self.0.here;
        if let Err(error) = world.fault(world.faults.resume_there && !here, "resume") {
            self.0.let_go(None);
            return Err(Failed { guest: self, error });
        }
        world.started();
        let stop = Arc::new(AtomicBool::new(false));
        let (body, stopped) = (self.0.share(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || body.live(&stopped));
        Ok(Running {
            body: Some(self.0),
            stop,
            thread: Some(thread),
        })
    }
}

impl BlankGuest for Blank {
    type Paused = Paused;

    fn ram(&self) -> &GuestRam {
        &self.0.ram
    }

    fn load(self, state: &VmState) -> Result<Paused, GuestError> {
        let world = &self.0.world;
        world.fault(world.faults.load, "load")?;
        let saved: u64 = (state.get(Kind::VCPU, 0, 1))
            .map_err(|error| GuestError::new("cannot load the state", error))?;
        match saved {
            0 => Err(GuestError::bare("the saved time is 0")),
            _ => Ok(Paused(self.0)),
        }
    }
}

/// The destination's VMM.
#[derive(Debug)]
pub struct FakeHost(pub Arc<World>);

impl Host for FakeHost {
    type Blank = Blank;

    fn prepare(
        &mut self,
        description: &Description,
        memory: Option<Vec<File>>,
    ) -> Result<Blank, GuestError> {
        if memory.is_some() {
            return Err(GuestError::bare("this host maps no files"));
        }
        if let Some(reason) = self.0.faults.refuse {
            return Err(GuestError::bare(reason));
        }
        if *description != self.0.description() {
            return Err(GuestError::bare("that is another guest"));
        }
        let body = Body::new(&self.0, false);
        *self.0.there.lock().unwrap() = Some(Arc::clone(&body.ram));
        if self.0.warm.load(SeqCst) {
            for page in 0..self.0.layout.pages() {
                let at = GuestAddress(self.0.layout.gpa(page).unwrap());
                body.ram.write_obj(0u8, at).unwrap();
            }
        }
        Ok(Blank(body))
    }
}
