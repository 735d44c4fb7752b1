//! The page that a client is on, as an operator is shown it: its origin (RFC 6454) in one form, or
//! a word where that would tell more than where it is from.

use std::borrow::Cow;
use std::net::Ipv4Addr;

use super::origins::{Origins, bare};

/// Bytes of an origin that is shown.
const LONGEST: usize = 100;
/// Bytes of a scheme that is shown.
const LONGEST_SCHEME: usize = 24;

/// What the header `Origin` says, kept until the session is worth counting.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Page {
    /// There is none: the client is no page.
    #[default]
    None,
    /// It is longer than any that is shown, or not ASCII.
    Invalid,
    /// It may be one.
    Given(Box<str>),
}

impl Page {
    /// From the header's value.
    #[must_use]
    pub fn of(header: Option<&[u8]>) -> Self {
        let Some(text) = header else { return Self::None };
        let is_plausible = text.len() <= LONGEST && text.is_ascii();
        match std::str::from_utf8(text) {
            Ok(text) if is_plausible => Self::Given(text.into()),
            _ => Self::Invalid,
        }
    }

    /// The value of the label `origin`: as it is configured, if `origins` has it without a star;
    /// else `scheme://host[:port]` in lower case, without a scheme's default port. `address` stands
    /// for hosts that are IP addresses, and of schemes other than http and https, such as those of
    /// browser extensions, which may be one person's alone, there is only the scheme.
    #[must_use]
    pub fn shown(&self, origins: Option<&Origins>) -> Cow<'_, str> {
        let text = match self {
            Self::None => return "none".into(),
            Self::Invalid => return "invalid".into(),
            Self::Given(text) => &**text,
        };
        if let Some(exact) = origins.and_then(|origins| origins.exact(text)) {
            return bare(exact).to_ascii_lowercase().into();
        }
        normal(text).unwrap_or("invalid".into())
    }
}

/// `None` if it is no origin.
fn normal(text: &str) -> Option<Cow<'_, str>> {
    if text == "null" {
        return Some("null".into());
    }
    let (scheme, _) = text.split_once("://")?;
    let scheme_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    let begins = scheme.bytes().next()?.is_ascii_alphabetic();
    if !begins || scheme.len() > LONGEST_SCHEME || !scheme.bytes().all(scheme_byte) {
        return None;
    }
    if !["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return Some(format!("{}:", scheme.to_ascii_lowercase()).into());
    }
    let text = bare(text);
    let (_, authority) = text.split_once("://")?;
    if authority.starts_with('[') {
        return Some("address".into());
    }
    let (host, port) = match authority.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    };
    let host_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if host.is_empty() || !host.bytes().all(host_byte) {
        return None;
    }
    if let Some(port) = port
        && !(port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok())
    {
        return None;
    }
    if host.parse::<Ipv4Addr>().is_ok() {
        return Some("address".into());
    }
    Some(text.to_ascii_lowercase().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One form for each origin, and nothing that tells more.
    #[test]
    fn origins_have_one_form() {
        let long = format!("https://{}.test", "a".repeat(88));
        let longest = &long[..long.len() - 1];
        for (text, shown) in [
            ("https://chat.example.org", "https://chat.example.org"),
            ("HTTPS://Chat.Example.ORG:443", "https://chat.example.org"),
            ("http://localhost:8080", "http://localhost:8080"),
            ("http://a_b.xn--exmple-cua.org:80", "http://a_b.xn--exmple-cua.org"),
            ("null", "null"),
            ("moz-extension://0d1ab3c7-1111-4222-8333-444455556666", "moz-extension:"),
            ("capacitor://localhost", "capacitor:"),
            ("file://", "file:"),
            ("http://192.0.2.1:8080", "address"),
            ("https://[2001:db8::1]", "address"),
            ("", "invalid"),
            ("https://", "invalid"),
            ("https://a b", "invalid"),
            ("https://a\"b", "invalid"),
            ("https://user@host", "invalid"),
            ("https://host/path", "invalid"),
            ("https://host:port", "invalid"),
            ("https://host:+80", "invalid"),
            ("https://host:99999", "invalid"),
            ("https://h\u{f6}st", "invalid"),
            ("1x://host", "invalid"),
            ("a-scheme-that-nobody-has-ever-heard-of://x", "invalid"),
            (longest, longest),
            (&format!("{longest}aa"), "invalid"),
        ] {
            assert_eq!(Page::of(Some(text.as_bytes())).shown(None), shown, "{text}");
            assert_eq!(Page::of(Some(text.as_bytes())).shown(Some(&Origins::Any)), shown, "{text}");
        }
        assert_eq!(Page::of(None).shown(None), "none");
    }

    /// What the operator has written is his to see; a star is not what he has written.
    #[test]
    fn configured_origins_are_shown_as_configured() {
        let listed = ["https://192.0.2.1", "app://Tool", "https://*.example.org"].map(Into::into);
        let origins = Origins::Listed(listed.into());
        for (text, shown) in [
            ("https://192.0.2.1:443", "https://192.0.2.1"),
            ("app://tool", "app://tool"),
            ("https://A.example.org", "https://a.example.org"),
            ("https://192.0.2.2", "address"),
        ] {
            assert_eq!(Page::of(Some(text.as_bytes())).shown(Some(&origins)), shown, "{text}");
        }
    }
}
