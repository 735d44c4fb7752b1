//! The pages that may use the gateway, of all domains and of each, checked.

use std::net::Ipv6Addr;

use super::{Checker, quoted};
use crate::config::model::{AllowedOrigins, Config};

impl Checker<'_> {
    pub(super) fn origins_list(&mut self, path: &[&str], raw: &[String]) -> AllowedOrigins {
        if raw.is_empty() {
            self.expected(path, "at least one origin, or \"*\"", "an empty list");
        }
        let mut listed = Vec::new();
        for (index, text) in raw.iter().enumerate() {
            match parse_origin(text) {
                Some(origin) => listed.push(origin),
                None if text == "*" => {}
                None => {
                    let mut path = path.to_vec();
                    let index = index.to_string();
                    path.push(&index);
                    self.expected(
                        &path,
                        "an origin such as \"https://chat.example.org\" (scheme, host, port if \
                         not the usual one, nothing after it), \"https://*.example.org\", \"null\" \
                         or \"*\"",
                        quoted(text),
                    );
                }
            }
        }
        if raw.iter().any(|text| text == "*") {
            if !listed.is_empty() {
                self.warning(path, "\"*\" allows every origin; the others change nothing");
            }
            return AllowedOrigins::Any;
        }
        AllowedOrigins::Listed(listed)
    }

    /// SEC-03: whoever lets pages send cookies says which pages.
    pub(super) fn credentials(&mut self, config: &Config) {
        // What has no host is the origin of frames and files of anybody's.
        let any = |origins: &AllowedOrigins| match origins {
            AllowedOrigins::Any => true,
            AllowedOrigins::Listed(list) => list.iter().any(|it| it == "null" || it == "file://"),
        };
        let mut own = config.domains.values().map(|route| route.allowed_origins.as_ref());
        // The general list is that of the domains without one, or of none at all.
        let is_any = own.any(|own| any(own.unwrap_or(&config.bosh.allowed_origins)));
        if config.bosh.allow_credentials && is_any {
            self.problem(
                &["bosh", "allow_credentials"],
                "expected the pages that may send cookies in bosh.allowed_origins, found \"*\", \
                 \"null\" or \"file://\": any page could use the sessions of its visitors",
            );
        }
    }
}

/// An origin as a browser would send it: lower case, no default port; `None` if it is not one.
fn parse_origin(text: &str) -> Option<String> {
    let text = text.to_ascii_lowercase();
    // Web views send "file://" for local pages.
    if text == "null" || text == "file://" {
        return Some(text);
    }
    let (scheme, authority) = text.split_once("://")?;
    let scheme_ok = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    let (host, port) = match authority.rfind(':') {
        Some(colon) if !authority.ends_with(']') => {
            (&authority[..colon], Some(authority[colon + 1..].parse::<u16>().ok()?))
        }
        _ => (authority, None),
    };
    let host_ok = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => inner.parse::<Ipv6Addr>().is_ok(),
        None => {
            let host = host.strip_prefix("*.").unwrap_or(host);
            !host.is_empty()
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
        }
    };
    if !(scheme_ok && host_ok) {
        return None;
    }
    match (scheme, port) {
        ("https", Some(443)) | ("http", Some(80)) | (_, None) => Some(format!("{scheme}://{host}")),
        (_, Some(port)) => Some(format!("{scheme}://{host}:{port}")),
    }
}
