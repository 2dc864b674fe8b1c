//! The configuration space of a function: who it is, where its registers are, and how it interrupts (PCI Local Bus 3.0,
//! 6.1; virtio 1.2, 4.1.2 and 4.1.4).

use serde::{Deserialize, Serialize};

use super::{
    BAR_LEN, COMMON, COMMON_LEN, DEVICE_CONFIG, DEVICE_CONFIG_LEN, DOORBELL_STRIDE, DOORBELLS,
    DOORBELLS_LEN, INTERRUPT_STATUS, PENDING, TABLE,
};
use crate::pci::CONFIG_LEN;

/// Red Hat's vendor ID, which virtio devices have, and the device ID of a modern one of type 0 (4.1.2.1).
const VENDOR: u16 = 0x1af4;
const DEVICE: u16 = 0x1040;
/// The subsystem of a modern device is at least that.
const SUBSYSTEM: u16 = 0x1100;
/// A modern device's revision is at least 1.
const REVISION: u8 = 1;

/// Status: the function would have an interrupt pin up, if it had one (4.1.4.5.1).
const INTERRUPT: u16 = 1 << 3;
/// Status: there is a list of capabilities.
const HAS_CAPABILITIES: u16 = 1 << 4;
/// Command: the function answers to memory accesses. It does all the time.
const MEMORY_SPACE: u16 = 1 << 1;
/// Command: the function may read and write memory, and send messages.
const BUS_MASTER: u16 = 1 << 2;
/// What of Command can be written: I/O space, memory space, bus master, interrupt disable.
const COMMAND_BITS: u16 = 1 | MEMORY_SPACE | BUS_MASTER | 1 << 10;

/// Offsets of the header's registers that can be written.
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const INTERRUPT_LINE: usize = 0x3c;
/// Offsets of the capabilities, of which each names the next: MSI-X, the four that say where things are, and the one
/// that accesses a BAR without its being mapped.
const CAPABILITIES: [u8; 6] = [0x40, 0x50, 0x60, 0x70, 0x84, 0x94];
const MSIX: usize = CAPABILITIES[0] as usize;
/// Message Control of MSI-X.
const MESSAGE_CONTROL: usize = MSIX + 2;
const WINDOW: usize = CAPABILITIES[5] as usize;
const WINDOW_BAR: usize = WINDOW + 4;
const WINDOW_OFFSET: usize = WINDOW + 8;
const WINDOW_LENGTH: usize = WINDOW + 12;
const WINDOW_DATA: usize = WINDOW + 16;

/// IDs of capabilities: MSI-X, and a vendor's own.
const CAP_MSIX: u8 = 0x11;
const CAP_VENDOR: u8 = 0x09;
/// Types of virtio's capabilities (4.1.4).
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_ISR: u8 = 3;
const CAP_DEVICE: u8 = 4;
const CAP_WINDOW: u8 = 5;

/// What of it can be written, and moves with the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writable {
    /// Command.
    pub command: u16,
    /// BAR 0 as it was written: an address, or all ones by who asks for its size.
    pub bar: u32,
    /// What the guest keeps in Interrupt Line; there is none.
    pub interrupt_line: u8,
    /// The window's BAR, offset and length.
    pub window: (u8, u32, u32),
}

impl Writable {
    /// As after a reset, by firmware that has put BAR 0 at `base`.
    pub fn reset(base: u32) -> Self {
        Self {
            command: MEMORY_SPACE,
            bar: base,
            interrupt_line: 0,
            window: (0, 0, 0),
        }
    }
}

/// What is in it by what the function does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Live {
    /// MSI-X's Message Control.
    pub control: u16,
    /// There is something in the interrupt status, and no message says so.
    pub interrupt: bool,
}

/// The configuration space.
#[derive(Debug)]
pub(super) struct ConfigSpace {
    /// What is always there.
    fixed: [u8; CONFIG_LEN],
    writable: Writable,
    base: u32,
    /// It was said once that the guest has moved its BAR.
    told: bool,
}

impl ConfigSpace {
    pub(super) fn new(device_type: u32, base: u32, writable: Writable) -> Result<Self, String> {
        if u64::from(base) % BAR_LEN != 0 || writable.bar != mask_bar(writable.bar) {
            return Err(format!("BAR 0 at {base:#x}, written {:#x}", writable.bar));
        }
        if writable.command & !COMMAND_BITS != 0 {
            return Err(format!("command register {:#x}", writable.command));
        }
        let device_type = u16::try_from(device_type)
            .ok()
            .filter(|id| *id < 0x40)
            .ok_or_else(|| format!("no PCI device ID for virtio type {device_type}"))?;
        Ok(Self {
            fixed: fixed(device_type),
            writable,
            base,
            told: false,
        })
    }

    pub(super) fn save(&self) -> Writable {
        self.writable.clone()
    }

    /// Where in the BAR an access to configuration space goes, and how many bytes of it, if it goes there.
    pub(super) fn window(&self, offset: usize, len: usize) -> Option<(u64, usize)> {
        let (bar, at, wanted) = self.writable.window;
        let wanted = usize::try_from(wanted).ok()?;
        let fits = matches!(wanted, 1 | 2 | 4) && wanted <= len && u64::from(at) < BAR_LEN;
        (offset == WINDOW_DATA && bar == 0 && fits).then_some((at.into(), wanted))
    }

    /// Whether the function may read and write memory.
    pub(super) fn masters(&self) -> bool {
        self.writable.command & BUS_MASTER != 0
    }

    pub(super) fn read(&self, offset: usize, data: &mut [u8], live: Live) {
        let bytes = self.image(live);
        for (at, byte) in (offset..).zip(data) {
            *byte = bytes.get(at).copied().unwrap_or(0xff);
        }
    }

    /// Writes what can be written, in pieces of any size; gives back what MSI-X's Message Control has become.
    pub(super) fn write(&mut self, offset: usize, data: &[u8], live: Live) -> u16 {
        let mut bytes = self.image(live);
        if let Some(written) = bytes.get_mut(offset..offset + data.len()) {
            written.copy_from_slice(data);
        }
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let whole = |at: usize| u32::from(half(at)) | u32::from(half(at + 2)) << 16;
        self.writable = Writable {
            command: half(COMMAND) & COMMAND_BITS,
            bar: mask_bar(whole(BAR0)),
            interrupt_line: bytes[INTERRUPT_LINE],
            window: (
                bytes[WINDOW_BAR],
                whole(WINDOW_OFFSET),
                whole(WINDOW_LENGTH),
            ),
        };
        self.look_for_registers();
        half(MESSAGE_CONTROL)
    }

    /// All of it, as it reads now.
    fn image(&self, live: Live) -> [u8; CONFIG_LEN] {
        let Writable {
            command,
            bar,
            interrupt_line,
            window: (window_bar, window_offset, window_length),
        } = self.writable;
        let mut bytes = self.fixed;
        let mut put = |offset: usize, field: &[u8]| {
            bytes[offset..offset + field.len()].copy_from_slice(field);
        };
        let interrupt = if live.interrupt { INTERRUPT } else { 0 };
        put(COMMAND, &command.to_le_bytes());
        put(STATUS, &(HAS_CAPABILITIES | interrupt).to_le_bytes());
        put(BAR0, &bar.to_le_bytes());
        put(INTERRUPT_LINE, &[interrupt_line]);
        put(MESSAGE_CONTROL, &live.control.to_le_bytes());
        put(WINDOW_BAR, &[window_bar]);
        put(WINDOW_OFFSET, &window_offset.to_le_bytes());
        put(WINDOW_LENGTH, &window_length.to_le_bytes());
        bytes
    }

    /// Says so, once, if the guest will not find the function's registers where it has put them.
    fn look_for_registers(&mut self) {
        let Writable { command, bar, .. } = self.writable;
        // All ones is no address: somebody asks for the size.
        let moved = command & MEMORY_SPACE != 0 && bar != self.base && bar != mask_bar(u32::MAX);
        if moved && !std::mem::replace(&mut self.told, true) {
            tracing::warn!(
                "the guest has moved a virtio device's registers from {:#x} to {bar:#x}, where they are not: its driver will not find them",
                self.base
            );
        }
    }
}

/// A BAR of 32 bits for memory that cannot be prefetched: the bits below its size read as zero.
fn mask_bar(value: u32) -> u32 {
    let size = u32::try_from(BAR_LEN).unwrap_or(u32::MAX);
    value & !(size - 1)
}

/// Class, subclass and interface by virtio device type, as QEMU has them: network controller, mass storage, something
/// else.
fn class(device_type: u16) -> [u8; 3] {
    match device_type {
        1 => [0, 0, 0x02],
        2 => [0, 0, 0x01],
        _ => [0, 0, 0xff],
    }
}

/// What nobody can write.
fn fixed(device_type: u16) -> [u8; CONFIG_LEN] {
    let mut bytes = [0; CONFIG_LEN];
    let mut put = |offset: usize, field: &[u8]| {
        bytes[offset..offset + field.len()].copy_from_slice(field);
    };
    put(0x00, &VENDOR.to_le_bytes());
    put(0x02, &(DEVICE + device_type).to_le_bytes());
    put(0x08, &[REVISION]);
    put(0x09, &class(device_type));
    put(0x2c, &VENDOR.to_le_bytes());
    put(0x2e, &SUBSYSTEM.to_le_bytes());
    let [first, rest @ ..] = CAPABILITIES;
    put(0x34, &[first]);
    // MSI-X: table and pending bits in BAR 0; Message Control is put in by who reads.
    put(MSIX, &[CAP_MSIX, rest[0]]);
    put(MSIX + 4, &low(TABLE));
    put(MSIX + 8, &low(PENDING));
    // Type, length of the capability, where it is in BAR 0 and how long. The window is nowhere yet.
    let places = [
        (CAP_COMMON, 16, COMMON, COMMON_LEN as u64),
        (CAP_ISR, 16, INTERRUPT_STATUS, 1),
        (CAP_NOTIFY, 20, DOORBELLS, DOORBELLS_LEN),
        (CAP_DEVICE, 16, DEVICE_CONFIG, DEVICE_CONFIG_LEN),
        (CAP_WINDOW, 20, 0, 0),
    ];
    let following = rest.into_iter().skip(1).chain([0]);
    for ((at, next), (kind, len, start, extent)) in rest.into_iter().zip(following).zip(places) {
        let at = usize::from(at);
        put(at, &[CAP_VENDOR, next, len, kind, 0, 0, 0, 0]);
        put(at + 8, &low(start));
        put(at + 12, &low(extent));
        if kind == CAP_NOTIFY {
            // The doorbells of two queues are that far apart.
            put(at + 16, &low(DOORBELL_STRIDE));
        }
    }
    bytes
}

fn low(value: u64) -> [u8; 4] {
    u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes()
}
