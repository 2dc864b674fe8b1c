//! Where guests go to and come from, and by what name the other end has to prove itself.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use super::ConfigError;

/// Where a guest goes to, or is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Host (a name or an address, IPv6 without brackets) and port.
    Tcp(String, u16),
    /// A Unix socket.
    Unix(PathBuf),
}

/// Where a receiver waits for guests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// At an address.
    At(Target),
    /// On the socket that a service manager has passed: for one guest, and not beyond its streams.
    Passed,
}

impl Target {
    /// Whether what is sent there never leaves this machine.
    pub fn is_local(&self) -> bool {
        match self {
            Target::Unix(_) => true,
            // RFC 6761, 6.3: localhost is loopback, whatever a name server says. Any other name may lead anywhere.
            Target::Tcp(host, _) => {
                host.eq_ignore_ascii_case("localhost")
                    || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
            }
        }
    }

    /// Refuses to go beyond this machine without encryption, unless that was asked for.
    ///
    /// # Errors
    /// [`ConfigError::Plaintext`].
    pub fn check_plaintext(&self, insecure_plaintext: bool) -> Result<(), ConfigError> {
        if insecure_plaintext || self.is_local() {
            Ok(())
        } else {
            Err(ConfigError::Plaintext {
                target: self.clone(),
            })
        }
    }
}

impl FromStr for Target {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let refused = || ConfigError::Target(text.to_owned());
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() && !path.contains('\0') => {
                Ok(Target::Unix(PathBuf::from(path)))
            }
            Some(("tcp", rest)) => {
                let (host, port) = rest.rsplit_once(':').ok_or_else(refused)?;
                let port = parse_port(port).ok_or_else(refused)?;
                let host = match host.strip_prefix('[') {
                    Some(inner) => {
                        let inner = inner.strip_suffix(']').ok_or_else(refused)?;
                        inner.parse::<std::net::Ipv6Addr>().map_err(|_| refused())?;
                        inner
                    }
                    None => host,
                };
                let bare_ipv6 = host.contains(':') && !rest.starts_with('[');
                let odd = |c: char| c.is_whitespace() || c.is_control() || c == '/';
                if host.is_empty() || host.len() > 253 || bare_ipv6 || host.contains(odd) {
                    return Err(refused());
                }
                Ok(Target::Tcp(host.to_owned(), port))
            }
            _ => Err(refused()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Tcp(host, port) if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Target::Tcp(host, port) => write!(f, "tcp:{host}:{port}"),
            Target::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Digits alone: `u16::from_str` would take a plus sign, too. Port 0 (any free one) is for listeners.
fn parse_port(text: &str) -> Option<u16> {
    (text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
}

impl FromStr for Listen {
    type Err = ConfigError;

    /// A [`Target`], or `systemd`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text {
            "systemd" => Ok(Self::Passed),
            _ => text.parse().map(Self::At),
        }
    }
}

/// A name that a certificate can have.
pub(crate) fn check_peer(name: &str) -> Result<(), ConfigError> {
    match migration::wire::tls::peer_name(name) {
        Ok(_) => Ok(()),
        Err(_) => Err(ConfigError::Peer(name.to_owned())),
    }
}
