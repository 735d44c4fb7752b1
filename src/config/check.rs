//! Raw → checked: everything that a type alone cannot say.
//!
//! All faults are collected, each with the place that set the offending key. What is legal but
//! dangerous, or pointless, becomes a warning.

mod addresses;
mod admin;
mod bosh;
mod discovery;
mod drain;
mod listeners;
mod servers;
mod tls;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tracing_subscriber::EnvFilter;

use super::Problem;
use super::layers::Origins;
use super::model::*;
use super::raw::{self, Raw};
use super::units::{Count, Size, Span, show};
use crate::proto::domain::Domain;

/// Checks the merged configuration. `problems` are those found while reading; with any, there is no
/// `Config`.
pub(super) fn check(
    raw: Raw,
    origins: &Origins,
    problems: Vec<Problem>,
) -> Result<Config, Vec<Problem>> {
    let mut checker = Checker { origins, problems, warnings: Vec::new() };
    let mut config = checker.config(&raw);
    // With other faults about, the domain may be there and only be wrong.
    let serves = [&config.domains, &config.suffixes].iter().any(|routes| !routes.is_empty());
    if !serves && config.fallback.is_none() && checker.problems.is_empty() {
        checker.problem(
            &["domains"],
            "no domain is served; add a table [domains.\"example.org\"] with your XMPP domain, \
             or give --domain example.org",
        );
    }
    config.warnings = checker.warnings;
    if checker.problems.is_empty() { Ok(config) } else { Err(checker.problems) }
}

/// The defaults, checked, serving nothing.
pub(super) fn defaults() -> Config {
    let origins = Origins::default();
    Checker { origins: &origins, problems: Vec::new(), warnings: Vec::new() }
        .config(&Raw::default())
}

struct Checker<'a> {
    origins: &'a Origins,
    problems: Vec<Problem>,
    warnings: Vec<String>,
}

/// The part of `[upstream]` that a domain may override.
#[derive(Clone)]
struct Security {
    tls: TlsMode,
    ca_file: Option<PathBuf>,
    pin_sha256: Vec<SpkiPin>,
    insecure: bool,
    client: Option<ClientIdentity>,
}

impl Checker<'_> {
    fn config(&mut self, raw: &Raw) -> Config {
        let listen = self.listen(&raw.listen);
        let tls = self.tls_towards_clients(&raw.tls, &raw.listen);
        let admin = self.admin(&raw.admin, &listen);
        let ws = self.ws(&raw.ws);
        let bosh = self.bosh(&raw.bosh);
        let limits = self.limits(&raw.limits);
        let (upstream, security) = self.upstream(&raw.upstream);
        let discovery = self.discovery(&raw.discovery);
        let mut domains = BTreeMap::new();
        let mut suffixes = BTreeMap::new();
        let mut fallback = None;
        for (name, domain) in &raw.domains {
            let mut route = self.route(name, domain, &security);
            route.public_url = match domain.public_url.as_deref() {
                None => discovery.public_url.clone(),
                Some("") => None,
                Some(text) => self.public_url(&["domains", name, "public_url"], text),
            };
            if name.starts_with('*') && domain.servers.is_empty() {
                let what = if name == "*" { "host on the net" } else { "host below it" };
                self.problem(
                    &["domains", name, "servers"],
                    format!(
                        "expected at least one server: without it a client could name any {what} \
                         as its domain"
                    ),
                );
            }
            if name == "*" {
                fallback = Some(route);
            } else if let Some(below) = name.strip_prefix("*.") {
                suffixes.extend(Domain::parse(below).ok().map(|below| (below, route)));
            } else if let Ok(domain) = Domain::parse(name) {
                // Names were prepared, and the wrong ones reported, when the layers were read.
                domains.insert(domain, route);
            }
        }
        let mut config = Config {
            default_domain: None,
            listen,
            tls,
            admin,
            recorder: self.recorder(&raw.recorder),
            ws,
            bosh,
            limits,
            upstream,
            domains,
            suffixes,
            fallback,
            sasl: self.sasl(&raw.sasl),
            discovery,
            lab: Lab { enabled: raw.lab.enabled, account: None },
            drain: self.drain(&raw.drain),
            log: self.log(&raw.log),
            warnings: Vec::new(),
        };
        config.default_domain = self.default_domain(raw, &config);
        self.credentials(&config);
        config
    }

    fn default_domain(&mut self, raw: &Raw, config: &Config) -> Option<Domain> {
        let path = &["default_domain"];
        let text = raw.default_domain.as_deref()?;
        match Domain::parse(text) {
            Ok(domain) if config.route(&domain).is_some() => return Some(domain),
            Ok(_) => self.expected(path, "one of the domains under [domains]", quoted(text)),
            Err(bad) => self.problem(path, format!("expected a domain name: {bad}")),
        }
        None
    }

    fn listen(&mut self, raw: &raw::Listen) -> Listen {
        let (addresses, tls_addresses) = self.listeners(raw);
        let workers = self.count(&["listen", "workers"], raw.workers, 0..=1024);
        Listen {
            addresses,
            tls_addresses,
            unix_mode: self.unix_mode(&raw.unix_mode),
            workers: (workers != 0).then_some(workers),
            backlog: self.count32(&["listen", "backlog"], raw.backlog, 1..=65_535),
            max_connections: self.count(
                &["listen", "max_connections"],
                raw.max_connections,
                1..=MANY,
            ),
            keep_alive: self.duration(&["listen", "keep_alive"], raw.keep_alive),
            head_timeout: self.duration(&["listen", "head_timeout"], raw.head_timeout),
            trusted_proxies: self.proxies(&["listen", "trusted_proxies"], &raw.trusted_proxies),
            proxy_protocol: self.proxies(&["listen", "proxy_protocol"], &raw.proxy_protocol),
            proxy_protocol_timeout: self
                .duration(&["listen", "proxy_protocol_timeout"], raw.proxy_protocol_timeout),
            handshake_timeout: self
                .duration(&["listen", "handshake_timeout"], raw.handshake_timeout),
            http2_streams: self.count32(
                &["listen", "http2_streams"],
                raw.http2_streams,
                1..=10_000,
            ),
        }
    }

    fn admin(&mut self, raw: &raw::Admin, listen: &Listen) -> Admin {
        let path = &["admin", "address"];
        if raw.address.is_empty() {
            return Admin { address: None, token: None };
        }
        let address = self.socket_address(path, &raw.address);
        if let Some(address) = address {
            let is_it = |listener: &Listener| listener.address == ListenAddress::Tcp(address);
            if address.port() != 0 && listen.addresses.iter().any(is_it) {
                self.problem(path, format!("{address} is one of listen.addresses too"));
            }
            if !address.ip().is_loopback() {
                self.warning(
                    path,
                    format!("{address} is not loopback: whoever reaches it can read the metrics"),
                );
            }
        }
        Admin { address, token: self.token(raw) }
    }

    fn ws(&mut self, raw: &raw::Ws) -> Ws {
        let path = &["ws", "paths"];
        self.paths(path, &raw.paths, "/ws");
        if raw.paths.is_empty() {
            self.expected(path, "at least one path", "an empty list");
        }
        Ws {
            paths: raw.paths.clone(),
            require_subprotocol: raw.require_subprotocol,
            legacy_framing: raw.legacy_framing,
            ping_interval: self.duration(&["ws", "ping_interval"], raw.ping_interval),
            missed_pongs: self.count32(&["ws", "missed_pongs"], raw.missed_pongs, 1..=1000),
            max_fragments: self.count32(&["ws", "max_fragments"], raw.max_fragments, 1..=MANY),
            message_timeout: self.duration(&["ws", "message_timeout"], raw.message_timeout),
            allowed_origins: self.origins_list(&["ws", "allowed_origins"], &raw.allowed_origins),
            require_origin: raw.require_origin,
            stamp_lang: raw.stamp_lang,
        }
    }

    fn paths(&mut self, path: &[&str], raw: &[String], example: &str) {
        for (index, text) in raw.iter().enumerate() {
            let visible = text.bytes().all(|b| b.is_ascii_graphic() && b != b'?' && b != b'#');
            let index_text = index.to_string();
            let element = [path, &[&index_text]].concat();
            if !(text.starts_with('/') && visible) {
                self.expected(&element, format!("a path such as {example:?}"), quoted(text));
            } else if raw[..index].contains(text) {
                self.problem(&element, format!("{} is there twice", quoted(text)));
            }
        }
    }

    fn origins_list(&mut self, path: &[&str], raw: &[String]) -> AllowedOrigins {
        if raw.is_empty() {
            self.expected(path, "at least one origin, or \"*\"", "an empty list");
        }
        let mut listed = Vec::new();
        for (index, text) in raw.iter().enumerate() {
            match parse_origin(text) {
                Some(origin) => listed.push(origin),
                None if text == "*" => {}
                None => {
                    let mut path = path.to_vec();
                    let index = index.to_string();
                    path.push(&index);
                    self.expected(
                        &path,
                        "an origin such as \"https://chat.example.org\" (scheme, host, port if \
                         not the usual one, nothing after it), \"https://*.example.org\", \"null\" \
                         or \"*\"",
                        quoted(text),
                    );
                }
            }
        }
        if raw.iter().any(|text| text == "*") {
            if !listed.is_empty() {
                self.warning(path, "\"*\" allows every origin; the others change nothing");
            }
            return AllowedOrigins::Any;
        }
        AllowedOrigins::Listed(listed)
    }

    /// SEC-03: whoever lets pages send cookies says which pages.
    fn credentials(&mut self, config: &Config) {
        // What has no host is the origin of frames and files of anybody's.
        let any = |origins: &AllowedOrigins| match origins {
            AllowedOrigins::Any => true,
            AllowedOrigins::Listed(list) => list.iter().any(|it| it == "null" || it == "file://"),
        };
        let routes =
            config.domains.values().chain(config.suffixes.values()).chain(&config.fallback);
        let mut own = routes.map(|route| route.allowed_origins.as_ref());
        // The general list is that of the domains without one, or of none at all.
        let is_any = own.any(|own| any(own.unwrap_or(&config.bosh.allowed_origins)));
        if config.bosh.allow_credentials && is_any {
            self.problem(
                &["bosh", "allow_credentials"],
                "expected the pages that may send cookies in bosh.allowed_origins, found \"*\", \
                 \"null\" or \"file://\": any page could use the sessions of its visitors",
            );
        }
    }

    fn limits(&mut self, raw: &raw::Limits) -> Limits {
        // RFC 6120 §13.12: a server's limit on stanzas "MUST NOT be smaller than 10000 bytes".
        let element_bytes =
            self.size(&["limits", "element_bytes"], raw.element_bytes, 10_000..=LARGE);
        let server_element_bytes = self.size(
            &["limits", "server_element_bytes"],
            raw.server_element_bytes,
            10_000..=LARGE,
        );
        let pending_bytes =
            self.size(&["limits", "pending_bytes"], raw.pending_bytes, 10_000..=LARGE);
        for (key, bytes, why) in [
            (
                "server_element_bytes",
                server_element_bytes,
                "what one client may send another must pass",
            ),
            ("pending_bytes", pending_bytes, "an element that is allowed must fit the queue"),
        ] {
            if bytes < element_bytes {
                let own = ["limits", key];
                let other = ["limits", "element_bytes"];
                // Whoever moved one of the two below or above the other's default is to blame.
                if self.origins.is_set(&own) || !self.origins.is_set(&other) {
                    self.expected(
                        &own,
                        format!("at least limits.element_bytes ({element_bytes}), since {why}"),
                        bytes,
                    );
                } else {
                    self.expected(
                        &other,
                        format!("at most limits.{key} ({bytes}), since {why}"),
                        element_bytes,
                    );
                }
            }
        }
        let body_bytes = match raw.body_bytes {
            Size(0) => element_bytes + BODY_TAGS,
            bytes => self.size(&["limits", "body_bytes"], bytes, 10_000..=2 * LARGE),
        };
        if body_bytes < element_bytes + BODY_TAGS {
            self.expected(
                &["limits", "body_bytes"],
                format!(
                    "0, or at least limits.element_bytes and {BODY_TAGS} ({}), since an element \
                     that is allowed must fit",
                    element_bytes + BODY_TAGS
                ),
                body_bytes,
            );
        }
        Limits {
            element_bytes,
            server_element_bytes,
            depth: self.count32(&["limits", "depth"], raw.depth, 2..=10_000),
            attributes: self.count32(&["limits", "attributes"], raw.attributes, 1..=10_000),
            name_bytes: self.size32(&["limits", "name_bytes"], raw.name_bytes, 16..=65_535),
            namespaces: self.count32(&["limits", "namespaces"], raw.namespaces, 1..=10_000),
            elements: self.count32(&["limits", "elements"], raw.elements, 1..=MANY),
            body_bytes,
            body_elements: self.count32(&["limits", "body_elements"], raw.body_elements, 1..=MANY),
            pending_bytes,
            pending_stanzas: self.count(
                &["limits", "pending_stanzas"],
                raw.pending_stanzas,
                1..=MANY,
            ),
            unauthenticated_bytes: self.size(
                &["limits", "unauthenticated_bytes"],
                raw.unauthenticated_bytes,
                4096..=LARGE,
            ),
            unauthenticated_lifetime: self
                .duration(&["limits", "unauthenticated_lifetime"], raw.unauthenticated_lifetime),
            stall_timeout: self.duration(&["limits", "stall_timeout"], raw.stall_timeout),
            sessions: self.count(&["limits", "sessions"], raw.sessions, 1..=MANY),
            memory: match raw.memory {
                Size(0) => 0,
                bytes => self.size(&["limits", "memory"], bytes, 1 << 20..=1 << 40),
            },
            sessions_per_address: self
                .bound("sessions_per_address", raw.sessions_per_address)
                .map(|most| most as usize),
            unauthenticated_per_address: self
                .bound("unauthenticated_per_address", raw.unauthenticated_per_address)
                .map(|most| most as usize),
            new_sessions_per_minute: self
                .bound("new_sessions_per_minute", raw.new_sessions_per_minute),
            auth_failures_per_minute: self
                .bound("auth_failures_per_minute", raw.auth_failures_per_minute),
            requests_per_second: self.bound("requests_per_second", raw.requests_per_second),
            connections_per_address: self
                .bound("connections_per_address", raw.connections_per_address)
                .map(|most| most as usize),
            new_connections_per_second: self
                .bound("new_connections_per_second", raw.new_connections_per_second),
            unknown_sids_per_minute: self
                .bound("unknown_sids_per_minute", raw.unknown_sids_per_minute),
            exempt_peers: self.networks(&["limits", "exempt_peers"], &raw.exempt_peers),
        }
    }

    fn upstream(&mut self, raw: &raw::Upstream) -> (Upstream, Security) {
        let mut dns = Vec::new();
        for (index, text) in raw.dns.iter().enumerate() {
            dns.extend(self.socket_address(&["upstream", "dns", &index.to_string()], text));
        }
        let keepalive = self.within(
            &["upstream", "whitespace_keepalive"],
            raw.whitespace_keepalive,
            Duration::ZERO..=DAY,
        );
        let backoff_min = self.duration(&["upstream", "backoff_min"], raw.backoff_min);
        let backoff_max = self.duration(&["upstream", "backoff_max"], raw.backoff_max);
        if backoff_max < backoff_min {
            self.expected(
                &["upstream", "backoff_max"],
                format!("at least upstream.backoff_min ({})", show(backoff_min)),
                show(backoff_max),
            );
        }
        if raw.insecure {
            self.warn_insecure(&["upstream", "insecure"], "any server");
        }
        let security = Security {
            tls: self.tls(&["upstream", "tls"], &raw.tls),
            ca_file: raw
                .ca_file
                .as_deref()
                .map(|text| self.certificates(&["upstream", "ca_file"], text)),
            pin_sha256: self.pins(&["upstream", "pin_sha256"], &raw.pin_sha256),
            insecure: raw.insecure,
            client: self.client(&["upstream"], &raw.client_certificate, &raw.client_key),
        };
        let upstream = Upstream {
            connect_timeout: self.duration(&["upstream", "connect_timeout"], raw.connect_timeout),
            negotiation_timeout: self
                .duration(&["upstream", "negotiation_timeout"], raw.negotiation_timeout),
            close_grace: self.duration(&["upstream", "close_grace"], raw.close_grace),
            whitespace_keepalive: (!keepalive.is_zero()).then_some(keepalive),
            backoff_min,
            backoff_max,
            slow_start: self.within(
                &["upstream", "slow_start"],
                raw.slow_start,
                Duration::ZERO..=DAY,
            ),
            dns,
            allow_private: raw.allow_private,
        };
        (upstream, security)
    }

    /// One `[domains."…"]` table over what `[upstream]` says.
    fn route(&mut self, name: &str, raw: &raw::Domain, upstream: &Security) -> Route {
        let table = ["domains", name];
        let key = |key| ["domains", name, key];
        let servers = self.servers(name, &raw.servers);
        let mut security = upstream.clone();
        if let Some(text) = &raw.tls {
            security.tls = self.tls(&key("tls"), text);
        }
        if let Some(text) = &raw.ca_file {
            security.ca_file = Some(self.certificates(&key("ca_file"), text));
        }
        if let Some(list) = &raw.pin_sha256 {
            security.pin_sha256 = self.pins(&key("pin_sha256"), list);
        }
        if let Some(insecure) = raw.insecure {
            security.insecure = insecure;
            if insecure {
                self.warn_insecure(&key("insecure"), "the server of this domain");
            }
        }
        if raw.client_certificate.is_some() || raw.client_key.is_some() {
            security.client = self.client(&table, &raw.client_certificate, &raw.client_key);
        }
        if security.tls == TlsMode::Never {
            let path: &[&str] = if raw.tls.is_some() { &key("tls") } else { &["upstream", "tls"] };
            let remote = servers
                .iter()
                .map(|server| &server.address)
                .find(|to| !to.is_loopback() && matches!(to, ServerAddress::Tcp { .. }));
            let how = "in the clear";
            if raw.servers.is_empty() && !name.starts_with('*') {
                let whose = format!("the server that DNS names for {name}");
                self.warning(path, format!("passwords and messages go to {whose} {how}"));
            } else if let Some(server) = remote {
                self.warning(path, format!("passwords and messages go to {server} {how}"));
            }
        }
        let Security { tls, ca_file, pin_sha256, insecure, client } = security;
        let allowed_origins = raw
            .allowed_origins
            .as_ref()
            .map(|list| self.origins_list(&key("allowed_origins"), list));
        Route {
            servers,
            tls,
            ca_file,
            pin_sha256,
            insecure,
            client,
            allowed_origins,
            public_url: None,
        }
    }

    fn sasl(&mut self, raw: &raw::Sasl) -> Sasl {
        let path = &["sasl", "channel_binding"];
        let channel_binding = match raw.channel_binding.as_str() {
            "passthrough" => ChannelBinding::Passthrough,
            "strip" => {
                self.warning(
                    path,
                    "\"strip\" makes clients that check the offer (XEP-0474, SCRAM's \"y\" flag) \
                     refuse to log in",
                );
                ChannelBinding::Strip
            }
            other => {
                self.expected(path, "\"passthrough\" or \"strip\"", quoted(other));
                ChannelBinding::Passthrough
            }
        };
        Sasl { channel_binding }
    }

    fn log(&mut self, raw: &raw::Log) -> Log {
        let format = match raw.format.as_str() {
            "human" => LogFormat::Human,
            "json" => LogFormat::Json,
            other => {
                self.expected(&["log", "format"], "\"human\" or \"json\"", quoted(other));
                LogFormat::Human
            }
        };
        if let Err(error) = EnvFilter::builder().parse(&raw.filter) {
            self.expected(
                &["log", "filter"],
                "a filter such as \"info\" or \"warn,bosphorus=debug\"",
                format!("{} ({error})", quoted(&raw.filter)),
            );
        }
        Log { format, filter: raw.filter.clone() }
    }

    fn tls(&mut self, path: &[&str], text: &str) -> TlsMode {
        match text {
            "auto" => TlsMode::Auto,
            "required" => TlsMode::Required,
            "if-offered" => TlsMode::IfOffered,
            "never" => TlsMode::Never,
            other => {
                let modes = "\"auto\", \"required\", \"if-offered\" or \"never\"";
                self.expected(path, modes, quoted(other));
                TlsMode::Required
            }
        }
    }

    fn pins(&mut self, path: &[&str], list: &[String]) -> Vec<SpkiPin> {
        let mut pins = Vec::new();
        for (index, text) in list.iter().enumerate() {
            match STANDARD.decode(text).map(<[u8; 32]>::try_from) {
                Ok(Ok(hash)) => pins.push(SpkiPin(hash)),
                _ => {
                    let mut path = path.to_vec();
                    let index = index.to_string();
                    path.push(&index);
                    self.expected(
                        &path,
                        "the SHA-256 of a public key in base64 (44 characters)",
                        quoted(text),
                    );
                }
            }
        }
        pins
    }

    fn client(
        &mut self,
        table: &[&str],
        certificate: &Option<String>,
        key: &Option<String>,
    ) -> Option<ClientIdentity> {
        let path = |key| {
            let mut path = table.to_vec();
            path.push(key);
            path
        };
        match (certificate, key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some(ClientIdentity {
                certificate: self.certificates(&path("client_certificate"), certificate),
                key: self.private_key(&path("client_key"), key),
            }),
            (Some(_), None) => {
                self.problem(&path("client_certificate"), "expected client_key beside it");
                None
            }
            (None, Some(_)) => {
                self.problem(&path("client_key"), "expected client_certificate beside it");
                None
            }
        }
    }

    /// A readable file with at least one certificate in PEM.
    fn certificates(&mut self, path: &[&str], text: &str) -> PathBuf {
        let file = self.origins.resolve(path, text);
        if let Some(bytes) = self.read(path, &file) {
            let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
            let sound = all.is_ok_and(|all| {
                !all.is_empty()
                    && all.iter().all(|der| x509_parser::parse_x509_certificate(der).is_ok())
            });
            if !sound {
                self.expected(
                    path,
                    "certificates in PEM (-----BEGIN CERTIFICATE-----)",
                    file.display(),
                );
            }
        }
        file
    }

    /// A readable file with a private key in PEM.
    fn private_key(&mut self, path: &[&str], text: &str) -> PathBuf {
        let file = self.origins.resolve(path, text);
        if let Some(bytes) = self.read(path, &file)
            && PrivateKeyDer::from_pem_slice(&bytes).is_err()
        {
            self.expected(path, "a private key in PEM, not encrypted", file.display());
        }
        file
    }

    fn read(&mut self, path: &[&str], file: &std::path::Path) -> Option<Vec<u8>> {
        std::fs::read(file)
            .map_err(|error| {
                self.problem(
                    path,
                    format!("expected a readable file, found {}: {error}", file.display()),
                );
            })
            .ok()
    }

    fn socket_address(&mut self, path: &[&str], text: &str) -> Option<SocketAddr> {
        let address = text.parse().ok();
        if address.is_none() {
            self.expected(
                path,
                "an IP address (not a name) and a port, such as \"127.0.0.1:5280\" or \"[::1]:5280\"",
                quoted(text),
            );
        }
        address
    }

    /// Positive, at most a day: longer ones are slips, and sums with a clock stay far from its end.
    fn duration(&mut self, path: &[&str], span: Span) -> Duration {
        self.within(path, span, Duration::from_millis(1)..=DAY)
    }

    fn within(
        &mut self,
        path: &[&str],
        Span(span): Span,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        if !range.contains(&span) {
            let (least, most) = (show(*range.start()), show(*range.end()));
            self.expected(path, format!("{least} to {most}"), show(span));
        }
        span
    }

    fn number(
        &mut self,
        path: &[&str],
        number: u64,
        range: RangeInclusive<u64>,
        unit: &str,
    ) -> u64 {
        if !range.contains(&number) {
            let (least, most) = range.into_inner();
            self.expected(path, format!("{least} to {most}{unit}"), number);
        }
        number
    }

    fn count(&mut self, path: &[&str], Count(n): Count, range: RangeInclusive<u64>) -> usize {
        usize::try_from(self.number(path, n, range, "")).unwrap_or(usize::MAX)
    }

    fn count32(&mut self, path: &[&str], Count(n): Count, range: RangeInclusive<u64>) -> u32 {
        u32::try_from(self.number(path, n, range, "")).unwrap_or(u32::MAX)
    }

    fn size(&mut self, path: &[&str], Size(n): Size, range: RangeInclusive<u64>) -> usize {
        usize::try_from(self.number(path, n, range, " bytes")).unwrap_or(usize::MAX)
    }

    fn size32(&mut self, path: &[&str], Size(n): Size, range: RangeInclusive<u64>) -> u32 {
        u32::try_from(self.number(path, n, range, " bytes")).unwrap_or(u32::MAX)
    }

    fn warn_insecure(&mut self, path: &[&str], whom: &str) {
        self.warning(
            path,
            format!(
                "certificates are NOT verified: whoever sits between can pose as {whom} and read \
                 every password and message; use pin_sha256 or ca_file instead"
            ),
        );
    }

    fn expected(&mut self, path: &[&str], expected: impl Display, found: impl Display) {
        self.problem(path, format!("expected {expected}, found {found}"));
    }

    fn problem(&mut self, path: &[&str], text: impl Into<String>) {
        self.problems.push(self.origins.problem(path, &without_index(path), text.into()));
    }

    fn warning(&mut self, path: &[&str], text: impl Into<String>) {
        let problem = self.origins.problem(path, &without_index(path), text.into());
        self.warnings.push(problem.to_string());
    }
}

/// `["listen", "addresses", "1"]` is the key `listen.addresses`; the place already tells the
/// element.
fn without_index<'b>(path: &[&'b str]) -> Vec<&'b str> {
    // A domain may be called "10"; there is no list above the third level.
    let is_index = |(at, part): (usize, &str)| at >= 2 && part.bytes().all(|b| b.is_ascii_digit());
    let parts = path.iter().copied().enumerate();
    parts.filter(|&part| !is_index(part)).map(|(_, part)| part).collect()
}

/// `xmpp://host:port`, `xmpps://host:port`, `host:port`, `unix:/path`. The port may be left out.
fn parse_server(text: &str) -> Result<ServerAddress, &'static str> {
    if let Some(path) = text.strip_prefix("unix:") {
        return unix_path(path).map(ServerAddress::Unix);
    }
    match text.split_once("://") {
        None | Some(("xmpp", _)) => {
            let (host, port) = host_port(text.strip_prefix("xmpp://").unwrap_or(text), 5222)?;
            Ok(ServerAddress::Tcp { host, port })
        }
        Some(("xmpps", rest)) => {
            let (host, port) = host_port(rest, 5223)?;
            Ok(ServerAddress::DirectTls { host, port })
        }
        Some(_) => Err("the scheme is not one of these"),
    }
}

/// The path of a Unix socket.
fn unix_path(path: &str) -> Result<PathBuf, &'static str> {
    // sockaddr_un has room for 108 bytes, the last one 0.
    match path.len() {
        _ if !path.starts_with('/') => Err("the path must be absolute"),
        108.. => Err("the path is longer than a socket's may be"),
        _ => Ok(PathBuf::from(path)),
    }
}

fn host_port(text: &str, default: u16) -> Result<(String, u16), &'static str> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, port) = rest.split_once(']').ok_or("the bracket is not closed")?;
        let host: Ipv6Addr = host.parse().map_err(|_| "the brackets hold no IPv6 address")?;
        (host.to_string(), port)
    } else {
        let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
        if text.parse::<IpAddr>().is_ok_and(|address| address.is_ipv6()) {
            return Err("an IPv6 address is written in brackets");
        }
        let domain = Domain::parse(host).map_err(|_| "the host is not a name or an address")?;
        (domain.ascii().into_owned(), port)
    };
    let port = match port.strip_prefix(':') {
        Some(port) => port.parse().map_err(|_| "the port is not a number from 1 to 65535")?,
        None if port.is_empty() => default,
        None => return Err("something other than a port follows the host"),
    };
    if port == 0 {
        return Err("the port is not a number from 1 to 65535");
    }
    Ok((host, port))
}

/// An origin as a browser would send it: lower case, no default port; `None` if it is not one.
fn parse_origin(text: &str) -> Option<String> {
    let text = text.to_ascii_lowercase();
    // Web views send "file://" for local pages.
    if text == "null" || text == "file://" {
        return Some(text);
    }
    let (scheme, authority) = text.split_once("://")?;
    let scheme_ok = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    let (host, port) = match authority.rfind(':') {
        Some(colon) if !authority.ends_with(']') => {
            (&authority[..colon], Some(authority[colon + 1..].parse::<u16>().ok()?))
        }
        _ => (authority, None),
    };
    let host_ok = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => inner.parse::<Ipv6Addr>().is_ok(),
        None => {
            let host = host.strip_prefix("*.").unwrap_or(host);
            !host.is_empty()
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
        }
    };
    if !(scheme_ok && host_ok) {
        return None;
    }
    match (scheme, port) {
        ("https", Some(443)) | ("http", Some(80)) | (_, None) => Some(format!("{scheme}://{host}")),
        (_, Some(port)) => Some(format!("{scheme}://{host}:{port}")),
    }
}

fn quoted(text: &str) -> String {
    format!("{text:?}")
}

/// What `<body/>` itself may take beside the largest element (BOSH-06).
const BODY_TAGS: usize = 4096;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// More than one process can hold; keeps slips and arithmetic apart.
const MANY: u64 = 10_000_000;
/// 1 GiB.
const LARGE: u64 = 1 << 30;
