//! The interrupt line of a device, as the device sees it.

use vmm_sys_util::eventfd::EventFd;

/// An interrupt line that is edge-triggered: each pulse is one interrupt, also if several threads pulse it at once.
pub trait Line: Send + Sync {
    /// Raises the line and lowers it. Nothing that a device could do depends on whether that worked.
    fn pulse(&self);
}

/// Each pulse adds one, for who counts them.
impl Line for EventFd {
    fn pulse(&self) {
        // Fails only when the counter is full.
        let _ = self.write(1);
    }
}
