//! Where a move happens: the loopback interface, or two network namespaces joined by a link of a given speed.

use std::net::TcpListener;

use super::case::Link;
use super::netns::{Netns, NetnsError};
use super::trial::TrialError;
use crate::units::Rate;

/// The link's device on both sides, and the addresses of the two.
const DEVICE: &str = "move0";
const SOURCE: &str = "10.9.0.1";
const DESTINATION: &str = "10.9.0.2";

/// How links are given their speed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shaping {
    /// By the kernel (htb), between two namespaces; takes root.
    Htb,
    /// By Ferry's own cap on its bandwidth, over loopback.
    Cap,
}

/// A place for moves; ends with everything that it has made.
#[derive(Debug)]
pub struct Place {
    /// The link that it has.
    pub link: Link,
    netns: Option<(Netns, Netns)>,
    cap: Option<u64>,
}

impl Place {
    /// Makes it.
    ///
    /// # Errors
    /// `ip` or `tc` refuse.
    pub fn make(link: Link, shaping: Shaping) -> Result<Self, NetnsError> {
        let mut place = Self {
            link,
            netns: None,
            cap: None,
        };
        match (link, shaping) {
            (Link::Loopback, _) => {}
            (Link::Shaped(rate), Shaping::Cap) => place.cap = Some(rate),
            (Link::Shaped(rate), Shaping::Htb) => {
                let (a, b) = (Netns::new("study-a")?, Netns::new("study-b")?);
                a.join(DEVICE, &b, DEVICE)?;
                a.ip(&format!("address add {SOURCE}/24 dev {DEVICE}"))?;
                b.ip(&format!("address add {DESTINATION}/24 dev {DEVICE}"))?;
                a.shape(DEVICE, Rate(rate))?;
                place.netns = Some((a, b));
            }
        }
        Ok(place)
    }

    /// Where the source runs.
    pub fn source(&self) -> Option<&Netns> {
        self.netns.as_ref().map(|(a, _)| a)
    }

    /// Where the destination runs.
    pub fn destination(&self) -> Option<&Netns> {
        self.netns.as_ref().map(|(_, b)| b)
    }

    /// What Ferry itself has to keep the link down to.
    pub fn cap(&self) -> Option<u64> {
        self.cap
    }

    /// Whether the move leaves the loopback interface, which Ferry wants to be told.
    pub fn leaves_loopback(&self) -> bool {
        self.netns.is_some()
    }

    /// An address to listen on at the destination, its port free a moment ago.
    ///
    /// # Errors
    /// There is none.
    pub fn target(&self) -> Result<String, TrialError> {
        let host = match self.netns {
            Some(_) => DESTINATION,
            None => "127.0.0.1",
        };
        let bind = || TcpListener::bind((host, 0)).and_then(|listener| listener.local_addr());
        let bound = match self.destination() {
            Some(netns) => netns.within(bind)?,
            None => bind(),
        };
        let address = bound.map_err(TrialError::io("find a free port"))?;
        Ok(format!("tcp:{address}"))
    }
}
