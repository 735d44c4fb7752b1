//! The name of an XMPP service, prepared so that equal names are equal bytes.
//!
//! RFC 7622 §3.2 (and RFC 6122 §2.2 before it) let a domainpart be a DNS name, an internationalised
//! name or an IP literal. A name is prepared once, where it enters: after that it can be compared,
//! hashed, put into an attribute without escaping, and handed to DNS and TLS.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};

/// A prepared domainpart: U-labels in lower case, an IPv4 literal, or an IPv6 literal in brackets.
///
/// Never empty, at most 1023 bytes, without a trailing dot, and free of every character that XML
/// would have to escape. A clone costs a reference count.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Domain(Arc<str>);

/// Why a text is not a domainpart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadDomain {
    /// Nothing was left, perhaps after the trailing dot went.
    #[error("the name is empty")]
    Empty,
    /// RFC 7622 §3.2.1: at most 1023 bytes; the DNS allows 253 in all and 63 in a label.
    #[error("the name, or one of its labels, is too long")]
    TooLong,
    /// A character that no host name has; `@`, `/` and white space show that it is a JID or a URL.
    #[error("the character {0:?} cannot be in a domain name")]
    Character(char),
    /// Brackets without an IPv6 address between them.
    #[error("the text in brackets is not an IPv6 address")]
    Ipv6,
    /// Refused by UTS #46: a bad A-label, mixed writing directions, a leading hyphen, an empty
    /// label.
    #[error("the name is not valid under IDNA")]
    Idna,
}

impl Domain {
    /// Prepares a domainpart as written by a peer or an operator.
    ///
    /// Upper case and compatibility forms are folded, A-labels become U-labels, one trailing dot
    /// goes (RFC 7622 §3.2).
    ///
    /// # Errors
    /// [`BadDomain`] says which rule the text breaks.
    pub fn parse(text: &str) -> Result<Self, BadDomain> {
        if text.len() > MAX_BYTES {
            return Err(BadDomain::TooLong);
        }
        if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or(BadDomain::Ipv6)?;
            let address: Ipv6Addr = inner.parse().map_err(|_| BadDomain::Ipv6)?;
            return Ok(Self(format!("[{address}]").into()));
        }
        if let Some(bad) = text.chars().find(|c| !acceptable(*c)) {
            return Err(BadDomain::Character(bad));
        }
        let (name, valid) =
            Uts46::new().to_unicode(text.as_bytes(), AsciiDenyList::EMPTY, Hyphens::CheckFirstLast);
        // The mapping can turn other dots into '.', so the trailing one goes after it.
        let name = name.strip_suffix('.').unwrap_or(&name);
        if name.is_empty() {
            return Err(BadDomain::Empty);
        }
        // Mapping can also bring forth ASCII: U+FF1C becomes '<'.
        if let Some(bad) = name.chars().find(|c| !acceptable(*c)) {
            return Err(BadDomain::Character(bad));
        }
        valid.map_err(|_| BadDomain::Idna)?;
        let ascii = to_ascii(name).ok_or(BadDomain::Idna)?;
        if ascii.split('.').any(str::is_empty) {
            return Err(BadDomain::Idna);
        }
        if name.len() > MAX_BYTES || !idna::uts46::verify_dns_length(&ascii, false) {
            return Err(BadDomain::TooLong);
        }
        Ok(Self(name.into()))
    }

    /// The prepared name, as XMPP writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The form for DNS and TLS: A-labels, and an IPv6 address without its brackets.
    pub fn ascii(&self) -> Cow<'_, str> {
        if let Some(inner) = self.0.strip_prefix('[') {
            return Cow::Borrowed(inner.trim_end_matches(']'));
        }
        to_ascii(&self.0).unwrap_or(Cow::Borrowed(&self.0))
    }

    /// The domains that it is below, from the longest: for `a.example.org` these are `example.org`
    /// and `org`. An address is below none.
    pub fn parents(&self) -> impl Iterator<Item = &str> {
        let name = if self.ip().is_some() { "" } else { &self.0 };
        name.match_indices('.').map(move |(dot, _)| &name[dot + 1..])
    }

    /// The address, if the name is an IP literal (RFC 7622 §3.2): nothing to look up, no SNI.
    pub fn ip(&self) -> Option<IpAddr> {
        match self.0.strip_prefix('[') {
            Some(inner) => inner.trim_end_matches(']').parse().ok().map(IpAddr::V6),
            None => self.0.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        }
    }
}

/// Something for each domain that is served, found as its server is: by name, else by the longest
/// suffix, else as any other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByDomain<T> {
    /// For domains served by name.
    pub named: BTreeMap<Domain, T>,
    /// For the domains below these.
    pub suffixes: BTreeMap<Domain, T>,
    /// For all others, if they are served.
    pub any: Option<T>,
}

impl<T> Default for ByDomain<T> {
    fn default() -> Self {
        Self { named: BTreeMap::new(), suffixes: BTreeMap::new(), any: None }
    }
}

impl<T> ByDomain<T> {
    /// What there is for `domain`; `None` if that is not served.
    #[must_use]
    pub fn get(&self, domain: &Domain) -> Option<&T> {
        self.named
            .get(domain)
            .or_else(|| domain.parents().find_map(|parent| self.suffixes.get(parent)))
            .or(self.any.as_ref())
    }

    /// What `domain` is served by: its name, `*.` and the longest suffix, or `*`; `None` if it is
    /// not served.
    #[must_use]
    pub fn pattern(&self, domain: &Domain) -> Option<String> {
        if self.named.contains_key(domain) {
            return Some(domain.as_str().to_owned());
        }
        let suffix = domain.parents().find(|parent| self.suffixes.contains_key(*parent));
        suffix.map(|suffix| format!("*.{suffix}")).or(self.any.as_ref().map(|_| "*".to_owned()))
    }

    /// All of it.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.named.values().chain(self.wide())
    }

    /// What is for domains that are not named.
    pub fn wide(&self) -> impl Iterator<Item = &T> {
        self.suffixes.values().chain(&self.any)
    }

    /// What `of` makes of each, for the same domains.
    #[must_use]
    pub fn map<U>(&self, of: impl Fn(&T) -> U) -> ByDomain<U> {
        let each = |map: &BTreeMap<Domain, T>| {
            map.iter().map(|(domain, it)| (domain.clone(), of(it))).collect()
        };
        ByDomain {
            named: each(&self.named),
            suffixes: each(&self.suffixes),
            any: self.any.as_ref().map(&of),
        }
    }

    /// What `of` makes of each, for the same domains; it is told what they are served by, as
    /// [`pattern`](Self::pattern) writes it.
    ///
    /// # Errors
    /// The first of `of`.
    pub fn try_map<U, E>(
        self,
        mut of: impl FnMut(&str, T) -> Result<U, E>,
    ) -> Result<ByDomain<U>, E> {
        let mut made = ByDomain::default();
        for (domain, it) in self.named {
            let of_it = of(domain.as_str(), it)?;
            made.named.insert(domain, of_it);
        }
        for (below, it) in self.suffixes {
            let of_it = of(&format!("*.{below}"), it)?;
            made.suffixes.insert(below, of_it);
        }
        made.any = self.any.map(|it| of("*", it)).transpose()?;
        Ok(made)
    }
}

/// Equal, ordered and hashed as the text is, so that maps can be asked by text.
impl std::borrow::Borrow<str> for Domain {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Domain {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl std::str::FromStr for Domain {
    type Err = BadDomain;

    fn from_str(text: &str) -> Result<Self, BadDomain> {
        Self::parse(text)
    }
}

/// RFC 7622 §3.2.1.
const MAX_BYTES: usize = 1023;

/// Letters, digits and hyphens, and the underscore that container networks put into names; beyond
/// ASCII, what UTS #46 allows, but neither white space nor control characters.
fn acceptable(c: char) -> bool {
    match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' | '.' => true,
        _ => !c.is_ascii() && !c.is_whitespace() && !c.is_control(),
    }
}

fn to_ascii(name: &str) -> Option<Cow<'_, str>> {
    Uts46::new()
        .to_ascii(name.as_bytes(), AsciiDenyList::EMPTY, Hyphens::CheckFirstLast, DnsLength::Ignore)
        .ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// WS-21, SEC-22: whatever comes in, what comes out is clean, prepared, and fit for DNS.
        #[test]
        fn any_text_is_refused_or_prepared(text in "\\PC{0,24}|[a-zA-Z0-9.üß－。xn-]{0,80}") {
            if let Ok(domain) = Domain::parse(&text) {
                prop_assert!(!domain.as_str().is_empty() && domain.as_str().len() <= 1023);
                prop_assert!(!domain.as_str().contains(['<', '>', '&', '"', '\'', '@', '/', ' ']));
                prop_assert!(domain.ascii().is_ascii());
                prop_assert_eq!(Domain::parse(domain.as_str()), Ok(domain.clone()));
                if domain.ip().is_none() {
                    prop_assert_eq!(Domain::parse(&domain.ascii()), Ok(domain));
                }
            }
        }
    }

    fn parsed(text: &str) -> String {
        Domain::parse(text).unwrap().to_string()
    }

    /// WS-21: the same service, however it is written, is the same name.
    #[test]
    fn equal_names_are_equal_bytes() {
        for text in ["example.org", "EXAMPLE.Org", "example.org.", "ｅxample.org", "example。org"]
        {
            assert_eq!(parsed(text), "example.org", "{text}");
        }
        for text in
            ["bücher.example", "BÜCHER.example", "xn--bcher-kva.example", "bu\u{308}cher.example"]
        {
            assert_eq!(parsed(text), "bücher.example", "{text}");
        }
        assert_eq!(parsed("straße.example"), "straße.example");
        assert_eq!(parsed("localhost"), "localhost");
        assert_eq!(parsed("xmpp_server"), "xmpp_server");
    }

    /// RFC 7622 §3.2: IPv4 as it is, IPv6 in brackets.
    #[test]
    fn ip_literals_are_domains() {
        assert_eq!(parsed("127.0.0.1"), "127.0.0.1");
        assert_eq!(parsed("[0:0::1]"), "[::1]");
        assert_eq!(parsed("[2001:DB8::A]"), "[2001:db8::a]");
        assert_eq!(Domain::parse("[::1]").unwrap().ip(), Some("::1".parse().unwrap()));
        assert_eq!(Domain::parse("127.0.0.1").unwrap().ip(), Some("127.0.0.1".parse().unwrap()));
        assert_eq!(Domain::parse("example.org").unwrap().ip(), None);
        for text in ["[::1", "[127.0.0.1]", "[]", "[fe80::1%eth0]"] {
            assert_eq!(Domain::parse(text), Err(BadDomain::Ipv6), "{text}");
        }
    }

    /// The form for DNS and TLS.
    #[test]
    fn the_ascii_form_has_a_labels() {
        let ascii = |text| Domain::parse(text).unwrap().ascii().into_owned();
        assert_eq!(ascii("bücher.example"), "xn--bcher-kva.example");
        assert_eq!(ascii("Example.org."), "example.org");
        assert_eq!(ascii("[::1]"), "::1");
        assert_eq!(ascii("xmpp_server"), "xmpp_server");
    }

    /// SEC-22, WS-21: a JID, a URL, or anything that XML would have to escape is not a domain.
    #[test]
    fn what_is_no_name_is_refused() {
        for bad in "@/ \t\n<>&'\"%:;#?\\^|`*\u{a0}\u{3000}\u{85}＜＆".chars() {
            let text = format!("a{bad}b.example");
            assert!(Domain::parse(&text).is_err(), "{text:?}");
        }
        assert_eq!(Domain::parse("ayse@example.org"), Err(BadDomain::Character('@')));
        assert_eq!(Domain::parse(""), Err(BadDomain::Empty));
        assert_eq!(Domain::parse("."), Err(BadDomain::Empty));
        for text in ["a..b", ".a", "a..", "-a.example", "xn--a.example", "a\u{200d}b.example"] {
            assert!(Domain::parse(text).is_err(), "{text}");
        }
    }

    /// RFC 7622 §3.2.1, and what the DNS can carry.
    #[test]
    fn length_is_bounded() {
        assert_eq!(parsed(&"a".repeat(63)).len(), 63);
        assert_eq!(Domain::parse(&"a".repeat(64)), Err(BadDomain::TooLong));
        assert_eq!(Domain::parse(&"a.".repeat(600)), Err(BadDomain::TooLong));
        assert_eq!(Domain::parse(&"a.".repeat(200)), Err(BadDomain::TooLong));
    }

    /// UP-02: the name goes before suffixes, the longest of those before the others, and any of them
    /// before the star; an address is below nothing.
    #[test]
    fn the_narrowest_is_found() {
        let domain = |text: &str| Domain::parse(text).unwrap();
        let mut by_domain = ByDomain {
            named: [(domain("one.wide.test"), 1), (domain("127.0.0.1"), 2)].into(),
            suffixes: [(domain("wide.test"), 3), (domain("deep.wide.test"), 4), (domain("1"), 5)]
                .into(),
            any: None,
        };
        let found = [
            ("one.wide.test", "one.wide.test", 1),
            ("ONE.wide.test.", "one.wide.test", 1),
            ("127.0.0.1", "127.0.0.1", 2),
            ("two.wide.test", "*.wide.test", 3),
            ("a.one.wide.test", "*.wide.test", 3),
            ("deep.wide.test", "*.wide.test", 3),
            ("a.b.deep.wide.test", "*.deep.wide.test", 4),
        ];
        let others = ["wide.test", "notwide.test", "test", "127.0.1.1", "[::1]"];
        for any in [None, Some(6)] {
            by_domain.any = any;
            for (name, pattern, value) in found {
                assert_eq!(by_domain.get(&domain(name)), Some(&value), "{name}");
                assert_eq!(by_domain.pattern(&domain(name)).as_deref(), Some(pattern), "{name}");
            }
            for name in others {
                assert_eq!(by_domain.get(&domain(name)), any.as_ref(), "{name}");
                let pattern = any.map(|_| "*".to_owned());
                assert_eq!(by_domain.pattern(&domain(name)), pattern, "{name}");
            }
        }
        assert!(by_domain.values().copied().eq([2, 1, 5, 4, 3, 6]));
        assert!(by_domain.wide().copied().eq([5, 4, 3, 6]));
    }

    /// What is made of it is for the same domains.
    #[test]
    fn places_stay_where_they_are() {
        let domain = |text: &str| Domain::parse(text).unwrap();
        let by_domain = ByDomain {
            named: [(domain("one.test"), 1), (domain("two.test"), 2)].into(),
            suffixes: [(domain("wide.test"), 3)].into(),
            any: Some(4),
        };
        let doubled = ByDomain {
            named: [(domain("one.test"), 2), (domain("two.test"), 4)].into(),
            suffixes: [(domain("wide.test"), 6)].into(),
            any: Some(8),
        };
        assert_eq!(by_domain.map(|n| 2 * n), doubled);
        let mut patterns = Vec::new();
        let made = by_domain.clone().try_map(|pattern, n| {
            patterns.push(pattern.to_owned());
            Ok::<_, ()>(2 * n)
        });
        assert_eq!(made, Ok(doubled));
        assert_eq!(patterns, ["one.test", "two.test", "*.wide.test", "*"]);
        for bad in 1..=4 {
            let refused = |_: &str, n| if n == bad { Err(n) } else { Ok(n) };
            assert_eq!(by_domain.clone().try_map(refused), Err(bad));
        }
        assert_eq!(ByDomain::<()>::default().map(|()| ()), ByDomain::default());
    }

    /// A prepared name is its own preparation, whatever went in.
    #[test]
    fn preparation_is_idempotent() {
        for text in
            ["Bücher.Example.", "127.0.0.1", "[0::1]", "ΣΊΣΥΦΟΣ.example", "İstanbul.example"]
        {
            let once = Domain::parse(text).unwrap();
            assert_eq!(Domain::parse(once.as_str()).unwrap(), once, "{text}");
        }
    }
}
