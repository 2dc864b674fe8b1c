//! Linux's boot params, the "zero page" (Linux: Documentation/arch/x86/zero-page.rst).

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use migration::guest::GuestRam;
use vm_memory::{GuestAddress, GuestMemoryError};

use super::BootError;
use super::initramfs::Initramfs;
use super::memory_map::MapEntry;
use crate::layout::{ACPI_START, BOOT_PARAMS, CMDLINE, KERNEL_START};

/// `type_of_loader`: a boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;

/// Writes the boot params: the kernel's own header, filled in, with memory map, initramfs and ACPI tables.
pub(super) fn write_boot_params(
    ram: &GuestRam,
    header: &setup_header,
    initramfs: Option<&Initramfs>,
    map: &[MapEntry],
) -> Result<(), BootError> {
    // All addresses are below 4 GiB: they are places of the layout, or in low RAM.
    let low = |address: u64| u32::try_from(address).unwrap_or(u32::MAX);
    let mut params = boot_params {
        hdr: *header,
        acpi_rsdp_addr: ACPI_START,
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.code32_start = low(KERNEL_START);
    params.hdr.cmd_line_ptr = low(CMDLINE);
    if let Some(initramfs) = initramfs {
        params.hdr.ramdisk_image = low(initramfs.start());
        params.hdr.ramdisk_size = low(initramfs.bytes());
    }
    // A handful of entries for a table of 128.
    params.e820_entries = u8::try_from(map.len()).unwrap_or(u8::MAX);
    let mut table = params.e820_table;
    for (slot, entry) in table.iter_mut().zip(map) {
        *slot = boot_e820_entry {
            addr: entry.start,
            size: entry.bytes,
            r#type: entry.kind,
        };
    }
    params.e820_table = table;
    LinuxBootConfigurator::write_bootparams(
        &BootParams::new(&params, GuestAddress(BOOT_PARAMS)),
        ram,
    )
    .map_err(|_| {
        let missing = GuestMemoryError::InvalidGuestAddress(GuestAddress(BOOT_PARAMS));
        BootError::write("boot params", missing)
    })
}
