//! Characters: the byte classes of the scanner, UTF-8, references, and the attributes of a tag
//! that the scanner has already proven.

use std::borrow::Cow;

use super::is_space;

/// `NameChar` in ASCII, save the colon.
pub(super) const NAME: u8 = 1;
/// `NameStartChar` in ASCII, save the colon.
pub(super) const START: u8 = 2;
/// White space.
pub(super) const SPACE: u8 = 4;
/// A CDATA section's: not `]`, a control or non-ASCII.
pub(super) const CDATA: u8 = 8;

/// Class bits of every byte.
pub(super) static CLASS: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 0x80 {
        let b = byte as u8;
        let mut class = 0;
        if (b >= 0x20 || is_space(b)) && b != b']' {
            class |= CDATA;
        }
        if b.is_ascii_alphabetic() || b == b'_' {
            class |= NAME | START;
        }
        if b.is_ascii_digit() || b == b'-' || b == b'.' {
            class |= NAME;
        }
        if is_space(b) {
            class |= SPACE;
        }
        table[byte] = class;
        byte += 1;
    }
    table
}

/// One step over a character at the start of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A whole character: its length and its code point.
    Char(usize, u32),
    /// The slice ends inside it.
    More,
    /// Not UTF-8.
    Invalid,
}

/// Decodes the character at the start of `bytes`, which must not be empty. Strict (SEC-06): no
/// overlong forms, surrogates, or values above U+10FFFF (Unicode 15 table 3-7).
pub(super) fn decode(bytes: &[u8]) -> Step {
    let first = bytes[0];
    let (length, low, high) = match first {
        0..=0x7F => return Step::Char(1, u32::from(first)),
        0xC2..=0xDF => (2, 0x80, 0xBF),
        0xE0 => (3, 0xA0, 0xBF),
        0xED => (3, 0x80, 0x9F),
        0xE1..=0xEF => (3, 0x80, 0xBF),
        0xF0 => (4, 0x90, 0xBF),
        0xF1..=0xF3 => (4, 0x80, 0xBF),
        0xF4 => (4, 0x80, 0x8F),
        _ => return Step::Invalid,
    };
    let mut value = u32::from(first) & (0x7F >> length);
    let mut at = 1;
    while at < length {
        let Some(&byte) = bytes.get(at) else { return Step::More };
        let range = if at == 1 { low..=high } else { 0x80..=0xBF };
        if !range.contains(&byte) {
            return Step::Invalid;
        }
        value = value << 6 | u32::from(byte & 0x3F);
        at += 1;
    }
    Step::Char(length, value)
}

/// `Char` (XML 1.0 production 2) for a code point that UTF-8 can carry.
pub(super) const fn is_char(c: u32) -> bool {
    matches!(c, 0x9 | 0xA | 0xD | 0x20..=0xD7FF | 0xE000..=0xFFFD | 0x1_0000..=0x10_FFFF)
}

/// `NameStartChar` outside ASCII (XML 1.0, fifth edition, production 4).
pub(super) const fn is_name_start(c: u32) -> bool {
    matches!(c,
        0xC0..=0xD6 | 0xD8..=0xF6 | 0xF8..=0x2FF | 0x370..=0x37D | 0x37F..=0x1FFF
        | 0x200C..=0x200D | 0x2070..=0x218F | 0x2C00..=0x2FEF | 0x3001..=0xD7FF
        | 0xF900..=0xFDCF | 0xFDF0..=0xFFFD | 0x1_0000..=0xE_FFFF)
}

/// `NameChar` outside ASCII (production 4a).
pub(super) const fn is_name(c: u32) -> bool {
    is_name_start(c) || matches!(c, 0xB7 | 0x300..=0x36F | 0x203F..=0x2040)
}

/// What stands at an ampersand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reference {
    /// A good reference: its length with `&` and `;`, and what it stands for.
    Char(usize, char),
    /// The slice may end inside a good one.
    More,
    /// An entity other than the five predefined (SEC-05).
    Entity,
    /// No reference at all, or one to a character outside `Char` (SEC-06).
    Bad,
}

/// The longest reference looked for, between `&` and `;`. Longer ones are well-formed only with
/// needless leading zeros; refusing those keeps the look-ahead, and so any resumption, constant.
const LONGEST_REFERENCE: usize = 10;

/// Reads the reference at the start of `bytes`, which begins with `&`.
pub(super) fn reference(bytes: &[u8]) -> Reference {
    let body = &bytes[1..bytes.len().min(LONGEST_REFERENCE + 2)];
    // The look-ahead stops at what no reference holds, so it never passes the element's end.
    let is_part = |b: u8| b == b'#' || CLASS[usize::from(b)] & NAME != 0;
    let end = match body.iter().position(|b| !is_part(*b)) {
        Some(end) if body[end] == b';' => end,
        None if body.len() <= LONGEST_REFERENCE => return Reference::More,
        _ => return Reference::Bad,
    };
    let name = &body[..end];
    let c = match name {
        b"amp" => '&',
        b"lt" => '<',
        b"gt" => '>',
        b"quot" => '"',
        b"apos" => '\'',
        [b'#', b'x', hex @ ..] => match number(hex, 16) {
            Some(c) => c,
            None => return Reference::Bad,
        },
        [b'#', decimal @ ..] => match number(decimal, 10) {
            Some(c) => c,
            None => return Reference::Bad,
        },
        [first, rest @ ..]
            if CLASS[usize::from(*first)] & START != 0
                && rest.iter().all(|b| CLASS[usize::from(*b)] & NAME != 0) =>
        {
            return Reference::Entity;
        }
        _ => return Reference::Bad,
    };
    Reference::Char(end + 2, c)
}

fn number(digits: &[u8], radix: u32) -> Option<char> {
    if digits.is_empty() {
        return None;
    }
    let mut value = 0_u32;
    for digit in digits {
        value = value.checked_mul(radix)?.checked_add(char::from(*digit).to_digit(radix)?)?;
    }
    if is_char(value) { char::from_u32(value) } else { None }
}

/// The value of an attribute as an application sees it (XML 1.0 section 3.3.3): references
/// replaced, white space made blanks. `None` if it is not sound.
pub(crate) fn unescape_attribute(raw: &[u8]) -> Option<Cow<'_, str>> {
    unescape(raw, true)
}

/// Character data as an application sees it (XML 1.0 section 2.11): references replaced, line
/// ends made LF. `None` if it is not sound.
pub(super) fn unescape_text(raw: &[u8]) -> Option<Cow<'_, str>> {
    unescape(raw, false)
}

fn unescape(raw: &[u8], attribute: bool) -> Option<Cow<'_, str>> {
    let text = std::str::from_utf8(raw).ok()?;
    if !text.chars().all(|c| is_char(u32::from(c))) {
        return None;
    }
    let special = |b: &u8| *b == b'&' || *b == b'\r' || (attribute && matches!(*b, b'\t' | b'\n'));
    if !raw.iter().any(special) {
        return Some(Cow::Borrowed(text));
    }
    let mut out = String::with_capacity(raw.len());
    let mut rest = text;
    while let Some(at) = rest.as_bytes().iter().position(special) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let (length, c) = match rest.as_bytes() {
            [b'&', ..] => match reference(rest.as_bytes()) {
                Reference::Char(length, c) => (length, c),
                _ => return None,
            },
            [b'\r', b'\n', ..] => (2, '\n'),
            _ => (1, '\n'),
        };
        let literal = rest.as_bytes()[0] != b'&';
        out.push(if attribute && literal { ' ' } else { c });
        rest = &rest[length..];
    }
    out.push_str(rest);
    Some(Cow::Owned(out))
}

/// The attributes of a start tag that the scanner has passed, as they came.
pub(crate) struct Attributes<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// One attribute: where its name begins and its value (with quotes) ends, and the two as bytes.
pub(crate) struct Attribute<'a> {
    /// From the name's first byte to behind the closing quote.
    pub(crate) range: std::ops::Range<usize>,
    /// The qualified name.
    pub(crate) name: &'a [u8],
    /// The value without its quotes, not unescaped.
    pub(crate) value: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// `bytes` hold a start tag, `name_end` is where its name ends.
    pub(crate) fn new(bytes: &'a [u8], name_end: usize) -> Self {
        Self { bytes, at: name_end }
    }

    fn skip_space(&mut self) {
        while self.bytes.get(self.at).is_some_and(|b| is_space(*b)) {
            self.at += 1;
        }
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        self.skip_space();
        let start = self.at;
        let bytes = self.bytes;
        let name_end = start
            + bytes
                .get(start..)?
                .iter()
                .position(|b| is_space(*b) || matches!(*b, b'=' | b'>' | b'/'))?;
        if name_end == start {
            return None;
        }
        self.at = name_end;
        self.skip_space();
        if bytes.get(self.at) != Some(&b'=') {
            return None;
        }
        self.at += 1;
        self.skip_space();
        let quote = *bytes.get(self.at)?;
        let value_start = self.at + 1;
        let value_end = value_start + memchr::memchr(quote, bytes.get(value_start..)?)?;
        self.at = value_end + 1;
        Some(Attribute {
            range: start..self.at,
            name: &bytes[start..name_end],
            value: &bytes[value_start..value_end],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SEC-06: the strict decoder agrees with std on every sequence of up to four bytes that
    /// matters: all two-byte starts followed by boundary bytes.
    #[test]
    fn utf8_agrees_with_std() {
        let edges = [0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xFF];
        for first in 0..=255_u8 {
            for second in 0..=255_u8 {
                for third in edges {
                    for fourth in edges {
                        let bytes = [first, second, third, fourth];
                        let ours = decode(&bytes);
                        let std = match std::str::from_utf8(&bytes) {
                            Ok(text) => text.chars().next(),
                            Err(e) => std::str::from_utf8(&bytes[..e.valid_up_to()])
                                .unwrap()
                                .chars()
                                .next(),
                        };
                        match ours {
                            Step::Char(n, c) => {
                                let std = std.unwrap();
                                assert_eq!((n, c), (std.len_utf8(), u32::from(std)));
                            }
                            Step::Invalid => assert_eq!(std, None, "{bytes:x?}"),
                            Step::More => panic!("{bytes:x?}"),
                        }
                    }
                }
            }
        }
    }

    /// SEC-05, SEC-06: references.
    #[test]
    fn references_are_the_five_and_sound_characters() {
        for (bytes, want) in [
            (&b"&amp;"[..], Reference::Char(5, '&')),
            (b"&#65;x", Reference::Char(5, 'A')),
            (b"&#x1F600;", Reference::Char(9, '\u{1F600}')),
            (b"&#x10FFFF;", Reference::Char(10, '\u{10FFFF}')),
            (b"&#9;", Reference::Char(4, '\t')),
            (b"&nbsp;", Reference::Entity),
            (b"&#0;", Reference::Bad),
            (b"&#xB;", Reference::Bad),
            (b"&#xFFFE;", Reference::Bad),
            (b"&#xD800;", Reference::Bad),
            (b"&#X41;", Reference::Bad),
            (b"&#;", Reference::Bad),
            (b"&#x;", Reference::Bad),
            (b"&#+1;", Reference::Bad),
            (b"&;", Reference::Bad),
            (b"& amp;", Reference::Bad),
            (b"&am", Reference::More),
            (b"&#x000000041;", Reference::Bad),
        ] {
            assert_eq!(reference(bytes), want, "{}", String::from_utf8_lossy(bytes));
        }
    }

    /// XML 1.0 sections 2.11 and 3.3.3.
    #[test]
    fn values_are_normalised() {
        assert_eq!(unescape_attribute(b"a\r\nb\tc&#10;d").unwrap(), "a b c\nd");
        assert_eq!(unescape_text(b"a\r\nb\rc\td&lt;").unwrap(), "a\nb\nc\td<");
        assert_eq!(unescape_text("gr\u{fc}n".as_bytes()).unwrap(), "gr\u{fc}n");
        assert!(unescape_text(b"&nbsp;").is_none());
        assert!(unescape_text(b"\x01").is_none());
    }
}
