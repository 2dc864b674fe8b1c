//! The rooms of `make bench`: Ferry beside QEMU with the same bare guest, in one run, everything verified.
//!
//! A [`Scenario`] says which guest is moved over which link, a setting ([`FerrySetting`], [`QemuSetting`]) how
//! a program is asked to move it, and [`trial`] makes one row of both: boot, fill from outside, warm, move,
//! verify. The program is behind a small trait, so that nothing is measured in two ways: heartbeats, CPU
//! time, resident memory and the digest of the guest's memory are all taken past the VMM, by what the
//! kernel tells of its process. [`limits`] measures in the same run what the machine itself can do.

pub mod cpu;
mod ferry;
pub mod guest_ram;
pub mod limits;
pub mod machine;
mod place;
pub mod plan;
pub mod qemu;
mod row;
mod scenario;
mod setting;
pub mod table;
pub mod trial;
pub(crate) mod tsc;
mod witness;
mod work;

pub use place::Place;
pub use row::Row;
pub use scenario::{Fill, Link, SCENARIOS, Scenario, Temperature};
pub use setting::{FerrySetting, QemuSetting, Setting};
