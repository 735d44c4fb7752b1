//! The checked configuration: what the program is built from. A [`Config`] that exists is usable.
//!
//! The fields are the keys of `conf/bosphorus.toml`; each part of the program is given its own
//! section only.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use sha2::{Digest as _, Sha256};

use crate::proto::domain::{ByDomain, Domain};

/// The whole configuration, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The domain of a stream whose opening names none (WS-21); one of those served.
    pub default_domain: Option<Domain>,
    /// `[listen]`: the sockets for clients.
    pub listen: Listen,
    /// `[tls]`: TLS towards clients.
    pub tls: Tls,
    /// `[admin]`: metrics, health and sessions, on a socket of their own.
    pub admin: Admin,
    /// `[recorder]`: what is remembered of each session.
    pub recorder: Recorder,
    /// `[ws]`: the WebSocket transport.
    pub ws: Ws,
    /// `[bosh]`: the HTTP transport of XEP-0124 and XEP-0206.
    pub bosh: Bosh,
    /// `[limits]`: what one client, and all of them, can make the gateway hold.
    pub limits: Limits,
    /// `[upstream]`: connections to servers, in so far as they do not depend on the domain.
    pub upstream: Upstream,
    /// `[domains."…"]`: where each domain goes that is served, with what it does not say itself
    /// taken from `[upstream]`. Those with a star always have servers of their own (SEC-22).
    pub domains: ByDomain<Route>,
    /// `[sasl]`.
    pub sasl: Sasl,
    /// `[discovery]`: how clients find the endpoints.
    pub discovery: Discovery,
    /// `[lab]`: the page that tries both transports.
    pub lab: Lab,
    /// `[drain]`: the end of the process.
    pub drain: Drain,
    /// `[log]`.
    pub log: Log,
    /// What is allowed but probably not meant, one line each, with place and key. To be logged at
    /// the start.
    pub warnings: Vec<String>,
}

impl Config {
    /// How to reach a domain, or `None` if it is not served (`host-unknown`).
    pub fn route(&self, domain: &Domain) -> Option<&Route> {
        self.domains.get(domain)
    }
}

/// `[listen]`: where clients connect, and what a connection may do before it is a session.
#[derive(Debug, Clone, PartialEq)]
pub struct Listen {
    /// Without TLS; at least one here or in `tls_addresses`.
    pub addresses: Vec<Listener>,
    /// With TLS; then there are `tls.certificates`.
    pub tls_addresses: Vec<Listener>,
    /// The permissions of Unix sockets that are made; within 0777.
    pub unix_mode: u32,
    /// Worker threads; `None` is one per core.
    pub workers: Option<usize>,
    /// Connections the kernel holds that no worker has accepted yet.
    pub backlog: u32,
    /// HTTP connections per worker, sessions not among them; above it the worker stops accepting.
    pub max_connections: usize,
    /// How long an idle HTTP connection stays open.
    pub keep_alive: Duration,
    /// SEC-18: the time a client has for a whole request head.
    pub head_timeout: Duration,
    /// SEC-19: proxies whose `X-Forwarded-For`, `X-Forwarded-Proto` and `Forwarded` count.
    pub trusted_proxies: Peers,
    /// SEC-20: peers whose connections begin with a PROXY header.
    pub proxy_protocol: Peers,
    /// SEC-20: the time they have for it.
    pub proxy_protocol_timeout: Duration,
    /// SEC-18: the time a client has for its TLS handshake.
    pub handshake_timeout: Duration,
    /// Requests that are open at once on one HTTP/2 connection (RFC 9113 §5.1.2).
    pub http2_streams: u32,
}

/// One of `listen.addresses` or `listen.tls_addresses`. Two are equal that are the same address,
/// wherever that is written.
#[derive(Debug, Clone)]
pub struct Listener {
    /// What is listened on.
    pub address: ListenAddress,
    /// Where it was written and under which key, for errors: `FILE:LINE: listen.addresses`.
    pub place: String,
}

impl PartialEq for Listener {
    fn eq(&self, other: &Self) -> bool {
        self.address == other.address
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

/// What a [`Listener`] listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// `address:port`; port 0 lets the system choose.
    Tcp(SocketAddr),
    /// `unix:/path`, absolute: a Unix socket that is made there.
    Unix(PathBuf),
    /// `systemd:NAME`: the sockets that the service manager passes under this name
    /// (sd_listen_fds(3)); `systemd:`, `None`: all those that are not named elsewhere.
    Systemd(Option<String>),
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Systemd(name) => write!(f, "systemd:{}", name.as_deref().unwrap_or_default()),
        }
    }
}

/// Peers that are believed something.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peers {
    /// Those that have addresses.
    pub networks: Vec<IpNet>,
    /// `"unix"`: whoever comes over a Unix socket, who has none.
    pub unix: bool,
}

/// `[tls]`: TLS towards clients (SEC-24).
#[derive(Debug, Clone, PartialEq)]
pub struct Tls {
    /// Chosen by the name that the client asks for; the first one where it asks for none of them.
    pub certificates: Vec<ServerIdentity>,
    /// The oldest version of the protocol that is spoken.
    pub min_version: TlsVersion,
}

/// `tls.min_version`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    /// RFC 5246, as RFC 9325 would have it.
    V1_2,
    /// RFC 8446.
    V1_3,
}

/// One of `tls.certificates`: PEM files that fitted together when they were checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerIdentity {
    /// The chain, the server's own certificate first.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// `[admin]`: metrics, health, readiness, sessions and the status page.
#[derive(Debug, Clone, PartialEq)]
pub struct Admin {
    /// `None` switches the listener off.
    pub address: Option<SocketAddr>,
    /// What has to be shown by who asks about sessions; without it only loopback may ask.
    pub token: Option<Token>,
}

/// The token of `admin.token_file`, as a hash: the configuration is no place for a secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token([u8; 32]);

impl Token {
    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// SHA-256 of it.
    #[must_use]
    pub fn hash(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// `[recorder]`: why sessions were ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recorder {
    /// Events that a session keeps; with 0 nothing is recorded.
    pub events: usize,
    /// How long a session is remembered after its end.
    pub keep: Duration,
    /// How many that have ended are remembered at most.
    pub ended: usize,
}

/// `[lab]`: the page that tries both transports.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Lab {
    /// Whether it is served, to whoever reaches the listeners for clients.
    pub enabled: bool,
    /// The JID and the password that it logs in with, instead of asking. No key sets it: only the
    /// demo has passwords that are no secrets.
    pub account: Option<(String, String)>,
}

/// `[ws]`: the WebSocket transport.
#[derive(Debug, Clone, PartialEq)]
pub struct Ws {
    /// Request paths of the endpoint, each beginning with `/`; matched exactly.
    pub paths: Vec<String>,
    /// WS-03: refuse an upgrade that does not offer the subprotocol `xmpp`.
    pub require_subprotocol: bool,
    /// WSL-01: accept draft-moffitt framing (`<stream:stream>`) too.
    pub legacy_framing: bool,
    /// WS-41: how long nothing may arrive before a ping is sent, and between two pings.
    pub ping_interval: Duration,
    /// Pings without an answer before the client counts as gone.
    pub missed_pongs: u32,
    /// WS-44: frames one message may be cut into.
    pub max_fragments: u32,
    /// SEC-18: the time from the first frame of a message to its last.
    pub message_timeout: Duration,
    /// Which web pages may connect.
    pub allowed_origins: AllowedOrigins,
    /// Refuse an upgrade without an `Origin` header, which only programs other than browsers send.
    pub require_origin: bool,
    /// Write the `xml:lang` of the server's stream onto its stanzas that name none.
    pub stamp_lang: bool,
}

/// `[bosh]`: XMPP over HTTP (XEP-0124, XEP-0206). What the client is told in seconds is whole
/// seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Bosh {
    /// Request paths of the endpoint, each beginning with `/`; matched exactly. Empty is off.
    pub paths: Vec<String>,
    /// BOSH-16: the longest `wait`.
    pub wait_max: Duration,
    /// BOSH-16: the `wait` of a client that names none; at most `wait_max`.
    pub wait_default: Duration,
    /// BOSH-17: the largest `hold`.
    pub hold_max: u32,
    /// BOSH-57: how long a session lives without an open request.
    pub inactivity: Duration,
    /// BOSH-18: the same for a session that polls.
    pub polling_inactivity: Duration,
    /// BOSH-62, BOSH-63: the shortest time between two empty requests.
    pub polling: Duration,
    /// BOSH-58: the longest `pause`; zero is none.
    pub maxpause: Duration,
    /// BOSH-29: how long the creation response waits for the server's features.
    pub first_response_timeout: Duration,
    /// BOSH-37: how long an empty answer that `hold` forces waits for data to ride on it.
    pub linger: Duration,
    /// BOSH-62: what becomes of a client that asks too often.
    pub overactivity: Overactivity,
    /// BOSH-77: how long a dead session's condition is kept for the next request.
    pub zombie: Duration,
    /// BOSH-08, BOSH-09: read compressed requests and compress large responses.
    pub gzip: bool,
    /// XB-12: restart the stream of clients that know neither `ver` nor `xmpp:version`.
    pub auto_restart: bool,
    /// BOSH-79: how a request is refused whose session, and so whose mode, is unknown.
    pub legacy_unknown: LegacyUnknown,
    /// SEC-02: which web pages may read the answers.
    pub allowed_origins: AllowedOrigins,
    /// SEC-02: request headers that pages may send besides `Content-Type`; lower case.
    pub allowed_headers: Vec<String>,
    /// SEC-02: pages may send cookies with their requests, as some load balancers want it.
    pub allow_credentials: bool,
    /// SEC-18: the time for a request's body, besides a second for each KiB that came.
    pub body_timeout: Duration,
    /// BOSH-25: the only values of `route` that are let pass, as `host:port`; empty ignores it.
    pub route_allow: Vec<String>,
}

/// `bosh.overactivity` (BOSH-62).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overactivity {
    /// It is counted.
    Lenient,
    /// It ends the session.
    Strict,
}

/// `bosh.legacy_unknown` (BOSH-79).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LegacyUnknown {
    /// By a `<body/>` with a condition, as XEP-0124 has it since version 1.6.
    Body,
    /// By a status code, as older clients know it.
    Http,
}

/// The value of `ws.allowed_origins` and `bosh.allowed_origins`.
#[derive(Debug, Clone, PartialEq)]
pub enum AllowedOrigins {
    /// `"*"`: any page.
    Any,
    /// Serialised origins (RFC 6454 §6.2) in lower case without a default port, or `null`.
    Listed(Vec<String>),
}

/// `[limits]`: memory and time that peers can take.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// One element from a client, in bytes; at least 10,000 (RFC 6120 §13.12).
    pub element_bytes: usize,
    /// One element from a server, in bytes; at least `element_bytes`.
    pub server_element_bytes: usize,
    /// Nesting within one element, the root counted.
    pub depth: u32,
    /// Attributes of one tag, namespace declarations counted.
    pub attributes: u32,
    /// Bytes of one element or attribute name.
    pub name_bytes: u32,
    /// Namespace declarations in scope at one place.
    pub namespaces: u32,
    /// Elements within one first-level element.
    pub elements: u32,
    /// BOSH-06: one BOSH request's body; at least `element_bytes` and 4096.
    pub body_bytes: usize,
    /// Payloads of one BOSH request.
    pub body_elements: u32,
    /// SEC-17: bytes queued in one direction of a session before the gateway stops reading the
    /// other side. At least `element_bytes`. One element is always taken, so a single large one
    /// from the server may exceed it.
    pub pending_bytes: usize,
    /// SEC-17: the same bound in stanzas.
    pub pending_stanzas: usize,
    /// Bytes that a client may send before it has authenticated.
    pub unauthenticated_bytes: usize,
    /// Time that a client has to authenticate.
    pub unauthenticated_lifetime: Duration,
    /// SEC-17, WS-45: how long a peer may take no bytes at all before its session ends.
    pub stall_timeout: Duration,
    /// Sessions in all.
    pub sessions: usize,
    /// Bytes that all sessions together hold in queues and buffers, before those end that hold most;
    /// 0 is no limit.
    pub memory: usize,
    /// SEC-16: sessions of one client address (an IPv4 address, a /64 of IPv6). `None` is no limit,
    /// as for all that follow.
    pub sessions_per_address: Option<usize>,
    /// SEC-16: those of them that have not authenticated yet.
    pub unauthenticated_per_address: Option<usize>,
    /// SEC-16: sessions that one address may begin in a minute.
    pub new_sessions_per_minute: Option<u32>,
    /// SEC-16: logins of one address that servers may refuse in a minute, before it gets no further
    /// session for a while.
    pub auth_failures_per_minute: Option<u32>,
    /// SEC-16: BOSH requests and WebSocket upgrades of one address in a second.
    pub requests_per_second: Option<u32>,
    /// HTTP connections of one address, those that have become a WebSocket not among them.
    pub connections_per_address: Option<usize>,
    /// Connections that one address may begin in a second.
    pub new_connections_per_second: Option<u32>,
    /// BOSH-91: BOSH requests for unknown sessions of one address in a minute.
    pub unknown_sids_per_minute: Option<u32>,
    /// Peers that the limits per address do not hold for, unless a proxy has named the client.
    pub exempt_peers: Vec<IpNet>,
}

/// `[upstream]`: what holds for connections to every server.
#[derive(Debug, Clone, PartialEq)]
pub struct Upstream {
    /// Lookups and TCP connects of all candidates together (UP-08).
    pub connect_timeout: Duration,
    /// The whole opening, connecting and TLS included, to the stream features.
    pub negotiation_timeout: Duration,
    /// How long to wait for the server's `</stream:stream>` after ours.
    pub close_grace: Duration,
    /// Silence toward the server after which one blank is sent; `None` sends none.
    pub whitespace_keepalive: Option<Duration>,
    /// How long a server that failed is left alone at first; doubled by each failure in a row.
    pub backoff_min: Duration,
    /// The longest of these; at least `backoff_min`.
    pub backoff_max: Duration,
    /// From the return of a server that failed until it has its full share of sessions again; zero
    /// is at once.
    pub slow_start: Duration,
    /// DNS servers to ask; empty asks the system's.
    pub dns: Vec<SocketAddr>,
    /// SEC-22: accept private and loopback addresses from DNS.
    pub allow_private: bool,
}

/// How to reach the server of one domain.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Candidates; empty asks DNS (SRV, then the domain itself).
    pub servers: Vec<Server>,
    /// STARTTLS on [`ServerAddress::Tcp`], [`ServerAddress::Unix`] and DNS candidates of that kind.
    pub tls: TlsMode,
    /// UP-14: trust these PEM certificates instead of the system's roots. Readable and PEM when it
    /// was checked.
    pub ca_file: Option<PathBuf>,
    /// UP-14: trust a server certificate with one of these keys, and then nothing else.
    pub pin_sha256: Vec<SpkiPin>,
    /// UP-14: verify nothing.
    pub insecure: bool,
    /// UP-16: what to present when the server asks who connects.
    pub client: Option<ClientIdentity>,
    /// Which web pages may open streams of the domain, instead of what `[ws]` and `[bosh]` say.
    pub allowed_origins: Option<AllowedOrigins>,
    /// Where clients of the domain reach the gateway, if that is to be published.
    pub public_url: Option<PublicUrl>,
}

/// `tls` of `[upstream]` or of a domain: whether STARTTLS is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// [`TlsMode::Required`] off loopback, [`TlsMode::IfOffered`] on loopback and over unix
    /// sockets.
    Auto,
    /// A server that does not offer STARTTLS is refused.
    Required,
    /// Used if offered.
    IfOffered,
    /// Never used.
    Never,
}

/// One entry of `servers`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Server {
    /// Where it is.
    pub address: ServerAddress,
    /// The lower goes first. Unless it is given, the place in the list, counted from 0.
    pub priority: u16,
    /// Its share among those of the same priority (RFC 2782).
    pub weight: u16,
    /// SEC-21: whether it is told whose connection it has.
    pub proxy_protocol: ProxyProtocol,
}

impl Server {
    /// The first of a list, if no more than the address is said of it.
    pub fn at(address: ServerAddress) -> Self {
        Self { address, priority: 0, weight: 1, proxy_protocol: ProxyProtocol::Off }
    }
}

/// `proxy_protocol` of an entry of `servers` (SEC-21).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProxyProtocol {
    /// No header.
    Off,
    /// The addresses in a line of text.
    V1,
    /// Binary, with the domain, the session's number and whether the client has TLS.
    V2,
}

/// The address of an entry of `servers`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ServerAddress {
    /// `xmpp://host:port` or `host:port`; STARTTLS as [`Route::tls`] says. An IPv6 host is without
    /// brackets.
    Tcp {
        /// An IP address or a name for DNS.
        host: String,
        /// Never 0.
        port: u16,
    },
    /// `xmpps://host:port`: TLS from the first byte (XEP-0368).
    DirectTls {
        /// An IP address or a name for DNS.
        host: String,
        /// Never 0.
        port: u16,
    },
    /// `unix:/path`, absolute.
    Unix(PathBuf),
}

impl ServerAddress {
    /// Whether the address is this machine for certain: a loopback address, `localhost`, a unix
    /// socket.
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp { host, .. } | Self::DirectTls { host, .. } => match host.parse::<IpAddr>() {
                Ok(address) => address.is_loopback(),
                // RFC 6761 §6.3: always the loopback address.
                Err(_) => host == "localhost" || host.ends_with(".localhost"),
            },
        }
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, host, port) = match self {
            Self::Unix(path) => return write!(f, "unix:{}", path.display()),
            Self::Tcp { host, port } => ("xmpp", host, port),
            Self::DirectTls { host, port } => ("xmpps", host, port),
        };
        if host.contains(':') {
            write!(f, "{scheme}://[{host}]:{port}")
        } else {
            write!(f, "{scheme}://{host}:{port}")
        }
    }
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo in DER (RFC 7469 §2.4 computes it so).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpkiPin(pub [u8; 32]);

/// A certificate chain and its private key, both PEM files that were readable when they were
/// checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientIdentity {
    /// The chain, the own certificate first.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// `[sasl]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Sasl {
    /// What becomes of channel binding in the server's offer.
    pub channel_binding: ChannelBinding,
}

/// `sasl.channel_binding` (UP-19, UP-26).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelBinding {
    /// The offer is not edited.
    Passthrough,
    /// Every trace of channel binding is taken out of the offer.
    Strip,
}

/// `[discovery]` (XEP-0156).
#[derive(Debug, Clone, PartialEq)]
pub struct Discovery {
    /// Where clients reach the gateway; `None` publishes nothing but of domains that say it
    /// themselves.
    pub public_url: Option<PublicUrl>,
    /// DISC-08: links that are published besides those of the transports.
    pub links: Vec<DiscoveryLink>,
}

/// An element of `discovery.links`.
#[derive(Debug, Clone, PartialEq)]
pub struct DiscoveryLink {
    /// What is there: visible ASCII, as the other is.
    pub rel: String,
    /// A URL with `https:` or `wss:`.
    pub href: String,
}

/// A URL that the paths of the transports are below.
#[derive(Debug, Clone, PartialEq)]
pub struct PublicUrl {
    /// DISC-03: it is `https:`, not `http:`, of which nothing is published.
    pub secure: bool,
    /// What follows the scheme: host, port if any, path if any; no slash at the end.
    pub rest: String,
}

/// `[drain]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Drain {
    /// From the signal to the exit.
    pub timeout: Duration,
    /// The time over which the sessions end; less than `timeout`. Zero is at once.
    pub window: Duration,
    /// WS-38: where clients that connect over WebSocket within the window are sent; a `wss:` or
    /// `ws:` URL.
    pub see_other_uri: Option<String>,
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    /// Lines for people, or JSON.
    pub format: LogFormat,
    /// A valid `tracing_subscriber::EnvFilter`.
    pub filter: String,
}

/// `log.format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One readable line an event.
    Human,
    /// One JSON object an event.
    Json,
}
