//! The network of whole-VM tests: two hosts, the guest's peers, and a link for the move.

use std::net::{IpAddr, Ipv4Addr};

pub use vmm::study::netns::Netns;
use vmm::study::netns::NetnsError;

use crate::Error;

/// Two hosts and the network that guests and their peers share.
///
/// ```text
///            world  bridge br0 10.8.K.1/24, one for each of the guest's NICs (K)
///             |  |
///      toA-K  |  |  toB-K
///   +---------+  +----------+
///   a: br-K, tapK           b: br-K, tapK
///      move0 10.9.0.1 <--> move0 10.9.0.2       migration traffic
/// ```
#[derive(Debug)]
pub struct World {
    /// Where the guest's peers live.
    pub world: Netns,
    /// The host that has the guest first.
    pub a: Netns,
    /// The host that it is moved to.
    pub b: Netns,
}

impl World {
    /// Address of host A on the migration link.
    pub const A: &str = "10.9.0.1";
    /// Address of host B on the migration link.
    pub const B: &str = "10.9.0.2";

    /// Name of the migration link's device on both hosts.
    pub const LINK: &str = "move0";

    /// Builds it for guests with `nics` NICs (at most 8): `tap0`, `tap1`… on each host.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn new(nics: u8) -> Result<Self, Error> {
        Self::of(nics, Netns::add_tap)
    }

    /// The same with taps of several queues.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn multi_queue(nics: u8) -> Result<Self, Error> {
        Self::of(nics, Netns::add_multi_queue_tap)
    }

    fn of(
        nics: u8,
        add_tap: impl Fn(&Netns, &str, Option<&str>) -> Result<(), NetnsError>,
    ) -> Result<Self, Error> {
        let this = Self {
            world: Netns::new("world")?,
            a: Netns::new("a")?,
            b: Netns::new("b")?,
        };
        this.a.join(Self::LINK, &this.b, Self::LINK)?;
        this.a
            .ip(&format!("address add {}/24 dev {}", Self::A, Self::LINK))?;
        this.b
            .ip(&format!("address add {}/24 dev {}", Self::B, Self::LINK))?;
        for nic in 0..nics {
            let bridge = format!("br{nic}");
            this.world.add_bridge(&bridge)?;
            this.world
                .ip(&format!("address add 10.8.{nic}.1/24 dev {bridge}"))?;
            for (host, label) in [(&this.a, 'a'), (&this.b, 'b')] {
                host.add_bridge(&bridge)?;
                add_tap(host, &format!("tap{nic}"), Some(&bridge))?;
                let port = format!("to-{label}{nic}");
                this.world.join(&port, host, &format!("out{nic}"))?;
                this.world.up(&port, Some(&bridge))?;
                host.up(&format!("out{nic}"), Some(&bridge))?;
            }
        }
        Ok(this)
    }

    /// The address that a guest is to take on its NIC, within `/24`.
    pub fn guest_address(nic: u8) -> String {
        Self::guest_ip(nic).to_string()
    }

    /// The same, to connect to.
    pub fn guest_ip(nic: u8) -> IpAddr {
        Ipv4Addr::new(10, 8, nic, 2).into()
    }
}
