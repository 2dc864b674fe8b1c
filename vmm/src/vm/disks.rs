//! A VM's disks as what keeps it from running twice: whoever holds the locks of all of them may run it.
//!
//! The source of a move lets go of them just before it says GO, the destination takes them before it resumes. Between
//! the two nobody has them, and nobody runs the guest. A guest without a disk has no such fence.

use std::path::Path;
use std::sync::Arc;

use devices::virtio::block::disk::Disk;
use migration::guest::{GuestError, Settle};

/// The disks, in the order of their slots.
#[derive(Debug, Default)]
pub struct Disks(Vec<Arc<Disk>>);

impl Disks {
    /// Those of one VM, which holds no lock by that.
    pub fn new(disks: Vec<Arc<Disk>>) -> Self {
        Self(disks)
    }

    /// Where they lie.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|disk| disk.path())
    }

    /// Takes the locks of all, or of none; those that are held already stay.
    ///
    /// # Errors
    /// Somebody else has one.
    pub fn take(&self) -> Result<(), GuestError> {
        let taken = self.0.iter().try_for_each(|disk| disk.lock());
        taken.map_err(|error| {
            self.give_up();
            GuestError::new("the guest may not run here", error)
        })
    }

    /// Lets go of all locks.
    ///
    /// # Errors
    /// One of them may still be held.
    pub fn release(&self) -> Result<(), GuestError> {
        let released = self.0.iter().map(|disk| disk.unlock());
        (released.fold(Ok(()), Result::and))
            .map_err(|error| GuestError::new("hand the guest's disks over", error))
    }

    /// As [`release`](Self::release), where nothing can be done about an error: the locks go with the process at last.
    fn give_up(&self) {
        for disk in &self.0 {
            if let Err(error) = disk.unlock() {
                tracing::warn!("{error}");
            }
        }
    }

    /// Brings all that was written to the disks, where another host finds it.
    ///
    /// # Errors
    /// Something did not get there.
    pub fn sync(&self) -> Result<(), GuestError> {
        sync(&self.0)
    }

    /// The same for another thread to do, if there is a disk.
    pub fn settle(&self) -> Option<Settle> {
        let disks = self.0.clone();
        (!disks.is_empty()).then(|| Box::new(move || sync(&disks)) as Settle)
    }

    /// Forgets what this host has cached of them: another one has written to them since.
    pub fn forget(&self) {
        self.0.iter().for_each(|disk| disk.forget());
    }
}

fn sync(disks: &[Arc<Disk>]) -> Result<(), GuestError> {
    for disk in disks {
        disk.sync().map_err(|error| {
            let path = disk.path().display();
            GuestError::new(
                format!("bring what the guest has written to disk {path}"),
                error,
            )
        })?;
    }
    Ok(())
}

/// What is dropped is not run any more.
impl Drop for Disks {
    fn drop(&mut self) {
        self.give_up();
    }
}
