//! Virtio 1.2 devices behind the memory-mapped transport, or the PCI transport in front of it.
//!
//! | file | what | virtio 1.2 |
//! |---|---|---|
//! | [`queue`] | one split virtqueue, device side | 2.7 |
//! | [`chain`] | a descriptor chain, checked, as segments of guest memory | 2.7.5 |
//! | [`device`] | what a device has to be to stand behind the transport | 2.1, 2.2 |
//! | [`interrupts`] | how a driver hears of what a device has done | 2.3 |
//! | [`mmio`] | the transport: registers, status, interrupts | 3.1, 4.2 |
//! | [`pci`] | the same as a PCI function | 4.1 |
//! | [`net`] | network card on a tap | 5.1 |
//! | [`block`] | disk on a file | 5.2 |
//! | [`rng`] | entropy source | 5.4 |
//! | [`balloon`] | memory that the guest gives away | 5.5 |
//!
//! Everything in guest memory and every register write is the guest's and hostile. A ring or chain that breaks the
//! specification costs the guest its device (DEVICE_NEEDS_RESET), never the VMM its life or its time: work is done
//! in bursts of at most [`device::BURST_CHAINS`] chains.

pub mod balloon;
pub mod block;
pub mod chain;
pub mod device;
pub mod interrupts;
pub mod mmio;
pub mod net;
pub mod pci;
pub mod queue;
pub mod rng;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
pub(crate) mod testing;

pub use balloon::{BalloonParts, BalloonState, VirtioBalloon};
pub use block::{BlockParts, BlockState, VirtioBlock};
pub use device::{Lane, VirtioDevice};
pub use mmio::{
    INTERRUPT_ACK, MMIO_LEN, MmioLane, MmioParts, MmioState, QUEUE_NOTIFY, RegisterPage, VirtioMmio,
};
pub use net::{NetParts, NetState, VirtioNet};
pub use pci::{PciParts, PciState, VirtioPci};
pub use rng::VirtioRng;
