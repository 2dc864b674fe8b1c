//! PVH's start info (Xen: xen/include/public/arch-x86/hvm/start_info.h): what an ELF kernel is told.

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use migration::guest::GuestRam;
use vm_memory::{GuestAddress, GuestMemoryError};

use super::BootError;
use super::initramfs::Initramfs;
use super::memory_map::MapEntry;
use crate::layout::{ACPI_START, CMDLINE, PVH_MEMORY_MAP, PVH_MODULE_LIST, PVH_START_INFO};

/// `magic`: "xEn3" with the top bit of the E set.
const MAGIC: u32 = 0x336e_c578;
/// `version` 1, the first with a memory map.
const VERSION: u32 = 1;

/// Writes the start info, the memory map and the module list, whose one module is the initramfs.
pub(super) fn write_start_info(
    ram: &GuestRam,
    initramfs: Option<&Initramfs>,
    map: &[MapEntry],
) -> Result<(), BootError> {
    let map: Vec<_> = map
        .iter()
        .map(|entry| hvm_memmap_table_entry {
            addr: entry.start,
            size: entry.bytes,
            type_: entry.kind,
            reserved: 0,
        })
        .collect();
    let modules: Vec<_> = initramfs
        .map(|initramfs| hvm_modlist_entry {
            paddr: initramfs.start(),
            size: initramfs.bytes(),
            ..Default::default()
        })
        .into_iter()
        .collect();
    let info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        nr_modules: u32::from(initramfs.is_some()),
        modlist_paddr: if initramfs.is_some() {
            PVH_MODULE_LIST
        } else {
            0
        },
        cmdline_paddr: CMDLINE,
        rsdp_paddr: ACPI_START,
        memmap_paddr: PVH_MEMORY_MAP,
        // A handful.
        memmap_entries: u32::try_from(map.len()).unwrap_or(u32::MAX),
        ..Default::default()
    };
    let mut params = BootParams::new(&info, GuestAddress(PVH_START_INFO));
    params.set_sections(&map, GuestAddress(PVH_MEMORY_MAP));
    params.set_modules(&modules, GuestAddress(PVH_MODULE_LIST));
    PvhBootConfigurator::write_bootparams(&params, ram).map_err(|_| {
        let missing = GuestMemoryError::InvalidGuestAddress(GuestAddress(PVH_START_INFO));
        BootError::write("PVH start info", missing)
    })
}
