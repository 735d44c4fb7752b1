//! `<body/>` towards the client: the bytes of every response (XEP-0124 §7.2, §8, §17, XEP-0206 §4).
//!
//! Attributes stand in single quotes and in the order of the catalogue's examples (section 9).

use bytes::Bytes;

use super::super::fault::Fault;
use super::super::ns;
use super::super::seam::escape_attribute;
use super::{Condition, Content, Reply};

const EMPTY: &[u8] = b"<body xmlns='http://jabber.org/protocol/httpbind'/>";
const RECOVERABLE: &[u8] = b"<body type='error' xmlns='http://jabber.org/protocol/httpbind'/>";
const END: &[u8] = b"</body>";
/// More than the start tag of any response but the first is long.
const HEAD: usize = 320;

/// The answer to a request that belongs to no session, or to none that goes on: the terminal
/// condition of `fault` (BOSH-70: the same bytes for every reason of one condition).
///
/// `legacy` says that the client named no `ver`: three conditions are HTTP codes then (BOSH-79).
#[must_use]
pub fn refusal(fault: Fault, legacy: bool, content: Content) -> Reply {
    terminal(fault.condition(), None, legacy, content)
}

/// The answer that ends a session, without payload and without `ack`.
pub(super) fn terminal(
    condition: Option<Condition>,
    reason: Option<&str>,
    legacy: bool,
    content: Content,
) -> Reply {
    let status = if legacy { legacy_status(condition) } else { 200 };
    let body = if status == 200 { ending(condition, reason, None) } else { Bytes::new() };
    Reply { status, content, body, compressible: true, read: Vec::new(), first: false }
}

/// XEP-0124 §17.1: what a legacy client is told by the HTTP status alone.
fn legacy_status(condition: Option<Condition>) -> u16 {
    match condition {
        Some(Condition::BadRequest) => 400,
        Some(Condition::PolicyViolation) => 403,
        Some(Condition::ItemNotFound) => 404,
        _ => 200,
    }
}

/// A `terminate` without payload. `ack` is only for an end that is no error (XEP-0124 §9.1).
pub(super) fn ending(
    condition: Option<Condition>,
    reason: Option<&str>,
    ack: Option<u64>,
) -> Bytes {
    let mut out = Vec::with_capacity(192);
    begin_ending(condition, reason, ack, false, &mut out);
    end(false, &mut out);
    out.into()
}

/// The word that says more than the condition of `fault` does, to whoever knows the session: many
/// faults share one. None where all look alike by design (BOSH-70), and where a stream error says it.
///
/// It stands in an attribute of a namespace of ours, which XEP-0124's schema lets stand there.
pub(super) fn reason(fault: Fault) -> Option<&'static str> {
    match fault.condition()? {
        Condition::ItemNotFound | Condition::OtherRequest | Condition::RemoteStreamError => None,
        Condition::BadRequest
        | Condition::HostGone
        | Condition::HostUnknown
        | Condition::ImproperAddressing
        | Condition::InternalServerError
        | Condition::PolicyViolation
        | Condition::RemoteConnectionFailed
        | Condition::SeeOtherUri
        | Condition::SystemShutdown
        | Condition::UndefinedCondition => Some(fault.label()),
    }
}

/// `<body type='error'/>` (XEP-0124 §17.3, BOSH-45).
pub(super) fn recoverable() -> Bytes {
    Bytes::from_static(RECOVERABLE)
}

/// A body that says nothing, but perhaps which rid came last.
pub(super) fn empty(ack: Option<u64>) -> Bytes {
    if ack.is_none() {
        return Bytes::from_static(EMPTY);
    }
    let mut out = Vec::with_capacity(EMPTY.len() + 27);
    begin(&Head { ack, ..Head::default() }, &mut out);
    end(false, &mut out);
    out.into()
}

/// The start tag of an ordinary response.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Head<'a> {
    /// XEP-0124 §9.1.
    pub(super) ack: Option<u64>,
    /// The rid whose response is missed, and the milliseconds since it was sent (BOSH-55).
    pub(super) report: Option<(u64, u64)>,
    /// A payload has the prefix `stream` (BOSH-88).
    pub(super) stream: bool,
    /// Said with the first features (XB-04).
    pub(super) words: Option<&'a Words>,
}

/// What the server's header said that the client is told.
#[derive(Clone, Debug, Default)]
pub(super) struct Words {
    pub(super) id: Option<Box<str>>,
    pub(super) from: Option<Box<str>>,
    pub(super) version: Option<Box<str>>,
}

/// What only the creation response says (XEP-0124 §7.2, BOSH-20).
#[derive(Clone, Debug)]
pub(super) struct Terms<'a> {
    pub(super) sid: &'a str,
    /// Seconds.
    pub(super) wait: u64,
    pub(super) hold: u32,
    pub(super) requests: u32,
    /// Seconds.
    pub(super) polling: u64,
    /// Seconds.
    pub(super) inactivity: u64,
    /// Seconds.
    pub(super) maxpause: u64,
    pub(super) accept: bool,
    pub(super) ver: Option<(u32, u32)>,
    pub(super) from: &'a str,
}

/// Room for a start tag, a payload of `bytes` and the end tag.
pub(super) fn with_room_for(bytes: usize) -> Vec<u8> {
    Vec::with_capacity(HEAD + bytes + END.len())
}

/// Appends the start tag without its end; [`payload`] or [`end`] follows.
pub(super) fn begin(head: &Head<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"<body");
    if let Some((rid, time)) = head.report {
        number("report", rid, out);
        number("time", time, out);
    }
    if let Some(ack) = head.ack {
        number("ack", ack, out);
    }
    namespaces(head.words.is_some(), head.stream, out);
    if let Some(words) = head.words {
        first_words(words, out);
    }
}

/// The same of a creation response.
pub(super) fn begin_creation(head: &Head<'_>, terms: &Terms<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"<body");
    namespaces(true, head.stream, out);
    text("sid", terms.sid, out);
    number("wait", terms.wait, out);
    number("hold", terms.hold.into(), out);
    number("requests", terms.requests.into(), out);
    number("polling", terms.polling, out);
    number("inactivity", terms.inactivity, out);
    number("maxpause", terms.maxpause, out);
    if terms.accept {
        text("accept", "gzip,deflate", out);
    }
    if let Some((major, minor)) = terms.ver {
        text("ver", &format!("{major}.{minor}"), out);
    }
    if let Some(ack) = head.ack {
        number("ack", ack, out);
    }
    text("from", terms.from, out);
    if let Some(words) = head.words {
        first_words(words, out);
    }
    text("xmpp:restartlogic", "true", out);
}

/// The same of the response that ends a session.
pub(super) fn begin_ending(
    condition: Option<Condition>,
    reason: Option<&str>,
    ack: Option<u64>,
    stream: bool,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(b"<body type='terminate'");
    if let Some(condition) = condition {
        text("condition", condition.name(), out);
    }
    if let Some(ack) = ack {
        number("ack", ack, out);
    }
    namespaces(false, stream, out);
    if let Some(reason) = reason {
        text("xmlns:bosphorus", ns::REASON, out);
        text("bosphorus:reason", reason, out);
    }
}

/// Ends the start tag, so that payloads can follow.
pub(super) fn payload(out: &mut Vec<u8>) {
    out.push(b'>');
}

/// Ends the body, whose start tag was ended if it has payloads.
pub(super) fn end(has_payload: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(if has_payload { END } else { b"/>" });
}

fn namespaces(xmpp: bool, stream: bool, out: &mut Vec<u8>) {
    text("xmlns", ns::HTTPBIND, out);
    if xmpp {
        text("xmlns:xmpp", ns::XBOSH, out);
    }
    if stream {
        text("xmlns:stream", ns::STREAMS, out);
    }
}

fn first_words(words: &Words, out: &mut Vec<u8>) {
    if let Some(id) = &words.id {
        text("authid", id, out);
    }
    // A server without a version would have failed the negotiation.
    text("xmpp:version", words.version.as_deref().unwrap_or("1.0"), out);
}

fn text(name: &str, value: &str, out: &mut Vec<u8>) {
    out.push(b' ');
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"='");
    escape_attribute(value, out);
    out.push(b'\'');
}

fn number(name: &str, value: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = value;
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(rest % 10).unwrap_or_default();
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.push(b' ');
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"='");
    out.extend_from_slice(&digits[at..]);
    out.push(b'\'');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    /// BOSH-70: unknown sid, rid outside the window, bad key and gap look alike, to the byte.
    #[test]
    fn all_that_is_not_found_looks_alike() {
        let reply = |fault| refusal(fault, false, Content::TextXml);
        let unknown = reply(Fault::UnknownSid);
        assert_eq!(
            read(&unknown.body),
            "<body type='terminate' condition='item-not-found' \
             xmlns='http://jabber.org/protocol/httpbind'/>"
        );
        for fault in [Fault::BadRid, Fault::BadKey, Fault::Gap] {
            assert_eq!(reply(fault), unknown);
        }
    }

    /// BOSH-79: three conditions are codes with an empty body in legacy mode, the others bodies.
    #[test]
    fn legacy_clients_get_codes() {
        let reply = |fault| refusal(fault, true, Content::TextPlain);
        for (fault, code) in
            [(Fault::BadBody, 400), (Fault::BadPause, 403), (Fault::UnknownSid, 404)]
        {
            assert_eq!((reply(fault).status, &reply(fault).body[..]), (code, &b""[..]));
        }
        let drain = reply(Fault::Drain);
        assert_eq!((drain.status, drain.content), (200, Content::TextPlain));
        assert!(read(&drain.body).contains("condition='system-shutdown'"));
    }

    /// BOSH-53, BOSH-55: the order and the quotes of the attributes.
    #[test]
    fn bodies_are_written_as_in_the_examples() {
        assert_eq!(read(&empty(None)), "<body xmlns='http://jabber.org/protocol/httpbind'/>");
        assert_eq!(
            read(&empty(Some(u64::MAX))),
            "<body ack='18446744073709551615' xmlns='http://jabber.org/protocol/httpbind'/>"
        );
        let mut out = Vec::new();
        begin(&Head { report: Some((12, 0)), ack: Some(13), ..Head::default() }, &mut out);
        end(false, &mut out);
        assert_eq!(
            read(&out),
            "<body report='12' time='0' ack='13' xmlns='http://jabber.org/protocol/httpbind'/>"
        );
        assert_eq!(
            read(&ending(None, None, Some(51))),
            "<body type='terminate' ack='51' xmlns='http://jabber.org/protocol/httpbind'/>"
        );
    }
}
