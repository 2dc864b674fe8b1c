//! How a guest kernel gets into memory and starts.
//!
//! A [`Kernel`] is a checked file: a bzImage with the 64-bit Linux boot protocol, or an ELF file with a PVH
//! entry. [`load`] puts it into guest memory with what it expects to find there (memory map, command line,
//! initramfs, ACPI tables) and says in an [`Entry`] how the first vCPU begins.
//!
//! ```text
//!   Kernel::open(path) --> bzimage or elf: headers checked, nothing loaded
//!   load(ram, ...)     --> kernel, initramfs, command line, ACPI tables
//!                          linux: boot params, page tables   |   pvh: start info, module list, memory map
//!   Entry::apply       --> the registers of vCPU 0; all others wait for INIT and SIPI
//! ```
//!
//! Everything is checked before the first byte is written. Nothing here knows KVM's ioctls.

pub mod acpi;
mod bzimage;
mod elf;
mod entry;
mod error;
mod image;
mod initramfs;
mod kernel;
mod linux;
mod memory_map;
mod pvh;
#[cfg(test)]
mod tests;

use std::path::Path;

use devices::power::RESET_VALUE;
use migration::guest::GuestRam;
use migration::pages::MemoryLayout;
use vm_memory::{Bytes, GuestAddress};

pub use entry::{Entry, Protocol};
pub use error::BootError;
pub use kernel::Kernel;

use crate::layout::{self, Transport};
use image::Image;
use initramfs::Initramfs;
use kernel::Format;

/// The command line for a Linux guest when the user gives none.
///
/// - `console=ttyS0`: the serial port is the only console there is.
/// - `panic=-1`: a panic reboots at once, which ends the VM, instead of a guest that hangs forever.
/// - `reboot=acpi`: through the ACPI reset register. Left to itself, hardware-reduced Linux asks UEFI, which is
///   not there, and then jumps to the BIOS (where a few bytes that do the same wait for it).
///
/// Deliberately not in it: `clocksource=`, since kvm-clock is chosen by itself unless the CPU model promises
/// an invariant TSC.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 panic=-1 reboot=acpi";
/// Added to it, after a blank, where there is no PCI: without it Linux searches for some, by hundreds of exits to user
/// space.
pub const NO_PCI: &str = "pci=off";

/// All of the machine's BIOS: 16-bit code at the reset vector that writes the ACPI reset register. Linux whose
/// command line says nothing else ends up here on a reboot (arch/x86/kernel/reboot.c: BOOT_EFI, then BOOT_BIOS),
/// and would run into zeros.
///
/// `mov dx, RESET_PORT; mov al, RESET_VALUE; out dx, al; hlt; jmp` back to the `hlt`.
const RESET_CODE: [u8; 9] = {
    let [low, high] = layout::RESET_PORT.to_le_bytes();
    [0xba, low, high, 0xb0, RESET_VALUE, 0xee, 0xf4, 0xeb, 0xfd]
};

/// What the guest is told about the machine, besides its memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// vCPUs, at least 1; their APIC ids are `0..vcpus`.
    pub vcpus: u8,
    /// The virtio slots that hold a device, each below [`layout::VIRTIO_SLOTS`].
    pub virtio_slots: Vec<u32>,
    /// What they are behind.
    pub transport: Transport,
    /// Whether COM1 is there.
    pub serial: bool,
    /// Whether the pvpanic port is there.
    pub pvpanic: bool,
}

/// Puts a kernel and what it needs into guest memory, which is expected to be all zeros.
///
/// # Errors
/// What is wrong with the kernel, the initramfs, the command line or the size of the memory. After an error
/// of reading a file or writing guest memory, memory holds a part of it all; otherwise it is untouched.
pub fn load(
    ram: &GuestRam,
    layout: &MemoryLayout,
    kernel: &Kernel,
    initramfs: Option<&Path>,
    cmdline: &str,
    machine: &Machine,
) -> Result<Entry, BootError> {
    let initramfs = initramfs.map(Initrd::open).transpose()?;
    load_open(ram, layout, kernel, initramfs, cmdline, machine)
}

/// An initramfs, open: for a process that will not be able to open it when it is needed.
#[derive(Debug)]
pub struct Initrd(Image);

impl Initrd {
    /// Opens it.
    ///
    /// # Errors
    /// It is not there, no file, or empty.
    pub fn open(path: &Path) -> Result<Self, BootError> {
        Image::initramfs(path).map(Self)
    }
}

/// [`load`] with an initramfs that is open already.
///
/// # Errors
/// As [`load`].
pub fn load_open(
    ram: &GuestRam,
    layout: &MemoryLayout,
    kernel: &Kernel,
    initramfs: Option<Initrd>,
    cmdline: &str,
    machine: &Machine,
) -> Result<Entry, BootError> {
    let initramfs = initramfs.map(|Initrd(image)| image);
    let low_end = low_ram_end(layout);
    check_cmdline(cmdline, kernel.cmdline_max())?;
    let kernel_end = kernel.place(low_end, &initramfs)?;
    let initramfs = initramfs
        .map(|image| Initramfs::place(image, kernel_end, kernel.initramfs_end(), low_end))
        .transpose()?;

    kernel.load(ram)?;
    if let Some(initramfs) = &initramfs {
        initramfs.load(ram)?;
    }
    // The memory is zero, so the string ends where it ends.
    ram.write_slice(cmdline.as_bytes(), GuestAddress(layout::CMDLINE))
        .map_err(|source| BootError::write("command line", source))?;
    let tables = acpi::tables(layout::ACPI_START, machine);
    ram.write_slice(&tables, GuestAddress(layout::ACPI_START))
        .map_err(|source| BootError::write("ACPI tables", source))?;
    ram.write_slice(&RESET_CODE, GuestAddress(layout::RESET_VECTOR))
        .map_err(|source| BootError::write("reset code", source))?;

    let map = memory_map::entries(layout);
    let entry = match kernel.format() {
        Format::BzImage(image) => {
            linux::write_boot_params(ram, image.header(), initramfs.as_ref(), &map)?;
            Entry::linux(layout::KERNEL_START)
        }
        Format::Elf(image) => {
            pvh::write_start_info(ram, initramfs.as_ref(), &map)?;
            Entry::pvh(image.entry())
        }
    };
    entry.write_tables(ram)?;
    Ok(entry)
}

/// Where RAM below the 32-bit gap ends.
fn low_ram_end(layout: &MemoryLayout) -> u64 {
    layout
        .regions()
        .first()
        .filter(|region| region.gpa == 0)
        .map_or(0, |region| region.bytes.min(layout::LOW_RAM_END))
}

/// Refuses a command line that the kernel would cut off, silently, or read only in part.
fn check_cmdline(cmdline: &str, max: u64) -> Result<(), BootError> {
    let bytes = cmdline.len() as u64;
    if bytes > max {
        return Err(BootError::CmdlineTooLong { bytes, max });
    }
    match cmdline.find('\0') {
        Some(at) => Err(BootError::CmdlineZero { at }),
        None => Ok(()),
    }
}
