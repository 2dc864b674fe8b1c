//! The registers of virtio devices as memory that the guest can read.
//!
//! Each device's page of registers is given to KVM as a read-only slot: the guest reads it as any memory, and what it
//! writes comes out as of a device without memory (Documentation/virt/kvm/api.rst, 4.35, KVM_MEM_READONLY), to its
//! ioeventfd if there is one. A driver reads InterruptStatus in every interrupt, and that is then no way out to this
//! process.

use std::io;
use std::sync::Arc;

use devices::virtio::RegisterPage;
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VmFd};

use crate::layout::{self, Transport};

/// KVM's number of the first of these slots; those of guest memory are below it.
const FIRST_SLOT: u32 = 0x100;

/// Pages for the devices in the first `count` virtio slots, shown to the guest where it reads its devices' registers
/// there, and KVM can do that. They must outlive the VM.
///
/// # Errors
/// KVM's refusal.
pub fn show_registers(
    kvm: &Kvm,
    vm: &VmFd,
    count: usize,
    transport: Transport,
) -> io::Result<Vec<Arc<RegisterPage>>> {
    let pages: Vec<Arc<RegisterPage>> = (0..count).map(|_| Arc::default()).collect();
    if transport == Transport::Pci || !kvm.check_extension(Cap::ReadonlyMem) {
        return Ok(pages);
    }
    for (slot, page) in (0u32..).zip(&pages) {
        let region = kvm_userspace_memory_region {
            slot: FIRST_SLOT + slot,
            flags: KVM_MEM_READONLY,
            guest_phys_addr: layout::slot_address(slot),
            memory_size: size_of::<RegisterPage>() as u64,
            userspace_addr: Arc::as_ptr(page) as u64,
        };
        // SAFETY: the range is that of the page, which is aligned as a page and as long; it stays where it is, and the
        // caller keeps it for as long as the VM. The guest only reads it, and what it reads is atomic here. The slots
        // of the layout overlap neither each other nor guest memory.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(|e| io::Error::from_raw_os_error(e.errno()))?;
    }
    Ok(pages)
}
