//! `<body/>`, read and written (XEP-0124 §6).

use super::super::c2s;
use super::super::fault::Fault;
use super::super::item::Kind;
use super::super::limit::Limit;
use super::super::stream::Note;
use super::super::xml::{self, Limits, Scratch, Violation, Wrapper};
use super::super::{ns, seam};
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
    /// `from`, unescaped, not judged; absent if it is too long for a JID.
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
    /// `from`, unescaped, not judged; absent if it is too long for a JID.
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
    /// The limit that was reached, if that is it.
    pub limit: Option<Limit>,
}

impl Body {
    /// Bytes it keeps, for the account.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        let Payload { bytes, parts } = &self.payload;
        let to = self.restart.as_ref().and_then(|restart| restart.to.as_ref());
        bytes.capacity() + parts.capacity() * size_of::<Part>() + to.map_or(0, |to| to.len())
    }

    /// It names a session, but by no sid that a gateway gives out: `item-not-found`. Neither `sid`
    /// nor `creation` is there then.
    #[must_use]
    pub fn has_foreign_sid(&self) -> bool {
        self.sid.is_none() && self.creation.is_none()
    }
}

/// Reads one request (BOSH-10 to BOSH-12, BOSH-14, BOSH-16, BOSH-19, BOSH-23, BOSH-84 to BOSH-87).
/// Whatever the payload is made of was proven under `settings.client_xml`.
///
/// # Errors
/// [`Unreadable`]: the bytes are not exactly one `<body/>`, or an attribute has no value it may have.
pub fn read(scratch: &mut Scratch, settings: &Settings, bytes: &[u8]) -> Result<Body, Unreadable> {
    let unknown = |fault| Unreadable { sid: None, rid: None, fault, limit: None };
    if bytes.len() > settings.body_bytes {
        return Err(Unreadable { limit: Some(Limit::BodyBytes), ..unknown(Fault::TooBig) });
    }
    let limits = Limits { element_bytes: settings.body_bytes, ..settings.client_xml };
    let wrapper = xml::wrapper(scratch, &limits, ns::HTTPBIND, bytes).map_err(|violation| {
        Unreadable { limit: violation.limit(), ..unknown(fault(violation, bytes)) }
    })?;
    if !wrapper.is(ns::HTTPBIND, "body") {
        let is_body = wrapper.local() == b"body";
        return Err(unknown(if is_body { Fault::InvalidNamespace } else { Fault::BadFormat }));
    }
    let Attributes { sid, rid, wrong, mut body } = attributes(&wrapper);
    let unreadable = |fault| Unreadable { sid: sid.flatten(), rid, fault, limit: None };
    body.rid = match rid {
        Some(rid) if !wrong => rid,
        _ => return Err(unreadable(Fault::BadFormat)),
    };
    body.payload = payload(scratch, settings, &wrapper)
        .map_err(|Wrong { fault, limit }| Unreadable { limit, ..unreadable(fault) })?;
    Ok(body)
}

/// What a violation means. The declaration is the one place that names an encoding; elsewhere bytes
/// are no UTF-8.
fn fault(violation: Violation, bytes: &[u8]) -> Fault {
    match violation {
        Violation::BadEncoding if std::str::from_utf8(bytes).is_err() => Fault::BadUtf8,
        other => other.into(),
    }
}

/// What the start tag says.
struct Attributes {
    /// `Some(None)`: there is one, but it is none of ours.
    sid: Option<Option<Sid>>,
    rid: Option<u64>,
    /// A value is not one it may have.
    wrong: bool,
    /// All the rest.
    body: Body,
}

fn attributes(wrapper: &Wrapper<'_>) -> Attributes {
    let attribute = |namespace: &str, local: &[u8]| {
        wrapper
            .attributes()
            .find(|attribute| attribute.namespace == namespace && attribute.local == local)
    };
    let plain = |local: &[u8]| attribute("", local).map(|attribute| attribute.value());
    let boxed = |namespace, local| {
        attribute(namespace, local).map(|attribute| attribute.value().into_owned().into_boxed_str())
    };
    let kept = |namespace, local| {
        let value = attribute(namespace, local)?.value();
        c2s::may_be_told(&value).then(|| value.into_owned().into_boxed_str())
    };
    let mut wrong = false;
    let (mut sid, mut rid, mut keys) = (None, None, None::<Box<Keys>>);
    let mut body = Body {
        rid: 0,
        creation: None,
        sid: None,
        ack: None,
        pause: None,
        keys: None,
        terminate: false,
        restart: None,
        payload: Payload::default(),
    };
    // One look at each; what only a creation or a restart says is looked up when it is one.
    for attribute in wrapper.attributes() {
        let value = || attribute.value();
        match (attribute.namespace, attribute.local) {
            ("", b"rid") => rid = request_id(&value()),
            ("", b"sid") => sid = Some(Sid::parse(&value())),
            ("", b"ack") => {
                body.ack = Some(request_id(&value()).map_or(Ack::Nonsense, Ack::Rid));
            }
            ("", b"pause") => body.pause = Some(number(&value()).ok_or(NotANumber)),
            ("", b"type") => body.terminate = matches!(&*value(), "terminate" | "terminal"),
            ("", b"key" | b"newkey") => {
                let value = value();
                wrong |= !is_key(&value);
                let keys = keys.get_or_insert_default();
                let place =
                    if attribute.local == b"key" { &mut keys.key } else { &mut keys.newkey };
                *place = is_key(&value).then(|| value.into_owned().into_boxed_str());
            }
            (ns::XBOSH, b"restart") if matches!(&*value(), "true" | "1") => {
                body.restart = Some(Box::new(Restart {
                    to: boxed("", b"to"),
                    from: kept("", b"from"),
                    lang: kept(ns::XML, b"lang"),
                }));
            }
            _ => {}
        }
    }
    body.keys = keys;
    body.sid = sid.flatten();
    if sid.is_none() {
        // Absent is fine; present, it has to be what it should be.
        let mut typed = |local: &[u8]| {
            let value = plain(local)?;
            let number = number(&value);
            wrong |= number.is_none();
            number
        };
        let (wait, hold) = (typed(b"wait"), typed(b"hold"));
        let ver = plain(b"ver").map(|text| version(&text));
        wrong |= ver == Some(None);
        body.creation = Some(Box::new(Creation {
            to: boxed("", b"to"),
            from: kept("", b"from"),
            lang: kept(ns::XML, b"lang"),
            route: boxed("", b"route"),
            ver: ver.flatten(),
            wait,
            hold,
            content: plain(b"content").map_or(Content::default(), |text| content(&text)),
            version: boxed(ns::XBOSH, b"version"),
        }));
    }
    Attributes { sid, rid, wrong, body }
}

/// What is wrong with a payload.
struct Wrong {
    fault: Fault,
    limit: Option<Limit>,
}

/// Proves the payloads one by one and writes them for the server (BOSH-86, BOSH-87).
fn payload(
    scratch: &mut Scratch,
    settings: &Settings,
    wrapper: &Wrapper<'_>,
) -> Result<Payload, Wrong> {
    let wrong = |fault, limit| Wrong { fault, limit: Some(limit) };
    let mut children = wrapper.children(&settings.client_xml);
    let whole = children.left();
    let mut payload = Payload::default();
    loop {
        let element = match children.next(scratch) {
            Ok(Some(element)) => element,
            Ok(None) => break,
            Err(Violation::BadEncoding) => {
                return Err(Wrong { fault: Fault::BadUtf8, limit: None });
            }
            Err(violation) => {
                return Err(Wrong { fault: violation.into(), limit: violation.limit() });
            }
        };
        if payload.parts.len() >= settings.body_elements as usize {
            return Err(wrong(Fault::XmlLimit, Limit::BodyElements));
        }
        if payload.parts.is_empty() {
            // Nearly always the exact size: what is left is the root's end tag.
            payload.bytes.reserve_exact(element.bytes().len() + children.left());
        }
        let start = payload.bytes.len();
        seam::to_server(&element, &mut payload.bytes);
        let grown = payload.bytes.len().saturating_sub(whole);
        if grown > settings.pending_bytes {
            // Declarations of the body, repeated on every payload, made so much of it.
            return Err(wrong(Fault::XmlLimit, Limit::PendingBytes));
        }
        let kind = element.kind();
        payload.parts.push(Part {
            kind,
            len: u32::try_from(payload.bytes.len() - start)
                .map_err(|_| wrong(Fault::TooBig, Limit::ElementBytes))?,
            note: Note::of(&element, kind),
        });
    }
    if payload.bytes.capacity() > 2 * payload.bytes.len() {
        payload.bytes.shrink_to_fit();
    }
    Ok(payload)
}

/// A rid: 1 to 16 digits, up to 2^53 - 1 (BOSH-14).
fn request_id(text: &str) -> Option<u64> {
    let is_plain = text.len() <= 16 && text.bytes().all(|b| b.is_ascii_digit());
    let rid = is_plain.then(|| text.parse().ok()).flatten()?;
    (1..=9_007_199_254_740_991).contains(&rid).then_some(rid)
}

/// A number without a sign; one too large to matter is as large as can be.
fn number(text: &str) -> Option<u32> {
    let is_plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    is_plain.then(|| text.parse().unwrap_or(u32::MAX))
}

/// `major.minor` (BOSH-19).
fn version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((number(major)?, number(minor)?))
}

/// Up to 40 hex digits (BOSH-84).
fn is_key(text: &str) -> bool {
    (1..=40).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// BOSH-22: a media type that no browser runs, in UTF-8, or else the usual one.
fn content(text: &str) -> Content {
    let (kind, parameters) = text.split_once(';').unwrap_or((text, ""));
    let parameters = parameters.trim();
    let is_utf8 = parameters.is_empty()
        || parameters.split_once('=').is_some_and(|(name, value)| {
            name.trim().eq_ignore_ascii_case("charset")
                && value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
        });
    match kind.trim().to_ascii_lowercase().as_str() {
        "application/xml" if is_utf8 => Content::ApplicationXml,
        "text/plain" if is_utf8 => Content::TextPlain,
        _ => Content::TextXml,
    }
}

#[cfg(test)]
mod tests;
