//! From the configuration's words to each part's own.

use std::sync::Arc;

use crate::config::{self, Config};
use crate::http;
use crate::proto::forwarded::Networks;
use crate::proto::origins::{self, Origins};
use crate::proto::seam::FeatureRules;
use crate::proto::stream::Served;
use crate::proto::{bosh, frame, handshake, ws, xml};
use crate::session::{addresses, recorder};
use crate::upstream;

pub(super) fn handshake(config: &Config) -> handshake::Settings {
    handshake::Settings {
        require_subprotocol: config.ws.require_subprotocol,
        require_origin: config.ws.require_origin,
        origins: origins(config, &config.ws.allowed_origins).all(),
    }
}

/// The pages of each domain; `others` are those of the domains that name none.
pub(super) fn origins(config: &Config, others: &config::AllowedOrigins) -> origins::ByDomain {
    config.domains.map(|route| match route.allowed_origins.as_ref().unwrap_or(others) {
        config::AllowedOrigins::Any => Origins::Any,
        config::AllowedOrigins::Listed(list) => Origins::Listed(boxed(list)),
    })
}

fn boxed(list: &[String]) -> Vec<Box<str>> {
    list.iter().map(|text| text.as_str().into()).collect()
}

pub(super) fn served(config: &Config) -> Served {
    Served {
        domains: config.domains.named.keys().cloned().collect(),
        suffixes: config.domains.suffixes.keys().cloned().collect(),
        any: config.domains.any.is_some(),
        default: config.default_domain.clone(),
    }
}

fn features(config: &Config) -> FeatureRules {
    FeatureRules {
        strip_channel_binding: config.sasl.channel_binding == config::ChannelBinding::Strip,
        strip_external: false,
        strip_sm: false,
    }
}

pub(super) fn websocket(config: &Config) -> ws::Settings {
    let limits = &config.limits;
    ws::Settings {
        served: served(config),
        client_xml: client_xml(config),
        server_xml: server_xml(config),
        frames: frame::FrameLimits {
            message_bytes: limits.element_bytes,
            fragments: config.ws.max_fragments,
        },
        pending_bytes: limits.pending_bytes,
        pending_stanzas: u32::try_from(limits.pending_stanzas).unwrap_or(u32::MAX),
        unauthenticated_bytes: limits.unauthenticated_bytes,
        unauthenticated_lifetime: limits.unauthenticated_lifetime,
        legacy_framing: config.ws.legacy_framing,
        ping_interval: config.ws.ping_interval,
        missed_pongs: config.ws.missed_pongs,
        message_timeout: config.ws.message_timeout,
        close_grace: config.upstream.close_grace,
        whitespace_keepalive: config.upstream.whitespace_keepalive.unwrap_or_default(),
        stamp_lang: config.ws.stamp_lang,
        see_other_uri: config.drain.see_other_uri.as_deref().map(Into::into),
        features: features(config),
    }
}

pub(super) fn connection(config: &Config) -> http::connection::Limits {
    http::connection::Limits {
        first_byte: config.listen.head_timeout,
        keep_alive: config.listen.keep_alive,
        guard: http::guard::Limits {
            arrival: config.listen.head_timeout + config.bosh.body_timeout,
            body_bytes: config.limits.body_bytes,
            stall: config.limits.stall_timeout,
        },
    }
}

pub(super) fn tls(config: &Config) -> http::tls::Settings {
    http::tls::Settings {
        certificates: config
            .tls
            .certificates
            .iter()
            .map(|pair| (pair.certificate.clone(), pair.key.clone()))
            .collect(),
        only_1_3: config.tls.min_version == config::TlsVersion::V1_3,
        handshake_timeout: config.listen.handshake_timeout,
    }
}

pub(super) fn trust(config: &Config) -> http::caller::Trust {
    http::caller::Trust::new(
        Networks::new(&config.listen.trusted_proxies.networks),
        config.listen.trusted_proxies.unix,
        Networks::new(&config.limits.exempt_peers),
    )
}

pub(super) fn door(config: &Config, trust: Arc<http::caller::Trust>) -> http::door::Settings {
    http::door::Settings {
        proxies: Networks::new(&config.listen.proxy_protocol.networks),
        unix_proxies: config.listen.proxy_protocol.unix,
        patience: config.listen.proxy_protocol_timeout,
        trust,
    }
}

pub(super) fn addresses(config: &Config) -> addresses::Limits {
    let limits = &config.limits;
    addresses::Limits {
        sessions: limits.sessions_per_address,
        unauthenticated: limits.unauthenticated_per_address,
        connections: limits.connections_per_address,
        new_sessions: limits.new_sessions_per_minute,
        new_connections: limits.new_connections_per_second,
        requests: limits.requests_per_second,
        auth_failures: limits.auth_failures_per_minute,
    }
}

pub(super) fn recorder(config: &Config) -> recorder::Settings {
    let config::Recorder { events, keep, ended } = config.recorder;
    recorder::Settings { events, keep, ended }
}

/// The hash of the token that has to be shown.
pub(super) fn token(config: &Config) -> Option<[u8; 32]> {
    config.admin.token.map(|token| *token.hash())
}

pub(super) fn face(config: &Config, trust: Arc<http::caller::Trust>) -> http::bosh::Settings {
    let bosh = &config.bosh;
    let by_domain = origins(config, &bosh.allowed_origins);
    http::bosh::Settings {
        origins: by_domain.all(),
        origins_matter: by_domain.matter(),
        allow_credentials: bosh.allow_credentials,
        allowed_headers: boxed(&bosh.allowed_headers),
        body_timeout: bosh.body_timeout,
        gzip: bosh.gzip,
        legacy_unknown: bosh.legacy_unknown == config::LegacyUnknown::Http,
        strangers: config.limits.unknown_sids_per_minute.map(http::bosh::Strangers::new),
        trust,
    }
}

pub(super) fn bosh(config: &Config) -> bosh::Settings {
    let (limits, bosh) = (&config.limits, &config.bosh);
    bosh::Settings {
        served: served(config),
        client_xml: client_xml(config),
        server_xml: server_xml(config),
        body_bytes: limits.body_bytes,
        body_elements: limits.body_elements,
        wait_max: bosh.wait_max,
        wait_default: bosh.wait_default,
        hold_max: bosh.hold_max,
        inactivity: bosh.inactivity,
        polling_inactivity: bosh.polling_inactivity,
        polling: bosh.polling,
        maxpause: bosh.maxpause,
        first_response_timeout: bosh.first_response_timeout,
        linger: bosh.linger,
        strict_overactivity: bosh.overactivity == config::Overactivity::Strict,
        zombie: bosh.zombie,
        // Section 0.1 of the catalogue; no one has a reason to choose others.
        replay_responses: 32,
        replay_bytes: 1 << 20,
        response_elements: 256,
        pending_bytes: limits.pending_bytes,
        pending_stanzas: u32::try_from(limits.pending_stanzas).unwrap_or(u32::MAX),
        unauthenticated_bytes: limits.unauthenticated_bytes,
        unauthenticated_lifetime: limits.unauthenticated_lifetime,
        close_grace: config.upstream.close_grace,
        whitespace_keepalive: config.upstream.whitespace_keepalive.unwrap_or_default(),
        features: features(config),
        route_allow: boxed(&bosh.route_allow),
        auto_restart: bosh.auto_restart,
        accept_gzip: bosh.gzip,
    }
}

fn client_xml(config: &Config) -> xml::Limits {
    let limits = &config.limits;
    xml::Limits {
        element_bytes: limits.element_bytes,
        depth: limits.depth,
        attributes: limits.attributes,
        name_bytes: limits.name_bytes,
        namespaces: limits.namespaces,
        elements: limits.elements,
    }
}

fn server_xml(config: &Config) -> xml::Limits {
    xml::Limits {
        element_bytes: config.limits.server_element_bytes,
        // A roster of thousands has more elements than any stanza of a client; its bytes
        // bound them.
        elements: u32::MAX,
        ..client_xml(config)
    }
}

pub(super) fn upstream(config: &Config) -> upstream::Settings {
    upstream::Settings {
        routes: config.domains.map(route),
        dns: config.upstream.dns.clone(),
        allow_private: config.upstream.allow_private,
        connect_timeout: config.upstream.connect_timeout,
        negotiation_timeout: config.upstream.negotiation_timeout,
        backoff: upstream::Backoff {
            least: config.upstream.backoff_min,
            most: config.upstream.backoff_max,
            slow_start: config.upstream.slow_start,
        },
        limits: server_xml(config),
    }
}

fn member(server: &config::Server) -> upstream::Member {
    upstream::Member {
        server: match &server.address {
            config::ServerAddress::Tcp { host, port } => {
                upstream::Server::Tcp { host: host.clone(), port: *port, direct_tls: false }
            }
            config::ServerAddress::DirectTls { host, port } => {
                upstream::Server::Tcp { host: host.clone(), port: *port, direct_tls: true }
            }
            config::ServerAddress::Unix(path) => upstream::Server::Unix(path.clone()),
        },
        priority: server.priority,
        weight: server.weight,
        proxy_protocol: match server.proxy_protocol {
            config::ProxyProtocol::Off => upstream::ProxyProtocol::Off,
            config::ProxyProtocol::V1 => upstream::ProxyProtocol::V1,
            config::ProxyProtocol::V2 => upstream::ProxyProtocol::V2,
        },
    }
}

fn route(route: &config::Route) -> upstream::Route {
    upstream::Route {
        servers: route.servers.iter().map(member).collect(),
        tls: match route.tls {
            config::TlsMode::Auto => upstream::TlsUse::Auto,
            config::TlsMode::Required => upstream::TlsUse::Required,
            config::TlsMode::IfOffered => upstream::TlsUse::IfOffered,
            config::TlsMode::Never => upstream::TlsUse::Never,
        },
        trust: if route.insecure {
            upstream::Trust::Insecure
        } else if !route.pin_sha256.is_empty() {
            upstream::Trust::Pins(route.pin_sha256.iter().map(|pin| pin.0).collect())
        } else if let Some(file) = &route.ca_file {
            upstream::Trust::CaFile(file.clone())
        } else {
            upstream::Trust::System
        },
        client_certificate: route.client.as_ref().map(|client| upstream::ClientCertificate {
            chain: client.certificate.clone(),
            key: client.key.clone(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::domain::Domain;
    use crate::upstream::{Connector, Health};

    /// SEC-22: the machines let those domains in, and no others, that the configuration routes and
    /// the way to the servers knows.
    #[test]
    fn all_agree_on_what_is_served() {
        const SERVERS: &str = "servers = [\"127.0.0.1\"]\n";
        let suffix = "[domains.\"*.wide.test\"]";
        let deeper = "[domains.\"*.deep.wide.test\"]";
        for (fallback, others) in [("", false), ("[domains.\"*\"]\n", true)] {
            let rest = if fallback.is_empty() { "" } else { SERVERS };
            let text = format!(
                "[domains.\"one.test\"]\n{SERVERS}{suffix}\n{SERVERS}{deeper}\n{SERVERS}{fallback}{rest}"
            );
            let config = Config::from_toml_str(&text).unwrap();
            let served = served(&config);
            let connector = Connector::new(upstream(&config), Health::default()).unwrap();
            for (domain, expected) in [
                ("one.test", true),
                ("a.wide.test", true),
                ("a.b.wide.test", true),
                ("A.DEEP.wide.test.", true),
                ("wide.test", others),
                ("notwide.test", others),
                ("a.one.test", others),
                ("test", others),
                ("127.0.0.1", others),
                ("[::1]", others),
            ] {
                let domain = Domain::parse(domain).unwrap();
                assert_eq!(served.serves(&domain), expected, "{domain:?}");
                assert_eq!(config.route(&domain).is_some(), expected, "{domain:?}");
                assert_eq!(connector.serves(&domain), expected, "{domain:?}");
            }
        }
    }
}
