//! The guest: running, paused, waiting for its memory; and the host where it arrives.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use migration::clock::boottime_ns;
use migration::dirty::DirtyLog;
use migration::guest::{
    BlankGuest, Description, Failed, GuestError, GuestRam, Heartbeat, Host, PausedGuest,
    RunningGuest, Settle, ThrottlePercent,
};
use migration::pages::PAGE_SIZE;
use migration::state::{Kind, VmState};
use migration::work::{Baseline, VcpuWork};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::content::stamped;
use super::{FakeLog, Holder, Panic, World, Writer};

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

/// The same, of memory that is a file for each region.
pub fn unbooted_in_files(world: &Arc<World>) -> Paused {
    let mut paused = unbooted(world);
    let ranges = world.layout.regions().iter().map(|region| {
        let file = File::from(memfd_create("guest", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(region.bytes).unwrap();
        let bytes = usize::try_from(region.bytes).unwrap();
        let file = FileOffset::new(file, 0);
        (GuestAddress(region.gpa), bytes, Some(file))
    });
    let ram = GuestRam::from_ranges_with_files(ranges.collect::<Vec<_>>());
    paused.0.ram = Arc::new(ram.unwrap());
    paused
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

    /// Gives a page of memory that is of files back, as a balloon does: a hole stays, and the page is marked.
    pub fn give_back(&self, page: u64) {
        self.world.stamps[usize::try_from(page).unwrap()].store(0, SeqCst);
        let at = GuestAddress(self.world.layout.gpa(page).unwrap());
        let (region, offset) = self.ram.to_region_addr(at).unwrap();
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let (file, offset) = (region.file_offset().unwrap().file(), offset.0);
        let bytes = i64::try_from(PAGE_SIZE).unwrap();
        fallocate(file, flags, i64::try_from(offset).unwrap(), bytes).unwrap();
        self.log.mark(page);
    }

    /// How many pages such memory takes.
    pub fn allocated(&self) -> u64 {
        let files = (self.ram.iter()).map(|region| region.file_offset().unwrap().file().metadata());
        let bytes: u64 = files.map(|data| data.unwrap().blocks() * 512).sum();
        bytes / PAGE_SIZE
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
        world.panics.at(Panic::Save);
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

    fn load(self, state: &VmState, saved_by: Instant) -> Result<Paused, GuestError> {
        let world = &self.0.world;
        *world.stood.lock().unwrap() = saved_by.elapsed();
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
