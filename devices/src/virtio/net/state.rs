//! What of a network card moves with the guest.

use migration::state::{Kind, Snapshot};
use serde::{Deserialize, Serialize};

use super::backend::NetBackend;
use super::control::is_unicast;
use super::pair::{Pair, SharedPair};
use super::rx::{Delivery, Rx};
use super::tx::Tx;
use super::{MAX_PAIRS, VirtioNet, features};
use crate::virtio::chain::Chain;

/// The least MTU that may be announced (virtio 1.2, 5.1.4.1).
const MIN_MTU: u16 = 68;

/// A card's identity, and what its driver has made of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// The address that the card has after a reset.
    pub default_mac: [u8; 6],
    /// The address that it has now.
    pub mac: [u8; 6],
    /// The MTU that it announces.
    pub mtu: Option<u16>,
    /// The features that it offers, chosen when the guest was made: every later host must offer them all.
    pub features: u64,
    /// The driver was asked to announce itself, and has not acknowledged it.
    pub announcing: bool,
    /// The offloads that the driver takes now, as feature bits, once it is up.
    pub guest_offloads: Option<u64>,
    /// For each queue pair in use, one at least, the received frame that had no room yet; empty for none.
    pub held: Vec<Vec<u8>>,
}

impl NetState {
    /// A card that no driver has touched, with all features that the backend allows.
    pub fn fresh(mac: [u8; 6], mtu: Option<u16>, backend: &dyn NetBackend) -> Self {
        Self {
            default_mac: mac,
            mac,
            mtu,
            features: features::offered(backend.offloads(), backend.fds().len(), mtu.is_some()),
            announcing: false,
            guest_offloads: None,
            held: vec![Vec::new()],
        }
    }
}

/// What a card needs besides its state.
pub struct NetParts {
    /// What it is plugged into; the card has a queue pair for each of its queues.
    pub backend: Box<dyn NetBackend>,
}

impl Snapshot for VirtioNet {
    const KIND: Kind = Kind::VIRTIO_NET;
    const VERSION: u32 = 1;
    type State = NetState;
    type Parts = NetParts;

    fn save(&self) -> NetState {
        let Self {
            default_mac,
            mac,
            mtu,
            features,
            // The transport's, and handed over when the device is activated.
            driver_features: _,
            announcing,
            guest_offloads,
            pairs,
            active,
            control: _,
            backend: _,
            queue_sizes: _,
        } = self;
        let held = |pair: &SharedPair| pair.lock().rx.held().to_vec();
        NetState {
            default_mac: *default_mac,
            mac: *mac,
            mtu: *mtu,
            features: *features,
            announcing: *announcing,
            guest_offloads: *guest_offloads,
            held: pairs.iter().take(*active).map(held).collect(),
        }
    }

    fn restore(state: NetState, parts: NetParts) -> Result<Self, String> {
        let NetParts { backend } = parts;
        let NetState {
            default_mac,
            mac,
            mtu,
            features,
            announcing,
            guest_offloads,
            held,
        } = state;
        if let Some(mac) = [&default_mac, &mac]
            .into_iter()
            .find(|mac| !is_unicast(mac))
        {
            return Err(format!("MAC address {mac:02x?} is not one of an interface"));
        }
        if mtu.is_some_and(|mtu| mtu < MIN_MTU) {
            return Err(format!("MTU {mtu:?} is below {MIN_MTU}"));
        }
        let queues = backend.fds();
        if queues.is_empty() || queues.len() > MAX_PAIRS.into() {
            return Err(format!(
                "{} queues of the tap: a card has 1 to {MAX_PAIRS} pairs",
                queues.len()
            ));
        }
        let possible = features::offered(backend.offloads(), queues.len(), mtu.is_some());
        if features & !possible != 0 || !features::consistent(features) {
            return Err(format!(
                "the card offers features {features:#x}, this host's tap allows {possible:#x}"
            ));
        }
        if let Some(offloads) = guest_offloads
            && offloads & !(features & features::GUEST_OFFLOADS) != 0
        {
            return Err(format!(
                "offloads {offloads:#x} are in use, features {features:#x} on offer"
            ));
        }
        let active = held.len();
        if !(1..=queues.len()).contains(&active) {
            return Err(format!(
                "{active} queue pairs are in use, of {}",
                queues.len()
            ));
        }
        let mut held = held.into_iter();
        let pairs = queues.iter().enumerate().map(|(index, &fd)| {
            Ok(SharedPair::new(Pair {
                rx: Rx::restore(held.next().unwrap_or_default())?,
                tx: Tx::default(),
                how: Delivery::nothing_known(fd),
                active: index < active,
            }))
        });
        Ok(Self {
            default_mac,
            mac,
            mtu,
            features,
            driver_features: 0,
            announcing,
            guest_offloads,
            pairs: pairs.collect::<Result<_, String>>()?,
            active,
            control: Chain::default(),
            backend,
            queue_sizes: super::queue_sizes(queues.len()),
        })
    }
}
