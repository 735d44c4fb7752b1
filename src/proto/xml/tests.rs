//! The rules of the scanner, the reader and the message forms.

use super::*;
use crate::proto::item::{Item, Kind};
use crate::proto::ns;

fn judge(text: &[u8]) -> Result<(), Violation> {
    judge_with(&Limits::CLIENT, text)
}

fn judge_with(limits: &Limits, text: &[u8]) -> Result<(), Violation> {
    let scope = Scope::client();
    match message(&mut Scratch::new(), limits, &scope, text)? {
        Message::Element(_) => Ok(()),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn accepts(text: impl AsRef<[u8]>) {
    let text = text.as_ref();
    assert_eq!(judge(text), Ok(()), "{}", String::from_utf8_lossy(text));
}

#[track_caller]
fn refuses(text: impl AsRef<[u8]>, matches: fn(Violation) -> bool) {
    let text = text.as_ref();
    match judge(text) {
        Err(violation) if matches(violation) => {}
        other => panic!("{other:?} for {}", String::from_utf8_lossy(text)),
    }
}

fn malformed(violation: Violation) -> bool {
    matches!(violation, Violation::NotWellFormed(_))
}

fn restricted(violation: Violation) -> bool {
    matches!(violation, Violation::Restricted(_))
}

fn namespace(violation: Violation) -> bool {
    matches!(violation, Violation::Namespace(_))
}

fn limit(violation: Violation) -> bool {
    matches!(violation, Violation::Limit(_))
}

/// SEC-04: ordinary and odd, but well-formed.
#[test]
fn well_formed_elements_pass() {
    for text in [
        "<a/>",
        "<a></a >",
        "<a\tb = 'c'\n d=\"e'\" />",
        "<a>text &lt;&#x20;&#10; ] ]] > ]]x<b/></a>",
        "<a><![CDATA[<b> & ]] ]>]]></a>",
        "<a><![CDATA[]]]]><![CDATA[>]]></a>",
        "<ü é='à'>日本語 \u{1F600}</ü>",
        "<a.b-c_d1/>",
        "<a xml:lang='de'/>",
        "<a xmlns:xml='http://www.w3.org/XML/1998/namespace'/>",
        "<p:a xmlns:p='urn:p' p:b='1' b='2'><p:c xmlns:p='urn:q'/></p:a>",
        "<a xmlns=''><b xmlns='x'/></a>",
        "<a b='\t\n\r'/>",
        "<a b='>'/>",
        "<a b='&quot;&apos;'/>",
    ] {
        accepts(text);
    }
}

/// WS-11: one element, whole, and nothing else.
#[test]
fn exactly_one_element() {
    for text in [
        "<presence/><presence/>",
        "<presence/>x",
        "<presence>",
        "<presence",
        "<presence a='",
        "<presence/",
        "<",
        "<presence></presence",
        "</presence>",
        "<presence/></presence>",
        "<a><b></a></b>",
        "<a></b>",
        "<ab></a>",
        "<a></ab>",
        "<a/ >",
        "< a/>",
        "<a></ a>",
        "<a>&#x20",
    ] {
        refuses(text, malformed);
    }
    accepts("<presence/> \r\n\t");
}

/// WS-12: what does not begin with `<`.
#[test]
fn messages_that_are_not_elements() {
    let scope = Scope::client();
    let mut scratch = Scratch::new();
    let mut form =
        |text: &str| match message(&mut scratch, &Limits::CLIENT, &scope, text.as_bytes()) {
            Ok(Message::Blank) => "blank",
            Ok(Message::Declaration) => "declaration",
            Ok(Message::NotXml) => "not xml",
            Ok(Message::Element(_)) => "element",
            Ok(Message::StreamOpen(_)) => "open",
            Ok(Message::StreamClose) => "close",
            Err(_) => "error",
        };
    assert_eq!(form(""), "blank");
    assert_eq!(form(" \n\t\r"), "blank");
    assert_eq!(form("hello"), "not xml");
    assert_eq!(form(" <a/>"), "not xml");
    assert_eq!(form(" <a>"), "not xml");
    assert_eq!(form("\u{feff}<a/>"), "not xml");
    assert_eq!(form("<?xml version='1.0'?>"), "declaration");
    assert_eq!(form(" <?xml version='1.0'?><a/>"), "not xml");
    assert_eq!(form("<?xml version='1.0'?> <a/>"), "element");
    assert_eq!(form("</stream:stream>"), "close");
    assert_eq!(form("</stream:stream >\n"), "close");
    assert_eq!(form("</stream:stream"), "error");
    assert_eq!(form("</stream:stream><a/>"), "error");
    assert_eq!(form("</stream>"), "error");
}

/// WS-13: a declaration with version 1.0 and UTF-8 at most.
#[test]
fn declarations() {
    accepts("<?xml version='1.0'?><a/>");
    accepts("<?xml version=\"1.0\" encoding='utf-8' standalone='yes' ?>\n<a/>");
    refuses("<?xml version='1.1'?><a/>", malformed);
    refuses("<?xml?><a/>", malformed);
    refuses("<?xml encoding='UTF-8'?><a/>", malformed);
    refuses("<?xml version='1.0' standalone='yes' encoding='UTF-8'?><a/>", malformed);
    refuses("<?xml version='1.0'encoding='UTF-8'?><a/>", malformed);
    refuses("<?xml version='1.0' encoding='latin1'?><a/>", |v| v == Violation::BadEncoding);
    refuses("<?xml version='1.0'", malformed);
    refuses("<?xml version='1.0'?><?xml version='1.0'?><a/>", restricted);
    refuses("<?php ?><a/>", restricted);
    refuses("<?xmlx version='1.0'?><a/>", restricted);
    refuses("<a><?xml version='1.0'?></a>", restricted);
}

/// SEC-05: comments, processing instructions, DTDs, foreign entities; RFC 6120 section 11.1.
#[test]
fn restricted_xml() {
    for text in [
        "<!-- c --><a/>",
        "<a><!-- c --></a>",
        "<a><?pi?></a>",
        "<!DOCTYPE a><a/>",
        "<!DOCTYPE a [<!ENTITY e 'x'>]><a>&e;</a>",
        "<a>&nbsp;</a>",
        "<a b='&e;'/>",
        "<a><!DOCTYPE a></a>",
    ] {
        refuses(text, restricted);
    }
    refuses("<a/><!-- c -->", malformed);
    refuses("<a><!ELEMENT a></a>", malformed);
    refuses("<![CDATA[x]]>", malformed);
    accepts("<a b='&lt;!-- c -->'/>");
    accepts("<a><![CDATA[<!-- c --><?pi?><!DOCTYPE a>&e;]]></a>");
}

/// SEC-06: strict UTF-8 and XML `Char`, raw and as references.
#[test]
fn characters() {
    for bytes in [
        &b"\xC0\x80"[..],
        b"\xC1\xBF",
        b"\xE0\x80\x80",
        b"\xED\xA0\x80",
        b"\xF0\x80\x80\x80",
        b"\xF4\x90\x80\x80",
        b"\xF5\x80\x80\x80",
        b"\x80",
        b"\xC3",
        b"\xE2\x82",
        b"\xFF",
    ] {
        for (before, after) in
            [("<a>", "</a>"), ("<a b='", "'/>"), ("<a><![CDATA[", "]]></a>"), ("<a", "/>")]
        {
            let text = [before.as_bytes(), bytes, after.as_bytes()].concat();
            refuses(text, |v| v == Violation::BadEncoding);
        }
    }
    for c in ['\0', '\u{1}', '\u{8}', '\u{B}', '\u{1F}', '\u{FFFE}', '\u{FFFF}'] {
        refuses(format!("<a>{c}</a>"), malformed);
        refuses(format!("<a b='{c}'/>"), malformed);
        refuses(format!("<a><![CDATA[{c}]]></a>"), malformed);
        refuses(format!("<a>&#{};</a>", u32::from(c)), malformed);
        refuses(format!("<a b='&#x{:x};'/>", u32::from(c)), malformed);
    }
    refuses("<a>&</a>", malformed);
    refuses("<a b='&#xD800;'/>", malformed);
    refuses("<a b='<'/>", malformed);
    refuses("<a>]]></a>", malformed);
    refuses("<a>]]]></a>", malformed);
    accepts("<a>\u{7F}\u{85}\u{FFFD}\u{10FFFF}</a>");
}

/// XML 1.0 productions 4 to 5 and 40 to 44: names and tags.
#[test]
fn names_and_tags() {
    for text in [
        "<1a/>",
        "<-a/>",
        "<a$/>",
        "<a b/>",
        "<a b=c/>",
        "<a b='c'd='e'/>",
        "<a 1b='c'/>",
        "<a b='c' b='d'/>",
        "<a b='c\"/>",
        "<a =''/>",
        "<a\u{d7}/>",
        "<\u{b7}a/>",
        "<a b='1' bb='2' b ='3'/>",
        "<>x</>",
    ] {
        refuses(text, malformed);
    }
}

/// SEC-07: Namespaces in XML 1.0.
#[test]
fn namespaces() {
    for text in [
        "<p:a/>",
        "<a p:b='1'/>",
        "<a><b xmlns:p='u'/><p:c/></a>",
        "<a xmlns:xml='u'/>",
        "<a xmlns:p='http://www.w3.org/XML/1998/namespace'/>",
        "<a xmlns='http://www.w3.org/XML/1998/namespace'/>",
        "<a xmlns:p='http://www.w3.org/2000/xmlns/'/>",
        "<a xmlns='http://www.w3.org/2000/xmlns/'/>",
        "<a xmlns:xmlns='http://www.w3.org/2000/xmlns/'/>",
        "<a xmlns:p=''/>",
        "<xmlns:a/>",
        "<a xmlns:p='u' xmlns:q='u' p:b='1' q:b='2'/>",
        "<a xmlns:p='u' p:b='1'><b xmlns:q='u' p:b='1' q:b='2'/></a>",
        "<p:a:b xmlns:p='u'/>",
        "<:a/>",
        "<a:/>",
        "<a :b='1'/>",
        "<a p:1='1' xmlns:p='u'/>",
        "<a xmlns='u v'/>",
        "<a xmlns='u\nv'/>",
        "<a xmlns='u&#9;v'/>",
        "<a xmlns='u&amp;v'/>",
        "<a xmlns='u\u{7f}'/>",
        "<a xmlns='u\u{85}'/>",
        "<a xmlns:='u'/>",
    ] {
        refuses(text, namespace);
    }
    // minidom and rxml each miss one of these.
    refuses("<a xmlns='u' xmlns='v'/>", malformed);
    refuses("<a xmlns:p='u' xmlns:p='u'/>", malformed);
    // An unprefixed attribute is in no namespace.
    accepts("<p:a xmlns='u' xmlns:p='u' p:b='1' b='2'/>");
}

/// SEC-09: a stream header as a child of a stream, whatever its prefix, is never an element.
#[test]
fn stream_headers_are_no_elements() {
    for policy in [Policy::Strict, Policy::Tolerant] {
        for text in [
            "<x:stream xmlns:x='http://etherx.jabber.org/streams'",
            "<stream xmlns='http://etherx.jabber.org/streams'>",
        ] {
            let scope = Scope::client();
            let mut reader = ItemReader::with_scope(Limits::SERVER, policy, scope);
            let mut input = format!("{text} >").into_bytes();
            input.extend_from_slice(b"<presence/>");
            let result = reader.next(&mut Scratch::new(), &mut &input[..]).map(|_| ());
            assert!(matches!(result, Err(Violation::Restricted(_))), "{result:?}");
        }
    }
}

/// SEC-11: depth, attributes, name length, declarations and elements, each at its limit and one
/// beyond.
#[test]
fn limits() {
    let depth = |n: usize| format!("{}{}", "<a>".repeat(n), "</a>".repeat(n));
    accepts(depth(64));
    refuses(depth(65), limit);
    refuses("<a>".repeat(65), limit);
    let attributes =
        |n: usize| format!("<a {}/>", (0..n).map(|i| format!(" a{i}=''")).collect::<String>());
    accepts(attributes(128));
    refuses(attributes(129), limit);
    accepts(format!("<{}/>", "n".repeat(1024)));
    refuses(format!("<{}/>", "n".repeat(1025)), limit);
    refuses(format!("<a {}=''/>", "n".repeat(1025)), limit);
    let declarations = |n: usize| {
        format!("<a {}/>", (0..n).map(|i| format!(" xmlns:a{i}='u'")).collect::<String>())
    };
    accepts(declarations(64));
    refuses(declarations(65), limit);
    let elements = |n: usize| format!("<a>{}</a>", "<b/>".repeat(n - 1));
    accepts(elements(10_000));
    refuses(elements(10_001), limit);
}

/// SEC-11: declarations of nested elements add up to a bound of their own.
#[test]
fn bindings_in_force_are_bounded() {
    let one = format!("<a {}>", (0..64).map(|i| format!(" xmlns:a{i}='u'")).collect::<String>());
    accepts(format!("{}{}", one.repeat(4), "</a>".repeat(4)));
    refuses(format!("{}{}", one.repeat(5), "</a>".repeat(5)), limit);
}

/// SEC-12: cut off at the limit, not after the whole was read.
#[test]
fn oversize_is_cut_off_while_reading() {
    let limits = Limits { element_bytes: 100, ..Limits::CLIENT };
    let exact = format!("<a>{}</a>", "x".repeat(93));
    assert_eq!(exact.len(), 100);
    assert_eq!(judge_with(&limits, exact.as_bytes()), Ok(()));
    let over = format!("<a>{}</a>", "x".repeat(94));
    assert_eq!(judge_with(&limits, over.as_bytes()), Err(Violation::TooBig));

    for endless in ["<a>", "<a b='", "<", "<a", "<a ", "<a><![CDATA["] {
        let mut reader = ItemReader::with_scope(limits, Policy::Tolerant, Scope::client());
        let mut scratch = Scratch::new();
        let mut given = endless.len();
        let mut result = reader.next(&mut scratch, &mut endless.as_bytes()).map(|_| ());
        while result.is_ok() {
            let filler: &[u8] = if endless == "<a " { b" " } else { b"x" };
            result = reader.next(&mut scratch, &mut &filler[..]).map(|_| ());
            given += 1;
        }
        assert_eq!((result, given), (Err(Violation::TooBig), 101), "{endless}");
    }
}

/// WSL-03: five spellings of the legacy opening.
#[test]
fn legacy_openings() {
    let start = "<stream:stream to='d' xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' version='1.0' xmlns:q='urn:q'";
    let scope = Scope::client();
    let mut scratch = Scratch::new();
    for (text, closed) in [
        (format!("{start}>"), false),
        (format!("{start}/>"), true),
        (format!("{start}></stream:stream>"), true),
        (format!("<?xml version='1.0'?>\n{start}>"), false),
        (format!("  {start}>  "), false),
    ] {
        let message = message(&mut scratch, &Limits::CLIENT, &scope, text.as_bytes());
        let Ok(Message::StreamOpen(header)) = message else { panic!("{message:?}") };
        assert_eq!(header.closed, closed);
        assert_eq!(header.to.as_deref(), Some("d"));
        assert_eq!(header.version.as_deref(), Some("1.0"));
        assert_eq!(header.scope.lookup("q"), Some("urn:q"));
    }
    // WSL-05: told apart from what is not well-formed.
    for wrong in [
        "<stream:stream xmlns='jabber:client' xmlns:stream='urn:x'>",
        "<stream:stream xmlns='jabber:server' xmlns:stream='http://etherx.jabber.org/streams'>",
        "<stream:stream xmlns:stream='http://etherx.jabber.org/streams'>",
    ] {
        let result = message(&mut scratch, &Limits::CLIENT, &scope, wrong.as_bytes()).map(|_| ());
        assert_eq!(result, Err(Violation::InvalidNamespace), "{wrong}");
    }
    // A header does not lean on the scope of the header before it.
    let mut scope = Scope::client();
    scope.bind("stream", ns::STREAMS).unwrap();
    let restart = b"<stream:stream to='d' xmlns='jabber:client'>";
    let result = message(&mut scratch, &Limits::CLIENT, &scope, restart).map(|_| ());
    assert!(matches!(result, Err(Violation::Namespace(_))));
    // Something inside: an element, which SEC-09 has the caller refuse.
    let text = format!("{start}><presence/></stream:stream>");
    let result = message(&mut scratch, &Limits::CLIENT, &scope, text.as_bytes());
    let Ok(Message::Element(element)) = result else { panic!("{result:?}") };
    assert_eq!(element.kind(), Kind::StreamOther);
}

/// WSL-11: several elements in one message, all or none.
#[test]
fn legacy_messages_may_hold_several_elements() {
    let scope = Scope::client();
    let mut scratch = Scratch::new();
    let text = b"<message id='1'/> \n<iq/>";
    let mut all = messages(&mut scratch, &Limits::CLIENT, &scope, text).unwrap();
    let mut kinds = Vec::new();
    while let Some(Message::Element(element)) = all.next(&mut scratch).unwrap() {
        kinds.push(element.kind());
    }
    assert_eq!(kinds, [Kind::Message, Kind::Iq]);
    for broken in ["<message/><iq>", "<message/>x", "<message/></stream:stream>"] {
        let result = messages(&mut scratch, &Limits::CLIENT, &scope, broken.as_bytes()).map(|_| ());
        assert!(result.is_err_and(malformed), "{broken}");
    }
    let close = b"</stream:stream>";
    let mut all = messages(&mut scratch, &Limits::CLIENT, &scope, close).unwrap();
    assert!(matches!(all.next(&mut scratch), Ok(Some(Message::StreamClose))));
}

/// SEC-10: kinds are decided on namespace and local name.
#[test]
fn kinds() {
    let scope = Scope::client();
    let mut scratch = Scratch::new();
    for (text, kind) in [
        ("<message/>", Kind::Message),
        ("<message xmlns=''/>", Kind::Message),
        ("<c:presence xmlns:c='jabber:client'/>", Kind::Presence),
        ("<iq xmlns='jabber:server'/>", Kind::Other),
        ("<open xmlns='urn:ietf:params:xml:ns:xmpp-framing'/>", Kind::FramingOpen),
        ("<x:close xmlns:x='urn:ietf:params:xml:ns:xmpp-framing'/>", Kind::FramingClose),
        ("<open/>", Kind::Other),
        ("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>", Kind::Sasl),
        ("<authenticate xmlns='urn:xmpp:sasl:2'/>", Kind::Sasl2),
        ("<r xmlns='urn:xmpp:sm:3'/>", Kind::Sm),
        ("<enable xmlns='urn:xmpp:sm:2'/>", Kind::Sm),
        ("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>", Kind::Tls),
        ("<compress xmlns='http://jabber.org/protocol/compress'/>", Kind::Compress),
        ("<s:error xmlns:s='http://etherx.jabber.org/streams'/>", Kind::StreamError),
        ("<a>urn:ietf:params:xml:ns:xmpp-framing &lt;/stream:stream></a>", Kind::Other),
    ] {
        let message = message(&mut scratch, &Limits::CLIENT, &scope, text.as_bytes());
        let Ok(Message::Element(element)) = message else { panic!("{message:?}") };
        assert_eq!(element.kind(), kind, "{text}");
    }
}

/// The lazy looks at an element.
#[test]
fn elements_tell_attributes_and_children() {
    let scope = Scope::client();
    let mut scratch = Scratch::new();
    let text = "<iq to = 'a&amp;b' xml:lang=\"de\" x:id='n' xmlns:x='urn:x' id='1'>t<q xmlns='urn:q'>\
                <i/></q><x:y/></iq>";
    let message = message(&mut scratch, &Limits::CLIENT, &scope, text.as_bytes());
    let Ok(Message::Element(element)) = message else { panic!("{message:?}") };
    assert_eq!((element.namespace(), element.local()), (ns::CLIENT, "iq"));
    assert_eq!(element.attribute("to").as_deref(), Some("a&b"));
    assert_eq!(element.attribute("id").as_deref(), Some("1"));
    assert_eq!(element.attribute("from"), None);
    assert_eq!(element.lang().as_deref(), Some("de"));
    let children = element.children();
    assert_eq!(children.len(), 2);
    assert_eq!(&text[children[0].range.clone()], "<q xmlns='urn:q'><i/></q>");
    assert_eq!((&*children[1].namespace, &*children[1].local), ("urn:x", "y"));
    let dom = element.to_dom().unwrap();
    assert!(dom.is("iq", ns::CLIENT));
    assert!(dom.has_child("q", "urn:q"));
}

fn transcript(reader: &mut ItemReader, chunks: &mut dyn Iterator<Item = &[u8]>) -> Vec<String> {
    let mut scratch = Scratch::new();
    let mut seen = Vec::new();
    for chunk in chunks {
        let mut input = chunk;
        loop {
            match reader.next(&mut scratch, &mut input) {
                Ok(Some(Item::Element(element))) => seen.push(format!(
                    "{:?} {} {:?}",
                    element.kind(),
                    String::from_utf8_lossy(element.bytes()),
                    element.broken()
                )),
                Ok(Some(other)) => seen.push(format!("{other:?}")),
                Ok(None) => break,
                Err(violation) => {
                    seen.push(violation.to_string());
                    return seen;
                }
            }
        }
    }
    seen
}

const STREAM: &str = "<?xml version='1.0'?> <stream:stream xmlns='jabber:client' id=\"x\" \
    xmlns:stream='http://etherx.jabber.org/streams' xmlns:db='urn:db' from='s' version='1.0'>\n\
    <stream:features><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></stream:features> \
    <message to='ü&amp;' ><body>日本 ]] &#x20; <![CDATA[ ]]] ]]></body></message >\n\n\
    <iq type='result'/><db:a><!-- no --><?pi x?></db:a><q:w z:e='1' />\
    <p a='1' a='2'>&nbsp;&</p></stream:stream>rest";

/// UP-28: any chunking gives the same items, byte by byte included.
#[test]
fn chunking_does_not_matter() {
    let bytes = STREAM.as_bytes();
    let new = || ItemReader::new(Limits::SERVER, Policy::Tolerant);
    let whole = transcript(&mut new(), &mut std::iter::once(bytes));
    assert_eq!(whole.len(), 8, "{whole:#?}");
    for size in 1..40 {
        assert_eq!(transcript(&mut new(), &mut bytes.chunks(size)), whole, "chunks of {size}");
    }
}

/// Resumption is linear: half a megabyte byte by byte in every state that can be that long would
/// take hours if each byte had the scanner begin again.
#[test]
fn resumption_is_linear() {
    for (before, filler, after) in [
        ("<a>", "x", "</a>"),
        ("<a>", "é", "</a>"),
        ("<a>", "]", "</a>"),
        ("<a>", "&amp;", "</a>"),
        ("<a b='", "x", "'/>"),
        ("<a b='", "\"", "'/>"),
        ("<a", " ", "/>"),
        ("<a b", " ", "=''/>"),
        ("<a b=", " ", "''/>"),
        ("<a></a", " ", ">"),
        ("<a><![CDATA[", "]", "]]></a>"),
        ("<a><!--", "x", "--></a>"),
        ("<a><?", "?", "?></a>"),
        ("<a", "a", "/>"),
        ("<a ", "b", "=''/>"),
    ] {
        let text = format!("{before}{}{after}", filler.repeat(500_000 / filler.len()));
        let mut reader = ItemReader::with_scope(Limits::SERVER, Policy::Tolerant, Scope::client());
        let chunks = &mut text.as_bytes().chunks(1);
        assert_eq!(transcript(&mut reader, chunks).len(), 1, "{before}");
    }
    let name = "n".repeat(300_000);
    let text = format!("<{name}></{name}>");
    let mut reader = ItemReader::with_scope(Limits::SERVER, Policy::Tolerant, Scope::client());
    assert_eq!(transcript(&mut reader, &mut text.as_bytes().chunks(1)).len(), 1);
}

/// Between elements nothing is held, and what was held is told.
#[test]
fn idle_reader_owns_no_heap() {
    let mut reader = ItemReader::with_scope(Limits::SERVER, Policy::Tolerant, Scope::client());
    let mut scratch = Scratch::new();
    let mut input = &b"<a/><b>x"[..];
    assert!(reader.next(&mut scratch, &mut input).unwrap().is_some());
    assert!(reader.is_between_elements());
    assert_eq!(reader.held_bytes(), 0);
    assert!(reader.next(&mut scratch, &mut input).unwrap().is_none());
    assert!(!reader.is_between_elements());
    assert!(reader.held_bytes() > 0);
    let mut input = &b"</b>  <c"[..];
    assert!(reader.next(&mut scratch, &mut input).unwrap().is_some());
    assert_eq!(input, b"  <c");
    assert_eq!(reader.held_bytes(), 0);
}

/// UP-36: what leaves the end provable is recorded, under the tolerant policy only.
#[test]
fn tolerant_records_what_leaves_the_end_provable() {
    let deep = format!("{}{}", "<a>".repeat(50_000), "</a>".repeat(50_000));
    let many = "<b/>".repeat(100_001);
    let attributes = (0..300).map(|i| format!(" a{i}=''")).collect::<String>();
    for inner in [
        "<p:a/>",
        "<!-- c -->",
        "<?pi?>",
        "&nbsp;",
        "&",
        "&#0;",
        "\u{1}",
        "\u{ffff}",
        "]]>",
        "<a b='1' b='2'/>",
        "<a b='\0'/>",
        "<a xmlns:p=''/>",
        "<a xmlns='a b'/>",
        "<a:b:c/>",
        "<:a/>",
        "<a:/>",
        "<a xmlns:p='u' xmlns:q='u' p:b='1' q:b='2'/>",
        &deep,
        &many,
        &format!("<a{attributes}/>"),
        &format!("<{}/>", "n".repeat(2000)),
    ] {
        let text = format!("<message id='7'>{inner}</message><next/>");
        let mut reader = ItemReader::with_scope(Limits::SERVER, Policy::Tolerant, Scope::client());
        let mut scratch = Scratch::new();
        let mut input = text.as_bytes();
        let result = reader.next(&mut scratch, &mut input);
        let Ok(Some(Item::Element(element))) = result else { panic!("{result:?}") };
        assert_eq!(element.kind(), Kind::Message);
        assert!(element.broken().is_some());
        assert_eq!(element.attribute("id").as_deref(), Some("7"));
        assert_eq!(input, b"<next/>");

        let mut reader = ItemReader::with_scope(Limits::SERVER, Policy::Strict, Scope::client());
        assert!(reader.next(&mut scratch, &mut text.as_bytes()).is_err());
    }
    for fatal in [
        "<message><a></message>",
        "<message>\u{0}<a b='<'/></message>",
        "<message><a b=c/></message>",
        "<message><!DOCTYPE a></message>",
        "<message><!-- a -- b --></message>",
        "<message><1/></message>",
        "text",
        "<!-- between -->",
    ] {
        let mut reader = ItemReader::with_scope(Limits::SERVER, Policy::Tolerant, Scope::client());
        let mut scratch = Scratch::new();
        let result = reader.next(&mut scratch, &mut fatal.as_bytes());
        assert!(result.is_err(), "{fatal}");
    }
}

/// RFC 6120 section 4.3.3: a restart forgets the old scope and expects a header.
#[test]
fn restart_expects_a_header() {
    let mut reader = ItemReader::new(Limits::SERVER, Policy::Tolerant);
    let mut scratch = Scratch::new();
    let header = b"<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' xmlns:p='u'>";
    assert!(matches!(reader.next(&mut scratch, &mut &header[..]), Ok(Some(Item::Header(_)))));
    assert_eq!(reader.scope().lookup("p"), Some("u"));
    reader.reset();
    assert_eq!(reader.scope().lookup("p"), None);
    let mut input = &b"<?xml version='1.0'?><stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'></stream:stream>"[..];
    assert!(matches!(reader.next(&mut scratch, &mut input), Ok(Some(Item::Header(_)))));
    assert!(matches!(reader.next(&mut scratch, &mut input), Ok(Some(Item::End))));
    assert!(matches!(reader.next(&mut scratch, &mut input), Ok(None)));
}
