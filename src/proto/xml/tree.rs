//! A small tree of a proven element, and its serialisation by SEC-08: for control documents,
//! stream errors and other elements that the seam writes anew. Never on a stanza's path.

use std::ops::Range;

use super::chars::{Attributes, unescape_attribute, unescape_text};
use super::{Scope, Violation, is_space};
use crate::proto::ns;
use crate::proto::seam::{escape_attribute, escape_text, quoted_namespace};

/// An element with everything resolved and unescaped, and where it stood in the bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Node {
    /// From its `<` to behind its last `>`.
    pub(crate) range: Range<usize>,
    /// Between its tags; empty, at the end, for an empty-element tag.
    pub(crate) inner: Range<usize>,
    pub(crate) namespace: String,
    pub(crate) local: String,
    /// Namespace (empty for none), local name, value.
    pub(crate) attributes: Vec<(String, String, String)>,
    pub(crate) content: Vec<Content>,
}

/// What stands in an element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Element(Node),
    Text(String),
}

impl Node {
    pub(crate) fn elements(&self) -> impl Iterator<Item = &Self> {
        self.content.iter().filter_map(|content| match content {
            Content::Element(node) => Some(node),
            Content::Text(_) => None,
        })
    }

    pub(crate) fn is(&self, namespace: &str, local: &str) -> bool {
        self.namespace == namespace && self.local == local
    }

    pub(crate) fn attribute(&self, local: &str) -> Option<&str> {
        self.attributes
            .iter()
            .find(|(namespace, name, _)| namespace.is_empty() && name == local)
            .map(|(_, _, value)| &**value)
    }

    /// Its own character data, joined.
    pub(crate) fn text(&self) -> String {
        self.content
            .iter()
            .filter_map(|content| match content {
                Content::Text(text) => Some(&**text),
                Content::Element(_) => None,
            })
            .collect()
    }

    /// Puts it and all its descendants that have no namespace into `namespace` (WS-17).
    pub(crate) fn adopt(&mut self, namespace: &str) {
        if self.namespace.is_empty() {
            namespace.clone_into(&mut self.namespace);
        }
        for content in &mut self.content {
            if let Content::Element(child) = content {
                child.adopt(namespace);
            }
        }
    }

    /// The tree of a DOM.
    pub(crate) fn from_dom(dom: &minidom::Element) -> Self {
        let content = dom.nodes().map(|node| match node {
            minidom::Node::Element(element) => Content::Element(Self::from_dom(element)),
            minidom::Node::Text(text) => Content::Text(text.clone()),
        });
        let attributes = dom.attrs().iter().map(|((namespace, local), value)| {
            (namespace.to_string(), local.to_string(), value.clone())
        });
        Self {
            namespace: dom.ns(),
            local: dom.name().to_owned(),
            attributes: attributes.collect(),
            content: content.collect(),
            ..Self::default()
        }
    }
}

/// Builds the tree of an element that the scanner has passed (undeclared prefixes may be left,
/// they are in [`ns::UNDECLARED`]).
///
/// # Errors
/// Only for bytes that the scanner has not passed.
pub(crate) fn parse(bytes: &[u8], scope: &Scope) -> Result<Node, Violation> {
    const UNPROVEN: Violation = Violation::NotWellFormed("not proven");
    let mut bindings: Vec<(&[u8], &[u8])> = Vec::new();
    let mut stack: Vec<(Node, usize)> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let done = if rest.starts_with(b"<![CDATA[") {
            let end = memchr::memmem::find(rest, b"]]>").ok_or(UNPROVEN)?;
            let text = std::str::from_utf8(&rest[9..end]).map_err(|_| Violation::BadEncoding)?;
            let text = text.replace("\r\n", "\n").replace('\r', "\n");
            if let Some((top, _)) = stack.last_mut() {
                push_text(top, &text);
            }
            at += end + 3;
            None
        } else if rest.starts_with(b"</") {
            let end = at + memchr::memchr(b'>', rest).ok_or(UNPROVEN)? + 1;
            let (mut node, outer) = stack.pop().ok_or(UNPROVEN)?;
            bindings.truncate(outer);
            node.inner.end = at;
            node.range.end = end;
            at = end;
            Some(node)
        } else if rest[0] == b'<' {
            let start = at;
            let outer = bindings.len();
            let (node, head, empty) = tag(bytes, start, scope, &mut bindings).ok_or(UNPROVEN)?;
            at = head;
            if empty {
                bindings.truncate(outer);
                Some(node)
            } else {
                stack.push((node, outer));
                None
            }
        } else {
            let end = memchr::memchr(b'<', rest).ok_or(UNPROVEN)?;
            let text = unescape_text(&rest[..end]).ok_or(UNPROVEN)?;
            if let Some((top, _)) = stack.last_mut() {
                push_text(top, &text);
            }
            at += end;
            None
        };
        if let Some(node) = done {
            match stack.last_mut() {
                Some((top, _)) => top.content.push(Content::Element(node)),
                None => return Ok(node),
            }
        }
    }
    Err(UNPROVEN)
}

fn push_text(node: &mut Node, text: &str) {
    if let Some(Content::Text(last)) = node.content.last_mut() {
        last.push_str(text);
    } else if !text.is_empty() {
        node.content.push(Content::Text(text.to_owned()));
    }
}

/// The start tag at `start`: its node, where it ends, and whether it is an empty-element tag.
fn tag<'a>(
    bytes: &'a [u8],
    start: usize,
    scope: &Scope,
    bindings: &mut Vec<(&'a [u8], &'a [u8])>,
) -> Option<(Node, usize, bool)> {
    let name_end = start
        + 1
        + bytes[start + 1..].iter().position(|b| is_space(*b) || matches!(*b, b'>' | b'/'))?;
    let mut end = name_end;
    let mut attributes = Vec::new();
    for attribute in Attributes::new(bytes, name_end) {
        end = attribute.range.end;
        match attribute.name {
            b"xmlns" => bindings.push((b"", attribute.value)),
            [b'x', b'm', b'l', b'n', b's', b':', prefix @ ..] => {
                bindings.push((prefix, attribute.value));
            }
            name => attributes.push((name, attribute.value)),
        }
    }
    while is_space(*bytes.get(end)?) {
        end += 1;
    }
    let empty = bytes[end] == b'/';
    end += if empty { 2 } else { 1 };

    let resolve = |prefix: &[u8]| -> String {
        if prefix == b"xml" {
            return ns::XML.to_owned();
        }
        if let Some((_, name)) = bindings.iter().rev().find(|(name, _)| *name == prefix) {
            return String::from_utf8_lossy(name).into_owned();
        }
        if prefix.is_empty() {
            return scope.default_namespace().to_owned();
        }
        let prefix = std::str::from_utf8(prefix).unwrap_or_default();
        scope.lookup(prefix).unwrap_or(ns::UNDECLARED).to_owned()
    };
    let split = |name: &'a [u8]| -> (&'a [u8], String) {
        let colon = memchr::memchr(b':', name);
        let (prefix, local) = colon.map_or((&b""[..], name), |c| (&name[..c], &name[c + 1..]));
        (prefix, String::from_utf8_lossy(local).into_owned())
    };
    let (prefix, local) = split(&bytes[start + 1..name_end]);
    let mut node = Node {
        range: start..end,
        inner: end..end,
        namespace: resolve(prefix),
        local,
        ..Node::default()
    };
    for (name, value) in attributes {
        let (prefix, local) = split(name);
        let namespace = if prefix.is_empty() { String::new() } else { resolve(prefix) };
        node.attributes.push((namespace, local, unescape_attribute(value)?.into_owned()));
    }
    Some((node, end, empty))
}

/// Appends `node` as a namespace-complete document (SEC-08). A root in the streams namespace
/// gets the literal prefix `stream`, and each of its children a literal `xmlns` (WS-16).
pub(crate) fn write(node: &Node, out: &mut Vec<u8>) {
    if node.namespace == ns::STREAMS {
        out.extend_from_slice(b"<stream:");
        out.extend_from_slice(node.local.as_bytes());
        out.extend_from_slice(b" xmlns:stream=\"");
        out.extend_from_slice(ns::STREAMS.as_bytes());
        out.push(b'"');
        write_attributes(node, out);
        if node.content.is_empty() {
            out.extend_from_slice(b"/>");
            return;
        }
        out.push(b'>');
        write_children(node, None, out);
        out.extend_from_slice(b"</stream:");
        out.extend_from_slice(node.local.as_bytes());
        out.push(b'>');
    } else {
        write_element(node, None, out);
    }
}

/// Appends what stands in `node`; elements in `default` need no declaration. `None`: each child
/// gets one of its own.
pub(crate) fn write_children(node: &Node, default: Option<&str>, out: &mut Vec<u8>) {
    for content in &node.content {
        match content {
            Content::Element(child) => write_element(child, default, out),
            Content::Text(text) => escape_text(text, out),
        }
    }
}

fn write_element(node: &Node, default: Option<&str>, out: &mut Vec<u8>) {
    // No other prefix may be bound to this namespace, and no default.
    let is_xml = node.namespace == ns::XML;
    let name = |out: &mut Vec<u8>| {
        if is_xml {
            out.extend_from_slice(b"xml:");
        }
        out.extend_from_slice(node.local.as_bytes());
    };
    let inner = if is_xml { default } else { Some(&*node.namespace) };
    out.push(b'<');
    name(out);
    if default != inner {
        out.extend_from_slice(b" xmlns=");
        quoted_namespace(&node.namespace, out);
    }
    write_attributes(node, out);
    if node.content.is_empty() {
        out.extend_from_slice(b"/>");
        return;
    }
    out.push(b'>');
    write_children(node, inner, out);
    out.extend_from_slice(b"</");
    name(out);
    out.push(b'>');
}

fn write_attributes(node: &Node, out: &mut Vec<u8>) {
    let mut declared: Vec<&str> = Vec::new();
    for (namespace, local, value) in &node.attributes {
        out.push(b' ');
        if namespace == ns::XML {
            out.extend_from_slice(b"xml:");
        } else if !namespace.is_empty() {
            let known = declared.iter().position(|other| other == namespace);
            let index = known.unwrap_or_else(|| {
                declared.push(namespace);
                let index = declared.len() - 1;
                out.extend_from_slice(format!("xmlns:ns{index}=").as_bytes());
                quoted_namespace(namespace, out);
                out.push(b' ');
                index
            });
            out.extend_from_slice(format!("ns{index}:").as_bytes());
        }
        out.extend_from_slice(local.as_bytes());
        out.extend_from_slice(b"=\"");
        escape_attribute(value, out);
        out.push(b'"');
    }
}
