//! The control queue (virtio 1.2, 5.1.6.5): receive modes, MAC address, offloads, how many queue pairs are in use, the
//! acknowledgement of an announcement.

use virtio_bindings::virtio_net as cmd;

use super::VirtioNet;
use super::features::{self, Offloads};
use super::pair;
use crate::virtio::chain;
use crate::virtio::device::QueueIo;
use crate::virtio::queue::QueueError;

/// The most bytes of a command that are looked at: class, command, and the longest data that means something here.
const MAX_COMMAND: usize = 2 + 8;
/// The most commands of one burst.
const BURST_COMMANDS: usize = 64;

const RX: u32 = cmd::VIRTIO_NET_CTRL_RX;
const RX_MODES: std::ops::RangeInclusive<u32> =
    cmd::VIRTIO_NET_CTRL_RX_PROMISC..=cmd::VIRTIO_NET_CTRL_RX_NOBCAST;
const MAC: u32 = cmd::VIRTIO_NET_CTRL_MAC;
const MAC_TABLE_SET: u32 = cmd::VIRTIO_NET_CTRL_MAC_TABLE_SET;
const MAC_ADDR_SET: u32 = cmd::VIRTIO_NET_CTRL_MAC_ADDR_SET;
const ANNOUNCE: u32 = cmd::VIRTIO_NET_CTRL_ANNOUNCE;
const ANNOUNCE_ACK: u32 = cmd::VIRTIO_NET_CTRL_ANNOUNCE_ACK;
const GUEST_OFFLOADS: u32 = cmd::VIRTIO_NET_CTRL_GUEST_OFFLOADS;
const GUEST_OFFLOADS_SET: u32 = cmd::VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET;
const MQ: u32 = cmd::VIRTIO_NET_CTRL_MQ;
const MQ_VQ_PAIRS_SET: u32 = cmd::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET;

impl VirtioNet {
    /// Obeys the commands in the control queue, one burst of them.
    pub(super) fn process_control(
        &mut self,
        io: &mut QueueIo<'_>,
        index: usize,
    ) -> Result<(), QueueError> {
        let ram = io.ram;
        for _ in 0..BURST_COMMANDS {
            let ring = io.ring(index)?;
            if !ring.pop(ram, &mut self.control)? {
                if ring.enable_notification(ram)? {
                    continue;
                }
                return Ok(());
            }
            let head = self.control.head();
            let mut command = [0; MAX_COMMAND];
            let len = chain::read(ram, self.control.readable(), 0, &mut command)?;
            let active = self.active;
            let status = if self.obey(&command[..len]) {
                cmd::VIRTIO_NET_OK
            } else {
                cmd::VIRTIO_NET_ERR
            };
            // 0 or 1.
            let status = u8::try_from(status).unwrap_or(1);
            if chain::write(ram, self.control.writable(), 0, &[status])? != 1 {
                return Err(QueueError::Request {
                    head,
                    reason: "a control command has no room for its status",
                });
            }
            io.ring(index)?.push_used(ram, [(head, 1)])?;
            // What came for a pair before it was in use found nobody; nor while the backend would not go from so many
            // pairs to others.
            let unseen = match status {
                0 => active..self.active,
                _ => 0..self.active,
            };
            for pair in unseen {
                io.run_again(pair::QUEUES * pair);
            }
        }
        io.run_again(index);
        Ok(())
    }

    /// Whether the command is known, allowed by the negotiated features, and obeyed.
    fn obey(&mut self, command: &[u8]) -> bool {
        let &[class, command, ref data @ ..] = command else {
            return false;
        };
        let has = |feature: u64| self.driver_features & feature != 0;
        match (u32::from(class), u32::from(command)) {
            // There is no filter: the guest gets every frame that reaches its tap, which is more than any mode asks
            // for, and its own stack drops what it does not want (5.1.6.5.1).
            (RX, mode) if has(features::CTRL_RX) => RX_MODES.contains(&mode) && !data.is_empty(),
            (MAC, MAC_TABLE_SET) => has(features::CTRL_RX),
            (MAC, MAC_ADDR_SET) if has(features::CTRL_MAC_ADDR) => match data.first_chunk() {
                Some(mac) if is_unicast(mac) => {
                    self.mac = *mac;
                    true
                }
                _ => false,
            },
            (ANNOUNCE, ANNOUNCE_ACK) if has(features::GUEST_ANNOUNCE) => {
                self.announcing = false;
                true
            }
            (GUEST_OFFLOADS, GUEST_OFFLOADS_SET) if has(features::CTRL_GUEST_OFFLOADS) => data
                .first_chunk()
                .is_some_and(|bits| self.set_guest_offloads(u64::from_le_bytes(*bits))),
            (MQ, MQ_VQ_PAIRS_SET) if has(features::MQ) => data
                .first_chunk()
                .is_some_and(|count| self.set_pairs(u16::from_le_bytes(*count).into())),
            _ => false,
        }
    }

    fn set_guest_offloads(&mut self, offloads: u64) -> bool {
        let allowed = self.driver_features & features::GUEST_OFFLOADS;
        if offloads & !allowed != 0
            || self
                .backend
                .set_offloads(Offloads::for_guest(offloads))
                .is_err()
        {
            return false;
        }
        self.guest_offloads = Some(offloads);
        self.direct_pairs();
        true
    }

    /// As many pairs as there are, at least one (5.1.6.5.5).
    fn set_pairs(&mut self, count: usize) -> bool {
        if !(1..=self.pairs.len()).contains(&count) {
            return false;
        }
        let done = self.use_pairs(count);
        if let Err(error) = &done {
            tracing::warn!("the guest cannot use {count} queue pairs: {error}");
        }
        done.is_ok()
    }
}

/// Whether an interface may have this address.
pub(super) fn is_unicast(mac: &[u8; 6]) -> bool {
    mac[0] & 1 == 0 && *mac != [0; 6]
}
