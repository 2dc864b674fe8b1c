//! Guest memory: mapped here, and given to KVM one slot a region.
#![allow(
    unsafe_code,
    reason = "KVM is handed the host addresses of guest memory"
)]

mod advise;
mod filled;
mod prefault;
mod program;
mod registers;
mod release;

use std::fs::File;
use std::io;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use migration::guest::GuestRam;
use migration::marks::Marks;
use migration::pages::MemoryLayout;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::sysinfo::sysinfo;
use thiserror::Error;
use vm_memory::bitmap::NewBitmap;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Address, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion,
    GuestMemoryRegionBytes, MemoryRegionAddress,
};

use self::advise::{Advice, advise};

pub use filled::Filled;
pub use prefault::Prefaulted;
pub use program::forget_text;
pub use registers::show_registers;
pub use release::release;

type GuestRegion = vm_memory::GuestRegionMmap<Marks>;

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
    /// Not as many huge pages are free as it takes.
    #[error(
        "{} of guest memory in huge pages: this host has fewer free that are set aside; set aside {pages} of 2 MiB (sysctl vm.nr_hugepages={pages}), or do without hugepages", crate::units::Size(*.bytes), pages = .bytes >> 21
    )]
    HugePages {
        /// How much was asked for, in bytes.
        bytes: u64,
        /// The kernel's word.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It cannot be touched ahead of a guest.
    #[error(
        "have {} of memory ready for a guest: free memory on this host, or take a smaller --prefault; kernels before Linux 5.14 cannot", crate::units::Size(*.bytes)
    )]
    Prefault {
        /// How much was asked for, in bytes.
        bytes: u64,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Files from another process are not such memory.
    #[error(
        "the memory that was handed over is not what the guest's is: {0}; run the same ferry on both ends"
    )]
    Files(String),
    /// The host did not give it.
    #[error("map {bytes} bytes of guest memory: ask for less, or free memory on this host")]
    Map {
        /// How much was asked for.
        bytes: u64,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What guest memory is made of.
#[derive(Debug)]
pub enum Backing {
    /// Anonymous memory, with huge pages where the host has them: first touch of those is several times as fast.
    Anonymous,
    /// Anonymous memory in huge pages of 2 MiB that the host has set aside.
    HugePages,
    /// Anonymous memory of which so much is there already.
    Prefaulted(Prefaulted),
    /// A memfd a region, which can be handed to another process as it is.
    Memfd,
    /// Such files, handed over by another process.
    Files(Vec<File>),
}

/// Nobody may cut a file short under those who have it mapped: touching what is gone would kill them.
const SEALS: SealFlag = SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_SEAL);

/// Maps the memory of a layout: not reserved, and not touched.
///
/// # Errors
/// The host refuses the mapping, or has less memory in all; files are not such memory.
pub fn map(layout: &MemoryLayout, backing: Backing) -> Result<GuestRam, MemoryError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| MemoryError::Map {
        bytes: layout.bytes(),
        source,
    };
    let host = sysinfo().map_or(u64::MAX, |info| info.ram_total() + info.swap_total());
    if layout.bytes() > host {
        let bytes = layout.bytes();
        return Err(MemoryError::TooMuch { bytes, host });
    }
    let huge = match &backing {
        Backing::HugePages => return in_huge_pages(layout),
        Backing::Anonymous | Backing::Prefaulted(_) => true,
        Backing::Memfd | Backing::Files(_) => false,
    };
    let mut ready = None;
    let files: Vec<Option<File>> = match backing {
        Backing::Anonymous | Backing::HugePages => layout.regions().iter().map(|_| None).collect(),
        Backing::Prefaulted(prefaulted) => {
            ready = Some(prefaulted);
            layout.regions().iter().map(|_| None).collect()
        }
        Backing::Memfd => {
            let made = layout.regions().iter().map(|region| memfd(region.bytes));
            let made: io::Result<Vec<_>> = made.map(|file| file.map(Some)).collect();
            made.map_err(|e| failed(e.into()))?
        }
        Backing::Files(files) => {
            check_files(layout, &files)?;
            files.into_iter().map(Some).collect()
        }
    };
    let mut ranges = Vec::new();
    for (region, file) in layout.regions().iter().zip(files) {
        let bytes = usize::try_from(region.bytes).map_err(|e| failed(e.into()))?;
        let file = file.map(|file| FileOffset::new(file, 0));
        ranges.push((GuestAddress(region.gpa), bytes, file));
    }
    let ram = GuestRam::from_ranges_with_files(&ranges).map_err(|e| failed(e.into()))?;
    if huge {
        ram.iter().for_each(ask_for_huge_pages);
    }
    match ready {
        Some(ready) => ready.give(ram).map_err(|e| failed(e.into())),
        None => Ok(ram),
    }
}

/// In huge pages of 2 MiB, which regions are multiples of. They are the guest's from now on, touched or not: a guest
/// that is not given one when it touches it would be killed.
fn in_huge_pages(layout: &MemoryLayout) -> Result<GuestRam, MemoryError> {
    let bytes = layout.bytes();
    let mut regions = Vec::new();
    for region in layout.regions() {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| MemoryError::HugePages {
            bytes,
            source,
        };
        let len = usize::try_from(region.bytes).map_err(|e| failed(e.into()))?;
        let mapping = MmapRegionBuilder::new_with_bitmap(len, Marks::with_len(len))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(
                libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB,
            )
            .with_hugetlbfs(true)
            .build()
            .map_err(|e| failed(e.into()))?;
        let region = GuestRegion::new(mapping, GuestAddress(region.gpa));
        regions.push(region.ok_or_else(|| failed("it ends beyond the last address".into()))?);
    }
    GuestRam::from_regions(regions).map_err(|e| MemoryError::Map {
        bytes,
        source: e.into(),
    })
}

fn ask_for_huge_pages(region: &GuestRegion) {
    // Without (a kernel without huge pages) it is slower, and that is all.
    let _ = advise(region, 0..region.size(), Advice::HugePages);
}

/// A new file in memory, of a size that cannot shrink.
fn memfd(bytes: u64) -> io::Result<File> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create(c"ferry-guest", flags)?);
    file.set_len(bytes)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS))?;
    Ok(file)
}

/// Whether files that came from elsewhere can be mapped as the regions of a layout, and stay so.
fn check_files(layout: &MemoryLayout, files: &[File]) -> Result<(), MemoryError> {
    let regions = layout.regions();
    if files.len() != regions.len() {
        return Err(MemoryError::Files(format!(
            "{} files for {} regions of memory",
            files.len(),
            regions.len()
        )));
    }
    for (file, region) in files.iter().zip(regions) {
        // Only a memfd has seals, so this also says what kind of file it is.
        let seals = fcntl(file, FcntlArg::F_GET_SEALS).map_or(SealFlag::empty(), |seals| {
            SealFlag::from_bits_truncate(seals)
        });
        let bytes = file.metadata().map_or(0, |data| data.len());
        if !seals.contains(SealFlag::F_SEAL_SHRINK) || bytes < region.bytes {
            return Err(MemoryError::Files(format!(
                "a file of {bytes} bytes with seals {:#x} for a region of {} bytes",
                seals.bits(),
                region.bytes
            )));
        }
    }
    Ok(())
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
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn more_than_the_host_has_is_not_promised() {
        let layout = crate::layout::memory_layout(migration::pages::MAX_MEMORY).unwrap();
        let text = map(&layout, Backing::Anonymous).unwrap_err().to_string();
        assert!(text.contains("guest memory of 16T is more than"), "{text}");
    }

    /// Whether the host has set some aside is its own affair: either there is such memory, or it is said how to have
    /// it.
    #[test]
    fn huge_pages_are_there_at_once_or_it_is_said_how_to_get_them() {
        let layout = crate::layout::memory_layout(16 << 20).unwrap();
        match map(&layout, Backing::HugePages) {
            Ok(ram) => {
                let at = GuestAddress(0x1234);
                ram.write_obj(7u64, at).unwrap();
                assert_eq!(ram.read_obj::<u64>(at).unwrap(), 7);
                // What the guest gives away is zeros, and stays set aside for it.
                let held = || {
                    let status = std::fs::read_to_string("/proc/self/status").unwrap();
                    let line = |line: &&str| line.starts_with("HugetlbPages:");
                    status.lines().find(line).map(str::to_owned).unwrap()
                };
                let before = held();
                release(&ram, &(0x2000..0x3000)).unwrap();
                assert_eq!(ram.read_obj::<u64>(at).unwrap(), 7);
                release(&ram, &(0..2 << 20)).unwrap();
                assert_eq!(ram.read_obj::<u64>(at).unwrap(), 0);
                assert_eq!(held(), before);
            }
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("16M of guest memory in huge pages"), "{text}");
                assert!(text.contains("vm.nr_hugepages=8"), "{text}");
            }
        }
    }

    #[test]
    fn memory_that_is_handed_over_is_the_same_and_is_checked() {
        let layout = crate::layout::memory_layout(16 << 20).unwrap();
        let ram = map(&layout, Backing::Memfd).unwrap();
        let at = GuestAddress(0x1234);
        ram.write_obj(7u64, at).unwrap();
        let again = |ram: &GuestRam| -> Vec<File> {
            let files = ram.iter().map(|r| r.file_offset().unwrap().file());
            files.map(|file| file.try_clone().unwrap()).collect()
        };
        let other = map(&layout, Backing::Files(again(&ram))).unwrap();
        assert_eq!(other.read_obj::<u64>(at).unwrap(), 7);
        assert!(again(&ram)[0].set_len(4096).is_err(), "it is sealed");

        let refused = |files| map(&layout, Backing::Files(files)).unwrap_err().to_string();
        assert!(refused(Vec::new()).contains("0 files for 1 regions"));
        let small = again(
            &map(
                &crate::layout::memory_layout(8 << 20).unwrap(),
                Backing::Memfd,
            )
            .unwrap(),
        );
        assert!(refused(small).contains("a file of 8388608 bytes"));
        let ordinary = File::open("/proc/self/exe").unwrap();
        assert!(refused(vec![ordinary]).contains("seals 0x0"));
    }
}
