//! The few registers by which a guest says something about the machine as a whole: ACPI sleep and reset, the
//! i8042's reset line, pvpanic. None of them has state that would have to move with a guest.

use std::cell::Cell;
use std::convert::Infallible;

use vm_superio::{I8042Device, Trigger};

use crate::bus::{Action, BusDevice};

/// Offset of the sleep control register, one byte (ACPI 6.5, 4.8.3.7).
pub const SLEEP_CONTROL: u64 = 0;
/// Offset of the sleep status register, one byte (ACPI 6.5, 4.8.3.7).
pub const SLEEP_STATUS: u64 = 1;
/// Offset of the reset register, one byte (ACPI 6.5, 4.8.3.6).
pub const RESET: u64 = 2;
/// Bytes of address space of [`Power`].
pub const POWER_LEN: u64 = 3;
/// The value that resets when written to [`RESET`]; the FADT's RESET_VALUE.
pub const RESET_VALUE: u8 = 1;
/// The sleep type of soft off; the DSDT's `\_S5` package.
pub const S5_TYPE: u8 = 5;
/// Sleep control: SLP_EN, bit 5.
const SLEEP_ENABLE: u8 = 1 << 5;
/// Sleep control: SLP_TYP, bits 2 to 4.
const SLEEP_TYPE_SHIFT: u8 = 2;

/// The ACPI hardware-reduced power registers: sleep control, sleep status and reset.
#[derive(Debug, Clone, Copy, Default)]
pub struct Power;

impl BusDevice for Power {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        // Sleep status says WAK_STS = 0: a guest that is off never wakes up.
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        let &[value] = data else { return Action::None };
        let sleep_type = value >> SLEEP_TYPE_SHIFT & 0b111;
        match offset {
            SLEEP_CONTROL if value & SLEEP_ENABLE != 0 && sleep_type == S5_TYPE => Action::PowerOff,
            RESET if value == RESET_VALUE => Action::Reset,
            _ => Action::None,
        }
    }
}

/// Bytes of port space of [`I8042`]: data port 0x60 to command port 0x64.
pub const I8042_LEN: u64 = 5;

#[derive(Default)]
struct ResetLine(Cell<bool>);

impl Trigger for ResetLine {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.set(true);
        Ok(())
    }
}

/// A keyboard controller of which only the reset line exists. It reads as zero, so that a kernel that waits
/// for its input buffer to run empty before the reset command (0xfe to port 0x64) need not wait.
pub struct I8042(I8042Device<ResetLine>);

impl std::fmt::Debug for I8042 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("I8042")
    }
}

impl I8042 {
    /// A controller at rest.
    pub fn new() -> Self {
        Self(I8042Device::new(ResetLine::default()))
    }
}

impl Default for I8042 {
    fn default() -> Self {
        Self::new()
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let value = u8::try_from(offset).map_or(0, |offset| self.0.read(offset));
        data.fill(value);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        if let (Ok(offset), &[value]) = (u8::try_from(offset), data) {
            let Ok(()) = self.0.write(offset, value);
        }
        if self.0.reset_evt().0.take() {
            Action::Reset
        } else {
            Action::None
        }
    }
}

/// Bytes of port space of [`PvPanic`].
pub const PVPANIC_LEN: u64 = 1;
/// The guest's kernel panicked (QEMU, docs/specs/pvpanic).
const PANICKED: u8 = 1 << 0;
/// The guest panicked and its crash kernel takes over: it is not lost.
const CRASH_LOADED: u8 = 1 << 1;

/// The port on which a kernel says that it panicked. Reading it says which events are understood.
#[derive(Debug, Clone, Copy, Default)]
pub struct PvPanic;

impl BusDevice for PvPanic {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(first) = data.first_mut() {
            *first = PANICKED | CRASH_LOADED;
        }
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> Action {
        match data {
            [value, ..] if value & PANICKED != 0 => Action::Panicked,
            _ => Action::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_soft_off_with_the_enable_bit_switches_off() {
        for value in 0..=u8::MAX {
            let off = value & 0x20 != 0 && value >> 2 & 7 == 5;
            let want = if off { Action::PowerOff } else { Action::None };
            assert_eq!(Power.write(SLEEP_CONTROL, &[value]), want, "{value:#x}");
            assert_eq!(Power.write(SLEEP_STATUS, &[value]), Action::None);
            let want = if value == RESET_VALUE {
                Action::Reset
            } else {
                Action::None
            };
            assert_eq!(Power.write(RESET, &[value]), want, "{value:#x}");
        }
        assert_eq!(Power.write(SLEEP_CONTROL, &[0x34, 0]), Action::None);
    }

    #[test]
    fn the_keyboard_controller_resets_once_a_command() {
        let mut i8042 = I8042::new();
        let mut status = [0xaa];
        i8042.read(4, &mut status);
        assert_eq!(status, [0], "input buffer empty, nothing to read");
        assert_eq!(i8042.write(4, &[0x20]), Action::None);
        assert_eq!(i8042.write(0, &[0xfe]), Action::None);
        assert_eq!(i8042.write(4, &[0xfe]), Action::Reset);
        assert_eq!(i8042.write(4, &[0x20]), Action::None);
    }

    #[test]
    fn a_panic_is_told_and_a_loaded_crash_kernel_is_none() {
        let mut events = [0];
        PvPanic.read(0, &mut events);
        assert_eq!(events, [3]);
        assert_eq!(PvPanic.write(0, &[1]), Action::Panicked);
        assert_eq!(PvPanic.write(0, &[2]), Action::None);
        assert_eq!(PvPanic.write(0, &[]), Action::None);
    }
}
