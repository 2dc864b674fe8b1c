//! Guests of a dozen instructions, in flat 32-bit protected mode: what both KVM's emulator and every processor
//! run without further set-up. The probe counts down with one; tests and benchmarks of the dirty log write
//! pages with another.

use kvm_bindings::kvm_segment;
use kvm_ioctls::VcpuFd;

/// The port that [`page_writer`] writes to when it is done.
pub const DONE_PORT: u16 = 0x10;

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

/// Code that writes a word to each of `pages` places, `stride` bytes apart from `first` on, then to
/// [`DONE_PORT`]. It may lie anywhere.
pub fn page_writer(first: u32, stride: u32, pages: u32) -> Vec<u8> {
    let mut code = vec![0xbf];
    code.extend(first.to_le_bytes()); // mov edi, first
    code.push(0xb9);
    code.extend(pages.to_le_bytes()); // mov ecx, pages
    code.extend([0x89, 0x0f]); // 1: mov [edi], ecx
    code.extend([0x81, 0xc7]);
    code.extend(stride.to_le_bytes()); // add edi, stride
    code.push(0x49); // dec ecx
    code.extend([0x75, 0xf5]); // jnz 1b
    code.extend([0xe6, DONE_PORT.to_le_bytes()[0]]); // out DONE_PORT, al
    code
}
