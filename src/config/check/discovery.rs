//! `[discovery]` and `public_url` of a domain, checked.

use super::endpoint::host_port;
use super::{Checker, quoted};
use crate::config::model::{Discovery, DiscoveryLink, PublicUrl};
use crate::config::raw;

impl Checker<'_> {
    pub(super) fn discovery(&mut self, raw: &raw::Discovery) -> Discovery {
        let public_url = raw
            .public_url
            .as_deref()
            .and_then(|text| self.public_url(&["discovery", "public_url"], text));
        let mut links = Vec::new();
        for (index, link) in raw.links.iter().enumerate() {
            let element = ["discovery", "links", &index.to_string()];
            let is_visible =
                |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
            let secure = ["https://", "wss://"].iter().any(|scheme| link.href.starts_with(scheme));
            if !is_visible(&link.rel) {
                self.expected(&element, "a relation as its rel", quoted(&link.rel));
            } else if !(secure && is_visible(&link.href)) {
                // DISC-03.
                self.expected(
                    &element,
                    "a URL with https: or wss: as its href",
                    quoted(&link.href),
                );
            } else {
                links.push(DiscoveryLink { rel: link.rel.clone(), href: link.href.clone() });
            }
        }
        Discovery { public_url, links }
    }

    pub(super) fn public_url(&mut self, path: &[&str], text: &str) -> Option<PublicUrl> {
        let Some((secure, rest)) = parse(text) else {
            self.expected(
                path,
                "the URL of the place that clients reach this gateway at, such as \
                 \"https://chat.example.org\"",
                quoted(text),
            );
            return None;
        };
        if !secure {
            // DISC-03.
            self.warning(
                path,
                "nothing is published of it: clients may only be sent to https: and wss: \
                 (XEP-0156 §2)",
            );
        }
        Some(PublicUrl { secure, rest: rest.to_owned() })
    }
}

/// Whether it is `https`, and what follows the scheme, without a slash at its end.
fn parse(text: &str) -> Option<(bool, &str)> {
    let (secure, rest) = match text.split_once("://")? {
        ("https", rest) => (true, rest),
        ("http", rest) => (false, rest),
        _ => return None,
    };
    let rest = rest.trim_end_matches('/');
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let is_path =
        path.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#\"<>\\{}".contains(&byte));
    // What is published is read by programs, which expect ASCII.
    let is_host = authority.is_ascii() && host_port(authority, 443).is_ok();
    (is_path && is_host).then_some((secure, rest))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn urls_are_scheme_host_and_prefix() {
        for (text, expected) in [
            ("https://chat.test", Some((true, "chat.test"))),
            ("https://chat.test:8443/xmpp/", Some((true, "chat.test:8443/xmpp"))),
            ("https://[::1]:8443/", Some((true, "[::1]:8443"))),
            ("http://chat.test", Some((false, "chat.test"))),
            ("chat.test", None),
            ("wss://chat.test", None),
            ("https://", None),
            ("https://chat.test/?x", None),
            ("https://chat.test/ x", None),
            ("https://user@chat.test", None),
            ("https://chat.test:0", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }
}
