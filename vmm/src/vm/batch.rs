//! How the kernel schedules a device's thread against the vCPU that gives it work.
#![allow(
    unsafe_code,
    reason = "sched_setscheduler(2), which no library here wraps"
)]

/// Lets what runs on the processor run on when the calling thread is woken up there (SCHED_BATCH, sched(7)): on another
/// processor that is free it runs at once as ever, but on the vCPU's own it waits until the vCPU halts, or has had its turn.
///
/// Otherwise every doorbell takes the processor from the guest for the one frame that it has just queued, and so each frame
/// costs a doorbell, two switches and, as the device catches up each time, another doorbell. It is a wish: without it
/// all works.
pub fn prefer_batches() {
    let none = libc::sched_param { sched_priority: 0 };
    // SAFETY: 0 is the calling thread; the parameter is a `sched_param` that outlives the call, which only reads it.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &none) } != 0 {
        let error = std::io::Error::last_os_error();
        tracing::debug!("virtio I/O: schedule as SCHED_BATCH: {error}");
    }
}
