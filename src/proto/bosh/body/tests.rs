//! The rules of the reader, and a second parser's opinion of what it lets pass.

use std::time::Duration;

use proptest::prelude::*;
use rxml::Parse as _;

use super::*;
use crate::proto::seam::FeatureRules;
use crate::proto::stream::Served;

fn settings() -> Settings {
    Settings {
        served: Served::default(),
        client_xml: Limits::CLIENT,
        server_xml: Limits::SERVER,
        body_bytes: Limits::CLIENT.element_bytes + 4096,
        body_elements: 256,
        wait_max: Duration::from_secs(55),
        wait_default: Duration::from_secs(55),
        hold_max: 1,
        inactivity: Duration::from_secs(75),
        polling_inactivity: Duration::from_secs(120),
        polling: Duration::from_secs(5),
        maxpause: Duration::from_secs(120),
        first_response_timeout: Duration::from_secs(10),
        linger: Duration::from_millis(10),
        strict_overactivity: false,
        zombie: Duration::from_secs(75),
        replay_responses: 32,
        replay_bytes: 1 << 20,
        response_elements: 256,
        pending_bytes: 1 << 20,
        pending_stanzas: 1000,
        unauthenticated_bytes: 64 << 10,
        unauthenticated_lifetime: Duration::from_secs(60),
        close_grace: Duration::from_secs(5),
        whitespace_keepalive: Duration::ZERO,
        features: FeatureRules::default(),
        route_allow: Vec::new(),
        auto_restart: false,
        accept_gzip: false,
    }
}

const SID: &str = "AAAAAQICAgICAgICAgICAgICAgICAgIC";

fn sid() -> Sid {
    Sid::parse(SID).expect("one of ours")
}

fn judge(text: impl AsRef<[u8]>) -> Result<Body, Unreadable> {
    read(&mut Scratch::new(), &settings(), text.as_ref())
}

#[track_caller]
fn accepts(text: impl AsRef<[u8]>) -> Body {
    let text = text.as_ref();
    judge(text).unwrap_or_else(|e| panic!("{e:?} for {}", String::from_utf8_lossy(text)))
}

#[track_caller]
fn refuses(text: impl AsRef<[u8]>) -> Unreadable {
    let text = text.as_ref();
    match judge(text) {
        Err(unreadable) => unreadable,
        Ok(body) => panic!("{body:?} for {}", String::from_utf8_lossy(text)),
    }
}

/// A request of a session, with more attributes and with payloads.
fn request(attributes: &str, payloads: &str) -> String {
    format!(
        "<body rid='7' sid='{SID}' xmlns='http://jabber.org/protocol/httpbind' {attributes}>\
         {payloads}</body>"
    )
}

fn creation(attributes: &str) -> Creation {
    let text =
        format!("<body rid='1' xmlns='http://jabber.org/protocol/httpbind' {attributes}></body>");
    *accepts(text).creation.expect("without a sid")
}

fn creation_fault(attributes: &str) -> Fault {
    refuses(format!("<body rid='1' xmlns='http://jabber.org/protocol/httpbind' {attributes}/>"))
        .fault
}

fn payload_of(text: impl AsRef<[u8]>) -> Vec<(Kind, String)> {
    let payload = accepts(text).payload;
    let mut rest = &payload.bytes[..];
    let parts = payload.parts.iter().map(|part| {
        let (bytes, behind) = rest.split_at(part.len as usize);
        rest = behind;
        (part.kind, String::from_utf8(bytes.to_vec()).expect("UTF-8"))
    });
    let parts = parts.collect();
    assert!(rest.is_empty());
    parts
}

/// An ordinary request costs no heap but for its payload.
#[test]
fn an_empty_request_has_nothing_but_numbers() {
    let body = accepts(request("ack='6'", ""));
    let want = Body {
        rid: 7,
        creation: None,
        sid: Some(sid()),
        ack: Some(Ack::Rid(6)),
        pause: None,
        keys: None,
        terminate: false,
        restart: None,
        payload: Payload::default(),
    };
    assert_eq!(body, want);
    assert_eq!((body.payload.bytes.capacity(), body.payload.parts.capacity()), (0, 0));
}

/// BOSH-10, SEC-05: one `<body/>` and nothing else; the root by its expanded name.
#[test]
fn only_one_body_is_a_request() {
    let plain = request("", "");
    for (text, fault) in [
        (String::new(), Fault::BadXml),
        (" ".to_owned(), Fault::BadXml),
        ("hello".to_owned(), Fault::BadXml),
        (format!("x{plain}"), Fault::BadXml),
        (format!("{plain}x"), Fault::BadXml),
        (format!("{plain}{plain}"), Fault::BadXml),
        (format!("{plain}<!-- -->"), Fault::BadXml),
        (format!("<!-- -->{plain}"), Fault::RestrictedXml),
        (format!("<?php ?>{plain}"), Fault::RestrictedXml),
        (format!("<!DOCTYPE body>{plain}"), Fault::RestrictedXml),
        (format!(" <?xml version='1.0'?>{plain}"), Fault::RestrictedXml),
        (plain.replace("</body>", ""), Fault::BadXml),
        (plain.replace("</body>", "</bodY>"), Fault::BadXml),
        (plain.replace("</body>", "</body x='y'>"), Fault::BadXml),
        (plain.replace("</body>", "<!-- --></body>"), Fault::RestrictedXml),
        (plain.replace("</body>", "<?php ?></body>"), Fault::RestrictedXml),
        (plain.replace("body", "message"), Fault::BadFormat),
        (plain.replace("httpbind", "other"), Fault::InvalidNamespace),
        (plain.replace("<body ", "<b:body "), Fault::BadXml),
        ("<body rid='1'/>".to_owned(), Fault::InvalidNamespace),
        (plain.replace("rid='7'", "rid='&nbsp;'"), Fault::RestrictedXml),
        (plain.replace("rid='7'", "rid='7' rid='8'"), Fault::BadXml),
    ] {
        assert_eq!(refuses(&text).fault, fault, "{text}");
    }
    for text in [
        format!("\n {plain}\r\n\t "),
        format!("<?xml version='1.0'?>\n{plain}"),
        plain.replace("</body>", "</body \n>"),
        plain.replace("></body>", "/>"),
        "<b:body xmlns:b='http://jabber.org/protocol/httpbind' rid='7'></b:body>".to_owned(),
    ] {
        assert_eq!(accepts(text).rid, 7);
    }
}

/// BOSH-11: white space between payloads is dropped, other text is not.
#[test]
fn white_space_between_payloads_is_dropped() {
    let text = request("", " \n<presence/>\t<iq/>\r ");
    assert_eq!(accepts(text).payload.bytes, b"<presence/><iq/>");
    for payloads in ["x", "<iq/>x", "&#32;", "<![CDATA[ ]]>", "<iq/>&amp;<iq/>"] {
        assert_eq!(refuses(request("", payloads)).fault, Fault::BadXml, "{payloads}");
    }
}

/// BOSH-12: what other connection managers and clients add means nothing.
#[test]
fn unknown_attributes_are_ignored() {
    let odd = "ua='x' window='5' secure='false' inactivity='900' stream='two' charsets='x' \
               xmlns:x='urn:x' x:rid='9' x:sid='9' x:type='terminate' x:restart='true'";
    let body = accepts(request(odd, ""));
    assert_eq!(body, accepts(request("", "")));
    assert_eq!(creation(odd), Creation::default());
    // BOSH-85: what only a creation or a restart says.
    let body = accepts(request("to='a' from='b' route='c' xml:lang='d' wait='x' ver='y'", ""));
    assert_eq!(body, accepts(request("", "")));
}

/// BOSH-14: a rid is 1 to 16 digits, from 1 to 2^53 - 1.
#[test]
fn a_rid_is_a_plain_number() {
    let with = |rid: &str| {
        judge(format!("<body {rid} xmlns='http://jabber.org/protocol/httpbind' sid='{SID}'/>"))
    };
    for (text, rid) in [
        ("1", 1),
        ("0000000000000012", 12),
        ("9007199254740991", 9_007_199_254_740_991),
        ("&#49;2", 12),
    ] {
        assert_eq!(with(&format!("rid='{text}'")).map(|body| body.rid), Ok(rid));
    }
    let unreadable =
        Unreadable { sid: Some(sid()), rid: None, fault: Fault::BadFormat, limit: None };
    for text in [
        "0",
        "-1",
        "+1",
        "1e3",
        " 5",
        "5 ",
        "",
        "x",
        "9007199254740992",
        "00000000000000001",
        "99999999999999999999",
        "１",
    ] {
        assert_eq!(with(&format!("rid='{text}'")), Err(unreadable.clone()), "{text}");
    }
    assert_eq!(with(""), Err(unreadable));
}

/// BOSH-15, BOSH-70: a sid of no gateway is a sid all the same, and no creation.
#[test]
fn a_foreign_sid_makes_no_session() {
    let foreign = accepts(request("", "").replace(SID, "abc"));
    assert!(foreign.has_foreign_sid());
    assert_eq!((foreign.sid, foreign.creation), (None, None));
    assert!(accepts(request("", "").replace(SID, "")).has_foreign_sid());
    assert!(!accepts(request("", "")).has_foreign_sid());
    let without = accepts("<body rid='1' xmlns='http://jabber.org/protocol/httpbind'/>");
    assert!(!without.has_foreign_sid() && without.creation.is_some());
    // By another name it is none.
    let other = accepts("<body rid='1' xmlns='http://jabber.org/protocol/httpbind' SID='a'/>");
    assert!(other.creation.is_some());
}

/// SEC-17: what is too long to be told to a server is not kept until that is reached, and what waits
/// for its turn is counted.
#[test]
fn what_is_too_long_to_be_told_is_not_kept() {
    let long = "x".repeat(100_000);
    for (from, lang) in [("a@b", &*long), (&*long, "tr")] {
        let said = format!("to='{long}' from='{from}' xml:lang='{lang}'");
        let kept = |text: &str| (text.len() < 100).then(|| Box::from(text));
        let made = creation(&said);
        assert_eq!((made.from, made.lang), (kept(from), kept(lang)));
        let body = accepts(request(&format!("{said} q:restart='1' xmlns:q='urn:xmpp:xbosh'"), ""));
        assert!((100_000..101_000).contains(&body.held_bytes()));
        let restart = body.restart.unwrap();
        assert_eq!((restart.from, restart.lang), (kept(from), kept(lang)));
    }
    assert!(accepts(request("", &format!("<a>{long}</a>"))).held_bytes() > 100_000);
}

/// BOSH-13, BOSH-16, BOSH-17, BOSH-19, BOSH-22, BOSH-25, BOSH-26: what a creation says.
#[test]
fn a_creation_is_typed() {
    let full = creation(
        "to='a&amp;b' from='c@d' xml:lang='tr' route='xmpp:h:1' ver='1.10' wait='60' hold='2' \
         content='text/plain' xmpp:version='1.0' xmlns:xmpp='urn:xmpp:xbosh'",
    );
    let text = |text: &str| Some(Box::from(text));
    let want = Creation {
        to: text("a&b"),
        from: text("c@d"),
        lang: text("tr"),
        route: text("xmpp:h:1"),
        ver: Some((1, 10)),
        wait: Some(60),
        hold: Some(2),
        content: Content::TextPlain,
        version: text("1.0"),
    };
    assert_eq!(full, want);
    assert_eq!(creation(""), Creation::default());
    assert_eq!(creation("wait='99999999999' hold='0'").wait, Some(u32::MAX));
    for name in ["wait", "hold"] {
        for value in ["-1", "", " 1", "1.5", "x", "+1"] {
            let attribute = format!("{name}='{value}'");
            assert_eq!(creation_fault(&attribute), Fault::BadFormat, "{attribute}");
        }
    }
    for (ver, want) in [("1.6", (1, 6)), ("2.0", (2, 0)), ("1.011", (1, 11))] {
        assert_eq!(creation(&format!("ver='{ver}'")).ver, Some(want));
    }
    for ver in ["x", "", "1", "1.", ".1", "1.x", "1.1.1", "-1.0"] {
        assert_eq!(creation_fault(&format!("ver='{ver}'")), Fault::BadFormat, "{ver}");
    }
}

/// BOSH-22: nothing that a browser would run is ever echoed.
#[test]
fn content_is_honoured_as_far_as_it_is_harmless() {
    for (value, want) in [
        ("text/xml", Content::TextXml),
        ("text/xml; charset=utf-8", Content::TextXml),
        ("application/xml", Content::ApplicationXml),
        ("Application/XML ;charset=\"UTF-8\"", Content::ApplicationXml),
        ("text/plain;charset=utf-8", Content::TextPlain),
        ("text/plain; charset=latin1", Content::TextXml),
        ("text/plain; charset=utf-8; x=y", Content::TextXml),
        ("text/html", Content::TextXml),
        ("text/plain&#13;&#10;X: y", Content::TextXml),
        ("", Content::TextXml),
    ] {
        let value = value.replace('"', "&quot;");
        assert_eq!(creation(&format!("content='{value}'")).content, want, "{value}");
    }
}

/// BOSH-23, SEC-06: UTF-8 and nothing else.
#[test]
fn only_utf_8_is_spoken() {
    let plain = request("", "<presence/>");
    for encoding in ["ISO-8859-1", "UTF-16", ""] {
        let text = format!("<?xml version='1.0' encoding='{encoding}'?>{plain}");
        assert_eq!(refuses(&text).fault, Fault::UnsupportedEncoding, "{text}");
    }
    accepts(format!("<?xml version='1.0' encoding='utf-8'?>{plain}"));
    for place in ["sid", "presence"] {
        let mut bytes = plain.clone().into_bytes();
        let at = plain.find(place).expect("is there");
        bytes[at] = 0xFF;
        assert_eq!(refuses(bytes).fault, Fault::BadUtf8);
    }
    assert_eq!(refuses(request("", "<iq>&#0;</iq>")).fault, Fault::BadXml);
}

/// BOSH-27, BOSH-52, BOSH-56: an `ack` is a rid or nonsense.
#[test]
fn an_ack_is_taken_as_it_comes() {
    for (text, want) in [
        ("1", Ack::Rid(1)),
        ("6", Ack::Rid(6)),
        ("0", Ack::Nonsense),
        ("-1", Ack::Nonsense),
        ("x", Ack::Nonsense),
        ("", Ack::Nonsense),
    ] {
        assert_eq!(accepts(request(&format!("ack='{text}'"), "")).ack, Some(want), "{text}");
    }
}

/// BOSH-58, BOSH-59: `pause` is a number, and what is none is not `bad-request`.
#[test]
fn pause_is_typed() {
    for (text, want) in [
        ("60", Ok(60)),
        ("0", Ok(0)),
        ("99999999999", Ok(u32::MAX)),
        ("-1", Err(NotANumber)),
        ("x", Err(NotANumber)),
        ("", Err(NotANumber)),
    ] {
        assert_eq!(accepts(request(&format!("pause='{text}'"), "")).pause, Some(want), "{text}");
    }
}

/// BOSH-64, BOSH-67: the end by either name, payloads and condition or not.
#[test]
fn a_terminate_is_known_by_both_names() {
    for (value, want) in [("terminate", true), ("terminal", true), ("error", false), ("", false)] {
        let text = request(&format!("type='{value}' condition='x'"), "<presence/>");
        assert_eq!(accepts(text).terminate, want, "{value}");
    }
}

/// BOSH-80 to BOSH-84: keys as they were sent, and hex digits only.
#[test]
fn keys_are_hex() {
    let forty = "ca393b51b682f61f98e7877d61146407f3d0aAbC".to_owned();
    let keys = |attributes: &str| accepts(request(attributes, "")).keys;
    assert_eq!(keys(""), None);
    let both = keys(&format!("newkey='{forty}' key='0F'")).expect("two");
    assert_eq!((both.key.as_deref(), both.newkey.as_deref()), (Some("0F"), Some(&*forty)));
    let one = keys(&format!("newkey='{forty}'")).expect("one");
    assert_eq!((one.key, one.newkey.as_deref()), (None, Some(&*forty)));
    for wrong in ["", "xyz", " 0F", &format!("{forty}0")] {
        for name in ["key", "newkey"] {
            let unreadable = refuses(request(&format!("{name}='{wrong}'"), ""));
            let want =
                Unreadable { sid: Some(sid()), rid: Some(7), fault: Fault::BadFormat, limit: None };
            assert_eq!(unreadable, want, "{wrong}");
        }
    }
}

/// XB-02, XB-09: a restart by namespace with any prefix, `true` or `1`.
#[test]
fn a_restart_is_known_by_its_namespace() {
    let restart = |attributes: &str| accepts(request(attributes, "")).restart;
    let xbosh = "xmlns:q='urn:xmpp:xbosh'";
    for value in ["true", "1"] {
        assert_eq!(
            restart(&format!("q:restart='{value}' {xbosh}")),
            Some(Box::new(Restart::default()))
        );
    }
    let told = restart(&format!("to='a' from='b' xml:lang='c' q:restart='1' {xbosh}"));
    let text = |text: &str| Some(Box::from(text));
    let want = Restart { to: text("a"), from: text("b"), lang: text("c") };
    assert_eq!(told, Some(Box::new(want)));
    for none in [
        "restart='true'",
        "xmlns:xmpp='urn:other' xmpp:restart='true'",
        "q:restart='false' xmlns:q='urn:xmpp:xbosh'",
        "q:restart='TRUE' xmlns:q='urn:xmpp:xbosh'",
    ] {
        assert_eq!(restart(none), None, "{none}");
    }
    let undeclared = refuses(request("xmpp:restart='true'", ""));
    assert_eq!(undeclared, Unreadable { sid: None, rid: None, fault: Fault::BadXml, limit: None });
    let version = |attributes: &str| creation(attributes).version;
    assert_eq!(version("version='1.0'"), None);
    assert_eq!(version("q:version='1.0' xmlns:q='urn:xmpp:xbosh'").as_deref(), Some("1.0"));
}

/// BOSH-68: what is broken behind the start tag is told with the session it belongs to.
#[test]
fn the_fault_knows_its_session_once_the_tag_was_read() {
    let known = |fault| Unreadable { sid: Some(sid()), rid: Some(7), fault, limit: None };
    for (text, fault) in [
        (request("", "<iq"), Fault::BadXml),
        (request("", "<iq>"), Fault::BadXml),
        (request("", "<iq/>").replace("</body>", ""), Fault::BadXml),
        (request("", "<iq/><x:y/>"), Fault::BadXml),
        (request("", "<iq/><!-- -->"), Fault::RestrictedXml),
        (request("", "text"), Fault::BadXml),
        (request("key='?'", ""), Fault::BadFormat),
    ] {
        assert_eq!(refuses(&text), known(fault), "{text}");
    }
    let nobody = Unreadable { sid: None, rid: None, fault: Fault::BadXml, limit: None };
    for text in [request("x", ""), request("", "")[..60].to_owned()] {
        assert_eq!(refuses(&text), nobody, "{text}");
    }
    // A namespace that is not BOSH's: its attributes are not BOSH's either.
    assert_eq!(refuses(request("", "").replace("httpbind", "x")).sid, None);
}

/// BOSH-86: payloads that inherit the namespace of BOSH, or have none, are `jabber:client`.
#[test]
fn payloads_are_of_the_client_unless_they_say_otherwise() {
    let one = |payload: &str| payload_of(request("", payload)).pop().expect("one");
    for (payload, kind, written) in [
        ("<iq id='1'><q><r/></q></iq>", Kind::Iq, "<iq id='1'><q><r/></q></iq>"),
        ("<iq xmlns=''><q/></iq>", Kind::Iq, "<iq ><q/></iq>"),
        ("<iq xmlns='jabber:client'/>", Kind::Iq, "<iq xmlns='jabber:client'/>"),
        (
            "<iq xmlns='http://jabber.org/protocol/httpbind'/>",
            Kind::Other,
            "<iq xmlns='http://jabber.org/protocol/httpbind'/>",
        ),
        (
            "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>",
            Kind::Sasl,
            "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>",
        ),
    ] {
        assert_eq!(one(payload), (kind, written.to_owned()), "{payload}");
    }
    let prefixed = |default: &str, payload: &str| {
        let text = format!(
            "<b:body xmlns:b='http://jabber.org/protocol/httpbind' {default} rid='7'>\
             {payload}</b:body>"
        );
        payload_of(text).pop().expect("one")
    };
    for default in ["", "xmlns=''", "xmlns='jabber:client'"] {
        assert_eq!(prefixed(default, "<iq/>"), (Kind::Iq, "<iq/>".to_owned()));
    }
    // BOSH-87: another default namespace is inherited like any name.
    assert_eq!(
        prefixed("xmlns='urn:x'", "<iq><a/></iq>"),
        (Kind::Other, "<iq xmlns=\"urn:x\"><a/></iq>".to_owned())
    );
    assert_eq!(prefixed("xmlns='urn:x'", "<iq xmlns=''/>"), (Kind::Iq, "<iq />".to_owned()));
}

/// BOSH-87: prefixes of the body are declared where they are used, and nowhere else.
#[test]
fn prefixes_of_the_body_are_carried() {
    let text = request(
        "xmlns:x='urn:x' xmlns:y='urn:y' xmlns:stream='http://etherx.jabber.org/streams'",
        "<message><x:a y:b='c'/></message><iq/><x:own xmlns:x='urn:z'/><stream:error/>",
    );
    assert_eq!(
        payload_of(text),
        [
            (
                Kind::Message,
                "<message xmlns:x=\"urn:x\" xmlns:y=\"urn:y\"><x:a y:b='c'/></message>".to_owned()
            ),
            (Kind::Iq, "<iq/>".to_owned()),
            (Kind::Other, "<x:own xmlns:x='urn:z'/>".to_owned()),
            (
                Kind::StreamError,
                "<stream:error xmlns:stream=\"http://etherx.jabber.org/streams\"/>".to_owned()
            ),
        ]
    );
}

/// SEC-09: no stream header is a payload, whatever its prefix.
#[test]
fn a_stream_header_is_no_payload() {
    for payload in [
        "<stream xmlns='http://etherx.jabber.org/streams'/>",
        "<x:stream xmlns:x='http://etherx.jabber.org/streams'>",
    ] {
        assert_eq!(refuses(request("", payload)).fault, Fault::RestrictedXml);
    }
}

/// SEC-11, SEC-12, BOSH-06: the limits of a payload, of payloads and of the body.
#[test]
fn everything_is_bounded() {
    let deep = |levels: usize| format!("{}{}", "<a>".repeat(levels), "</a>".repeat(levels));
    accepts(request("", &deep(64)));
    assert_eq!(refuses(request("", &deep(65))).fault, Fault::XmlLimit);
    accepts(request("", &"<a/>".repeat(256)));
    assert_eq!(refuses(request("", &"<a/>".repeat(257))).fault, Fault::XmlLimit);
    let sized = |bytes: usize| format!("<a>{}</a>", "x".repeat(bytes - 7));
    accepts(request("", &sized(256 << 10)));
    assert_eq!(refuses(request("", &sized((256 << 10) + 1))).fault, Fault::TooBig);
    // Several that are small enough, but too much together.
    let half = sized(130 << 10);
    assert_eq!(refuses(request("", &half.repeat(3))).fault, Fault::TooBig);
    assert_eq!(refuses(request(&format!("x{}='y'", "z".repeat(1024)), "")).fault, Fault::XmlLimit);
    let many = |n: usize| (0..n).map(|n| format!(" xmlns:p{n}='urn:x'")).collect::<String>();
    accepts(request(&many(62), ""));
    assert_eq!(refuses(request(&many(65), "")).fault, Fault::XmlLimit);
}

/// SEC-13: one long namespace name on the body is not multiplied by its payloads.
#[test]
fn declarations_are_not_multiplied() {
    let long = format!("xmlns:p='urn:{}'", "x".repeat(100_000));
    accepts(request(&long, &"<p:a/>".repeat(10)));
    let unreadable = refuses(request(&long, &"<p:a/>".repeat(14)));
    assert_eq!(unreadable.fault, Fault::XmlLimit);
}

/// One payload that is broken, and nothing of the body is delivered.
#[test]
fn a_body_is_taken_whole_or_not_at_all() {
    assert_eq!(refuses(request("", "<message/><message>")).fault, Fault::BadXml);
}

/// UP-27, UP-32: what a login is remembered by travels with it.
#[test]
fn logins_are_noted() {
    let text = request("", "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='X-PLUS'/>");
    assert!(matches!(accepts(text).payload.parts[..], [Part { note: Some(_), .. }]));
    assert_eq!(accepts(request("", "<message/>")).payload.parts[0].note, None);
}

// What a second parser, rxml, makes of it (SEC-04).

/// Everything inside the root as one line an event: expanded names, attributes sorted, text joined.
fn seen(document: &str) -> Result<Vec<String>, String> {
    let mut parser = rxml::Parser::new();
    let mut input = document.as_bytes();
    let (mut depth, mut events, mut text) = (0, Vec::new(), String::new());
    while let Some(event) = parser.parse(&mut input, true).map_err(|e| format!("{e:?}"))? {
        if !matches!(event, rxml::Event::Text(..)) && !text.is_empty() {
            events.push(std::mem::take(&mut text));
        }
        match event {
            rxml::Event::XmlDeclaration(..) => {}
            rxml::Event::StartElement(_, (namespace, name), attributes) => {
                depth += 1;
                if depth == 1 {
                    continue;
                }
                let mut attributes: Vec<_> = attributes
                    .iter()
                    .map(|((ns, name), value)| format!(" {{{ns}}}{name}={value:?}"))
                    .collect();
                attributes.sort();
                events.push(format!("<{{{namespace}}}{name}{}", attributes.concat()));
            }
            rxml::Event::EndElement(_) => {
                depth -= 1;
                events.push(">".to_owned());
            }
            // White space between the payloads is dropped.
            rxml::Event::Text(_, data) if depth > 1 => text.push_str(&data),
            rxml::Event::Text(..) => {}
        }
    }
    if input.is_empty() { Ok(events) } else { Err("ended early".to_owned()) }
}

/// What the server sees of a payload.
fn seen_upstream(payload: &Payload) -> Vec<String> {
    let payload = std::str::from_utf8(&payload.bytes).expect("UTF-8");
    let stream = format!(
        "<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>\
         {payload}</stream:stream>"
    );
    seen(&stream).unwrap_or_else(|e| panic!("{e} in {stream}"))
}

/// An element of a generated payload.
#[derive(Clone, Debug)]
struct Tree {
    prefix: usize,
    default: Option<usize>,
    declares: Option<(usize, usize)>,
    attribute: Option<usize>,
    text: &'static str,
    children: Vec<Self>,
}

const PREFIXES: [&str; 4] = ["", "x:", "y:", "stream:"];
const NAMES: [&str; 4] =
    ["urn:x", "jabber:client", "http://jabber.org/protocol/httpbind", "urn:q\"uote"];

fn trees() -> impl Strategy<Value = Tree> {
    let leaf = (
        0..PREFIXES.len(),
        proptest::option::of(0..=NAMES.len()),
        proptest::option::of((1..3_usize, 0..NAMES.len())),
        proptest::option::of(1..3_usize),
        prop::sample::select(vec!["", " ", "t&amp;<![CDATA[<]]>", "&#x1F600;ü"]),
    )
        .prop_map(|(prefix, default, declares, attribute, text)| Tree {
            prefix,
            default,
            declares,
            attribute,
            text,
            children: Vec::new(),
        });
    leaf.prop_recursive(3, 12, 3, |inner| {
        (inner.clone(), prop::collection::vec(inner, 0..3))
            .prop_map(|(tree, children)| Tree { children, ..tree })
    })
}

/// Writes `tree`; with `reference`, a root without a namespace as BOSH-86 takes it.
fn write(tree: &Tree, is_root: bool, reference: bool, out: &mut String) {
    let name = format!("{}e", PREFIXES[tree.prefix]);
    *out += &format!("<{name}");
    match tree.default {
        // Only where the root itself is in it.
        Some(0) if reference && is_root && tree.prefix == 0 => *out += " xmlns='jabber:client'",
        Some(0) => *out += " xmlns=''",
        Some(at) => *out += &format!(" xmlns='{}'", NAMES[at - 1]),
        None => {}
    }
    if let Some((prefix, namespace)) = tree.declares {
        *out +=
            &format!(" xmlns:{}='{}'", PREFIXES[prefix].trim_end_matches(':'), NAMES[namespace]);
    }
    if let Some(prefix) = tree.attribute {
        *out += &format!(" {}a='v' a='w'", PREFIXES[prefix]);
    }
    *out += &format!(">{}", tree.text);
    for child in &tree.children {
        write(child, false, reference, out);
    }
    *out += &format!("</{name}>");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// BOSH-86, BOSH-87, SEC-04: the server sees the elements that a namespace parser sees in the
    /// body, in the same namespaces.
    #[test]
    fn the_server_sees_what_the_client_wrote(
        default in prop::sample::select(vec![None, Some(""), Some("jabber:client"), Some("urn:d")]),
        payloads in prop::collection::vec(trees(), 0..4),
    ) {
        let prefixes =
            "xmlns:x='urn:bx' xmlns:y=\"urn:b'y\" xmlns:stream='http://etherx.jabber.org/streams'";
        let (mut body, mut reference) = (String::new(), String::new());
        for tree in &payloads {
            write(tree, true, false, &mut body);
            write(tree, true, true, &mut reference);
        }
        let body = match default {
            None => request(prefixes, &body),
            Some(default) => format!(
                "<b:body xmlns:b='http://jabber.org/protocol/httpbind' xmlns='{default}' rid='7' \
                 {prefixes}>{body}</b:body>"
            ),
        };
        let default = match default {
            Some("urn:d") => "urn:d",
            _ => "jabber:client",
        };
        let reference = format!("<b:r xmlns:b='urn:b' xmlns='{default}' {prefixes}>{reference}</b:r>");
        let accepted = accepts(&body);
        prop_assert_eq!(accepted.payload.parts.len(), payloads.len());
        prop_assert_eq!(seen_upstream(&accepted.payload), seen(&reference).expect("well-formed"));
    }

    /// SEC-04: of whatever is accepted of mutated bodies, the server sees the same elements; the
    /// second parser need not know BOSH-86.
    #[test]
    fn what_is_accepted_is_seen_alike(
        edits in prop::collection::vec(
            (any::<prop::sample::Index>(), 0..4_u8, prop::sample::select(SCRAPS.to_vec())), 0..4),
    ) {
        let mut text = request(
            "ack='6' xmlns:x='urn:x'",
            "<message to='a'><body>t&amp;t</body><x:y x:z='w'/></message> <iq xmlns='jabber:client'/>",
        );
        for (at, what, scrap) in edits {
            let mut at = at.index(text.len() + 1);
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            let mut end = text.len().min(at + usize::from(what) * 2);
            while !text.is_char_boundary(end) {
                end += 1;
            }
            text.replace_range(at..end, scrap);
        }
        if let Ok(body) = judge(&text) {
            let fold = |events: Vec<String>| -> Vec<String> {
                events
                    .into_iter()
                    .map(|line| line
                        .replace("<{http://jabber.org/protocol/httpbind}", "<{jabber:client}")
                        .replace("<{}", "<{jabber:client}"))
                    .collect()
            };
            // rxml takes no white space before the root, which XML 1.0 allows.
            let own = seen(text.trim_start());
            prop_assert!(own.is_ok(), "{:?} for {}", own, text);
            prop_assert_eq!(fold(seen_upstream(&body.payload)), fold(own.expect("was looked at")));
        }
    }
}

const SCRAPS: [&str; 24] = [
    "",
    " ",
    "<",
    ">",
    "/",
    "'",
    "\"",
    "=",
    "&",
    ";",
    "&lt;",
    "]]>",
    "<![CDATA[",
    "<!--",
    "<?x?>",
    "<a/>",
    "</a>",
    "<body>",
    "</body>",
    " xmlns=''",
    " xmlns='urn:z'",
    " xmlns:x='urn:z'",
    "x:",
    "ü",
];
