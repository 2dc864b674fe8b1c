//! Which message each queue sends, and the table of messages.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::pci::msix::{MAX_VECTORS, MessageSink, Msix};
use crate::virtio::interrupts::Interrupts;

/// A queue with this vector, or changes of the configuration, interrupt nobody (VIRTIO_MSI_NO_VECTOR).
pub const NO_VECTOR: u16 = 0xffff;

/// The vectors of a device. Registers and lanes both come to them, each from its own thread; the lock is a leaf, and is
/// held while a message is sent: a vector that the guest has masked is silent as soon as its write is over.
pub struct Vectors {
    sink: Box<dyn MessageSink>,
    locked: Mutex<VectorState>,
}

/// What of them moves with the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VectorState {
    /// The table.
    pub msix: Msix,
    /// The vector of changes of the device's configuration, or [`NO_VECTOR`].
    pub config: u16,
    /// Those of the queues.
    pub queues: Vec<u16>,
}

impl VectorState {
    /// One for each queue and one for the configuration, none of them in use.
    pub fn reset(queues: usize) -> Self {
        Self {
            msix: Msix::new(queues + 1),
            config: NO_VECTOR,
            queues: vec![NO_VECTOR; queues],
        }
    }

    /// One that there is not is none, as it will read back (4.1.5.1.2.1).
    fn known(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.msix.vectors() {
            vector
        } else {
            NO_VECTOR
        }
    }
}

impl Vectors {
    /// Those of a device of so many queues.
    ///
    /// # Errors
    /// There cannot be so many.
    pub fn new(queues: usize, sink: Box<dyn MessageSink>) -> Result<Self, String> {
        if queues >= MAX_VECTORS {
            return Err(format!(
                "{queues} queues: a function has {MAX_VECTORS} vectors at most"
            ));
        }
        Ok(Self {
            sink,
            locked: Mutex::new(VectorState::reset(queues)),
        })
    }

    /// Of how many queues they are.
    pub(super) fn queues(&self) -> usize {
        self.lock().queues.len()
    }

    pub(super) fn of_config(&self) -> u16 {
        self.lock().config
    }

    /// The vector of a queue; none where there is no such queue.
    pub(super) fn of_queue(&self, queue: u16) -> u16 {
        let locked = self.lock();
        let vector = locked.queues.get(usize::from(queue));
        vector.copied().unwrap_or(NO_VECTOR)
    }

    /// The driver chooses the vector of the configuration.
    pub(super) fn set_config(&self, vector: u16) {
        let mut locked = self.lock();
        locked.config = locked.known(vector);
    }

    /// The driver chooses the vector of a queue, if there is that queue.
    pub(super) fn set_queue(&self, queue: u32, vector: u16) {
        let mut locked = self.lock();
        let vector = locked.known(vector);
        let queue = usize::try_from(queue).ok();
        if let Some(chosen) = queue.and_then(|queue| locked.queues.get_mut(queue)) {
            *chosen = vector;
        }
    }

    /// The driver has reset the device: nobody has a vector any more, and nothing of before is still to be sent. The
    /// table is the function's, and stays.
    pub(super) fn forget(&self) {
        let mut locked = self.lock();
        locked.config = NO_VECTOR;
        locked.queues.fill(NO_VECTOR);
        locked.msix.forget_pending();
    }

    pub(super) fn with_msix<R>(&self, act: impl FnOnce(&mut Msix, &dyn MessageSink) -> R) -> R {
        act(&mut self.lock().msix, &*self.sink)
    }

    pub(super) fn save(&self) -> VectorState {
        self.lock().clone()
    }

    pub(super) fn load(&self, state: VectorState) -> Result<(), String> {
        let queues = self.queues();
        state.msix.check(queues + 1)?;
        if state.queues.len() != queues {
            return Err(format!(
                "vectors of {} queues for a device of {queues}",
                state.queues.len()
            ));
        }
        let mut chosen = state.queues.iter().copied().chain([state.config]);
        if let Some(vector) = chosen.find(|&vector| state.known(vector) != vector) {
            return Err(format!("MSI-X vector {vector} of {}", state.msix.vectors()));
        }
        drop(chosen);
        *self.lock() = state;
        Ok(())
    }

    /// A panic in another thread that held it has been reported there; what is in it is still the best there is.
    fn lock(&self) -> MutexGuard<'_, VectorState> {
        self.locked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Interrupts for Arc<Vectors> {
    fn used(&self, queues: u64) {
        let VectorState {
            msix, queues: of, ..
        } = &mut *self.lock();
        // Queues that share a vector are one interrupt.
        let mut raised = 0;
        for (index, &vector) in of.iter().enumerate() {
            let bit = 1u64.checked_shl(vector.into()).unwrap_or(0);
            if queues >> index & 1 == 1 && raised & bit == 0 {
                raised |= bit;
                msix.raise(vector, &*self.sink);
            }
        }
    }

    fn config_changed(&self) {
        let VectorState { msix, config, .. } = &mut *self.lock();
        msix.raise(*config, &*self.sink);
    }
}
