//! A small CA, and certificates of hosts by it: as much as two hosts need to know each other, and no more. Who has a CA
//! already takes its certificates; Ferry asks for nothing that is special.

use std::fmt::Write;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use ring::digest::{SHA256, digest};
use thiserror::Error;
use time::{Duration, OffsetDateTime};

/// A certificate is valid from so long before it was made: clocks differ.
const BEFORE: Duration = Duration::hours(1);

/// Why there is no certificate.
#[derive(Debug, Error)]
pub enum CertsError {
    /// The library does not make it.
    #[error("cannot make {what}")]
    Make {
        /// What.
        what: String,
        /// Why.
        source: rcgen::Error,
    },
    /// The CA's files are not what they should be.
    #[error("the CA's {what} is not one of `ferry certs ca`, or not whole: {why}")]
    Authority {
        /// Which file.
        what: &'static str,
        /// Why.
        why: String,
    },
    /// The CA itself has expired.
    #[error("the CA has expired on {}; make a new one in another folder, and new certificates for all hosts", day(*.0))]
    Expired(OffsetDateTime),
}

/// For which ends of a connection a certificate is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// Sources and destinations: a host is both in its life.
    Both,
    /// Destinations alone. Ferry does not make these for anybody but its tests.
    Destination,
}

/// A certificate that is wanted for a host.
#[derive(Debug, Clone)]
pub struct Wish {
    /// Its names: DNS names and addresses, the first for people.
    pub names: Vec<String>,
    /// From when it is valid.
    pub from: OffsetDateTime,
    /// Until when.
    pub until: OffsetDateTime,
    /// For what.
    pub ends: Ends,
}

impl Wish {
    /// A certificate for a host, for so many days from now.
    pub fn host(name: &str, more: &[String], days: u32) -> Self {
        let now = OffsetDateTime::now_utc();
        let mut names = vec![name.to_owned()];
        names.extend(more.iter().filter(|other| *other != name).cloned());
        Self {
            names,
            from: now - BEFORE,
            until: now + Duration::days(days.into()),
            ends: Ends::Both,
        }
    }
}

/// A certificate with its key.
#[derive(Debug, Clone)]
pub struct Made {
    /// The certificate, as PEM.
    pub pem: String,
    /// The key, as PEM (PKCS #8).
    pub key: String,
    /// SHA-256 of the certificate, as OpenSSL prints it.
    pub fingerprint: String,
    /// Until when it is valid.
    pub until: OffsetDateTime,
}

/// A CA that can issue.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate.
    pub certificate: Made,
}

impl Authority {
    /// A new CA, for so many days from now.
    ///
    /// # Errors
    /// There are no random numbers.
    pub fn new(days: u32) -> Result<Self, CertsError> {
        let failed = |source| CertsError::Make {
            what: "a CA".into(),
            source,
        };
        // ECDSA on P-256: small, quick, and every tool knows it.
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::default();
        // Two CAs of one name would be taken for each other, and the signature would be said to be wrong.
        let id = fingerprint(key.public_key_raw()).replace(':', "");
        let name = format!("Ferry CA {}", id.get(..8).unwrap_or_default());
        params.distinguished_name.push(DnType::CommonName, name);
        // No CA below it.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let now = OffsetDateTime::now_utc();
        params.not_before = now - BEFORE;
        params.not_after = now + Duration::days(days.into());
        let certificate = params.self_signed(&key).map_err(failed)?;
        Self::of(&certificate.pem(), &key.serialize_pem())
    }

    /// One that was made before.
    ///
    /// # Errors
    /// The files are not those of a CA.
    pub fn of(pem: &str, key: &str) -> Result<Self, CertsError> {
        let wrong = |what| move |why: String| CertsError::Authority { what, why };
        let pair = KeyPair::from_pem(key).map_err(|error| wrong("key")(error.to_string()))?;
        let wrong = wrong("certificate");
        let (_, parsed) = x509_parser::pem::parse_x509_pem(pem.as_bytes())
            .map_err(|error| wrong(error.to_string()))?;
        let found = parsed
            .parse_x509()
            .map_err(|error| wrong(error.to_string()))?;
        if found.public_key().subject_public_key.data.as_ref() != pair.public_key_raw() {
            return Err(wrong("it has another key".into()));
        }
        let until = found.validity().not_after.to_datetime();
        let fingerprint = fingerprint(&parsed.contents);
        let issuer =
            Issuer::from_ca_cert_pem(pem, pair).map_err(|error| wrong(error.to_string()))?;
        Ok(Self {
            issuer,
            certificate: Made {
                pem: pem.to_owned(),
                key: key.to_owned(),
                fingerprint,
                until,
            },
        })
    }

    /// A certificate for a host; valid no longer than the CA.
    ///
    /// # Errors
    /// A name that no certificate can have; or the CA has expired.
    pub fn issue(&self, wish: &Wish) -> Result<Made, CertsError> {
        let name = wish.names.first().map_or("", String::as_str);
        let failed = |source| CertsError::Make {
            what: format!("a certificate for {name}"),
            source,
        };
        if self.certificate.until <= OffsetDateTime::now_utc() {
            return Err(CertsError::Expired(self.certificate.until));
        }
        let mut params = CertificateParams::new(wish.names.clone()).map_err(failed)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match wish.ends {
            Ends::Both => vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
            Ends::Destination => vec![ExtendedKeyUsagePurpose::ServerAuth],
        };
        params.not_before = wish.from;
        params.not_after = wish.until.min(self.certificate.until);
        let until = params.not_after;
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Made {
            pem: certificate.pem(),
            key: key.serialize_pem(),
            fingerprint: fingerprint(certificate.der()),
            until,
        })
    }
}

/// SHA-256 in hex pairs with colons.
fn fingerprint(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in digest(&SHA256, bytes).as_ref() {
        let colon = if text.is_empty() { "" } else { ":" };
        let _ = write!(text, "{colon}{byte:02X}");
    }
    text
}

/// `2027-01-31`, in UTC.
pub fn day(time: OffsetDateTime) -> String {
    let date = time.date();
    let month = u8::from(date.month());
    format!("{:04}-{month:02}-{:02}", date.year(), date.day())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_read_back_issues_what_its_own_certificate_vouches_for() {
        let made = Authority::new(30).unwrap();
        let ca = Authority::of(&made.certificate.pem, &made.certificate.key).unwrap();
        assert_eq!(ca.certificate.fingerprint.len(), 32 * 3 - 1);
        let wish = Wish::host("a.example", &["10.0.0.1".into(), "a.example".into()], 365);
        assert_eq!(wish.names, ["a.example", "10.0.0.1"]);
        let host = ca.issue(&wish).unwrap();
        assert_eq!(host.until, ca.certificate.until);
        let (_, pem) = x509_parser::pem::parse_x509_pem(host.pem.as_bytes()).unwrap();
        let parsed = pem.parse_x509().unwrap();
        assert_eq!(fingerprint(&pem.contents), host.fingerprint);
        let names = parsed.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names.len(), 2);
        assert!(!parsed.is_ca());

        let other = Authority::new(30).unwrap();
        let mixed = Authority::of(&made.certificate.pem, &other.certificate.key);
        let text = mixed.err().unwrap().to_string();
        assert!(text.contains("another key"), "{text}");
        assert!(Authority::of("x", &made.certificate.key).is_err());
        assert!(Authority::of(&made.certificate.pem, "x").is_err());
    }
}
