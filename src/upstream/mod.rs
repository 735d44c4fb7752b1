//! The edge to the XMPP server: from a domain to a stream whose TLS is settled.
//!
//! [`Connector::open`] finds the servers of a domain (`resolve`), tries them in turn (`connect`),
//! settles TLS (`tls`, by the rules of `proto::c2s`) and hands over an [`Established`] stream, of
//! which the client has seen nothing yet. What flows over it then is the session's.

mod connect;
mod fault;
mod health;
mod proxy;
mod resolve;
mod tls;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use self::connect::Established;
pub use self::fault::{Blame, ConnectFault, Reason};
pub use self::health::{Backoff, Health};
pub use self::proxy::{Client, ProxyProtocol};
pub use self::tls::{CertificateFault, CertificateProblem, ClientCertificate, Trust};
pub use crate::io::Io;
pub use crate::proto::c2s::OpenRequest;

use self::resolve::{Place, Reach, Resolver};
use self::tls::Tls;
use crate::metrics::Servers;
use crate::proto::domain::{ByDomain, Domain};
use crate::proto::xml::Limits;

/// What a [`Connector`] is built from.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where each domain goes that is served. A route for domains that are not named is refused
    /// without servers of its own: the client would choose whom we look up (SEC-22).
    pub routes: ByDomain<Route>,
    /// DNS servers to ask; empty asks the system's.
    pub dns: Vec<SocketAddr>,
    /// SEC-22: whether DNS may lead to addresses that are not public.
    pub allow_private: bool,
    /// UP-08: lookups and TCP connects of all candidates together.
    pub connect_timeout: Duration,
    /// From the beginning to the final features, connecting included.
    pub negotiation_timeout: Duration,
    /// How long servers that failed are left alone.
    pub backoff: Backoff,
    /// What the server may send as one element.
    pub limits: Limits,
}

/// How to reach the server of a domain.
#[derive(Clone, Debug)]
pub struct Route {
    /// Candidates; empty asks DNS (UP-06).
    pub servers: Vec<Member>,
    /// When STARTTLS is used.
    pub tls: TlsUse,
    /// Whose certificates are believed.
    pub trust: Trust,
    /// UP-16: what we show when asked.
    pub client_certificate: Option<ClientCertificate>,
}

/// One configured server of a route, and its part there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Where it is.
    pub server: Server,
    /// The lower goes first, as in RFC 2782.
    pub priority: u16,
    /// Its share among those of the same priority, as in RFC 2782.
    pub weight: u16,
    /// SEC-21: whether it is told whose connection it has.
    pub proxy_protocol: ProxyProtocol,
}

impl Member {
    fn rank(&self) -> (u16, u16) {
        (self.priority, self.weight)
    }
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// A TCP address.
    Tcp {
        /// A name for DNS, or an IP address without brackets.
        host: String,
        /// The port.
        port: u16,
        /// TLS from the first byte (XEP-0368), whatever [`Route::tls`] says.
        direct_tls: bool,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

/// As the configuration writes it.
impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { host, port, direct_tls } => {
                let scheme = if *direct_tls { "xmpps" } else { "xmpp" };
                let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
                write!(f, "{scheme}://{open}{host}{close}:{port}")
            }
        }
    }
}

/// When STARTTLS is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsUse {
    /// Required off loopback; used if offered on loopback and Unix sockets.
    Auto,
    /// A server that does not offer it is refused, wherever it is.
    Required,
    /// As [`Auto`](Self::Auto): UP-22 lets no credentials out of this machine in clear text unless
    /// [`Never`](Self::Never) says so.
    IfOffered,
    /// Never, wherever the server is.
    Never,
}

/// Opens streams. Built once; clones share everything.
#[derive(Clone)]
pub struct Connector(Arc<Inner>);

struct Inner {
    ways: ByDomain<Way>,
    health: Health,
    backoff: Backoff,
    resolver: Option<Resolver>,
    innermost: Reach,
    connect_timeout: Duration,
    negotiation_timeout: Duration,
    limits: Limits,
}

/// A route, made ready.
struct Way {
    servers: Vec<Member>,
    tls_use: TlsUse,
    /// `None` where there are no roots to check against.
    tls: Option<Tls>,
    verified: bool,
    /// A client certificate is configured.
    identified: bool,
}

impl Connector {
    /// Builds resolver and TLS configs. What `health` remembers of servers is shared with all who
    /// have a clone of it.
    ///
    /// # Errors
    /// A certificate or key file of no use; no DNS servers where a route needs them; a route for
    /// domains that are not named, without servers.
    pub fn new(settings: Settings, health: Health) -> Result<Self, SettingsError> {
        let routes = &settings.routes;
        if routes.wide().any(|to| to.servers.is_empty()) {
            return Err(SettingsError::FallbackWithoutServers);
        }
        let innermost = resolve::innermost(&settings);
        let needs_dns = routes.named.iter().any(|(domain, route)| needs_dns(domain, route))
            || routes.wide().any(|route| route.servers.iter().any(is_named));
        let resolver = match Resolver::new(&settings) {
            Ok(resolver) => Some(resolver),
            Err(error) if needs_dns => return Err(error),
            Err(_) => None,
        };
        let mut factory = tls::Factory::new();
        let ways = settings.routes.try_map(|domain, route| {
            if route.trust == Trust::Insecure {
                tracing::warn!(domain, "server_certificates_not_verified");
            }
            let tls = if uses_tls(&route) {
                factory.build(&route.trust, route.client_certificate.as_ref())?
            } else {
                None
            };
            Ok::<_, SettingsError>(Way {
                servers: route.servers,
                tls_use: route.tls,
                tls,
                verified: route.trust != Trust::Insecure,
                identified: route.client_certificate.is_some(),
            })
        })?;
        Ok(Self(Arc::new(Inner {
            ways,
            health,
            backoff: settings.backoff,
            resolver,
            innermost,
            connect_timeout: settings.connect_timeout,
            negotiation_timeout: settings.negotiation_timeout,
            limits: settings.limits,
        })))
    }

    /// Whether streams to this domain are opened at all.
    pub fn serves(&self, domain: &Domain) -> bool {
        self.0.ways.get(domain).is_some()
    }

    /// How many routes take any certificate ([`Trust::Insecure`]): for a metric that warns (UP-14).
    pub fn unverified_routes(&self) -> usize {
        self.0.ways.values().filter(|way| !way.verified).count()
    }

    /// Shows from now on which of the configured servers are up, in place of those shown before.
    pub fn show(&self, servers: &Servers) {
        servers.reset();
        let members = self.0.ways.values().flat_map(|way| &way.servers);
        let up = members.map(|member| {
            let server = &member.server;
            (Place::of(server), servers.server(&server.to_string()))
        });
        self.0.health.show(up.collect());
    }

    /// Opens a stream for `client`. The future is large while it runs and what it returns is not: box it.
    ///
    /// Dropping the future closes whatever connection it had.
    ///
    /// # Errors
    /// [`ConnectFault`] with every candidate that was tried.
    pub async fn open(
        &self,
        request: &OpenRequest,
        client: &Client,
    ) -> Result<Established, ConnectFault> {
        self.0.open(request, client).await
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

/// Whether a route depends on DNS from the start (a see-other-host may bring it in later).
fn needs_dns(domain: &Domain, route: &Route) -> bool {
    match &*route.servers {
        [] => domain.ip().is_none(),
        servers => servers.iter().any(is_named),
    }
}

fn is_named(member: &Member) -> bool {
    match &member.server {
        Server::Tcp { host, .. } => host.parse::<std::net::IpAddr>().is_err(),
        Server::Unix(_) => false,
    }
}

fn uses_tls(route: &Route) -> bool {
    let direct = |to: &Member| matches!(to.server, Server::Tcp { direct_tls: true, .. });
    route.tls != TlsUse::Never || route.servers.iter().any(direct)
}

/// Why a [`Connector`] cannot be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// A certificate or key file.
    #[error("{}: {reason}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The TLS library refuses.
    #[error("TLS: {0}")]
    Tls(String),
    /// A route needs DNS and there are no servers to ask.
    #[error("no DNS servers: {0} (name them with upstream.dns)")]
    Dns(String),
    /// SEC-22.
    #[error("a route for domains that are not named needs servers of its own")]
    FallbackWithoutServers,
}

impl SettingsError {
    fn file(path: &Path, reason: impl fmt::Display) -> Self {
        Self::File { path: path.to_owned(), reason: reason.to_string() }
    }

    fn tls(reason: impl fmt::Display) -> Self {
        Self::Tls(reason.to_string())
    }
}
