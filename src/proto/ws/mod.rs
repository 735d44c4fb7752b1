//! XMPP over WebSocket: RFC 7395 and, before it, draft-moffitt-xmpp-over-websocket-03.
//!
//! Here live the few bytes that differ between the two framings. What a session does with them is
//! [`session`]; frames are [`super::frame`], elements [`super::xml`].

mod client;
mod core;
mod ending;
mod server;
pub mod session;
#[cfg(test)]
mod tests;

use std::time::Duration;

use super::frame;
use super::item::StreamHeader;
use super::ns;
use super::seam::{FeatureRules, escape_attribute};
use super::stream::Served;
use super::xml;

/// The answer that Strophe compares as a string: one blank before `/>` (WS-24).
pub const CLOSE: &str = r#"<close xmlns="urn:ietf:params:xml:ns:xmpp-framing" />"#;
/// The legacy stream end, byte-exact (WSL-14).
pub const LEGACY_CLOSE: &str = "</stream:stream>";

/// What all sessions of a listener share; plain numbers from the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The domains that clients may name.
    pub served: Served,
    /// Limits on the client's XML.
    pub client_xml: xml::Limits,
    /// Limits on the server's XML.
    pub server_xml: xml::Limits,
    /// Limits on the client's frames.
    pub frames: frame::FrameLimits,
    /// Bytes queued towards one side at which the other is no longer read.
    pub pending_bytes: usize,
    /// The same in stanzas.
    pub pending_stanzas: u32,
    /// The same in bytes before authentication (UP-24).
    pub unauthenticated_bytes: usize,
    /// How long a session may live without authentication (UP-24).
    pub unauthenticated_lifetime: Duration,
    /// Whether draft-moffitt framing is served (WSL-12).
    pub legacy_framing: bool,
    /// Seconds between pings (WS-40).
    pub ping_interval: Duration,
    /// Intervals without any frame that end a session (WS-40).
    pub missed_pongs: u32,
    /// How long a message may take from its first fragment (SEC-18).
    pub message_timeout: Duration,
    /// How long the other side may take to end its half of a close.
    pub close_grace: Duration,
    /// Idle time after which a blank is written to the server; zero is never (UP-10).
    pub whitespace_keepalive: Duration,
    /// Whether stanzas without `xml:lang` get the server stream's (UP-30).
    pub stamp_lang: bool,
    /// Where clients that open a stream while the process drains are sent (WS-38): a `wss:` or
    /// `ws:` URL.
    pub see_other_uri: Option<Box<str>>,
    /// What is taken out of the server's features besides TLS and compression.
    pub features: FeatureRules,
}

/// How a WebSocket is framed; decided by its first message (WSL-01).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// `<open/>` and `<close/>`.
    Rfc7395,
    /// `<stream:stream>`; `closed` says how the client spelled its latest header (WSL-04).
    Legacy {
        /// The client's header was self-closed or closed at once.
        closed: bool,
    },
}

impl Framing {
    /// Writes the stream header towards the client, without the frame around it.
    pub fn write_open(self, header: &StreamHeader, out: &mut Vec<u8>) {
        let fields = [
            ("id", header.id.as_deref()),
            ("from", header.from.as_deref()),
            // Strophe refuses an answer without a version (WS-23), and a server without one
            // would have failed the negotiation.
            ("version", Some(header.version.as_deref().unwrap_or("1.0"))),
            ("xml:lang", header.lang.as_deref()),
        ];
        match self {
            Self::Rfc7395 => {
                out.extend_from_slice(b"<open xmlns=\"");
                out.extend_from_slice(ns::FRAMING.as_bytes());
                out.push(b'"');
                write_fields(&fields, b'"', out);
                out.extend_from_slice(b"/>");
            }
            Self::Legacy { closed } => {
                out.extend_from_slice(b"<stream:stream xmlns='jabber:client' xmlns:stream='");
                out.extend_from_slice(ns::STREAMS.as_bytes());
                out.push(b'\'');
                write_fields(&fields, b'\'', out);
                out.extend_from_slice(if closed { b"/>" } else { b">" });
            }
        }
    }

    /// The stream end towards the client.
    #[must_use]
    pub fn close(self) -> &'static str {
        match self {
            Self::Rfc7395 => CLOSE,
            Self::Legacy { .. } => LEGACY_CLOSE,
        }
    }
}

/// [`CLOSE`] with the address of another place (RFC 7395 §3.6.1, WS-38).
pub fn write_see_other(uri: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"<close xmlns=\"");
    out.extend_from_slice(ns::FRAMING.as_bytes());
    out.extend_from_slice(b"\" see-other-uri=\"");
    escape_attribute(uri, out);
    out.extend_from_slice(b"\" />");
}

fn write_fields(fields: &[(&str, Option<&str>)], quote: u8, out: &mut Vec<u8>) {
    for (name, value) in fields {
        if let Some(value) = value {
            out.push(b' ');
            out.extend_from_slice(name.as_bytes());
            out.push(b'=');
            out.push(quote);
            escape_attribute(value, out);
            out.push(quote);
        }
    }
}
