//! The ioctls that kvm-ioctls does not wrap: KVM_CLEAR_DIRTY_LOG and KVM_RESET_DIRTY_RINGS.
#![allow(
    unsafe_code,
    reason = "ioctls, one of which has an argument that holds a pointer to a bitmap"
)]

use std::ffi::c_void;
use std::io;
use std::ops::Range;

use kvm_bindings::{KVMIO, kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1};
use kvm_ioctls::VmFd;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_ref};
use vmm_sys_util::{ioctl_io_nr, ioctl_iowr_nr};

ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);
ioctl_io_nr!(KVM_RESET_DIRTY_RINGS, KVMIO, 0xc7);

/// Clears and write-protects again the pages of a slot that `words` names; bit 0 is page `pages.start` of
/// the slot (Documentation/virt/kvm/api.rst, 4.117).
///
/// `pages` starts at a multiple of 64 and ends at one, or at the slot's last page: KVM refuses all else.
pub fn clear_dirty_log(vm: &VmFd, slot: u32, pages: Range<u64>, words: &[u64]) -> io::Result<()> {
    let count = pages.end.saturating_sub(pages.start);
    let enough = u64::try_from(words.len()).unwrap_or(0) >= count.div_ceil(64);
    let (Ok(num_pages), true) = (u32::try_from(count), enough) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let argument = kvm_clear_dirty_log {
        slot,
        num_pages,
        first_page: pages.start,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
            dirty_bitmap: words.as_ptr() as *mut c_void,
        },
    };
    // SAFETY: the descriptor is a VM's; the argument is of the type that the request number encodes and
    // lives across the call; KVM only reads the bitmap, ceil(num_pages / 64) words of it, and `words` has
    // that many (checked above) and is borrowed across the call.
    let result = unsafe { ioctl_with_ref(vm, KVM_CLEAR_DIRTY_LOG(), &argument) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Has KVM take back the entries of all dirty rings that are marked as read, and protect their pages; says how many
/// they were (api.rst, 8.29). A signal may end it early, with fewer.
pub fn reset_dirty_rings(vm: &VmFd) -> io::Result<u32> {
    // SAFETY: the descriptor is a VM's, and the ioctl has no argument.
    let result = unsafe { ioctl(vm, KVM_RESET_DIRTY_RINGS()) };
    u32::try_from(result).map_err(|_| io::Error::last_os_error())
}
