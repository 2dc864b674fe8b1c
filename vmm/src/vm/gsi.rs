//! The interrupt lines of a VM's devices.
//!
//! Whoever has an interrupt to raise raises it, by KVM_IRQ_LINE. An irqfd would be the longer way: what it raises at
//! the I/O APIC within the kernel is done later by a thread of the kernel's (virt/kvm/eventfd.c, irqfd_inject: only an
//! MSI is delivered at once), which is a switch to that thread for each interrupt, and what is on its way to it is in
//! no state that is saved.

use std::sync::{Arc, Mutex, Weak};

use devices::line::Line;
use kvm_ioctls::VmFd;

use super::io_thread::lock;

/// A line of the interrupt controllers.
pub struct Gsi {
    /// Devices are held by more than their VM is, and its memory must not go before it does.
    vm: Weak<VmFd>,
    number: u32,
    /// Whoever pulses it: a line that is raised while another thread has it up makes no edge.
    turn: Mutex<()>,
}

impl Gsi {
    /// The line with this number (GSI: of the I/O APIC's pins, from 0).
    pub fn new(vm: &Arc<VmFd>, number: u32) -> Self {
        Self {
            vm: Arc::downgrade(vm),
            number,
            turn: Mutex::default(),
        }
    }
}

impl Line for Gsi {
    fn pulse(&self) {
        let Some(vm) = self.vm.upgrade() else {
            return;
        };
        let _turn = lock(&self.turn);
        for level in [true, false] {
            if let Err(error) = vm.set_irq_line(self.number, level) {
                tracing::error!("interrupt line {}: {error}", self.number);
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use kvm_bindings::{
        KVM_IRQCHIP_IOAPIC, kvm_ioapic_state, kvm_ioapic_state__bindgen_ty_1, kvm_irqchip,
    };
    use kvm_ioctls::VcpuFd;

    use super::*;
    use crate::{kvm, layout};

    /// Offsets in a local APIC's page: SVR, and the word of IRR with the vectors from 64 on.
    const SVR: usize = 0xf0;
    const IRR_64: usize = 0x220;

    /// A VM with a vCPU whose local APIC is enabled.
    pub fn vm_with_apic() -> (Arc<VmFd>, VcpuFd) {
        let kvm = kvm::open().unwrap();
        let vm = Arc::new(kvm::create_vm(&kvm).unwrap());
        kvm::create_interrupt_controllers(&vm).unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let mut lapic = vcpu.get_lapic().unwrap();
        // Enabled by software; the spurious vector 0xff.
        (lapic.regs[SVR], lapic.regs[SVR + 1]) = (-1, 1);
        vcpu.set_lapic(&lapic).unwrap();
        (vm, vcpu)
    }

    /// The vectors from 64 on that are requested of it, one a bit.
    pub fn requested(vcpu: &VcpuFd) -> i8 {
        vcpu.get_lapic().unwrap().regs[IRR_64]
    }

    /// What is raised is in the state that would be saved, at once.
    #[test]
    fn a_pulse_is_an_interrupt_as_soon_as_it_is_over() {
        let (vm, vcpu) = vm_with_apic();
        let gsis = [layout::slot_gsi(0), layout::SERIAL_GSI];
        let mut ioapic = kvm_ioapic_state {
            base_address: layout::IOAPIC_START,
            ..Default::default()
        };
        for (vector, gsi) in (64..).zip(gsis) {
            // Edge, fixed, to the local APIC 0, not masked.
            ioapic.redirtbl[gsi as usize] = kvm_ioapic_state__bindgen_ty_1 { bits: vector };
        }
        let mut chip = kvm_irqchip {
            chip_id: KVM_IRQCHIP_IOAPIC,
            ..Default::default()
        };
        chip.chip.ioapic = ioapic;
        vm.set_irqchip(&chip).unwrap();
        assert_eq!(requested(&vcpu), 0);
        for (already, gsi) in [0, 1].into_iter().zip(gsis) {
            let line = Gsi::new(&vm, gsi);
            assert_eq!(requested(&vcpu), already);
            line.pulse();
            assert_eq!(requested(&vcpu), already << 1 | 1, "GSI {gsi}");
        }
    }
}
