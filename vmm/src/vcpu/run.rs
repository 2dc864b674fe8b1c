//! The loop of a vCPU thread: orders in, exits out.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;

use devices::bus::{Action, Bus};
use kvm_bindings::KVM_EXIT_DIRTY_RING_FULL;
use kvm_ioctls::{VcpuExit, VcpuFd};
use migration::guest::GuestError;

use super::kick::Kickable;
use super::throttle::{Duty, Slot};
use super::{Buses, EventSender, Order, VmEvent};
use crate::kvm::dirty::VmLog;
use crate::kvm::vcpu_state::{self, VcpuCaps};

/// Whether the vCPU is let into the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Out,
    In,
    /// It ended the VM (power off, crash) and stays out, whatever it is told.
    Ended,
}

/// What an exit asks for.
enum Next {
    Continue,
    /// KVM_RUN was interrupted: look for orders and throttle.
    Kicked,
    Stop(VmEvent),
}

/// A vCPU, in its thread.
pub struct Vcpu {
    vcpu: Kickable,
    index: u8,
    caps: VcpuCaps,
    events: EventSender,
    log: Arc<dyn VmLog>,
    orders: Receiver<Order>,
    duty: Duty,
    buses: Option<Buses>,
    mode: Mode,
}

impl Vcpu {
    /// Takes the vCPU into this thread.
    pub fn new(
        fd: VcpuFd,
        index: u8,
        caps: VcpuCaps,
        events: EventSender,
        log: Arc<dyn VmLog>,
        orders: Receiver<Order>,
        slot: Arc<Slot>,
    ) -> Self {
        Self {
            vcpu: Kickable::new(fd),
            index,
            caps,
            events,
            log,
            orders,
            duty: Duty::new(slot),
            buses: None,
            mode: Mode::Out,
        }
    }

    /// Serves orders until the handle is dropped.
    pub fn serve(mut self) {
        loop {
            let order = if self.mode == Mode::In {
                match self.orders.try_recv() {
                    Ok(order) => order,
                    Err(TryRecvError::Empty) => {
                        if self.enter().is_break() {
                            return;
                        }
                        continue;
                    }
                    Err(TryRecvError::Disconnected) => return,
                }
            } else {
                match self.orders.recv() {
                    Ok(order) => order,
                    Err(_) => return,
                }
            };
            if self.obey(order).is_break() {
                return;
            }
        }
    }

    fn obey(&mut self, order: Order) -> ControlFlow<()> {
        match order {
            Order::Run(entered) if self.mode == Mode::Out => {
                // The guest is told that it was stopped, or its soft-lockup watchdog fires. EINVAL means
                // that it uses no kvmclock (Documentation/virt/kvm/api.rst, 4.70).
                let _ = self.vcpu.fd().kvmclock_ctrl();
                self.mode = Mode::In;
                // The account begins anew; nothing is owed yet.
                let _ = self.duty.due();
                let _ = entered.send(());
            }
            Order::Run(_) => {}
            Order::Pause(reply) => {
                if self.mode == Mode::In {
                    self.duty.rest();
                    self.complete_exit();
                    self.mode = Mode::Out;
                }
                let _ = reply.send(());
            }
            Order::Save(reply) => {
                let state = vcpu_state::save(self.vcpu.fd(), self.index, &self.caps)
                    .map_err(|e| GuestError::new(format!("save vCPU {}", self.index), e));
                let _ = reply.send(state);
            }
            Order::Load(state, standstill, reply) => {
                let result =
                    vcpu_state::restore(self.vcpu.fd(), self.index, &self.caps, &state, standstill)
                        .map_err(|e| GuestError::new(format!("load vCPU {}", self.index), e));
                let _ = reply.send(result);
            }
            Order::Attach(buses) => self.buses = Some(buses),
            Order::Look => {}
            Order::End => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }

    /// Runs the guest until an exit wants the loop to look around.
    fn enter(&mut self) -> ControlFlow<()> {
        loop {
            match self.run_once() {
                Next::Continue => {}
                Next::Kicked => {
                    self.vcpu.set_immediate_exit(false);
                    return self.sleep_slice();
                }
                Next::Stop(event) => {
                    if event != VmEvent::Panicked {
                        self.mode = Mode::Ended;
                    }
                    self.events.send(event);
                    return ControlFlow::Continue(());
                }
            }
        }
    }

    /// An exit whose answer was given (a read of a port, say) is complete only when KVM_RUN is entered
    /// again; registers saved before that would lack it.
    fn complete_exit(&mut self) {
        self.vcpu.set_immediate_exit(true);
        // An access that crosses a page is two exits; more than a few would be a KVM that never stops.
        for _ in 0..8 {
            match self.run_once() {
                Next::Continue => {}
                Next::Kicked => break,
                Next::Stop(event) => {
                    self.events.send(event);
                    break;
                }
            }
        }
        self.vcpu.set_immediate_exit(false);
    }

    /// Sleeps as the throttle says; an order ends the sleep, but for one to look at the throttle.
    fn sleep_slice(&mut self) -> ControlFlow<()> {
        let Some(slice) = self.duty.due() else {
            return ControlFlow::Continue(());
        };
        let began = Instant::now();
        let order = loop {
            let left = self.duty.left(slice, began.elapsed());
            match self.orders.recv_timeout(left) {
                Ok(Order::Look) => {}
                other => break other,
            }
        };
        self.duty.slept(began.elapsed());
        match order {
            Ok(order) => self.obey(order),
            Err(_) => ControlFlow::Continue(()),
        }
    }

    /// One KVM_RUN and what its exit asks for.
    fn run_once(&mut self) -> Next {
        let index = self.index;
        let Some(buses) = &self.buses else {
            return Next::Stop(VmEvent::Crashed(format!("vCPU {index} has no bus")));
        };
        let (exit, io_size) = match self.vcpu.run() {
            Ok(exit) => exit,
            Err(error) => {
                return match error.errno() {
                    libc::EINTR | libc::EAGAIN => Next::Kicked,
                    _ => Next::Stop(VmEvent::Crashed(format!("run vCPU {index}: {error}"))),
                };
            }
        };
        match exit {
            VcpuExit::IoIn(port, data) => {
                for access in data.chunks_mut(io_size) {
                    buses.pio.read(u64::from(port), access);
                }
                Next::Continue
            }
            VcpuExit::IoOut(port, data) => port_out(&buses.pio, port, data, io_size),
            VcpuExit::MmioRead(address, data) => {
                buses.mmio.read(address, data);
                Next::Continue
            }
            VcpuExit::MmioWrite(address, data) => act(buses.mmio.write(address, data)),
            VcpuExit::Intr => Next::Kicked,
            VcpuExit::Shutdown => Next::Stop(VmEvent::TripleFault),
            // The one who writes clears its ring out; the others go on.
            VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL) => {
                self.log.make_room(index);
                Next::Continue
            }
            VcpuExit::Hlt | VcpuExit::IrqWindowOpen | VcpuExit::IoapicEoi(_) => Next::Continue,
            other => Next::Stop(VmEvent::Crashed(format!(
                "vCPU {index} left the guest with {other:?}, which ferry cannot answer"
            ))),
        }
    }
}

/// A write to a port, access by access.
fn port_out(bus: &Bus, port: u16, data: &[u8], io_size: usize) -> Next {
    let mut next = Next::Continue;
    for access in data.chunks(io_size) {
        if let stop @ Next::Stop(_) = act(bus.write(u64::from(port), access)) {
            next = stop;
        }
    }
    next
}

/// What a device's answer means for the VM. Writes that no device takes vanish, as on a real bus.
fn act(action: Option<Action>) -> Next {
    match action {
        None | Some(Action::None) => Next::Continue,
        Some(Action::PowerOff) => Next::Stop(VmEvent::PowerOff),
        Some(Action::Reset) => Next::Stop(VmEvent::Reset),
        Some(Action::Panicked) => Next::Stop(VmEvent::Panicked),
    }
}
