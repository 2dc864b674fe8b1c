//! The requests for a move, a measurement and a prediction: what the API takes, checked.

use std::str::FromStr;
use std::time::Duration;

use migration::dirty_rate;
use migration::options::{MAX_STREAMS, MIN_BANDWIDTH, Options, ThrottlePolicy};
use migration::pack::{self, Codec, MIN_DELTA_CACHE};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::config::{ConfigError, PEER_TIMEOUT, Target, check_peer};
use crate::tls::TlsFiles;
use crate::units::{Rate, Size, Span};

/// What to do when the bound on time or rounds is reached and the blackout would still be too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnTimeout {
    /// The guest stays where it is.
    #[default]
    Cancel,
    /// The guest is moved all the same, with a longer blackout.
    Switch,
}

/// Whether pages are compressed on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compress {
    /// Whichever way pays on the link at hand, measured as it goes.
    Auto,
    /// Not at all.
    #[default]
    None,
    /// By LZ4: quick.
    Lz4,
    /// By Zstandard: tighter.
    Zstd,
}

impl From<Compress> for pack::Compress {
    fn from(compress: Compress) -> Self {
        match compress {
            Compress::Auto => pack::Compress::Auto,
            Compress::None => pack::Compress::None,
            Compress::Lz4 => pack::Compress::Always(Codec::Lz4),
            Compress::Zstd => pack::Compress::Always(Codec::Zstd),
        }
    }
}

/// How vCPUs are slowed down where the guest writes faster than the link carries; see [`migration::policy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Throttle {
    /// Not at all.
    Off,
    /// As QEMU does.
    AutoConverge,
    /// So that it writes just less than is sent.
    Sdps,
    /// Late, and as far as the remaining rounds need it.
    #[default]
    Auto,
    /// Each vCPU that writes faster than its limit. Needs the dirty ring.
    DirtyLimit,
}

impl From<Throttle> for ThrottlePolicy {
    fn from(throttle: Throttle) -> Self {
        match throttle {
            Throttle::Off => ThrottlePolicy::Off,
            Throttle::AutoConverge => ThrottlePolicy::AutoConverge,
            Throttle::Sdps => ThrottlePolicy::Sdps,
            Throttle::Auto => ThrottlePolicy::Auto,
            Throttle::DirtyLimit => ThrottlePolicy::DirtyLimit,
        }
    }
}

/// A move, as asked for. What is left out is the engine's default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrateRequest {
    /// Where to.
    #[serde(serialize_with = "write_target", deserialize_with = "read_target")]
    pub target: Target,
    /// The longest blackout wanted, in milliseconds; 1 to an hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_ms: Option<u64>,
    /// The most bytes a second on the wire, at least 64 KiB/s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_bytes_per_s: Option<u64>,
    /// Connections that carry pages, 1 to 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams: Option<u16>,
    /// The most rounds before the guest is stopped; at least 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rounds: Option<u32>,
    /// The most time before the guest is stopped, in milliseconds; 1 to 30 days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// What to do when either is reached.
    #[serde(default)]
    pub on_timeout: OnTimeout,
    /// How vCPUs are slowed down where the guest writes faster than the link carries.
    #[serde(default)]
    pub throttle: Throttle,
    /// Whether pages are compressed.
    #[serde(default)]
    pub compress: Compress,
    /// Keep so many bytes of sent pages, at least 1 MiB, so that pages that go again go as differences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delta_cache_bytes: Option<u64>,
    /// Compare both memories before the guest is handed over. It stands still for that, beyond the downtime asked for.
    #[serde(default)]
    pub verify: bool,
    /// How long the other end may do nothing before it is taken for dead, in milliseconds; 500 to an hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_timeout_ms: Option<u64>,
    /// Encrypt, and have both ends prove who they are, by `tls_files` or else by what the VM was started with.
    #[serde(default)]
    pub tls: bool,
    /// The certificate, its key and the CA to do that with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_files: Option<TlsFiles>,
    /// The name that the destination's certificate has to have; the target's host if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Go beyond this machine without encryption.
    #[serde(default)]
    pub insecure_plaintext: bool,
}

/// A value that makes no sense, with what would.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RequestError {
    /// The downtime is out of range.
    #[error("a downtime of {0} ms: take 1 ms to 1 hour")]
    Downtime(u64),
    /// The bandwidth is too small to move anything.
    #[error("a bandwidth of {}: take at least {}", Rate(*.0), Rate(MIN_BANDWIDTH))]
    Bandwidth(u64),
    /// No connection at all, or too many.
    #[error("{0} streams: take 1 to {MAX_STREAMS}")]
    Streams(u16),
    /// No round at all.
    #[error("0 rounds: at least one is needed to send the memory")]
    Rounds,
    /// The timeout is out of range.
    #[error("a timeout of {0} ms: take 1 ms to 30 days")]
    Timeout(u64),
    /// The cache of sent pages is too small to be of any use.
    #[error("a cache of {} for differences: take at least {}", Size(*.0), Size(MIN_DELTA_CACHE))]
    DeltaCache(u64),
    /// The time after which the other end is dead is out of range.
    #[error("a peer timeout of {0} ms: take 500 ms to 1 hour")]
    PeerTimeout(u64),
    /// There are no two memories to compare.
    #[error(
        "a move over a Unix socket hands over the memory itself, so there are no two to compare: leave --verify out, or move over TCP (tcp:127.0.0.1:PORT)"
    )]
    NothingToVerify,
    /// The longest window is out of range.
    #[error("a window of {}: take 1 ms to {}", Span(Duration::from_millis(*.0)), Span(dirty_rate::LONGEST))]
    Window(u64),
    /// The sample is nothing, or too thin.
    #[error("a sample of one page in {0}: take 1 to {max}", max = dirty_rate::THINNEST)]
    Sample(u32),
    /// Contents of every page are to be compared.
    #[error(
        "contents are compared of a sample: take one page in 2 or fewer, or leave the sample out for one in {}",
        dirty_rate::COMPARED
    )]
    Compared,
    /// Something was said of TLS, but not that it is wanted.
    #[error("{0} is given without tls: give both, or neither")]
    WithoutTls(&'static str),
    /// TLS and no TLS.
    #[error("tls and insecure_plaintext are given: take one of them")]
    Both,
    /// TLS within the host.
    #[error(
        "TLS is for tcp targets: {0} does not leave this machine, and its socket is its owner's alone"
    )]
    LocalTls(Target),
    /// The target is refused.
    #[error(transparent)]
    Target(#[from] ConfigError),
}

const HOUR_MS: u64 = 3_600_000;
const MONTH_MS: u64 = 30 * 24 * HOUR_MS;

/// Checks what a move and a snapshot both may be asked for.
pub(super) fn check_pace(
    downtime_ms: Option<u64>,
    bandwidth_bytes_per_s: Option<u64>,
) -> Result<(), RequestError> {
    if let Some(ms) = downtime_ms
        && !(1..=HOUR_MS).contains(&ms)
    {
        return Err(RequestError::Downtime(ms));
    }
    match bandwidth_bytes_per_s {
        Some(rate) if rate < MIN_BANDWIDTH => Err(RequestError::Bandwidth(rate)),
        _ => Ok(()),
    }
}

impl MigrateRequest {
    /// A request with every default.
    pub fn to(target: Target) -> Self {
        Self {
            target,
            downtime_ms: None,
            bandwidth_bytes_per_s: None,
            streams: None,
            max_rounds: None,
            timeout_ms: None,
            on_timeout: OnTimeout::Cancel,
            throttle: Throttle::Auto,
            compress: Compress::None,
            delta_cache_bytes: None,
            verify: false,
            peer_timeout_ms: None,
            tls: false,
            tls_files: None,
            peer: None,
            insecure_plaintext: false,
        }
    }

    /// Checks every value.
    ///
    /// # Errors
    /// The first that makes no sense.
    pub fn checked(self) -> Result<Self, RequestError> {
        check_pace(self.downtime_ms, self.bandwidth_bytes_per_s)?;
        if let Some(streams) = self.streams
            && !(1..=MAX_STREAMS).contains(&streams)
        {
            return Err(RequestError::Streams(streams));
        }
        if self.max_rounds == Some(0) {
            return Err(RequestError::Rounds);
        }
        if let Some(ms) = self.timeout_ms
            && !(1..=MONTH_MS).contains(&ms)
        {
            return Err(RequestError::Timeout(ms));
        }
        if let Some(bytes) = self.delta_cache_bytes
            && bytes < MIN_DELTA_CACHE
        {
            return Err(RequestError::DeltaCache(bytes));
        }
        if let Some(ms) = self.peer_timeout_ms
            && !PEER_TIMEOUT.contains(&Duration::from_millis(ms))
        {
            return Err(RequestError::PeerTimeout(ms));
        }
        if self.verify && matches!(self.target, Target::Unix(_)) {
            return Err(RequestError::NothingToVerify);
        }
        self.check_tls()?;
        (self.target).check_plaintext(self.insecure_plaintext || self.tls)?;
        Ok(self)
    }

    fn check_tls(&self) -> Result<(), RequestError> {
        if let Some(peer) = &self.peer {
            check_peer(peer)?;
        }
        match (&self.target, self.tls) {
            (_, false) if self.tls_files.is_some() => Err(RequestError::WithoutTls("tls_files")),
            (_, false) if self.peer.is_some() => Err(RequestError::WithoutTls("peer")),
            (_, true) if self.insecure_plaintext => Err(RequestError::Both),
            (Target::Unix(_), true) => Err(RequestError::LocalTls(self.target.clone())),
            _ => Ok(()),
        }
    }

    /// The same for the engine.
    pub fn options(&self) -> Options {
        let default = Options::default();
        let millis = |ms: Option<u64>, or| ms.map_or(or, Duration::from_millis);
        Options {
            downtime_limit: millis(self.downtime_ms, default.downtime_limit),
            bandwidth: self.bandwidth_bytes_per_s.or(default.bandwidth),
            streams: self.streams.unwrap_or(default.streams),
            max_rounds: self.max_rounds.unwrap_or(default.max_rounds),
            max_total: millis(self.timeout_ms, default.max_total),
            on_timeout: match self.on_timeout {
                OnTimeout::Cancel => migration::options::OnTimeout::GiveUp,
                OnTimeout::Switch => migration::options::OnTimeout::SwitchOver,
            },
            throttle: self.throttle.into(),
            compress: self.compress.into(),
            delta_cache: self.delta_cache_bytes,
            verify: self.verify,
            peer_timeout: millis(self.peer_timeout_ms, default.peer_timeout),
            ..default
        }
    }
}

/// Another size of the guest's balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonRequest {
    /// How much of its memory the guest is to do without, in bytes; whole pages of 4 KiB count.
    pub target_bytes: u64,
}

/// A measurement of the dirty rate, as asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirtyRateRequest {
    /// How long to watch, in milliseconds, 1 to 64,000; 8,000 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longest_ms: Option<u64>,
    /// Watch one page of so many, 1 to 1,024, and tell what that makes of all; every page if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<u32>,
    /// Compare what pages hold, of a sample of one in two or fewer, one in 64 if that is left out; no log is on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub contents: bool,
}

impl DirtyRateRequest {
    /// Checks every value.
    ///
    /// # Errors
    /// The first that makes no sense.
    pub fn checked(self) -> Result<Self, RequestError> {
        match self.longest_ms {
            Some(ms) if ms == 0 || Duration::from_millis(ms) > dirty_rate::LONGEST => {
                Err(RequestError::Window(ms))
            }
            _ => match self.sample {
                Some(sample) if !(1..=dirty_rate::THINNEST).contains(&sample) => {
                    Err(RequestError::Sample(sample))
                }
                Some(1) if self.contents => Err(RequestError::Compared),
                _ => Ok(self),
            },
        }
    }

    /// One page of so many is watched.
    pub fn sample(&self) -> u32 {
        self.sample.unwrap_or(match self.contents {
            true => dirty_rate::COMPARED,
            false => 1,
        })
    }

    /// How long to watch.
    pub fn longest(&self) -> Duration {
        (self.longest_ms).map_or(dirty_rate::DEFAULT, Duration::from_millis)
    }
}

/// A prediction, as asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PredictRequest {
    /// The move that is thought of. Its compression and differences are not reckoned with.
    #[serde(rename = "move")]
    pub wanted: MigrateRequest,
    /// How long to watch the guest first, in milliseconds, 1 to 64,000; 8,000 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watch_ms: Option<u64>,
}

impl PredictRequest {
    /// Checks every value.
    ///
    /// # Errors
    /// The first that makes no sense.
    pub fn checked(self) -> Result<Self, RequestError> {
        self.watch().checked()?;
        Ok(Self {
            wanted: self.wanted.checked()?,
            ..self
        })
    }

    /// The measurement that it begins with.
    pub fn watch(&self) -> DirtyRateRequest {
        DirtyRateRequest {
            longest_ms: self.watch_ms,
            ..DirtyRateRequest::default()
        }
    }
}

fn write_target<S: Serializer>(target: &Target, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(target)
}

fn read_target<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Target, D::Error> {
    let text = String::deserialize(deserializer)?;
    Target::from_str(&text).map_err(serde::de::Error::custom)
}
