//! What the counters are by: directions, and what connections carry.

use crate::metrics::Transport;

/// From whom to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    ToServer,
    /// From the server to the client.
    ToClient,
}

impl Direction {
    pub(super) const ALL: [Self; 2] = [Self::ToServer, Self::ToClient];

    pub(super) fn label(self) -> &'static str {
        match self {
            Self::ToServer => "to_server",
            Self::ToClient => "to_client",
        }
    }
}

/// What a client's connection carries, and over which HTTP it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Carried {
    /// Nothing that is known: probes, pages, refused requests; over HTTP/1.1.
    #[default]
    Nothing,
    /// The same over HTTP/2.
    NothingOverH2,
    /// A WebSocket with the framing of RFC 7395.
    Websocket,
    /// One with the older framing.
    WebsocketLegacy,
    /// Requests of BOSH sessions over HTTP/1.1.
    Bosh,
    /// The same over HTTP/2.
    BoshOverH2,
}

impl Carried {
    pub(super) const ALL: [Self; 6] = [
        Self::Nothing,
        Self::NothingOverH2,
        Self::Websocket,
        Self::WebsocketLegacy,
        Self::Bosh,
        Self::BoshOverH2,
    ];

    /// What it is of; `None` for nothing that is known.
    pub(crate) fn transport(self) -> Option<Transport> {
        match self {
            Self::Nothing | Self::NothingOverH2 => None,
            Self::Websocket => Some(Transport::Websocket),
            Self::WebsocketLegacy => Some(Transport::WebsocketLegacy),
            Self::Bosh | Self::BoshOverH2 => Some(Transport::Bosh),
        }
    }

    /// The labels `transport` and `http`.
    pub(super) fn labels(self) -> [(&'static str, &'static str); 2] {
        let http = match self {
            Self::NothingOverH2 | Self::BoshOverH2 => "2",
            _ => "1.1",
        };
        [("transport", self.transport().map_or(NONE, Transport::label)), ("http", http)]
    }
}

/// The value of the label `transport` of what is of none.
pub(super) const NONE: &str = "none";
