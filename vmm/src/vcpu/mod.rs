//! vCPUs: a thread each, and the one handle through which the rest of the VMM talks to it.

mod cpu_clock;
mod kick;
mod run;
mod throttle;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::JoinHandle;
use std::time::Duration;

use devices::bus::Bus;
use kvm_ioctls::VcpuFd;
use migration::guest::GuestError;
use vmm_sys_util::eventfd::EventFd;

use crate::kvm::dirty::VmLog;
use crate::kvm::standstill::Standstill;
use crate::kvm::vcpu_state::{Saved, VcpuCaps, VcpuState};
use crate::sandbox::{self, Kind};

pub use cpu_clock::CpuClock;
pub use throttle::Throttle;

/// What a vCPU's exit means for the whole VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmEvent {
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest's kernel says that it panicked; it may go on to reset or to hang.
    Panicked,
    /// A triple fault: the guest's processor shut down.
    TripleFault,
    /// KVM cannot go on with this vCPU.
    Crashed(String),
}

/// Where vCPUs say what happened; wakes the main loop.
#[derive(Debug)]
pub struct EventSender {
    sender: mpsc::Sender<VmEvent>,
    wake: EventFd,
    /// Set once an event has ended the guest: such a guest is not moved.
    ended: Arc<AtomicBool>,
    /// Set once the guest has said that it panicked. A guest that says so all the time keeps the main loop from nothing
    /// else.
    panicked: Arc<AtomicBool>,
}

impl EventSender {
    /// A sender into `sender` that also signals `wake`.
    pub fn new(sender: mpsc::Sender<VmEvent>, wake: EventFd) -> Self {
        Self {
            sender,
            wake,
            ended: Arc::default(),
            panicked: Arc::default(),
        }
    }

    /// Whether an event has ended the guest.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// The same, for another vCPU.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        Ok(Self {
            sender: self.sender.clone(),
            wake: self.wake.try_clone()?,
            ended: self.ended.clone(),
            panicked: self.panicked.clone(),
        })
    }

    fn send(&self, event: VmEvent) {
        if event != VmEvent::Panicked {
            self.ended.store(true, Ordering::Release);
        } else if self.panicked.swap(true, Ordering::AcqRel) {
            return;
        }
        // A main loop that is gone has no use for it.
        let _ = self.sender.send(event);
        let _ = self.wake.write(1);
    }
}

/// The address spaces that a vCPU's exits go to.
#[derive(Clone)]
pub struct Buses {
    /// I/O ports.
    pub pio: Arc<Bus>,
    /// Memory-mapped I/O.
    pub mmio: Arc<Bus>,
}

impl fmt::Debug for Buses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Buses")
    }
}

/// What a vCPU thread is told. It answers on the channel inside, where there is one.
enum Order {
    /// Enter the guest; the answer comes just before.
    Run(SyncSender<()>),
    /// Complete the pending exit and stay out of the guest.
    Pause(SyncSender<()>),
    Save(SyncSender<Result<Saved, GuestError>>),
    Load(
        Box<VcpuState>,
        Option<Standstill>,
        SyncSender<Result<(), GuestError>>,
    ),
    Attach(Buses),
    /// Look at the throttle.
    Look,
    End,
}

/// The only way to talk to a vCPU thread. Dropping it ends the thread.
pub struct VcpuHandle {
    index: u8,
    orders: mpsc::Sender<Order>,
    kick: kick::Kick,
    clock: CpuClock,
    throttle: Arc<throttle::Slot>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for VcpuHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuHandle")
            .field("index", &self.index)
            .finish()
    }
}

impl VcpuHandle {
    /// Starts the thread of a vCPU; it waits for orders.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn spawn(
        fd: VcpuFd,
        index: u8,
        caps: VcpuCaps,
        events: EventSender,
        log: Arc<dyn VmLog>,
    ) -> std::io::Result<Self> {
        kick::install_handler()?;
        let (orders, inbox) = mpsc::channel();
        let (started, start) = mpsc::sync_channel(1);
        let throttle = Arc::new(throttle::Slot::default());
        let slot = throttle.clone();
        let thread = std::thread::Builder::new()
            .name(format!("vcpu-{index}"))
            .spawn(move || {
                sandbox::enter(Kind::Vcpu);
                let vcpu = run::Vcpu::new(fd, index, caps, events, log, inbox, slot);
                let _ = started.send((kick::Kick::of_this_thread(), CpuClock::of_this_thread()));
                vcpu.serve();
            })?;
        let (kick, clock) = start.recv().map_err(|_| {
            std::io::Error::other(format!("vCPU thread {index} ended at its start"))
        })?;
        Ok(Self {
            index,
            orders,
            kick,
            clock,
            throttle,
            thread: Some(thread),
        })
    }

    fn order(&self, order: Order) {
        // A thread that is gone answers nothing, and whoever waits for the answer notices.
        let _ = self.orders.send(order);
        self.kick.kick();
    }

    fn answer<T>(&self, act: &str, answer: &Receiver<T>) -> Result<T, GuestError> {
        answer.recv().map_err(|_| {
            GuestError::bare(format!("{act} vCPU {}: its thread has ended", self.index))
        })
    }

    /// Lets the vCPU into the guest; the answer comes just before it enters.
    pub fn begin_run(&self) -> Receiver<()> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.order(Order::Run(reply));
        answer
    }

    /// Kicks the vCPU out of the guest; the answer comes when its pending exit is completed and it stays out.
    pub fn begin_pause(&self) -> Pausing {
        let (reply, answer) = mpsc::sync_channel(1);
        self.order(Order::Pause(reply));
        Pausing {
            index: self.index,
            answer,
        }
    }

    /// Asks a paused vCPU for its state.
    pub fn begin_save(&self) -> Receiver<Result<Saved, GuestError>> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.order(Order::Save(reply));
        answer
    }

    /// Gives a vCPU that never ran its state, after a standstill; see [`crate::kvm::vcpu_state::restore`].
    ///
    /// # Errors
    /// The state is refused.
    pub fn load(&self, state: VcpuState, standstill: Option<Standstill>) -> Result<(), GuestError> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.order(Order::Load(Box::new(state), standstill, reply));
        self.answer("load", &answer)?
    }

    /// Gives the vCPU the buses that its exits go to; before it runs.
    pub fn attach(&self, buses: Buses) {
        self.order(Order::Attach(buses));
    }

    /// The processor time of its thread.
    pub fn cpu_clock(&self) -> CpuClock {
        self.clock
    }

    /// The slot through which this vCPU is slowed down, and what makes it look there.
    fn throttle(&self) -> (Arc<throttle::Slot>, Nudge) {
        let nudge = Nudge {
            orders: self.orders.clone(),
            kick: self.kick,
        };
        (self.throttle.clone(), nudge)
    }
}

impl Drop for VcpuHandle {
    fn drop(&mut self) {
        self.order(Order::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Has a vCPU look at its throttle, asleep or in the guest. Must not outlive the vCPU's handle.
#[derive(Debug)]
struct Nudge {
    orders: mpsc::Sender<Order>,
    kick: kick::Kick,
}

impl Nudge {
    fn nudge(&self) {
        // A thread that is gone has nothing to look at.
        let _ = self.orders.send(Order::Look);
        self.kick.kick();
    }
}

/// A vCPU on its way out of the guest.
#[derive(Debug)]
#[must_use = "the vCPU is out of the guest only once this was waited for"]
pub struct Pausing {
    index: u8,
    answer: Receiver<()>,
}

impl Pausing {
    /// How long a vCPU may take to leave the guest. KVM_RUN returns on a signal within microseconds; a host
    /// that starves the thread for seconds is in trouble that only the operator can mend.
    const LONGEST: Duration = Duration::from_secs(10);

    /// Waits until the vCPU is out.
    ///
    /// # Errors
    /// It did not come out within ten seconds, or its thread has ended.
    pub fn wait(self) -> Result<(), GuestError> {
        self.answer.recv_timeout(Self::LONGEST).map_err(|_| {
            GuestError::bare(format!(
                "stop vCPU {}: it did not leave the guest within 10 s",
                self.index
            ))
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A guest can say so as often as it can write to a port.
    #[test]
    fn a_guest_panics_once() {
        let (sender, events) = mpsc::channel();
        let wake = EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap();
        let one = EventSender::new(sender, wake);
        let other = one.try_clone().unwrap();
        for _ in 0..1000 {
            one.send(VmEvent::Panicked);
            other.send(VmEvent::Panicked);
        }
        assert!(!one.has_ended());
        other.send(VmEvent::Reset);
        assert!(one.has_ended());
        let heard: Vec<_> = events.try_iter().collect();
        assert_eq!(heard, [VmEvent::Panicked, VmEvent::Reset]);
    }
}
