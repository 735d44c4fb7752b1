//! What an XML stream is made of: its header, its first-level elements, its end.

use std::borrow::Cow;
use std::ops::Range;

use super::ns;
use super::seam;
use super::xml::{
    Attributes, Found, Node, Ns, Policy, Scope, Span, Violation, parse_tree, unescape_attribute,
};

/// One item of an XML stream, in order (RFC 6120 section 4).
#[derive(Debug)]
pub enum Item<'a> {
    /// The stream header.
    Header(StreamHeader),
    /// A first-level element.
    Element(Element<'a>),
    /// The end of the stream.
    End,
}

/// The attributes of a `<stream:stream>` that mean something (RFC 6120 section 4.7), unescaped.
///
/// What carries them is proven to be `stream` in [`ns::STREAMS`] with the default namespace
/// `jabber:client`; nothing is said of the values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamHeader {
    /// Whom the stream is addressed to.
    pub to: Option<Box<str>>,
    /// Who opens it.
    pub from: Option<Box<str>>,
    /// The stream's identifier, given by the receiving side.
    pub id: Option<Box<str>>,
    /// The version of XMPP, as it was written.
    pub version: Option<Box<str>>,
    /// `xml:lang`.
    pub lang: Option<Box<str>>,
    /// The names in scope for the stream's elements.
    pub scope: Scope,
    /// The header was self-closed or closed at once (WSL-03).
    pub closed: bool,
}

/// What an element is, decided on namespace and local name (SEC-10).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `message` in `jabber:client`.
    Message,
    /// `presence` in `jabber:client`.
    Presence,
    /// `iq` in `jabber:client`.
    Iq,
    /// `features` in the streams namespace.
    Features,
    /// `error` in the streams namespace.
    StreamError,
    /// Anything else in the streams namespace.
    StreamOther,
    /// `open` in the framing namespace of RFC 7395.
    FramingOpen,
    /// `close` there.
    FramingClose,
    /// Anything else there.
    FramingOther,
    /// SASL (RFC 6120 section 6).
    Sasl,
    /// SASL2 (XEP-0388).
    Sasl2,
    /// Stream management (XEP-0198), versions 2 and 3.
    Sm,
    /// STARTTLS.
    Tls,
    /// Stream compression (XEP-0138).
    Compress,
    /// Anything else.
    Other,
}

impl Kind {
    /// Whether XEP-0198 counts it.
    pub fn is_stanza(self) -> bool {
        matches!(self, Self::Message | Self::Presence | Self::Iq)
    }

    fn of(namespace: &[u8], local: &[u8]) -> Self {
        if namespace == ns::CLIENT.as_bytes() {
            return match local {
                b"message" => Self::Message,
                b"presence" => Self::Presence,
                b"iq" => Self::Iq,
                _ => Self::Other,
            };
        }
        match std::str::from_utf8(namespace) {
            Ok(ns::STREAMS) => match local {
                b"features" => Self::Features,
                b"error" => Self::StreamError,
                _ => Self::StreamOther,
            },
            Ok(ns::FRAMING) => match local {
                b"open" => Self::FramingOpen,
                b"close" => Self::FramingClose,
                _ => Self::FramingOther,
            },
            Ok(ns::SASL) => Self::Sasl,
            Ok(ns::SASL2) => Self::Sasl2,
            Ok(ns::SM2 | ns::SM3) => Self::Sm,
            Ok(ns::TLS) => Self::Tls,
            Ok(ns::COMPRESS) => Self::Compress,
            _ => Self::Other,
        }
    }
}

/// One whole element whose end the scanner has proven, as the very bytes that came.
///
/// Under [`Policy::Strict`] it is proven well-formed in every respect. Under
/// [`Policy::Tolerant`] look at [`Element::broken`] before anything is made of it; the seam does.
#[derive(Clone, Copy, Debug)]
pub struct Element<'a> {
    bytes: &'a [u8],
    scope: &'a Scope,
    found: &'a Found,
    undeclared: &'a [Span],
    policy: Policy,
    kind: Kind,
}

impl<'a> Element<'a> {
    pub(super) fn new(
        bytes: &'a [u8],
        scope: &'a Scope,
        found: &'a Found,
        undeclared: &'a [Span],
        policy: Policy,
    ) -> Self {
        let mut element = Self { bytes, scope, found, undeclared, policy, kind: Kind::Other };
        let local = &bytes[found.local as usize..found.name.end as usize];
        element.kind = Kind::of(element.namespace_bytes(), local);
        element
    }

    /// The element as it came.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its namespace; empty if it has none. A client's root without a namespace is taken to be
    /// in `jabber:client` (WS-17).
    pub fn namespace(&self) -> &'a str {
        // The bytes are part of a proven element.
        std::str::from_utf8(self.namespace_bytes()).unwrap_or_default()
    }

    fn namespace_bytes(&self) -> &'a [u8] {
        let bytes = self.found.ns.name(self.bytes, self.scope);
        if self.lost_namespace() && bytes.is_empty() { ns::CLIENT.as_bytes() } else { bytes }
    }

    /// The root says `xmlns=''` although it comes from a client (WS-17).
    pub(super) fn lost_namespace(&self) -> bool {
        self.policy == Policy::Strict
            && matches!(self.found.ns, Ns::Own(span) if span.start == span.end)
            && self.found.local == self.found.name.start
            && self.scope.default_namespace() == ns::CLIENT
    }

    /// Its name without a prefix.
    pub fn local(&self) -> &'a str {
        let range = self.found.local as usize..self.found.name.end as usize;
        std::str::from_utf8(&self.bytes[range]).unwrap_or_default()
    }

    /// An unprefixed attribute of the root, unescaped. The start tag is looked at again.
    ///
    /// Of a broken element, only a value that is sound and there just once.
    pub fn attribute(&self, local: &str) -> Option<Cow<'a, str>> {
        self.literal_attribute(local.as_bytes())
    }

    /// `xml:lang` of the root.
    pub fn lang(&self) -> Option<Cow<'a, str>> {
        self.literal_attribute(b"xml:lang")
    }

    fn literal_attribute(&self, name: &[u8]) -> Option<Cow<'a, str>> {
        let mut matching = self.attributes().filter(|a| a.name == name);
        let first = matching.next()?;
        if self.found.hopeless && matching.next().is_some() {
            return None;
        }
        unescape_attribute(first.value)
    }

    /// The root's attributes as they stand.
    pub(super) fn attributes(&self) -> Attributes<'a> {
        let head = &self.bytes[..self.found.head as usize];
        Attributes::new(head, self.found.name.end as usize)
    }

    /// The root's child elements. The element is scanned again: for control documents only.
    /// Empty for an element that is broken beyond repair.
    pub fn children(&self) -> Vec<Child> {
        let Ok(tree) = self.tree() else { return Vec::new() };
        tree.elements()
            .map(|node| Child {
                range: node.range.clone(),
                namespace: node.namespace.clone(),
                local: node.local.clone(),
            })
            .collect()
    }

    /// The element as a tree of ours.
    pub(super) fn tree(&self) -> Result<Node, Violation> {
        self.repairable()?;
        let mut tree = parse_tree(self.bytes, self.scope)?;
        if self.lost_namespace() {
            tree.adopt(ns::CLIENT);
        }
        Ok(tree)
    }

    fn repairable(&self) -> Result<(), Violation> {
        match self.found.broken {
            Some(violation) if self.found.hopeless => Err(violation),
            _ => Ok(()),
        }
    }

    /// The element as a DOM, with the namespaces it has by inheritance. minidom reads it only
    /// because the scanner has passed it: on its own it accepts what must be refused.
    ///
    /// # Errors
    /// The violation of an element that is broken beyond repair; [`Violation::TooBig`] for what
    /// minidom cannot take, such as a name or an attribute above 8 KiB.
    pub fn to_dom(&self) -> Result<minidom::Element, Violation> {
        self.repairable()?;
        let mut complete = Vec::with_capacity(self.bytes.len() + 64);
        seam::complete(self, &mut complete);
        minidom::Element::from_reader(&complete[..]).map_err(|_| Violation::TooBig)
    }

    /// The first violation, under [`Policy::Tolerant`] (UP-36). The seam repairs or empties it.
    pub fn broken(&self) -> Option<Violation> {
        self.found.broken
    }

    /// The names in scope around it.
    pub fn scope(&self) -> &'a Scope {
        self.scope
    }

    pub(super) fn found(&self) -> &'a Found {
        self.found
    }

    pub(super) fn undeclared(&self) -> impl Iterator<Item = &'a [u8]> {
        let bytes = self.bytes;
        self.undeclared.iter().map(|span| span.of(bytes))
    }
}

/// A child element of a control document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Child {
    /// Its bytes in [`Element::bytes`].
    pub range: Range<usize>,
    /// Its namespace; empty if it has none.
    pub namespace: String,
    /// Its name without a prefix.
    pub local: String,
}
