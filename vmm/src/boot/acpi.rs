//! The ACPI tables: the only way in which the guest learns of its vCPUs and devices.
//!
//! ```text
//!   RSDP -> XSDT -+-> FADT -> DSDT: serial port, pvpanic, virtio slots or PCI, how to power off
//!                 +-> MADT: local APICs, the IOAPIC
//! ```
//!
//! The machine is "hardware-reduced" (ACPI 6.5, 4.1): no PM1 registers, no SCI, no PM timer, no legacy
//! devices. Linux then never touches the PIC pair and the PIT and sets up interrupts by the IOAPIC alone.
//! Its clocks are kvm-clock, which also tells it the TSC's frequency, and the local APIC timer in TSC
//! deadline mode, which needs no calibration. So the CPU model has to offer both: without the PIT there is
//! nothing else to calibrate an APIC timer by.
//!
//! MADT's PCAT_COMPAT flag stays 0, as in Cloud Hypervisor: it says that a PIC pair has to be masked by the
//! OS, and hardware-reduced Linux does not do that.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, IO, Interrupt, Memory32Fixed, Name, Package, Path,
    ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml::EISAName};
use devices::pci::CONFIG_PORTS_LEN;
use devices::power::{RESET_VALUE, S5_TYPE};
use devices::virtio::pci::BAR_LEN;

use super::Machine;
use crate::layout::{self, Transport};

const OEM: [u8; 6] = *b"FERRY ";
const OEM_TABLE: [u8; 8] = *b"FERRYVM ";
const OEM_REVISION: u32 = 1;

/// IAPC_BOOT_ARCH (ACPI 6.5, table 5.11): neither VGA (bit 2) nor a CMOS clock (bit 5); and, by zeros, neither legacy
/// devices (bit 0) nor a keyboard controller to be probed (bit 1).
const BOOT_ARCH: u16 = 1 << 2 | 1 << 5;
/// In it: there are no MSIs.
const NO_MSI: u16 = 1 << 3;

/// All tables as one piece to be put at guest-physical address `start`, the RSDP first.
pub fn tables(start: u64, machine: &Machine) -> Vec<u8> {
    let mut blob = Blob {
        start,
        bytes: vec![0; Rsdp::len()],
    };
    let dsdt = blob.add(dsdt(machine).as_slice());
    let fadt = blob.add(&encode(&fadt(dsdt, machine)));
    let madt = blob.add(&encode(&madt(machine)));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = blob.add(&encode(&xsdt));
    let mut bytes = blob.bytes;
    bytes[..Rsdp::len()].copy_from_slice(&encode(&Rsdp::new(OEM, xsdt)));
    bytes
}

/// Tables one after the other, each at a multiple of 16.
struct Blob {
    start: u64,
    bytes: Vec<u8>,
}

impl Blob {
    /// Adds a table and gives its guest-physical address.
    fn add(&mut self, table: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let address = self.start + self.bytes.len() as u64;
        self.bytes.extend_from_slice(table);
        address
    }
}

fn encode(aml: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    bytes
}

/// An address or a length of the devices', all of which are below 4 GiB.
fn low(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// One register of a byte in I/O space.
fn register(port: u16) -> GAS {
    GAS::new(
        GasSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        u64::from(port),
    )
}

/// Fixed description: hardware-reduced, with registers to power off and to reset.
fn fadt(dsdt: u64, machine: &Machine) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        // Power and sleep buttons, if any, would be devices: there are no fixed ones.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    let boot_arch = match machine.transport {
        Transport::Mmio => BOOT_ARCH | NO_MSI,
        Transport::Pci => BOOT_ARCH,
    };
    fadt.iapc_boot_arch = boot_arch.into();
    fadt.reset_reg = register(layout::RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = register(layout::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = register(layout::SLEEP_STATUS_PORT);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"FERRY\0\0\0").into();
    fadt.finalize()
}

/// Interrupt controllers: a local APIC per vCPU, whose id is the vCPU's index, and one IOAPIC from GSI 0 on.
fn madt(machine: &Machine) -> MADT {
    let lapic = LocalInterruptController::Address(low(layout::LAPIC_START));
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, lapic);
    for id in 0..machine.vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    // The id is what KVM's IOAPIC says of itself after a reset.
    madt.add_structure(IoApic::new(0, low(layout::IOAPIC_START), 0));
    madt
}

/// Devices, and the sleep type that means off.
fn dsdt(machine: &Machine) -> Sdt {
    let mut devices = Vec::new();
    if machine.serial {
        devices.extend(serial());
    }
    if machine.pvpanic {
        devices.extend(pvpanic());
    }
    match machine.transport {
        Transport::Mmio => {
            for &slot in &machine.virtio_slots {
                devices.extend(virtio(slot));
            }
        }
        Transport::Pci => devices.extend(pci()),
    }
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM, OEM_TABLE, OEM_REVISION);
    // Scope::raw takes the encoded children as they are.
    dsdt.append_slice(&Scope::raw(Path::new("_SB_"), devices));
    let s5 = Package::new(vec![&S5_TYPE]);
    dsdt.append_slice(&encode(&Name::new(Path::new("_S5_"), &s5)));
    dsdt.update_checksum();
    dsdt
}

/// COM1, a 16550A-compatible port.
fn serial() -> Vec<u8> {
    let length = u8::try_from(layout::SERIAL_PORTS).unwrap_or(u8::MAX);
    encode(&Device::new(
        Path::new("COM1"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &1u8),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![
                    &IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 1, length),
                    &edge_interrupt(layout::SERIAL_GSI),
                ]),
            ),
        ],
    ))
}

/// pvpanic, by the name that Linux's driver looks for.
fn pvpanic() -> Vec<u8> {
    encode(&Device::new(
        Path::new("PEVT"),
        vec![
            &Name::new(Path::new("_HID"), &"QEMU0001"),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&IO::new(
                    layout::PVPANIC_PORT,
                    layout::PVPANIC_PORT,
                    1,
                    1,
                )]),
            ),
        ],
    ))
}

/// A virtio-mmio slot, by the name that Linux's driver looks for.
fn virtio(slot: u32) -> Vec<u8> {
    encode(&Device::new(
        Path::new(&format!("VR{slot:02}")),
        vec![
            &Name::new(Path::new("_HID"), &"LNRO0005"),
            &Name::new(Path::new("_UID"), &slot),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(
                        true,
                        low(layout::slot_address(slot)),
                        low(layout::SLOT_SIZE),
                    ),
                    &edge_interrupt(layout::slot_gsi(slot)),
                ]),
            ),
        ],
    ))
}

/// The PCI bus: its one number, the ports of its configuration, and where its devices' registers are. What is on it
/// the guest finds out by itself; interrupt pins there are none.
fn pci() -> Vec<u8> {
    let (first, bytes) = (
        layout::BARS_START,
        BAR_LEN * u64::from(layout::VIRTIO_SLOTS),
    );
    let ports = u8::try_from(CONFIG_PORTS_LEN).unwrap_or(u8::MAX);
    encode(&Device::new(
        Path::new("PCI0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_UID"), &0u8),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![
                    &AddressSpace::new_bus_number(0u16, 0u16),
                    &IO::new(layout::PCI_CONFIG_PORT, layout::PCI_CONFIG_PORT, 1, ports),
                    &AddressSpace::new_memory(
                        AddressSpaceCacheable::NotCacheable,
                        true,
                        low(first),
                        low(first + bytes - 1),
                        None,
                    ),
                ]),
            ),
        ],
    ))
}

/// An interrupt line of its own: edge triggered, active high, not shared.
fn edge_interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{ACPI_END, ACPI_START};

    fn machine(vcpus: u8, slots: u32) -> Machine {
        Machine {
            vcpus,
            virtio_slots: (0..slots).collect(),
            transport: Transport::Mmio,
            serial: true,
            pvpanic: true,
        }
    }

    fn word(bytes: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
    }

    fn sums_to_zero(bytes: &[u8]) -> bool {
        bytes.iter().fold(0u8, |sum, &b| sum.wrapping_add(b)) == 0
    }

    /// The table at an address, checked: it lies within the area, and its bytes add up to zero.
    fn table(area: &[u8], address: u64) -> &[u8] {
        let start = usize::try_from(address - ACPI_START).unwrap();
        let length = u32::from_le_bytes(area[start + 4..start + 8].try_into().unwrap());
        let table = &area[start..start + usize::try_from(length).unwrap()];
        assert!(sums_to_zero(table), "{:?}", &table[..4]);
        table
    }

    /// DSDT, FADT and MADT, found as a guest finds them.
    fn find(area: &[u8]) -> (&[u8], &[u8], &[u8]) {
        assert_eq!(&area[..8], b"RSD PTR ");
        assert!(sums_to_zero(&area[..20]) && sums_to_zero(&area[..36]));
        let xsdt = table(area, word(area, 24));
        assert_eq!((&xsdt[..4], xsdt.len()), (&b"XSDT"[..], 36 + 2 * 8));
        let fadt = table(area, word(xsdt, 36));
        let madt = table(area, word(xsdt, 44));
        // X_DSDT.
        let dsdt = table(area, word(fadt, 140));
        assert_eq!(
            &[&dsdt[..4], &fadt[..4], &madt[..4]].concat(),
            b"DSDTFACPAPIC"
        );
        (dsdt, fadt, madt)
    }

    #[test]
    fn tables_are_found_and_add_up() {
        for (vcpus, slots) in [(1, 0), (8, 3), (255, layout::VIRTIO_SLOTS)] {
            let area = tables(ACPI_START, &machine(vcpus, slots));
            assert!(area.len() as u64 <= ACPI_END - ACPI_START);
            let (dsdt, _, madt) = find(&area);
            // MADT: header and flags, 8 bytes a local APIC, 12 for the IOAPIC; no PCAT_COMPAT.
            assert_eq!(madt.len(), 44 + usize::from(vcpus) * 8 + 12);
            assert_eq!(madt[40], 0);
            let devices = dsdt.windows(8).filter(|w| w == b"LNRO0005").count();
            assert_eq!(devices, slots as usize);
        }
    }

    /// PCI devices are not announced: a bus is, and that it has messages for interrupts.
    #[test]
    fn behind_pci_there_is_a_bus_and_no_slot() {
        for transport in [Transport::Mmio, Transport::Pci] {
            let machine = Machine {
                transport,
                ..machine(2, 16)
            };
            let area = tables(ACPI_START, &machine);
            let (dsdt, fadt, _) = find(&area);
            let count = |what: &[u8]| dsdt.windows(what.len()).filter(|w| *w == what).count();
            let found = (
                count(b"LNRO0005"),
                count(b"PCI0"),
                // PNP0A03 as a number (ACPI 6.5, 19.3.4), and the bus numbers 0 to 0 as a range of words.
                count(&[0x41, 0xd0, 0x0a, 0x03]),
                count(&[0x88, 13, 0, 2]),
                fadt[109] & 8 != 0,
            );
            let expected = match transport {
                Transport::Mmio => (16, 0, 0, 0, true),
                Transport::Pci => (0, 1, 1, 1, false),
            };
            assert_eq!(found, expected, "{transport:?}");
        }
    }

    #[test]
    fn absent_devices_are_not_announced() {
        let mut machine = machine(1, 0);
        let has = |machine: &Machine, name: &[u8]| {
            let area = tables(ACPI_START, machine);
            area.windows(name.len()).any(|w| w == name)
        };
        assert!(has(&machine, b"COM1") && has(&machine, b"QEMU0001"));
        (machine.serial, machine.pvpanic) = (false, false);
        assert!(!has(&machine, b"COM1") && !has(&machine, b"QEMU0001"));
    }

    #[test]
    fn the_fadt_says_how_to_power_off_and_reset() {
        let area = tables(ACPI_START, &machine(1, 0));
        let (dsdt, fadt, _) = find(&area);
        // Offsets of ACPI 6.5, table 5.9: flags, reset register and value, sleep control, sleep status.
        let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
        assert_eq!(flags, 1 << 20 | 1 << 10 | 1 << 5 | 1 << 4);
        let port = |offset: usize| (fadt[offset], word(fadt, offset + 4));
        assert_eq!(port(116), (1, u64::from(layout::RESET_PORT)));
        assert_eq!(fadt[128], RESET_VALUE);
        assert_eq!(port(244), (1, u64::from(layout::SLEEP_CONTROL_PORT)));
        assert_eq!(port(256), (1, u64::from(layout::SLEEP_STATUS_PORT)));
        // Name (_S5_, Package () { 5 })
        assert!(
            dsdt.windows(10)
                .any(|w| w == b"\x08_S5_\x12\x04\x01\x0a\x05")
        );
    }
}
