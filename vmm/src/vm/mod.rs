//! A VM as a whole: running, paused, or blank (waiting for its state).
//!
//! Each is a type of its own, and a transition consumes the one and gives the other: only a paused VM can be
//! saved, only a blank one loaded. What is common to all three is [`Core`].
//!
//! Lock order: PCI bus, PCI function, device, lane, what an interrupt takes (a line's turn, a function's vectors). A vCPU
//! or I/O thread takes them in this order and no two of a kind. Whoever owns the VM (the main thread, or the migration
//! thread during a move) takes device locks one by one, and never while it waits for a vCPU.

mod balloon;
mod batch;
mod blank;
mod devices;
mod disks;
#[cfg(test)]
mod golden;
mod gsi;
mod host;
mod io_thread;
mod log;
mod messages;
mod room;
mod shape;
mod slot;
mod work;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ::devices::heartbeat::HeartbeatPort;
use ::devices::serial::Serial;
use ::devices::virtio::{RegisterPage, VirtioMmio};
use kvm_ioctls::VmFd;
use migration::dirty::DirtyLog;
use migration::guest::{
    Description, Failed, GuestError, GuestRam, Heartbeat, PausedGuest, RunningGuest, Settle,
    ThrottlePercent,
};
use migration::pages::MemoryLayout;
use migration::state::{Kind, VmState};
use migration::work::{Baseline, VcpuWork};

use crate::kvm::dirty::VmLog;
use crate::kvm::vcpu_state::Saved;
use crate::kvm::vm_state;
use crate::memory;
use crate::vcpu::{CpuClock, EventSender, Throttle, VcpuHandle};

pub use balloon::{Balloon, Host as BalloonHost};
pub use blank::{BlankVm, Making};
pub use host::{LocalParts, ReceivingHost};
pub use io_thread::lock;
pub use log::LogChoice;
pub use room::Gauges;
pub use shape::{CPU_VERSION, CardShape, DEVICES_VERSION, DiskShape, Shape, SlotKind};
pub use slot::Backend;
pub use work::PERIOD as WORK_PERIOD;

use devices::Devices;

/// Version of the vCPU and VM sections.
pub const STATE_VERSION: u32 = 1;

/// What a VM consists of besides its devices. The order of the fields is the order in which they go away:
/// the throttle kicks vCPU threads, which use the VM.
struct Core {
    throttle: Throttle,
    vcpus: Vec<VcpuHandle>,
    log: Arc<dyn VmLog>,
    vm: Arc<VmFd>,
    ram: GuestRam,
    shape: Shape,
    description: Description,
    events: EventSender,
    /// What the guest did lately, where it counts that.
    history: work::History,
    /// What the guest reads of its devices: as memory, behind `vm`, which goes first.
    _registers: Vec<Arc<RegisterPage>>,
}

/// What may be looked at and used without owning the VM: for status, the console, and announcements.
#[derive(Clone)]
pub struct View {
    /// The serial port.
    pub serial: Arc<Mutex<Serial>>,
    heartbeat: Option<Arc<Mutex<HeartbeatPort>>>,
    cards: Vec<Arc<Mutex<VirtioMmio>>>,
    /// The balloon, where the guest has one.
    pub balloon: Option<Balloon>,
    /// Where guest memory lies.
    pub layout: MemoryLayout,
    /// Where each of its regions lies in this process.
    pub host_addresses: Vec<u64>,
    /// How many vCPUs there are.
    pub vcpus: u8,
    /// What sits in the virtio slots.
    pub slots: Vec<SlotKind>,
    /// Where the disks among them lie on this host, in their order.
    pub disks: Vec<PathBuf>,
    log: Arc<dyn VmLog>,
}

impl View {
    /// What the guest's heartbeat port has seen, where there is one.
    pub fn heartbeat(&self) -> Option<Heartbeat> {
        self.heartbeat.as_deref().map(devices::heartbeat)
    }

    /// Which of KVM's dirty logs there is, in a word.
    pub fn dirty_log_kind(&self) -> &'static str {
        self.log.kind()
    }

    /// Whether the dirty log is on.
    pub fn dirty_log_on(&self) -> bool {
        self.log.is_on()
    }

    /// What the guest's cards have counted in this process, in the order of their slots.
    pub fn card_counters(&self) -> Vec<Vec<(&'static str, u64)>> {
        self.cards
            .iter()
            .map(|card| lock(card).counters())
            .collect()
    }

    /// Tells the network once where the guest's cards are now.
    pub fn announce_round(&self) {
        for card in &self.cards {
            lock(card).announce_round();
        }
    }

    /// Whether there is a network card to announce.
    pub fn has_network(&self) -> bool {
        !self.cards.is_empty()
    }
}

/// A VM whose vCPUs run.
pub struct RunningVm {
    core: Core,
    devices: Devices,
}

/// A VM whose vCPUs and devices are stopped.
pub struct PausedVm {
    core: Core,
    devices: Devices,
}

impl fmt::Debug for RunningVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RunningVm")
    }
}

impl fmt::Debug for PausedVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PausedVm")
    }
}

impl Core {
    /// Stops all vCPUs: kicked together, then waited for.
    fn stop_vcpus(&self) -> Result<(), GuestError> {
        let pausing: Vec<_> = self.vcpus.iter().map(VcpuHandle::begin_pause).collect();
        pausing
            .into_iter()
            .map(|p| p.wait())
            .fold(Ok(()), Result::and)
    }

    /// Lets all vCPUs go on; returns when the first is about to enter the guest.
    fn run_vcpus(&self) -> Result<(), GuestError> {
        let entered: Vec<_> = self.vcpus.iter().map(VcpuHandle::begin_run).collect();
        match entered.first().map(|first| first.recv()) {
            Some(Ok(())) => Ok(()),
            _ => Err(GuestError::bare("resume vCPU 0: its thread has ended")),
        }
    }

    /// Every vCPU's state, read by its own thread, all at once.
    fn save_vcpus(&self) -> Result<Vec<Saved>, GuestError> {
        let saving: Vec<_> = self.vcpus.iter().map(VcpuHandle::begin_save).collect();
        saving
            .into_iter()
            .map(|answer| {
                answer
                    .recv()
                    .map_err(|_| GuestError::bare("save a vCPU: its thread has ended"))?
            })
            .collect()
    }

    fn view(&self, devices: &Devices) -> View {
        View {
            serial: devices.serial(),
            heartbeat: devices.heartbeat(),
            cards: devices.network_cards(),
            balloon: devices.balloon(),
            layout: self.shape.layout.clone(),
            host_addresses: memory::host_addresses(&self.ram),
            vcpus: self.shape.vcpus,
            slots: self.shape.slots.clone(),
            disks: devices.disks().paths().map(Path::to_owned).collect(),
            log: self.log.clone(),
        }
    }
}

impl RunningVm {
    /// What may be used without owning the VM.
    pub fn view(&self) -> View {
        self.core.view(&self.devices)
    }

    /// How long each vCPU has had a processor, to be read at any time.
    pub fn cpu_clocks(&self) -> Vec<CpuClock> {
        self.core.vcpus.iter().map(VcpuHandle::cpu_clock).collect()
    }

    /// Whether the guest counts its work, so that readings of that make sense.
    pub fn counts_work(&self) -> bool {
        self.core.counts_work()
    }

    /// Takes a reading of the guest's work; to be called every [`WORK_PERIOD`] while nothing holds the guest up.
    pub fn note_work(&self) {
        self.core.note_work();
    }

    /// Something held the guest up: the readings begin anew.
    pub fn forget_work(&self) {
        self.core.forget_work();
    }
}

impl PausedVm {
    /// What may be used without owning the VM.
    pub fn view(&self) -> View {
        self.core.view(&self.devices)
    }

    /// Whether the guest counts its work, so that readings of that make sense.
    pub fn counts_work(&self) -> bool {
        self.core.counts_work()
    }
}

impl RunningGuest for RunningVm {
    type Paused = PausedVm;

    fn describe(&self) -> Description {
        self.core.description.clone()
    }

    fn ram(&self) -> &GuestRam {
        &self.core.ram
    }

    fn dirty_log(&self) -> Arc<dyn DirtyLog> {
        self.core.log.clone()
    }

    fn throttle(&self, vcpus: &[ThrottlePercent], slice: Duration) {
        self.core.throttle.set(vcpus, slice);
    }

    fn throttled(&self) -> Vec<Duration> {
        self.core.throttle.slept()
    }

    fn heartbeat(&self) -> Option<Heartbeat> {
        let port = self.devices.heartbeat()?;
        let seen = devices::heartbeat(&port);
        lock(&port).forget_gap();
        Some(seen)
    }

    fn work(&self) -> Option<Baseline> {
        self.core.take_baseline()
    }

    fn settle(&self) -> Option<Settle> {
        self.devices.disks().settle()
    }

    fn pause(self) -> Result<PausedVm, Failed<Self>> {
        let stopped = self.core.stop_vcpus().and_then(|()| {
            if self.core.events.has_ended() {
                return Err(GuestError::bare(
                    "the guest has ended by itself (power off, reset or crash)",
                ));
            }
            Ok(())
        });
        if let Err(error) = stopped {
            // Those that did stop go on; the caller still has a running guest. Nobody waits for the first to be in it,
            // which may be the one that did not stop.
            self.core
                .vcpus
                .iter()
                .for_each(|vcpu| drop(vcpu.begin_run()));
            return Err(Failed { guest: self, error });
        }
        self.devices.pause();
        let Self { core, devices } = self;
        Ok(PausedVm { core, devices })
    }
}

impl PausedGuest for PausedVm {
    type Running = RunningVm;

    fn ram(&self) -> &GuestRam {
        &self.core.ram
    }

    fn dirty_log(&self) -> Arc<dyn DirtyLog> {
        self.core.log.clone()
    }

    fn heartbeat(&self) -> Option<Heartbeat> {
        self.devices.heartbeat().as_deref().map(devices::heartbeat)
    }

    fn throttled(&self) -> Vec<Duration> {
        self.core.throttle.slept()
    }

    fn work(&self) -> Option<Vec<VcpuWork>> {
        self.core.work()
    }

    /// What the guest has written goes to its disks first: once the destination has the state, it may read there.
    /// Devices next, then vCPUs, then what belongs to the VM: the interrupt controllers after everything that might
    /// still raise a line, the clock as late as possible.
    fn save(&mut self) -> Result<VmState, GuestError> {
        let encode = |e| GuestError::new("save the guest", e);
        self.devices.disks().sync()?;
        let mut state = VmState::default();
        self.devices.save(&mut state)?;
        let vcpus = self.core.save_vcpus()?;
        let common = vm_state::save(&self.core.vm)
            .map_err(|e| GuestError::new("save the interrupt controllers and the clock", e))?;
        let then = Instant::now();
        for (index, vcpu) in (0u32..).zip(vcpus) {
            state
                .put(Kind::VCPU, index, STATE_VERSION, &vcpu.at(then))
                .map_err(encode)?;
        }
        state
            .put(Kind::VM, 0, STATE_VERSION, &common)
            .map_err(encode)?;
        Ok(state)
    }

    fn let_go(&mut self) -> Result<(), GuestError> {
        self.devices.disks().release()
    }

    /// The locks of its disks, then in reverse of the pause: devices, then vCPUs.
    fn resume(self) -> Result<RunningVm, Failed<Self>> {
        if let Err(error) = self.devices.disks().take() {
            return Err(Failed { guest: self, error });
        }
        self.devices.resume();
        if let Err(error) = self.core.run_vcpus() {
            let _ = self.core.stop_vcpus();
            self.devices.pause();
            return Err(Failed { guest: self, error });
        }
        let Self { core, devices } = self;
        // What was read before it stood still is no baseline for what comes.
        core.forget_work();
        Ok(RunningVm { core, devices })
    }
}
