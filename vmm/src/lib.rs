//! Ferry: a tiny KVM hypervisor with live migration built in.
//!
//! The rooms: [`cli`] (what a person types), [`config`] (what it means), [`machine`] (the life of a VM in this
//! process), [`vm`] (a VM: running, paused or blank), [`vcpu`] (its threads), [`kvm`] (all ioctls), [`memory`],
//! [`boot`] and [`layout`] (how a kernel starts, and where everything lies), [`control`] (the API on a Unix socket),
//! [`console`] and [`ui`] (what a person sees), [`page`] (the same as HTML), [`log`] (what it says), [`sandbox`] (what
//! a process with a guest gives up), [`study`] (sweeps of real moves), [`certs`] and [`tls`] (who may connect),
//! [`units`].
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

pub mod boot;
pub mod certs;
pub mod cli;
pub mod config;
pub mod console;
pub mod control;
pub mod kvm;
pub mod layout;
pub mod log;
pub mod machine;
pub mod memory;
pub mod page;
pub mod sandbox;
pub mod study;
pub mod tls;
pub mod ui;
pub mod units;
pub mod userfault;
pub mod vcpu;
pub mod vm;
