//! What a web client finds the endpoints of a domain by: the documents of `/.well-known/host-meta`
//! (XEP-0156 §2, RFC 6415).
//!
//! A document is rendered once, when the configuration is read; a request only chooses one, by the
//! domain that it was sent to.

use std::fmt::Write as _;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::domain::{ByDomain, Domain};

/// The path of the XRD.
pub const XRD_PATH: &str = "/.well-known/host-meta";
/// The path of the JRD.
pub const JRD_PATH: &str = "/.well-known/host-meta.json";
/// The relation of a WebSocket endpoint (XEP-0156 §2).
pub const WEBSOCKET: &str = "urn:xmpp:alt-connections:websocket";
/// The relation of a BOSH endpoint.
pub const BOSH: &str = "urn:xmpp:alt-connections:xbosh";

/// One link of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// What is there.
    pub rel: Box<str>,
    /// Where; never but `https:` or `wss:` (DISC-03).
    pub href: Box<str>,
}

/// The two forms of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `host-meta`, XML.
    Xrd,
    /// `host-meta.json`.
    Jrd,
}

impl Form {
    /// The one that this path asks for.
    #[must_use]
    pub fn of(path: &str) -> Option<Self> {
        match path {
            XRD_PATH => Some(Self::Xrd),
            JRD_PATH => Some(Self::Jrd),
            _ => None,
        }
    }

    /// The value of `Content-Type`.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Xrd => "application/xrd+xml; charset=utf-8",
            Self::Jrd => "application/json",
        }
    }
}

/// A document, rendered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// Its bytes.
    pub body: Box<str>,
    /// Its `ETag`, a strong one, with its quotes (RFC 9110 §8.8.3).
    pub etag: Box<str>,
}

/// What is published for a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    xrd: Rendered,
    jrd: Rendered,
}

impl Document {
    /// The document with these links, which clients try in this order.
    #[must_use]
    pub fn new(links: &[Link]) -> Self {
        Self { xrd: Rendered::new(xrd(links)), jrd: Rendered::new(jrd(links)) }
    }

    /// One form of it.
    #[must_use]
    pub fn form(&self, form: Form) -> &Rendered {
        match form {
            Form::Xrd => &self.xrd,
            Form::Jrd => &self.jrd,
        }
    }
}

impl Rendered {
    fn new(body: String) -> Self {
        let mut etag = String::from('"');
        for byte in &Sha256::digest(&body)[..12] {
            let _ = write!(etag, "{byte:02x}");
        }
        etag.push('"');
        Self { body: body.into(), etag: etag.into() }
    }

    /// Whether the client has it already: `if_none_match` is the value of that header (RFC 9110
    /// §13.1.2).
    #[must_use]
    pub fn is_known(&self, if_none_match: &str) -> bool {
        let mut tags = if_none_match.split(',').map(str::trim);
        tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == &*self.etag)
    }
}

/// What is published of one domain, or of several alike.
#[derive(Debug, PartialEq, Eq)]
pub struct Published {
    /// The transports, WebSocket first, and what the operator adds.
    pub open: Document,
    /// What is left of that while the process ends: what the operator adds (DISC-08).
    pub draining: Document,
}

impl Published {
    /// The links of the transports, and those besides.
    #[must_use]
    pub fn new(transports: &[Link], besides: &[Link]) -> Self {
        Self {
            open: Document::new(&[transports, besides].concat()),
            draining: Document::new(besides),
        }
    }
}

/// What is published, by domain; `None` for one that is served but not published.
pub type Discovery = ByDomain<Option<Arc<Published>>>;

impl Discovery {
    /// What is published of the domain that the host of a request is (DISC-04): the value of `Host`
    /// or `:authority`, with or without a port.
    #[must_use]
    pub fn of_host(&self, host: &str) -> Option<&Published> {
        let end =
            if host.starts_with('[') { host.find(']').map(|at| at + 1) } else { host.find(':') };
        let domain = Domain::parse(&host[..end.unwrap_or(host.len())]).ok()?;
        self.get(&domain)?.as_deref()
    }

    /// Whether nothing is published of any domain.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values().all(Option::is_none)
    }
}

fn xrd(links: &[Link]) -> String {
    let mut out = String::from(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n\
         <XRD xmlns=\"http://docs.oasis-open.org/ns/xri/xrd-1.0\">\n",
    );
    for Link { rel, href } in links {
        out.push_str("  <Link rel=\"");
        escape(rel, &mut out);
        out.push_str("\" href=\"");
        escape(href, &mut out);
        out.push_str("\"/>\n");
    }
    out.push_str("</XRD>\n");
    out
}

fn escape(value: &str, out: &mut String) {
    for c in value.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
}

/// Relations and URLs are visible characters, which the configuration has seen to: of these, JSON
/// escapes two.
fn jrd(links: &[Link]) -> String {
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    let mut out = String::from("{\"links\":[");
    for (index, Link { rel, href }) in links.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let _ = write!(out, "{comma}{{\"rel\":\"{}\",\"href\":\"{}\"}}", quoted(rel), quoted(href));
    }
    out.push_str("]}\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(rel: &str, href: &str) -> Link {
        Link { rel: rel.into(), href: href.into() }
    }

    fn published(host: &str) -> Option<Arc<Published>> {
        let websocket = link(WEBSOCKET, &format!("wss://{host}/ws"));
        Some(Arc::new(Published::new(&[websocket], &[link("other", "https://a.test/?a=1&b=\"")])))
    }

    /// DISC-01, DISC-02: both forms say the same, and what is in them is escaped.
    #[test]
    fn both_forms_have_the_same_links() {
        let document = &published("chat.test").unwrap().open;
        let root: minidom::Element = document.form(Form::Xrd).body.parse().unwrap();
        assert_eq!(
            (root.name(), root.ns().as_str()),
            ("XRD", "http://docs.oasis-open.org/ns/xri/xrd-1.0")
        );
        let of_xrd: Vec<_> = root
            .children()
            .map(|link| {
                (link.attr("rel").unwrap().to_owned(), link.attr("href").unwrap().to_owned())
            })
            .collect();
        let json: serde_json::Value = serde_json::from_str(&document.form(Form::Jrd).body).unwrap();
        let of_jrd: Vec<_> = json["links"]
            .as_array()
            .unwrap()
            .iter()
            .map(|link| {
                (link["rel"].as_str().unwrap().into(), link["href"].as_str().unwrap().into())
            })
            .collect();
        assert_eq!(of_xrd, of_jrd);
        assert_eq!(of_xrd[0], (WEBSOCKET.to_owned(), "wss://chat.test/ws".to_owned()));
        assert_eq!(of_xrd[1].1, "https://a.test/?a=1&b=\"");
    }

    /// DISC-04: the host of a request is a domain as it is served.
    #[test]
    fn the_domain_is_the_host() {
        let domain = |text: &str| Domain::parse(text).unwrap();
        let mut discovery = Discovery {
            named: [
                (domain("a.test"), published("a")),
                (domain("bücher.test"), published("b")),
                (domain("[::1]"), published("v6")),
                (domain("hidden.wild.test"), None),
            ]
            .into(),
            suffixes: [(domain("wild.test"), published("w"))].into(),
            any: None,
        };
        let found = |discovery: &Discovery, host: &str| {
            let body = &discovery.of_host(host)?.open.form(Form::Jrd).body;
            let (_, rest) = body.split_once("wss://")?;
            Some(rest.split_once('/')?.0.to_owned())
        };
        for (host, expected) in [
            ("a.test", Some("a")),
            ("A.Test.:5281", Some("a")),
            ("xn--bcher-kva.test:443", Some("b")),
            ("[::1]:8443", Some("v6")),
            ("x.y.wild.test", Some("w")),
            ("hidden.wild.test", None),
            ("wild.test", None),
            ("b.test", None),
            ("", None),
            ("a.test/", None),
            ("[::1", None),
        ] {
            assert_eq!(found(&discovery, host).as_deref(), expected, "{host}");
        }
        assert!(!discovery.is_empty());
        discovery.any = Some(published("any"));
        assert_eq!(found(&discovery, "b.test").as_deref(), Some("any"));
        assert_eq!(found(&discovery, "hidden.wild.test"), None);
        assert!(Discovery::default().is_empty());
    }

    /// DISC-07: a client that has the document is told so.
    #[test]
    fn tags_tell_documents_apart() {
        let (a, b) = (published("a").unwrap(), published("b").unwrap());
        let (a, b) = (a.open.form(Form::Xrd), b.open.form(Form::Xrd));
        assert_ne!(a.etag, b.etag);
        let both = format!("\"x\", W/{} , {}", a.etag, b.etag);
        for (value, known) in
            [(&*a.etag, true), (&both, true), ("*", true), (&b.etag, false), ("", false)]
        {
            assert_eq!(a.is_known(value), known, "{value}");
        }
    }

    /// DISC-08: what ends is not published, what the operator adds stays.
    #[test]
    fn transports_go_while_draining() {
        let published = published("a").unwrap();
        let body = &published.draining.form(Form::Jrd).body;
        assert!(!body.contains(WEBSOCKET) && body.contains("a.test"), "{body}");
    }
}
