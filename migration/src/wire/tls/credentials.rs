//! What a host shows and whom it trusts: its certificate, its key, the CA; and what it demands of the other end.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::{Resumption, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    CertificateError, CipherSuite, ClientConfig, CommonState, DigitallySignedStruct,
    DistinguishedName, Error, OtherError, RootCertStore, ServerConfig, SignatureScheme,
};
use webpki::EndEntityCert;

use super::words::{TlsError, in_words};
use super::{Tls, Transport};
use crate::wire::transport::Identity;

/// A certificate with its key, and the CA whose certificates are trusted.
pub struct Credentials {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
    pub(super) provider: Arc<CryptoProvider>,
}

/// The key is nobody's business.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads PEM texts: the CA's certificate, this host's (with intermediate ones behind it, if any), and its key.
    ///
    /// # Errors
    /// Which of them is of no use, and why.
    pub fn from_pem(ca: &[u8], certificate: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for root in certificates(ca, "the CA's certificate")? {
            roots.add(root).map_err(|error| TlsError::Unusable {
                what: "the CA's certificate",
                why: in_words(&error),
            })?;
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| TlsError::Unusable {
            what: "the host's key",
            why: error.to_string(),
        })?;
        Ok(Self {
            chain: certificates(certificate, "the host's certificate")?,
            key,
            roots: Arc::new(roots),
            provider: Arc::new(provider()),
        })
    }

    /// Why the other end will not take the certificate, as far as that can be told from here: its CA would, today.
    pub fn doubt(&self) -> Option<String> {
        let (first, rest) = self.chain.split_first()?;
        let verifier = self.client_verifier().ok()?;
        let checked = verifier.verify_client_cert(first, rest, UnixTime::now());
        checked.err().map(|error| in_words(&error))
    }

    /// As a source: the destination has to have that name, in a certificate of the CA.
    ///
    /// # Errors
    /// The name is none, or key and certificate do not belong together.
    pub fn demand_name(&self, name: &str) -> Result<Demand, TlsError> {
        let verifier = WebPkiServerVerifier::builder_with_provider(
            Arc::clone(&self.roots),
            Arc::clone(&self.provider),
        );
        let verifier = verifier.build().map_err(|error| TlsError::Unusable {
            what: "the CA's certificate",
            why: error.to_string(),
        })?;
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])?
            .with_webpki_verifier(verifier);
        let mut config = builder.with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        config.resumption = Resumption::disabled();
        // It would only tell who listens to the network whom we look for.
        config.enable_sni = false;
        Ok(Demand(Side::Source(Arc::new(config), peer_name(name)?)))
    }

    /// As a destination: the source has to have one of the names, or any if none is given, in a certificate of the CA.
    ///
    /// # Errors
    /// As [`demand_name`](Self::demand_name).
    pub fn demand_any_of(&self, names: &[String]) -> Result<Demand, TlsError> {
        let verifier = Named {
            inner: self.client_verifier()?,
            names: (names.iter().map(|name| peer_name(name))).collect::<Result<_, _>>()?,
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::new(verifier));
        let mut config = builder.with_single_cert(self.chain.clone(), self.key.clone_key())?;
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Demand(Side::Destination(Arc::new(config))))
    }

    fn client_verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(
            Arc::clone(&self.roots),
            Arc::clone(&self.provider),
        );
        verifier.build().map_err(|error| TlsError::Unusable {
            what: "the CA's certificate",
            why: error.to_string(),
        })
    }
}

/// What the other end has to prove before a byte is exchanged with it.
#[derive(Debug, Clone)]
pub struct Demand(Side);

#[derive(Debug, Clone)]
enum Side {
    Source(Arc<ClientConfig>, ServerName<'static>),
    Destination(Arc<ServerConfig>),
}

impl Demand {
    /// Puts TLS over a stream. The handshake happens when a channel greets the other end.
    ///
    /// # Errors
    /// There are no random numbers.
    pub fn secure(&self, inner: Box<dyn Transport>) -> io::Result<Box<dyn Transport>> {
        Ok(Box::new(match &self.0 {
            Side::Source(config, name) => Tls::client(inner, config, name)?,
            Side::Destination(config) => Tls::server(inner, config)?,
        }))
    }
}

/// A name that a certificate can be made for: a DNS name or an address.
///
/// # Errors
/// It is neither.
pub fn peer_name(name: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(name.to_owned()).map_err(|_| TlsError::Name(name.to_owned()))
}

fn certificates(pem: &[u8], what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let unusable = |why| TlsError::Unusable { what, why };
    let found = found.map_err(|error| unusable(error.to_string()))?;
    match found.is_empty() {
        true => Err(unusable("there is none in it".into())),
        false => Ok(found),
    }
}

/// Ring's suites, the fastest first. AES-GCM runs on instructions of its own where the processor has them (every x86-64
/// server since 2010), several times as fast as ChaCha20 there; 128 bits are enough, and a fifth faster than 256
/// (docs/performance.md).
fn provider() -> CryptoProvider {
    let mut provider = ring::default_provider();
    let aes = is_x86_feature_detected!("aes") && is_x86_feature_detected!("pclmulqdq");
    provider
        .cipher_suites
        .sort_by_key(|suite| match suite.suite() {
            CipherSuite::TLS13_AES_128_GCM_SHA256 => u8::from(!aes),
            CipherSuite::TLS13_AES_256_GCM_SHA384 => 1 + u8::from(!aes),
            _ => 2 * u8::from(aes),
        });
    provider
}

/// Who the other end has proved to be.
pub(super) fn identity(session: &CommonState) -> Option<Identity> {
    let certificate = session.peer_certificates()?.first()?;
    Some(Identity {
        name: shown_name(certificate),
        certificate: certificate.to_vec(),
    })
}

/// The first name in a certificate.
fn shown_name(certificate: &CertificateDer<'_>) -> String {
    let parsed = EndEntityCert::try_from(certificate).ok();
    let name = parsed.and_then(|parsed| parsed.valid_dns_names().next().map(str::to_owned));
    name.unwrap_or_else(|| "a host without a name".into())
}

/// Takes the CA's certificates for sources, and of these the ones with the right names.
#[derive(Debug)]
struct Named {
    inner: Arc<dyn ClientCertVerifier>,
    /// Empty: all of them.
    names: Vec<ServerName<'static>>,
}

/// A certificate of the right CA for somebody else.
#[derive(Debug)]
pub(super) struct WrongName(String);

impl fmt::Display for WrongName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongName {}

impl ClientCertVerifier for Named {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Who connects knows its CA; who does not need not learn ours.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self
            .inner
            .verify_client_cert(end_entity, intermediates, now)?;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let named = |name| verify_server_name(&parsed, name).is_ok();
        if self.names.is_empty() || self.names.iter().any(named) {
            return Ok(verified);
        }
        let names: Vec<_> = self.names.iter().map(|name| name.to_str()).collect();
        let wrong = WrongName(format!(
            "its certificate is for {}, and only {} may connect here (--peer)",
            shown_name(end_entity),
            names.join(", ")
        ));
        let other = OtherError(Arc::new(wrong));
        Err(Error::InvalidCertificate(CertificateError::Other(other)))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
