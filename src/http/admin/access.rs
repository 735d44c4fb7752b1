//! Who may ask about sessions: who shows the token, or, where there is none, whoever is on this
//! machine. A browser on this machine is not its user: pages it shows must not reach what is here,
//! by a request across sites or by a name of theirs that leads to loopback (DNS rebinding).

use std::net::IpAddr;

use actix_web::http::header::{self, HeaderMap};
use arc_swap::ArcSwapOption;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// The token that has to be shown, as SHA-256, if there is one.
#[derive(Debug)]
pub struct Access(ArcSwapOption<[u8; 32]>);

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denied {
    /// The token is missing or wrong.
    Token,
    /// There is no token to be shown, and the listener is not on loopback.
    NoToken,
    /// A page in a browser asks.
    Page,
    /// The request is not for an address, nor for this machine by its name.
    Host,
}

impl Denied {
    /// What the client is told.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Token => "show the token of admin.token_file: Authorization: Bearer TOKEN",
            Self::NoToken => {
                "set admin.token_file: without a token sessions are told of on loopback only, and \
                 admin.address is not loopback"
            }
            Self::Page => "pages in browsers are not answered here",
            Self::Host => {
                "without admin.token_file the request has to be for an IP address or localhost"
            }
        }
    }
}

impl Access {
    /// Who shows the token with this SHA-256 may ask; without one, whoever is on this machine.
    #[must_use]
    pub fn new(token: Option<[u8; 32]>) -> Self {
        Self(ArcSwapOption::from_pointee(token))
    }

    /// Another token from now on.
    pub fn replace(&self, token: Option<[u8; 32]>) {
        self.0.store(token.map(Into::into));
    }

    /// Judges a request with these headers to a listener that is on loopback or not.
    pub(super) fn judge(&self, headers: &HeaderMap, is_loopback: bool) -> Result<(), Denied> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        // Fetch §2.2.8 and Fetch Metadata §2.3: what only browsers say.
        let is_foreign = text(header::HeaderName::from_static("sec-fetch-site"))
            .is_some_and(|site| !matches!(site, "none" | "same-origin"));
        if headers.contains_key(header::ORIGIN) || is_foreign {
            return Err(Denied::Page);
        }
        let proxied =
            ["x-forwarded-for", "forwarded", "via"].map(|name| headers.contains_key(name));
        let proxied = proxied.contains(&true);
        match &*self.0.load() {
            Some(token) => {
                let shown = text(header::AUTHORIZATION).and_then(bearer).unwrap_or_default();
                let hash: [u8; 32] = Sha256::digest(shown).into();
                if bool::from(hash.ct_eq(&**token)) { Ok(()) } else { Err(Denied::Token) }
            }
            None if !is_loopback => Err(Denied::NoToken),
            // Whoever is behind a proxy on this machine is not on it himself.
            None if proxied => Err(Denied::Host),
            None if text(header::HOST).is_some_and(is_here) => Ok(()),
            None => Err(Denied::Host),
        }
    }
}

/// RFC 6750 §2.1.
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Whether the value of `Host` is an address, or `localhost`, with a port or without.
fn is_here(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
    address.parse::<IpAddr>().is_ok() || name.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::http::header::{HeaderName, HeaderValue};

    const HERE: (&str, &str) = ("host", "127.0.0.1:9280");

    fn judge(token: Option<&str>, is_loopback: bool, headers: &[(&str, &str)]) -> Option<Denied> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name = HeaderName::try_from(*name).unwrap();
            map.append(name, HeaderValue::from_str(value).unwrap());
        }
        let access = Access::new(token.map(|token| Sha256::digest(token).into()));
        access.judge(&map, is_loopback).err()
    }

    /// Without a token: this machine, by an address or as localhost.
    #[test]
    fn loopback_needs_no_token() {
        for host in
            ["127.0.0.1:9280", "127.0.0.1", "[::1]:9280", "[::1]", "localhost", "LOCALHOST:1"]
        {
            assert_eq!(judge(None, true, &[("host", host)]), None, "{host}");
            assert_eq!(judge(None, false, &[("host", host)]), Some(Denied::NoToken));
        }
        for host in ["evil.example:9280", "localhost.evil.example", "127.0.0.1.evil.example", ""] {
            assert_eq!(judge(None, true, &[("host", host)]), Some(Denied::Host), "{host}");
        }
        assert_eq!(judge(None, true, &[]), Some(Denied::Host));
        for proxy in ["x-forwarded-for", "forwarded", "via"] {
            assert_eq!(judge(None, true, &[HERE, (proxy, "x")]), Some(Denied::Host), "{proxy}");
        }
    }

    /// With one: whoever shows it, by whatever name.
    #[test]
    fn a_token_has_to_be_shown() {
        let token = Some("0123456789abcdef");
        for is_loopback in [true, false] {
            let judge = |value: &str| {
                judge(token, is_loopback, &[("host", "a.example"), ("authorization", value)])
            };
            for right in ["Bearer 0123456789abcdef", "bearer  0123456789abcdef "] {
                assert_eq!(judge(right), None, "{right}");
            }
            for wrong in
                ["Bearer 0123456789abcdeF", "Bearer", "Bearer ", "Basic 0123456789abcdef", ""]
            {
                assert_eq!(judge(wrong), Some(Denied::Token), "{wrong}");
            }
        }
        assert_eq!(judge(token, true, &[HERE]), Some(Denied::Token));
    }

    /// A page gets nothing, whatever else is right.
    #[test]
    fn pages_are_not_answered() {
        let shown = ("authorization", "Bearer 0123456789abcdef");
        for token in [None, Some("0123456789abcdef")] {
            for page in [
                ("origin", "null"),
                ("origin", "http://127.0.0.1:9280"),
                ("sec-fetch-site", "cross-site"),
                ("sec-fetch-site", "same-site"),
            ] {
                assert_eq!(
                    judge(token, true, &[HERE, shown, page]),
                    Some(Denied::Page),
                    "{page:?}"
                );
            }
            // An address that its user typed.
            let typed = ("sec-fetch-site", "none");
            assert_eq!(judge(token, true, &[HERE, shown, typed]), None);
        }
    }
}
