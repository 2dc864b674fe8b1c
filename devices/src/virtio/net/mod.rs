//! Network card (virtio 1.2, 5.1): a tap on the host's side, pairs of queues and a control queue on the guest's.
//!
//! The tap has a queue for every pair. How many pairs are in use is the driver's to say; the card begins with one.
//!
//! Frames are copied once, by the kernel, between the tap and guest memory, with the virtio header in front that both
//! sides speak. Checksums and segmentation are left to whoever comes last.

pub mod announce;
pub mod backend;
mod control;
pub mod features;
mod pair;
mod rx;
mod state;
pub mod tap;
mod tx;

use std::os::fd::RawFd;

use migration::state::{Snapshot, StateError, VmState};
use virtio_bindings::virtio_net as bit;

use self::pair::{Pair, SharedPair};
use self::rx::Delivery;
use super::chain::Chain;
use super::device::{Lane, QueueIo, VirtioDevice};
use super::queue::QueueError;

pub use backend::NetBackend;
pub use features::Offloads;
pub use state::{NetParts, NetState};
pub use tap::{Tap, TapError};

/// Device ID (virtio 1.2, 5).
const DEVICE_TYPE: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_NET;
/// Entries of a receive or transmit queue.
const QUEUE_SIZE: u16 = 256;
/// Entries of the control queue.
const CONTROL_SIZE: u16 = 64;
/// Bytes of a frame besides payload and header: Ethernet header and VLAN tag.
const FRAME_OVERHEAD: usize = 18;
/// The MTU of Ethernet.
const DEFAULT_MTU: u16 = 1500;
/// The most queue pairs of a card, each of which costs the VMM a thread. A guest has no more vCPUs, and its driver asks
/// for no more pairs than these.
pub const MAX_PAIRS: u16 = 8;

/// A network card.
pub struct VirtioNet {
    default_mac: [u8; 6],
    mac: [u8; 6],
    mtu: Option<u16>,
    features: u64,
    /// What the driver accepted; 0 until it is up.
    driver_features: u64,
    announcing: bool,
    guest_offloads: Option<u64>,
    pairs: Vec<SharedPair>,
    /// How many of the pairs the driver uses, the first ones.
    active: usize,
    /// Scratch: empty between two bursts.
    control: Chain,
    backend: Box<dyn NetBackend>,
    queue_sizes: Vec<u16>,
}

impl std::fmt::Debug for VirtioNet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VirtioNet")
            .field("mac", &self.mac)
            .field("driver_features", &self.driver_features)
            .field("pairs", &self.pairs)
            .field("active", &self.active)
            .finish_non_exhaustive()
    }
}

/// Receive and transmit queue of every pair, then the control queue (5.1.2).
fn queue_sizes(pairs: usize) -> Vec<u16> {
    let mut sizes = vec![QUEUE_SIZE; pair::QUEUES * pairs];
    sizes.push(CONTROL_SIZE);
    sizes
}

impl VirtioNet {
    /// A card that no driver has touched, with all features that the backend allows.
    ///
    /// # Errors
    /// The address is no interface's, or the MTU is below 68.
    pub fn new(
        mac: [u8; 6],
        mtu: Option<u16>,
        backend: Box<dyn NetBackend>,
    ) -> Result<Self, String> {
        Self::restore(NetState::fresh(mac, mtu, &*backend), NetParts { backend })
    }

    /// Has every pair deliver frames as the driver takes them now.
    fn direct_pairs(&self) {
        let tso = self.guest_offloads.unwrap_or(0) & (features::GUEST_TSO4 | features::GUEST_TSO6);
        let mtu = usize::from(self.mtu.unwrap_or(DEFAULT_MTU));
        for pair in &self.pairs {
            let how = &mut pair.lock().how;
            *how = Delivery {
                fd: how.fd,
                mergeable: self.driver_features & features::MRG_RXBUF != 0,
                longest: if tso != 0 {
                    backend::MAX_FRAME
                } else {
                    backend::HEADER + FRAME_OVERHEAD + mtu
                },
            };
        }
    }

    /// Uses the first `active` pairs from now on, and no frame comes to the others.
    ///
    /// # Errors
    /// The backend does not do it; those that were in use before are.
    fn use_pairs(&mut self, active: usize) -> std::io::Result<()> {
        // A pair must not look for frames where the backend has taken its queue away.
        self.set_active(active.min(self.active));
        let done = self.backend.use_queues(active);
        if done.is_ok() {
            self.active = active;
        } else {
            // It may have gone half of the way: frames must not come to a queue that nobody reads.
            let _ = self.backend.use_queues(self.active);
        }
        self.set_active(self.active);
        done
    }

    fn set_active(&self, active: usize) {
        for (index, pair) in self.pairs.iter().enumerate() {
            let mut pair = pair.lock();
            pair.active = index < active;
            if !pair.active {
                pair.rx.reset();
            }
        }
    }

    /// Whether the driver knows of more than one pair.
    fn multi_queue(&self) -> bool {
        self.driver_features & features::MQ != 0
    }

    /// Where the control queue is: behind the pairs that the driver knows of (5.1.2).
    fn control_queue(&self) -> usize {
        pair::QUEUES * self.lanes_in_use()
    }

    /// `struct virtio_net_config` as far as the offered features give it a meaning (5.1.4).
    fn config(&self) -> [u8; 12] {
        let announce = if self.announcing {
            bit::VIRTIO_NET_S_ANNOUNCE
        } else {
            0
        };
        // Both bits are in the low half.
        let status = u16::try_from(bit::VIRTIO_NET_S_LINK_UP | announce).unwrap_or(0);
        // At most `MAX_PAIRS`.
        let pairs = u16::try_from(self.pairs.len()).unwrap_or(1);
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.mac);
        config[6..8].copy_from_slice(&status.to_le_bytes());
        config[8..10].copy_from_slice(&pairs.to_le_bytes());
        config[10..].copy_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        config
    }
}

impl VirtioDevice for VirtioNet {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn accepts(&self, features: u64) -> bool {
        features::consistent(features)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn lanes(&self) -> Vec<Box<dyn Lane>> {
        self.pairs.iter().map(SharedPair::lane).collect()
    }

    fn lanes_in_use(&self) -> usize {
        if self.multi_queue() {
            self.pairs.len()
        } else {
            1
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, from) in data.iter_mut().zip(self.config().iter().skip(start)) {
            *to = *from;
        }
    }

    /// Nothing is writable: a modern driver sets its address by the control queue.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, features: u64) -> Result<(), String> {
        let offloads = self
            .guest_offloads
            .unwrap_or(features & features::GUEST_OFFLOADS);
        if offloads & !features != 0 {
            return Err(format!(
                "offloads {offloads:#x} are in use, of features {features:#x}"
            ));
        }
        if self.active > 1 && features & features::MQ == 0 {
            return Err(format!(
                "{} queue pairs are in use, of features {features:#x}",
                self.active
            ));
        }
        let wanted = Offloads::for_guest(offloads);
        self.backend.set_offloads(wanted).map_err(|error| {
            format!(
                "the tap does not take offloads {:#x}: {error}",
                wanted.bits()
            )
        })?;
        self.use_pairs(self.active)
            .map_err(|error| format!("the tap does not use {} queues: {error}", self.active))?;
        self.driver_features = features;
        self.guest_offloads = Some(offloads);
        self.direct_pairs();
        Ok(())
    }

    fn reset(&mut self) {
        self.mac = self.default_mac;
        self.driver_features = 0;
        self.announcing = false;
        self.guest_offloads = None;
        self.pairs.iter().for_each(|pair| pair.lock().rx.reset());
        if let Err(error) = self.use_pairs(1) {
            tracing::warn!("the tap of a card that was reset still has all its queues: {error}");
        }
    }

    /// The control queue's; the others are the lanes'.
    fn process_queue(&mut self, io: &mut QueueIo<'_>, index: usize) -> Result<(), QueueError> {
        if index == self.control_queue() {
            self.process_control(io, index)?;
        }
        Ok(())
    }

    fn process_backend(&mut self, _io: &mut QueueIo<'_>) -> Result<(), QueueError> {
        Ok(())
    }

    /// The lanes have them.
    fn backend_fd(&self) -> Option<RawFd> {
        None
    }

    /// Both ways at once, as QEMU does: the host's frame is there before the guest has woken up, the guest's brings
    /// its IP addresses too. The host's may be lost, as any frame; there are several rounds.
    fn announce(&mut self) -> bool {
        // By the queue of the first pair, which is always in use.
        for fd in self.backend.fds().into_iter().take(1) {
            if let Err(error) = backend::write_frame(fd, &announce::rarp(self.mac)) {
                tracing::debug!("the host's announcement was not sent: {error}");
            }
        }
        let asked = self.driver_features & features::GUEST_ANNOUNCE != 0;
        self.announcing |= asked;
        asked
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let sum = |of: fn(&Pair) -> u64| self.pairs.iter().map(|pair| of(&pair.lock())).sum();
        vec![
            ("rx_bytes", sum(|pair| pair.rx.bytes)),
            ("rx_frames", sum(|pair| pair.rx.frames)),
            ("rx_dropped", sum(|pair| pair.rx.dropped)),
            ("tx_bytes", sum(|pair| pair.tx.bytes)),
            ("tx_frames", sum(|pair| pair.tx.frames)),
            ("tx_dropped", sum(|pair| pair.tx.dropped)),
        ]
    }

    fn save_section(&self, instance: u32, state: &mut VmState) -> Result<(), StateError> {
        state.save(instance, self)
    }
}

#[cfg(test)]
mod tests;
