//! TLS towards the server: which certificates are believed, and what is said about the others.
//!
//! The name that is checked is always the XMPP domain, never the SRV target (RFC 6120 §13.7.2): DNS
//! is not signed, so whoever can forge the answer could otherwise choose the name to check. Configs
//! are built once per distinct (trust, client certificate) and shared by all connections.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore,
    SignatureScheme,
};
use sha2::{Digest, Sha256};
use tokio_rustls::TlsConnector;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::SettingsError;
use super::fault::Reason;
use crate::io::Io;
use crate::proto::domain::Domain;

/// Which server certificates are believed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Trust {
    /// Those under the system's root certificates.
    System,
    /// Those under the certificates of this PEM file, and no others.
    CaFile(PathBuf),
    /// Those whose key has one of these SHA-256 sums of the SubjectPublicKeyInfo. Names, dates and
    /// issuers do not matter then: the key is what was promised.
    Pins(Vec<[u8; 32]>),
    /// Any certificate whatsoever. Whoever sits on the way can read and change everything.
    Insecure,
}

/// The certificate we show, if the server asks for one (UP-16).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClientCertificate {
    /// PEM file: the certificate, then its chain.
    pub chain: PathBuf,
    /// PEM file: its private key.
    pub key: PathBuf,
}

/// What a route needs to start TLS. Clones share.
#[derive(Clone)]
pub(crate) struct Tls {
    starttls: Arc<ClientConfig>,
    direct: Arc<ClientConfig>,
}

impl Tls {
    /// Takes `io` through a handshake as client of `domain`. UP-15: SNI is the domain; the ALPN
    /// `xmpp-client` goes out in direct TLS alone.
    pub(crate) async fn connect(
        &self,
        io: Io,
        domain: &Domain,
        direct: bool,
    ) -> Result<Io, Reason> {
        let Ok(name) = ServerName::try_from(domain.ascii().into_owned()) else {
            return Err(Reason::TlsUnusable("no certificate can be issued for this domain name"));
        };
        let config = if direct { &self.direct } else { &self.starttls };
        match TlsConnector::from(Arc::clone(config)).connect(name, io).await {
            Ok(stream) => Ok(Io::Tls(Box::new(stream.into()))),
            Err(error) => Err(explain(error)),
        }
    }
}

/// Builds every distinct config once.
pub(crate) struct Factory {
    provider: Arc<CryptoProvider>,
    built: HashMap<(Trust, Option<ClientCertificate>), Option<Tls>>,
}

impl Factory {
    pub(crate) fn new() -> Self {
        Self { provider: Arc::new(rustls::crypto::ring::default_provider()), built: HashMap::new() }
    }

    /// `None` where the system has no root certificates: then only connections that need TLS fail.
    /// Errors: a file that cannot be read or holds nothing of use.
    pub(crate) fn build(
        &mut self,
        trust: &Trust,
        certificate: Option<&ClientCertificate>,
    ) -> Result<Option<Tls>, SettingsError> {
        let key = (trust.clone(), certificate.cloned());
        if let Some(tls) = self.built.get(&key) {
            return Ok(tls.clone());
        }
        let tls = match self.verifier(trust)? {
            Some(verifier) => {
                let starttls = self.config(verifier, certificate)?;
                let mut direct = starttls.clone();
                direct.alpn_protocols = vec![b"xmpp-client".to_vec()];
                Some(Tls { starttls: Arc::new(starttls), direct: Arc::new(direct) })
            }
            None => None,
        };
        self.built.insert(key, tls.clone());
        Ok(tls)
    }

    fn verifier(
        &self,
        trust: &Trust,
    ) -> Result<Option<Arc<dyn ServerCertVerifier>>, SettingsError> {
        let provider = Arc::clone(&self.provider);
        Ok(Some(match trust {
            Trust::System => {
                let found = rustls_native_certs::load_native_certs();
                for error in &found.errors {
                    tracing::warn!(%error, "system_roots_incomplete");
                }
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(found.certs);
                if roots.is_empty() {
                    tracing::warn!("system_roots_missing");
                    return Ok(None);
                }
                Arc::new(Issued::new(roots, provider)?)
            }
            Trust::CaFile(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in read_certificates(path)? {
                    roots.add(certificate).map_err(|e| SettingsError::file(path, e))?;
                }
                Arc::new(Issued::new(roots, provider)?)
            }
            Trust::Pins(pins) => Arc::new(Pinned { pins: pins.clone(), provider }),
            Trust::Insecure => Arc::new(Anything { provider }),
        }))
    }

    fn config(
        &self,
        verifier: Arc<dyn ServerCertVerifier>,
        certificate: Option<&ClientCertificate>,
    ) -> Result<ClientConfig, SettingsError> {
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(SettingsError::tls)?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match certificate {
            None => builder.with_no_client_auth(),
            Some(files) => {
                let chain = read_certificates(&files.chain)?;
                let key = PrivateKeyDer::from_pem_file(&files.key)
                    .map_err(|e| SettingsError::file(&files.key, e))?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|e| SettingsError::file(&files.chain, e))?
            }
        };
        // UP-15; XEP-0388: replayed early data could repeat a login.
        config.enable_early_data = false;
        Ok(config)
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, SettingsError> {
    let certificates = CertificateDer::pem_file_iter(path)
        .map_err(|e| SettingsError::file(path, e))?
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| SettingsError::file(path, e))?;
    if certificates.is_empty() {
        return Err(SettingsError::file(path, "it holds no certificate"));
    }
    Ok(certificates)
}

/// What is wrong with a server's certificate, in words an operator can act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFault {
    /// What is wrong.
    pub problem: CertificateProblem,
    /// SHA-256 of the leaf's SubjectPublicKeyInfo: what would have to be pinned to trust it.
    pub spki_sha256: [u8; 32],
}

/// The ways a certificate can be wrong, told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CertificateProblem {
    /// Its last day is over: when.
    Expired(String),
    /// Its first day is to come: when.
    NotYetValid(String),
    /// It is its own issuer.
    SelfSigned,
    /// No trusted root stands behind this issuer.
    UnknownIssuer(String),
    /// An issuer of this name is trusted, but with another key.
    WrongIssuerKey(String),
    /// It is for other names: the wanted one, and those in it.
    WrongName {
        /// The XMPP domain.
        wanted: String,
        /// The certificate's DNS names and addresses.
        presented: Vec<String>,
    },
    /// Its key is not a pinned one.
    NotPinned,
    /// Anything else, in the TLS library's words.
    Other(String),
}

impl fmt::Display for CertificateFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pin = base64::engine::general_purpose::STANDARD.encode(self.spki_sha256);
        match &self.problem {
            CertificateProblem::Expired(when) => {
                write!(f, "the server's certificate expired on {when}")
            }
            CertificateProblem::NotYetValid(when) => {
                write!(f, "the server's certificate is not yet valid: it begins on {when}")
            }
            CertificateProblem::SelfSigned => write!(
                f,
                "the server's certificate is self-signed (to trust its key: pin_sha256 = [\"{pin}\"])"
            ),
            CertificateProblem::UnknownIssuer(issuer) => write!(
                f,
                "the server's certificate has an unknown issuer, {issuer} (trust that issuer with \
                 ca_file, or its key with pin_sha256 = [\"{pin}\"])"
            ),
            CertificateProblem::WrongIssuerKey(issuer) => write!(
                f,
                "the server's certificate is signed with another key than that of the trusted \
                 {issuer} (a CA of the same name, or one that was renewed)"
            ),
            CertificateProblem::WrongName { wanted, presented } if presented.is_empty() => {
                write!(f, "the server's certificate has the wrong name: not {wanted}, but none")
            }
            CertificateProblem::WrongName { wanted, presented } => write!(
                f,
                "the server's certificate has the wrong name: not {wanted}, but {}",
                presented.join(", ")
            ),
            CertificateProblem::NotPinned => {
                write!(f, "the server's key is not a pinned one: its SPKI SHA-256 is {pin}")
            }
            CertificateProblem::Other(text) => write!(f, "the server's certificate: {text}"),
        }
    }
}

impl std::error::Error for CertificateFault {}

/// Certificates under known roots, for the right name, on the right day; with a diagnosis if not.
#[derive(Debug)]
struct Issued {
    inner: Arc<WebPkiServerVerifier>,
}

impl Issued {
    fn new(roots: RootCertStore, provider: Arc<CryptoProvider>) -> Result<Self, SettingsError> {
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(SettingsError::tls)?;
        Ok(Self { inner })
    }
}

impl ServerCertVerifier for Issued {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.inner.verify_server_cert(leaf, chain, name, ocsp, now).map_err(|error| match error {
            rustls::Error::InvalidCertificate(error) => diagnose(leaf, name, error),
            other => other,
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Keys that were promised. The handshake's signature is still checked: a certificate is public,
/// only its key proves who sent it.
#[derive(Debug)]
struct Pinned {
    pins: Vec<[u8; 32]>,
    provider: Arc<CryptoProvider>,
}

/// Anything. The handshake's signature is still checked, for the little it is worth.
#[derive(Debug)]
struct Anything {
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    fn check(&self, leaf: &CertificateDer<'_>) -> Result<ServerCertVerified, rustls::Error> {
        let Some(spki_sha256) = spki_sha256(leaf) else {
            return Err(CertificateError::BadEncoding.into());
        };
        if self.pins.contains(&spki_sha256) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(carry(CertificateFault { problem: CertificateProblem::NotPinned, spki_sha256 }))
    }
}

impl Anything {
    fn check(&self, _leaf: &CertificateDer<'_>) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
}

macro_rules! verifies_signatures {
    ($verifier:ty) => {
        impl ServerCertVerifier for $verifier {
            fn verify_server_cert(
                &self,
                leaf: &CertificateDer<'_>,
                _chain: &[CertificateDer<'_>],
                _name: &ServerName<'_>,
                _ocsp: &[u8],
                _now: UnixTime,
            ) -> Result<ServerCertVerified, rustls::Error> {
                self.check(leaf)
            }

            fn verify_tls12_signature(
                &self,
                message: &[u8],
                leaf: &CertificateDer<'_>,
                signature: &DigitallySignedStruct,
            ) -> Result<HandshakeSignatureValid, rustls::Error> {
                let algorithms = &self.provider.signature_verification_algorithms;
                verify_tls12_signature(message, leaf, signature, algorithms)
            }

            fn verify_tls13_signature(
                &self,
                message: &[u8],
                leaf: &CertificateDer<'_>,
                signature: &DigitallySignedStruct,
            ) -> Result<HandshakeSignatureValid, rustls::Error> {
                let algorithms = &self.provider.signature_verification_algorithms;
                verify_tls13_signature(message, leaf, signature, algorithms)
            }

            fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
                self.provider.signature_verification_algorithms.supported_schemes()
            }
        }
    };
}

verifies_signatures!(Pinned);
verifies_signatures!(Anything);

/// SHA-256 of the SubjectPublicKeyInfo of a certificate; `None` if it is not one.
fn spki_sha256(leaf: &CertificateDer<'_>) -> Option<[u8; 32]> {
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    Some(Sha256::digest(certificate.public_key().raw).into())
}

/// The library names the first rule that failed; an operator wants to know what to do. So the leaf
/// is looked at again: a self-signed one shows as "unknown issuer" or as "CA used as end entity".
fn diagnose(
    leaf: &CertificateDer<'_>,
    name: &ServerName<'_>,
    error: CertificateError,
) -> rustls::Error {
    let Ok((_, certificate)) = X509Certificate::from_der(leaf) else {
        return error.into();
    };
    let self_signed = certificate.subject().as_raw() == certificate.issuer().as_raw();
    let problem = match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            CertificateProblem::Expired(certificate.validity().not_after.to_string())
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            CertificateProblem::NotYetValid(certificate.validity().not_before.to_string())
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            CertificateProblem::WrongName {
                wanted: name.to_str().into_owned(),
                presented: names(&certificate),
            }
        }
        CertificateError::UnknownIssuer
        | CertificateError::BadSignature
        | CertificateError::Other(_)
            if self_signed =>
        {
            CertificateProblem::SelfSigned
        }
        CertificateError::UnknownIssuer => {
            CertificateProblem::UnknownIssuer(printable(&certificate.issuer().to_string()))
        }
        CertificateError::BadSignature => {
            CertificateProblem::WrongIssuerKey(printable(&certificate.issuer().to_string()))
        }
        other => CertificateProblem::Other(printable(&other.to_string())),
    };
    let spki_sha256 = Sha256::digest(certificate.public_key().raw).into();
    carry(CertificateFault { problem, spki_sha256 })
}

/// The DNS names and addresses of a certificate, at most eight of them.
fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let mut names: Vec<String> = extension
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(printable(name)),
            GeneralName::IPAddress(bytes) => match (<[u8; 4]>::try_from(*bytes), *bytes) {
                (Ok(v4), _) => Some(std::net::Ipv4Addr::from(v4).to_string()),
                (_, v6) => {
                    Some(std::net::Ipv6Addr::from(<[u8; 16]>::try_from(v6).ok()?).to_string())
                }
            },
            _ => None,
        })
        .collect();
    let more = names.len().saturating_sub(MOST_NAMES);
    if more > 0 {
        names.truncate(MOST_NAMES);
        names.push(format!("and {more} more"));
    }
    names
}

/// Text from a certificate, fit for a log line: one line, no escapes of a terminal, not too long.
fn printable(text: &str) -> String {
    text.chars().take(MOST_CHARS).flat_map(char::escape_debug).collect()
}

/// Takes a diagnosis through the TLS library; [`explain`] takes it out again.
fn carry(fault: CertificateFault) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(fault))).into()
}

fn explain(error: std::io::Error) -> Reason {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(other)))) => {
            match other.downcast_ref::<CertificateFault>() {
                Some(fault) => Reason::Certificate(Box::new(fault.clone())),
                None => Reason::Handshake(other.to_string()),
            }
        }
        Some(error) => Reason::Handshake(printable(&error.to_string())),
        None if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Reason::Closed("we negotiated TLS")
        }
        None => Reason::Io(error),
    }
}

const MOST_NAMES: usize = 8;
const MOST_CHARS: usize = 200;
