//! BOSH: XEP-0124 (version 1.11) and XEP-0206 as one machine without sockets, clocks or randomness.
//!
//! The words are XEP-0124's and no others: a client makes a *session* (`sid`) by a request without
//! one; every request carries a `rid`, one more than the last; `requests` is how many may be
//! unanswered, the *window*; up to `hold` of them are *held* for at most `wait` seconds until there
//! is something to say; a session without an open request lives for `inactivity`; `pause` asks for
//! more of that, up to `maxpause`.
//!
//! [`body`] reads `<body/>`, [`response`] writes it, [`sid`] names sessions, [`session`] is the
//! machine. Its rooms: `create` judges the request that makes a session, `request` takes all later
//! ones in rid order, `server` what the server says, `core` decides which request is answered when
//! and with what, `ending` ends it. They rest on `window` (rids and kept responses), `queue` (what
//! waits for the client) and `keys` (XEP-0124 §15).

pub mod body;
mod core;
mod create;
mod ending;
mod keys;
mod queue;
mod request;
pub mod response;
mod server;
pub mod session;
pub mod sid;
#[cfg(test)]
mod tests;
mod window;

use std::time::{Duration, Instant};

use super::seam::FeatureRules;
use super::stream::Served;
use super::xml;

/// What all sessions of a listener share; plain numbers from the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The domains that clients may name.
    pub served: Served,
    /// Limits on one payload of a client.
    pub client_xml: xml::Limits,
    /// Limits on the server's XML.
    pub server_xml: xml::Limits,
    /// Bytes of one request's body (BOSH-06).
    pub body_bytes: usize,
    /// Payloads of one request (section 0.1 of the catalogue).
    pub body_elements: u32,
    /// The longest `wait` (BOSH-16).
    pub wait_max: Duration,
    /// The `wait` of a client that names none.
    pub wait_default: Duration,
    /// The largest `hold` (BOSH-17).
    pub hold_max: u32,
    /// How long a session lives without an open request (BOSH-57).
    pub inactivity: Duration,
    /// The same for polling sessions (BOSH-18).
    pub polling_inactivity: Duration,
    /// The shortest time between two empty polls (BOSH-62, BOSH-63).
    pub polling: Duration,
    /// The longest `pause` (BOSH-58).
    pub maxpause: Duration,
    /// How long the creation response waits for the server's features (BOSH-29).
    pub first_response_timeout: Duration,
    /// How long an empty answer that `hold` forces may wait for data to ride on it (BOSH-37).
    pub linger: Duration,
    /// Whether overactivity ends a session that does not poll (BOSH-62).
    pub strict_overactivity: bool,
    /// How long a dead session's condition is kept for the next request (BOSH-77).
    pub zombie: Duration,
    /// Responses kept for repeated requests when the client acknowledges (BOSH-43).
    pub replay_responses: usize,
    /// The same in bytes.
    pub replay_bytes: usize,
    /// Payloads of one response (BOSH-41).
    pub response_elements: u32,
    /// Bytes queued towards one side at which the other is no longer read; also the most bytes of
    /// payload in one response, a single larger element excepted.
    pub pending_bytes: usize,
    /// The same in stanzas.
    pub pending_stanzas: u32,
    /// The same in bytes before authentication (UP-24).
    pub unauthenticated_bytes: usize,
    /// How long a session may live without authentication (UP-24).
    pub unauthenticated_lifetime: Duration,
    /// How long the server may take to end its half of a close.
    pub close_grace: Duration,
    /// Idle time after which a blank is written to the server; zero is never (UP-10).
    pub whitespace_keepalive: Duration,
    /// What is taken out of the server's features besides TLS and compression.
    pub features: FeatureRules,
    /// The only values of `route` that are let pass, if any are listed (BOSH-25).
    pub route_allow: Vec<Box<str>>,
    /// Whether sessions without `ver` and `xmpp:version` are restarted by the gateway (XB-12).
    pub auto_restart: bool,
    /// Whether compressed requests are read, which `accept` announces (BOSH-09).
    pub accept_gzip: bool,
}

/// One HTTP request of a session, by a number of the shell's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// The terminal binding conditions of XEP-0124 §17.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Condition {
    /// `bad-request`
    BadRequest,
    /// `host-gone`
    HostGone,
    /// `host-unknown`
    HostUnknown,
    /// `improper-addressing`
    ImproperAddressing,
    /// `internal-server-error`
    InternalServerError,
    /// `item-not-found`
    ItemNotFound,
    /// `other-request`
    OtherRequest,
    /// `policy-violation`
    PolicyViolation,
    /// `remote-connection-failed`
    RemoteConnectionFailed,
    /// `remote-stream-error`
    RemoteStreamError,
    /// `see-other-uri`
    SeeOtherUri,
    /// `system-shutdown`
    SystemShutdown,
    /// `undefined-condition`
    UndefinedCondition,
}

impl Condition {
    /// The word on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::BadRequest => "bad-request",
            Self::HostGone => "host-gone",
            Self::HostUnknown => "host-unknown",
            Self::ImproperAddressing => "improper-addressing",
            Self::InternalServerError => "internal-server-error",
            Self::ItemNotFound => "item-not-found",
            Self::OtherRequest => "other-request",
            Self::PolicyViolation => "policy-violation",
            Self::RemoteConnectionFailed => "remote-connection-failed",
            Self::RemoteStreamError => "remote-stream-error",
            Self::SeeOtherUri => "see-other-uri",
            Self::SystemShutdown => "system-shutdown",
            Self::UndefinedCondition => "undefined-condition",
        }
    }
}

/// Why a response was sent; the label `why` of its counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// The creation response.
    Created,
    /// There was something to say.
    Payload,
    /// `wait` has passed, or the session polls.
    WaitElapsed,
    /// One more request came than may be held.
    HoldExceeded,
    /// The client asked for a pause.
    Pause,
    /// A repeated rid got its kept response.
    Replay,
    /// The client missed a response (BOSH-55).
    Report,
    /// The request is repeated on another connection (BOSH-45).
    Recoverable,
    /// The session is over.
    Terminate,
}

impl Why {
    /// The value of the label `why`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Payload => "payload",
            Self::WaitElapsed => "wait_elapsed",
            Self::HoldExceeded => "hold_exceeded",
            Self::Pause => "pause",
            Self::Replay => "replay",
            Self::Report => "report",
            Self::Recoverable => "recoverable",
            Self::Terminate => "terminate",
        }
    }
}

/// What an HTTP request is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// 200 but for legacy sessions (BOSH-79).
    pub status: u16,
    /// The media type the client asked for (BOSH-22).
    pub content: Content,
    /// The `<body/>`; empty if the status says it all.
    pub body: bytes::Bytes,
    /// It may be compressed: false for what holds the sid (BOSH-08, SEC-13).
    pub compressible: bool,
    /// When each payload in it was read from the server, if it is given for the first time.
    pub read: Vec<Instant>,
    /// One of them is the first stanza since a resource was bound. On its way to the connection, the
    /// time at which the client began stands before theirs.
    pub first: bool,
}

/// The media types of responses; always in UTF-8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Content {
    /// `text/xml; charset=utf-8`
    #[default]
    TextXml,
    /// `application/xml; charset=utf-8`
    ApplicationXml,
    /// `text/plain; charset=utf-8`
    TextPlain,
}
