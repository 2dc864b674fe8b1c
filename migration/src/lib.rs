//! Ferry's live migration engine. It knows pages, rounds, policy, wire, handover and report; no KVM, no
//! device, no VMM.

pub mod dirty;
pub mod guest;
pub mod pages;
pub mod state;
