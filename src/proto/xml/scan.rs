//! The strict, namespace-aware one-pass scanner: bytes in, the proof of one element out.
//!
//! It judges by XML 1.0 (fifth edition), Namespaces in XML 1.0 (third edition) and the
//! restrictions of RFC 6120 section 11, and builds nothing: names, bindings and attributes are
//! offsets into the element's own bytes. Every byte is looked at once; when the bytes run out,
//! [`Work`] holds where to go on, in the middle of a name, a value or a reference's look-ahead of
//! ten bytes. So any chunking costs the same and gives the same answer.
//!
//! Two rules are tighter than the standards, in ways no XMPP software needs:
//! * a namespace name holds no reference, white space or control character (SEC-07), so that
//!   namespace names can be compared as bytes;
//! * a character reference is at most ten bytes long between `&` and `;`.
//!
//! Under [`Policy::Tolerant`] (UP-36) whatever leaves the end of the element provable is
//! recorded. Fatal for both policies are: bytes that are not UTF-8, tags that are malformed or
//! do not match, `<` in an attribute value, a document type declaration, and an element over its
//! size.
//!
//! The file is long because it is one loop: the tag, text and namespace rules share the position,
//! and a rule in another module would be a rule that the next byte does not see.

use super::chars::{
    CDATA, CLASS, NAME, Reference, SPACE, START, Step, decode, is_char, is_name, is_name_start,
    reference,
};
use super::scope::STREAM_INDEX;
use super::{Limits, Policy, Scope, Violation};
use crate::proto::limit::Limit;
use crate::proto::ns;

/// Reusable working memory of the scanner: one per worker thread.
#[derive(Debug, Default)]
pub struct Scratch {
    pub(super) work: Work,
    /// The bytes of an element that came in pieces, while the caller looks at it.
    pub(super) buffer: Vec<u8>,
}

impl Scratch {
    /// Empty; it grows to what the stanzas of its worker need.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives back the memory of an element that came in pieces, which the next one does not use.
    pub fn release(&mut self) {
        self.buffer = Vec::new();
    }
}

/// A range of the element's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: u32,
    pub(crate) end: u32,
}

impl Span {
    fn new(start: usize, end: usize) -> Self {
        Self { start: start as u32, end: end as u32 }
    }

    /// The bytes of `self` in `bytes`.
    #[inline]
    pub(crate) fn of(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.start as usize..self.end as usize]
    }
}

/// Where a name's namespace stands written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Ns {
    /// In no namespace.
    #[default]
    None,
    /// In the element's own bytes.
    Own(Span),
    /// The default of the [`Scope`].
    Inherited,
    /// A prefix of the [`Scope`].
    Scope(u8),
    /// The prefix `xml`.
    Xml,
    /// Nowhere: [`ns::UNDECLARED`] (UP-36).
    Undeclared,
}

impl Ns {
    /// The namespace name, as bytes of the element, of the scope or of ours.
    pub(crate) fn name<'a>(self, bytes: &'a [u8], scope: &'a Scope) -> &'a [u8] {
        match self {
            Self::None => b"",
            Self::Own(span) => span.of(bytes),
            Self::Inherited => scope.default_namespace().as_bytes(),
            Self::Scope(index) => scope.at(index).1.as_bytes(),
            Self::Xml => ns::XML.as_bytes(),
            Self::Undeclared => ns::UNDECLARED.as_bytes(),
        }
    }
}

/// What the scanner found out about an element whose end it has proven.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Found {
    /// The root's qualified name.
    pub(crate) name: Span,
    /// Where its local part begins.
    pub(crate) local: u32,
    /// Its namespace.
    pub(crate) ns: Ns,
    /// Where the root's start tag ends, behind its `>`.
    pub(crate) head: u32,
    /// The root is an empty-element tag.
    pub(crate) empty: bool,
    /// An unprefixed element has its namespace by inheritance.
    pub(crate) inherits_default: bool,
    /// The prefixes inherited and used, by their index in the [`Scope`].
    pub(crate) inherits: u64,
    /// The first violation (tolerant only).
    pub(crate) broken: Option<Violation>,
    /// That violation is more than an undeclared prefix: the element cannot be repaired.
    pub(crate) hopeless: bool,
}

/// What is being scanned, and by which rules.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) limits: &'a Limits,
    pub(super) policy: Policy,
    pub(super) scope: &'a Scope,
    pub(super) goal: Goal,
}

/// What the scan is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// A child of a stream: a stream header in its place is refused as soon as it is seen.
    Element,
    /// Whatever a message holds.
    Document,
    /// A stream header: the scan ends behind the root's start tag.
    Header,
}

/// Where in the syntax the scan stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// Content of an open element.
    Text,
    /// At a `<`.
    #[default]
    Markup,
    /// At a `<!`.
    Bang,
    /// In a CDATA section.
    Cdata,
    /// In a comment (tolerant only).
    Comment,
    /// In a processing instruction (tolerant only).
    Instruction,
    /// In the name of a start tag.
    Name,
    /// Behind a name or a value of a start tag: white space or the tag's end must follow.
    Gap,
    /// In white space of a start tag.
    Between,
    /// In the name of an attribute.
    AttributeName,
    /// Between that name and `=`.
    Equals,
    /// Between `=` and the opening quote.
    Quote,
    /// In the value.
    Value,
    /// Behind the `/` of an empty-element tag.
    Slash,
    /// In the name of an end tag.
    CloseName,
    /// Behind that name.
    CloseEnd,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    name: Span,
    /// How many bindings were in force outside.
    bindings: u32,
    /// Which of them was the default outside.
    default: u32,
}

#[derive(Clone, Copy, Debug)]
struct Binding {
    /// [`key`] of the prefix, to look at its bytes only when they are likely to match.
    key: u64,
    /// Empty for a default namespace.
    prefix: Span,
    namespace: Span,
}

#[derive(Clone, Copy, Debug)]
struct Attr {
    name: Span,
    /// Where the local part begins: `name.start` if there is no prefix.
    local: u32,
}

/// No default namespace is declared inside the element.
const NO_DEFAULT: u32 = u32::MAX;

/// Levels beyond [`Limits::depth`] that are still followed under [`Policy::Tolerant`], at eight
/// bytes each, so that no sender ends a receiver's session by depth alone: servers do not limit
/// it, and what they let a client send (256 KiB by default) has room for 87,000 levels.
const DEEPEST: usize = 1 << 20;

/// The state of a scan, and the memory it works in.
#[derive(Debug, Default)]
pub(super) struct Work {
    phase: Phase,
    pos: usize,
    /// Where the name or value under way began.
    token: usize,
    /// Where the colon of the name under way stands; 0 if none was seen.
    colon: usize,
    quote: u8,
    /// The name of the tag under way.
    tag: Span,
    tag_colon: usize,
    /// The name of the attribute under way.
    attr: Span,
    /// Which attribute names were surely not seen yet in this tag: a filter of 64 bits.
    seen: u64,
    attr_count: u32,
    prefixed: u32,
    declared: u32,
    /// Bindings in force outside the tag under way, and the default among them.
    outer_bindings: u32,
    outer_default: u32,
    default: u32,
    elements: u32,
    open: Vec<Open>,
    /// The names of open tags beyond the depth limit (tolerant only).
    deep: Vec<Span>,
    bindings: Vec<Binding>,
    attrs: Vec<Attr>,
    pub(super) undeclared: Vec<Span>,
    pub(super) found: Found,
}

impl Work {
    /// Ready for the next element; the memory stays unless it grew out of proportion.
    pub(super) fn reset(&mut self) {
        self.phase = Phase::Markup;
        self.pos = 0;
        self.default = NO_DEFAULT;
        self.elements = 0;
        self.open.clear();
        self.bindings.clear();
        self.undeclared.clear();
        if self.deep.capacity() > 0 {
            self.deep = Vec::new();
        }
        self.found = Found::default();
    }

    /// Gives back what a few usual stanzas do not need.
    pub(super) fn shrink(&mut self) {
        self.open.shrink_to(16);
        self.bindings.shrink_to(16);
        self.attrs.shrink_to(16);
    }

    /// Heap bytes it owns.
    pub(super) fn held_bytes(&self) -> usize {
        self.open.capacity() * size_of::<Open>()
            + self.deep.capacity() * size_of::<Span>()
            + self.bindings.capacity() * size_of::<Binding>()
            + self.attrs.capacity() * size_of::<Attr>()
            + self.undeclared.capacity() * size_of::<Span>()
    }

    /// Whether the root's start tag was read and nothing but white space (or, for the caller to
    /// see, text) follows it up to the end of what was given.
    pub(super) fn is_just_opened(&self) -> bool {
        self.elements == 1 && self.open.len() == 1 && self.phase == Phase::Text
    }

    /// Takes note of a violation that leaves the element's end provable.
    #[cold]
    fn violate(&mut self, policy: Policy, violation: Violation) -> Result<(), Violation> {
        match policy {
            Policy::Strict => Err(violation),
            Policy::Tolerant => {
                self.found.broken.get_or_insert(violation);
                self.found.hopeless = true;
                Ok(())
            }
        }
    }

    fn depth(&self) -> usize {
        self.open.len() + self.deep.len()
    }
}

/// Goes on with the element that begins at `bytes[0]`, of which `bytes` now holds more than at
/// the last call. `Ok(Some(end))` when it (or, for [`Goal::Header`], its start tag) is complete;
/// `Ok(None)` when more is needed.
pub(super) fn scan(
    work: &mut Work,
    bytes: &[u8],
    context: &Context<'_>,
) -> Result<Option<usize>, Violation> {
    let policy = context.policy;
    let mut i = work.pos;
    let mut phase = work.phase;
    if i == 0 && bytes.first().is_some_and(|first| *first != b'<') {
        return Err(Violation::NotWellFormed("text before the element"));
    }
    macro_rules! more {
        ($phase:expr) => {{
            work.phase = $phase;
            work.pos = i;
            return Ok(None);
        }};
    }
    loop {
        match phase {
            Phase::Text => loop {
                i = skip_text(bytes, i);
                let Some(&byte) = bytes.get(i) else { more!(Phase::Text) };
                match byte {
                    b'<' => {
                        phase = Phase::Markup;
                        break;
                    }
                    b'&' => match reference_at(work, bytes, i, policy)? {
                        Some(end) => i = end,
                        None => more!(Phase::Text),
                    },
                    b']' => match bytes.get(i + 1) {
                        None => more!(Phase::Text),
                        Some(b']') => match bytes.get(i + 2) {
                            None => more!(Phase::Text),
                            Some(b'>') => {
                                work.violate(policy, Violation::NotWellFormed("]]> in text"))?;
                                i += 3;
                            }
                            Some(_) => i += 1,
                        },
                        Some(_) => i += 1,
                    },
                    b'\t' | b'\n' | b'\r' => i += 1,
                    _ => match characters(work, bytes, i, policy)? {
                        Some(end) => i = end,
                        None => more!(Phase::Text),
                    },
                }
            },

            Phase::Markup => {
                let Some(&byte) = bytes.get(i + 1) else { more!(Phase::Markup) };
                match byte {
                    b'/' => {
                        if work.depth() == 0 {
                            return Err(Violation::NotWellFormed("end tag without a start tag"));
                        }
                        i += 2;
                        work.token = i;
                        phase = Phase::CloseName;
                    }
                    b'!' => phase = Phase::Bang,
                    b'?' => {
                        const PI: Violation = Violation::Restricted("processing instruction");
                        if work.depth() == 0 {
                            return Err(PI);
                        }
                        work.violate(policy, PI)?;
                        i += 2;
                        phase = Phase::Instruction;
                    }
                    _ => {
                        i += 1;
                        work.token = i;
                        work.colon = 0;
                        phase = Phase::Name;
                    }
                }
            }

            Phase::Name
            | Phase::Gap
            | Phase::Between
            | Phase::AttributeName
            | Phase::Equals
            | Phase::Quote
            | Phase::Value
            | Phase::Slash => {
                work.pos = i;
                work.phase = phase;
                match start_tag(work, bytes, context)? {
                    Tag::More => return Ok(None),
                    Tag::Last => return Ok(Some(work.pos)),
                    Tag::Read => {
                        i = work.pos;
                        phase = Phase::Text;
                    }
                }
            }

            Phase::CloseName => {
                let expected = close_name(work);
                let rest = &expected.of(bytes)[i - work.token..];
                let given = &bytes[i..bytes.len().min(i + rest.len())];
                if *given != rest[..given.len()] {
                    return Err(Violation::NotWellFormed("end tag does not match"));
                }
                i += given.len();
                if given.len() < rest.len() {
                    more!(Phase::CloseName);
                }
                phase = Phase::CloseEnd;
            }

            Phase::CloseEnd => {
                let Some(&byte) = bytes.get(i) else { more!(Phase::CloseEnd) };
                if byte == b'>' {
                    i += 1;
                    if close(work) {
                        work.pos = i;
                        return Ok(Some(i));
                    }
                    phase = Phase::Text;
                } else if CLASS[usize::from(byte)] & SPACE != 0 {
                    i = skip(bytes, i, SPACE);
                } else {
                    return Err(Violation::NotWellFormed("end tag does not match"));
                }
            }

            Phase::Bang => {
                const SECTION: &[u8] = b"<![CDATA[";
                const COMMENT: &[u8] = b"<!--";
                let rest = &bytes[i..];
                if rest.starts_with(SECTION) && work.depth() > 0 {
                    i += SECTION.len();
                    phase = Phase::Cdata;
                } else if rest.starts_with(COMMENT) {
                    const VIOLATION: Violation = Violation::Restricted("comment");
                    if work.depth() == 0 {
                        return Err(VIOLATION);
                    }
                    work.violate(policy, VIOLATION)?;
                    i += COMMENT.len();
                    phase = Phase::Comment;
                } else if SECTION.starts_with(rest) || COMMENT.starts_with(rest) {
                    more!(Phase::Bang);
                } else if rest[2] == b'D' {
                    return Err(Violation::Restricted("document type declaration"));
                } else {
                    return Err(Violation::NotWellFormed("malformed markup"));
                }
            }

            Phase::Cdata => loop {
                i = skip(bytes, i, CDATA);
                let Some(&byte) = bytes.get(i) else { more!(Phase::Cdata) };
                if byte == b']' {
                    match (bytes.get(i + 1), bytes.get(i + 2)) {
                        (None, _) | (Some(b']'), None) => more!(Phase::Cdata),
                        (Some(b']'), Some(b'>')) => {
                            i += 3;
                            phase = Phase::Text;
                            break;
                        }
                        _ => i += 1,
                    }
                } else {
                    match character(work, bytes, i, policy)? {
                        Some(end) => i = end,
                        None => more!(Phase::Cdata),
                    }
                }
            },

            Phase::Comment => loop {
                let Some(&byte) = bytes.get(i) else { more!(Phase::Comment) };
                if byte == b'-' {
                    match (bytes.get(i + 1), bytes.get(i + 2)) {
                        (None, _) | (Some(b'-'), None) => more!(Phase::Comment),
                        (Some(b'-'), Some(b'>')) => {
                            i += 3;
                            phase = Phase::Text;
                            break;
                        }
                        // Parsers may differ on where such a comment ends.
                        (Some(b'-'), _) => return Err(Violation::NotWellFormed("-- in a comment")),
                        _ => i += 1,
                    }
                } else {
                    match character(work, bytes, i, policy)? {
                        Some(end) => i = end,
                        None => more!(Phase::Comment),
                    }
                }
            },

            Phase::Instruction => loop {
                let Some(&byte) = bytes.get(i) else { more!(Phase::Instruction) };
                if byte == b'?' {
                    match bytes.get(i + 1) {
                        None => more!(Phase::Instruction),
                        Some(b'>') => {
                            i += 2;
                            phase = Phase::Text;
                            break;
                        }
                        _ => i += 1,
                    }
                } else {
                    match character(work, bytes, i, policy)? {
                        Some(end) => i = end,
                        None => more!(Phase::Instruction),
                    }
                }
            },
        }
    }
}

/// How far a start tag came.
enum Tag {
    /// It is incomplete.
    More,
    /// It is complete.
    Read,
    /// It is complete, and with it the scan.
    Last,
}

/// Goes on with a start tag at `work.pos` in `work.phase`, and leaves both where it ended.
///
/// The blocks are the phases in the order of the syntax: each falls through to the next, and a
/// tag that is all there is read without a look at the phase.
fn start_tag(work: &mut Work, bytes: &[u8], context: &Context<'_>) -> Result<Tag, Violation> {
    const MALFORMED: Violation = Violation::NotWellFormed("malformed start tag");
    let policy = context.policy;
    let mut i = work.pos;
    let mut phase = work.phase;
    macro_rules! more {
        ($phase:expr) => {{
            work.phase = $phase;
            work.pos = i;
            return Ok(Tag::More);
        }};
    }
    'tag: loop {
        'value: {
            'quote: {
                'equals: {
                    'attribute: {
                        'between: {
                            'gap: {
                                match phase {
                                    Phase::Gap => break 'gap,
                                    Phase::Between => break 'between,
                                    Phase::AttributeName => break 'attribute,
                                    Phase::Equals => break 'equals,
                                    Phase::Quote => break 'quote,
                                    Phase::Value => break 'value,
                                    Phase::Slash => {
                                        return end_tag(work, bytes, i, true, context);
                                    }
                                    _ => {}
                                }
                                if !name(work, bytes, &mut i, policy)? {
                                    more!(Phase::Name);
                                }
                                start(work, i, context)?;
                            }
                            let Some(&byte) = bytes.get(i) else { more!(Phase::Gap) };
                            match byte {
                                b' ' | b'\t' | b'\n' | b'\r' => i += 1,
                                b'>' => return end_tag(work, bytes, i, false, context),
                                b'/' => return end_tag(work, bytes, i + 1, true, context),
                                _ => return Err(MALFORMED),
                            }
                        }
                        i = skip(bytes, i, SPACE);
                        let Some(&byte) = bytes.get(i) else { more!(Phase::Between) };
                        if matches!(byte, b'>' | b'/') {
                            phase = Phase::Gap;
                            continue 'tag;
                        }
                        work.token = i;
                        work.colon = 0;
                    }
                    if !name(work, bytes, &mut i, policy)? {
                        more!(Phase::AttributeName);
                    }
                    work.attr = Span::new(work.token, i);
                }
                i = skip(bytes, i, SPACE);
                let Some(&byte) = bytes.get(i) else { more!(Phase::Equals) };
                if byte != b'=' {
                    return Err(Violation::NotWellFormed("attribute without a value"));
                }
                i += 1;
            }
            i = skip(bytes, i, SPACE);
            let Some(&byte) = bytes.get(i) else { more!(Phase::Quote) };
            if byte != b'"' && byte != b'\'' {
                return Err(Violation::NotWellFormed("attribute value without quotes"));
            }
            work.quote = byte;
            i += 1;
            work.token = i;
        }
        loop {
            i = skip_value(bytes, i);
            let Some(&byte) = bytes.get(i) else { more!(Phase::Value) };
            match byte {
                b'"' | b'\'' => {
                    i += 1;
                    if byte == work.quote {
                        break;
                    }
                }
                b'<' => return Err(Violation::NotWellFormed("< in an attribute value")),
                b'&' => match reference_at(work, bytes, i, policy)? {
                    Some(end) => i = end,
                    None => more!(Phase::Value),
                },
                b'\t' | b'\n' | b'\r' => i += 1,
                _ => match characters(work, bytes, i, policy)? {
                    Some(end) => i = end,
                    None => more!(Phase::Value),
                },
            }
        }
        attribute(work, bytes, i - 1, context)?;
        phase = Phase::Gap;
    }
}

/// The `>` of a start tag is due at `i`.
#[inline]
fn end_tag(
    work: &mut Work,
    bytes: &[u8],
    i: usize,
    empty: bool,
    context: &Context<'_>,
) -> Result<Tag, Violation> {
    match bytes.get(i) {
        Some(b'>') => {}
        Some(_) => return Err(Violation::NotWellFormed("malformed start tag")),
        None => {
            work.phase = Phase::Slash;
            work.pos = i;
            return Ok(Tag::More);
        }
    }
    work.pos = i + 1;
    work.phase = Phase::Text;
    let is_last = open(work, bytes, i + 1, empty, context)?;
    Ok(if is_last { Tag::Last } else { Tag::Read })
}

/// The first byte at or behind `i` that is not of `class`.
#[inline(always)]
fn skip(bytes: &[u8], mut i: usize, class: u8) -> usize {
    while let Some(&byte) = bytes.get(i) {
        if CLASS[usize::from(byte)] & class == 0 {
            break;
        }
        i += 1;
    }
    i
}

/// The first byte at or behind `i` for which `stop` holds. Sixteen bytes at a time, in a form
/// that compiles to vector instructions.
#[inline(always)]
fn skip_until(bytes: &[u8], mut i: usize, stop: impl Fn(u8) -> bool) -> usize {
    let long = i + 64;
    while let Some(block) = bytes.get(i..).and_then(|rest| rest.first_chunk::<16>()) {
        let stops = block.map(|byte| if stop(byte) { 0xFF } else { 0 });
        let stops = u128::from_le_bytes(stops);
        if stops != 0 {
            return i + (stops.trailing_zeros() / 8) as usize;
        }
        i += 16;
        if i < long {
            continue;
        }
        // Long runs: only whether, not yet where.
        while let Some(block) = bytes.get(i..).and_then(|rest| rest.first_chunk::<64>()) {
            if block.iter().fold(false, |any, byte| any | stop(*byte)) {
                break;
            }
            i += 64;
        }
    }
    while let Some(&byte) = bytes.get(i) {
        if stop(byte) {
            break;
        }
        i += 1;
    }
    i
}

/// The first byte that needs a second look in character data: `<`, `&`, `]`, a control, white
/// space other than a blank, or non-ASCII.
#[inline]
fn skip_text(bytes: &[u8], i: usize) -> usize {
    skip_until(bytes, i, |b| !(b' '..0x80).contains(&b) | (b == b'<') | (b == b'&') | (b == b']'))
}

/// The same in an attribute value: also quotes, and `]` is like any other.
#[inline]
fn skip_value(bytes: &[u8], i: usize) -> usize {
    skip_until(bytes, i, |b| {
        !(b' '..0x80).contains(&b) | (b == b'<') | (b == b'&') | (b == b'"') | (b == b'\'')
    })
}

/// The end of what follows at `i`, a control or a run of text in other scripts; `None` if more
/// bytes are needed.
fn characters(
    work: &mut Work,
    bytes: &[u8],
    i: usize,
    policy: Policy,
) -> Result<Option<usize>, Violation> {
    if bytes[i] < 0x80 {
        return character(work, bytes, i, policy);
    }
    // All of the run is validated at once. U+FFFE and U+FFFF are UTF-8 but no `Char`; they begin
    // with EF, as few other characters do, so a run ends there.
    let end = skip_until(bytes, i, |b| {
        (b < b' ')
            | (b == 0xEF)
            | (b == b'<')
            | (b == b'&')
            | (b == b']')
            | (b == b'"')
            | (b == b'\'')
    });
    if end == i {
        return character(work, bytes, i, policy);
    }
    let run = &bytes[i..end];
    let (valid, is_cut) = match simdutf8::compat::from_utf8(run) {
        Ok(_) => return Ok(Some(end)),
        Err(e) => (e.valid_up_to(), e.error_len().is_none()),
    };
    if !is_cut || end < bytes.len() {
        return Err(Violation::BadEncoding);
    }
    // The bytes end inside a character.
    if valid > 0 { Ok(Some(i + valid)) } else { Ok(None) }
}

/// The end of the reference at `i`; `None` if more bytes are needed.
fn reference_at(
    work: &mut Work,
    bytes: &[u8],
    i: usize,
    policy: Policy,
) -> Result<Option<usize>, Violation> {
    match reference(&bytes[i..]) {
        Reference::Char(length, _) => Ok(Some(i + length)),
        Reference::More => Ok(None),
        Reference::Entity => {
            work.violate(policy, Violation::Restricted("entity reference"))?;
            Ok(Some(i + 1))
        }
        Reference::Bad => {
            work.violate(policy, Violation::NotWellFormed("reference"))?;
            Ok(Some(i + 1))
        }
    }
}

/// The end of the character at `i`, of any kind; `None` if more bytes are needed.
#[inline]
fn character(
    work: &mut Work,
    bytes: &[u8],
    i: usize,
    policy: Policy,
) -> Result<Option<usize>, Violation> {
    match decode(&bytes[i..]) {
        Step::Char(length, c) => {
            if !is_char(c) {
                work.violate(policy, Violation::NotWellFormed("forbidden character"))?;
            }
            Ok(Some(i + length))
        }
        Step::More => Ok(None),
        Step::Invalid => Err(Violation::BadEncoding),
    }
}

/// Goes on with the qualified name that began at `work.token`; `i` moves to its end. False if
/// more bytes are needed. Namespaces in XML 1.0, productions 7 to 12.
#[inline(always)]
fn name(work: &mut Work, bytes: &[u8], i: &mut usize, policy: Policy) -> Result<bool, Violation> {
    // Most names are ASCII without a colon.
    if *i == work.token
        && let Some(&byte) = bytes.get(*i)
        && CLASS[usize::from(byte)] & START != 0
    {
        *i = skip(bytes, *i + 1, NAME);
        if let Some(&byte) = bytes.get(*i)
            && byte < 0x80
            && byte != b':'
        {
            return Ok(true);
        }
    }
    any_name(work, bytes, i, policy)
}

fn any_name(
    work: &mut Work,
    bytes: &[u8],
    i: &mut usize,
    policy: Policy,
) -> Result<bool, Violation> {
    const MALFORMED: Violation = Violation::NotWellFormed("malformed name");
    loop {
        // Where a part of the name begins, its first character has a class of its own.
        let first = *i == work.token || (work.colon != 0 && *i == work.colon + 1);
        if first
            && let Some(&byte) = bytes.get(*i)
            && CLASS[usize::from(byte)] & START == 0
        {
            match byte {
                0x80.. => match decode(&bytes[*i..]) {
                    Step::Char(length, c) if is_name_start(c) => *i += length,
                    Step::Char(length, c) if *i != work.token && is_name(c) => {
                        work.violate(policy, Violation::Namespace("local part of a name"))?;
                        *i += length;
                    }
                    Step::Char(..) => return Err(MALFORMED),
                    Step::More => return Ok(false),
                    Step::Invalid => return Err(Violation::BadEncoding),
                },
                b':' if *i == work.token => {
                    work.violate(policy, Violation::Namespace("empty prefix"))?;
                }
                b':' => {}
                _ if *i == work.token => return Err(MALFORMED),
                // A name may end in a colon, or go on with a digit, in XML 1.0 but not here.
                _ => {
                    work.violate(policy, Violation::Namespace("local part of a name"))?;
                    if CLASS[usize::from(byte)] & NAME == 0 {
                        return Ok(true);
                    }
                }
            }
        }
        *i = skip(bytes, *i, NAME);
        let Some(&byte) = bytes.get(*i) else { return Ok(false) };
        match byte {
            b':' => {
                if work.colon == 0 {
                    work.colon = *i;
                } else {
                    work.violate(policy, Violation::Namespace("two colons in a name"))?;
                }
                *i += 1;
            }
            0x80.. => match decode(&bytes[*i..]) {
                Step::Char(length, c) if is_name(c) => *i += length,
                Step::Char(..) => return Err(MALFORMED),
                Step::More => return Ok(false),
                Step::Invalid => return Err(Violation::BadEncoding),
            },
            _ => return Ok(true),
        }
    }
}

/// The name of a start tag is complete and ends at `end`.
#[inline]
fn start(work: &mut Work, end: usize, context: &Context<'_>) -> Result<(), Violation> {
    work.tag = Span::new(work.token, end);
    work.tag_colon = work.colon;
    work.outer_bindings = work.bindings.len() as u32;
    work.outer_default = work.default;
    work.attrs.clear();
    work.attr_count = 0;
    work.prefixed = 0;
    work.declared = 0;
    work.seen = 0;
    work.elements += 1;
    if work.elements > context.limits.elements {
        work.violate(context.policy, Violation::Limit(Limit::Elements))?;
    }
    if end - work.token > context.limits.name_bytes as usize {
        work.violate(context.policy, Violation::Limit(Limit::NameBytes))?;
    }
    Ok(())
}

/// An attribute is complete; its value began at `work.token` and ends at `end`.
#[inline]
fn attribute(
    work: &mut Work,
    bytes: &[u8],
    end: usize,
    context: &Context<'_>,
) -> Result<(), Violation> {
    let policy = context.policy;
    let span = work.attr;
    work.attr_count += 1;
    if work.attr_count > context.limits.attributes {
        return work.violate(policy, Violation::Limit(Limit::Attributes));
    }
    let name = span.of(bytes);
    if name.len() > context.limits.name_bytes as usize {
        work.violate(policy, Violation::Limit(Limit::NameBytes))?;
    }

    // A filter first: comparing names is needed only when two fall on the same bit.
    let (first, last) = (name[0], name[name.len() - 1]);
    let bit = 1_u64 << ((usize::from(first) + usize::from(last) * 5 + name.len() * 11) & 63);
    if work.seen & bit != 0 && work.attrs.iter().any(|other| other.name.of(bytes) == name) {
        work.violate(policy, Violation::NotWellFormed("duplicate attribute"))?;
    }
    work.seen |= bit;

    let local = if work.colon == 0 { span.start } else { work.colon as u32 + 1 };
    work.attrs.push(Attr { name: span, local });
    if first == b'x' && name.starts_with(b"xmlns") {
        let prefix = if name.len() == 5 {
            Some(Span::default())
        } else if work.colon == work.attr.start as usize + 5 {
            Some(Span { start: local, end: span.end })
        } else {
            None
        };
        if let Some(prefix) = prefix {
            // A declaration is not an attribute that has a namespace to look up.
            if let Some(last) = work.attrs.last_mut() {
                last.local = last.name.start;
            }
            return declaration(work, bytes, prefix, Span::new(work.token, end), context);
        }
    }
    work.prefixed += u32::from(work.colon != 0);
    Ok(())
}

/// A namespace declaration: `prefix` (empty for the default) is bound to `namespace`.
fn declaration(
    work: &mut Work,
    bytes: &[u8],
    prefix: Span,
    namespace: Span,
    context: &Context<'_>,
) -> Result<(), Violation> {
    let policy = context.policy;
    let limit = context.limits.namespaces;
    let (prefix_name, name) = (prefix.of(bytes), namespace.of(bytes));
    work.declared += 1;
    if work.declared > limit || work.bindings.len() as u32 >= limit.saturating_mul(4) {
        return work.violate(policy, Violation::Limit(Limit::Namespaces));
    }
    // In a form that compiles to vector instructions; C2 may begin a C1 control.
    let is_suspect = name
        .iter()
        .fold(false, |any, b| any | (*b <= b' ') | (*b == b'&') | (*b == 0x7F) | (*b == 0xC2));
    let barred = is_suspect && is_barred(name);
    let wrong = match prefix_name {
        _ if barred => Some("white space, control or reference in a namespace name"),
        b"xmlns" => Some("prefix xmlns declared"),
        b"xml" if name != ns::XML.as_bytes() => Some("prefix xml rebound"),
        b"xml" => None,
        _ if name == ns::XML.as_bytes() || name == ns::XMLNS.as_bytes() => {
            Some("reserved namespace bound")
        }
        [] => None,
        _ if name.is_empty() => Some("empty prefixed declaration"),
        _ => None,
    };
    if let Some(what) = wrong {
        return work.violate(policy, Violation::Namespace(what));
    }
    if work.found.hopeless && work.depth() > 0 {
        return Ok(());
    }
    if prefix_name.is_empty() {
        work.default = work.bindings.len() as u32;
    }
    work.bindings.push(Binding { key: key(prefix_name), prefix, namespace });
    Ok(())
}

/// A number that is the same for equal prefixes, and different for most others.
fn key(prefix: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    let length = prefix.len().min(8);
    bytes[..length].copy_from_slice(&prefix[prefix.len() - length..]);
    u64::from_le_bytes(bytes) ^ (prefix.len() as u64) << 56
}

/// Whether a namespace name holds white space, a control character or a reference (SEC-07).
fn is_barred(name: &[u8]) -> bool {
    name.iter().any(|b| *b <= b' ' || matches!(*b, b'&' | 0x7F))
        // C1 controls are C2 80 to C2 9F in UTF-8.
        || name.windows(2).any(|pair| pair[0] == 0xC2 && pair[1] < 0xA0)
}

/// A start tag (or, with `empty`, an empty-element tag) is complete and ends at `end`. True if
/// that is the end of the scan.
#[inline]
fn open(
    work: &mut Work,
    bytes: &[u8],
    end: usize,
    empty: bool,
    context: &Context<'_>,
) -> Result<bool, Violation> {
    let depth = work.depth();
    if !work.found.hopeless || depth == 0 {
        let ns = if work.tag_colon != 0 {
            let prefix = Span::new(work.tag.start as usize, work.tag_colon);
            if prefix.of(bytes) == b"xmlns" {
                work.violate(context.policy, Violation::Namespace("element prefix xmlns"))?;
            }
            resolve(work, bytes, prefix, context)?
        } else if let Some(binding) = work.bindings.get(work.default as usize) {
            Ns::Own(binding.namespace)
        } else {
            work.found.inherits_default = true;
            Ns::Inherited
        };
        if work.prefixed > 0 {
            expand(work, bytes, context)?;
        }
        if depth == 0 {
            root(work, bytes, ns, end, empty, context)?;
        }
    }
    if work.open.len() >= context.limits.depth as usize {
        work.violate(context.policy, Violation::Limit(Limit::Depth))?;
    }
    if empty {
        work.bindings.truncate(work.outer_bindings as usize);
        work.default = work.outer_default;
        return Ok(depth == 0);
    }
    if work.open.len() >= context.limits.depth as usize {
        work.bindings.truncate(work.outer_bindings as usize);
        work.default = work.outer_default;
        if work.deep.len() >= DEEPEST {
            return Err(Violation::Limit(Limit::Depth));
        }
        work.deep.push(work.tag);
        return Ok(false);
    }
    work.open.push(Open {
        name: work.tag,
        bindings: work.outer_bindings,
        default: work.outer_default,
    });
    Ok(depth == 0 && context.goal == Goal::Header)
}

/// The root's start tag is complete.
fn root(
    work: &mut Work,
    bytes: &[u8],
    ns: Ns,
    end: usize,
    empty: bool,
    context: &Context<'_>,
) -> Result<(), Violation> {
    let colon = work.tag_colon as u32;
    let found = &mut work.found;
    found.name = work.tag;
    found.local = if colon == 0 { work.tag.start } else { colon + 1 };
    found.ns = ns;
    found.head = end as u32;
    found.empty = empty;
    if context.goal == Goal::Element
        && &bytes[found.local as usize..work.tag.end as usize] == b"stream"
        && ns.name(bytes, context.scope) == ns::STREAMS.as_bytes()
    {
        return Err(Violation::Restricted("stream header inside a stream"));
    }
    Ok(())
}

/// What `prefix` is bound to here.
fn resolve(
    work: &mut Work,
    bytes: &[u8],
    prefix: Span,
    context: &Context<'_>,
) -> Result<Ns, Violation> {
    let name = prefix.of(bytes);
    if name == b"xml" {
        return Ok(Ns::Xml);
    }
    let key = key(name);
    let is_it = |b: &&Binding| b.key == key && b.prefix.of(bytes) == name;
    if let Some(own) = work.bindings.iter().rev().find(is_it) {
        // A default declaration has an empty prefix, which no name has: see `name`.
        return Ok(Ns::Own(own.namespace));
    }
    if let Some(index) = context.scope.index(name) {
        debug_assert!(index <= STREAM_INDEX);
        work.found.inherits |= 1 << index;
        return Ok(Ns::Scope(index));
    }
    const UNDECLARED: Violation = Violation::Namespace("undeclared prefix");
    if context.policy == Policy::Strict {
        return Err(UNDECLARED);
    }
    work.found.broken.get_or_insert(UNDECLARED);
    if !work.undeclared.iter().any(|other| other.of(bytes) == name) {
        if work.undeclared.len() as u32 >= context.limits.namespaces {
            work.violate(context.policy, UNDECLARED)?;
        } else {
            work.undeclared.push(prefix);
        }
    }
    Ok(Ns::Undeclared)
}

/// Looks up the prefixes of the tag's attributes and compares the expanded names (SEC-07).
fn expand(work: &mut Work, bytes: &[u8], context: &Context<'_>) -> Result<(), Violation> {
    let attrs = std::mem::take(&mut work.attrs);
    let mut result = Ok(());
    let mut expanded = [(Ns::None, Span::default()); 4];
    let mut more = Vec::new();
    let mut count = 0;
    for attr in attrs.iter().filter(|attr| attr.local != attr.name.start) {
        let prefix = Span { start: attr.name.start, end: attr.local - 1 };
        let local = Span { start: attr.local, end: attr.name.end };
        match resolve(work, bytes, prefix, context) {
            Ok(ns) => {
                if count < expanded.len() {
                    expanded[count] = (ns, local);
                } else {
                    more.push((ns, local));
                }
                count += 1;
            }
            Err(violation) => {
                result = Err(violation);
                break;
            }
        }
    }
    work.attrs = attrs;
    result?;
    if count < 2 {
        return Ok(());
    }
    let few = &expanded[..count.min(expanded.len())];
    let all = || few.iter().chain(&more);
    let twice = all().enumerate().any(|(n, (ns, local))| {
        all().take(n).any(|(other_ns, other)| {
            other.of(bytes) == local.of(bytes)
                && other_ns.name(bytes, context.scope) == ns.name(bytes, context.scope)
        })
    });
    if twice {
        work.violate(context.policy, Violation::Namespace("duplicate attribute"))?;
    }
    Ok(())
}

/// The name that the end tag under way must bear.
#[inline]
fn close_name(work: &Work) -> Span {
    match work.deep.last() {
        Some(name) => *name,
        None => work.open.last().map_or_else(Span::default, |open| open.name),
    }
}

/// An end tag is complete. True if it was the root's.
#[inline]
fn close(work: &mut Work) -> bool {
    if work.deep.pop().is_some() {
        return false;
    }
    if let Some(open) = work.open.pop() {
        work.bindings.truncate(open.bindings as usize);
        work.default = open.default;
    }
    work.open.is_empty()
}

/// Scans on, but never looks beyond [`Limits::element_bytes`] (SEC-12).
///
/// # Errors
/// [`Violation::TooBig`] as soon as more bytes than that are there without an end.
pub(super) fn scan_bounded(
    work: &mut Work,
    bytes: &[u8],
    context: &Context<'_>,
) -> Result<Option<usize>, Violation> {
    let limit = context.limits.element_bytes.min(u32::MAX as usize);
    if bytes.len() <= limit {
        return scan(work, bytes, context);
    }
    match scan(work, &bytes[..limit], context)? {
        Some(end) => Ok(Some(end)),
        None => Err(Violation::TooBig),
    }
}
