//! The numbers of the ioctls that filters tell apart (include/uapi/linux/kvm.h, if_tun.h, fs.h). The bindings have the
//! structures alone, and kvm-ioctls keeps its numbers to itself.
#![allow(missing_docs, reason = "each has the name that the kernel gives it")]

use crate::userfault as uffd;
use kvm_bindings as kvm;
use kvm_bindings::KVMIO;
use nix::{request_code_none, request_code_read, request_code_readwrite, request_code_write};

/// The type of a userfaultfd's ioctls.
const UFFDIO: u32 = 0xaa;

/// `_IO`.
const fn io(number: u32) -> u64 {
    request_code_none!(KVMIO, number)
}

/// `_IOR`: the kernel writes a `T`.
const fn ior<T>(number: u32) -> u64 {
    request_code_read!(KVMIO, number, size_of::<T>())
}

/// `_IOW`: the kernel reads a `T`.
const fn iow<T>(number: u32) -> u64 {
    request_code_write!(KVMIO, number, size_of::<T>())
}

/// `_IOWR`: both.
const fn iowr<T>(number: u32) -> u64 {
    request_code_readwrite!(KVMIO, number, size_of::<T>())
}

// On /dev/kvm.
pub const KVM_CREATE_VM: u64 = io(0x01);
pub const KVM_GET_MSR_INDEX_LIST: u64 = iowr::<kvm::kvm_msr_list>(0x02);
pub const KVM_CHECK_EXTENSION: u64 = io(0x03);
pub const KVM_GET_VCPU_MMAP_SIZE: u64 = io(0x04);
pub const KVM_GET_SUPPORTED_CPUID: u64 = iowr::<kvm::kvm_cpuid2>(0x05);

// On a VM.
pub const KVM_CREATE_VCPU: u64 = io(0x41);
pub const KVM_GET_DIRTY_LOG: u64 = iow::<kvm::kvm_dirty_log>(0x42);
pub const KVM_SET_USER_MEMORY_REGION: u64 = iow::<kvm::kvm_userspace_memory_region>(0x46);
pub const KVM_SET_TSS_ADDR: u64 = io(0x47);
pub const KVM_SET_IDENTITY_MAP_ADDR: u64 = iow::<u64>(0x48);
pub const KVM_CREATE_IRQCHIP: u64 = io(0x60);
pub const KVM_IRQ_LINE: u64 = iow::<kvm::kvm_irq_level>(0x61);
pub const KVM_GET_IRQCHIP: u64 = iowr::<kvm::kvm_irqchip>(0x62);
pub const KVM_SET_IRQCHIP: u64 = ior::<kvm::kvm_irqchip>(0x63);
pub const KVM_CREATE_PIT2: u64 = iow::<kvm::kvm_pit_config>(0x77);
pub const KVM_IOEVENTFD: u64 = iow::<kvm::kvm_ioeventfd>(0x79);
pub const KVM_SIGNAL_MSI: u64 = iow::<kvm::kvm_msi>(0xa5);
pub const KVM_SET_CLOCK: u64 = iow::<kvm::kvm_clock_data>(0x7b);
pub const KVM_GET_CLOCK: u64 = ior::<kvm::kvm_clock_data>(0x7c);
pub const KVM_GET_PIT2: u64 = ior::<kvm::kvm_pit_state2>(0x9f);
pub const KVM_SET_PIT2: u64 = iow::<kvm::kvm_pit_state2>(0xa0);
pub const KVM_ENABLE_CAP: u64 = iow::<kvm::kvm_enable_cap>(0xa3);
pub const KVM_CLEAR_DIRTY_LOG: u64 = iowr::<kvm::kvm_clear_dirty_log>(0xc0);
pub const KVM_RESET_DIRTY_RINGS: u64 = io(0xc7);

// On a vCPU.
pub const KVM_RUN: u64 = io(0x80);
pub const KVM_GET_REGS: u64 = ior::<kvm::kvm_regs>(0x81);
pub const KVM_SET_REGS: u64 = iow::<kvm::kvm_regs>(0x82);
pub const KVM_GET_SREGS: u64 = ior::<kvm::kvm_sregs>(0x83);
pub const KVM_SET_SREGS: u64 = iow::<kvm::kvm_sregs>(0x84);
pub const KVM_GET_MSRS: u64 = iowr::<kvm::kvm_msrs>(0x88);
pub const KVM_SET_MSRS: u64 = iow::<kvm::kvm_msrs>(0x89);
pub const KVM_GET_LAPIC: u64 = ior::<kvm::kvm_lapic_state>(0x8e);
pub const KVM_SET_LAPIC: u64 = iow::<kvm::kvm_lapic_state>(0x8f);
pub const KVM_SET_CPUID2: u64 = iow::<kvm::kvm_cpuid2>(0x90);
pub const KVM_GET_MP_STATE: u64 = ior::<kvm::kvm_mp_state>(0x98);
pub const KVM_SET_MP_STATE: u64 = iow::<kvm::kvm_mp_state>(0x99);
pub const KVM_GET_VCPU_EVENTS: u64 = ior::<kvm::kvm_vcpu_events>(0x9f);
pub const KVM_SET_VCPU_EVENTS: u64 = iow::<kvm::kvm_vcpu_events>(0xa0);
pub const KVM_GET_DEBUGREGS: u64 = ior::<kvm::kvm_debugregs>(0xa1);
pub const KVM_SET_DEBUGREGS: u64 = iow::<kvm::kvm_debugregs>(0xa2);
pub const KVM_SET_TSC_KHZ: u64 = io(0xa2);
pub const KVM_GET_TSC_KHZ: u64 = io(0xa3);
pub const KVM_GET_XSAVE: u64 = ior::<kvm::kvm_xsave>(0xa4);
pub const KVM_SET_XSAVE: u64 = iow::<kvm::kvm_xsave>(0xa5);
pub const KVM_GET_XCRS: u64 = ior::<kvm::kvm_xcrs>(0xa6);
pub const KVM_SET_XCRS: u64 = iow::<kvm::kvm_xcrs>(0xa7);
pub const KVM_KVMCLOCK_CTRL: u64 = io(0xad);
pub const KVM_GET_XSAVE2: u64 = ior::<kvm::kvm_xsave>(0xcf);

/// On /proc/self/pagemap: `struct pm_scan_arg` is twelve 64-bit words.
pub const PAGEMAP_SCAN: u64 = request_code_readwrite!(b'f', 16, 96);

// On a tap.
pub const TUNGETIFF: u64 = libc::TUNGETIFF;
pub const TUNSETQUEUE: u64 = libc::TUNSETQUEUE;
pub const TUNSETOFFLOAD: u64 = libc::TUNSETOFFLOAD;
pub const TUNSETVNETHDRSZ: u64 = libc::TUNSETVNETHDRSZ;

// On sockets and terminals: non-blocking or not, bytes to be read, the terminal's settings.
pub const FIONBIO: u64 = libc::FIONBIO;
pub const FIONREAD: u64 = libc::FIONREAD;
pub const TCGETS: u64 = libc::TCGETS;
pub const TCSETS: u64 = libc::TCSETS;

// On a userfaultfd.
pub const UFFDIO_REGISTER: u64 = request_code_readwrite!(UFFDIO, 0x00, size_of::<uffd::Register>());
pub const UFFDIO_UNREGISTER: u64 = request_code_read!(UFFDIO, 0x01, size_of::<uffd::Range>());
pub const UFFDIO_WAKE: u64 = request_code_read!(UFFDIO, 0x02, size_of::<uffd::Range>());
pub const UFFDIO_COPY: u64 = request_code_readwrite!(UFFDIO, 0x03, size_of::<uffd::Copy>());
pub const UFFDIO_ZEROPAGE: u64 = request_code_readwrite!(UFFDIO, 0x04, size_of::<uffd::ZeroPage>());

#[cfg(test)]
mod tests {
    use super::*;

    /// Some as strace shows them, with the sizes of their structures in bits 16 to 29.
    #[test]
    fn numbers_are_the_kernels() {
        assert_eq!(KVM_RUN, 0xae80);
        assert_eq!(KVM_CREATE_VM, 0xae01);
        assert_eq!(KVM_SET_USER_MEMORY_REGION, 0x4020_ae46);
        assert_eq!(KVM_GET_MSRS, 0xc008_ae88);
        assert_eq!(KVM_GET_XSAVE2, 0x9000_aecf);
        assert_eq!(KVM_CLEAR_DIRTY_LOG, 0xc018_aec0);
        assert_eq!(PAGEMAP_SCAN, 0xc060_6610);
    }
}
