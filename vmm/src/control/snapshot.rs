//! The request for a snapshot: what the API takes, checked. The file comes beside it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use migration::destination::hex;
use migration::options::Options;
use migration::wire::frame::SnapshotId;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::request::{Compress, RequestError, Throttle, check_pace};

/// The longest name of a file that is kept, for messages.
const MAX_NAME: usize = 512;

/// The name of a snapshot, 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotName(pub SnapshotId);

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(self.0))
    }
}

impl FromStr for SnapshotName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match u128::from_str_radix(text, 16) {
            Ok(number) if digits && number != 0 => {
                // In the order in which the digits are written.
                let mut name = number.to_le_bytes();
                name.reverse();
                Ok(Self(name))
            }
            _ => Err("the name of a snapshot has 32 hexadecimal digits, not all of them 0".into()),
        }
    }
}

impl Serialize for SnapshotName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SnapshotName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A snapshot, as asked for. What is left out is the engine's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRequest {
    /// What the file is called in messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Only what was written since that snapshot, which was the guest's last and was taken with `track`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<SnapshotName>,
    /// The dirty log stays on, so that the next snapshot can stand on this one.
    #[serde(default)]
    pub track: bool,
    /// The guest stays paused when the snapshot is taken.
    #[serde(default)]
    pub pause: bool,
    /// The longest stop wanted, in milliseconds; 1 to an hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_ms: Option<u64>,
    /// The most bytes a second that are written, at least 64 KiB/s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_bytes_per_s: Option<u64>,
    /// How vCPUs are slowed down where the guest writes faster than the disk.
    #[serde(default)]
    pub throttle: Throttle,
    /// Whether pages are compressed.
    #[serde(default)]
    pub compress: Compress,
}

impl SnapshotRequest {
    /// Checks every value. A name that is too long is cut.
    ///
    /// # Errors
    /// The first that makes no sense.
    pub fn checked(mut self) -> Result<Self, RequestError> {
        check_pace(self.downtime_ms, self.bandwidth_bytes_per_s)?;
        let clean = |name: String| {
            let shown = name.chars().map(|c| if c.is_control() { ' ' } else { c });
            shown.take(MAX_NAME).collect()
        };
        self.name = self.name.map(clean);
        Ok(self)
    }

    /// The same for the engine.
    pub fn options(&self) -> Options {
        let default = Options::default();
        let downtime = self.downtime_ms.map(Duration::from_millis);
        Options {
            downtime_limit: downtime.unwrap_or(default.downtime_limit),
            bandwidth: self.bandwidth_bytes_per_s,
            throttle: self.throttle.into(),
            compress: self.compress.into(),
            ..default
        }
    }

    /// What messages call the file.
    pub fn name(&self) -> String {
        self.name.clone().unwrap_or_else(|| "file".into())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_digits_there_and_back() {
        let name: SnapshotName = "000102030405060708090a0b0c0d0e0f".parse().unwrap();
        assert_eq!(name.0[15], 15);
        assert_eq!(name.to_string(), "000102030405060708090a0b0c0d0e0f");
        for bad in ["", "0", &"0".repeat(32), &"g".repeat(32), &"+".repeat(32)] {
            assert!(bad.parse::<SnapshotName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let request = |text: &str| {
            let request: Result<SnapshotRequest, _> = serde_json::from_str(text);
            request
                .map_err(|error| error.to_string())?
                .checked()
                .map_err(|e| e.to_string())
        };
        assert_eq!(request("{}").unwrap(), SnapshotRequest::default());
        let cut = request(r#"{"name": "a\nb"}"#).unwrap();
        assert_eq!(cut.name(), "a b");
        for bad in [
            r#"{"base": "12"}"#,
            r#"{"downtime_ms": 0}"#,
            r#"{"bandwidth_bytes_per_s": 1}"#,
            r#"{"path": "/etc/passwd"}"#,
        ] {
            assert!(request(bad).is_err(), "{bad}");
        }
    }
}
