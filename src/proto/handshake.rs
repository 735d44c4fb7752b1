//! The judgement of a WebSocket upgrade request (RFC 6455 §4.2, RFC 7395 §3.1), and the
//! bytes of its answer.
//!
//! A listener that carries sessions judges every upgrade here, outside the HTTP framework's routes,
//! so the refusals are rendered here, too; each says in one sentence what is missing, since the one
//! who reads it is mostly setting up a reverse proxy. Not here: paths, admission limits, whose
//! address it is.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use sha1::{Digest as _, Sha1};

use super::origins::Origins;

/// What a deployment asks of an upgrade.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Refuse a client that does not offer the subprotocol `xmpp` (WS-03).
    pub require_subprotocol: bool,
    /// Refuse a client that sends no `Origin`, as native ones do (SEC-01).
    pub require_origin: bool,
    /// The web origins that may connect.
    pub origins: Origins,
}

/// The versions of HTTP a request can come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0 or older.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2 or newer, where this kind of upgrade does not exist.
    Http2,
}

/// What becomes of a request for the WebSocket's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Upgrade, with [`switching_protocols`].
    Accept {
        /// The value of `Sec-WebSocket-Accept`.
        accept_key: String,
        /// Whether the client offered `xmpp`, so that the answer must choose it (WS-02).
        protocol: bool,
    },
    /// It was meant as an upgrade, and is refused.
    Refuse(Refusal, Answer),
    /// It was not meant as an upgrade: a browser, a probe, a keepalive (WS-05).
    Plain(Answer),
}

/// Why what was meant as an upgrade is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Another method than `GET`.
    Method,
    /// The header `Upgrade` is missing: a reverse proxy has dropped it.
    NoUpgrade,
    /// `Connection` does not name `Upgrade`: the same.
    NoConnection,
    /// It came as HTTP/1.0, which some reverse proxies speak unless they are told.
    Http10,
    /// It came over HTTP/2.
    Http2,
    /// Another version of WebSocket than 13.
    Version,
    /// `Sec-WebSocket-Key` is missing or none.
    Key,
    /// A page of an origin that is not served.
    Origin,
    /// No `Origin`, where one is required.
    NoOrigin,
    /// The subprotocol `xmpp` is not offered, where that is required.
    Subprotocol,
}

impl Refusal {
    /// Every reason, in the order of their declaration.
    pub const ALL: [Self; 10] = [
        Self::Method,
        Self::NoUpgrade,
        Self::NoConnection,
        Self::Http10,
        Self::Http2,
        Self::Version,
        Self::Key,
        Self::Origin,
        Self::NoOrigin,
        Self::Subprotocol,
    ];

    /// Its word in metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::NoUpgrade => "no_upgrade",
            Self::NoConnection => "no_connection",
            Self::Http10 => "http_1_0",
            Self::Http2 => "http_2",
            Self::Version => "version",
            Self::Key => "key",
            Self::Origin => "origin",
            Self::NoOrigin => "no_origin",
            Self::Subprotocol => "subprotocol",
        }
    }
}

/// An answer that ends the matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Headers, without those that frame the message (`Content-Length`, `Connection`).
    pub headers: Vec<(&'static str, String)>,
    /// The body, plain text.
    pub text: &'static str,
}

impl Answer {
    fn new<'a>(
        status: u16,
        text: &'static str,
        cors: impl Iterator<Item = (&'static str, &'a str)>,
    ) -> Self {
        let mut headers = vec![
            ("Content-Type", "text/plain; charset=utf-8".to_owned()),
            ("Cache-Control", "no-store".to_owned()),
        ];
        headers.extend(cors.map(|(name, value)| (name, value.to_owned())));
        Self { status, headers, text }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// The answer as an HTTP/1.1 message, after which the connection is closed. The answer to a
    /// `HEAD` has no body.
    pub fn to_http1(&self, head_only: bool) -> Vec<u8> {
        let mut out = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        let mut connection = "close";
        for (name, value) in &self.headers {
            // Values echo the request at most in `Access-Control-Allow-Origin`, and only if listed:
            // no line breaks.
            let _ = write!(out, "{name}: {value}\r\n");
            if *name == "Upgrade" {
                // RFC 9110 §7.8: whoever sends `Upgrade` names it in `Connection`.
                connection = "close, Upgrade";
            }
        }
        let length = self.text.len();
        let _ = write!(out, "Content-Length: {length}\r\nConnection: {connection}\r\n\r\n");
        if !head_only {
            out.push_str(self.text);
        }
        out.into_bytes()
    }
}

/// Judges a request for the WebSocket's path. `headers` are all of the request's, names in any
/// letter case, a repeated one as often as it came.
pub fn judge<'a>(
    method: &str,
    version: Version,
    headers: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    settings: &Settings,
) -> Verdict {
    let request = Request::read(headers);
    let origin = request.origin.value().map(String::as_str);
    let cors = || settings.origins.cors(origin, false);
    if !request.is_meant_as_upgrade() {
        return Verdict::Plain(match method {
            "GET" | "HEAD" => Answer::new(200, PLAIN, cors()),
            _ => Answer::new(405, NOT_GET, cors()).with("Allow", "GET, HEAD"),
        });
    }
    let refuse = |status, text| Answer::new(status, text, cors());
    if method != "GET" {
        let answer = refuse(405, NOT_GET).with("Allow", "GET, HEAD");
        return Verdict::Refuse(Refusal::Method, answer);
    }
    if let Some((why, missing)) = request.missing(version) {
        return Verdict::Refuse(why, refuse(400, missing));
    }
    if request.hixie || request.version != Once::Value(true) {
        // RFC 6455 §4.4; RFC 9110 §15.5.22: a 426 says what to upgrade to.
        return Verdict::Refuse(
            Refusal::Version,
            refuse(426, OTHER_VERSION)
                .with("Sec-WebSocket-Version", "13")
                .with("Upgrade", "websocket"),
        );
    }
    let Once::Value(accept_key) = &request.accept_key else {
        return Verdict::Refuse(Refusal::Key, refuse(400, BAD_KEY));
    };
    let refused_origin = match &request.origin {
        Once::Value(origin) if settings.origins.allows(origin) => None,
        Once::Wrong if settings.origins == Origins::Any => None,
        Once::Value(_) | Once::Wrong => Some((Refusal::Origin, OTHER_ORIGIN)),
        Once::Missing => settings.require_origin.then_some((Refusal::NoOrigin, NO_ORIGIN)),
    };
    if let Some((why, text)) = refused_origin {
        return Verdict::Refuse(why, refuse(403, text));
    }
    if !request.protocol && settings.require_subprotocol {
        return Verdict::Refuse(Refusal::Subprotocol, refuse(400, NO_PROTOCOL));
    }
    Verdict::Accept { accept_key: accept_key.clone(), protocol: request.protocol }
}

/// The bytes of the 101 answer to an accepted request (WS-01, WS-02). No extension is negotiated
/// (WS-07).
pub fn switching_protocols(accept_key: &str, protocol: bool) -> Vec<u8> {
    let protocol = if protocol { "Sec-WebSocket-Protocol: xmpp\r\n" } else { "" };
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept_key}\r\n{protocol}\r\n"
    )
    .into_bytes()
}

/// The refusal of a request that is one too many (SEC-16): always 503, since clients give up for
/// good on a 429. `retry_after` is in seconds, already jittered by the caller; `origin` is the
/// request's, if it named one.
pub fn overload(retry_after: u32, origins: &Origins, origin: Option<&str>) -> Answer {
    Answer::new(503, OVERLOAD, origins.cors(origin, false))
        .with("Retry-After", retry_after.to_string())
}

/// The answer where nothing is served.
pub fn not_found() -> Answer {
    Answer::new(404, NOT_FOUND, std::iter::empty())
}

/// The answer to an upgrade that is dressed as something else, too.
pub fn not_plain() -> Answer {
    Answer::new(400, NOT_PLAIN, std::iter::empty())
}

/// What a request says that matters here.
#[derive(Default)]
struct Request {
    upgrade: bool,
    connection: bool,
    /// Any `Sec-WebSocket-*` header, which reverse proxies pass on where they drop the hop-by-hop
    /// ones.
    websocket: bool,
    hixie: bool,
    /// Whether the version is 13.
    version: Once<bool>,
    accept_key: Once<String>,
    protocol: bool,
    origin: Once<String>,
}

/// A header that may be given once.
#[derive(Default, PartialEq, Eq)]
enum Once<T> {
    #[default]
    Missing,
    Value(T),
    /// Given twice, or with a value that makes no sense.
    Wrong,
}

impl Request {
    fn read<'a>(headers: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        let mut request = Self::default();
        for (name, value) in headers {
            // What is not ASCII is no value that any of these headers can have.
            let value = std::str::from_utf8(value).unwrap_or("\u{fffd}").trim_matches([' ', '\t']);
            let named = |this: &str| name.eq_ignore_ascii_case(this);
            let is_own =
                name.len() > 14 && name.as_bytes()[..14].eq_ignore_ascii_case(b"sec-websocket-");
            request.websocket |= is_own;
            if named("upgrade") {
                request.upgrade |= has_token(value, "websocket");
            } else if named("connection") {
                request.connection |= has_token(value, "upgrade");
            } else if named("sec-websocket-version") {
                request.version.set(Some(value == "13"));
            } else if named("sec-websocket-key") {
                request.accept_key.set(accept_key(value));
            } else if named("sec-websocket-key1") || named("sec-websocket-key2") {
                request.hixie = true;
            } else if named("sec-websocket-protocol") {
                // Subprotocol names are compared as they are (RFC 6455 §4.2.2).
                request.protocol |= tokens(value).any(|token| token == "xmpp");
            } else if named("origin") {
                request.origin.set(Some(value.to_owned()));
            }
        }
        request
    }

    fn is_meant_as_upgrade(&self) -> bool {
        self.upgrade || self.websocket
    }

    /// What the way here has taken from the request.
    fn missing(&self, version: Version) -> Option<(Refusal, &'static str)> {
        match (version, self.upgrade, self.connection) {
            (Version::Http11, true, true) => None,
            (Version::Http11, false, _) => Some((Refusal::NoUpgrade, NO_UPGRADE)),
            (Version::Http11, true, false) => Some((Refusal::NoConnection, NO_CONNECTION)),
            (Version::Http10, ..) => Some((Refusal::Http10, HTTP_10)),
            (Version::Http2, ..) => Some((Refusal::Http2, HTTP_2)),
        }
    }
}

impl<T> Once<T> {
    fn value(&self) -> Option<&T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Missing | Self::Wrong => None,
        }
    }

    fn set(&mut self, value: Option<T>) {
        *self = match (&self, value) {
            (Self::Missing, Some(value)) => Self::Value(value),
            _ => Self::Wrong,
        };
    }
}

/// The items of a comma-separated header value.
fn tokens(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(|token| token.trim_matches([' ', '\t']))
}

fn has_token(value: &str, wanted: &str) -> bool {
    tokens(value).any(|token| token.eq_ignore_ascii_case(wanted))
}

/// RFC 6455 §4.2.2: the key as it was sent, with a fixed text, hashed. `None` if it is not 16 bytes
/// in base64.
fn accept_key(key: &str) -> Option<String> {
    // Some clients draw the 22 characters rather than the 16 bytes, which leaves bits behind the
    // last byte.
    let lenient = GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true);
    let engine = GeneralPurpose::new(&STANDARD, lenient);
    if engine.decode(key).ok()?.len() != 16 {
        return None;
    }
    let hash = Sha1::new().chain_update(key).chain_update(GUID).finalize();
    Some(engine.encode(hash))
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        403 => "Forbidden",
        405 => "Method Not Allowed",
        426 => "Upgrade Required",
        503 => "Service Unavailable",
        _ => "",
    }
}

/// RFC 6455 §1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

const NOT_FOUND: &str = "Nothing is served here.\n";
const NOT_PLAIN: &str =
    "A WebSocket request has no body, and \"websocket\" alone in its Upgrade header.\n";
const PLAIN: &str =
    "This is an XMPP over WebSocket endpoint (RFC 7395): connect to it with an XMPP client.\n";
const NOT_GET: &str = "A WebSocket is opened with GET.\n";
const NO_UPGRADE: &str = "This WebSocket request arrived without its \"Upgrade: websocket\" header: \
    the reverse proxy in front must pass it on.\n";
const NO_CONNECTION: &str = "This WebSocket request arrived without \"Upgrade\" in its Connection header: \
    the reverse proxy in front must pass it on.\n";
const HTTP_10: &str = "This WebSocket request arrived as HTTP/1.0: the reverse proxy in front must speak HTTP/1.1 \
    and pass on the headers Upgrade and Connection.\n";
const HTTP_2: &str = "This WebSocket request arrived over HTTP/2, where it cannot be upgraded: \
    it must come over HTTP/1.1.\n";
const OTHER_VERSION: &str = "This server speaks WebSocket version 13 (RFC 6455), and the request did not ask for it \
    with \"Sec-WebSocket-Version: 13\".\n";
const BAD_KEY: &str =
    "This WebSocket request needs one Sec-WebSocket-Key header that is 16 bytes in base64.\n";
const NO_ORIGIN: &str =
    "This server asks WebSocket clients for an Origin header, and the request has none.\n";
const OTHER_ORIGIN: &str =
    "This server does not serve web pages of the origin that the Origin header names.\n";
const NO_PROTOCOL: &str = "This WebSocket request does not offer the subprotocol \"xmpp\" in its \
    Sec-WebSocket-Protocol header (RFC 7395).\n";
const OVERLOAD: &str = "This server takes no further sessions at the moment; try again later.\n";

#[cfg(test)]
mod tests;
