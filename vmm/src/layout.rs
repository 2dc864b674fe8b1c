//! The machine's map: every guest-physical address, I/O port and interrupt line is written down here, once.
//!
//! Guest-physical memory, sizes in bytes:
//!
//! ```text
//!   0x0000_0000  +--------------------------------------------+
//!                | low RAM                                    |  see "below 1 MiB"
//!   0x0010_0000  |   1 MiB: the kernel, by default            |  KERNEL_START
//!                |   ...                                      |
//!                |   initramfs, as high as it may lie         |
//!   0xc000_0000  +--------------------------------------------+  LOW_RAM_END = 3 GiB
//!                | nothing                                    |
//!   0xd000_0000  +--------------------------------------------+  SLOTS_START
//!                | 16 slots of virtio-mmio of 4 KiB each;     |
//!                | those in use are read-only memory          |
//!   0xd001_0000  +--------------------------------------------+  = start + 16 * 0x1000 = BARS_START
//!                | or BAR 0 of as many functions, 8 KiB each  |
//!   0xd003_0000  +--------------------------------------------+  = start + 16 * 0x2000
//!                | nothing                                    |
//!   0xfec0_0000  +--------------------------------------------+  IOAPIC_START (in KVM)
//!   0xfee0_0000  |   local APIC (in KVM)                      |  LAPIC_START
//!   0xfffb_c000  |   KVM's identity map, 1 page               |  KVM_IDENTITY_MAP_START
//!   0xfffb_d000  |   KVM's TSS, 3 pages                       |  KVM_TSS_START
//!   0xfffc_0000  |   = TSS + 3 * 0x1000                       |
//!   0x1_0000_0000+--------------------------------------------+  HIGH_RAM_START = 4 GiB
//!                | high RAM: what is beyond the first 3 GiB   |
//!                +--------------------------------------------+
//! ```
//!
//! Below 1 MiB, all of it RAM to KVM (one region without holes) and partly reserved to the guest:
//!
//! ```text
//!   0x0_0000     real-mode vectors and BIOS data area, left zero
//!   0x0_0500     GDT, 4 entries of 8 bytes                          GDT_START
//!   0x0_5000     PVH: start info, 56 bytes                          PVH_START_INFO
//!   0x0_5100     PVH: module list, 1 entry of 32 bytes              PVH_MODULE_LIST
//!   0x0_5200     PVH: memory map, 24 bytes an entry                 PVH_MEMORY_MAP
//!   0x0_7000     Linux: boot params ("zero page"), 4 KiB            BOOT_PARAMS
//!   0x0_8ff0     Linux: stack for the first instructions, downwards BOOT_STACK
//!   0x0_9000     PML4, PDPT, four page directories: 6 * 4 KiB       PAGE_TABLES
//!   0x0_f000     = PAGE_TABLES + 6 * 0x1000
//!   0x2_0000     kernel command line, at most 2 KiB                 CMDLINE
//!   0x9_fc00     end of what the guest may use below 1 MiB          LOW_RESERVED_START
//!   0xa_0000     (legacy video memory: nothing lies there)
//!   0xe_0000     ACPI: RSDP, then the other tables                  ACPI_START = RSDP
//!   0xf_fff0     a reset from real mode ends here, 16 bytes         RESET_VECTOR = ACPI_END
//!   0x10_0000    = 1 MiB
//! ```
//!
//! I/O ports and interrupt lines (GSI: the pin of the one IOAPIC, which has 24):
//!
//! ```text
//!   0x060, 0x064       i8042, for its reset line alone
//!   0x3f8..0x400       COM1, GSI 4
//!   0x505              pvpanic
//!   0x5f0..0x5f4       heartbeat of the bare test guest
//!   0x600..0x603       ACPI: sleep control, sleep status, reset
//!   0xcf8..0xd00       PCI configuration, where there is PCI: the host bridge is device 0, slot n is device n + 1
//!   GSI 16..24         virtio slots 0..8, where they have lines
//!   GSI 9..16, 5       virtio slots 8..16
//!   GSI 0..9           the legacy lines; COM1's and that of slot 15 are the only ones in use
//! ```

use std::str::FromStr;

use devices::virtio::pci::BAR_LEN;
use migration::pages::{LayoutError, MAX_MEMORY, MemoryLayout, REGION_ALIGN, Region};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Low RAM ends here at the latest, 3 GiB; the last GiB below 4 GiB belongs to devices.
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// RAM beyond the first 3 GiB lies from here on, 4 GiB.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;
/// The least guest memory, 4 MiB. It is enough for the bare test guest; what a Linux kernel needs is in its
/// header and is checked when it is loaded.
pub const MIN_MEMORY: u64 = 4 << 20;

/// The global descriptor table of the first instructions.
pub const GDT_START: u64 = 0x500;
/// PVH's `hvm_start_info`.
pub const PVH_START_INFO: u64 = 0x5000;
/// PVH's module list; the one module is the initramfs.
pub const PVH_MODULE_LIST: u64 = 0x5100;
/// PVH's memory map.
pub const PVH_MEMORY_MAP: u64 = 0x5200;
/// Linux's `boot_params`, also called the zero page.
pub const BOOT_PARAMS: u64 = 0x7000;
/// Where the stack begins (downwards) when Linux is entered; it sets up its own at once.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Page tables that map the low 4 GiB one to one, in 2 MiB pages: PML4, PDPT and four page directories.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// The most bytes of a command line, its closing zero included: x86 Linux's `COMMAND_LINE_SIZE`.
pub const CMDLINE_SIZE: u64 = 2048;
/// From here to 1 MiB the guest finds no usable RAM (the customary place of the extended BIOS data area).
pub const LOW_RESERVED_START: u64 = 0x9_fc00;
/// The ACPI tables, the RSDP first. A kernel that is not told the RSDP's address searches 0xe0000..0x100000
/// in steps of 16 bytes (ACPI 6.5, 5.2.5.1) and finds it at once.
pub const ACPI_START: u64 = 0xe_0000;
/// The ACPI tables end before this.
pub const ACPI_END: u64 = RESET_VECTOR;
/// Where software that restarts a PC by its BIOS jumps to, in real mode: F000:FFF0.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// Kernels lie from here on, 1 MiB; an ELF kernel may say another place above it.
pub const KERNEL_START: u64 = 0x10_0000;

/// How a guest comes to its virtio devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transport {
    /// Registers that ACPI tells of, and an interrupt line each (virtio 1.2, 4.2).
    Mmio,
    /// A PCI bus, and an interrupt message a queue (virtio 1.2, 4.1).
    Pci,
}

impl FromStr for Transport {
    type Err = String;

    /// `mmio` or `pci`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "mmio" => Ok(Self::Mmio),
            "pci" => Ok(Self::Pci),
            _ => Err("take mmio or pci".into()),
        }
    }
}

/// The first virtio slot.
pub const SLOTS_START: u64 = 0xd000_0000;
/// Bytes of address space of one virtio slot, behind virtio-mmio.
pub const SLOT_SIZE: u64 = 0x1000;
/// BAR 0 of the PCI function in the first slot.
pub const BARS_START: u64 = SLOTS_START + SLOT_SIZE * VIRTIO_SLOTS as u64;
/// How many virtio slots there are.
pub const VIRTIO_SLOTS: u32 = 16;
/// The GSIs of the slots. First those that are pins of the IOAPIC alone: what is below 16 KVM shows to the PIC as well.
/// Not 8: there KVM keeps count of a real-time clock's interrupts (arch/x86/kvm/ioapic.c, RTC_GSI), so that the end of
/// each one is a way out of the guest.
const VIRTIO_GSIS: [u32; VIRTIO_SLOTS as usize] =
    [16, 17, 18, 19, 20, 21, 22, 23, 9, 10, 11, 12, 13, 14, 15, 5];

/// Where the IOAPIC's registers are; KVM has this address built in.
pub const IOAPIC_START: u64 = 0xfec0_0000;
/// Pins of the IOAPIC: GSIs 0..24.
pub const IOAPIC_PINS: u32 = 24;
/// Where each vCPU's local APIC is, unless the guest moves it.
pub const LAPIC_START: u64 = 0xfee0_0000;
/// KVM's identity-map page (KVM_SET_IDENTITY_MAP_ADDR), needed by Intel CPUs without unrestricted guest.
pub const KVM_IDENTITY_MAP_START: u64 = 0xfffb_c000;
/// KVM's three TSS pages (KVM_SET_TSS_ADDR), needed by the same CPUs.
pub const KVM_TSS_START: u64 = 0xfffb_d000;
/// End of both.
pub const KVM_PAGES_END: u64 = KVM_TSS_START + 3 * 0x1000;

/// COM1's first port.
pub const SERIAL_PORT: u16 = 0x3f8;
/// COM1's ports: 8 registers.
pub const SERIAL_PORTS: u16 = 8;
/// COM1's interrupt line.
pub const SERIAL_GSI: u32 = 4;

/// The i8042 keyboard controller's data port. Of the controller only the reset line exists.
pub const I8042_DATA_PORT: u16 = 0x60;
/// The i8042's command port; the byte 0xfe resets the machine.
pub const I8042_COMMAND_PORT: u16 = 0x64;

/// pvpanic (QEMU docs/specs/pvpanic): one byte, written by a guest that has panicked.
pub const PVPANIC_PORT: u16 = 0x505;

/// Configuration mechanism #1 of PCI: the address of a register, then its data (PCI Local Bus 3.0, 3.2.2.3.2).
pub const PCI_CONFIG_PORT: u16 = 0xcf8;

/// Where the bare test guest writes its heartbeat counter.
pub const HEARTBEAT_PORT: u16 = 0x5f0;
/// Ports of the heartbeat: one 32-bit register.
pub const HEARTBEAT_PORTS: u16 = 4;

/// The first of the ACPI power registers.
pub const POWER_PORT: u16 = 0x600;
/// Ports of the ACPI power registers: sleep control, sleep status, reset.
pub const POWER_PORTS: u16 = 3;
/// ACPI sleep control register (ACPI 6.5, 4.8.3.7).
pub const SLEEP_CONTROL_PORT: u16 = POWER_PORT;
/// ACPI sleep status register.
pub const SLEEP_STATUS_PORT: u16 = POWER_PORT + 1;
/// ACPI reset register.
pub const RESET_PORT: u16 = POWER_PORT + 2;
/// A guest memory size that the machine cannot have.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MemorySizeError {
    /// Not a multiple of 2 MiB, too little or too much.
    #[error(
        "guest memory of {0} bytes is refused: it must be a multiple of 2 MiB, at least 4 MiB and at most 16 TiB"
    )]
    Size(u64),
    /// The regions made from it were refused.
    #[error("guest memory of {bytes} bytes cannot be laid out")]
    Layout {
        /// The size asked for.
        bytes: u64,
        /// What is wrong with the regions.
        source: LayoutError,
    },
}

/// Where a guest memory of `bytes` lies: one region from 0 up to 3 GiB, and the rest from 4 GiB on.
///
/// # Errors
/// The size is not a multiple of 2 MiB, below [`MIN_MEMORY`] or above 16 TiB.
pub fn memory_layout(bytes: u64) -> Result<MemoryLayout, MemorySizeError> {
    if !(MIN_MEMORY..=MAX_MEMORY).contains(&bytes) || !bytes.is_multiple_of(REGION_ALIGN) {
        return Err(MemorySizeError::Size(bytes));
    }
    let low = bytes.min(LOW_RAM_END);
    let mut regions = vec![Region { gpa: 0, bytes: low }];
    if bytes > low {
        regions.push(Region {
            gpa: HIGH_RAM_START,
            bytes: bytes - low,
        });
    }
    MemoryLayout::new(regions).map_err(|source| MemorySizeError::Layout { bytes, source })
}

/// The guest-physical address of a virtio slot.
///
/// # Panics
/// If there is no such slot: slots are 0..[`VIRTIO_SLOTS`].
pub fn slot_address(slot: u32) -> u64 {
    assert!(slot < VIRTIO_SLOTS, "virtio slot {slot} does not exist");
    SLOTS_START + u64::from(slot) * SLOT_SIZE
}

/// The address of BAR 0 of the function in a slot.
///
/// # Panics
/// If there is no such slot: slots are 0..[`VIRTIO_SLOTS`].
pub fn bar_address(slot: u32) -> u64 {
    assert!(slot < VIRTIO_SLOTS, "virtio slot {slot} does not exist");
    BARS_START + u64::from(slot) * BAR_LEN
}

/// The interrupt line of a virtio slot.
///
/// # Panics
/// If there is no such slot: slots are 0..[`VIRTIO_SLOTS`].
pub fn slot_gsi(slot: u32) -> u32 {
    VIRTIO_GSIS[slot as usize]
}

/// The interrupt line that a slot had before guests said which ones theirs have.
pub fn former_slot_gsi(slot: u32) -> u32 {
    8 + slot
}

/// Whether a slot may have that interrupt line: no more is asked of a guest that says so.
pub fn may_be_slot_gsi(gsi: u32) -> bool {
    (SERIAL_GSI + 1..IOAPIC_PINS).contains(&gsi)
}

#[cfg(test)]
mod tests {
    use devices::power;

    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn regions(bytes: u64) -> Vec<(u64, u64)> {
        let layout = memory_layout(bytes).unwrap();
        assert_eq!(layout.bytes(), bytes);
        layout.regions().iter().map(|r| (r.gpa, r.bytes)).collect()
    }

    #[test]
    fn memory_fills_the_low_gap_first() {
        assert_eq!(regions(128 * MIB), [(0, 128 * MIB)]);
        assert_eq!(regions(3 * GIB), [(0, 3 * GIB)]);
        assert_eq!(
            regions(3 * GIB + 2 * MIB),
            [(0, 3 * GIB), (4 * GIB, 2 * MIB)]
        );
        assert_eq!(regions(8 * GIB), [(0, 3 * GIB), (4 * GIB, 5 * GIB)]);
    }

    #[test]
    fn odd_sizes_are_refused() {
        for bytes in [
            0,
            2 * MIB,
            128 * MIB + 1,
            129 * MIB,
            MAX_MEMORY + 2 * MIB,
            u64::MAX,
        ] {
            assert_eq!(memory_layout(bytes), Err(MemorySizeError::Size(bytes)));
        }
    }

    #[test]
    fn every_slot_has_its_own_line_on_the_ioapic_and_room_in_the_gap() {
        for slot in 0..VIRTIO_SLOTS {
            assert!(may_be_slot_gsi(slot_gsi(slot)) && may_be_slot_gsi(former_slot_gsi(slot)));
            assert!((0..slot).all(|other| slot_gsi(other) != slot_gsi(slot)));
            assert_ne!(slot_gsi(slot), 8, "the real-time clock's");
            assert!(slot_address(slot) >= LOW_RAM_END);
            assert!(slot_address(slot) + SLOT_SIZE <= BARS_START);
            assert_eq!(bar_address(slot) % BAR_LEN, 0, "as a BAR has to be");
            assert!(bar_address(slot) + BAR_LEN <= IOAPIC_START);
        }
        assert_eq!(former_slot_gsi(VIRTIO_SLOTS - 1), IOAPIC_PINS - 1);
    }

    #[test]
    fn ports_are_where_the_device_models_have_their_registers() {
        let offset = |port: u16| u64::from(port - POWER_PORT);
        assert_eq!(offset(SLEEP_CONTROL_PORT), power::SLEEP_CONTROL);
        assert_eq!(offset(SLEEP_STATUS_PORT), power::SLEEP_STATUS);
        assert_eq!(offset(RESET_PORT), power::RESET);
        assert_eq!(u64::from(POWER_PORTS), power::POWER_LEN);
        assert_eq!(u64::from(SERIAL_PORTS), devices::serial::SERIAL_LEN);
        let heartbeat = devices::heartbeat::HEARTBEAT_LEN;
        assert_eq!(u64::from(HEARTBEAT_PORTS), heartbeat);
        let i8042 = u64::from(I8042_COMMAND_PORT - I8042_DATA_PORT);
        assert_eq!(i8042 + 1, power::I8042_LEN);
    }

    #[test]
    fn structures_below_one_mib_do_not_overlap() {
        let mut areas = [
            (GDT_START, 4 * 8),
            (PVH_START_INFO, 0x100),
            (PVH_MODULE_LIST, 0x100),
            (PVH_MEMORY_MAP, 0x200),
            (BOOT_PARAMS, 0x1000),
            (PAGE_TABLES, 6 * 0x1000),
            (CMDLINE, CMDLINE_SIZE),
            (ACPI_START, ACPI_END - ACPI_START),
            (RESET_VECTOR, 16),
        ];
        areas.sort_unstable();
        for pair in areas.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
        }
    }
}
