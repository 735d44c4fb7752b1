//! The names in scope outside an element: what a stream header declared for its children.

use super::Violation;
use crate::proto::limit::Limit;
use crate::proto::ns;

/// Names in scope outside an element: a default namespace and up to 64 prefixes.
///
/// The two usual scopes, `jabber:client` alone and `jabber:client` with `stream` bound as
/// every server binds it, own no heap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    default: Default,
    /// `stream` is bound to [`ns::STREAMS`].
    stream: bool,
    more: Option<Box<More>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Default {
    None,
    Client,
    /// It is in [`More::default`].
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq, std::default::Default)]
struct More {
    default: Box<str>,
    prefixes: Vec<(Box<str>, Box<str>)>,
}

/// The index under which [`Scope`] keeps the usual binding of `stream`.
pub(super) const STREAM_INDEX: u8 = 63;

impl Scope {
    /// Default namespace `jabber:client`, no prefixes: what an RFC 7395 message inherits (WS-17).
    pub const fn client() -> Self {
        Self { default: Default::Client, stream: false, more: None }
    }

    /// No default namespace and no prefixes: a document that stands alone.
    pub const fn empty() -> Self {
        Self { default: Default::None, stream: false, more: None }
    }

    /// The inherited default namespace; empty if there is none.
    pub fn default_namespace(&self) -> &str {
        match (self.default, &self.more) {
            (Default::Client, _) => ns::CLIENT,
            (Default::Other, Some(more)) => &more.default,
            _ => "",
        }
    }

    /// Sets the inherited default namespace.
    pub fn set_default(&mut self, namespace: &str) {
        self.default = match namespace {
            "" => Default::None,
            ns::CLIENT => Default::Client,
            other => {
                self.more.get_or_insert_default().default = other.into();
                Default::Other
            }
        };
    }

    /// Binds `prefix` to `namespace`, both unescaped; a later binding replaces an earlier one.
    ///
    /// # Errors
    /// [`Violation::Limit`] beyond 64 prefixes (63 if none is the usual `stream`);
    /// [`Violation::Namespace`] for what may not be bound: an empty name, `xml`, `xmlns`.
    pub fn bind(&mut self, prefix: &str, namespace: &str) -> Result<(), Violation> {
        if matches!(prefix, "" | "xml" | "xmlns") || namespace.is_empty() {
            return Err(Violation::Namespace("prefix that cannot be bound"));
        }
        if let Some(more) = &mut self.more {
            more.prefixes.retain(|(name, _)| &**name != prefix);
        }
        if prefix == "stream" {
            self.stream = namespace == ns::STREAMS;
            if self.stream {
                return Ok(());
            }
        }
        let more = self.more.get_or_insert_default();
        if more.prefixes.len() >= usize::from(STREAM_INDEX) {
            return Err(Violation::Limit(Limit::Namespaces));
        }
        more.prefixes.push((prefix.into(), namespace.into()));
        Ok(())
    }

    /// What `prefix` is bound to.
    pub fn lookup(&self, prefix: &str) -> Option<&str> {
        self.index(prefix.as_bytes()).map(|index| self.at(index).1)
    }

    /// All bindings, each as prefix and namespace.
    pub fn prefixes(&self) -> impl Iterator<Item = (&str, &str)> {
        let usual = self.stream.then_some(("stream", ns::STREAMS));
        let others = self.more.iter().flat_map(|more| more.prefixes.iter());
        usual.into_iter().chain(others.map(|(prefix, namespace)| (&**prefix, &**namespace)))
    }

    /// Heap bytes this scope owns, for the session's account.
    pub fn held_bytes(&self) -> usize {
        self.more.as_ref().map_or(0, |more| {
            size_of::<More>()
                + more.default.len()
                + more.prefixes.capacity() * size_of::<(Box<str>, Box<str>)>()
                + more.prefixes.iter().map(|(p, n)| p.len() + n.len()).sum::<usize>()
        })
    }

    /// The binding of `prefix` as an index below 64, for [`Scope::at`].
    pub(super) fn index(&self, prefix: &[u8]) -> Option<u8> {
        if self.stream && prefix == b"stream" {
            return Some(STREAM_INDEX);
        }
        let more = self.more.as_ref()?;
        let index = more.prefixes.iter().position(|(name, _)| name.as_bytes() == prefix)?;
        u8::try_from(index).ok()
    }

    /// Prefix and namespace at `index`.
    pub(crate) fn at(&self, index: u8) -> (&str, &str) {
        if index == STREAM_INDEX {
            return ("stream", ns::STREAMS);
        }
        self.more
            .as_ref()
            .and_then(|more| more.prefixes.get(usize::from(index)))
            .map_or(("", ""), |(prefix, namespace)| (prefix, namespace))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// UP-29: the header's prefixes are kept; the usual two scopes own no heap.
    #[test]
    fn usual_scopes_own_no_heap() {
        let mut scope = Scope::client();
        scope.bind("stream", ns::STREAMS).unwrap();
        assert_eq!(scope.held_bytes(), 0);
        assert_eq!(scope.lookup("stream"), Some(ns::STREAMS));
        scope.bind("db", "jabber:server:dialback").unwrap();
        scope.bind("db", "urn:other").unwrap();
        assert_eq!(scope.lookup("db"), Some("urn:other"));
        assert_eq!(scope.prefixes().count(), 2);
        scope.bind("stream", "urn:x").unwrap();
        assert_eq!(scope.lookup("stream"), Some("urn:x"));
        assert_eq!(scope.prefixes().count(), 2);
    }

    /// SEC-11: no more than 64 prefixes are kept.
    #[test]
    fn prefixes_are_bounded() {
        let mut scope = Scope::client();
        scope.bind("stream", ns::STREAMS).unwrap();
        for n in 0..63 {
            scope.bind(&format!("p{n}"), "urn:x").unwrap();
        }
        assert!(matches!(scope.bind("one-more", "urn:x"), Err(Violation::Limit(_))));
    }
}
