//! Interrupts that PCI functions send: messages to the local APICs.

use std::sync::{Arc, Weak};

use devices::pci::msix::MessageSink;
use kvm_bindings::kvm_msi;
use kvm_ioctls::VmFd;

use crate::layout;

/// Where the functions of a VM send their messages. KVM delivers one at once (KVM_SIGNAL_MSI), so it is in the state of
/// a vCPU as soon as it has been sent.
pub struct Messages {
    /// Devices are held by more than their VM is, and its memory must not go before it does.
    vm: Weak<VmFd>,
}

impl Messages {
    /// To the vCPUs of this VM.
    pub fn new(vm: &Arc<VmFd>) -> Self {
        Self {
            vm: Arc::downgrade(vm),
        }
    }
}

impl MessageSink for Messages {
    fn send(&self, address: u64, data: u32) {
        let Some(vm) = self.vm.upgrade() else {
            return;
        };
        // Anywhere else it is a write to memory or to nobody, which KVM, that looks at the lower bits alone, does not
        // know.
        if address >> 20 != layout::LAPIC_START >> 20 {
            return;
        }
        let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
        let message = kvm_msi {
            address_lo: u32::from_le_bytes([a, b, c, d]),
            address_hi: u32::from_le_bytes([e, f, g, h]),
            data,
            ..Default::default()
        };
        // The guest chose what is sent, and may have chosen nonsense: it goes to its own vCPUs if to anybody, and nothing
        // is logged at a guest's will.
        let _ = vm.signal_msi(message);
    }
}

#[cfg(test)]
mod tests {
    use super::super::gsi::tests::{requested, vm_with_apic};
    use super::*;

    /// What is sent is in the state that would be saved, at once; and what nobody understands is nothing.
    #[test]
    fn a_message_is_an_interrupt_as_soon_as_it_is_sent() {
        let (vm, vcpu) = vm_with_apic();
        let messages = Messages::new(&vm);
        // A local APIC that there is not, a delivery mode that there is not, vector 0.
        for (id, data) in [(7, 64), (0, 64 | 3 << 8), (0, 0)] {
            messages.send(layout::LAPIC_START | id << 12, data);
        }
        // No local APIC's addresses.
        for address in [0, 0xfed0_0000, 0x1_fee0_0000, u64::MAX] {
            messages.send(address, 64);
        }
        assert_eq!(requested(&vcpu), 0);
        for (vector, expected) in [(64, 1), (66, 5)] {
            messages.send(layout::LAPIC_START, vector);
            assert_eq!(requested(&vcpu), expected);
        }
    }
}
