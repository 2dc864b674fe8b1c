//! Guests of a dozen instructions, in flat 32-bit protected mode: what both KVM's emulator and every processor
//! run without further set-up. The probe counts down with one; tests and benchmarks of the dirty log write
//! pages with another.

use kvm_bindings::{kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;

/// The port that [`PAGE_WRITER`] writes to when it is done.
pub const DONE_PORT: u16 = 0x10;
/// Code that counts ESI up and writes it to ECX places, EBX bytes apart from EDI on. It may lie anywhere, and is
/// started with the registers of [`write_pages`].
pub const PAGE_WRITER: [u8; 10] = [
    0x46, // 1: inc esi
    0x89, 0x37, // mov [edi], esi
    0x01, 0xdf, // add edi, ebx
    0x49, // dec ecx
    0x75, 0xf8, // jnz 1b
    0xe6, 0x10, // out DONE_PORT, al
];

/// Registers with which [`PAGE_WRITER`] at `code` writes to `count` places, 1 or more, `stride` bytes apart from
/// `first` on: the numbers above `above`.
pub fn write_pages(code: u64, first: u32, stride: u32, count: u32, above: u32) -> kvm_regs {
    kvm_regs {
        rip: code,
        rdi: u64::from(first),
        rbx: u64::from(stride),
        rcx: u64::from(count),
        rsi: u64::from(above),
        rflags: 2,
        ..Default::default()
    }
}

/// Puts a fresh vCPU into flat 32-bit protected mode: all segments reach from 0 to 4 GiB.
///
/// # Errors
/// KVM's refusal.
pub fn enter_protected_mode(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = vcpu.get_sregs()?;
    let flat = |type_, selector| kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    // Types: 0xb code, execute/read, accessed; 3 data, read/write, accessed (Intel SDM vol. 3, 3.4.5.1).
    sregs.cs = flat(0xb, 8);
    let data = flat(3, 16);
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    (sregs.fs, sregs.gs) = (data, data);
    sregs.cr0 |= 1;
    vcpu.set_sregs(&sregs)
}
