//! The interrupt lines of a VM's devices.
//!
//! Whoever has an interrupt to raise raises it, by KVM_IRQ_LINE. An irqfd would be the longer way: what it raises at the
//! I/O APIC within the kernel is done later by a thread of the kernel's (virt/kvm/eventfd.c, irqfd_inject: only an MSI is
//! delivered at once), which is a switch to that thread for each interrupt, and what is on its way to it is in no state that
//! is saved.

use std::sync::{Arc, Mutex};

use devices::line::Line;
use kvm_ioctls::VmFd;

use super::io_thread::lock;

/// A line of the interrupt controllers.
pub struct Gsi {
    vm: Arc<VmFd>,
    number: u32,
    /// Whoever pulses it: a line that is raised while another thread has it up makes no edge.
    turn: Mutex<()>,
}

impl Gsi {
    /// The line with this number (GSI: of the I/O APIC's pins, from 0).
    pub fn new(vm: &Arc<VmFd>, number: u32) -> Self {
        Self {
            vm: vm.clone(),
            number,
            turn: Mutex::default(),
        }
    }
}

impl Line for Gsi {
    fn pulse(&self) {
        let _turn = lock(&self.turn);
        for level in [true, false] {
            if let Err(error) = self.vm.set_irq_line(self.number, level) {
                tracing::error!("interrupt line {}: {error}", self.number);
            }
        }
    }
}
