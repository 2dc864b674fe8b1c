//! How a device tells its driver that there is something to look at.

use crate::line::Line;

/// The interrupts of a virtio device (virtio 1.2, 2.3). Whoever raises one has written first what it is about.
pub trait Interrupts: Send + Sync {
    /// The device used buffers of these queues, one a bit.
    fn used(&self, queues: u64);
    /// Its configuration changed, or it needs a reset.
    fn config_changed(&self);
}

/// One line for everything: the driver reads in the interrupt status what it was.
impl<L: Line> Interrupts for L {
    fn used(&self, _: u64) {
        self.pulse();
    }

    fn config_changed(&self) {
        self.pulse();
    }
}
