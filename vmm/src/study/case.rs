//! One move of a study: the guest, what it does meanwhile, the link, and how it is moved.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::control::{OnTimeout, Throttle};
use crate::units::Rate;

/// Bytes in a page.
const PAGE: f64 = 4096.0;
/// Where the first working set begins, in MiB: above pulse itself and its tables.
pub const FIRST_MIB: u64 = 16;

/// Which pages of its working set a writer writes; see [`guest_images::config`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pattern {
    /// Any, each as likely as the other.
    Uniform,
    /// One after another, round and round.
    Sweep,
    /// Few of them often, most of them seldom.
    Zipf,
}

/// Bursts and calm, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Phases {
    /// So long it writes.
    pub on_ms: u32,
    /// So long it rests.
    pub off_ms: u32,
}

/// How fast all writers together write.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum DirtyRate {
    /// So many times what the link carries by its name.
    Times(f64),
    /// Bytes a second.
    Bytes(u64),
    /// As fast as they can.
    Max,
}

/// What lies between the two processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Link {
    /// The loopback interface.
    Loopback,
    /// A link of so many bytes a second.
    Shaped(u64),
}

/// How written pages are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tracking {
    /// By KVM's bitmap.
    Bitmap,
    /// By its dirty rings.
    Ring,
}

/// One move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// The sweep that it belongs to.
    pub sweep: String,
    /// Guest memory.
    pub memory_bytes: u64,
    /// What all writers together write to.
    pub working_set_bytes: u64,
    /// Which pages of it.
    pub pattern: Pattern,
    /// When; all the time without.
    pub phases: Option<Phases>,
    /// How fast.
    pub dirty_rate: DirtyRate,
    /// vCPUs that write.
    pub writers: u8,
    /// vCPUs that only compute.
    pub computing: u8,
    /// Over which link.
    pub link: Link,
    /// Connections that carry pages.
    pub streams: u16,
    /// How the guest is slowed down.
    pub throttle: Throttle,
    /// The longest blackout that is wanted.
    pub downtime_ms: u64,
    /// How written pages are found.
    pub tracking: Tracking,
    /// The most time.
    pub timeout_ms: u64,
    /// What happens then.
    pub on_timeout: OnTimeout,
    /// Whether the move is predicted first.
    pub predict: bool,
    /// The how manieth of equal ones, from 0.
    pub repeat: u32,
}

impl Case {
    /// A name that no other case of a study has: all that it is made of, as a file may be called.
    pub fn slug(&self) -> String {
        let mib = |bytes: u64| bytes >> 20;
        let mut name = format!(
            "{}_{}m-{}m_{}",
            self.sweep.replace(' ', "-").replace(',', ""),
            mib(self.memory_bytes),
            mib(self.working_set_bytes),
            word(&self.pattern)
        );
        if let Some(phases) = self.phases {
            name += &format!("-{}on{}off", phases.on_ms, phases.off_ms);
        }
        let rest = format!(
            "_{}_{}w{}c_{}_{}s_{}_{}ms_{}_{}ms-{}{}_{}",
            self.dirty_rate,
            self.writers,
            self.computing,
            self.link,
            self.streams,
            word(&self.throttle),
            self.downtime_ms,
            word(&self.tracking),
            self.timeout_ms,
            word(&self.on_timeout),
            if self.predict { "_p" } else { "" },
            self.repeat
        );
        name + &rest.replace([' ', '/'], "")
    }

    /// What people call it, short.
    pub fn title(&self) -> String {
        let mut pattern = word(&self.pattern);
        if let Some(Phases { on_ms, off_ms }) = self.phases {
            pattern += &format!(", {on_ms} ms of {}", on_ms + off_ms);
        }
        let cpus = match (self.writers, self.computing) {
            (1, 0) => String::new(),
            (writers, computing) => format!(", {writers} writing, {computing} computing"),
        };
        let load = match self.dirty_rate.is_zero() {
            true => "idle".to_owned(),
            false => format!(
                "{} {pattern} over {} MiB{cpus}",
                self.dirty_rate,
                self.working_set_bytes >> 20
            ),
        };
        format!("{load}, {}", self.link)
    }

    /// The policy's name as the command line has it.
    pub fn policy(&self) -> String {
        word(&self.throttle).replace('_', "-")
    }

    /// vCPUs.
    pub fn vcpus(&self) -> u8 {
        self.writers + self.computing
    }

    /// Bytes a second that the guest is to write, where that is a number.
    pub fn dirty_bytes_per_s(&self) -> Option<f64> {
        match (self.dirty_rate, self.link) {
            (DirtyRate::Times(times), Link::Shaped(link)) => Some(times * link as f64),
            (DirtyRate::Bytes(bytes), _) => Some(bytes as f64),
            (DirtyRate::Times(0.0), Link::Loopback) => Some(0.0),
            _ => None,
        }
    }

    /// How many times what the link carries by its name the guest is to write.
    pub fn ratio(&self) -> Option<f64> {
        match (self.dirty_rate, self.link) {
            (DirtyRate::Times(times), Link::Shaped(_)) => Some(times),
            (_, Link::Shaped(link)) => Some(self.dirty_bytes_per_s()? / link as f64),
            _ => None,
        }
    }

    /// Pulse's command line.
    pub fn words(&self) -> String {
        let mut words = "beat=1".to_owned();
        let each = (self.working_set_bytes >> 20) / u64::from(self.writers.max(1));
        let rate = match self.dirty_bytes_per_s() {
            None => "max".to_owned(),
            Some(bytes) => format!("{:.0}", bytes / PAGE / f64::from(self.writers.max(1))),
        };
        for writer in 0..u64::from(self.writers) {
            if self.dirty_rate.is_zero() || each == 0 {
                break;
            }
            let cpu = format!("cpu{writer}");
            let base = FIRST_MIB + writer * each;
            words += &format!(
                " {cpu}.ws={base}:{each} {cpu}.rate={rate} {cpu}.pattern={}",
                word(&self.pattern)
            );
            if let Some(Phases { on_ms, off_ms }) = self.phases {
                words += &format!(" {cpu}.phases={on_ms}:{off_ms}");
            }
        }
        for computing in self.writers..self.vcpus() {
            words += &format!(" cpu{computing}.role=compute");
        }
        words
    }
}

/// The word that stands for a value in JSON.
pub(super) fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

/// A value by its word in JSON; a hyphen may stand for an underscore.
fn by_word<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, String> {
    let word = serde_json::Value::String(text.replace('-', "_"));
    serde_json::from_value(word).map_err(|error| error.to_string().replace('_', "-"))
}

/// The policy of that name.
///
/// # Errors
/// There is none, with those that there are.
pub(super) fn policy(text: &str) -> Result<Throttle, String> {
    by_word(text)
}

/// What happens at the bound on time.
///
/// # Errors
/// It is neither `cancel` nor `switch`.
pub(super) fn on_timeout(text: &str) -> Result<OnTimeout, String> {
    by_word(text)
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        by_word(text)
    }
}

impl FromStr for Tracking {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        by_word(text)
    }
}

impl FromStr for Phases {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ms = |text: &str| -> Option<u32> {
            let span: crate::units::Span = text.parse().ok()?;
            let ms = u32::try_from(span.0.as_millis()).ok()?;
            (1..=60_000).contains(&ms).then_some(ms)
        };
        let both = text.split_once(':').map(|(on, off)| (ms(on), ms(off)));
        match both {
            Some((Some(on_ms), Some(off_ms))) => Ok(Self { on_ms, off_ms }),
            _ => Err(format!(
                "\"{text}\": take two times of 1 ms to 60 s, writing and resting, such as 1s:2s"
            )),
        }
    }
}

impl DirtyRate {
    /// Whether nothing is written.
    pub fn is_zero(self) -> bool {
        matches!(self, Self::Times(times) if times == 0.0) || self == Self::Bytes(0)
    }
}

impl FromStr for DirtyRate {
    type Err = String;

    /// `2x`, `400MB/s`, `max` or `0`.
    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            format!(
                "\"{text}\": take a multiple of the link (2x, at most 1000x), a rate (400MB/s), max, or 0"
            )
        };
        if text == "max" {
            return Ok(Self::Max);
        }
        if let Some(times) = text.strip_suffix('x').or((text == "0").then_some("0")) {
            let times: f64 = times.parse().map_err(|_| expected())?;
            return (0.0..=1000.0)
                .contains(&times)
                .then_some(Self::Times(times))
                .ok_or_else(expected);
        }
        let rate: Rate = text.parse().map_err(|_| expected())?;
        Ok(Self::Bytes(rate.0))
    }
}

impl fmt::Display for DirtyRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Times(times) if *times == 0.0 => f.write_str("0"),
            Self::Times(times) => write!(f, "{times}x"),
            Self::Bytes(bytes) if bytes % 1_000_000 == 0 => write!(f, "{}MB/s", bytes / 1_000_000),
            Self::Bytes(bytes) => write!(f, "{bytes}B/s"),
            Self::Max => f.write_str("max"),
        }
    }
}

impl Link {
    /// Whether it may carry more than memory gives at its first touch on a host that has to find it first.
    pub(super) fn is_fast(self) -> bool {
        match self {
            Self::Loopback => true,
            Self::Shaped(rate) => rate > 250_000_000,
        }
    }
}

impl FromStr for Link {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "loopback" {
            return Ok(Self::Loopback);
        }
        let expected = || format!("\"{text}\": take loopback, or a rate of 1Mbit to 1Tbit (1Gbit)");
        let rate: Rate = text.parse().map_err(|_| expected())?;
        (125_000..=125_000_000_000)
            .contains(&rate.0)
            .then_some(Self::Shaped(rate.0))
            .ok_or_else(expected)
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback => f.write_str("loopback"),
            Self::Shaped(bytes) if bytes % 125_000_000 == 0 => {
                write!(f, "{}Gbit", bytes / 125_000_000)
            }
            Self::Shaped(bytes) if bytes % 125_000 == 0 => write!(f, "{}Mbit", bytes / 125_000),
            Self::Shaped(bytes) => write!(f, "{}bit", bytes * 8),
        }
    }
}

/// In JSON as people write them.
macro_rules! as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

as_text!(DirtyRate);
as_text!(Link);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_links_and_phases_read_as_they_are_written() {
        for text in ["0", "0.5x", "2x", "400MB/s", "max"] {
            assert_eq!(text.parse::<DirtyRate>().unwrap().to_string(), text);
        }
        for text in ["loopback", "1Gbit", "500Mbit"] {
            assert_eq!(text.parse::<Link>().unwrap().to_string(), text);
        }
        for text in ["", "x", "-1x", "1001x", "NaNx", "400", "fast"] {
            assert!(text.parse::<DirtyRate>().is_err(), "{text}");
        }
        for text in ["", "1bit", "2Tbit", "veth"] {
            assert!(text.parse::<Link>().is_err(), "{text}");
        }
        let phases = Phases {
            on_ms: 1000,
            off_ms: 2000,
        };
        assert_eq!("1s:2s".parse::<Phases>(), Ok(phases));
        for text in ["", "1s", "0ms:1s", "1s:61s", "1s:2s:3s"] {
            assert!(text.parse::<Phases>().is_err(), "{text}");
        }
    }
}
