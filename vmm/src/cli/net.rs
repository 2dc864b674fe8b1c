//! `--net` of run and receive.

use std::os::fd::RawFd;
use std::str::FromStr;

use devices::virtio::net::MAX_PAIRS;

use crate::config::{NET_MTU, NetConfig, TapConfig, parse_mac};

/// `tap=NAME|create=NAME|fd=N[:N…][,queues=N][,mac=…][,mtu=…]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetFlag(pub NetConfig);

/// `SLOT=tap=NAME|create=NAME|fd=N[:N…]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotFlag(pub u32, pub TapConfig);

const FORMS: &str = "tap=NAME (an existing tap), create=NAME (made and removed by ferry) or fd=N (an open tap; fd=N:N… one of several queues)";

impl FromStr for NetFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let tap = parse_tap(parts.next().unwrap_or_default())?;
        let (mut mac, mut queues, mut mtu) = (None, None, None);
        for part in parts {
            match part.split_once('=') {
                Some(("mac", value)) if mac.is_none() => {
                    mac = Some(parse_mac(value).map_err(|error| error.to_string())?);
                }
                Some(("queues", value)) if queues.is_none() => {
                    let limit = || format!("{value:?} queues: take 1 to {MAX_PAIRS}");
                    let read = number(value).filter(|n| (1..=MAX_PAIRS).contains(n));
                    queues = Some(read.ok_or_else(limit)?);
                }
                Some(("mtu", value)) if mtu.is_none() => {
                    let (least, most) = NET_MTU.into_inner();
                    let limit = || format!("an MTU of {value:?}: take {least} to {most}");
                    let read = number(value).filter(|n| NET_MTU.contains(n));
                    mtu = Some(read.ok_or_else(limit)?);
                }
                _ => {
                    return Err(format!(
                        "{part:?}: after the tap there are, once each, queues=N, mac=XX:XX:XX:XX:XX:XX and mtu=N"
                    ));
                }
            }
        }
        Ok(Self(NetConfig {
            tap,
            mac,
            queues,
            mtu,
        }))
    }
}

impl FromStr for SlotFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (slot, tap) = text
            .split_once('=')
            .filter(|(slot, _)| !slot.is_empty() && slot.bytes().all(|byte| byte.is_ascii_digit()))
            .ok_or_else(|| format!("write SLOT=TAP, for example 0=tap=tap0; TAP is {FORMS}"))?;
        let slot = slot
            .parse()
            .map_err(|error| format!("slot {slot}: {error}"))?;
        if let Some((_, more)) = tap.split_once(',') {
            return Err(format!(
                "{more:?}: after the tap there is nothing; queues, MAC address and MTU come with the guest"
            ));
        }
        Ok(Self(slot, parse_tap(tap)?))
    }
}

/// Digits alone: `u16::from_str` would take a plus sign, too.
fn number(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

fn parse_tap(text: &str) -> Result<TapConfig, String> {
    match text.split_once('=') {
        Some(("tap", name)) if !name.is_empty() => Ok(TapConfig::Existing(name.to_owned())),
        Some(("create", name)) if !name.is_empty() => Ok(TapConfig::Create(name.to_owned())),
        Some(("fd", numbers)) => {
            let fd = |number: &str| match number.parse::<RawFd>() {
                // 0 to 2 are the standard streams: taking one for a tap is a mistake.
                Ok(fd) if fd > 2 => Ok(fd),
                _ => Err(format!("descriptor {number:?}: take a number above 2")),
            };
            let fds = numbers.split(':').map(fd).collect::<Result<_, _>>()?;
            Ok(TapConfig::Fds(fds))
        }
        _ => Err(format!("write {FORMS}")),
    }
}
