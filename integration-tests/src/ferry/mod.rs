//! Ferry as its user sees it: processes, their consoles and control sockets, the networks around them, and
//! the guest's memory and network seen from outside, independent of what Ferry says of itself.

mod agent;
mod cgroup;
mod debian;
mod disk;
mod echo;
pub mod frames;
mod hosts;
mod lines;
mod naps;
mod network;
mod process;
mod pulse;
mod relay;
mod user;

pub use agent::{Agent, Image, LinuxGuest, Ticks};
pub use cgroup::MemoryBound;
pub use debian::{Debian, Ssh};
pub use disk::DiskImage;
pub use echo::{EchoClient, EchoCount};
pub use hosts::Hosts;
pub use lines::Lines;
pub use naps::{NapWatch, Naps};
pub use network::{Netns, World};
pub use process::{Ferry, Migration};
pub use pulse::PulseGuest;
pub use relay::{End, Fault, Relay, Spot};
pub use user::User;
