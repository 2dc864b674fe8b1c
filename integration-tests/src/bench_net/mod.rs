//! The bench of networks: what a guest's card carries, by Ferry, by QEMU's own virtio-net and by the host kernel's
//! (vhost-net), beside what two processes carry over a pair of devices without any guest.
//!
//! ```text
//!   host (a namespace)      service and client of `guest_images::traffic`
//!    |        |        |
//!   br1      br2      br3   …    a bridge a program, 10.8.P.1/24
//!    | | | |   tap or veth       a guest (or a namespace) each, 10.8.P.2 to .5
//!   0 1 2 3                      with service and client of their own
//! ```
//!
//! All guests of all programs are there all the time, idle but for those of the row being measured: so the programs
//! take turns, run by run, and what else the machine does meanwhile falls on all of them alike.

mod cpu;
mod end;
mod ferry;
mod native;
mod plan;
mod qemu;
mod table;
mod team;

pub use plan::{Figures, PROGRAMS, Plan, Row, USUAL};
pub use table::table;
pub use team::Direction;
