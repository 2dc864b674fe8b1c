//! What a person asked for in the way of a balloon.

use std::str::FromStr;

use super::ConfigError;
use crate::units::{Size, UnitError};

/// A balloon of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalloonConfig {
    /// How large it is to be at first, in bytes.
    pub bytes: u64,
    /// Whether the guest reports free pages by itself.
    pub reporting: bool,
    /// Whether a guest that is out of memory may take pages back by itself.
    pub deflate_on_oom: bool,
}

impl FromStr for BalloonConfig {
    type Err = String;

    /// `on` (nothing at all says the same) or `SIZE`, then `,reporting=on|off` and `,deflate-on-oom=on|off`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let bytes = match parts.next() {
            Some("on" | "") => 0,
            size => {
                let size = size.unwrap_or_default();
                let Size(bytes) = size
                    .parse()
                    .map_err(|error: UnitError| format!("{error}, or on"))?;
                bytes
            }
        };
        let mut config = Self {
            bytes,
            reporting: true,
            deflate_on_oom: false,
        };
        for part in parts {
            match part.split_once('=') {
                Some(("reporting", word)) => config.reporting = switch(part, word)?,
                Some(("deflate-on-oom", word)) => config.deflate_on_oom = switch(part, word)?,
                _ => {
                    return Err(format!(
                        "{part:?}: behind on or the size there are reporting=on|off and deflate-on-oom=on|off"
                    ));
                }
            }
        }
        Ok(config)
    }
}

fn switch(part: &str, word: &str) -> Result<bool, String> {
    match word {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("{part:?}: take on or off")),
    }
}

impl BalloonConfig {
    /// Whether the guest has so much to put into it.
    pub(super) fn check(&self, memory: u64) -> Result<(), ConfigError> {
        let bytes = self.bytes;
        match bytes <= memory {
            true => Ok(()),
            false => Err(ConfigError::Balloon { bytes, memory }),
        }
    }
}
