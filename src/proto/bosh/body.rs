//! `<body/>`, read and written (XEP-0124 §6).

use super::super::fault::Fault;
use super::super::item::Kind;
use super::super::stream::Note;
use super::super::xml::Scratch;
use super::sid::Sid;
use super::{Content, Settings};

/// What one request says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    /// 1 to 9007199254740991 (BOSH-14).
    pub rid: u64,
    /// What only a request without `sid` says; present exactly in those.
    pub creation: Option<Box<Creation>>,
    /// Absent in the request that creates the session.
    pub sid: Option<Sid>,
    /// `ack` as it was sent; none of it is trusted (BOSH-27, BOSH-52, BOSH-56).
    pub ack: Option<Ack>,
    /// `pause` in seconds, or that it is no number (BOSH-59).
    pub pause: Option<Result<u32, NotANumber>>,
    /// `key` and `newkey`, at most 40 hex digits as they were sent (BOSH-84).
    pub keys: Option<Box<Keys>>,
    /// `type='terminate'`, or gloox's `terminal` (BOSH-67).
    pub terminate: bool,
    /// `xmpp:restart`, recognised by namespace (XB-02).
    pub restart: Option<Box<Restart>>,
    /// The payloads, rewritten for the server's stream and proven one by one.
    pub payload: Payload,
}

/// The value of `ack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// A rid.
    Rid(u64),
    /// Something else, which is counted (BOSH-56).
    Nonsense,
}

/// A number was due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotANumber;

/// `key` and `newkey` (XEP-0124 §15).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    /// `key`
    pub key: Option<Box<str>>,
    /// `newkey`
    pub newkey: Option<Box<str>>,
}

/// What a session is created with (XEP-0124 §7.1, XEP-0206 §3).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Creation {
    /// `to`, unescaped, not judged.
    pub to: Option<Box<str>>,
    /// `from`, unescaped, not judged.
    pub from: Option<Box<str>>,
    /// `xml:lang`
    pub lang: Option<Box<str>>,
    /// `route`, unescaped, not judged.
    pub route: Option<Box<str>>,
    /// Major and minor of `ver`; absent means legacy mode (BOSH-19, BOSH-79).
    pub ver: Option<(u32, u32)>,
    /// `wait` in seconds.
    pub wait: Option<u32>,
    /// `hold`
    pub hold: Option<u32>,
    /// `content`, as far as it is honoured (BOSH-22).
    pub content: Content,
    /// `xmpp:version`, unescaped, not judged.
    pub version: Option<Box<str>>,
}

/// The attributes of a restart (XEP-0206 §5).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restart {
    /// `to`, unescaped, not judged (XB-09).
    pub to: Option<Box<str>>,
    /// `from`, unescaped, not judged.
    pub from: Option<Box<str>>,
    /// `xml:lang`
    pub lang: Option<Box<str>>,
}

/// First-level elements of a client, each written for the server's stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Payload {
    /// All of them, one behind the other.
    pub bytes: Vec<u8>,
    /// What they are, in order.
    pub parts: Vec<Part>,
}

/// One element of a [`Payload`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// What it is.
    pub kind: Kind,
    /// Its bytes in [`Payload::bytes`].
    pub len: u32,
    /// What has to be remembered while the client logs in.
    pub(crate) note: Option<Note>,
}

impl Part {
    /// An element by which nothing has to be remembered.
    #[must_use]
    pub fn new(kind: Kind, len: u32) -> Self {
        Self { kind, len, note: None }
    }
}

/// A request that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The session, if the start tag could be read that far (BOSH-68).
    pub sid: Option<Sid>,
    /// Its rid, likewise.
    pub rid: Option<u64>,
    /// What is wrong with it; its condition is `bad-request`.
    pub fault: Fault,
}

/// Reads one request (BOSH-10 to BOSH-12, BOSH-14, BOSH-16, BOSH-19, BOSH-23, BOSH-84 to BOSH-87).
/// Whatever the payload is made of was proven under `settings.client_xml`.
///
/// # Errors
/// [`Unreadable`]: the bytes are not exactly one `<body/>`, or an attribute has no value it may have.
pub fn read(
    _scratch: &mut Scratch,
    _settings: &Settings,
    _bytes: &[u8],
) -> Result<Body, Unreadable> {
    unimplemented!("to be written")
}
