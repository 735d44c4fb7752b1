//! A server's certificate chain and its private key, read from PEM files and judged as a whole.
//!
//! The configuration is checked with it, and the same judgement is passed each time the files
//! change under a running process: what `config check` accepts is what is served.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::X509Certificate;

/// A chain and the key that belongs to it.
#[derive(Debug, Clone)]
pub struct Identity {
    /// What is shown to clients, and what proves it.
    pub key: Arc<CertifiedKey>,
    /// The DNS names of the first certificate, in lower case; `*.example.org` stands for any one
    /// label before the rest (RFC 9525 §6.3).
    pub names: Vec<String>,
    /// When the first certificate ends, in seconds since 1970.
    pub not_after: i64,
    /// What clients will refuse, although it can be served.
    pub concern: Option<String>,
}

/// Why files cannot be served, by the one to blame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// The chain.
    #[error("{0}")]
    Certificate(String),
    /// The private key, or that it belongs to another chain.
    #[error("{0}")]
    Key(String),
}

impl Identity {
    /// Reads both files.
    ///
    /// # Errors
    /// A file that cannot be read or holds nothing of use; a key that is not that of the first
    /// certificate.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, Unusable> {
        let unreadable = |file: &Path, error: std::io::Error| {
            format!("expected a readable file, found {}: {error}", file.display())
        };
        let chain = std::fs::read(certificate)
            .map_err(|error| Unusable::Certificate(unreadable(certificate, error)))?;
        let secret = std::fs::read(key).map_err(|error| Unusable::Key(unreadable(key, error)))?;
        let no_chain = || {
            Unusable::Certificate(format!(
                "expected certificates in PEM (-----BEGIN CERTIFICATE-----), found {}",
                certificate.display()
            ))
        };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&chain)
            .collect::<Result<_, _>>()
            .map_err(|_| no_chain())?;
        for der in &chain {
            x509_parser::parse_x509_certificate(der).map_err(|_| no_chain())?;
        }
        let leaf = chain.first().ok_or_else(no_chain)?.clone();
        let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).map_err(|_| no_chain())?;

        let no_key = |why: &str| {
            Unusable::Key(format!("expected a private key in PEM, {why}, found {}", key.display()))
        };
        let secret = PrivateKeyDer::from_pem_slice(&secret).map_err(|_| no_key("not encrypted"))?;
        let secret =
            any_supported_type(&secret).map_err(|_| no_key("of the kind RSA, ECDSA or Ed25519"))?;
        let certified = CertifiedKey::new(chain, secret);
        match certified.keys_match() {
            // Unknown: a key that cannot say what its public half is.
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(_) => {
                return Err(Unusable::Key(format!(
                    "expected the private key of the first certificate in {}, found another one \
                     in {}",
                    certificate.display(),
                    key.display()
                )));
            }
        }
        let names = dns_names(&leaf);
        Ok(Self {
            key: Arc::new(certified),
            not_after: leaf.validity().not_after.timestamp(),
            concern: concern(&leaf, &names, certificate),
            names,
        })
    }
}

fn dns_names(leaf: &X509Certificate<'_>) -> Vec<String> {
    let alternatives = leaf.subject_alternative_name().ok().flatten();
    let names = alternatives.map(|found| found.value.general_names.as_slice()).unwrap_or_default();
    names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        })
        .collect()
}

fn concern(leaf: &X509Certificate<'_>, names: &[String], file: &Path) -> Option<String> {
    let file = file.display();
    let validity = leaf.validity();
    let now = i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX);
    if validity.not_after.timestamp() < now {
        Some(format!("the certificate in {file} expired on {}", validity.not_after))
    } else if validity.not_before.timestamp() > now {
        Some(format!("the certificate in {file} is not valid before {}", validity.not_before))
    } else if names.is_empty() {
        // An address is a name too, if a rare one.
        let named = leaf.subject_alternative_name().ok().flatten().is_some();
        (!named)
            .then(|| format!("the certificate in {file} names no host (it has no subjectAltName)"))
    } else {
        None
    }
}
