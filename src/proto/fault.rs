//! Why a session ended: one enum, and everything that follows from the answer.
//!
//! Whose fault it was, what the client is told, which word the metric, the log line and the
//! client's text share, and how loud the log is: total functions side by side, so that a new fault
//! does not compile until all of them are answered. What does not live here: the bytes (see
//! [`super::ws`], [`super::bosh`]) and the detail an operator needs about a failed connection (see
//! `upstream::ConnectFault`, which is logged where it happens).

use super::bosh::Condition;
use super::ns;
use super::xml::Violation;

/// Who is to blame for the end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blame {
    /// The web client: what it sent, or that it went away.
    Client,
    /// The XMPP server or the way to it.
    Server,
    /// This process.
    Gateway,
    /// Nobody: an ordinary end.
    Nobody,
}

impl Blame {
    /// The metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::Gateway => "gateway",
            Self::Nobody => "nobody",
        }
    }
}

/// How loud the end of a session is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Ordinary ends and what any stranger can cause at will.
    Debug,
    /// Ends an operator may want to count.
    Info,
    /// The upstream side fails: somebody should look.
    Warn,
    /// A bug of ours.
    Error,
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The client closed its stream, the server answered.
    Closed,
    /// The server closed the stream without an error.
    ServerClosed,
    /// The server sent a stream error, which the client got.
    ServerError,
    /// The client's connection ended without `<close/>`.
    ClientLost,
    /// The client sent a Close frame without `<close/>`.
    ClientLeft,
    /// No frame of the client for `ws.missed_pongs` intervals.
    ClientSilent,
    /// The client took no byte for `limits.stall_timeout`.
    ClientStalled,
    /// The client sent `<stream:error/>`.
    ClientError,
    /// Not well-formed XML, or not one whole element.
    BadXml,
    /// XML that RFC 6120 §11.1 forbids.
    RestrictedXml,
    /// Well-formed, but not what may stand here (RFC 6120 §4.9.3.1).
    BadFormat,
    /// A stream namespace other than the protocol's (RFC 6120 §4.9.3.10).
    InvalidNamespace,
    /// A stream version whose major part is not 1 (RFC 6120 §4.9.3.25).
    UnsupportedVersion,
    /// `to` names no domain that is served here.
    HostUnknown,
    /// A page of another origin than those that may open streams of the domain.
    ForeignOrigin,
    /// Text that is not UTF-8.
    BadUtf8,
    /// An XML declaration that names another encoding than UTF-8.
    UnsupportedEncoding,
    /// A binary message.
    Binary,
    /// A WebSocket frame against RFC 6455.
    BadFrame,
    /// A stanza over `limits.element_bytes`, refused while it was read.
    TooBig,
    /// A frame that announced too much: refused unread.
    FrameTooBig,
    /// Depth, attributes, names, declarations or elements over their limit.
    XmlLimit,
    /// A message whose fragments did not end within `ws.message_timeout`.
    SlowMessage,
    /// Not authenticated within `limits.unauthenticated_lifetime`.
    Unauthenticated,
    /// The client tried to negotiate TLS inside the stream.
    ClientTls,
    /// A BOSH session was asked for without a domain, and none is the default.
    ImproperAddressing,
    /// A BOSH request that is not exactly one `<body/>`, or an attribute of it has no value it may have
    /// (XEP-0124 §6).
    BadBody,
    /// A BOSH request of a session that is not here.
    UnknownSid,
    /// A rid outside the window, too high or too old (XEP-0124 §14.2, §14.3).
    BadRid,
    /// A rid that the ones behind it waited for did not come (BOSH-36).
    Gap,
    /// A key that is wrong, missing or out of place (XEP-0124 §15).
    BadKey,
    /// A pause longer than `bosh.maxpause`, or none at all (XEP-0124 §10).
    BadPause,
    /// Requests that came too soon one after the other (XEP-0124 §11, §12).
    Overactive,
    /// One rid was repeated too often (XEP-0124 §14.3).
    Repeated,
    /// More responses than are kept were left unacknowledged (BOSH-43).
    ReplayFull,
    /// More than is kept was sent before the server's stream stood.
    EarlyData,
    /// No request was open for `bosh.inactivity` (XEP-0124 §10).
    Inactive,
    /// No candidate of the domain could be reached, or none negotiated.
    ServerUnreachable,
    /// The server's connection ended without a stream end.
    ServerLost,
    /// The server sent XML whose end cannot be proven (UP-36).
    ServerBadXml,
    /// The server sent bytes that are no XML after a SASL success (UP-25).
    ServerSecurityLayer,
    /// The server took no byte for `limits.stall_timeout`.
    ServerStalled,
    /// It held more than others when all together held more than `limits.memory`.
    Memory,
    /// This process is shutting down.
    Drain,
    /// An operator has ended the session through the admin listener.
    AdminKick,
    /// This process broke a rule of its own.
    Bug,
}

/// The stream error a fault is told to the client with (RFC 6120 §4.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamError {
    /// The defined condition (RFC 6120 §4.9.3).
    pub condition: &'static str,
    /// [`Fault::label`]: what the client shows is what the operator searches for.
    pub reason: &'static str,
    /// A sentence for people; needs no escaping.
    pub text: &'static str,
}

impl StreamError {
    /// Writes it (RFC 6120 §4.9.2) as a document of its own (WS-16): the condition, and the reason
    /// with its sentence as the text.
    pub fn write(self, out: &mut Vec<u8>) {
        for part in [
            "<stream:error xmlns:stream=\"",
            ns::STREAMS,
            "\"><",
            self.condition,
            " xmlns=\"",
            ns::STREAM_ERRORS,
            "\"/><text xmlns=\"",
            ns::STREAM_ERRORS,
            "\" xml:lang=\"en\">",
            self.reason,
            ": ",
            self.text,
            "</text></stream:error>",
        ] {
            out.extend_from_slice(part.as_bytes());
        }
    }
}

impl Fault {
    /// Every fault, for tables and tests.
    pub const ALL: [Self; 46] = [
        Self::Closed,
        Self::ServerClosed,
        Self::ServerError,
        Self::ClientLost,
        Self::ClientLeft,
        Self::ClientSilent,
        Self::ClientStalled,
        Self::ClientError,
        Self::BadXml,
        Self::RestrictedXml,
        Self::BadFormat,
        Self::InvalidNamespace,
        Self::UnsupportedVersion,
        Self::HostUnknown,
        Self::ForeignOrigin,
        Self::BadUtf8,
        Self::UnsupportedEncoding,
        Self::Binary,
        Self::BadFrame,
        Self::TooBig,
        Self::FrameTooBig,
        Self::XmlLimit,
        Self::SlowMessage,
        Self::Unauthenticated,
        Self::ClientTls,
        Self::ImproperAddressing,
        Self::BadBody,
        Self::UnknownSid,
        Self::BadRid,
        Self::Gap,
        Self::BadKey,
        Self::BadPause,
        Self::Overactive,
        Self::Repeated,
        Self::ReplayFull,
        Self::EarlyData,
        Self::Inactive,
        Self::ServerUnreachable,
        Self::ServerLost,
        Self::ServerBadXml,
        Self::ServerSecurityLayer,
        Self::ServerStalled,
        Self::Memory,
        Self::Drain,
        Self::AdminKick,
        Self::Bug,
    ];

    /// Who is to blame.
    #[must_use]
    pub fn blame(self) -> Blame {
        match self {
            Self::Closed | Self::ServerClosed => Blame::Nobody,
            Self::ClientLost
            | Self::ClientLeft
            | Self::ClientSilent
            | Self::ClientStalled
            | Self::ClientError
            | Self::BadXml
            | Self::RestrictedXml
            | Self::BadFormat
            | Self::InvalidNamespace
            | Self::UnsupportedVersion
            | Self::HostUnknown
            | Self::ForeignOrigin
            | Self::BadUtf8
            | Self::UnsupportedEncoding
            | Self::Binary
            | Self::BadFrame
            | Self::TooBig
            | Self::FrameTooBig
            | Self::XmlLimit
            | Self::SlowMessage
            | Self::Unauthenticated
            | Self::ClientTls
            | Self::ImproperAddressing
            | Self::BadBody
            | Self::UnknownSid
            | Self::BadRid
            | Self::Gap
            | Self::BadKey
            | Self::BadPause
            | Self::Overactive
            | Self::Repeated
            | Self::ReplayFull
            | Self::EarlyData
            | Self::Inactive
            | Self::Memory => Blame::Client,
            Self::ServerError
            | Self::ServerUnreachable
            | Self::ServerLost
            | Self::ServerBadXml
            | Self::ServerSecurityLayer
            | Self::ServerStalled => Blame::Server,
            Self::Drain | Self::AdminKick | Self::Bug => Blame::Gateway,
        }
    }

    /// Whether it means that the client is not there any more, and did not say so.
    #[must_use]
    pub fn is_loss(self) -> bool {
        matches!(self, Self::ClientLost | Self::ClientSilent | Self::ClientStalled | Self::Inactive)
    }

    /// The one word for this end: metric label, log field, recorder, and first in the text of a
    /// stream error.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::ServerClosed => "server_closed",
            Self::ServerError => "server_error",
            Self::ClientLost => "client_lost",
            Self::ClientLeft => "client_left",
            Self::ClientSilent => "client_silent",
            Self::ClientStalled => "client_stalled",
            Self::ClientError => "client_error",
            Self::BadXml => "bad_xml",
            Self::RestrictedXml => "restricted_xml",
            Self::BadFormat => "bad_format",
            Self::InvalidNamespace => "invalid_namespace",
            Self::UnsupportedVersion => "unsupported_version",
            Self::HostUnknown => "bad_host",
            Self::ForeignOrigin => "foreign_origin",
            Self::BadUtf8 => "bad_utf8",
            Self::UnsupportedEncoding => "bad_encoding",
            Self::Binary => "binary",
            Self::BadFrame => "bad_frame",
            Self::TooBig => "too_big",
            Self::FrameTooBig => "frame_too_big",
            Self::XmlLimit => "xml_limit",
            Self::SlowMessage => "slow_message",
            Self::Unauthenticated => "unauthenticated",
            Self::ClientTls => "client_tls",
            Self::ImproperAddressing => "improper_addressing",
            Self::BadBody => "bad_body",
            Self::UnknownSid => "bad_sid",
            Self::BadRid => "bad_rid",
            Self::Gap => "gap",
            Self::BadKey => "bad_key",
            Self::BadPause => "bad_pause",
            Self::Overactive => "overactive",
            Self::Repeated => "repeated",
            Self::ReplayFull => "replay_full",
            Self::EarlyData => "early_data",
            Self::Inactive => "inactive",
            Self::ServerUnreachable => "server_unreachable",
            Self::ServerLost => "server_lost",
            Self::ServerBadXml => "server_bad_xml",
            Self::ServerSecurityLayer => "server_security_layer",
            Self::ServerStalled => "server_stalled",
            Self::Memory => "memory",
            Self::Drain => "drain",
            Self::AdminKick => "admin_kick",
            Self::Bug => "bug",
        }
    }

    /// What a WebSocket client is told; `None` where the end is no error or nobody is there to hear it.
    #[must_use]
    pub fn stream_error(self) -> Option<StreamError> {
        let (condition, text) = match self {
            Self::Closed
            | Self::ServerClosed
            | Self::ServerError
            | Self::ClientLost
            | Self::ClientLeft
            | Self::ClientSilent
            | Self::ClientStalled
            | Self::ClientError
            | Self::ClientTls
            | Self::ImproperAddressing
            | Self::BadBody
            | Self::UnknownSid
            | Self::BadRid
            | Self::Gap
            | Self::BadKey
            | Self::BadPause
            | Self::Overactive
            | Self::Repeated
            | Self::ReplayFull
            | Self::EarlyData
            | Self::Inactive => return None,
            Self::BadXml => ("not-well-formed", "the message is not one well-formed element"),
            Self::RestrictedXml => ("restricted-xml", "XML that XMPP does not allow"),
            Self::BadFormat => ("bad-format", "this element is not allowed here"),
            Self::InvalidNamespace => ("invalid-namespace", "the stream namespace is wrong"),
            Self::UnsupportedVersion => ("unsupported-version", "only version 1.0 is spoken"),
            Self::HostUnknown => ("host-unknown", "this domain is not served here"),
            Self::ForeignOrigin => {
                ("policy-violation", "web pages of this origin are not served for this domain")
            }
            Self::BadUtf8 => ("not-well-formed", "the text is not UTF-8"),
            Self::UnsupportedEncoding => ("unsupported-encoding", "only UTF-8 is spoken"),
            Self::Binary => ("bad-format", "XMPP is sent in text messages"),
            Self::BadFrame => ("bad-format", "the WebSocket frame is invalid"),
            Self::TooBig | Self::FrameTooBig => ("policy-violation", "stanza too big"),
            Self::XmlLimit => ("policy-violation", "the element is too complex"),
            Self::SlowMessage => ("policy-violation", "the message took too long"),
            Self::Unauthenticated => ("policy-violation", "not authenticated in time"),
            Self::ServerUnreachable => {
                ("remote-connection-failed", "the XMPP server cannot be reached")
            }
            Self::ServerLost => {
                ("remote-connection-failed", "the connection to the XMPP server was lost")
            }
            Self::ServerSecurityLayer => {
                ("remote-connection-failed", "the XMPP server sent something that is not XML")
            }
            Self::ServerStalled => {
                ("remote-connection-failed", "the XMPP server does not take data")
            }
            Self::ServerBadXml => ("internal-server-error", "the XMPP server sent broken XML"),
            Self::Memory => ("resource-constraint", "this session holds too much memory"),
            Self::Drain => ("system-shutdown", "the gateway is shutting down"),
            Self::AdminKick => ("policy-violation", "an operator has ended the session"),
            Self::Bug => ("internal-server-error", "the gateway failed"),
        };
        Some(StreamError { condition, reason: self.label(), text })
    }

    /// The terminal binding condition a BOSH client is told (XEP-0124 §17.2); `None` where the end
    /// is no error, or nobody is there to hear it.
    #[must_use]
    pub fn condition(self) -> Option<Condition> {
        Some(match self {
            Self::Closed
            | Self::ServerClosed
            | Self::ClientLost
            | Self::ClientLeft
            | Self::ClientSilent
            | Self::ClientStalled
            | Self::ClientError
            | Self::ClientTls
            | Self::Inactive => return None,
            Self::BadXml
            | Self::RestrictedXml
            | Self::BadFormat
            | Self::InvalidNamespace
            | Self::UnsupportedVersion
            | Self::BadUtf8
            | Self::UnsupportedEncoding
            | Self::Binary
            | Self::BadFrame
            | Self::BadBody => Condition::BadRequest,
            Self::HostUnknown => Condition::HostUnknown,
            Self::ImproperAddressing => Condition::ImproperAddressing,
            Self::UnknownSid | Self::BadRid | Self::Gap | Self::BadKey => Condition::ItemNotFound,
            Self::TooBig
            | Self::FrameTooBig
            | Self::XmlLimit
            | Self::SlowMessage
            | Self::Unauthenticated
            | Self::BadPause
            | Self::Overactive
            | Self::Repeated
            | Self::ReplayFull
            | Self::EarlyData
            | Self::ForeignOrigin => Condition::PolicyViolation,
            // What is told of these is a stream error, too: see `bosh::ending`.
            Self::ServerError | Self::AdminKick | Self::Memory => Condition::RemoteStreamError,
            Self::ServerUnreachable
            | Self::ServerLost
            | Self::ServerBadXml
            | Self::ServerSecurityLayer
            | Self::ServerStalled => Condition::RemoteConnectionFailed,
            Self::Drain => Condition::SystemShutdown,
            Self::Bug => Condition::InternalServerError,
        })
    }

    /// The code of the WebSocket Close frame (RFC 6455 §7.4.1).
    #[must_use]
    pub fn close_code(self) -> u16 {
        match self {
            Self::Binary => 1003,
            Self::BadFrame => 1002,
            Self::BadUtf8 => 1007,
            Self::FrameTooBig => 1009,
            Self::Drain => 1001,
            Self::Bug => 1011,
            Self::Closed
            | Self::ServerClosed
            | Self::ServerError
            | Self::ClientLost
            | Self::ClientLeft
            | Self::ClientSilent
            | Self::ClientStalled
            | Self::ClientError
            | Self::BadXml
            | Self::RestrictedXml
            | Self::BadFormat
            | Self::InvalidNamespace
            | Self::UnsupportedVersion
            | Self::HostUnknown
            | Self::ForeignOrigin
            | Self::UnsupportedEncoding
            | Self::TooBig
            | Self::XmlLimit
            | Self::SlowMessage
            | Self::Unauthenticated
            | Self::ClientTls
            | Self::ImproperAddressing
            | Self::BadBody
            | Self::UnknownSid
            | Self::BadRid
            | Self::Gap
            | Self::BadKey
            | Self::BadPause
            | Self::Overactive
            | Self::Repeated
            | Self::ReplayFull
            | Self::EarlyData
            | Self::Inactive
            | Self::ServerUnreachable
            | Self::ServerLost
            | Self::ServerBadXml
            | Self::ServerSecurityLayer
            | Self::ServerStalled
            | Self::AdminKick
            | Self::Memory => 1000,
        }
    }

    /// How loud the end is.
    #[must_use]
    pub fn level(self) -> Level {
        match self {
            Self::BadXml
            | Self::RestrictedXml
            | Self::BadFormat
            | Self::InvalidNamespace
            | Self::UnsupportedVersion
            | Self::HostUnknown
            | Self::ForeignOrigin
            | Self::BadUtf8
            | Self::UnsupportedEncoding
            | Self::Binary
            | Self::BadFrame
            | Self::ImproperAddressing
            | Self::BadBody
            | Self::UnknownSid
            | Self::BadRid
            | Self::BadKey => Level::Debug,
            Self::Closed
            | Self::ServerClosed
            | Self::ServerError
            | Self::ClientLost
            | Self::ClientLeft
            | Self::ClientSilent
            | Self::ClientStalled
            | Self::ClientError
            | Self::TooBig
            | Self::FrameTooBig
            | Self::XmlLimit
            | Self::SlowMessage
            | Self::Unauthenticated
            | Self::ClientTls
            | Self::Gap
            | Self::BadPause
            | Self::Overactive
            | Self::Repeated
            | Self::ReplayFull
            | Self::EarlyData
            | Self::Inactive
            | Self::Memory
            | Self::Drain
            | Self::AdminKick => Level::Info,
            Self::ServerUnreachable
            | Self::ServerLost
            | Self::ServerBadXml
            | Self::ServerSecurityLayer
            | Self::ServerStalled => Level::Warn,
            Self::Bug => Level::Error,
        }
    }
}

impl From<Violation> for Fault {
    /// What a violation in the *client's* XML means. (The server's is [`Fault::ServerBadXml`].)
    fn from(violation: Violation) -> Self {
        match violation {
            Violation::NotWellFormed(_) | Violation::Namespace(_) => Self::BadXml,
            Violation::InvalidNamespace => Self::InvalidNamespace,
            Violation::Restricted(_) => Self::RestrictedXml,
            // A message was checked to be UTF-8 before; what is left is what it says of itself.
            Violation::BadEncoding => Self::UnsupportedEncoding,
            Violation::TooBig => Self::TooBig,
            Violation::Limit(_) => Self::XmlLimit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// The label is what an operator searches for: one word, one meaning.
    #[test]
    fn labels_are_distinct() {
        let labels: HashSet<_> = Fault::ALL.iter().map(|fault| fault.label()).collect();
        assert_eq!(labels.len(), Fault::ALL.len());
        // It stands in attributes and texts as it is.
        assert!(
            labels
                .iter()
                .all(|label| label.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric()))
        );
    }

    /// What a client is told begins with the word that the operator has.
    #[test]
    fn stream_errors_begin_with_the_label() {
        for fault in Fault::ALL {
            let Some(error) = fault.stream_error() else { continue };
            let mut out = Vec::new();
            error.write(&mut out);
            let text = String::from_utf8(out).unwrap();
            assert!(text.contains(&format!(">{}: {}</text>", fault.label(), error.text)), "{text}");
        }
    }

    /// BOSH-70: too high, too old, unknown and badly keyed all look alike; BOSH-71, BOSH-72.
    #[test]
    fn conditions_tell_no_more_than_they_may() {
        for fault in [Fault::UnknownSid, Fault::BadRid, Fault::Gap, Fault::BadKey] {
            assert_eq!(fault.condition(), Some(Condition::ItemNotFound), "{fault:?}");
        }
        assert_eq!(Fault::ServerBadXml.condition(), Some(Condition::RemoteConnectionFailed));
        assert_eq!(Fault::Overactive.condition(), Some(Condition::PolicyViolation));
        assert_eq!(Fault::Closed.condition(), None);
    }

    /// RFC 6455 §7.4: 1005, 1006 and 1015 are never sent.
    #[test]
    fn close_codes_may_be_sent() {
        for fault in Fault::ALL {
            assert!(matches!(fault.close_code(), 1000..=1003 | 1007..=1011), "{fault:?}");
        }
    }
}
