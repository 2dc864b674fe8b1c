//! What this process has for a guest that is yet to come, from another host or out of snapshots: the host's ends of its
//! cards, and what a VM is made with here.

use devices::virtio::net::Tap;
use migration::guest::GuestError;
use vmm_sys_util::eventfd::EventFd;

use super::MachineError;
use super::supervisor::Supervisor;
use crate::console::Output;
use crate::vcpu::EventSender;
use crate::vm::{CardShape, LocalParts};

/// Taken from the supervisor for the thread that makes the guest.
pub(super) struct Supplies {
    /// For the guest's cards, by their numbers.
    taps: Vec<(u32, Tap)>,
    output: Output,
    serial_room: EventFd,
    events: EventSender,
}

impl Supplies {
    /// Those of a process that has opened `taps`.
    ///
    /// # Errors
    /// There are no more descriptors.
    pub fn of(supervisor: &Supervisor, taps: Vec<(u32, Tap)>) -> Result<Self, MachineError> {
        Ok(Self {
            taps,
            output: supervisor.console().output(),
            serial_room: supervisor.serial_room()?,
            events: supervisor.event_sender()?,
        })
    }

    /// What a VM is made with here; anew for each attempt.
    pub fn parts(&self) -> Result<LocalParts, GuestError> {
        let again = |e| GuestError::new("duplicate an eventfd", e);
        Ok(LocalParts {
            serial_out: Box::new(self.output.clone()),
            serial_room: self.serial_room.try_clone().map_err(again)?,
            events: self.events.try_clone().map_err(again)?,
        })
    }

    /// What the user gave for the guest's nth card, with a queue for each of its pairs. It stays open here for another
    /// attempt. `how` says, before the flag that was missing, what to do.
    pub fn tap(&self, card: u32, shape: &CardShape, how: &str) -> Result<Tap, GuestError> {
        let mut taps = self.taps.iter();
        let Some((_, tap)) = taps.find(|(index, _)| *index == card) else {
            return Err(GuestError::bare(format!(
                "the guest's network card {card} has no tap here: {how} --net {card}=tap=NAME"
            )));
        };
        tap.carries(shape.mtu)
            .and_then(|()| tap.fresh(shape.pairs))
            .map_err(|e| {
                GuestError::new(
                    format!(
                        "cannot use tap {} for the guest's network card {card}",
                        tap.name()
                    ),
                    e,
                )
            })
    }
}
