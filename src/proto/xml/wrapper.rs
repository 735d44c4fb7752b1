//! A document whose root only wraps: the start tag is read, then each child is proven as an
//! element of its own.

use super::chars::{Attributes, unescape_attribute};
use super::message::behind_declaration;
use super::scan::{Context, Found, Goal, Ns, Scratch, scan_bounded};
use super::{Limits, Policy, Scope, Violation, is_space, trim_start};
use crate::proto::item::Element;
use crate::proto::ns;

/// The start tag of such a document, proven; what it says, and what its children inherit.
#[derive(Debug)]
pub(crate) struct Wrapper<'t> {
    tag: &'t [u8],
    found: Found,
    scope: Scope,
    /// The same prefixes in a scope of `jabber:client`, if `scope` is another.
    nameless: Option<Scope>,
    rest: &'t [u8],
}

/// Reads the start tag of the document `text`, with an XML declaration of UTF-8 or white space
/// before it. `limits` are those of the tag: its size, its attributes and declarations.
///
/// The children inherit the tag's prefixes and its default namespace; but where that is `own`, the
/// wrapper's, or none, they are in `jabber:client`, and so is a child that says `xmlns=''`
/// (BOSH-86).
///
/// # Errors
/// The first violation up to the end of the tag.
pub(crate) fn wrapper<'t>(
    scratch: &mut Scratch,
    limits: &Limits,
    own: &str,
    text: &'t [u8],
) -> Result<Wrapper<'t>, Violation> {
    let mut text = behind_declaration(text)?;
    if text.first().is_some_and(|first| is_space(*first)) {
        // XML 1.0 production 22: a declaration would have to come first.
        text = trim_start(text);
    }
    let work = &mut scratch.work;
    work.reset();
    let empty = Scope::empty();
    let context = Context { limits, policy: Policy::Strict, scope: &empty, goal: Goal::Header };
    let end = scan_bounded(work, text, &context)?
        .ok_or(Violation::NotWellFormed("unclosed start tag"))?;
    let (tag, rest) = text.split_at(end);
    let mut scope = Scope::client();
    for attribute in Attributes::new(tag, work.found.name.end as usize) {
        // A namespace name holds no reference, so it is what it looks like.
        match attribute.name {
            b"xmlns" if attribute.value.is_empty() || attribute.value == own.as_bytes() => {}
            b"xmlns" => scope.set_default(&String::from_utf8_lossy(attribute.value)),
            [b'x', b'm', b'l', b'n', b's', b':', prefix @ ..] if prefix != b"xml" => {
                let prefix = String::from_utf8_lossy(prefix);
                scope.bind(&prefix, &String::from_utf8_lossy(attribute.value))?;
            }
            _ => {}
        }
    }
    let nameless = (scope.default_namespace() != ns::CLIENT).then(|| {
        let mut scope = scope.clone();
        scope.set_default(ns::CLIENT);
        scope
    });
    Ok(Wrapper { tag, found: work.found, scope, nameless, rest })
}

/// An attribute of a [`Wrapper`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct WrapperAttribute<'a> {
    /// Empty for a name without a prefix.
    pub(crate) namespace: &'a str,
    pub(crate) local: &'a [u8],
    raw: &'a [u8],
}

impl<'a> WrapperAttribute<'a> {
    /// The value, unescaped.
    pub(crate) fn value(&self) -> std::borrow::Cow<'a, str> {
        // The scanner has proven it sound.
        unescape_attribute(self.raw).unwrap_or_default()
    }
}

impl<'t> Wrapper<'t> {
    /// Whether the root is `local` in `namespace` (SEC-10).
    pub(crate) fn is(&self, namespace: &str, local: &str) -> bool {
        self.namespace() == namespace.as_bytes() && self.local() == local.as_bytes()
    }

    /// The root's namespace; empty if it has none.
    pub(crate) fn namespace(&self) -> &[u8] {
        match self.found.ns {
            Ns::Own(span) => span.of(self.tag),
            _ => b"",
        }
    }

    /// The root's name without a prefix.
    pub(crate) fn local(&self) -> &'t [u8] {
        &self.tag[self.found.local as usize..self.found.name.end as usize]
    }

    /// The attributes, without namespace declarations.
    pub(crate) fn attributes(&self) -> impl Iterator<Item = WrapperAttribute<'_>> {
        let all = Attributes::new(self.tag, self.found.name.end as usize);
        all.filter_map(|attribute| {
            let raw = attribute.value;
            let Some(colon) = memchr::memchr(b':', attribute.name) else {
                let is_declaration = attribute.name == b"xmlns";
                let local = attribute.name;
                return (!is_declaration).then_some(WrapperAttribute { namespace: "", local, raw });
            };
            let (prefix, local) = (&attribute.name[..colon], &attribute.name[colon + 1..]);
            let namespace = match prefix {
                b"xmlns" => return None,
                b"xml" => ns::XML,
                // Declared, as the scanner has proven.
                _ => self.scope.index(prefix).map_or(ns::UNDECLARED, |at| self.scope.at(at).1),
            };
            Some(WrapperAttribute { namespace, local, raw })
        })
    }

    /// The children, each judged by `limits`.
    pub(crate) fn children<'w>(&'w self, limits: &'w Limits) -> Children<'w> {
        Children { wrapper: self, limits, rest: self.rest, is_over: self.found.empty }
    }
}

/// The children of a [`Wrapper`] in order, and the document's end.
#[derive(Debug)]
pub(crate) struct Children<'w> {
    wrapper: &'w Wrapper<'w>,
    limits: &'w Limits,
    rest: &'w [u8],
    is_over: bool,
}

impl<'w> Children<'w> {
    /// The next child, proven; `None` once the document has ended as it must. White space between
    /// the children is dropped.
    ///
    /// # Errors
    /// The first violation; text between the children, and whatever follows the root, is
    /// [`Violation::NotWellFormed`].
    pub(crate) fn next<'a>(
        &mut self,
        scratch: &'a mut Scratch,
    ) -> Result<Option<Element<'a>>, Violation>
    where
        'w: 'a,
    {
        self.rest = trim_start(self.rest);
        if self.is_over {
            return if self.rest.is_empty() {
                Ok(None)
            } else {
                Err(Violation::NotWellFormed("something behind the root"))
            };
        }
        match self.rest {
            [b'<', b'/', ..] => {
                self.close()?;
                self.is_over = true;
                self.next(scratch)
            }
            [b'<', ..] => {
                let work = &mut scratch.work;
                work.reset();
                let scope = &self.wrapper.scope;
                let context = Context {
                    limits: self.limits,
                    policy: Policy::Strict,
                    scope,
                    goal: Goal::Element,
                };
                let end = scan_bounded(work, self.rest, &context)?.ok_or(UNCLOSED)?;
                let (bytes, rest) = self.rest.split_at(end);
                self.rest = rest;
                let work = &scratch.work;
                // Nothing in it has a name by inheritance, prefixes aside: the default makes no
                // difference to what was scanned.
                let is_nameless = matches!(work.found.ns, Ns::Own(span) if span.start == span.end);
                let scope = match &self.wrapper.nameless {
                    Some(nameless) if is_nameless => nameless,
                    _ => scope,
                };
                let element =
                    Element::new(bytes, scope, &work.found, &work.undeclared, Policy::Strict);
                Ok(Some(element))
            }
            [_, ..] => Err(Violation::NotWellFormed("text between elements")),
            [] => Err(UNCLOSED),
        }
    }

    /// How many bytes there are yet, the root's end tag included.
    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }

    /// Takes the root's end tag.
    fn close(&mut self) -> Result<(), Violation> {
        let name = self.wrapper.found.name.of(self.wrapper.tag);
        let rest = self.rest[2..].strip_prefix(name).map(trim_start);
        match rest {
            Some([b'>', rest @ ..]) => {
                self.rest = rest;
                Ok(())
            }
            _ => Err(Violation::NotWellFormed("end tag does not match")),
        }
    }
}

const UNCLOSED: Violation = Violation::NotWellFormed("unclosed element");
