//! A certificate authority of the tests' own, and servers that show its certificates or worse ones.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest, Sha256};

/// Issues certificates; its root is in a PEM file of its own until it is dropped.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    file: PathBuf,
}

/// A certificate and its key.
pub(crate) struct Identity {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub(crate) pin: [u8; 32],
    chain_pem: String,
    key_pem: String,
}

/// When a certificate is valid.
#[derive(Clone, Copy)]
pub(crate) enum Validity {
    Now,
    Past,
    Future,
    /// From long ago to the first day of this year.
    Until(i32),
}

impl Ca {
    pub(crate) fn new() -> Self {
        Self::named("Bosphorus test authority")
    }

    pub(crate) fn named(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = named(name);
        let certificate = params.self_signed(&key).unwrap();
        let file = temporary_file("ca.pem", &certificate.pem());
        Self { root: certificate.der().clone(), issuer: Issuer::new(params, key), file }
    }

    /// PEM file of the root.
    pub(crate) fn file(&self) -> PathBuf {
        self.file.clone()
    }

    pub(crate) fn issue(&self, names: &[&str], validity: Validity) -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate = leaf(names, validity).signed_by(&key, &self.issuer).unwrap();
        Identity::new(&certificate, &key)
    }

    /// A server which lets in only clients of this authority.
    pub(crate) fn mutual(&self, identity: &Identity) -> Arc<ServerConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(identity.chain.clone(), identity.key.clone_key())
            .unwrap();
        Arc::new(config)
    }
}

impl Drop for Ca {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

impl Identity {
    pub(crate) fn self_signed(names: &[&str]) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = leaf(names, Validity::Now);
        // What servers install themselves with is its own authority.
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Self::new(&certificate, &key)
    }

    fn new(certificate: &rcgen::Certificate, key: &KeyPair) -> Self {
        use rcgen::PublicKeyData as _;
        Self {
            chain: vec![certificate.der().clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            pin: Sha256::digest(key.subject_public_key_info()).into(),
            chain_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        }
    }

    /// A TLS server that shows this certificate; `versions` empty means all.
    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        self.server_with(&[b"xmpp-client"], rustls::ALL_VERSIONS)
    }

    pub(crate) fn server_with(
        &self,
        alpn: &[&[u8]],
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Arc::new(config)
    }

    /// The chain and the key as PEM texts.
    pub(crate) fn pem(&self) -> [&str; 2] {
        [&self.chain_pem, &self.key_pem]
    }

    /// Writes certificate and key to PEM files. The caller removes them.
    pub(crate) fn files(&self) -> (PathBuf, PathBuf) {
        (
            temporary_file("certificate.pem", &self.chain_pem),
            temporary_file("key.pem", &self.key_pem),
        )
    }
}

fn leaf(names: &[&str], validity: Validity) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names.clone()).unwrap();
    params.distinguished_name = named(names.first().map_or("nobody", String::as_str));
    (params.not_before, params.not_after) = match validity {
        Validity::Now => (date_time_ymd(2020, 1, 1), date_time_ymd(2120, 1, 1)),
        Validity::Past => (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1)),
        Validity::Future => (date_time_ymd(2119, 1, 1), date_time_ymd(2120, 1, 1)),
        Validity::Until(year) => (date_time_ymd(2020, 1, 1), date_time_ymd(year, 1, 1)),
    };
    params
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// A file with a name no other test has.
pub(crate) fn temporary_file(suffix: &str, contents: &str) -> PathBuf {
    let path = temporary_path(suffix);
    std::fs::write(&path, contents).unwrap();
    path
}

/// A path where nothing is yet.
pub(crate) fn temporary_path(suffix: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("bosphorus-{}-{number}-{suffix}", std::process::id()))
}
