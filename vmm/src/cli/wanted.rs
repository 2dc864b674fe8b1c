//! What is wanted of a move: the flags that `ferry migrate` and `ferry predict` share.

use std::path::PathBuf;
use std::str::FromStr;

use clap::ValueEnum;

use super::error::Failure;
use super::migrate::millis;
use crate::config::Target;
use crate::control::{MigrateRequest, OnTimeout, Throttle};
use crate::tls::TlsFiles;
use crate::units::{Rate, Span};

/// How long, how much, and what if that is not enough.
#[derive(Debug, clap::Args)]
pub(super) struct Wanted {
    /// The longest time that the guest may stand still: 50ms, 1s [default: 300ms]
    #[arg(long, value_name = "TIME")]
    downtime: Option<Span>,

    /// The most that the move may take of the link: 1Gbit (bits a second), 100MB (bytes a second)
    #[arg(long, value_name = "RATE")]
    bandwidth: Option<Rate>,

    /// Connections that carry the memory, 1 to 16 [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=16))]
    streams: Option<u16>,

    /// The most rounds of copying before the guest is stopped or the move is given up [default: 100]
    #[arg(long, value_name = "N")]
    max_rounds: Option<u32>,

    /// The most time before the guest is stopped or the move is given up [default: 1h]
    #[arg(long, value_name = "TIME")]
    timeout: Option<Span>,

    /// What to do at these bounds if the downtime would still be too long
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = AtTimeout::Cancel)]
    on_timeout: AtTimeout,

    /// How to slow the guest down if it writes faster than the link carries
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Throttling::Auto)]
    throttle: Throttling,

    /// Encrypt, and have both ends prove who they are: by the certificate, key and CA in this folder (`ferry certs
    /// host`), or without DIR by those of the running VM's own --tls. The receiver needs --tls, too
    #[arg(long, value_name = "DIR", num_args = 0..=1, conflicts_with = "insecure_plaintext")]
    tls: Option<Option<Folder>>,

    /// The name that the destination's certificate has to have [default: the target's host]
    #[arg(long, value_name = "NAME", requires = "tls")]
    peer: Option<String>,

    /// Send beyond this machine although nothing is encrypted: whoever can read the network can read the guest's memory
    #[arg(long)]
    insecure_plaintext: bool,
}

/// The folder behind `--tls`. It may be left out, so a target behind a bare `--tls` lands here.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Folder(PathBuf);

impl FromStr for Folder {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<Target>() {
            Ok(_) => Err(format!(
                "{text} is the target, not a folder; write --tls DIR, or --tls behind the target"
            )),
            Err(_) => Ok(Self(text.into())),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AtTimeout {
    /// Give the move up: the guest stays where it is
    Cancel,
    /// Move all the same, with a longer downtime
    Switch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Throttling {
    /// Not at all
    Off,
    /// As QEMU does: 20 %, then 10 % more each time that it still writes too much
    AutoConverge,
    /// So that it writes just less than is sent, in short sleeps
    Sdps,
    /// Late and strongly, as far as the remaining rounds need it
    #[value(alias = "on")]
    Auto,
    /// Only vCPUs that write faster than their limit, until they write at it; needs run --dirty-tracking ring
    DirtyLimit,
}

impl From<Throttling> for Throttle {
    fn from(throttling: Throttling) -> Self {
        match throttling {
            Throttling::Off => Throttle::Off,
            Throttling::AutoConverge => Throttle::AutoConverge,
            Throttling::Sdps => Throttle::Sdps,
            Throttling::Auto => Throttle::Auto,
            Throttling::DirtyLimit => Throttle::DirtyLimit,
        }
    }
}

impl Wanted {
    /// A request for such a move, not checked yet.
    ///
    /// # Errors
    /// A time that is not whole milliseconds; or files for TLS that cannot be read.
    pub fn request(&self, target: Target) -> Result<MigrateRequest, Failure> {
        Ok(MigrateRequest {
            downtime_ms: millis("downtime", self.downtime)?,
            bandwidth_bytes_per_s: self.bandwidth.map(|Rate(rate)| rate),
            streams: self.streams,
            max_rounds: self.max_rounds,
            timeout_ms: millis("timeout", self.timeout)?,
            on_timeout: match self.on_timeout {
                AtTimeout::Cancel => OnTimeout::Cancel,
                AtTimeout::Switch => OnTimeout::Switch,
            },
            throttle: self.throttle.into(),
            tls: self.tls.is_some(),
            tls_files: (self.tls.as_ref())
                .and_then(Option::as_ref)
                .map(|Folder(dir)| TlsFiles::read(dir))
                .transpose()
                .map_err(Failure::error)?,
            peer: self.peer.clone(),
            insecure_plaintext: self.insecure_plaintext,
            ..MigrateRequest::to(target)
        })
    }
}
