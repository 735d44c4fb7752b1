//! The configuration as it is written: names, types and defaults, nothing checked yet.
//!
//! What each key means is told in `model.rs` and in `conf/bosphorus.toml`, which a test holds equal
//! to the defaults here. Addresses, modes and the like stay text, so that `check.rs` can report all
//! of them at once.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};

use super::units::{Count, Size, Span};

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Raw {
    pub(super) default_domain: Option<String>,
    pub(super) listen: Listen,
    pub(super) tls: Tls,
    pub(super) admin: Admin,
    pub(super) recorder: Recorder,
    pub(super) ws: Ws,
    pub(super) bosh: Bosh,
    pub(super) limits: Limits,
    pub(super) upstream: Upstream,
    pub(super) domains: BTreeMap<String, Domain>,
    pub(super) sasl: Sasl,
    pub(super) discovery: Discovery,
    pub(super) lab: Lab,
    pub(super) drain: Drain,
    pub(super) log: Log,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Listen {
    pub(super) addresses: Vec<String>,
    pub(super) tls_addresses: Vec<String>,
    pub(super) unix_mode: String,
    pub(super) workers: Count,
    pub(super) backlog: Count,
    pub(super) max_connections: Count,
    pub(super) keep_alive: Span,
    pub(super) head_timeout: Span,
    pub(super) trusted_proxies: Vec<String>,
    pub(super) proxy_protocol: Vec<String>,
    pub(super) proxy_protocol_timeout: Span,
    pub(super) handshake_timeout: Span,
    pub(super) http2_streams: Count,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            addresses: list(&["127.0.0.1:5280"]),
            tls_addresses: Vec::new(),
            unix_mode: "0660".to_owned(),
            workers: Count(0),
            backlog: Count(1024),
            max_connections: Count(25_000),
            keep_alive: seconds(75),
            head_timeout: seconds(10),
            trusted_proxies: Vec::new(),
            proxy_protocol: Vec::new(),
            proxy_protocol_timeout: seconds(3),
            handshake_timeout: seconds(10),
            http2_streams: Count(100),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Tls {
    pub(super) certificates: Vec<Certificate>,
    pub(super) min_version: String,
}

impl Default for Tls {
    fn default() -> Self {
        Self { certificates: Vec::new(), min_version: "1.2".to_owned() }
    }
}

/// One element of `tls.certificates`. Both are needed; that one is missing is told by `check.rs`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(
    deny_unknown_fields,
    default,
    expecting = "a table such as { certificate = \"fullchain.pem\", key = \"privkey.pem\" }"
)]
pub(super) struct Certificate {
    pub(super) certificate: String,
    pub(super) key: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Admin {
    pub(super) address: String,
    pub(super) token_file: Option<String>,
}

impl Default for Admin {
    fn default() -> Self {
        Self { address: "127.0.0.1:9280".to_owned(), token_file: None }
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Recorder {
    pub(super) events: Count,
    pub(super) keep: Span,
    pub(super) ended: Count,
}

impl Default for Recorder {
    fn default() -> Self {
        Self { events: Count(32), keep: seconds(300), ended: Count(1000) }
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Ws {
    pub(super) paths: Vec<String>,
    pub(super) require_subprotocol: bool,
    pub(super) legacy_framing: bool,
    pub(super) ping_interval: Span,
    pub(super) missed_pongs: Count,
    pub(super) max_fragments: Count,
    pub(super) message_timeout: Span,
    pub(super) allowed_origins: Vec<String>,
    pub(super) require_origin: bool,
    pub(super) stamp_lang: bool,
}

impl Default for Ws {
    fn default() -> Self {
        Self {
            paths: list(&["/xmpp-websocket", "/ws", "/ws/", "/ws-xmpp", "/websocket"]),
            require_subprotocol: true,
            legacy_framing: true,
            ping_interval: seconds(30),
            missed_pongs: Count(2),
            max_fragments: Count(64),
            message_timeout: seconds(30),
            allowed_origins: list(&["*"]),
            require_origin: false,
            stamp_lang: false,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Bosh {
    pub(super) paths: Vec<String>,
    pub(super) wait_max: Span,
    pub(super) wait_default: Span,
    pub(super) hold_max: Count,
    pub(super) inactivity: Span,
    pub(super) polling_inactivity: Span,
    pub(super) polling: Span,
    pub(super) maxpause: Span,
    pub(super) first_response_timeout: Span,
    pub(super) linger: Span,
    pub(super) overactivity: String,
    pub(super) zombie: Span,
    pub(super) gzip: bool,
    pub(super) auto_restart: bool,
    pub(super) legacy_unknown: String,
    pub(super) allowed_origins: Vec<String>,
    pub(super) allowed_headers: Vec<String>,
    pub(super) allow_credentials: bool,
    pub(super) body_timeout: Span,
    pub(super) route_allow: Vec<String>,
}

impl Default for Bosh {
    fn default() -> Self {
        Self {
            paths: list(&["/http-bind", "/http-bind/", "/bosh", "/bosh/"]),
            wait_max: seconds(55),
            wait_default: seconds(55),
            hold_max: Count(1),
            inactivity: seconds(75),
            polling_inactivity: seconds(120),
            polling: seconds(5),
            maxpause: seconds(120),
            first_response_timeout: seconds(10),
            linger: Span(Duration::from_millis(10)),
            overactivity: "lenient".to_owned(),
            zombie: seconds(75),
            gzip: false,
            auto_restart: false,
            legacy_unknown: "body".to_owned(),
            allowed_origins: list(&["*"]),
            allowed_headers: Vec::new(),
            allow_credentials: false,
            body_timeout: seconds(15),
            route_allow: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Limits {
    pub(super) element_bytes: Size,
    pub(super) server_element_bytes: Size,
    pub(super) depth: Count,
    pub(super) attributes: Count,
    pub(super) name_bytes: Size,
    pub(super) namespaces: Count,
    pub(super) elements: Count,
    pub(super) body_bytes: Size,
    pub(super) body_elements: Count,
    pub(super) pending_bytes: Size,
    pub(super) pending_stanzas: Count,
    pub(super) unauthenticated_bytes: Size,
    pub(super) unauthenticated_lifetime: Span,
    pub(super) stall_timeout: Span,
    pub(super) sessions: Count,
    pub(super) memory: Size,
    pub(super) sessions_per_address: Count,
    pub(super) unauthenticated_per_address: Count,
    pub(super) new_sessions_per_minute: Count,
    pub(super) auth_failures_per_minute: Count,
    pub(super) requests_per_second: Count,
    pub(super) connections_per_address: Count,
    pub(super) new_connections_per_second: Count,
    pub(super) unknown_sids_per_minute: Count,
    pub(super) exempt_peers: Vec<String>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            element_bytes: Size(256 << 10),
            server_element_bytes: Size(8 << 20),
            depth: Count(64),
            attributes: Count(128),
            name_bytes: Size(1024),
            namespaces: Count(64),
            elements: Count(10_000),
            body_bytes: Size(0),
            body_elements: Count(256),
            pending_bytes: Size(1 << 20),
            pending_stanzas: Count(1000),
            unauthenticated_bytes: Size(64 << 10),
            unauthenticated_lifetime: seconds(60),
            stall_timeout: seconds(30),
            sessions: Count(20_000),
            memory: Size(256 << 20),
            sessions_per_address: Count(100),
            unauthenticated_per_address: Count(20),
            new_sessions_per_minute: Count(30),
            auth_failures_per_minute: Count(30),
            requests_per_second: Count(100),
            connections_per_address: Count(500),
            new_connections_per_second: Count(100),
            unknown_sids_per_minute: Count(200),
            exempt_peers: list(&[
                "127.0.0.0/8",
                "10.0.0.0/8",
                "172.16.0.0/12",
                "192.168.0.0/16",
                "100.64.0.0/10",
                "169.254.0.0/16",
                "::1/128",
                "fc00::/7",
                "fe80::/10",
            ]),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Upstream {
    pub(super) tls: String,
    pub(super) connect_timeout: Span,
    pub(super) negotiation_timeout: Span,
    pub(super) close_grace: Span,
    pub(super) whitespace_keepalive: Span,
    pub(super) backoff_min: Span,
    pub(super) backoff_max: Span,
    pub(super) slow_start: Span,
    pub(super) dns: Vec<String>,
    pub(super) ca_file: Option<String>,
    pub(super) pin_sha256: Vec<String>,
    pub(super) insecure: bool,
    pub(super) client_certificate: Option<String>,
    pub(super) client_key: Option<String>,
    pub(super) allow_private: bool,
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            tls: "auto".to_owned(),
            connect_timeout: seconds(10),
            negotiation_timeout: seconds(30),
            close_grace: seconds(5),
            whitespace_keepalive: seconds(0),
            backoff_min: seconds(1),
            backoff_max: seconds(60),
            slow_start: seconds(30),
            dns: Vec::new(),
            ca_file: None,
            pin_sha256: Vec::new(),
            insecure: false,
            client_certificate: None,
            client_key: None,
            allow_private: false,
        }
    }
}

/// One `[domains."…"]` table; what is `None` is taken from `[upstream]`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Domain {
    pub(super) servers: Vec<Server>,
    pub(super) public_url: Option<String>,
    pub(super) allowed_origins: Option<Vec<String>>,
    pub(super) tls: Option<String>,
    pub(super) ca_file: Option<String>,
    pub(super) pin_sha256: Option<Vec<String>>,
    pub(super) insecure: Option<bool>,
    pub(super) client_certificate: Option<String>,
    pub(super) client_key: Option<String>,
}

/// One entry of `servers`: its address alone, or a table. Each key may be missing as far as the type
/// goes, so that each can be tried alone.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default, remote = "Self")]
pub(super) struct Server {
    pub(super) address: Option<String>,
    pub(super) priority: Option<Count>,
    pub(super) weight: Option<Count>,
    pub(super) proxy_protocol: Option<String>,
}

impl<'de> Deserialize<'de> for Server {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ServerVisitor;
        impl<'de> Visitor<'de> for ServerVisitor {
            type Value = Server;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(r#"an address such as "xmpp://127.0.0.1:5222" or a table with one"#)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Server, E> {
                Ok(Server { address: Some(text.to_owned()), ..Server::default() })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Server, A::Error> {
                // What `remote` derives: the table alone.
                Server::deserialize(MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_any(ServerVisitor)
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Sasl {
    pub(super) channel_binding: String,
}

impl Default for Sasl {
    fn default() -> Self {
        Self { channel_binding: "passthrough".to_owned() }
    }
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Discovery {
    pub(super) public_url: Option<String>,
    pub(super) links: Vec<Link>,
}

/// One element of `discovery.links`. Both are needed; that one is missing is told by `check`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(
    deny_unknown_fields,
    default,
    expecting = "a table such as { rel = \"…\", href = \"https://…\" }"
)]
pub(super) struct Link {
    pub(super) rel: String,
    pub(super) href: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Drain {
    pub(super) timeout: Span,
    pub(super) window: Span,
    pub(super) see_other_uri: Option<String>,
}

impl Default for Drain {
    fn default() -> Self {
        Self { timeout: seconds(30), window: seconds(0), see_other_uri: None }
    }
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Lab {
    pub(super) enabled: bool,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Log {
    pub(super) format: String,
    pub(super) filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: "human".to_owned(), filter: "info".to_owned() }
    }
}

fn seconds(n: u64) -> Span {
    Span(Duration::from_secs(n))
}

fn list(items: &[&str]) -> Vec<String> {
    items.iter().map(|&item| item.to_owned()).collect()
}
