//! The seam between the engine and a VMM: what a guest must be able to do to be moved.
//!
//! A guest is a [`RunningGuest`] or a [`PausedGuest`], never both: transitions consume the one and give the
//! other, and on failure hand back what they were given. The engine never sees KVM, a device or a thread.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;
use vm_memory::MmapRegion;

use crate::dirty::DirtyLog;
use crate::marks::Marks;
use crate::pages::MemoryLayout;
use crate::state::VmState;
use crate::work::{Baseline, VcpuWork};

/// Guest memory. Its [`Marks`] are the VMM's own half of the dirty log: every write of the VMM itself makes one,
/// since KVM's log only knows what vCPUs write.
pub type GuestRam = vm_memory::GuestMemoryMmap<Marks>;

/// Something the VMM was asked for and could not do. The text says the act and the values.
#[derive(Debug, Error)]
#[error("{act}")]
pub struct GuestError {
    act: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl GuestError {
    /// An error with its cause.
    pub fn new(
        act: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            act: act.into(),
            source: Some(source.into()),
        }
    }

    /// An error that has no cause but itself.
    pub fn bare(act: impl Into<String>) -> Self {
        Self {
            act: act.into(),
            source: None,
        }
    }
}

/// Does a part of a move that has the guest lent at most: a panic in it is the move's end, and not the guest's too.
///
/// What such a panic leaves half done is given up with the move, or set right with every failure (the guest's throttle,
/// its dirty log), and no lock here or in a VMM minds who panicked with it.
///
/// # Errors
/// What `act` has, or that it panicked.
pub fn survive<T, E: From<GuestError>>(act: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|_| {
        let told = "ferry panicked, which is an error in it; what it printed says where";
        Err(GuestError::bare(told).into())
    })
}

/// A transition that did not happen, with the guest as it was before.
#[derive(Debug)]
pub struct Failed<G> {
    /// The guest, as it was before the attempt.
    pub guest: G,
    /// Why it failed.
    pub error: GuestError,
}

/// What both sides must agree on before the first page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Where the guest's memory lies.
    pub layout: MemoryLayout,
    /// How many vCPUs it has.
    pub vcpus: u32,
    /// CPU model and device list, as sections that only the VMM understands.
    pub sections: VmState,
}

/// When a guest that reports heartbeats last did so. Times are of CLOCK_BOOTTIME, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Heartbeat {
    /// How many were seen in this process.
    pub count: u64,
    /// When the first was seen in this process; 0 before it.
    pub first_ns: u64,
    /// When the last was seen; 0 before the first.
    pub last_ns: u64,
    /// The largest distance between two neighbours seen since [`RunningGuest::heartbeat`] was last asked.
    pub largest_gap_ns: u64,
}

/// How much a vCPU is slowed down: one that would run all the time is asleep so many percent of it. One that needs
/// no more than what is left need not sleep at all. 0 is full speed; at most 99.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
pub struct ThrottlePercent(u8);

impl ThrottlePercent {
    /// The most a vCPU is ever slowed down. Beyond it a guest is as good as stopped.
    pub const MAX: ThrottlePercent = ThrottlePercent(99);

    /// That many percent, at most 99.
    pub fn new(percent: u8) -> Self {
        Self(percent.min(Self::MAX.0))
    }

    /// The number, 0 to 99.
    pub fn get(self) -> u8 {
        self.0
    }
}

/// To be called once, by any thread, while the guest runs: see [`RunningGuest::settle`].
pub type Settle = Box<dyn FnOnce() -> Result<(), GuestError> + Send>;

/// A guest whose vCPUs run.
pub trait RunningGuest: Send + Sized {
    /// The same guest with its vCPUs and devices stopped.
    type Paused: PausedGuest<Running = Self>;

    /// What the destination has to agree to.
    fn describe(&self) -> Description;
    /// Its memory.
    fn ram(&self) -> &GuestRam;
    /// Its dirty log, shared with the workers that send pages.
    fn dirty_log(&self) -> Arc<dyn DirtyLog>;
    /// Slows every vCPU by its percentage; it sleeps `slice` at a time, never longer. Missing entries mean full speed,
    /// so an empty list lets go of all of them.
    fn throttle(&self, vcpus: &[ThrottlePercent], slice: Duration);
    /// How long each vCPU has been kept from running by that, since it was made.
    fn throttled(&self) -> Vec<Duration>;
    /// Its heartbeats, if it is a guest that reports them. Asking begins the search for the largest gap anew.
    fn heartbeat(&self) -> Option<Heartbeat>;
    /// What it did lately, if it is a guest that counts its work and has run for long enough. Asked at the beginning of
    /// a move, before anything is done to it; what it does from then on is no baseline, so asking begins that anew.
    fn work(&self) -> Option<Baseline>;
    /// What has what the guest has written elsewhere brought to where it lasts, while the guest runs, so that little of
    /// that is left for its pause; may take seconds. `None` where there is nothing of the kind.
    fn settle(&self) -> Option<Settle> {
        None
    }
    /// Stops vCPUs and devices: on return nothing of the guest writes memory any more.
    ///
    /// # Errors
    /// The guest runs on, as before.
    fn pause(self) -> Result<Self::Paused, Failed<Self>>;
}

/// A guest whose vCPUs and devices are stopped. Dropping it frees its memory.
pub trait PausedGuest: Send + Sized {
    /// The same guest, running.
    type Running: RunningGuest<Paused = Self>;

    /// Its memory.
    fn ram(&self) -> &GuestRam;
    /// Its dirty log; still on. Saving may add to it.
    fn dirty_log(&self) -> Arc<dyn DirtyLog>;
    /// Its heartbeats, if it is a guest that reports them.
    fn heartbeat(&self) -> Option<Heartbeat>;
    /// As [`RunningGuest::throttled`].
    fn throttled(&self) -> Vec<Duration>;
    /// What each vCPU has done, if it is a guest that counts its work. Asked in the blackout: must be quick.
    fn work(&self) -> Option<Vec<VcpuWork>>;
    /// All state besides memory; what the guest has written elsewhere is, on return, where the destination finds it.
    /// May be called again; the guest stays able to resume.
    ///
    /// # Errors
    /// Some state could not be read; the guest can still resume.
    fn save(&mut self) -> Result<VmState, GuestError>;
    /// Lets go of what keeps everybody else from running this guest, such as the locks of its disks: its fence. Called
    /// just before the destination is told that the guest is its own. A guest without a fence has nothing to do.
    ///
    /// # Errors
    /// It may be held still; the guest can still resume.
    fn let_go(&mut self) -> Result<(), GuestError>;
    /// Takes the fence, unless it is held, and lets vCPUs and devices go on. Returns when the first vCPU is let into
    /// the guest.
    ///
    /// # Errors
    /// Somebody else has the fence, or the guest cannot go on. It stays paused, whole.
    fn resume(self) -> Result<Self::Running, Failed<Self>>;
}

/// A guest made from a [`Description`], with memory, vCPUs and devices, that waits for pages and state.
pub trait BlankGuest: Send + Sized {
    /// What it becomes once its state is in.
    type Paused: PausedGuest;

    /// Its memory, written by the receiver.
    fn ram(&self) -> &GuestRam;
    /// Takes the state, which was saved at `saved_by` at the latest, as this side has seen by itself. After an error
    /// the blank guest is gone; the source still has the guest.
    ///
    /// # Errors
    /// The state was refused, with the reason.
    fn load(self, state: &VmState, saved_by: Instant) -> Result<Self::Paused, GuestError>;
}

/// The destination's VMM: makes blank guests.
pub trait Host {
    /// The guests that it makes.
    type Blank: BlankGuest;

    /// Checks the description and makes the guest that fits it: with memory of zeros, or, in a move within one
    /// host, with the source's own, one file a region. Such files are not checked yet.
    ///
    /// # Errors
    /// Why this host cannot run that guest; the text is shown on both sides.
    fn prepare(
        &mut self,
        description: &Description,
        memory: Option<Vec<File>>,
    ) -> Result<Self::Blank, GuestError>;

    /// Memory that has been touched for the next guest, if there is some: a probe of the link writes what it likes to
    /// its first bytes, so many at most. No guest may see any of that.
    fn ready(&mut self, _most: usize) -> Option<&MmapRegion> {
        None
    }
}
