//! `--net` of run and receive.

use std::os::fd::RawFd;
use std::str::FromStr;

use crate::config::{NetConfig, TapConfig, parse_mac};

/// `tap=NAME|create=NAME|fd=N[,mac=…]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetFlag(pub NetConfig);

/// `SLOT=tap=NAME|create=NAME|fd=N`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotFlag(pub u32, pub TapConfig);

const FORMS: &str =
    "tap=NAME (an existing tap), create=NAME (made and removed by ferry) or fd=N (an open tap)";

impl FromStr for NetFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let tap = parse_tap(parts.next().unwrap_or_default())?;
        let mut mac = None;
        for part in parts {
            match part.split_once('=') {
                Some(("mac", value)) if mac.is_none() => {
                    mac = Some(parse_mac(value).map_err(|error| error.to_string())?);
                }
                _ => {
                    return Err(format!(
                        "{part:?}: after the tap there is only one mac=XX:XX:XX:XX:XX:XX"
                    ));
                }
            }
        }
        Ok(Self(NetConfig { tap, mac }))
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
        Ok(Self(slot, parse_tap(tap)?))
    }
}

fn parse_tap(text: &str) -> Result<TapConfig, String> {
    match text.split_once('=') {
        Some(("tap", name)) if !name.is_empty() => Ok(TapConfig::Existing(name.to_owned())),
        Some(("create", name)) if !name.is_empty() => Ok(TapConfig::Create(name.to_owned())),
        Some(("fd", number)) => match number.parse::<RawFd>() {
            // 0 to 2 are the standard streams: taking one for a tap is a mistake.
            Ok(fd) if fd > 2 => Ok(TapConfig::Fd(fd)),
            _ => Err(format!("descriptor {number:?}: take a number above 2")),
        },
        _ => Err(format!("write {FORMS}")),
    }
}
