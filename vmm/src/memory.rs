//! Guest memory: mapped here, and given to KVM one slot a region.
#![allow(
    unsafe_code,
    reason = "KVM is handed the host addresses of guest memory, and madvise a mapping"
)]

use std::io;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use migration::guest::GuestRam;
use migration::pages::MemoryLayout;
use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestMemoryRegionBytes,
    MemoryRegionAddress,
};

use nix::sys::sysinfo::sysinfo;
use thiserror::Error;

/// Guest memory could not be had.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// More than this host has: it would be given, as long as nobody touches it.
    #[error(
        "guest memory of {} is more than this host has ({} with swap): ask for less, or take a larger host", crate::units::Size(*.bytes), crate::ui::bytes(*.host)
    )]
    TooMuch {
        /// How much was asked for, in bytes.
        bytes: u64,
        /// Memory and swap of this host, in bytes.
        host: u64,
    },
    /// The host did not give it.
    #[error("map {bytes} bytes of guest memory: ask for less, or free memory on this host")]
    Map {
        /// How much was asked for.
        bytes: u64,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Maps the memory of a layout: private, anonymous, not reserved, not touched; huge pages where the host has
/// them, since first touch of huge pages is several times as fast.
///
/// # Errors
/// The host refuses the mapping, or has less memory in all.
pub fn map(layout: &MemoryLayout) -> Result<GuestRam, MemoryError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| MemoryError::Map {
        bytes: layout.bytes(),
        source,
    };
    let host = sysinfo().map_or(u64::MAX, |info| info.ram_total() + info.swap_total());
    if layout.bytes() > host {
        let bytes = layout.bytes();
        return Err(MemoryError::TooMuch { bytes, host });
    }
    let mut ranges = Vec::new();
    for region in layout.regions() {
        let bytes = usize::try_from(region.bytes).map_err(|e| failed(e.into()))?;
        ranges.push((GuestAddress(region.gpa), bytes));
    }
    let ram = GuestRam::from_ranges(&ranges).map_err(|e| failed(e.into()))?;
    for region in ram.iter() {
        // SAFETY: the range is exactly this region's mapping, which `ram` keeps alive; MADV_HUGEPAGE changes
        // no contents. Its failure (a kernel without huge pages) costs speed alone, so it is ignored.
        unsafe {
            libc::madvise(
                region.as_ptr().cast(),
                usize::try_from(region.len()).unwrap_or(0),
                libc::MADV_HUGEPAGE,
            );
        }
    }
    Ok(ram)
}

/// Gives every region to KVM as the memory slot of its index, with or without the dirty log; slots that are
/// there already only change that flag.
///
/// # Errors
/// KVM's refusal.
pub fn register(vm: &VmFd, ram: &GuestRam, log: bool) -> io::Result<()> {
    for (slot, region) in (0u32..).zip(ram.iter()) {
        let slot = kvm_userspace_memory_region {
            slot,
            flags: if log { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: host_address(region)?,
        };
        // SAFETY: the address range is this region's mapping. `GuestRam` is shared by reference count; the
        // VM and its dirty log hold a clone each, so the mapping outlives the slot. Regions never overlap.
        unsafe { vm.set_user_memory_region(slot) }
            .map_err(|e| io::Error::from_raw_os_error(e.errno()))?;
    }
    Ok(())
}

/// Where a region lies in this process.
fn host_address(region: &impl GuestMemoryRegionBytes) -> io::Result<u64> {
    let pointer = region
        .get_host_address(MemoryRegionAddress(0))
        .map_err(io::Error::other)?;
    Ok(pointer as u64)
}

/// The host address of each region, in order; for tools that look at guest memory from outside.
pub fn host_addresses(ram: &GuestRam) -> Vec<u64> {
    ram.iter()
        .map(|region| host_address(region).unwrap_or(0))
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn more_than_the_host_has_is_not_promised() {
        let layout = crate::layout::memory_layout(migration::pages::MAX_MEMORY).unwrap();
        let text = map(&layout).unwrap_err().to_string();
        assert!(text.contains("guest memory of 16T is more than"), "{text}");
    }
}
