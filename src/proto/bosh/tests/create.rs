//! Creating a session: XEP-0124 §7.1, §7.2, XEP-0206 §3, §4.

use super::*;

fn refused(change: impl FnOnce(&mut Settings), body: Body) -> (Fault, u16, String) {
    let mut settings = settings();
    change(&mut settings);
    let made = Session::create(
        Arc::new(settings),
        Sid::new(7, [7; 20]),
        RequestId(0),
        body,
        first_instant(),
    );
    let Err((fault, reply)) = made else { panic!("a session was made") };
    (fault, reply.status, String::from_utf8(reply.body.to_vec()).unwrap())
}

/// The creation response with features, for what `change` asks.
fn created(set: impl FnOnce(&mut Settings), body: Body) -> String {
    let mut settings = settings();
    set(&mut settings);
    let mut rig = Rig::create(settings, body);
    rig.connect(HEADER);
    rig.server(FEATURES).remove(0).body
}

#[track_caller]
fn attribute(body: &str, name: &str) -> Option<String> {
    let head = &body[..body.find('>').unwrap()];
    let (_, rest) = head.split_once(&format!(" {name}='"))?;
    Some(rest[..rest.find('\'').unwrap()].to_owned())
}

/// BOSH-15, BOSH-20, BOSH-28, XB-01, XB-04, XB-05: the creation response of example 9.2, to the
/// byte; what comes later repeats none of it.
#[test]
fn the_creation_response_is_as_in_the_example() {
    let mut rig = Rig::create(settings(), creation(|_| {}));
    let request = rig.session.take_request().unwrap();
    assert_eq!(request.domain.as_str(), "example.org");
    assert_eq!((request.lang.as_deref(), request.from.as_deref()), (Some("tr"), None));
    assert!(rig.session.take_request().is_none());
    assert_eq!(rig.session.server(), ServerSide::Connecting);
    assert_eq!(rig.connect(HEADER), []);
    let sid = Sid::new(7, [7; 20]).expose();
    let expected = format!(
        "<body xmlns='http://jabber.org/protocol/httpbind' xmlns:xmpp='urn:xmpp:xbosh' \
         xmlns:stream='http://etherx.jabber.org/streams' sid='{sid}' wait='55' hold='1' \
         requests='2' polling='5' inactivity='75' maxpause='120' ver='1.6' ack='100' \
         from='example.org' authid='q7' xmpp:version='1.0' xmpp:restartlogic='true'>\
         {FEATURES_SEEN}</body>"
    );
    told(&rig.server(FEATURES), &[(0, Why::Created, &expected)]);
    rig.ask(101, body(101));
    told(&rig.server(&message("x")), &[(101, Why::Payload, &with(&message("x")))]);
}

/// BOSH-08, SEC-13: what holds the sid or the stream's id is never compressed.
#[test]
fn secrets_are_not_compressed() {
    let mut rig = Rig::create(settings(), creation(|_| {}));
    rig.connect(HEADER);
    rig.feed(FEATURES);
    rig.session.handle(Event::Flush, &mut rig.out, rig.now);
    assert!(!rig.out.responses[0].reply.compressible);
}

/// BOSH-13, BOSH-69: whom a session is for.
#[test]
fn the_domain_is_judged_before_anything_is_done() {
    let to = |to: Option<&str>| creation(|creation| creation.to = to.map(Into::into));
    for nobody in [None, Some("")] {
        let (fault, status, text) = refused(|_| {}, to(nobody));
        assert_eq!((fault, status), (Fault::ImproperAddressing, 200));
        assert_eq!(text, term("improper-addressing"));
    }
    for stranger in ["nope.example", "a@example.org", "localhost"] {
        let (fault, _, text) = refused(|_| {}, to(Some(stranger)));
        assert_eq!((fault, &*text), (Fault::HostUnknown, &*term("host-unknown")), "{stranger}");
    }
    let default = |settings: &mut Settings| {
        settings.served.default = Some(Domain::parse("example.org").unwrap());
    };
    assert!(created(default, to(None)).contains("from='example.org'"));
}

/// BOSH-31: a creation request has no payload.
#[test]
fn a_creation_with_payload_is_a_bad_request() {
    let (fault, _, text) = refused(|_| {}, creation(|_| {}).say("<iq type='get' id='1'/>"));
    assert_eq!((fault, &*text), (Fault::BadBody, &*term("bad-request")));
}

/// BOSH-79: a creation without `ver` is told by the status; other conditions stay bodies.
#[test]
fn a_refused_legacy_client_gets_a_code() {
    let legacy = creation(|creation| creation.ver = None).say("<iq/>");
    assert_eq!(refused(|_| {}, legacy), (Fault::BadBody, 400, String::new()));
    let unknown = creation(|creation| {
        creation.ver = None;
        creation.to = Some("nope.example".into());
    });
    assert_eq!(refused(|_| {}, unknown).1, 200);
}

/// BOSH-16: `wait` is the smaller of what is asked and what is allowed.
#[test]
fn wait_is_negotiated() {
    for (asked, answered) in [(Some(300), "55"), (Some(10), "10"), (None, "55"), (Some(0), "0")] {
        let text = created(|_| {}, creation(|creation| creation.wait = asked));
        assert_eq!(attribute(&text, "wait").as_deref(), Some(answered), "{asked:?}");
    }
}

/// BOSH-17: `hold` likewise; `requests` is one more.
#[test]
fn hold_is_negotiated() {
    for (asked, max, hold, requests) in [
        (Some(2), 1, "1", "2"),
        (Some(0), 1, "0", "1"),
        (None, 3, "1", "2"),
        (Some(9), 3, "3", "4"),
    ] {
        let text =
            created(|settings| settings.hold_max = max, creation(|creation| creation.hold = asked));
        assert_eq!(attribute(&text, "hold").as_deref(), Some(hold));
        assert_eq!(attribute(&text, "requests").as_deref(), Some(requests));
    }
}

/// BOSH-18: polling sessions live longer without a request.
#[test]
fn polling_sessions_get_more_inactivity() {
    let text = created(|_| {}, creation(|creation| creation.wait = Some(0)));
    for (name, value) in [("inactivity", "120"), ("polling", "5"), ("maxpause", "120")] {
        assert_eq!(attribute(&text, name).as_deref(), Some(value));
    }
    let text = created(|_| {}, creation(|creation| creation.hold = Some(0)));
    assert_eq!(attribute(&text, "inactivity").as_deref(), Some("120"));
}

/// BOSH-19: `ver` is the lower, by numbers; none is answered with none.
#[test]
fn ver_is_compared_by_numbers() {
    for (asked, answered) in
        [((1, 10), "1.10"), ((1, 6), "1.6"), ((2, 0), "1.11"), ((1, 11), "1.11"), ((1, 12), "1.11")]
    {
        let text = created(|_| {}, creation(|creation| creation.ver = Some(asked)));
        assert_eq!(attribute(&text, "ver").as_deref(), Some(answered));
    }
    let text = created(|_| {}, creation(|creation| creation.ver = None));
    assert_eq!(attribute(&text, "ver"), None);
}

/// BOSH-09: `accept` is announced only if coded requests are read.
#[test]
fn accept_is_announced_if_it_is_meant() {
    assert_eq!(attribute(&created(|_| {}, creation(|_| {})), "accept"), None);
    let text = created(|settings| settings.accept_gzip = true, creation(|_| {}));
    assert_eq!(attribute(&text, "accept").as_deref(), Some("gzip,deflate"));
}

/// BOSH-21: `from` is the server's own name for itself; what it says is escaped.
#[test]
fn from_is_the_servers() {
    let mut rig = Rig::create(settings(), creation(|_| {}));
    rig.connect(&HEADER.replace("from='example.org'", "from='xmpp.example&apos;'"));
    let text = rig.server(FEATURES).remove(0).body;
    assert_eq!(attribute(&text, "from").as_deref(), Some("xmpp.example&apos;"));
    let mut rig = Rig::create(settings(), creation(|_| {}));
    rig.connect(&HEADER.replace(" from='example.org'", ""));
    let text = rig.server(FEATURES).remove(0).body;
    assert_eq!(attribute(&text, "from").as_deref(), Some("example.org"));
}

/// BOSH-22: the media type the client chose is that of every answer.
#[test]
fn the_media_type_is_kept() {
    let body = creation(|creation| creation.content = super::super::Content::TextPlain);
    let mut rig = Rig::with(|_| {}, body);
    rig.step(Event::Request { id: RequestId(1), body: super::body(FIRST + 9) });
    let reply = &rig.out.responses[0].reply;
    assert_eq!(reply.content, super::super::Content::TextPlain);
}

/// BOSH-24, BOSH-26: `from` and the language are handed on; the upstream judges them.
#[test]
fn from_and_lang_reach_the_upstream() {
    let mut rig = Rig::create(
        settings(),
        creation(|creation| {
            creation.from = Some("ayse@example.org".into());
            creation.lang = None;
        }),
    );
    let request: Box<OpenRequest> = rig.session.take_request().unwrap();
    assert_eq!((request.from.as_deref(), request.lang), (Some("ayse@example.org"), None));
}

/// BOSH-25, SEC-22: `route` is ignored, or must be one that is listed.
#[test]
fn route_never_chooses_the_server() {
    let route = |route: &str| creation(|creation| creation.route = Some(route.into()));
    assert!(created(|_| {}, route("xmpp:10.0.0.1:22")).contains("sid="));
    let list =
        |settings: &mut Settings| settings.route_allow = vec!["xmpp.example.org:5222".into()];
    assert!(created(list, route("xmpp:xmpp.example.org:5222")).contains("sid="));
    assert!(created(list, route("xmpp.example.org:5222")).contains("sid="));
    assert!(created(list, creation(|_| {})).contains("sid="));
    for other in ["xmpp:10.0.0.1:22", "xmpp.example.org", "", "http:xmpp.example.org:5222"] {
        assert_eq!(refused(list, route(other)).0, Fault::HostUnknown, "{other}");
    }
}

/// XB-03: any minor version of 1 is spoken with; none is 1.0.
#[test]
fn the_xmpp_version_is_judged() {
    let version = |version: Option<&str>| creation(|c| c.version = version.map(Into::into));
    for fine in [None, Some("1.0"), Some("1.1")] {
        assert!(created(|_| {}, version(fine)).contains("xmpp:version='1.0'"));
    }
    let (fault, _, text) = refused(|_| {}, version(Some("2.0")));
    assert_eq!((fault, &*text), (Fault::UnsupportedVersion, &*term("bad-request")));
}

/// BOSH-29: the creation response waits for the features, in a polling session too.
#[test]
fn the_creation_response_waits_for_features() {
    for (wait, hold) in [(60, 1), (0, 1), (60, 0)] {
        let mut rig =
            Rig::create(settings(), creation(|c| (c.wait, c.hold) = (Some(wait), Some(hold))));
        assert_eq!(rig.until(s(2)), []);
        assert_eq!(rig.connect(HEADER), []);
        assert_eq!(rig.until(s(4)), []);
        assert!(rig.server(FEATURES)[0].body.contains("<stream:features"), "{wait} {hold}");
    }
}

/// BOSH-29, XB-04, XB-07, BOSH-88: at most `min(wait, first_response_timeout)`; the features follow
/// with the next response, which says then what the first could not.
#[test]
fn late_features_come_with_the_next_response() {
    for (wait, due) in [(60, 10_000), (3, 3_000), (0, 10_000)] {
        let mut rig = Rig::create(settings(), creation(|c| c.wait = Some(wait)));
        assert_eq!(rig.until(ms(due - 1)), []);
        let got = rig.until(ms(due));
        assert_eq!((got.len(), got[0].why), (1, Why::Created));
        let text = &got[0].body;
        assert!(text.ends_with(" from='example.org' xmpp:restartlogic='true'/>"), "{text}");
        assert!(!text.contains("stream") && !text.contains("authid"), "{text}");
    }
    let mut rig = Rig::create(settings(), creation(|_| {}));
    rig.until(s(10));
    assert_eq!(rig.at(), 10_000);
    rig.ask(101, body(101));
    assert_eq!(rig.connect(HEADER), []);
    let expected = format!(
        "<body xmlns='http://jabber.org/protocol/httpbind' xmlns:xmpp='urn:xmpp:xbosh' \
         xmlns:stream='http://etherx.jabber.org/streams' authid='q7' xmpp:version='1.0'>\
         {FEATURES_SEEN}</body>"
    );
    told(&rig.server(FEATURES), &[(101, Why::Payload, &expected)]);
}

/// BOSH-42, UP-24: what is sent before the server's stream stands waits for it, up to a bound.
#[test]
fn early_payload_waits_for_the_stream() {
    let mut rig = Rig::create(settings(), creation(|_| {}));
    rig.until(s(10));
    rig.ask(101, body(101).say("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>x</auth>"));
    assert_eq!(rig.upstream(), "");
    rig.connect(HEADER);
    assert_eq!(rig.upstream(), "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>x</auth>");

    let mut rig = Rig::create(settings(), creation(|_| {}));
    rig.until(s(10));
    let got = rig.ask(101, body(101).say(&message(&"x".repeat(65_536))));
    told(&got, &[(101, Why::Terminate, &term("policy-violation"))]);
    assert_eq!(rig.session.ended(), Some(Fault::EarlyData));
}

/// BOSH-30, BOSH-72: no server, no session; the condition comes without a `sid`.
#[test]
fn an_unreachable_server_ends_the_creation() {
    let mut rig = Rig::create(settings(), creation(|_| {}));
    let got = rig.handle(Event::ConnectFailed { fault: Fault::ServerUnreachable });
    told(&got, &[(0, Why::Terminate, &term("remote-connection-failed"))]);
    assert_eq!(rig.session.ended(), Some(Fault::ServerUnreachable));
    assert!(rig.session.is_over() && rig.session.deadline().is_none());
}

/// BOSH-48: a client that leaves before it learns its sid can never come back.
#[test]
fn a_lost_creation_ends_the_session() {
    for connected in [false, true] {
        let mut rig = Rig::create(settings(), creation(|_| {}));
        if connected {
            rig.connect(HEADER);
        }
        assert_eq!(rig.gone(0), []);
        assert_eq!(rig.session.ended(), Some(Fault::ClientLost));
        assert_eq!(rig.upstream(), if connected { FOOTER } else { "" });
    }
    // The response could not be handed over.
    let mut rig = Rig::new();
    rig.gone(0);
    assert_eq!(rig.session.ended(), Some(Fault::ClientLost));
    // But a client that knows the sid is there.
    let mut rig = Rig::new();
    rig.ask(101, body(101));
    rig.gone(0);
    assert_eq!(rig.session.ended(), None);
}

/// BOSH-27: only `ack='1'` asks for acknowledgements.
#[test]
fn only_ack_1_turns_acknowledgements_on() {
    for (ack, on) in [
        (None, false),
        (Some(Ack::Rid(0)), false),
        (Some(Ack::Rid(1)), true),
        (Some(Ack::Rid(2)), false),
        (Some(Ack::Nonsense), false),
    ] {
        let mut rig = Rig::with(|_| {}, Body { ack, ..creation(|_| {}) });
        // Without an `ack` of its own it acknowledges all, if they are on (BOSH-54).
        rig.ask(101, body(101));
        let (id, again) = (1, body(FIRST));
        let got = if on { rig.ask_late(id, again) } else { rig.ask(id, again) };
        assert_eq!(got[0].why == Why::Terminate, on, "{ack:?}");
    }
}

/// BOSH-14: the highest rid there is makes a session, and none is acceptable behind it.
#[test]
fn the_highest_rid_has_no_successor() {
    let highest = 9_007_199_254_740_991;
    let first = Body { rid: highest, ..creation(|_| {}) };
    let mut rig = Rig::with(|_| {}, first.clone());
    let got = rig.ask(1, body(highest + 1));
    told(&got, &[(1, Why::Terminate, NOT_FOUND)]);
    let mut rig = Rig::with(|_| {}, first);
    let got = rig.ask(1, body(u64::MAX));
    told(&got, &[(1, Why::Terminate, NOT_FOUND)]);
}
