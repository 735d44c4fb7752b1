//! XMPP over BOSH: XEP-0206, and what may pass in either direction.

use super::*;

const SUCCESS: &str = "<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>";
const AUTH: &str =
    "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>AGF5 c2U=\n</auth>";
const BIND_FEATURES: &str =
    "<stream:features><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></stream:features>";
const BIND_FEATURES_SEEN: &str = "<stream:features \
    xmlns:stream=\"http://etherx.jabber.org/streams\"><bind \
    xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></stream:features>";

/// A session whose server accepted the credentials; the next rid is 102.
fn authenticated() -> Rig {
    let mut rig = Rig::new();
    rig.ask(101, body(101).say(AUTH));
    assert_eq!(rig.upstream(), AUTH);
    told(&rig.server(SUCCESS), &[(101, Why::Payload, &with(SUCCESS))]);
    rig
}

/// XB-08, XB-13, BOSH-88: example 9.2: the login, to the byte.
#[test]
fn a_login_restarts_the_stream() {
    let mut rig = authenticated();
    let mut restart = body(102).restart();
    restart.restart = Some(Box::new(Restart {
        to: Some("Example.Org".into()),
        from: Some("ayse@example.org".into()),
        lang: Some("de".into()),
    }));
    assert_eq!(rig.ask(102, restart), []);
    assert_eq!(
        rig.upstream(),
        "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
         xmlns:stream='http://etherx.jabber.org/streams' to='example.org' version='1.0' \
         xml:lang='de' from='ayse@example.org'>"
    );
    let got = rig.server(&(HEADER.to_owned() + BIND_FEATURES));
    let expected = format!(
        "<body xmlns='http://jabber.org/protocol/httpbind' \
         xmlns:stream='http://etherx.jabber.org/streams'>{BIND_FEATURES_SEEN}</body>"
    );
    told(&got, &[(102, Why::Payload, &expected)]);
    rig.ask(103, body(103).say("<iq type='set' id='b'/>"));
    told(&rig.server(BOUND), &[(103, Why::Payload, &with(BOUND))]);
    assert_eq!(rig.session.ended(), None);
}

/// XB-09: a restart may say nothing: then what the creation said stands; another domain is refused.
#[test]
fn a_restart_is_addressed_as_the_session() {
    let mut rig = authenticated();
    rig.ask(102, body(102).restart());
    assert!(rig.upstream().ends_with(" to='example.org' version='1.0' xml:lang='tr'>"));
    let mut rig = authenticated();
    let mut restart = body(102);
    restart.restart =
        Some(Box::new(Restart { to: Some("example.net".into()), ..Restart::default() }));
    told(&rig.ask(102, restart), &[(102, Why::Terminate, &term("bad-request"))]);
}

/// XB-10: payloads of a restart are counted, not forwarded.
#[test]
fn a_restart_carries_nothing() {
    let mut rig = authenticated();
    rig.ask(102, body(102).restart().say("<iq type='get' id='1'/><iq type='get' id='2'/>"));
    assert!(!rig.upstream().contains("<iq"));
    assert_eq!((rig.counts.restart_payloads, rig.session.ended()), (2, None));
}

/// XB-11, WS-28: only between the success and the new header; a repeat does not restart twice.
#[test]
fn a_restart_has_its_time() {
    for mut rig in [Rig::new(), Rig::bound()] {
        let got = rig.ask(101, body(101).restart());
        told(&got, &[(101, Why::Terminate, &term("bad-request"))]);
        assert_eq!(rig.upstream(), FOOTER);
    }
    let mut rig = authenticated();
    rig.ask(102, body(102).restart());
    rig.upstream();
    rig.ask(1, body(102).restart());
    assert_eq!((rig.upstream(), rig.session.ended()), (String::new(), None));
    rig.server(&(HEADER.to_owned() + BIND_FEATURES));
    assert_eq!(rig.ask(2, body(102).restart())[0].why, Why::Replay);
    assert_eq!(rig.upstream(), "");
}

/// XB-11, WS-29: nothing else may come before it.
#[test]
fn a_due_restart_comes_first() {
    let mut rig = authenticated();
    let got = rig.ask(102, body(102).say(&message("x")));
    told(&got, &[(102, Why::Terminate, &term("bad-request"))]);
    assert_eq!(rig.upstream(), FOOTER);
    // An empty request may, and a bind may come before the new features do.
    let mut rig = authenticated();
    rig.ask(102, body(102));
    rig.ask(103, body(103).restart());
    rig.ask(104, body(104).say("<iq type='set' id='b'/>"));
    assert!(rig.upstream().ends_with("<iq type='set' id='b'/>"));
    assert_eq!(rig.session.ended(), None);
}

/// XB-12: if configured, the gateway restarts the stream of a client that knows of no restart.
#[test]
fn old_clients_are_restarted() {
    let old = |creation: &mut Creation| {
        creation.ver = None;
        creation.version = None;
    };
    for (auto, modern) in [(true, false), (true, true), (false, false)] {
        let body_of = creation(|creation| {
            if !modern {
                old(creation)
            }
        });
        let mut rig = Rig::with(|settings| settings.auto_restart = auto, body_of);
        rig.ask(101, body(101).say(AUTH));
        rig.upstream();
        rig.server(SUCCESS);
        if auto && !modern {
            assert!(rig.upstream().starts_with("<?xml version='1.0'?><stream:stream"));
            rig.ask(102, body(102));
            let got = rig.server(&(HEADER.to_owned() + BIND_FEATURES));
            assert!(got[0].body.contains(BIND_FEATURES_SEEN));
        } else {
            assert_eq!(rig.upstream(), "");
        }
    }
}

/// XB-06: features begin a body, if a stanza came before them.
#[test]
fn features_stand_before_stanzas() {
    let mut rig = Rig::bound();
    rig.feed(&message("1"));
    rig.feed(BIND_FEATURES);
    rig.feed(&message("2"));
    told(&rig.ask(101, body(101)), &[(101, Why::Payload, &with(&message("1")))]);
    let got = rig.ask(102, body(102));
    assert!(got[0].body.ends_with(&format!("{BIND_FEATURES_SEEN}{}</body>", message("2"))));
}

/// XB-17: after SASL2 the features are an ordinary payload, and no restart is awaited.
#[test]
fn sasl2_needs_no_restart() {
    let mut rig = Rig::new();
    rig.ask(101, body(101).say("<authenticate xmlns='urn:xmpp:sasl:2' mechanism='PLAIN'/>"));
    let success = "<success xmlns='urn:xmpp:sasl:2'><authorization-identifier>a@example.org/r\
        </authorization-identifier></success>";
    let got = rig.server(&(success.to_owned() + BIND_FEATURES));
    assert!(got[0].body.ends_with(&format!("{success}{BIND_FEATURES_SEEN}</body>")));
    rig.ask(102, body(102).say(&message("x")));
    assert_eq!(rig.session.ended(), None);
    rig.until(s(65));
    assert_eq!(rig.session.ended(), None, "UP-23: it is logged in");
}

/// UP-20, XB-13: TLS inside the stream is refused and ends the session; compression is refused.
#[test]
fn tls_and_compression_are_refused() {
    let mut rig = Rig::new();
    let got = rig.ask(
        101,
        body(101).say(&message("x")).say("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>"),
    );
    told(
        &got,
        &[(
            101,
            Why::Terminate,
            "<body type='terminate' xmlns='http://jabber.org/protocol/httpbind'>\
             <failure xmlns=\"urn:ietf:params:xml:ns:xmpp-tls\"/></body>",
        )],
    );
    assert_eq!((rig.upstream(), rig.session.ended()), (FOOTER.into(), Some(Fault::ClientTls)));

    let mut rig = Rig::bound();
    let compress = "<compress xmlns='http://jabber.org/protocol/compress'><method>zlib</method>\
        </compress>";
    let request = body(101).say(&(message("a") + compress + &message("b")));
    let expected = with(
        "<failure xmlns=\"http://jabber.org/protocol/compress\"><unsupported-method/></failure>",
    );
    told(&rig.ask(101, request), &[(101, Why::Payload, &expected)]);
    assert_eq!(rig.upstream(), message("a") + &message("b"));
    assert_eq!(rig.tally.to_server.elements, [2, 0, 0, 0]);
}

/// SEC-09: elements of the stream's own namespaces, whatever their prefix, and nothing of the
/// request is forwarded.
#[test]
fn elements_of_the_stream_are_refused() {
    for wrong in [
        "<s:features xmlns:s='http://etherx.jabber.org/streams'/>",
        "<open xmlns='urn:ietf:params:xml:ns:xmpp-framing'/>",
        "<close xmlns='urn:ietf:params:xml:ns:xmpp-framing'/>",
    ] {
        let mut rig = Rig::bound();
        let got = rig.ask(101, body(101).say(&message("x")).say(wrong));
        told(&got, &[(101, Why::Terminate, &term("bad-request"))]);
        assert_eq!((rig.upstream(), rig.session.ended()), (FOOTER.into(), Some(Fault::BadFormat)));
    }
    let mut rig = Rig::bound();
    let error = "<stream:error xmlns:stream='http://etherx.jabber.org/streams'/>";
    rig.ask(101, body(101));
    let got = rig.ask(102, body(102).say(error));
    let end = "<body type='terminate' ack='102' xmlns='http://jabber.org/protocol/httpbind'/>";
    told(&got, &[(101, Why::Terminate, end), (102, Why::Terminate, EMPTY)]);
    assert_eq!(rig.session.ended(), Some(Fault::ClientError));
}

/// BOSH-88, WS-15, UP-36: stanzas are complete documents; a broken one is repaired and counted.
#[test]
fn stanzas_are_completed_for_the_client() {
    let mut rig = Rig::bound();
    rig.ask(101, body(101));
    let got = rig.server("<message to='a'><p:x/></message>");
    told(
        &got,
        &[(
            101,
            Why::Payload,
            &with(
                "<message xmlns=\"jabber:client\" xmlns:p=\"urn:bosphorus:undeclared\" to='a'>\
                 <p:x/></message>",
            ),
        )],
    );
    assert_eq!(rig.tally.repaired, 1);
}

/// UP-23: only the server's word counts: a client's own success changes nothing.
#[test]
fn a_client_cannot_log_itself_in() {
    let mut rig = Rig::new();
    rig.ask(101, body(101).say(SUCCESS));
    let got = rig.ask(102, body(102).restart());
    assert!(got[1].body == term("bad-request"), "{got:?}");
}

/// UP-27: what was noted of a login is counted when it fails.
#[test]
fn failed_channel_bindings_are_counted() {
    let mut rig = Rig::new();
    let auth =
        "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='SCRAM-SHA-1-PLUS'>x</auth>";
    rig.ask(101, body(101).say(auth));
    rig.server("<failure xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><not-authorized/></failure>");
    assert_eq!(rig.tally.binding_plus, 1);
}

/// SM-01, SM-02, SM-03: stream management passes as it is; nothing is added to it.
#[test]
fn stream_management_passes() {
    let mut rig = Rig::bound();
    let enable = "<enable xmlns='urn:xmpp:sm:3' resume='true'/>";
    rig.ask(101, body(101).say(enable));
    assert_eq!(rig.upstream(), enable);
    let enabled = "<enabled xmlns='urn:xmpp:sm:3' id='x' location='[2001:db8::1]:5222'/>";
    let r = "<r xmlns='urn:xmpp:sm:3'/>";
    let got = rig.server(&(enabled.to_owned() + r));
    told(&got, &[(101, Why::Payload, &with(&(enabled.to_owned() + r)))]);
    let a = "<a xmlns='urn:xmpp:sm:3' h='0'/>";
    rig.ask(102, body(102).say(a));
    assert_eq!(rig.upstream(), a);
}

/// UP-24, SEC-17: what a client makes us say to itself is bounded, even if it never reads it.
#[test]
fn refused_compression_is_bounded() {
    let mut rig = Rig::bound();
    let payload = "<compress xmlns='http://jabber.org/protocol/compress'/>".repeat(256);
    for n in 0..200 {
        if rig.session.ended().is_some() {
            break;
        }
        let rid = 101 + n;
        rig.step(Event::Request { id: RequestId(rid), body: body(rid).say(&payload) });
        // As the loop does.
        rig.out.responses.retain(|respond| respond.id.0 != rid);
        rig.step(Event::Gone { id: RequestId(rid) });
        rig.flush();
    }
    let held = rig.session.held_bytes();
    assert!(held < 2 << 20, "{held} bytes are kept for a client that reads nothing");
}
