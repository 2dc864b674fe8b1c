//! What a person asked for in the way of network devices.

use std::ops::RangeInclusive;
use std::os::fd::RawFd;

use devices::virtio::net::MAX_PAIRS;

use super::ConfigError;

/// The MTU of a network device: the least of IPv4, and the most that a Linux tap can have.
pub const NET_MTU: RangeInclusive<u16> = 68..=65521;
/// The most network devices in a guest.
pub const MAX_NETS: usize = 8;
/// The longest name of a network interface: IFNAMSIZ without its closing zero.
pub const MAX_TAP_NAME: usize = 15;

/// The host's end of a network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TapConfig {
    /// A tap interface that exists.
    Existing(String),
    /// A tap interface that Ferry makes, and that is gone with the process.
    Create(String),
    /// A tap that was passed to this process, by an open descriptor for each of its queues.
    Fds(Vec<RawFd>),
}

/// A network device of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConfig {
    /// Its other end.
    pub tap: TapConfig,
    /// Its MAC address; None makes one up.
    pub mac: Option<[u8; 6]>,
    /// How many queue pairs the guest has, 1 to [`MAX_PAIRS`]; None means one, or one a descriptor.
    pub queues: Option<u16>,
    /// The MTU that the guest is told of, in [`NET_MTU`]; None leaves it alone.
    pub mtu: Option<u16>,
}

impl NetConfig {
    /// Its queue pairs.
    pub fn pairs(&self) -> u16 {
        let passed = match &self.tap {
            TapConfig::Fds(fds) => u16::try_from(fds.len()).unwrap_or(u16::MAX),
            TapConfig::Existing(_) | TapConfig::Create(_) => 1,
        };
        self.queues.unwrap_or(passed)
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let queues = self.pairs();
        if !(1..=MAX_PAIRS).contains(&queues) {
            return Err(ConfigError::NetQueues(queues));
        }
        if let TapConfig::Fds(fds) = &self.tap
            && fds.len() != usize::from(queues)
        {
            let fds = fds.len();
            return Err(ConfigError::NetDescriptors { fds, queues });
        }
        if let Some(mtu) = self.mtu
            && !NET_MTU.contains(&mtu)
        {
            return Err(ConfigError::NetMtu(mtu));
        }
        self.mac.map_or(Ok(()), check_mac)
    }
}

/// The taps of cards that come with a guest.
pub(super) fn check_cards(nets: &[(u32, TapConfig)]) -> Result<(), ConfigError> {
    check_taps(nets.iter().map(|(_, tap)| tap))?;
    for (index, (slot, _)) in nets.iter().enumerate() {
        if usize::try_from(*slot).is_ok_and(|slot| slot >= MAX_NETS) {
            return Err(ConfigError::Slot(*slot));
        }
        if nets[..index].iter().any(|(other, _)| other == slot) {
            return Err(ConfigError::SlotTwice(*slot));
        }
    }
    Ok(())
}

pub(super) fn check_taps<'a>(taps: impl Iterator<Item = &'a TapConfig>) -> Result<(), ConfigError> {
    let (mut names, mut descriptors) = (Vec::new(), Vec::new());
    for tap in taps {
        match tap {
            TapConfig::Existing(name) | TapConfig::Create(name) => {
                check_tap_name(name)?;
                if names.contains(&name) {
                    return Err(ConfigError::TapTwice(name.clone()));
                }
                names.push(name);
            }
            TapConfig::Fds(fds) => {
                for fd in fds {
                    if descriptors.contains(fd) {
                        return Err(ConfigError::DescriptorTwice(*fd));
                    }
                    descriptors.push(*fd);
                }
            }
        }
    }
    Ok(())
}

/// The rules of the kernel's `dev_valid_name`, and no '%', which it would take for a pattern.
fn check_tap_name(name: &str) -> Result<(), ConfigError> {
    let bad = |c: char| c == '/' || c == ':' || c == '%' || c == '\0' || c.is_whitespace();
    if name.is_empty()
        || name.len() > MAX_TAP_NAME
        || name == "."
        || name == ".."
        || name.contains(bad)
    {
        return Err(ConfigError::TapName(name.to_owned()));
    }
    Ok(())
}

fn check_mac(mac: [u8; 6]) -> Result<(), ConfigError> {
    if mac == [0; 6] || mac[0] & 1 == 1 {
        return Err(ConfigError::Mac(display_mac(mac)));
    }
    Ok(())
}

/// Six hex pairs with colons.
pub fn display_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Parses six hex pairs with colons.
///
/// # Errors
/// [`ConfigError::Mac`] for anything else, also for an address that no single station may have.
pub fn parse_mac(text: &str) -> Result<[u8; 6], ConfigError> {
    let refused = || ConfigError::Mac(text.to_owned());
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().ok_or_else(refused)?;
        if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(refused());
        }
        *byte = u8::from_str_radix(part, 16).map_err(|_| refused())?;
    }
    if parts.next().is_some() {
        return Err(refused());
    }
    check_mac(mac)?;
    Ok(mac)
}
