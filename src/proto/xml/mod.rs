//! XML as XMPP restricts it (RFC 6120 section 11): the scanner that judges, and what it judges by.
//!
//! The scanner (`scan.rs`) is the only judge. quick-xml and minidom both accept documents that must be
//! refused, so they see control documents only after the scanner has passed them. Nothing here
//! rewrites anything: that is [`crate::proto::seam`].

mod chars;
mod item;
mod message;
mod scan;
mod scope;
mod tree;
mod wrapper;

#[cfg(test)]
mod tests;

pub use item::ItemReader;
pub use message::{Message, Messages, message, messages};
pub use scan::Scratch;
pub use scope::Scope;

pub(crate) use chars::{Attributes, unescape_attribute};
pub(crate) use scan::{Found, Ns, Span};
pub(crate) use tree::{Content, Node, parse as parse_tree, write as write_tree};
pub(crate) use wrapper::{Wrapper, wrapper};

use super::limit::Limit;

/// Why bytes were refused. The text names the rule, never the peer's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// XML 1.0 is broken: `not-well-formed`.
    #[error("not well-formed: {0}")]
    NotWellFormed(&'static str),
    /// Well-formed, but barred from XMPP (RFC 6120 section 11.1): `restricted-xml`.
    #[error("restricted XML: {0}")]
    Restricted(&'static str),
    /// Not UTF-8 (RFC 6120 section 11.6): `unsupported-encoding`, or 1007 on a WebSocket.
    #[error("not UTF-8")]
    BadEncoding,
    /// A rule of Namespaces in XML 1.0 is broken: `not-well-formed` or `bad-namespace-prefix`.
    #[error("namespaces: {0}")]
    Namespace(&'static str),
    /// A stream header in another namespace than `http://etherx.jabber.org/streams`, or with
    /// another default namespace than `jabber:client`: `invalid-namespace`.
    #[error("invalid namespace in a stream header")]
    InvalidNamespace,
    /// Longer than [`Limits::element_bytes`]: `policy-violation`.
    #[error("element too big")]
    TooBig,
    /// Another of the [`Limits`] is passed: `policy-violation`.
    #[error("limit passed: {}", .0.key())]
    Limit(Limit),
}

/// What one element may cost (SEC-11, SEC-12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes from the element's `<` to its last `>`. Values above 4 GiB count as 4 GiB.
    pub element_bytes: usize,
    /// Levels of elements; the element itself is level 1.
    pub depth: u32,
    /// Attributes of one start tag, namespace declarations included.
    pub attributes: u32,
    /// Bytes of one name, prefix included.
    pub name_bytes: u32,
    /// Namespace declarations in one start tag. Four times as many may be in force at any point.
    pub namespaces: u32,
    /// Elements inside one element, itself included.
    pub elements: u32,
}

impl Limits {
    /// What a client may send, as the configuration has it by default.
    pub const CLIENT: Self = Self {
        element_bytes: 256 * 1024,
        depth: 64,
        attributes: 128,
        name_bytes: 1024,
        namespaces: 64,
        elements: 10_000,
    };

    /// What a server may send: wider, since it has already judged what it forwards.
    pub const SERVER: Self = Self {
        element_bytes: 8 * 1024 * 1024,
        depth: 256,
        attributes: 256,
        name_bytes: 1024,
        namespaces: 64,
        elements: 100_000,
    };
}

/// How the first violation is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// From the client: it is the error.
    Strict,
    /// From the server (UP-36): whatever leaves the element's end provable is recorded in
    /// [`Element::broken`](crate::proto::item::Element::broken) and scanning goes on.
    Tolerant,
}

/// XML white space (XML 1.0 production 3).
pub(crate) const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// `bytes` without leading white space.
pub(crate) fn trim_start(bytes: &[u8]) -> &[u8] {
    let lead = bytes.iter().take_while(|b| is_space(**b)).count();
    &bytes[lead..]
}
