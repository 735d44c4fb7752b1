//! The seam: every rewrite of what passes through, and no other.
//!
//! | where | what is rewritten |
//! |---|---|
//! | stream start and end | `<open/>`, `<close/>` or `<stream:stream>` on one side, stream tags on the other ([`super::ws`], [`super::c2s`]) |
//! | element to the client | the default namespace and the prefixes it inherited are declared on it (WS-15, UP-29) |
//! | features to the client | `<starttls/>` and `<compression/>` are removed; offers of SASL only if configured (UP-17 to UP-19, UP-26), EXTERNAL where the gateway shows a certificate of its own (UP-16) |
//! | features, stream errors | the literal prefix `stream`, and each condition's own `xmlns` (WS-16) |
//! | broken stanza of the server | repaired or emptied, so that counts hold (UP-36) |
//! | element to the server | an XML declaration is dropped (WS-13), `xmlns=''` on a stanza too (WS-17); prefixes of a legacy header are declared (WSL-06) |
//! | `xml:lang` | stamped on stanzas only if configured (UP-30) |
//! | white space between elements | swallowed (WS-18) |
//!
//! An element leaves as the bytes that came, with declarations inserted behind the root's name
//! where it used inherited names (WS-15, UP-29), unless it is one of these: an element of the
//! streams namespace (WS-16, UP-17), a client's root that says `xmlns=''` (WS-17), or a broken
//! element from the server (UP-36). All functions append to `out`; what they append is one
//! namespace-complete document.

use std::ops::Range;

use super::item::{Element, Kind};
use super::ns;
use super::xml::{Node, write_tree};

/// What became of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rewrite {
    /// The bytes as they came.
    AsIs,
    /// Namespace declarations were inserted, or a root of the streams namespace was respelt.
    Completed,
    /// Broken (UP-36): undeclared prefixes were bound to [`ns::UNDECLARED`].
    Repaired,
    /// Broken beyond repair (UP-36): an empty stanza stands for it.
    Emptied,
    /// Broken beyond repair and no stanza: nothing was written.
    Dropped,
}

/// What is taken out of stream features besides TLS and compression (UP-17, UP-18).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FeatureRules {
    /// `sasl.channel_binding=strip` (UP-26): `-PLUS` mechanisms, the channel-binding list, and
    /// FAST mechanisms bound to a channel, all together.
    pub strip_channel_binding: bool,
    /// The mechanism `EXTERNAL` (UP-16).
    pub strip_external: bool,
    /// Stream management wherever it is offered (SM-08).
    pub strip_sm: bool,
}

/// Writes an element of the server for the client.
pub fn to_client(element: &Element<'_>, out: &mut Vec<u8>) -> Rewrite {
    let found = element.found();
    if found.broken.is_none()
        && !found.inherits_default
        && found.inherits == 0
        && !is_of_streams(element.kind())
    {
        out.extend_from_slice(element.bytes());
        return Rewrite::AsIs;
    }
    if found.hopeless {
        return empty(element, out);
    }
    let start = out.len();
    match element.kind() {
        Kind::StreamError => respell(element, out),
        Kind::Features | Kind::StreamOther => without(element, &[], out),
        _ => complete(element, out),
    }
    match found.broken {
        Some(_) => Rewrite::Repaired,
        None if out[start..] == *element.bytes() => Rewrite::AsIs,
        None => Rewrite::Completed,
    }
}

/// Writes the server's stream features for the client: without TLS and compression (UP-17), and
/// without what `rules` say; every other feature as it came (UP-18). Nothing is written
/// ([`Rewrite::Dropped`]) for features that are broken beyond repair.
pub fn features_to_client(
    element: &Element<'_>,
    rules: &FeatureRules,
    out: &mut Vec<u8>,
) -> Rewrite {
    let Ok(tree) = element.tree() else { return Rewrite::Dropped };
    let mut cuts = Vec::new();
    for feature in tree.elements() {
        if feature.is(ns::TLS, "starttls") || feature.is(ns::COMPRESS_FEATURE, "compression") {
            cuts.push(feature.range.clone());
        } else {
            cut(feature, &tree, rules, &mut cuts);
        }
    }
    without(element, &cuts, out);
    if element.broken().is_some() { Rewrite::Repaired } else { Rewrite::Completed }
}

/// Writes an element of the client for the server, whose stream has the default namespace
/// `jabber:client` and no other names that an element could rely on (UP-03).
///
/// The bytes as they came; prefixes of a legacy header that it uses are declared on its root
/// (WSL-06); a root that says `xmlns=''` loses that (WS-17).
pub fn to_server(element: &Element<'_>, out: &mut Vec<u8>) {
    let found = element.found();
    let bytes = element.bytes();
    let inherits_client = element.scope().default_namespace() == ns::CLIENT;
    if element.lost_namespace() {
        let name_end = found.name.end as usize;
        out.extend_from_slice(&bytes[..name_end]);
        declare_inherited(element, out);
        without_default(element, out);
    } else if found.inherits == 0 && (inherits_client || !found.inherits_default) {
        out.extend_from_slice(bytes);
    } else {
        let name_end = found.name.end as usize;
        out.extend_from_slice(&bytes[..name_end]);
        if found.inherits_default && !inherits_client {
            declare(b"", element.scope().default_namespace(), out);
        }
        declare_inherited(element, out);
        out.extend_from_slice(&bytes[name_end..]);
    }
}

/// Appends a DOM that the program built, as a namespace-complete document (SEC-08): no prefixes
/// but `stream` for a root in the streams namespace and `xml`, CDATA as text.
pub fn write_dom(dom: &minidom::Element, out: &mut Vec<u8>) {
    write_tree(&Node::from_dom(dom), out);
}

/// Appends character data (SEC-08): `&`, `<`, `>` and CR as references.
pub fn escape_text(text: &str, out: &mut Vec<u8>) {
    escape(text, out, |byte| match byte {
        b'&' => b"&amp;",
        b'<' => b"&lt;",
        b'>' => b"&gt;",
        b'\r' => b"&#13;",
        _ => b"",
    });
}

/// Appends the value of an attribute, for either quote (SEC-08): also quotes, TAB, LF and CR
/// as references.
pub fn escape_attribute(value: &str, out: &mut Vec<u8>) {
    escape(value, out, |byte| match byte {
        b'&' => b"&amp;",
        b'<' => b"&lt;",
        b'>' => b"&gt;",
        b'"' => b"&quot;",
        b'\'' => b"&apos;",
        b'\t' => b"&#9;",
        b'\n' => b"&#10;",
        b'\r' => b"&#13;",
        _ => b"",
    });
}

fn escape(text: &str, out: &mut Vec<u8>, reference: fn(u8) -> &'static [u8]) {
    let bytes = text.as_bytes();
    let mut from = 0;
    for (at, byte) in bytes.iter().enumerate() {
        let reference = reference(*byte);
        if !reference.is_empty() {
            out.extend_from_slice(&bytes[from..at]);
            out.extend_from_slice(reference);
            from = at + 1;
        }
    }
    out.extend_from_slice(&bytes[from..]);
}

/// Appends the element with the names it inherits, and those it should have declared, declared
/// on its root.
pub(super) fn complete(element: &Element<'_>, out: &mut Vec<u8>) {
    let found = element.found();
    let (name, rest) = element.bytes().split_at(found.name.end as usize);
    out.reserve(element.bytes().len() + 64);
    out.extend_from_slice(name);
    if found.inherits_default || element.lost_namespace() {
        declare(b"", element.scope().default_namespace(), out);
    }
    declare_inherited(element, out);
    for prefix in element.undeclared() {
        declare(prefix, ns::UNDECLARED, out);
    }
    if element.lost_namespace() {
        without_default(element, out);
    } else {
        out.extend_from_slice(rest);
    }
}

/// Appends what follows the root's name, without its `xmlns=''`.
fn without_default(element: &Element<'_>, out: &mut Vec<u8>) {
    let bytes = element.bytes();
    let mut from = element.found().name.end as usize;
    for attribute in element.attributes().filter(|a| a.name == b"xmlns") {
        out.extend_from_slice(&bytes[from..attribute.range.start]);
        from = attribute.range.end;
    }
    out.extend_from_slice(&bytes[from..]);
}

fn is_of_streams(kind: Kind) -> bool {
    matches!(kind, Kind::Features | Kind::StreamError | Kind::StreamOther)
}

/// Declares the inherited prefixes that the element uses.
fn declare_inherited(element: &Element<'_>, out: &mut Vec<u8>) {
    let mut left = element.found().inherits;
    while left != 0 {
        let (prefix, namespace) = element.scope().at(left.trailing_zeros() as u8);
        declare(prefix.as_bytes(), namespace, out);
        left &= left - 1;
    }
}

/// Appends a declaration; an empty `namespace` is one of the default only.
fn declare(prefix: &[u8], namespace: &str, out: &mut Vec<u8>) {
    if prefix.is_empty() && namespace == ns::CLIENT {
        out.extend_from_slice(b" xmlns=\"jabber:client\"");
        return;
    }
    if prefix.is_empty() {
        if namespace.is_empty() {
            return;
        }
        out.extend_from_slice(b" xmlns=");
    } else {
        out.extend_from_slice(b" xmlns:");
        out.extend_from_slice(prefix);
        out.push(b'=');
    }
    quoted_namespace(namespace, out);
}

/// Appends a namespace name in quotes. Without references where it can be: those that the
/// scanner has passed hold no `&`, no `<` and at most one kind of quote, and they compare as
/// bytes only when nothing is escaped.
pub(super) fn quoted_namespace(namespace: &str, out: &mut Vec<u8>) {
    let has = |byte: u8| namespace.as_bytes().contains(&byte);
    let quote = if has(b'"') { b'\'' } else { b'"' };
    out.push(quote);
    if has(b'&') || has(b'<') || has(quote) {
        escape_attribute(namespace, out);
    } else {
        out.extend_from_slice(namespace.as_bytes());
    }
    out.push(quote);
}

/// Appends an empty stanza in the place of a broken one (UP-36). Its attributes are those of the
/// broken one that are themselves sound.
fn empty(element: &Element<'_>, out: &mut Vec<u8>) -> Rewrite {
    let name = match element.kind() {
        Kind::Message => "message",
        Kind::Presence => "presence",
        Kind::Iq => "iq",
        _ => return Rewrite::Dropped,
    };
    out.push(b'<');
    out.extend_from_slice(name.as_bytes());
    declare(b"", ns::CLIENT, out);
    for attribute in ["from", "to", "id", "type"] {
        if let Some(value) = element.attribute(attribute) {
            out.push(b' ');
            out.extend_from_slice(attribute.as_bytes());
            out.extend_from_slice(b"=\"");
            escape_attribute(&value, out);
            out.push(b'"');
        }
    }
    out.extend_from_slice(b"/>");
    Rewrite::Emptied
}

/// Appends an element of the streams namespace as our own serialisation (WS-16).
fn respell(element: &Element<'_>, out: &mut Vec<u8>) {
    if let Ok(tree) = element.tree() {
        write_tree(&tree, out);
    }
}

/// Appends an element of the streams namespace with the literal prefix `stream` and its content
/// as it came, save `cuts` (WS-16, UP-18).
fn without(element: &Element<'_>, cuts: &[Range<usize>], out: &mut Vec<u8>) {
    let found = element.found();
    let bytes = element.bytes();
    let scope = element.scope();
    let own = element.attributes().find(|a| a.name == b"xmlns:stream").map(|a| a.value);
    let inherited = scope.lookup("stream").map(str::as_bytes);
    if own.or(inherited).is_some_and(|namespace| namespace != ns::STREAMS.as_bytes())
        || element.undeclared().any(|prefix| prefix == b"stream")
    {
        // `stream` means something else in there: not as it came, then.
        respell_without(element, cuts, out);
        return;
    }
    let local = element.local().as_bytes();
    out.reserve(bytes.len() + 64);
    out.extend_from_slice(b"<stream:");
    out.extend_from_slice(local);
    declare(b"stream", ns::STREAMS, out);
    if found.inherits_default {
        declare(b"", scope.default_namespace(), out);
    }
    let mut left = found.inherits;
    while left != 0 {
        let (prefix, namespace) = scope.at(left.trailing_zeros() as u8);
        if prefix != "stream" {
            declare(prefix.as_bytes(), namespace, out);
        }
        left &= left - 1;
    }
    for prefix in element.undeclared() {
        declare(prefix, ns::UNDECLARED, out);
    }
    for attribute in element.attributes().filter(|a| a.name != b"xmlns:stream") {
        out.push(b' ');
        out.extend_from_slice(&bytes[attribute.range]);
    }
    let content = content(element);
    if content.is_empty() {
        out.extend_from_slice(b"/>");
        return;
    }
    out.push(b'>');
    let mut from = content.start;
    for cut in cuts {
        out.extend_from_slice(&bytes[from..cut.start]);
        from = cut.end;
    }
    out.extend_from_slice(&bytes[from..content.end]);
    out.extend_from_slice(b"</stream:");
    out.extend_from_slice(local);
    out.push(b'>');
}

fn respell_without(element: &Element<'_>, cuts: &[Range<usize>], out: &mut Vec<u8>) {
    fn prune(node: &mut Node, cuts: &[Range<usize>]) {
        use super::xml::Content;
        node.content.retain_mut(|content| match content {
            Content::Text(_) => true,
            Content::Element(child) if cuts.contains(&child.range) => false,
            Content::Element(child) => {
                prune(child, cuts);
                true
            }
        });
    }
    if let Ok(mut tree) = element.tree() {
        prune(&mut tree, cuts);
        write_tree(&tree, out);
    }
}

/// What stands between the element's tags.
fn content(element: &Element<'_>) -> Range<usize> {
    let found = element.found();
    let end = element.bytes().len();
    if found.empty {
        return end..end;
    }
    let close = memchr::memrchr(b'<', element.bytes()).unwrap_or(end);
    found.head as usize..close
}

/// Finds what `rules` take out of `node`, which stands in `parent`; in the order of the bytes.
fn cut(node: &Node, parent: &Node, rules: &FeatureRules, cuts: &mut Vec<Range<usize>>) {
    if is_cut(node, parent, rules) {
        cuts.push(node.range.clone());
        return;
    }
    for child in node.elements() {
        cut(child, node, rules, cuts);
    }
}

fn is_cut(node: &Node, parent: &Node, rules: &FeatureRules) -> bool {
    let is_mechanism = node.local == "mechanism" && node.namespace == parent.namespace;
    let offers = is_mechanism
        && (parent.is(ns::SASL, "mechanisms") || parent.is(ns::SASL2, "authentication"));
    if rules.strip_sm {
        let is_sm = |namespace: &str| namespace == ns::SM2 || namespace == ns::SM3;
        let by_var = node.is(ns::BIND2, "feature") && node.attribute("var").is_some_and(is_sm);
        if by_var || (node.local == "sm" && is_sm(&node.namespace)) {
            return true;
        }
    }
    if rules.strip_external && offers && node.text().trim() == "EXTERNAL" {
        return true;
    }
    if rules.strip_channel_binding {
        if node.is(ns::SASL_CB, "sasl-channel-binding") {
            return true;
        }
        if offers && node.text().trim().ends_with("-PLUS") {
            return true;
        }
        if is_mechanism && parent.is(ns::FAST, "fast") {
            let name = node.text();
            let name = name.trim();
            return !(name.starts_with("HT-") && name.ends_with("-NONE"));
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::super::item::Item;
    use super::super::xml::{ItemReader, Limits, Message, Policy, Scope, Scratch, message};
    use super::*;

    const HEADER: &str = "<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' xmlns:x='urn:x' id='1'>";

    fn with_header<T>(header: &str, element: &str, f: impl FnOnce(&Element<'_>) -> T) -> T {
        let mut reader = ItemReader::new(Limits::SERVER, Policy::Tolerant);
        let mut scratch = Scratch::new();
        let text = format!("{header}{element}");
        let mut input = text.as_bytes();
        let header = reader.next(&mut scratch, &mut input).unwrap();
        assert!(matches!(header, Some(Item::Header(_))));
        let Ok(Some(Item::Element(element))) = reader.next(&mut scratch, &mut input) else {
            panic!("no element")
        };
        f(&element)
    }

    fn down(element: &str) -> (String, Rewrite) {
        with_header(HEADER, element, |element| {
            let mut out = Vec::new();
            let rewrite = to_client(element, &mut out);
            (String::from_utf8(out).unwrap(), rewrite)
        })
    }

    fn features(element: &str, rules: &FeatureRules) -> String {
        with_header(HEADER, element, |element| {
            let mut out = Vec::new();
            features_to_client(element, rules, &mut out);
            String::from_utf8(out).unwrap()
        })
    }

    fn up(scope: &Scope, text: &str) -> String {
        let mut scratch = Scratch::new();
        let message = message(&mut scratch, &Limits::CLIENT, scope, text.as_bytes());
        let Ok(Message::Element(element)) = message else { panic!("{message:?}") };
        let mut out = Vec::new();
        to_server(&element, &mut out);
        String::from_utf8(out).unwrap()
    }

    /// WS-15: inherited names are declared on the root, and only those that are used.
    #[test]
    fn inherited_names_are_declared_where_used() {
        assert_eq!(
            down("<message to='a'><x:y/></message>"),
            (
                "<message xmlns=\"jabber:client\" xmlns:x=\"urn:x\" to='a'><x:y/></message>".into(),
                Rewrite::Completed
            )
        );
        let whole = "<message xmlns='jabber:client'><body>hi</body></message>";
        assert_eq!(down(whole), (whole.into(), Rewrite::AsIs));
        let other = "<r xmlns='urn:xmpp:sm:3'/>";
        assert_eq!(down(other), (other.into(), Rewrite::AsIs));
    }

    /// UP-29: also a prefix that is used deep inside, in an attribute, or redeclared elsewhere.
    #[test]
    fn deep_uses_count() {
        assert_eq!(
            down("<iq><q xmlns='urn:q'><i x:a='1'/></q></iq>").0,
            "<iq xmlns=\"jabber:client\" xmlns:x=\"urn:x\"><q xmlns='urn:q'><i x:a='1'/></q></iq>"
        );
        assert_eq!(
            down("<iq><x:q xmlns:x='urn:q'/></iq>").0,
            "<iq xmlns=\"jabber:client\"><x:q xmlns:x='urn:q'/></iq>"
        );
        assert_eq!(
            down("<c:iq xmlns:c='jabber:client'><q/></c:iq>").0,
            "<c:iq xmlns=\"jabber:client\" xmlns:c='jabber:client'><q/></c:iq>"
        );
    }

    /// UP-36: an undeclared prefix is bound to a namespace of ours.
    #[test]
    fn undeclared_prefixes_are_bound() {
        assert_eq!(
            down("<message><p:y q:a='1'/></message>"),
            (
                "<message xmlns=\"jabber:client\" xmlns:q=\"urn:bosphorus:undeclared\" \
                 xmlns:p=\"urn:bosphorus:undeclared\"><p:y q:a='1'/></message>"
                    .replace("xmlns:q", "xmlns:Q")
                    .replace("xmlns:p", "xmlns:q")
                    .replace("xmlns:Q", "xmlns:p"),
                Rewrite::Repaired
            )
        );
    }

    /// UP-36: what cannot be repaired is emptied; nothing of the broken part is left.
    #[test]
    fn hopeless_stanzas_are_emptied() {
        let (out, rewrite) =
            down("<message from='a&quot;b' to='c' id='&#1;' type='chat'><!-- x --><b/></message>");
        assert_eq!(
            out,
            "<message xmlns=\"jabber:client\" from=\"a&quot;b\" to=\"c\" type=\"chat\"/>"
        );
        assert_eq!(rewrite, Rewrite::Emptied);
        let (out, rewrite) = down("<iq id='1' id='2' from='x'/>");
        assert_eq!(
            (&*out, rewrite),
            ("<iq xmlns=\"jabber:client\" from=\"x\"/>", Rewrite::Emptied)
        );
        assert_eq!(down("<r xmlns='urn:xmpp:sm:3'><!----></r>"), (String::new(), Rewrite::Dropped));
    }

    /// UP-36: two undeclared prefixes become one namespace, so attributes can fall together.
    #[test]
    fn undeclared_attributes_that_fall_together_are_hopeless() {
        let (out, rewrite) = down("<iq id='1'><a p:x='1' q:x='2'/></iq>");
        assert_eq!((&*out, rewrite), ("<iq xmlns=\"jabber:client\" id=\"1\"/>", Rewrite::Emptied));
    }

    /// WS-16, UP-17, UP-18: features keep their bytes, without TLS and compression.
    #[test]
    fn features_lose_tls_and_compression() {
        let out = features(
            "<stream:features><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'><required/></starttls>\
             <mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><mechanism>PLAIN</mechanism></mechanisms>\
             <compression xmlns='http://jabber.org/features/compress'><method>zlib</method></compression>\
             <x:un xmlns='urn:k'  n = \"1\"/></stream:features>",
            &FeatureRules::default(),
        );
        assert_eq!(
            out,
            "<stream:features xmlns:stream=\"http://etherx.jabber.org/streams\" xmlns:x=\"urn:x\">\
             <mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><mechanism>PLAIN</mechanism></mechanisms>\
             <x:un xmlns='urn:k'  n = \"1\"/></stream:features>"
        );
        assert_eq!(
            features("<stream:features/>", &FeatureRules::default()),
            "<stream:features xmlns:stream=\"http://etherx.jabber.org/streams\"/>"
        );
    }

    /// WS-16: whatever the server's prefix, the client sees `stream`.
    #[test]
    fn streams_namespace_is_respelt() {
        let header = "<s:stream xmlns='jabber:client' xmlns:s='http://etherx.jabber.org/streams' xmlns:stream='urn:other'>";
        let out = with_header(header, "<s:features><stream:a/></s:features>", |element| {
            let mut out = Vec::new();
            features_to_client(element, &FeatureRules::default(), &mut out);
            String::from_utf8(out).unwrap()
        });
        assert_eq!(
            out,
            "<stream:features xmlns:stream=\"http://etherx.jabber.org/streams\">\
             <a xmlns=\"urn:other\"/></stream:features>"
        );
        assert_eq!(
            down("<features xmlns='http://etherx.jabber.org/streams'><a/></features>").0,
            "<stream:features xmlns:stream=\"http://etherx.jabber.org/streams\" \
             xmlns='http://etherx.jabber.org/streams'><a/></stream:features>"
        );
    }

    /// WS-16: each child of a stream error carries its own literal `xmlns`; SEC-08: CDATA
    /// becomes text in what we write.
    #[test]
    fn stream_errors_are_written_anew() {
        let (out, rewrite) = down(
            "<stream:error xmlns:e='urn:ietf:params:xml:ns:xmpp-streams'><e:conflict/>\
             <e:text xml:lang='en'><![CDATA[<&]]>\r\n&#13;</e:text></stream:error>",
        );
        assert_eq!(
            out,
            "<stream:error xmlns:stream=\"http://etherx.jabber.org/streams\">\
             <conflict xmlns=\"urn:ietf:params:xml:ns:xmpp-streams\"/>\
             <text xmlns=\"urn:ietf:params:xml:ns:xmpp-streams\" xml:lang=\"en\">&lt;&amp;\n&#13;</text>\
             </stream:error>"
        );
        assert_eq!(rewrite, Rewrite::Completed);
    }

    /// SEC-07: what we write of a namespace name is what was read, without references.
    #[test]
    fn namespace_names_are_not_escaped() {
        let (out, _) =
            down("<stream:error><a xmlns='u>\"' x:b='' xmlns:x=\"v>'\"/></stream:error>");
        assert_eq!(
            out,
            "<stream:error xmlns:stream=\"http://etherx.jabber.org/streams\">\
             <a xmlns='u>\"' xmlns:ns0=\"v>'\" ns0:b=\"\"/></stream:error>"
        );
    }

    /// Namespaces in XML 1.0 section 3: the namespace of `xml` is never declared otherwise.
    #[test]
    fn elements_in_the_xml_namespace_keep_their_prefix() {
        let (out, _) = down("<stream:error><xml:a><b xmlns='u'/></xml:a></stream:error>");
        assert_eq!(
            out,
            "<stream:error xmlns:stream=\"http://etherx.jabber.org/streams\">\
             <xml:a><b xmlns=\"u\"/></xml:a></stream:error>"
        );
    }

    /// UP-26: the channel-binding strip takes all four; SM-08; UP-16.
    #[test]
    fn feature_rules() {
        let offer = "<stream:features><mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>\
            <mechanism>SCRAM-SHA-1-PLUS</mechanism><mechanism>EXTERNAL</mechanism>\
            <mechanism>PLAIN</mechanism></mechanisms>\
            <sasl-channel-binding xmlns='urn:xmpp:sasl-cb:0'><channel-binding type='tls-exporter'/></sasl-channel-binding>\
            <authentication xmlns='urn:xmpp:sasl:2'><mechanism>SCRAM-SHA-1-PLUS</mechanism><mechanism>SCRAM-SHA-1</mechanism>\
            <inline><fast xmlns='urn:xmpp:fast:0'><mechanism>HT-SHA-256-NONE</mechanism><mechanism>HT-SHA-256-EXPR</mechanism></fast>\
            <sm xmlns='urn:xmpp:sm:3'/><bind xmlns='urn:xmpp:bind:0'><inline><feature var='urn:xmpp:sm:3'/>\
            <feature var='urn:xmpp:carbons:2'/></inline></bind></inline></authentication>\
            <sm xmlns='urn:xmpp:sm:2'/></stream:features>";
        let rules = FeatureRules { strip_channel_binding: true, ..FeatureRules::default() };
        let out = features(offer, &rules);
        assert!(!out.contains("PLUS") && !out.contains("channel-binding") && !out.contains("EXPR"));
        assert!(
            out.contains("EXTERNAL") && out.contains("HT-SHA-256-NONE") && out.contains("sm:3")
        );
        let out = features(offer, &FeatureRules { strip_sm: true, ..FeatureRules::default() });
        assert!(!out.contains("urn:xmpp:sm:") && out.contains("carbons") && out.contains("PLUS"));
        let out =
            features(offer, &FeatureRules { strip_external: true, ..FeatureRules::default() });
        assert!(!out.contains("EXTERNAL") && out.contains("PLUS"));
        assert_eq!(
            features(offer, &FeatureRules::default()),
            offer.replacen(
                "<stream:features>",
                "<stream:features xmlns:stream=\"http://etherx.jabber.org/streams\">",
                1
            )
        );
    }

    /// WS-17: no namespace means `jabber:client`; the bytes pass as they came otherwise.
    #[test]
    fn client_roots_without_namespace() {
        let scope = Scope::client();
        let plain = "<message to='a@b'><body>x</body></message>";
        assert_eq!(up(&scope, plain), plain);
        assert_eq!(
            up(&scope, "<message to='a@b' xmlns='' ><body>x</body></message>"),
            "<message to='a@b'  ><body>x</body></message>"
        );
        let prefixed = "<c:message xmlns:c='jabber:client'><![CDATA[<x>]]></c:message>";
        assert_eq!(up(&scope, prefixed), prefixed);
    }

    /// WSL-06: prefixes of the legacy header are declared on what uses them.
    #[test]
    fn legacy_prefixes_are_carried() {
        let mut scope = Scope::client();
        scope.bind("q", "urn:q\"").unwrap();
        scope.bind("r", "urn:r").unwrap();
        assert_eq!(
            up(&scope, "<message><q:a/></message>"),
            "<message xmlns:q='urn:q\"'><q:a/></message>"
        );
    }

    /// SEC-08: what we write survives a parser's normalisation.
    #[test]
    fn escaping_round_trips() {
        let mut out = Vec::new();
        escape_attribute("x\ny\t\r<>&\"'", &mut out);
        assert_eq!(out, b"x&#10;y&#9;&#13;&lt;&gt;&amp;&quot;&apos;");
        out.clear();
        escape_text("]]>\r\n<&", &mut out);
        assert_eq!(out, b"]]&gt;&#13;\n&lt;&amp;");
        let dom: minidom::Element =
            "<a xmlns='urn:a' k=\"x&#10;y\"><![CDATA[<]]><b xmlns='urn:b'/></a>".parse().unwrap();
        let mut out = Vec::new();
        write_dom(&dom, &mut out);
        assert_eq!(out, b"<a xmlns=\"urn:a\" k=\"x&#10;y\">&lt;<b xmlns=\"urn:b\"/></a>");
        assert_eq!(std::str::from_utf8(&out).unwrap().parse::<minidom::Element>().unwrap(), dom);
    }
}
