//! TLS towards clients: which certificate is shown, and how a new one takes its place.
//!
//! One rustls configuration serves every listener and worker. Its certificates are a table that is
//! replaced as a whole, so a handshake sees the old ones or the new ones. Connections that are open
//! keep what they have: a new certificate ends no session.
//!
//! Files are read again when they change: their modification time, size and inode are looked at
//! every `LOOK`, through symbolic links, since that is how certbot and Kubernetes replace them. A
//! chain and its key are two files that change one after the other, so a change is taken once
//! nothing has moved between two looks. What cannot be used leaves the old certificate in place.

use std::collections::HashMap;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use rustls::crypto::ring;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, ServerConfig};
use rustls::sign::CertifiedKey;
use rustls::{ProtocolVersion, SupportedProtocolVersion, version};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use crate::config::identity::{Identity, Unusable};
use crate::io::Io;
use crate::metrics::{Handshake, Limit, Metrics};

/// How often files are looked at: a renewal is not urgent, a look costs two system calls.
const LOOK: Duration = Duration::from_secs(2);

/// Bytes of records that wait for a client's socket: one record.
const SEND_BYTES: usize = 16 * 1024;

/// What TLS needs of the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// PEM files: each chain with its key. The first pair is for clients that name no other.
    pub certificates: Vec<(PathBuf, PathBuf)>,
    /// TLS 1.2 is refused.
    pub only_1_3: bool,
    /// From the connection to the end of the handshake (SEC-18).
    pub handshake_timeout: Duration,
}

/// What a client and we agreed to speak over TLS (ALPN, RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `http/1.1`, and what names nothing.
    Http1,
    /// `h2`.
    Http2,
}

/// TLS, ready to accept.
pub struct Tls {
    acceptor: TlsAcceptor,
    certificates: Arc<Certificates>,
    files: Mutex<Vec<Files>>,
    handshake_timeout: Duration,
    metrics: Arc<Metrics>,
}

/// One of the certificates, as it is on disk and in use.
#[derive(Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    /// What was read last, if to no avail.
    taken: Stamp,
    /// At the last look.
    seen: Stamp,
    identity: Identity,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Reads all certificates.
    ///
    /// # Errors
    /// Files of no use, or a system without randomness.
    pub fn new(settings: &Settings, metrics: &Arc<Metrics>) -> Result<Arc<Self>, TlsError> {
        let loaded = Loaded::read(settings)?;
        let certificates = Arc::new(Certificates::default());
        let both: &[&SupportedProtocolVersion] = &[&version::TLS13, &version::TLS12];
        let versions = if settings.only_1_3 { &both[..1] } else { both };
        let provider = Arc::new(ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::<Certificates>::clone(&certificates));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Resumption by tickets alone: what a client may resume is kept by the client.
        config.ticketer = ring::Ticketer::new()?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        // A repeated request could repeat a login (XEP-0388 §7; RFC 8446 §8).
        config.max_early_data_size = 0;
        let tls = Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            certificates,
            handshake_timeout: settings.handshake_timeout,
            metrics: Arc::clone(metrics),
            files: Mutex::default(),
        };
        tls.install(loaded);
        Ok(Arc::new(tls))
    }

    /// Takes a client's connection through the handshake. `None`: it is over.
    pub async fn accept(&self, io: Io) -> Option<(Io, Protocol)> {
        let metrics = &self.metrics.tls;
        let handshake = self.acceptor.accept(io);
        match tokio::time::timeout(self.handshake_timeout, handshake).await {
            Ok(Ok(mut stream)) => {
                // So that what a slow client takes shows before the stall limit (SEC-17).
                stream.get_mut().1.set_buffer_limit(Some(SEND_BYTES));
                let (_, session) = stream.get_ref();
                metrics.handshake(match session.protocol_version() {
                    Some(ProtocolVersion::TLSv1_3) => Handshake::V1_3,
                    _ => Handshake::V1_2,
                });
                let protocol = match session.alpn_protocol() {
                    Some(b"h2") => Protocol::Http2,
                    _ => Protocol::Http1,
                };
                Some((Io::Tls(Box::new(stream.into())), protocol))
            }
            Ok(Err(error)) => {
                metrics.handshake(Handshake::Failed);
                debug!(%error, "tls_handshake_failed");
                None
            }
            Err(_) => {
                metrics.handshake(Handshake::Timeout);
                self.metrics.limits.hit(Limit::HandshakeTimeout);
                debug!("tls_handshake_timeout");
                None
            }
        }
    }

    /// Looks after the files for as long as it is polled.
    pub async fn watch(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK).await;
            let tls = Arc::clone(&self);
            // Files may be far away.
            let _ = tokio::task::spawn_blocking(move || tls.look()).await;
        }
    }

    /// Shows other certificates from now on, or the same ones, read again.
    pub fn replace(&self, loaded: Loaded) {
        self.metrics.tls.reloaded.inc_by(loaded.0.len() as u64);
        self.install(loaded);
    }

    fn install(&self, Loaded(all): Loaded) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        self.publish(&all);
        *files = all;
    }

    /// Reads those again that have changed and do not any more.
    fn look(&self) {
        let mut all = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = false;
        for files in all.iter_mut() {
            let now = Stamp::of(&files.certificate, &files.key);
            let is_due = now != files.taken && now == files.seen;
            files.seen = now;
            if !is_due {
                continue;
            }
            files.taken = now;
            let certificate = files.certificate.display();
            match Identity::read(&files.certificate, &files.key) {
                Ok(identity) => {
                    info!(%certificate, "certificate_reloaded");
                    if let Some(concern) = &identity.concern {
                        warn!(%certificate, "certificate_reloaded: {concern}");
                    }
                    files.identity = identity;
                    changed = true;
                    self.metrics.tls.reloaded.inc();
                }
                Err(reason) => {
                    let key = files.key.display();
                    warn!(%certificate, %key, %reason, "certificate_kept: the new one cannot be used");
                    self.metrics.tls.reload_failed.inc();
                }
            }
        }
        if changed {
            self.publish(&all);
        }
    }

    fn publish(&self, all: &[Files]) {
        self.metrics.tls.expire(all.iter().map(|files| files.identity.not_after));
        self.certificates.replace(Table::new(all.iter().map(|files| &files.identity)));
    }
}

/// Certificates that can be shown.
#[derive(Debug)]
pub struct Loaded(Vec<Files>);

impl Loaded {
    /// Reads all of them. It waits for the disk.
    ///
    /// # Errors
    /// Files of no use.
    pub fn read(settings: &Settings) -> Result<Self, TlsError> {
        let read = |(certificate, key): &(PathBuf, PathBuf)| {
            // Before they are read: what changes then is read again.
            let stamp = Stamp::of(certificate, key);
            let identity = Identity::read(certificate, key)?;
            let (certificate, key) = (certificate.clone(), key.clone());
            Ok(Files { certificate, key, taken: stamp, seen: stamp, identity })
        };
        settings.certificates.iter().map(read).collect::<Result<_, _>>().map(Self)
    }
}

/// Why there is no [`Tls`].
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate.
    #[error(transparent)]
    Certificate(#[from] Unusable),
    /// The TLS library.
    #[error("TLS: {0}")]
    Library(#[from] rustls::Error),
}

/// What shows that a file was replaced, of a chain and its key; `None` where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp([Option<FileStamp>; 2]);

/// Modification time in seconds and nanoseconds, size, device, inode.
type FileStamp = (i64, i64, u64, u64, u64);

impl Stamp {
    /// As the files are now, symbolic links followed.
    fn of(certificate: &Path, key: &Path) -> Self {
        let of = |found: io::Result<Metadata>| {
            let of = found.ok()?;
            Some((of.mtime(), of.mtime_nsec(), of.size(), of.dev(), of.ino()))
        };
        Self([certificate, key].map(|file| of(std::fs::metadata(file))))
    }
}

/// The certificates in use.
#[derive(Debug, Default)]
struct Certificates(RwLock<Arc<Table>>);

/// By the names that clients ask for.
#[derive(Debug, Default)]
struct Table {
    all: Vec<Arc<CertifiedKey>>,
    /// Where in `all`; several where one has an RSA key and another an elliptic one.
    by_name: HashMap<String, Vec<usize>>,
}

impl Certificates {
    fn replace(&self, table: Table) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
    }

    fn table(&self) -> Arc<Table> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Table {
    fn new<'a>(identities: impl Iterator<Item = &'a Identity>) -> Self {
        let mut table = Self::default();
        for (index, identity) in identities.enumerate() {
            table.all.push(Arc::clone(&identity.key));
            for name in &identity.names {
                table.by_name.entry(name.clone()).or_default().push(index);
            }
        }
        table
    }

    /// The certificates for a name, best first: those that have it, those with a wildcard for its
    /// first label (RFC 9525 §6.3), the first of all.
    fn candidates(&self, name: Option<&str>) -> impl Iterator<Item = &Arc<CertifiedKey>> {
        let name = name.unwrap_or_default().to_ascii_lowercase();
        let wildcard = name.split_once('.').map(|(_, parent)| format!("*.{parent}"));
        let named = self.by_name.get(&name);
        let wild = wildcard.and_then(|wildcard| self.by_name.get(&wildcard));
        let found = named.into_iter().chain(wild).flatten();
        found.filter_map(|&index| self.all.get(index)).chain(self.all.first())
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let table = self.table();
        let schemes = hello.signature_schemes();
        table
            .candidates(hello.server_name())
            .chain(&table.all)
            .find(|certified| certified.key.choose_scheme(schemes).is_some())
            .cloned()
    }
}
