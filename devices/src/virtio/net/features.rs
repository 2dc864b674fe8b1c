//! Feature bits of a network card (virtio 1.2, 5.1.3), and what of them a backend can do.

use virtio_bindings::virtio_net as bit;

/// Work that a backend takes off the guest or lets the guest do: the TUN_F_* bits of linux/if_tun.h.
///
/// UFO and USO are not among them: kernels differ in what they know of them, and a guest takes its features
/// along when it moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads(u32);

impl Offloads {
    /// None: every frame is complete and at most MTU-sized.
    pub const NONE: Offloads = Offloads(0);
    /// Frames without a checksum.
    pub const CHECKSUM: Offloads = Offloads(libc::TUN_F_CSUM);
    /// All that Ferry knows of.
    pub const ALL: Offloads =
        Offloads(libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN);

    /// The TUN_F_* bits.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// What the driver lets us hand to it, given its GUEST_* feature bits.
    pub fn for_guest(features: u64) -> Self {
        let pairs = [
            (GUEST_CSUM, libc::TUN_F_CSUM),
            (GUEST_TSO4, libc::TUN_F_TSO4),
            (GUEST_TSO6, libc::TUN_F_TSO6),
            (GUEST_ECN, libc::TUN_F_TSO_ECN),
        ];
        let bits = pairs.iter().filter(|(feature, _)| features & feature != 0);
        Self(bits.fold(0, |all, (_, bit)| all | bit))
    }
}

/// The device does checksums that the driver leaves out.
pub const CSUM: u64 = 1 << bit::VIRTIO_NET_F_CSUM;
/// The driver takes frames without checksums.
pub const GUEST_CSUM: u64 = 1 << bit::VIRTIO_NET_F_GUEST_CSUM;
/// The driver may change which offloads it takes.
pub const CTRL_GUEST_OFFLOADS: u64 = 1 << bit::VIRTIO_NET_F_CTRL_GUEST_OFFLOADS;
/// The device says its MTU.
pub const MTU: u64 = 1 << bit::VIRTIO_NET_F_MTU;
/// The device has a MAC address.
pub const MAC: u64 = 1 << bit::VIRTIO_NET_F_MAC;
/// The driver takes TSO over IPv4.
pub const GUEST_TSO4: u64 = 1 << bit::VIRTIO_NET_F_GUEST_TSO4;
/// The driver takes TSO over IPv6.
pub const GUEST_TSO6: u64 = 1 << bit::VIRTIO_NET_F_GUEST_TSO6;
/// The driver takes TSO with ECN.
pub const GUEST_ECN: u64 = 1 << bit::VIRTIO_NET_F_GUEST_ECN;
/// The device takes TSO over IPv4.
pub const HOST_TSO4: u64 = 1 << bit::VIRTIO_NET_F_HOST_TSO4;
/// The device takes TSO over IPv6.
pub const HOST_TSO6: u64 = 1 << bit::VIRTIO_NET_F_HOST_TSO6;
/// The device takes TSO with ECN.
pub const HOST_ECN: u64 = 1 << bit::VIRTIO_NET_F_HOST_ECN;
/// A frame may fill several receive buffers.
pub const MRG_RXBUF: u64 = 1 << bit::VIRTIO_NET_F_MRG_RXBUF;
/// The configuration space has a status.
pub const STATUS: u64 = 1 << bit::VIRTIO_NET_F_STATUS;
/// There is a control queue.
pub const CTRL_VQ: u64 = 1 << bit::VIRTIO_NET_F_CTRL_VQ;
/// The driver may say which frames it wants.
pub const CTRL_RX: u64 = 1 << bit::VIRTIO_NET_F_CTRL_RX;
/// The driver may say so in more detail.
pub const CTRL_RX_EXTRA: u64 = 1 << bit::VIRTIO_NET_F_CTRL_RX_EXTRA;
/// The driver announces itself when asked to.
pub const GUEST_ANNOUNCE: u64 = 1 << bit::VIRTIO_NET_F_GUEST_ANNOUNCE;
/// There is more than one queue pair.
pub const MQ: u64 = 1 << bit::VIRTIO_NET_F_MQ;
/// The driver may change the MAC address.
pub const CTRL_MAC_ADDR: u64 = 1 << bit::VIRTIO_NET_F_CTRL_MAC_ADDR;

/// The features that CTRL_GUEST_OFFLOADS can switch.
pub const GUEST_OFFLOADS: u64 = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN;

/// Which features need which (5.1.3.1): one of the second for the first to make sense.
const NEEDS: [(u64, u64); 13] = [
    (GUEST_TSO4, GUEST_CSUM),
    (GUEST_TSO6, GUEST_CSUM),
    (GUEST_ECN, GUEST_TSO4 | GUEST_TSO6),
    (HOST_TSO4, CSUM),
    (HOST_TSO6, CSUM),
    (HOST_ECN, HOST_TSO4 | HOST_TSO6),
    (CTRL_RX, CTRL_VQ),
    (CTRL_RX_EXTRA, CTRL_VQ),
    (GUEST_ANNOUNCE, CTRL_VQ),
    (MQ, CTRL_VQ),
    (CTRL_MAC_ADDR, CTRL_VQ),
    (CTRL_GUEST_OFFLOADS, CTRL_VQ),
    (CTRL_GUEST_OFFLOADS, GUEST_CSUM),
];

/// Whether no feature is there without what it needs.
pub fn consistent(features: u64) -> bool {
    NEEDS
        .iter()
        .all(|(feature, needs)| features & feature == 0 || features & needs != 0)
}

/// What is offered with a backend of these offloads and a queue for each of so many pairs.
pub fn offered(offloads: Offloads, pairs: usize, mtu: bool) -> u64 {
    let has = |bit: u32, features: u64| if offloads.0 & bit != 0 { features } else { 0 };
    MAC | MRG_RXBUF
        | STATUS
        | CTRL_VQ
        | CTRL_RX
        | CTRL_RX_EXTRA
        | GUEST_ANNOUNCE
        | CTRL_MAC_ADDR
        | if pairs > 1 { MQ } else { 0 }
        | if mtu { MTU } else { 0 }
        | has(libc::TUN_F_CSUM, CSUM | GUEST_CSUM | CTRL_GUEST_OFFLOADS)
        | has(libc::TUN_F_TSO4, HOST_TSO4 | GUEST_TSO4)
        | has(libc::TUN_F_TSO6, HOST_TSO6 | GUEST_TSO6)
        | has(libc::TUN_F_TSO_ECN, HOST_ECN | GUEST_ECN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_offer_is_consistent() {
        for offloads in [Offloads::NONE, Offloads::CHECKSUM, Offloads::ALL] {
            for pairs in [1, 2] {
                assert!(consistent(offered(offloads, pairs, true)), "{offloads:?}");
            }
        }
    }

    #[test]
    fn a_feature_without_what_it_needs_is_not() {
        for (feature, needs) in NEEDS {
            let all = offered(Offloads::ALL, 2, true);
            assert!(!consistent(all & !needs | feature), "{feature:#x}");
        }
    }

    #[test]
    fn guest_features_become_tun_bits() {
        assert_eq!(
            Offloads::for_guest(offered(Offloads::ALL, 1, false)),
            Offloads::ALL
        );
        assert_eq!(
            Offloads::for_guest(GUEST_CSUM | HOST_TSO4),
            Offloads::CHECKSUM
        );
        assert_eq!(Offloads::for_guest(0), Offloads::NONE);
    }
}
