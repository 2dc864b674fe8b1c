//! What went wrong with TLS, in words that say what to do. A person at night knows neither alerts nor their numbers.

use std::io;
use std::time::Duration;

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};
use thiserror::Error;

/// What went wrong with TLS.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file is of no use.
    #[error("{what} cannot be used: {why}")]
    Unusable {
        /// Which.
        what: &'static str,
        /// Why.
        why: String,
    },
    /// No certificate has such a name.
    #[error("{0:?} is no name that a certificate can have: take a host name or an address")]
    Name(String),
    /// The source does not encrypt.
    #[error(
        "it speaks Ferry without TLS, and this receiver takes guests over TLS alone: give `ferry migrate` there --tls DIR"
    )]
    PlainSource,
    /// The destination does not encrypt.
    #[error(
        "it speaks Ferry without TLS: start `ferry receive` there with --tls DIR, or, on a network that is yours alone, \
         move with --insecure-plaintext"
    )]
    PlainReceiver,
    /// A further stream has another certificate than the first.
    #[error(
        "another host answers on a further stream than on the first: all streams of a move have to show one certificate; \
         is the address shared?"
    )]
    OtherHost,
    /// The connection ended without the peer's goodbye.
    #[error("the connection was cut; check what is printed there, and the network between")]
    Cut,
    /// The session failed. The library's own words say less, so it is no cause of its own.
    #[error("{}", in_words(.0))]
    Session(Error),
}

impl From<Error> for TlsError {
    fn from(error: Error) -> Self {
        Self::Session(error)
    }
}

impl From<TlsError> for io::Error {
    fn from(error: TlsError) -> Self {
        let kind = match error {
            TlsError::Cut => io::ErrorKind::UnexpectedEof,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

const ANEW: &str = "make it a new one with `ferry certs host`";

/// What an error of rustls means, from this end.
pub(super) fn in_words(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(error) => of_certificate(error),
        Error::AlertReceived(alert) => of_alert(*alert),
        Error::NoCertificatesPresented => {
            format!("it showed no certificate; {ANEW}, and give it --tls DIR")
        }
        Error::InconsistentKeys(_) => {
            "the host's certificate and its key do not belong together: copy both again, or make new ones with `ferry certs host`"
                .into()
        }
        Error::PeerIncompatible(PeerIncompatible::Tls13RequiredForQuic)
        | Error::PeerIncompatible(PeerIncompatible::SupportedVersionsExtensionRequired) => {
            "it does not speak TLS 1.3, and nothing older is spoken here".into()
        }
        Error::InvalidMessage(_) => {
            "what it sent is not TLS; check the address, and that `ferry` runs there with --tls DIR".into()
        }
        Error::DecryptError => "what came was changed on the way".into(),
        error => error.to_string(),
    }
}

/// Why this end refuses the other's certificate.
fn of_certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::ExpiredContext { time, not_after } => format!(
            "its certificate has expired {} ago; {ANEW}",
            between(*not_after, *time)
        ),
        CertificateError::Expired => format!("its certificate has expired; {ANEW}"),
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "its certificate is not valid yet, for another {}; check the clocks of both hosts",
            between(*time, *not_before)
        ),
        CertificateError::NotValidYet => {
            "its certificate is not valid yet; check the clocks of both hosts".into()
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
            "its certificate is not of the CA that is trusted here (ca.pem); {ANEW} by that CA"
        ),
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => format!(
            "its certificate is for {}, not for {}; give the name that it should have with --peer, or {ANEW} that has this one (--san)",
            names(presented),
            expected.to_str()
        ),
        CertificateError::NotValidForName => {
            format!("its certificate is for another name; give that with --peer, or {ANEW}")
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            format!(
                "its certificate is not made for this end of a connection; {ANEW}, which serves for both"
            )
        }
        CertificateError::Other(other) => other.to_string(),
        error => format!("its certificate is no good: {error:?}"),
    }
}

/// What the other end says against this one.
fn of_alert(alert: AlertDescription) -> String {
    let why = match alert {
        AlertDescription::CertificateExpired => {
            "this host's certificate has expired, or is not valid yet; look at its dates and the clocks of both hosts"
        }
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "this host's certificate is not of the CA that is trusted there; both ends need certificates of one CA"
        }
        AlertDescription::CertificateRequired => "it wants a certificate, and was shown none",
        AlertDescription::UnsupportedCertificate => {
            "this host's certificate is not made for this end of a connection; make one with `ferry certs host`, which serves for both"
        }
        AlertDescription::BadCertificate => {
            "this host's certificate is not for the name that it asks for; see its line there"
        }
        AlertDescription::CertificateUnknown | AlertDescription::AccessDenied => {
            "this host's name is none of those that may connect there (its --peer)"
        }
        AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure => {
            "it speaks no TLS 1.3, or no cipher of it that this end does"
        }
        _ => "see its line there",
    };
    format!("it ended the connection: {why} (TLS alert {alert:?})")
}

fn names(presented: &[String]) -> String {
    match presented.is_empty() {
        true => "no name at all".into(),
        false => {
            let names: Vec<_> = presented.iter().map(|name| bare(name)).collect();
            names.join(", ")
        }
    }
}

/// A name out of `DnsName("beta")`, which is how it is presented.
fn bare(name: &str) -> &str {
    let inner = name
        .split_once('(')
        .and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.unwrap_or(name).trim_matches('"')
}

/// A time for people: one unit is enough.
fn between(from: UnixTime, to: UnixTime) -> String {
    let time = Duration::from_secs(to.as_secs().saturating_sub(from.as_secs()));
    match time.as_secs() {
        seconds @ 0..=119 => format!("{seconds} s"),
        seconds @ 120..=7_199 => format!("{} min", seconds / 60),
        seconds @ 7_200..=172_799 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_be_turned_away_says_what_to_do() {
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let certificate = |error| Error::InvalidCertificate(error);
        let table = [
            (
                certificate(CertificateError::ExpiredContext {
                    time: at(1_000_000),
                    not_after: at(1_000_000 - 3 * 86_400),
                }),
                ["expired 3 days ago", "ferry certs host"],
            ),
            (
                certificate(CertificateError::NotValidYetContext {
                    time: at(1_000),
                    not_before: at(1_000 + 7_200),
                }),
                ["not valid yet, for another 2 h", "clocks"],
            ),
            (
                certificate(CertificateError::UnknownIssuer),
                ["not of the CA", "ca.pem"],
            ),
            (Error::NoCertificatesPresented, ["no certificate", "--tls"]),
            (
                Error::AlertReceived(AlertDescription::CertificateRequired),
                ["shown none", "CertificateRequired"],
            ),
            (
                Error::AlertReceived(AlertDescription::CertificateExpired),
                ["expired", "clocks"],
            ),
        ];
        for (error, words) in table {
            let text = in_words(&error);
            for word in words {
                assert!(text.contains(word), "{text}");
            }
        }
        assert_eq!(
            names(&["DnsName(\"beta\")".into(), "IpAddress(10.0.0.1)".into()]),
            "beta, 10.0.0.1"
        );
        assert_eq!(names(&[]), "no name at all");
        assert_eq!(between(at(5), at(3)), "0 s");
    }
}
