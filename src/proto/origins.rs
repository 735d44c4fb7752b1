//! Web origins (RFC 6454): which pages may connect, over either transport, to which domain, and what
//! a browser is told of that (CORS).
//!
//! A page's origin is known when its request comes, the domain only when its stream opens. So a
//! request is judged by all domains together ([`ByDomain::all`]), and a stream once more by its
//! own.

use super::domain::{self, Domain};

/// Web origins that are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origins {
    /// All of them: XMPP credentials are not ambient, so this is no hole by itself.
    Any,
    /// These: `scheme://host[:port]`, or `null`. A host of the form `*.example.org` is any below
    /// that.
    Listed(Vec<Box<str>>),
}

impl Origins {
    /// Whether `origin`, an `Origin` header's value, is served: scheme, host and port exactly,
    /// letter case aside, with a scheme's default port the same as none.
    #[must_use]
    pub fn allows(&self, origin: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(list) => {
                let origin = bare(origin);
                list.iter().any(|listed| matches(bare(listed), origin))
            }
        }
    }

    /// The entry of the list that is this very origin, without a star.
    #[must_use]
    pub fn exact(&self, origin: &str) -> Option<&str> {
        let Self::Listed(list) = self else { return None };
        let origin = bare(origin);
        list.iter().map(|listed| &**listed).find(|listed| bare(listed).eq_ignore_ascii_case(origin))
    }

    /// The CORS headers of an answer to a request from `origin`, without which a page does not see
    /// it (WS-05, SEC-02). With `credentials` it may be one with cookies, if its origin is listed:
    /// never any origin (SEC-03).
    pub fn cors<'a>(
        &self,
        origin: Option<&'a str>,
        credentials: bool,
    ) -> impl Iterator<Item = (&'static str, &'a str)> + use<'a> {
        let listed = matches!(self, Self::Listed(_));
        let allowed = origin.filter(|origin| listed && self.allows(origin));
        let any = (!listed).then_some((ALLOW_ORIGIN, "*"));
        let vary = listed.then_some(("Vary", "Origin"));
        let credentials = (credentials && allowed.is_some()).then_some((ALLOW_CREDENTIALS, "true"));
        [any, allowed.map(|origin| (ALLOW_ORIGIN, origin)), vary, credentials].into_iter().flatten()
    }
}

/// The origins of each domain that is served.
pub type ByDomain = domain::ByDomain<Origins>;

impl ByDomain {
    /// Those that may connect to any of the domains.
    #[must_use]
    pub fn all(&self) -> Origins {
        let mut all = Vec::new();
        for origins in self.values() {
            match origins {
                Origins::Any => return Origins::Any,
                Origins::Listed(list) => all.extend(list.iter().cloned()),
            }
        }
        all.sort();
        all.dedup();
        Origins::Listed(all)
    }

    /// Whether it matters where a page is from.
    #[must_use]
    pub fn matter(&self) -> bool {
        self.values().any(|origins| *origins != Origins::Any)
    }

    /// The origin of a client, if its streams will be judged by that and were not yet.
    #[must_use]
    pub fn of_interest(&self, origin: Option<&str>) -> Option<Box<str>> {
        origin.filter(|_| self.matter()).map(Into::into)
    }

    /// Whether a page of `origin` may open a stream of `domain`. A client that is no page has none,
    /// and a domain that is not served is not refused here.
    #[must_use]
    pub fn allow(&self, domain: &Domain, origin: Option<&str>) -> bool {
        match (self.get(domain), origin) {
            (Some(origins), Some(origin)) => origins.allows(origin),
            _ => true,
        }
    }
}

/// Both without what may be left out of them.
fn matches(listed: &str, origin: &str) -> bool {
    let Some((scheme, below)) = listed.split_once("://*") else {
        return listed.eq_ignore_ascii_case(origin);
    };
    let Some((other, host)) = origin.split_once("://") else { return false };
    let Some(middle) = host.len().checked_sub(below.len()) else { return false };
    // A host has no other characters: nothing but labels may be where the star is.
    other.eq_ignore_ascii_case(scheme)
        && middle > 0
        && host.as_bytes()[middle..].eq_ignore_ascii_case(below.as_bytes())
        && host.as_bytes()[..middle].iter().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(b))
}

/// An origin without what may be left out of it.
pub(super) fn bare(origin: &str) -> &str {
    let origin = origin.strip_suffix('/').unwrap_or(origin);
    let port = match origin.split_once("://") {
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => ":443",
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("http") => ":80",
        _ => return origin,
    };
    origin.strip_suffix(port).unwrap_or(origin)
}

const ALLOW_ORIGIN: &str = "Access-Control-Allow-Origin";
const ALLOW_CREDENTIALS: &str = "Access-Control-Allow-Credentials";

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(list: &[&str]) -> Origins {
        Origins::Listed(list.iter().map(|&text| text.into()).collect())
    }

    /// SEC-01: a star stands for one label or more, and for nothing else.
    #[test]
    fn a_star_is_any_host_below() {
        let origins = listed(&["https://*.example.org", "http://*.example.net:8080", "null"]);
        for (origin, allowed) in [
            ("https://a.example.org", true),
            ("HTTPS://A.B.Example.ORG:443", true),
            ("https://example.org", false),
            ("https://.example.org", false),
            ("https://a.example.org:8443", false),
            ("http://a.example.org", false),
            ("https://aexample.org", false),
            ("https://evil.test/.example.org", false),
            ("https://evil.test:80.example.org", false),
            ("https://evil@a.example.org", false),
            ("https://a.example.org.evil.test", false),
            ("https://ä.example.org", false),
            ("http://a.example.net:8080", true),
            ("http://a.example.net", false),
            ("null", true),
            ("", false),
            ("https://", false),
        ] {
            assert_eq!(origins.allows(origin), allowed, "{origin}");
        }
    }

    /// SEC-02, SEC-03: what a browser is told.
    #[test]
    fn headers_say_who_may_read() {
        let some = listed(&["https://a.test"]);
        let said = |origins: &Origins, origin, credentials| {
            let headers = origins.cors(origin, credentials);
            headers.map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>().join("\n")
        };
        let any = "Access-Control-Allow-Origin: *";
        assert_eq!(said(&Origins::Any, None, false), any);
        assert_eq!(said(&Origins::Any, Some("https://a.test"), true), any);
        let vary = "Vary: Origin";
        assert_eq!(said(&some, None, true), vary);
        assert_eq!(said(&some, Some("https://b.test"), true), vary);
        let allowed = "Access-Control-Allow-Origin: https://a.test\nVary: Origin";
        assert_eq!(said(&some, Some("https://a.test"), false), allowed);
        let credentials = format!("{allowed}\nAccess-Control-Allow-Credentials: true");
        assert_eq!(said(&some, Some("https://a.test"), true), credentials);
    }

    /// SEC-01: a domain's own list holds for its streams, all lists together for requests.
    #[test]
    fn each_domain_has_its_own() {
        let domain = |text: &str| Domain::parse(text).unwrap();
        let mut by_domain = ByDomain {
            named: [
                (domain("a.test"), listed(&["https://a.test"])),
                (domain("b.test"), listed(&["https://b.test"])),
            ]
            .into(),
            suffixes: [(domain("c.test"), listed(&["https://c.test", "https://a.test"]))].into(),
            any: None,
        };
        assert_eq!(
            by_domain.all(),
            listed(&["https://a.test", "https://b.test", "https://c.test"])
        );
        assert!(by_domain.matter());
        for (name, origin, allowed) in [
            ("a.test", Some("https://a.test"), true),
            ("a.test", Some("https://b.test"), false),
            ("a.test", None, true),
            ("x.c.test", Some("https://c.test"), true),
            ("x.c.test", Some("https://b.test"), false),
            ("other.test", Some("https://b.test"), true),
        ] {
            assert_eq!(by_domain.allow(&domain(name), origin), allowed, "{name} {origin:?}");
        }
        by_domain.any = Some(Origins::Any);
        assert_eq!(by_domain.all(), Origins::Any);
        by_domain.named.clear();
        by_domain.suffixes.clear();
        assert!(!by_domain.matter());
    }
}
