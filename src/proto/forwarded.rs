//! Who the client is when proxies stand in between: `X-Forwarded-For` with `X-Forwarded-Proto`, and
//! `Forwarded` (RFC 7239) (SEC-19).
//!
//! Each proxy adds, at the right end, whom it was asked by. So the list is read from the right, and
//! only as far as those who wrote it are trusted: the first address that is no trusted proxy is the
//! client, and what stands to its left is the client's own invention. It is never looked at, so that
//! no garbage there can spoil what a proxy has said; that is why quoted strings are read from their
//! ends, too. Where the walk meets what is no address (malformed, `unknown`, an obfuscated name),
//! the client is not known, and the peer's own address stands for it. Where everybody in the list is
//! trusted, the client is the first of them: one that lives among the proxies.
//!
//! **`X-Forwarded-For` wins** where both are there, and then `Forwarded` is not looked at, not even
//! for its `proto`. Nearly every proxy writes the former, few write the latter, and none removes the
//! one it does not write: the other one, if it is there, comes from the client. A proxy that writes
//! `Forwarded` has to remove `X-Forwarded-For`.
//!
//! Not here: whose connection it is (`http::caller`).

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

/// Proxies that one request may have passed; a longer list is not followed.
const HOPS: usize = 32;
/// Bytes of one element of a list; a longer one is malformed. A node is 47 bytes at most, the other
/// parameters of `Forwarded` are names.
const ELEMENT: usize = 1024;

/// A set of networks in CIDR notation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Box<[IpNet]>);

impl Networks {
    /// Those in the list.
    #[must_use]
    pub fn new(list: &[IpNet]) -> Self {
        Self(list.into())
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of them has the address. An IPv4 address is the same as an IPv6 one that maps it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// What trusted proxies say of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// The client's address, with port 0 if that is not told; `None` if it is not known.
    pub address: Option<SocketAddr>,
    /// Whether the client's own connection is TLS; `None` if that is not known.
    pub secure: Option<bool>,
}

/// What the headers of a request that came from `peer` say, as far as it is trusted: nothing, if
/// `peer` is none of the `trusted`. `headers` are all of the request's, names in any letter case, a
/// repeated one as often as it came and in its order.
#[must_use]
pub fn read<'a>(
    peer: IpAddr,
    trusted: &Networks,
    headers: impl IntoIterator<Item = (&'a str, &'a [u8])>,
) -> Told {
    if trusted.contains(peer) { told(trusted, headers) } else { Told::default() }
}

/// The same of a request whose sender is trusted, be it one without an address.
#[must_use]
pub fn told<'a>(
    trusted: &Networks,
    headers: impl IntoIterator<Item = (&'a str, &'a [u8])>,
) -> Told {
    let (mut addresses, mut schemes, mut forwarded) = (Vec::new(), Vec::new(), Vec::new());
    for (name, value) in headers {
        let is = |other| name.eq_ignore_ascii_case(other);
        if is("X-Forwarded-For") {
            addresses.push(value);
        } else if is("X-Forwarded-Proto") {
            schemes.push(value);
        } else if is("Forwarded") {
            forwarded.push(value);
        }
    }
    if addresses.is_empty() && !forwarded.is_empty() {
        return standard(trusted, &forwarded);
    }
    let (address, distance) = legacy(trusted, &addresses);
    Told { address, secure: scheme_at(&schemes, distance) }
}

/// `X-Forwarded-For`: the client and how many elements stand to the right of it.
fn legacy(trusted: &Networks, lines: &[&[u8]]) -> (Option<SocketAddr>, usize) {
    let mut first = (None, 0);
    for (distance, element) in Elements::of(lines).enumerate() {
        if distance == HOPS {
            return (None, distance);
        }
        let Some(address) = std::str::from_utf8(element).ok().and_then(address) else {
            return (None, distance);
        };
        first = (Some(address), distance);
        if !trusted.contains(address.ip()) {
            break;
        }
    }
    first
}

/// `X-Forwarded-Proto`: what was said by the proxy that named the client. Where each adds its own,
/// that is the one so many from the right; where they keep or replace it, the only one.
fn scheme_at(lines: &[&[u8]], distance: usize) -> Option<bool> {
    let last = Elements::of(lines).take(HOPS).take(distance + 1).last()?;
    scheme(std::str::from_utf8(last).ok()?)
}

/// `Forwarded`: each proxy says in one element whom it was asked by, and how.
fn standard(trusted: &Networks, lines: &[&[u8]]) -> Told {
    let mut first = Told::default();
    for (distance, element) in Elements::of(lines).enumerate() {
        if distance == HOPS {
            return Told::default();
        }
        let Some(Pairs { node, proto }) = pairs(element) else { return Told::default() };
        let secure = proto.as_deref().and_then(scheme);
        let Some(address) = node.as_deref().and_then(node_address) else {
            return Told { address: None, secure };
        };
        first = Told { address: Some(address), secure };
        if !trusted.contains(address.ip()) {
            break;
        }
    }
    first
}

fn scheme(text: &str) -> Option<bool> {
    let is = |other| text.eq_ignore_ascii_case(other);
    if is("https") || is("wss") {
        Some(true)
    } else if is("http") || is("ws") {
        Some(false)
    } else {
        None
    }
}

/// The elements of a list (RFC 9110 §5.6.1) from the last to the first, empty ones left out; several
/// lines are one list. A comma in a quoted string separates nothing.
struct Elements<'a> {
    lines: &'a [&'a [u8]],
    /// What is left of the line that is being read.
    rest: Option<&'a [u8]>,
}

impl<'a> Elements<'a> {
    fn of(lines: &'a [&'a [u8]]) -> Self {
        Self { lines, rest: None }
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        loop {
            let rest = match self.rest.take() {
                Some(rest) => rest,
                None => {
                    let (last, before) = self.lines.split_last()?;
                    self.lines = before;
                    last
                }
            };
            let element = match last_comma(rest) {
                Some(comma) => {
                    self.rest = Some(&rest[..comma]);
                    &rest[comma + 1..]
                }
                None => rest,
            };
            let element = element.trim_ascii();
            if !element.is_empty() {
                return Some(element);
            }
        }
    }
}

/// The last comma outside of quoted strings, read from the right: whoever wrote the right end wrote
/// it whole, and where his predecessors left a string open is no concern of his.
fn last_comma(text: &[u8]) -> Option<usize> {
    let mut quoted = false;
    let mut at = text.len();
    while at > 0 {
        at -= 1;
        match text[at] {
            b',' if !quoted => return Some(at),
            b'"' if quoted => {
                let slashes = text[..at].iter().rev().take_while(|byte| **byte == b'\\').count();
                quoted = slashes % 2 == 1;
                at -= slashes;
            }
            b'"' => quoted = true,
            _ => {}
        }
    }
    None
}

/// What matters of one element of `Forwarded`.
#[derive(Default)]
struct Pairs {
    node: Option<String>,
    proto: Option<String>,
}

/// RFC 7239 §4: `token = (token | quoted-string)`, separated by semicolons, each name once. `None`
/// if it is something else.
fn pairs(element: &[u8]) -> Option<Pairs> {
    if element.len() > ELEMENT {
        return None;
    }
    let mut rest = std::str::from_utf8(element).ok()?;
    let mut found = Pairs::default();
    loop {
        rest = rest.trim_start();
        // The grammar allows for nothing between two semicolons.
        if !rest.is_empty() && !rest.starts_with(';') {
            let (name, after) = rest.split_once('=')?;
            let (value, after) = value(after)?;
            rest = after.trim_start();
            let place = if name.eq_ignore_ascii_case("for") {
                Some(&mut found.node)
            } else if name.eq_ignore_ascii_case("proto") {
                Some(&mut found.proto)
            } else if is_token(name) {
                None
            } else {
                return None;
            };
            if place.is_some_and(|place| place.replace(value).is_some()) {
                return None;
            }
        }
        if rest.is_empty() {
            return Some(found);
        }
        rest = rest.strip_prefix(';')?;
    }
}

/// A token or a quoted string (RFC 9110 §5.6.4), and what follows it.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([';', ' ', '\t']).unwrap_or(text.len());
        let (token, after) = text.split_at(end);
        return is_token(token).then(|| (token.to_owned(), after));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            _ => value.push(char),
        }
    }
    None
}

fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// RFC 7239 §6: an IPv4 address or an IPv6 one in brackets, with a port or without. `None` for
/// `unknown`, an obfuscated name, and whatever is none of these.
fn node_address(text: &str) -> Option<SocketAddr> {
    if let Some((node, port)) = text.rsplit_once(":_") {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        return if port.bytes().all(is_name) { node_address(node) } else { None };
    }
    // Without brackets RFC 7239 §6.1 knows no IPv6 address.
    let is_bare = !text.starts_with('[') && text.bytes().filter(|byte| *byte == b':').count() > 1;
    if is_bare { None } else { address(text) }
}

/// An address as proxies write it: bare, an IPv6 one also in brackets; then with a port or without.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = if let Some(rest) = text.strip_prefix('[') {
        let (ip, after) = rest.split_once(']')?;
        let port = if after.is_empty() { None } else { Some(after.strip_prefix(':')?) };
        (IpAddr::V6(ip.parse().ok()?), port)
    } else if let Ok(ip) = text.parse() {
        (ip, None)
    } else {
        let (ip, port) = text.split_once(':')?;
        (IpAddr::V4(ip.parse().ok()?), Some(port))
    };
    let port = match port {
        None => 0,
        // Rust's numbers may have a sign.
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => port.parse().ok()?,
        Some(_) => return None,
    };
    Some(SocketAddr::new(ip.to_canonical(), port))
}

#[cfg(test)]
mod tests;
