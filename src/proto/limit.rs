//! The limits of the configuration at which somebody is refused or ended, by the names they have
//! there.

use super::fault::Fault;
use super::xml::Violation;

/// A limit at which somebody was refused or ended; its name is its key in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limit {
    /// `limits.sessions`
    Sessions,
    /// `limits.sessions_per_address`
    SessionsPerAddress,
    /// `limits.unauthenticated_per_address`
    UnauthenticatedPerAddress,
    /// `limits.new_sessions_per_minute`
    NewSessionsPerMinute,
    /// `limits.auth_failures_per_minute`
    AuthFailuresPerMinute,
    /// `limits.requests_per_second`
    RequestsPerSecond,
    /// `limits.unknown_sids_per_minute`
    UnknownSidsPerMinute,
    /// `limits.connections_per_address`
    ConnectionsPerAddress,
    /// `limits.new_connections_per_second`
    NewConnectionsPerSecond,
    /// `limits.memory`
    Memory,
    /// `limits.element_bytes`
    ElementBytes,
    /// `limits.server_element_bytes`
    ServerElementBytes,
    /// `limits.depth`
    Depth,
    /// `limits.attributes`
    Attributes,
    /// `limits.name_bytes`
    NameBytes,
    /// `limits.namespaces`
    Namespaces,
    /// `limits.elements`
    Elements,
    /// `limits.body_bytes`
    BodyBytes,
    /// `limits.body_elements`
    BodyElements,
    /// `limits.pending_bytes`
    PendingBytes,
    /// `limits.pending_stanzas`
    PendingStanzas,
    /// `limits.unauthenticated_bytes`
    UnauthenticatedBytes,
    /// `limits.unauthenticated_lifetime`
    UnauthenticatedLifetime,
    /// `limits.stall_timeout`
    StallTimeout,
    /// `listen.max_connections`
    MaxConnections,
    /// `listen.head_timeout`
    HeadTimeout,
    /// `listen.handshake_timeout`
    HandshakeTimeout,
    /// `listen.proxy_protocol_timeout`
    ProxyProtocolTimeout,
    /// `ws.max_fragments`
    MaxFragments,
    /// `ws.message_timeout`
    MessageTimeout,
    /// `bosh.body_timeout`
    BodyTimeout,
    /// `bosh.maxpause`
    MaxPause,
    /// `bosh.polling`
    Polling,
}

impl Limit {
    /// Every limit.
    pub const ALL: [Self; 33] = [
        Self::Sessions,
        Self::SessionsPerAddress,
        Self::UnauthenticatedPerAddress,
        Self::NewSessionsPerMinute,
        Self::AuthFailuresPerMinute,
        Self::RequestsPerSecond,
        Self::UnknownSidsPerMinute,
        Self::ConnectionsPerAddress,
        Self::NewConnectionsPerSecond,
        Self::Memory,
        Self::ElementBytes,
        Self::ServerElementBytes,
        Self::Depth,
        Self::Attributes,
        Self::NameBytes,
        Self::Namespaces,
        Self::Elements,
        Self::BodyBytes,
        Self::BodyElements,
        Self::PendingBytes,
        Self::PendingStanzas,
        Self::UnauthenticatedBytes,
        Self::UnauthenticatedLifetime,
        Self::StallTimeout,
        Self::MaxConnections,
        Self::HeadTimeout,
        Self::HandshakeTimeout,
        Self::ProxyProtocolTimeout,
        Self::MaxFragments,
        Self::MessageTimeout,
        Self::BodyTimeout,
        Self::MaxPause,
        Self::Polling,
    ];

    /// The key, without its table if that is `[limits]`: the value of the label `limit`, and the
    /// word in the log.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Sessions => "sessions",
            Self::SessionsPerAddress => "sessions_per_address",
            Self::UnauthenticatedPerAddress => "unauthenticated_per_address",
            Self::NewSessionsPerMinute => "new_sessions_per_minute",
            Self::AuthFailuresPerMinute => "auth_failures_per_minute",
            Self::RequestsPerSecond => "requests_per_second",
            Self::UnknownSidsPerMinute => "unknown_sids_per_minute",
            Self::ConnectionsPerAddress => "connections_per_address",
            Self::NewConnectionsPerSecond => "new_connections_per_second",
            Self::Memory => "memory",
            Self::ElementBytes => "element_bytes",
            Self::ServerElementBytes => "server_element_bytes",
            Self::Depth => "depth",
            Self::Attributes => "attributes",
            Self::NameBytes => "name_bytes",
            Self::Namespaces => "namespaces",
            Self::Elements => "elements",
            Self::BodyBytes => "body_bytes",
            Self::BodyElements => "body_elements",
            Self::PendingBytes => "pending_bytes",
            Self::PendingStanzas => "pending_stanzas",
            Self::UnauthenticatedBytes => "unauthenticated_bytes",
            Self::UnauthenticatedLifetime => "unauthenticated_lifetime",
            Self::StallTimeout => "stall_timeout",
            Self::MaxConnections => "listen.max_connections",
            Self::HeadTimeout => "listen.head_timeout",
            Self::HandshakeTimeout => "listen.handshake_timeout",
            Self::ProxyProtocolTimeout => "listen.proxy_protocol_timeout",
            Self::MaxFragments => "ws.max_fragments",
            Self::MessageTimeout => "ws.message_timeout",
            Self::BodyTimeout => "bosh.body_timeout",
            Self::MaxPause => "bosh.maxpause",
            Self::Polling => "bosh.polling",
        }
    }

    /// The limit that a fault says was reached. None where a fault has several: a session that
    /// ended remembers which it was. That of [`Fault::Memory`] is counted where it is decided.
    #[must_use]
    pub fn of(fault: Fault) -> Option<Self> {
        Some(match fault {
            Fault::TooBig | Fault::FrameTooBig => Self::ElementBytes,
            Fault::SlowMessage => Self::MessageTimeout,
            Fault::Unauthenticated => Self::UnauthenticatedLifetime,
            Fault::EarlyData => Self::UnauthenticatedBytes,
            Fault::ClientStalled | Fault::ServerStalled => Self::StallTimeout,
            Fault::Overactive => Self::Polling,
            // One of several, or none.
            Fault::XmlLimit
            | Fault::BadPause
            | Fault::ServerBadXml
            | Fault::ServerSecurityLayer
            // Of these no key says how much is too much.
            | Fault::BadRid
            | Fault::Repeated
            | Fault::ReplayFull
            // That the client has gone is found out so; it has asked too much of nobody.
            | Fault::ClientSilent
            | Fault::Inactive
            | Fault::Gap
            // It is counted when the session is chosen.
            | Fault::Memory
            // The others reach no limit.
            | Fault::Closed
            | Fault::ServerClosed
            | Fault::ServerError
            | Fault::ClientLost
            | Fault::ClientLeft
            | Fault::ClientError
            | Fault::BadXml
            | Fault::RestrictedXml
            | Fault::BadFormat
            | Fault::InvalidNamespace
            | Fault::UnsupportedVersion
            | Fault::HostUnknown
            | Fault::ForeignOrigin
            | Fault::BadUtf8
            | Fault::UnsupportedEncoding
            | Fault::Binary
            | Fault::BadFrame
            | Fault::ClientTls
            | Fault::ImproperAddressing
            | Fault::BadBody
            | Fault::UnknownSid
            | Fault::BadKey
            | Fault::ServerUnreachable
            | Fault::ServerLost
            | Fault::Drain
            | Fault::AdminKick
            | Fault::Bug => return None,
        })
    }
}

impl Violation {
    /// The limit that it passes, in what a client sent.
    #[must_use]
    pub fn limit(self) -> Option<Limit> {
        match self {
            Self::TooBig => Some(Limit::ElementBytes),
            Self::Limit(limit) => Some(limit),
            Self::NotWellFormed(_)
            | Self::Restricted(_)
            | Self::BadEncoding
            | Self::Namespace(_)
            | Self::InvalidNamespace => None,
        }
    }

    /// The same in what a server sent.
    #[must_use]
    pub fn server_limit(self) -> Option<Limit> {
        match self {
            Self::TooBig => Some(Limit::ServerElementBytes),
            other => other.limit(),
        }
    }
}
