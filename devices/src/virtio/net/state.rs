//! What of a network card moves with the guest.

use migration::state::{Kind, Snapshot};
use serde::{Deserialize, Serialize};

use super::backend::NetBackend;
use super::control::is_unicast;
use super::rx::Rx;
use super::tx::Tx;
use super::{QueuePair, VirtioNet, features};
use crate::virtio::chain::Chain;

/// The least MTU that may be announced (virtio 1.2, 5.1.4.1).
const MIN_MTU: u16 = 68;
/// Queue pairs of a card.
const PAIRS: usize = 1;

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
    /// For each queue pair the received frame that had no room yet; empty for none.
    pub held: Vec<Vec<u8>>,
}

impl NetState {
    /// A card that no driver has touched, with all features that the backend allows.
    pub fn fresh(mac: [u8; 6], mtu: Option<u16>, backend: &dyn NetBackend) -> Self {
        Self {
            default_mac: mac,
            mac,
            mtu,
            features: features::offered(backend.offloads(), mtu.is_some()),
            announcing: false,
            guest_offloads: None,
            held: vec![Vec::new(); PAIRS],
        }
    }
}

/// What a card needs besides its state.
pub struct NetParts {
    /// What it is plugged into.
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
            control: _,
            backend: _,
            queue_sizes: _,
        } = self;
        NetState {
            default_mac: *default_mac,
            mac: *mac,
            mtu: *mtu,
            features: *features,
            announcing: *announcing,
            guest_offloads: *guest_offloads,
            held: pairs.iter().map(|pair| pair.rx.held().to_vec()).collect(),
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
        let possible = features::offered(backend.offloads(), mtu.is_some());
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
        if held.len() != PAIRS {
            return Err(format!(
                "{} queue pairs, where this build has {PAIRS}",
                held.len()
            ));
        }
        let pairs = held.into_iter().map(|held| {
            Ok(QueuePair {
                rx: Rx::restore(held)?,
                tx: Tx::default(),
            })
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
            control: Chain::default(),
            backend,
            queue_sizes: super::queue_sizes(PAIRS),
        })
    }
}
