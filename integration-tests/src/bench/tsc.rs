//! The time-stamp counter: the one clock that the host and both guests read alike, but for an offset.
#![allow(unsafe_code, reason = "RDTSC is an intrinsic")]

/// The host's TSC now.
pub fn now() -> u64 {
    // SAFETY: RDTSC exists on every x86-64 processor, touches no memory, and Linux does not forbid it to
    // user space unless a process asks for that by PR_SET_TSC, which this program does not.
    unsafe { core::arch::x86_64::_rdtsc() }
}
