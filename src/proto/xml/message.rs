//! One WebSocket text message: a complete slice, in RFC 7395 or in draft-moffitt framing.

use super::chars::{Attributes, unescape_attribute};
use super::scan::{Context, Goal, Scratch, Work, scan_bounded};
use super::{Limits, Policy, Scope, Violation, is_space, trim_start};
use crate::proto::item::{Element, StreamHeader};
use crate::proto::ns;

/// What a client's message holds.
#[derive(Debug)]
pub enum Message<'a> {
    /// Nothing, or only white space (WS-12): to be dropped and counted.
    Blank,
    /// An XML declaration and nothing else (WSL-03).
    Declaration,
    /// The first character is not `<` (WS-12): `bad-format`.
    NotXml,
    /// Exactly one element.
    Element(Element<'a>),
    /// A stream header of the legacy framing, unclosed or closed at once (WSL-03).
    StreamOpen(StreamHeader),
    /// `</stream:stream>` alone (WSL-08).
    StreamClose,
}

/// Reads a message that holds one thing (WS-11). An XML declaration at its very start is
/// dropped (WS-13), white space behind the element is ignored, white space before it makes it
/// [`Message::NotXml`], save before a legacy stream header (WSL-01).
///
/// `scope` is what the element inherits: [`Scope::client`] in RFC 7395, the scope of the client's
/// header in the legacy framing (WSL-06).
///
/// # Errors
/// The first violation; [`Violation::InvalidNamespace`] for a stream header in other namespaces.
pub fn message<'a>(
    scratch: &'a mut Scratch,
    limits: &Limits,
    scope: &'a Scope,
    text: &'a [u8],
) -> Result<Message<'a>, Violation> {
    let rest = trim_start(text);
    if rest.is_empty() {
        return Ok(Message::Blank);
    }
    if rest[0] != b'<' {
        return Ok(Message::NotXml);
    }
    let is_led_by_space = rest.len() < text.len();
    let rest = if is_led_by_space { rest } else { behind_declaration(rest)? };
    if rest.is_empty() {
        return Ok(Message::Declaration);
    }
    let (part, end) = match part(&mut scratch.work, limits, scope, rest) {
        // A message that breaks two rules is told of the first.
        Err(_) if is_led_by_space => return Ok(Message::NotXml),
        other => other?,
    };
    if is_led_by_space && !matches!(part, Part::Open(_)) {
        return Ok(Message::NotXml);
    }
    if !trim_start(&rest[end..]).is_empty() {
        return Err(Violation::NotWellFormed("something behind the element"));
    }
    Ok(finish(scratch, scope, part, &rest[..end]))
}

/// Reads a message of the legacy framing that may hold several elements (WSL-11), white space
/// before, between and behind them. All of it is proven before the first is handed out, so that
/// a message whose end is broken delivers nothing.
///
/// # Errors
/// As [`message`]. Text between elements is [`Violation::NotWellFormed`]; so is a header or a
/// stream end that is not alone.
pub fn messages<'t>(
    scratch: &mut Scratch,
    limits: &Limits,
    scope: &'t Scope,
    text: &'t [u8],
) -> Result<Messages<'t>, Violation> {
    let mut first = trim_start(text);
    if first.len() == text.len() {
        first = behind_declaration(first)?;
    }
    let mut rest = first;
    let mut count = 0;
    let mut alone = true;
    while !rest.is_empty() {
        if rest[0] != b'<' {
            return Err(Violation::NotWellFormed("text between elements"));
        }
        let (part, end) = part(&mut scratch.work, limits, scope, rest)?;
        alone &= matches!(part, Part::Element);
        count += 1;
        rest = trim_start(&rest[end..]);
    }
    if count > 1 && !alone {
        return Err(Violation::NotWellFormed("stream tag that is not alone"));
    }
    Ok(Messages { limits: *limits, scope, rest: first })
}

/// The proven contents of a legacy message, in order.
#[derive(Debug)]
pub struct Messages<'t> {
    limits: Limits,
    scope: &'t Scope,
    rest: &'t [u8],
}

impl<'t> Messages<'t> {
    /// The next element (or the one stream tag); `None` at the end.
    ///
    /// # Errors
    /// None that [`messages`] would not have told.
    pub fn next<'a>(&mut self, scratch: &'a mut Scratch) -> Result<Option<Message<'a>>, Violation>
    where
        't: 'a,
    {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let (part, end) = part(&mut scratch.work, &self.limits, self.scope, self.rest)?;
        let bytes = &self.rest[..end];
        self.rest = trim_start(&self.rest[end..]);
        Ok(Some(finish(scratch, self.scope, part, bytes)))
    }
}

enum Part {
    Element,
    Open(Box<StreamHeader>),
    Close,
}

/// Judges the one thing at the start of `bytes`, which begins with `<`; also where it ends.
fn part(
    work: &mut Work,
    limits: &Limits,
    scope: &Scope,
    bytes: &[u8],
) -> Result<(Part, usize), Violation> {
    const UNCLOSED: Violation = Violation::NotWellFormed("unclosed element");
    if bytes.first() != Some(&b'<') {
        return Err(Violation::NotWellFormed("text before the element"));
    }
    if bytes.get(1) == Some(&b'/') {
        let end = stream_end(bytes, scope)?.ok_or(UNCLOSED)?;
        return Ok((Part::Close, end));
    }
    work.reset();
    let context = Context { limits, policy: Policy::Strict, scope, goal: Goal::Document };
    let end = scan_bounded(work, bytes, &context)?;
    let found = work.found;
    let is_stream = &bytes[found.local as usize..found.name.end as usize] == b"stream";
    let is_ours = is_stream && found.ns.name(bytes, scope) == ns::STREAMS.as_bytes();
    match end {
        // Whatever stands inside makes it an element, and one to be refused (SEC-09).
        Some(end) => {
            let inner = &bytes[found.head as usize..end];
            if is_ours && (found.empty || inner.starts_with(b"</")) {
                let mut header = reopen(work, limits, bytes)?;
                header.closed = true;
                return Ok((Part::Open(Box::new(header)), end));
            }
            Ok((Part::Element, end))
        }
        None if is_stream
            && work.is_just_opened()
            && trim_start(&bytes[found.head as usize..]).is_empty() =>
        {
            Ok((Part::Open(Box::new(reopen(work, limits, bytes)?)), bytes.len()))
        }
        None => Err(UNCLOSED),
    }
}

/// Reads a stream header on its own feet: nothing is inherited from a stream before it.
fn reopen(work: &mut Work, limits: &Limits, bytes: &[u8]) -> Result<StreamHeader, Violation> {
    work.reset();
    let scope = Scope::empty();
    let context = Context { limits, policy: Policy::Strict, scope: &scope, goal: Goal::Header };
    let end = scan_bounded(work, bytes, &context)?;
    header_of(work, &bytes[..end.unwrap_or(bytes.len())])
}

fn finish<'a>(
    scratch: &'a mut Scratch,
    scope: &'a Scope,
    part: Part,
    bytes: &'a [u8],
) -> Message<'a> {
    match part {
        Part::Open(header) => Message::StreamOpen(*header),
        Part::Close => Message::StreamClose,
        Part::Element => {
            let work = &scratch.work;
            let element = Element::new(bytes, scope, &work.found, &work.undeclared, Policy::Strict);
            Message::Element(element)
        }
    }
}

/// The header whose start tag is `bytes` and was scanned, strictly, for [`Goal::Header`].
pub(super) fn header_of(work: &Work, bytes: &[u8]) -> Result<StreamHeader, Violation> {
    let found = work.found;
    let empty = Scope::empty();
    if found.ns.name(bytes, &empty) != ns::STREAMS.as_bytes() {
        return Err(Violation::InvalidNamespace);
    }
    if &bytes[found.local as usize..found.name.end as usize] != b"stream" {
        return Err(Violation::Restricted("not a stream header"));
    }
    let mut header = StreamHeader {
        to: None,
        from: None,
        id: None,
        version: None,
        lang: None,
        scope: Scope::empty(),
        closed: found.empty,
    };
    for attribute in Attributes::new(bytes, found.name.end as usize) {
        let field = match attribute.name {
            b"to" => &mut header.to,
            b"from" => &mut header.from,
            b"id" => &mut header.id,
            b"version" => &mut header.version,
            b"xml:lang" => &mut header.lang,
            // A namespace name holds no reference, so it is what it looks like.
            b"xmlns" => {
                header.scope.set_default(&String::from_utf8_lossy(attribute.value));
                continue;
            }
            [b'x', b'm', b'l', b'n', b's', b':', prefix @ ..] if prefix != b"xml" => {
                let prefix = String::from_utf8_lossy(prefix);
                header.scope.bind(&prefix, &String::from_utf8_lossy(attribute.value))?;
                continue;
            }
            _ => continue,
        };
        *field = unescape_attribute(attribute.value).map(|value| value.into());
    }
    if header.scope.default_namespace() != ns::CLIENT {
        return Err(Violation::InvalidNamespace);
    }
    Ok(header)
}

/// A declaration or a stream's end tag is no longer than this; so reading it again when more of
/// it has come costs a constant.
const LONGEST_TAG: usize = 2048;

/// The end of the stream's end tag at the start of `bytes`, which begins with `</`; `None` if
/// more is needed. It is known by its expanded name: any prefix of `scope` that is bound to the
/// streams namespace will do, and `stream` in any case.
pub(super) fn stream_end(bytes: &[u8], scope: &Scope) -> Result<Option<usize>, Violation> {
    const MISMATCH: Violation = Violation::NotWellFormed("end tag without a start tag");
    const NAME: &[u8] = b"stream:stream";
    let window = &bytes[2..bytes.len().min(LONGEST_TAG)];
    let Some(close) = memchr::memchr(b'>', window) else {
        let whole = bytes.len() < LONGEST_TAG;
        let possible = !window.iter().any(|b| matches!(b, b'<' | b'&' | b'=' | b'"' | b'\''));
        return if whole && possible { Ok(None) } else { Err(MISMATCH) };
    };
    let name = &window[..close];
    let blanks = name.iter().rev().take_while(|b| is_space(**b)).count();
    let name = &name[..close - blanks];
    let known = name == NAME
        || std::str::from_utf8(name).ok().and_then(|name| name.split_once(':')).is_some_and(
            |(prefix, local)| local == "stream" && scope.lookup(prefix) == Some(ns::STREAMS),
        );
    if known { Ok(Some(2 + close + 1)) } else { Err(MISMATCH) }
}

/// `text` without the XML declaration at its start and the white space behind that.
pub(super) fn behind_declaration(text: &[u8]) -> Result<&[u8], Violation> {
    if !text.starts_with(b"<?") {
        return Ok(text);
    }
    match declaration(text)? {
        Some(end) => Ok(trim_start(&text[end..])),
        None => Err(Violation::NotWellFormed("unclosed XML declaration")),
    }
}

/// The end of the XML declaration at the start of `bytes`, which begins with `<?`; `None` if
/// more is needed. XML 1.0 production 23, with version 1.0 and no encoding but UTF-8 (WS-13).
///
/// # Errors
/// [`Violation::Restricted`] for another processing instruction, [`Violation::BadEncoding`] for
/// another encoding, [`Violation::NotWellFormed`] for the rest.
pub(super) fn declaration(bytes: &[u8]) -> Result<Option<usize>, Violation> {
    const MALFORMED: Violation = Violation::NotWellFormed("malformed XML declaration");
    const START: &[u8] = b"<?xml";
    if bytes.len() <= START.len() {
        let possible = START.starts_with(bytes);
        return if possible { Ok(None) } else { Err(not_a_declaration()) };
    }
    if !bytes.starts_with(START) || !(is_space(bytes[5]) || bytes[5] == b'?') {
        return Err(not_a_declaration());
    }
    let window = &bytes[..bytes.len().min(LONGEST_TAG)];
    let Some(end) = memchr::memmem::find(window, b"?>") else {
        return if bytes.len() < LONGEST_TAG { Ok(None) } else { Err(MALFORMED) };
    };
    let mut rest = &window[START.len()..end];
    if pseudo_attribute(&mut rest, b"version") != Some(b"1.0") {
        return Err(MALFORMED);
    }
    if let Some(encoding) = pseudo_attribute(&mut rest, b"encoding")
        && !encoding.eq_ignore_ascii_case(b"utf-8")
    {
        return Err(Violation::BadEncoding);
    }
    if let Some(standalone) = pseudo_attribute(&mut rest, b"standalone")
        && !matches!(standalone, b"yes" | b"no")
    {
        return Err(MALFORMED);
    }
    if trim_start(rest).is_empty() { Ok(Some(end + 2)) } else { Err(MALFORMED) }
}

fn not_a_declaration() -> Violation {
    Violation::Restricted("processing instruction")
}

/// Takes ` name="value"` off the start of `rest`.
fn pseudo_attribute<'a>(rest: &mut &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let trimmed = trim_start(rest);
    let at = trimmed.strip_prefix(name).filter(|_| trimmed.len() < rest.len())?;
    let at = trim_start(trim_start(at).strip_prefix(b"=")?);
    let quote = *at.first().filter(|b| matches!(b, b'"' | b'\''))?;
    let length = memchr::memchr(quote, &at[1..])?;
    *rest = &at[length + 2..];
    Some(&at[1..=length])
}
