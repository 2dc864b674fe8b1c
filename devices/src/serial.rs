//! The guest's serial port: a 16550 (vm-superio's), its output to a writer, its input from whoever has some.

use std::io::{self, Write};

use migration::state::{Kind, Snapshot};
use serde::{Deserialize, Serialize};
use vm_superio::serial::{SerialEvents, SerialState as Registers};
use vm_superio::{Serial as Uart, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::{Action, BusDevice};
use crate::line::Line;

/// Bytes of port space: eight registers.
pub const SERIAL_LEN: u64 = 8;

struct Interrupt(Box<dyn Line>);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.pulse();
        Ok(())
    }
}

/// Tells the feeder of the input when the guest has read all of it.
struct Room(EventFd);

impl SerialEvents for Room {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        // Fails only when the counter is full, which wakes the reader as well.
        let _ = self.0.write(1);
    }
}

/// What a serial port needs besides its state.
pub struct SerialParts {
    /// The interrupt line.
    pub irq: Box<dyn Line>,
    /// Where the guest's output goes. What it refuses is lost: a guest does not wait for a terminal.
    pub out: Box<dyn Write + Send>,
    /// Signalled when the guest has emptied the input FIFO: time to call [`Serial::enqueue`] again.
    pub room: EventFd,
}

/// A 16550A serial port.
pub struct Serial {
    uart: Uart<Interrupt, Room, Box<dyn Write + Send>>,
    lost: u64,
    /// The guest is paused: input waits.
    paused: bool,
}

/// The registers and the unread input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    /// Divisor latch, low byte.
    pub baud_divisor_low: u8,
    /// Divisor latch, high byte.
    pub baud_divisor_high: u8,
    /// IER.
    pub interrupt_enable: u8,
    /// IIR.
    pub interrupt_identification: u8,
    /// LCR.
    pub line_control: u8,
    /// LSR.
    pub line_status: u8,
    /// MCR.
    pub modem_control: u8,
    /// MSR.
    pub modem_status: u8,
    /// SCR.
    pub scratch: u8,
    /// Input that the guest has not read yet, at most a FIFO's worth.
    pub input: Vec<u8>,
}

impl SerialState {
    /// The state of a port after power on.
    pub fn reset() -> Self {
        Registers::default().into()
    }
}

impl From<Registers> for SerialState {
    fn from(registers: Registers) -> Self {
        let Registers {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: input,
        } = registers;
        Self {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            input,
        }
    }
}

impl From<SerialState> for Registers {
    fn from(state: SerialState) -> Self {
        let SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            input: in_buffer,
        } = state;
        Self {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        }
    }
}

impl std::fmt::Debug for Serial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Serial");
        debug
            .field("registers", &self.uart.state())
            .field("lost", &self.lost);
        debug.finish_non_exhaustive()
    }
}

impl Serial {
    /// A port after power on.
    ///
    /// # Errors
    /// An interrupt could not be raised; the reset state has none.
    pub fn new(parts: SerialParts) -> Result<Self, String> {
        Self::restore(SerialState::reset(), parts)
    }

    /// Gives input to the guest; the result is how many bytes found room. Keep the others until
    /// [`SerialParts::room`] is signalled.
    pub fn enqueue(&mut self, input: &[u8]) -> usize {
        // The one error that can happen is a full FIFO: a line that cannot be signalled is signalled already.
        self.uart.enqueue_raw_bytes(input).unwrap_or(0)
    }

    /// Whether [`enqueue`](Self::enqueue) would take at least one byte.
    pub fn has_room(&self) -> bool {
        !self.paused && self.uart.fifo_capacity() > 0
    }

    /// Takes no input until it is resumed: what came would be in no state that is saved.
    pub fn pause(&mut self) {
        self.paused = true;
    }

    /// Takes input again, and says so to whoever has some.
    pub fn resume(&mut self) {
        self.paused = false;
        self.uart.events().in_buffer_empty();
    }

    /// How many bytes of output were lost because the writer refused them.
    pub fn lost_bytes(&self) -> u64 {
        self.lost
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (u8::try_from(offset), data) {
            (Ok(offset), [value]) => *value = self.uart.read(offset),
            (_, data) => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        if let (Ok(offset), &[value]) = (u8::try_from(offset), data)
            && let Err(error) = self.uart.write(offset, value)
        {
            if self.lost == 0 {
                tracing::warn!("serial output is lost: {error}");
            }
            self.lost += 1;
        }
        Action::None
    }
}

impl Snapshot for Serial {
    const KIND: Kind = Kind::SERIAL;
    const VERSION: u32 = 1;
    type State = SerialState;
    type Parts = SerialParts;

    fn save(&self) -> SerialState {
        // The count of lost bytes is this process's, not the guest's.
        let Self {
            uart,
            lost: _,
            paused: _,
        } = self;
        uart.state().into()
    }

    fn restore(state: SerialState, parts: SerialParts) -> Result<Self, String> {
        let SerialParts { irq, out, room } = parts;
        let input = state.input.len();
        // Raises the interrupts that were pending, in case the one on its way was lost.
        let uart = Uart::from_state(&state.into(), Interrupt(irq), Room(room), out)
            .map_err(|error| format!("serial port with {input} bytes of unread input: {error}"))?;
        Ok(Self {
            uart,
            lost: 0,
            paused: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use migration::state::VmState;
    use std::sync::{Arc, Mutex};
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(data);
            Ok(data.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn parts(out: impl Write + Send + 'static) -> (SerialParts, EventFd, EventFd) {
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let room = EventFd::new(EFD_NONBLOCK).unwrap();
        let watch = (irq.try_clone().unwrap(), room.try_clone().unwrap());
        (
            SerialParts {
                irq: Box::new(irq),
                out: Box::new(out),
                room,
            },
            watch.0,
            watch.1,
        )
    }

    fn get(serial: &mut Serial, offset: u64) -> u8 {
        let mut data = [0];
        serial.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn output_reaches_the_writer_and_a_closed_one_only_counts() {
        let sink = Sink::default();
        let mut serial = Serial::new(parts(sink.clone()).0).unwrap();
        for byte in *b"boot" {
            assert_eq!(serial.write(0, &[byte]), Action::None);
        }
        assert_eq!(*sink.0.lock().unwrap(), b"boot");
        let mut serial = Serial::new(parts(Closed).0).unwrap();
        assert_eq!(serial.write(0, b"x"), Action::None);
        assert_eq!(serial.lost_bytes(), 1);
    }

    /// What came between the save and the end would be nobody's.
    #[test]
    fn a_paused_port_takes_no_input_and_says_when_it_does_again() {
        let (parts, _, room) = parts(io::sink());
        let mut serial = Serial::new(parts).unwrap();
        assert!(serial.has_room());
        serial.pause();
        assert!(!serial.has_room());
        assert!(room.read().is_err());
        serial.resume();
        assert!(serial.has_room());
        assert_eq!(room.read().unwrap(), 1);
    }

    #[test]
    fn input_stops_at_a_full_fifo_and_room_is_told() {
        let (parts, irq, room) = parts(io::sink());
        let mut serial = Serial::new(parts).unwrap();
        let _ = serial.write(1, &[1]);
        let mut given = 0;
        while serial.has_room() {
            given += serial.enqueue(&[7; 10]);
        }
        assert_eq!(serial.enqueue(&[7]), 0);
        assert_eq!(irq.read().unwrap(), 1);
        assert!(room.read().is_err());
        for _ in 0..given {
            assert_eq!(get(&mut serial, 5) & 1, 1, "data ready");
            assert_eq!(get(&mut serial, 0), 7);
        }
        assert_eq!(get(&mut serial, 5) & 1, 0);
        assert_eq!(room.read().unwrap(), 1);
    }

    #[test]
    fn unread_input_and_its_interrupt_move_with_the_guest() {
        let mut serial = Serial::new(parts(io::sink()).0).unwrap();
        let _ = serial.write(1, &[1]);
        let _ = serial.write(7, &[0x5a]);
        serial.enqueue(b"abc");
        let mut state = VmState::default();
        state.save(0, &serial).unwrap();
        let (parts, irq, _room) = parts(io::sink());
        let mut moved: Serial = state.restore(0, parts).unwrap();
        assert_eq!(moved.save(), serial.save());
        assert_eq!(irq.read().unwrap(), 1);
        assert_eq!(get(&mut moved, 7), 0x5a);
        let input: Vec<u8> = (0..3).map(|_| get(&mut moved, 0)).collect();
        assert_eq!(input, b"abc");
    }

    #[test]
    fn more_input_than_a_fifo_holds_is_refused() {
        let state = SerialState {
            input: vec![0; 1000],
            ..SerialState::reset()
        };
        let error = Serial::restore(state, parts(io::sink()).0).unwrap_err();
        assert!(error.contains("1000 bytes"), "{error}");
    }
}
