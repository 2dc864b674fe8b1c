//! Ferry's device models: what a guest finds behind its ports and its memory-mapped registers.
//!
//! A device knows neither its address nor KVM nor a thread. It answers register accesses ([`bus::BusDevice`]), moves
//! bytes between guest memory and a file descriptor when it is told to, signals eventfds, pulses its interrupt line
//! ([`line::Line`]), and says what the guest asked of the machine ([`bus::Action`]); the VMM acts on it. Each device
//! has one state that moves with the guest ([`migration::state::Snapshot`]), and a fresh device is a restore of its
//! reset state.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod bus;
pub mod heartbeat;
pub mod line;
pub mod pci;
pub mod power;
pub mod serial;
pub mod virtio;

/// Guest memory. Its marks are the VMM's half of the dirty log: devices mark what they write, since KVM sees
/// writes of vCPUs alone.
pub use migration::guest::GuestRam;
