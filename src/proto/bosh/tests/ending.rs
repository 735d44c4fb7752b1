//! How sessions end: XEP-0124 §13, §17, XEP-0206 §6, §7.

use super::*;

const UNAVAILABLE: &str = "<presence type='unavailable' xmlns='jabber:client'/>";

fn ending(payload: &str) -> String {
    format!("<body type='terminate' xmlns='http://jabber.org/protocol/httpbind'>{payload}</body>")
}

/// BOSH-64, BOSH-66: example 9.5, to the byte: answered as soon as the server has closed.
#[test]
fn a_terminate_ends_both_sides() {
    let mut rig = Rig::bound();
    rig.ask(101, body(101));
    assert_eq!(rig.ask(102, body(102).terminate().say(UNAVAILABLE)), []);
    assert_eq!(rig.upstream(), UNAVAILABLE.to_owned() + FOOTER);
    assert!(matches!(rig.session.server(), ServerSide::Closing(_)));
    let got = rig.server(FOOTER);
    let end = "<body type='terminate' ack='102' xmlns='http://jabber.org/protocol/httpbind'/>";
    told(&got, &[(101, Why::Terminate, end), (102, Why::Terminate, EMPTY)]);
    told(&rig.ask(103, body(103)), &[(103, Why::Terminate, NOT_FOUND)]);
    assert_eq!(rig.session.ended(), Some(Fault::Closed));
    assert!(matches!(rig.session.server(), ServerSide::Finishing(_)));
    rig.handle(Event::ServerGone);
    assert!(rig.session.is_over());
}

/// BOSH-65: what the server still says goes into the answer; a silent one is not awaited long.
#[test]
fn last_words_go_into_the_answer() {
    let mut rig = Rig::bound();
    rig.ask(101, body(101).terminate());
    assert_eq!(rig.server(UNAVAILABLE), []);
    assert_eq!(rig.until(ms(999)), []);
    told(&rig.until(s(1)), &[(101, Why::Terminate, &ending(UNAVAILABLE))]);
    // What comes later is dropped; the server gets its grace.
    assert_eq!(rig.server(&message("late")), []);
    rig.until(ms(4999));
    assert!(!rig.session.is_over());
    rig.until(s(5));
    assert!(rig.session.is_over());
}

/// BOSH-65: but not as long as another request is open, even if the end comes with them: Strophe
/// reads nothing in a `terminate`, and stanza.js fails.
#[test]
fn last_words_go_before_the_end_if_they_can() {
    for (first, then) in [(UNAVAILABLE.to_owned(), FOOTER), (UNAVAILABLE.to_owned() + FOOTER, "")] {
        let mut rig = Rig::bound();
        rig.ask(101, body(101));
        rig.ask(102, body(102).terminate());
        let mut got = rig.server(&first);
        got.extend(rig.server(then));
        let words = format!(
            "<body ack='102' xmlns='http://jabber.org/protocol/httpbind'>{UNAVAILABLE}</body>"
        );
        let end = "<body type='terminate' xmlns='http://jabber.org/protocol/httpbind'/>";
        told(&got, &[(101, Why::Payload, &words), (102, Why::Terminate, end)]);
    }
}

/// BOSH-64: in rid order: a terminate that comes early waits for its turn.
#[test]
fn a_terminate_waits_for_its_turn() {
    let mut rig = Rig::bound();
    assert_eq!(rig.ask(102, body(102).terminate()), []);
    rig.ask(101, body(101).say(&message("x")));
    assert_eq!(rig.upstream(), message("x") + FOOTER);
    let got = rig.handle(Event::ServerGone);
    let end = "<body type='terminate' ack='102' xmlns='http://jabber.org/protocol/httpbind'/>";
    told(&got, &[(101, Why::Terminate, end), (102, Why::Terminate, EMPTY)]);
}

/// BOSH-45, BOSH-64: while the server is awaited, a repeat takes over, what is new comes too late.
#[test]
fn a_terminate_may_be_repeated() {
    let mut rig = Rig::bound();
    rig.ask(101, body(101).terminate());
    assert_eq!(rig.ask(1, body(101).terminate())[0].why, Why::Recoverable);
    told(&rig.ask(102, body(102)), &[(102, Why::Terminate, NOT_FOUND)]);
    assert_eq!(rig.handle(Event::Drain), []);
    let end = "<body type='terminate' xmlns='http://jabber.org/protocol/httpbind'/>";
    told(&rig.server(FOOTER), &[(1, Why::Terminate, end)]);
    assert_eq!(rig.upstream(), FOOTER);
}

/// BOSH-64: a terminate before the server's stream stands needs nobody else.
#[test]
fn a_terminate_while_connecting_is_answered_at_once() {
    let mut rig = Rig::create(settings(), creation(|_| {}));
    rig.until(s(10));
    let end = "<body type='terminate' xmlns='http://jabber.org/protocol/httpbind'/>";
    told(&rig.ask(101, body(101).terminate()), &[(101, Why::Terminate, end)]);
    assert!(rig.session.is_over() && rig.session.take_request().is_none());
}

/// BOSH-68: what cannot be understood ends the session that it names.
#[test]
fn garbage_ends_the_session() {
    let mut rig = Rig::bound();
    rig.ask(101, body(101));
    let id = RequestId(1);
    let got = rig.handle(Event::Unreadable { id, rid: None, fault: Fault::BadXml, limit: None });
    told(&got, &[(101, Why::Terminate, OTHER_REQUEST), (1, Why::Terminate, &term("bad-request"))]);
    assert_eq!((rig.upstream(), rig.session.ended()), (FOOTER.into(), Some(Fault::BadXml)));
    // And a session that has ended stays as it is.
    let got = rig.handle(Event::Unreadable { id, rid: None, fault: Fault::BadXml, limit: None });
    told(&got, &[(1, Why::Terminate, &term("bad-request"))]);
}

/// BOSH-71: a session over a limit of size.
#[test]
fn what_is_too_big_is_a_policy_violation() {
    let mut rig = Rig::bound();
    let event =
        Event::Unreadable { id: RequestId(1), rid: Some(101), fault: Fault::XmlLimit, limit: None };
    told(&rig.handle(event), &[(1, Why::Terminate, &term("policy-violation"))]);
}

/// SEC-17: what the gateway answers itself is not kept beyond the limits of what the server says,
/// and the one that was reached is remembered; later ones are consequences.
#[test]
fn a_full_queue_ends_who_adds_to_it() {
    let compress = "<compress xmlns='http://jabber.org/protocol/compress'/>";
    let said = message(&"x".repeat(300));
    let change = |settings: &mut Settings| {
        (settings.unauthenticated_bytes, settings.pending_bytes) = (200, 250);
    };
    for (mut rig, limit) in [
        (Rig::with(change, creation(|_| {})), Limit::UnauthenticatedBytes),
        (Rig::bound_with(change, creation(|_| {})), Limit::PendingBytes),
        (
            Rig::bound_with(|settings| settings.pending_stanzas = 1, creation(|_| {})),
            Limit::PendingStanzas,
        ),
    ] {
        rig.feed(&said);
        assert_eq!(rig.session.limit(), None);
        rig.ask(101, body(101).say(compress));
        let ended = (rig.session.ended(), rig.session.limit());
        assert_eq!(ended, (Some(Fault::XmlLimit), Some(limit)));
        let (id, limit_of_another) = (RequestId(1), Some(Limit::Depth));
        let fault = Fault::XmlLimit;
        rig.handle(Event::Unreadable { id, rid: None, fault, limit: limit_of_another });
        assert_eq!(rig.session.limit(), Some(limit));
    }
}

/// BOSH-70: too high, too old, badly keyed, too late: the same bytes.
#[test]
fn all_that_is_not_found_looks_alike() {
    let mut seen = Vec::new();
    for request in [body(110), body(98), body(101).key("x"), body(101)] {
        let mut rig = Rig::bound();
        if request.keys.is_none() && request.rid == 101 {
            rig.until(s(75));
        }
        rig.server(&message("secret"));
        let is_old = request.rid == 98;
        seen.extend(if is_old { rig.ask_late(1, request) } else { rig.ask(1, request) });
    }
    assert_eq!(seen.len(), 4);
    assert!(seen.iter().all(|got| got.body == NOT_FOUND && got.status == 200), "{seen:?}");
}

/// BOSH-72: a lost server, with what had come before in the same body.
#[test]
fn a_lost_server_is_told_at_once() {
    let mut rig = Rig::bound();
    rig.ask(101, body(101));
    rig.feed(&message("x"));
    let got = rig.handle(Event::ServerGone);
    let expected = "<body type='terminate' condition='remote-connection-failed' \
         xmlns='http://jabber.org/protocol/httpbind'>";
    told(&got, &[(101, Why::Terminate, &format!("{expected}{}</body>", message("x")))]);
    assert_eq!(rig.session.ended(), Some(Fault::ServerLost));
    assert!(rig.session.is_over() && rig.upstream().is_empty());
}

/// BOSH-72, UP-36, UP-25: a stalled server, XML that proves nothing, bytes that are none.
#[test]
fn broken_servers_fail_the_connection() {
    let condition = term("remote-connection-failed");
    let mut rig = Rig::bound();
    rig.ask(101, body(101));
    told(&rig.handle(Event::ServerStalled), &[(101, Why::Terminate, &condition)]);
    assert_eq!(
        (rig.session.ended(), rig.session.server()),
        (Some(Fault::ServerStalled), ServerSide::Gone)
    );
    for broken in [
        "</message>",
        "<message></iq>",
        "text",
        "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>",
    ] {
        let mut rig = Rig::bound();
        rig.ask(101, body(101));
        told(&rig.server(broken), &[(101, Why::Terminate, &condition)]);
        assert_eq!(rig.session.ended(), Some(Fault::ServerBadXml), "{broken}");
        assert_eq!(rig.upstream(), FOOTER);
        assert!(matches!(rig.session.server(), ServerSide::Finishing(_)));
    }
    let mut rig = Rig::new();
    rig.ask(101, body(101));
    rig.server("<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>");
    rig.ask(102, body(102));
    told(&rig.server("\u{1}\u{2}"), &[(102, Why::Terminate, &condition)]);
    assert_eq!(rig.session.ended(), Some(Fault::ServerSecurityLayer));
    let mut rig = Rig::bound();
    rig.ask(101, body(101));
    told(&rig.handle(Event::ServerBroken), &[(101, Why::Terminate, &condition)]);
}

/// BOSH-73, XB-14, UP-34, BOSH-76, BOSH-88: example 9.8, to the byte.
#[test]
fn a_stream_error_is_handed_on() {
    let mut rig = Rig::bound();
    rig.ask(101, body(101));
    rig.ask(102, body(102));
    let got = rig.server(&format!(
        "<message xmlns='jabber:client' from='ali@example.org/p'><body>last words</body></message>\
         <stream:error><conflict xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>\
         <text xmlns='urn:ietf:params:xml:ns:xmpp-streams' xml:lang='en'>Replaced</text>\
         </stream:error>{FOOTER}"
    ));
    let expected = "<body type='terminate' condition='remote-stream-error' \
         xmlns='http://jabber.org/protocol/httpbind' \
         xmlns:stream='http://etherx.jabber.org/streams'>\
         <message xmlns='jabber:client' from='ali@example.org/p'><body>last words</body></message>\
         <stream:error xmlns:stream=\"http://etherx.jabber.org/streams\">\
         <conflict xmlns=\"urn:ietf:params:xml:ns:xmpp-streams\"/>\
         <text xmlns=\"urn:ietf:params:xml:ns:xmpp-streams\" xml:lang=\"en\">Replaced</text>\
         </stream:error></body>";
    told(&got, &[(101, Why::Terminate, expected), (102, Why::Terminate, OTHER_REQUEST)]);
    assert_eq!((rig.upstream(), rig.session.ended()), (FOOTER.into(), Some(Fault::ServerError)));
    assert!(matches!(rig.session.server(), ServerSide::Closing(_)));
}

/// BOSH-73: a stream end without an error is `term()`, with what waited.
#[test]
fn a_closed_stream_is_no_error() {
    let mut rig = Rig::bound();
    rig.ask(101, body(101));
    let got = rig.server(&(message("x") + FOOTER));
    told(&got, &[(101, Why::Terminate, &ending(&message("x")))]);
    assert_eq!((rig.upstream(), rig.session.ended()), (FOOTER.into(), Some(Fault::ServerClosed)));
    // The last response holds all that is left.
    let mut rig = Rig::bound();
    rig.feed(&message("x").repeat(300));
    rig.step(Event::Request { id: RequestId(101), body: body(101) });
    let got = rig.handle(Event::ServerGone);
    assert_eq!(got[0].body.matches("<message").count(), 300);
}

/// BOSH-74, WS-39: the process stops: the client is told, the stream ends; with stream management
/// it does not.
#[test]
fn a_drain_is_told() {
    for sm in [false, true] {
        let mut rig = Rig::bound();
        if sm {
            rig.ask(101, body(101));
            rig.server("<enabled xmlns='urn:xmpp:sm:3' id='x' resume='true'/>");
        }
        rig.ask(102, body(102).ack(1));
        rig.ask(if sm { 103 } else { 101 }, body(if sm { 103 } else { 101 }));
        rig.feed(&message("x"));
        let got = rig.handle(Event::Drain);
        assert!(got[0].body.contains("condition='system-shutdown'"), "{}", got[0].body);
        assert!(got[0].body.contains(&message("x")));
        assert_eq!(got[1].body, OTHER_REQUEST);
        assert_eq!(rig.upstream(), if sm { "" } else { FOOTER });
        assert_eq!(rig.session.ended(), Some(Fault::Drain));
    }
}

/// Where many reasons share a condition, the one that it was stands beside it; not where they have
/// to look alike (BOSH-70), nor where a stream error says it.
#[test]
fn the_reason_is_told_with_the_condition() {
    let reason = |end: &dyn Fn(&mut Rig) -> Vec<Got>| {
        let mut rig = Rig::bound();
        rig.ask(101, body(101));
        let got = end(&mut rig);
        let word = got.first().and_then(|got| got.reason.clone());
        assert!(got.iter().skip(1).all(|got| got.reason.is_none()), "other-request says nothing");
        (rig.session.ended().map(Fault::label), word)
    };
    let lost = reason(&|rig| rig.handle(Event::ServerGone));
    assert_eq!(lost, (Some("server_lost"), Some("server_lost".to_owned())));
    let stalled = reason(&|rig| {
        rig.feed(&message("x"));
        rig.handle(Event::ServerStalled)
    });
    assert_eq!(stalled, (Some("server_stalled"), Some("server_stalled".to_owned())));
    let drained = reason(&|rig| rig.handle(Event::Drain));
    assert_eq!(drained, (Some("drain"), Some("drain".to_owned())));
    let far = reason(&|rig| rig.ask(150, body(150)));
    assert_eq!(far, (Some("bad_rid"), None));
    let kicked = reason(&|rig| rig.handle(Event::Kick));
    assert_eq!(kicked, (Some("admin_kick"), None));
    // One that nobody was there to be told, too.
    let mut rig = Rig::bound();
    rig.handle(Event::ServerGone);
    assert_eq!(rig.ask(101, body(101))[0].reason.as_deref(), Some("server_lost"));
}

/// An operator's kick is told by a stream error behind what was said before it, to a request that
/// waits or to the next one.
#[test]
fn a_kick_is_told() {
    for held in [true, false] {
        let mut rig = Rig::bound();
        if held {
            rig.ask(101, body(101));
            rig.feed(&message("x"));
        }
        let mut got = rig.handle(Event::Kick);
        if !held {
            assert!(got.is_empty());
            got = rig.ask(101, body(101));
        }
        let text = &got[0].body;
        assert!(text.contains("condition='remote-stream-error'"), "{text}");
        assert_eq!(text.contains(&message("x")), held, "{text}");
        assert!(text.contains("<policy-violation") && text.contains(">admin_kick: "), "{text}");
        assert_eq!(rig.upstream(), FOOTER);
        assert_eq!(rig.session.ended(), Some(Fault::AdminKick));
        assert!(rig.handle(Event::Kick).is_empty());
    }
}

/// BOSH-77: an end that nobody could be told of waits for the next request, once.
#[test]
fn a_condition_waits_for_the_next_request() {
    let mut rig = Rig::bound();
    rig.handle(Event::ServerGone);
    assert!(rig.session.is_zombie() && !rig.session.is_over());
    assert_eq!(rig.session.deadline(), Some(rig.now + s(75)));
    // A rid that is not acceptable learns nothing, and changes nothing.
    told(&rig.ask(1, body(110)), &[(1, Why::Terminate, NOT_FOUND)]);
    let got = rig.ask(101, body(101).say(&message("up")));
    told(&got, &[(101, Why::Terminate, &term("remote-connection-failed"))]);
    told(&rig.ask(102, body(102)), &[(102, Why::Terminate, NOT_FOUND)]);
    assert_eq!(rig.upstream(), "");
    // For a moment it may turn out that nobody heard it.
    assert!(!rig.session.is_over());
    rig.until(s(1));
    assert!(rig.session.is_over());
}

/// BOSH-77: not for ever; and all three kinds of end.
#[test]
fn a_condition_does_not_wait_for_ever() {
    let mut rig = Rig::bound();
    rig.handle(Event::Drain);
    assert!(!rig.session.is_zombie(), "the server's grace is still running");
    rig.until(s(5));
    assert!(rig.session.is_zombie());
    rig.until(s(74));
    assert!(rig.session.is_zombie());
    rig.until(s(75));
    assert!(rig.session.is_over());
    let mut rig = Rig::bound();
    rig.server(FOOTER);
    let end = "<body type='terminate' xmlns='http://jabber.org/protocol/httpbind'/>";
    told(&rig.ask(101, body(101)), &[(101, Why::Terminate, end)]);
    let mut rig = Rig::bound();
    rig.server(
        "<stream:error><conflict xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>",
    );
    let got = rig.ask(101, body(101));
    assert!(got[0].body.contains("remote-stream-error") && got[0].body.contains("<conflict"));
}

/// BOSH-77: a dead rid may come for it, an answered one gets what it got, and keys are judged.
#[test]
fn the_dead_are_judged_as_the_living() {
    let mut rig = Rig::bound();
    rig.ask(101, body(101));
    rig.server(&message("x"));
    rig.ask(102, body(102));
    rig.gone(102);
    rig.handle(Event::ServerGone);
    told(&rig.ask(1, body(101)), &[(1, Why::Replay, &with(&message("x")))]);
    told(&rig.ask(2, body(102)), &[(2, Why::Terminate, &term("remote-connection-failed"))]);

    let key = "a932def6e5d361adc571134e2dee5e78cd53d771";
    let mut rig =
        Rig::with(|_| {}, creation(|_| {}).newkey("3d3e77fc2e73912de6215365bd7ff8e6ec560d23"));
    rig.handle(Event::ServerGone);
    for wrong in
        [body(101), body(101).key("93c81f9001ac4d3aea60e3fe622c88f858e8d0b3"), body(102).key(key)]
    {
        told(&rig.ask(1, wrong), &[(1, Why::Terminate, NOT_FOUND)]);
    }
    assert_eq!(rig.ask(2, body(101).key(key))[0].body, term("remote-connection-failed"));
}

/// BOSH-77, BOSH-72: what waited comes with the condition, if it is not too much to keep.
#[test]
fn the_dead_keep_little() {
    let mut rig = Rig::bound();
    rig.server(&message("x"));
    rig.handle(Event::ServerGone);
    assert!(rig.ask(101, body(101))[0].body.contains(&message("x")));
    assert_eq!(rig.counts.undelivered, 0);
    let mut rig = Rig::bound();
    rig.ask(101, body(101));
    rig.server(&message(&"y".repeat(200_000)));
    rig.server(&message(&"x".repeat(100_000)));
    rig.handle(Event::ServerGone);
    assert!(rig.session.held_bytes() < 2000, "{}", rig.session.held_bytes());
    assert_eq!(rig.counts.undelivered, 1);
    told(&rig.ask(102, body(102)), &[(102, Why::Terminate, &term("remote-connection-failed"))]);
}

/// BOSH-77: an end of the client's own making is not kept.
#[test]
fn other_ends_are_not_remembered() {
    let mut rig = Rig::new();
    rig.ask(101, body(101));
    rig.gone(101);
    rig.until(s(60));
    assert_eq!(rig.session.ended(), Some(Fault::Unauthenticated));
    told(&rig.ask(102, body(102)), &[(102, Why::Terminate, NOT_FOUND)]);
}

/// BOSH-79, BOSH-66: a legacy session is told by codes; other conditions stay bodies.
#[test]
fn a_legacy_session_is_told_by_codes() {
    let legacy = || Rig::bound_with(|_| {}, creation(|creation| creation.ver = None));
    let told =
        |got: &[Got]| got.iter().map(|got| (got.status, got.body.clone())).collect::<Vec<_>>();
    let nothing = |status| (status, String::new());
    let mut rig = legacy();
    rig.ask(101, body(101));
    assert_eq!(told(&rig.ask(110, body(110))), [(200, OTHER_REQUEST.into()), nothing(404)]);
    assert_eq!(told(&rig.ask(102, body(102))), [nothing(404)]);
    assert_eq!(told(&legacy().ask(101, body(101).pause(999))), [nothing(403)]);
    assert_eq!(told(&legacy().ask(101, body(101).restart())), [nothing(400)]);
    let mut rig = legacy();
    rig.ask(101, body(101));
    assert_eq!(told(&rig.handle(Event::ServerGone)), [(200, term("remote-connection-failed"))]);
}

/// XB-15: of what can no longer be delivered, messages and requests are answered; XB-16: then the
/// stream ends.
#[test]
fn undeliverable_stanzas_are_answered() {
    let from = "xmlns='jabber:client' from='ali@example.org/&apos;p' to='ayse@example.org/k'";
    let queue = format!(
        "<message {from} id='m1' type='chat'><body>x</body></message>\
         <iq {from} id='i1' type='get'><q xmlns='q'/></iq>\
         <presence {from}/>"
    );
    let mut rig = Rig::bound();
    rig.server(&queue);
    rig.until(s(75));
    assert_eq!(
        rig.upstream(),
        "<message type='error' to='ali@example.org/&apos;p' id='m1'><error type='wait'>\
         <recipient-unavailable xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></message>\
         <iq type='error' to='ali@example.org/&apos;p' id='i1'><error type='cancel'>\
         <service-unavailable xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>\
         </stream:stream>"
    );
    assert_eq!((rig.counts.bounced, rig.counts.undelivered), (2, 3));
}

/// XB-15: never for what must not be answered.
#[test]
fn some_stanzas_are_never_answered() {
    let mut rig = Rig::bound();
    for silent in [
        "<message xmlns='jabber:client' from='a@b' type='error'/>",
        "<message xmlns='jabber:client' from='a@b' type='groupchat'/>",
        "<message xmlns='jabber:client' from='a@b' type='headline'/>",
        "<message xmlns='jabber:client' from='a@b'><received xmlns='urn:xmpp:carbons:2'/></message>",
        "<message xmlns='jabber:client' from='a@b'><sent xmlns='urn:xmpp:carbons:2'/></message>",
        "<iq xmlns='jabber:client' from='a@b' type='result' id='1'/>",
        "<iq xmlns='jabber:client' from='a@b' type='error' id='1'/>",
        "<presence xmlns='jabber:client' from='a@b' type='subscribe'/>",
        "<r xmlns='urn:xmpp:sm:3'/>",
    ] {
        rig.server(silent);
    }
    rig.until(s(75));
    assert_eq!((rig.upstream(), rig.counts.bounced), (FOOTER.into(), 0));
}

/// XB-16, SM-04, SM-06: with stream management the server keeps the session and what waited.
#[test]
fn with_stream_management_the_server_keeps_the_session() {
    let mut rig = Rig::bound();
    rig.ask(101, body(101));
    rig.server("<enabled xmlns='urn:xmpp:sm:3' id='x' resume='true'/>");
    rig.server(&message("x"));
    rig.until(s(75));
    assert_eq!((rig.upstream(), rig.counts.bounced, rig.counts.undelivered), (String::new(), 0, 1));
    assert!(matches!(rig.session.server(), ServerSide::Finishing(_)));
    assert_eq!(rig.session.ended(), Some(Fault::Inactive));
    rig.until(s(80));
    assert!(rig.session.is_over());
}

/// BOSH-76: the request that caused the end gets the condition, every other `other-request`, parked
/// ones too.
#[test]
fn one_request_is_told_why() {
    let mut rig = Rig::bound_with(
        |settings| settings.hold_max = 2,
        creation(|creation| creation.hold = Some(2)),
    );
    rig.ask(101, body(101));
    rig.ask(102, body(102));
    rig.ask(104, body(104));
    let got = rig.ask_late(1, body(50));
    told(
        &got,
        &[
            (1, Why::Terminate, NOT_FOUND),
            (101, Why::Terminate, OTHER_REQUEST),
            (102, Why::Terminate, OTHER_REQUEST),
            (104, Why::Terminate, OTHER_REQUEST),
        ],
    );
}

/// SEC-17: an ended session keeps nothing.
#[test]
fn the_end_gives_everything_back() {
    let mut rig = Rig::bound();
    rig.ask(101, body(101));
    rig.server(&message(&"x".repeat(50_000)));
    rig.server(&message(&"x".repeat(50_000)));
    rig.until(s(75));
    assert!(rig.session.held_bytes() < 1000, "{}", rig.session.held_bytes());
}

/// SEC-17: a session that holds too much gives up all of it, and its client is told a stream error:
/// by a request that is open, or by the next one.
#[test]
fn too_much_memory_is_told_and_given_back() {
    let error = "><stream:error xmlns:stream=\"http://etherx.jabber.org/streams\">\
                 <resource-constraint xmlns=\"urn:ietf:params:xml:ns:xmpp-streams\"/>";
    let overloaded = |server_waits| Event::Overloaded { server_waits };
    let mut rig = Rig::bound();
    rig.ask(102, body(102).say(&message(&"x".repeat(50_000))));
    rig.server(&message(&"y".repeat(200_000)));
    rig.feed(&format!("<message xmlns='jabber:client'><body>{}", "x".repeat(100_000)));
    rig.ask(101, body(101));
    rig.server(&message("z"));
    let got = rig.handle(overloaded(false));
    assert!(got.iter().all(|got| !got.body.contains("yyy")), "{got:?}");
    assert!(rig.session.held_bytes() < 2000, "{}", rig.session.held_bytes());
    assert_eq!(rig.session.ended(), Some(Fault::Memory));
    assert!(rig.upstream().ends_with(FOOTER));

    let mut rig = Rig::bound();
    rig.server(&message(&"y".repeat(200_000)));
    assert_eq!(rig.handle(overloaded(false)), []);
    // The server is told of the message that nobody will get, and of the end.
    let upstream = rig.upstream();
    assert!(upstream.contains("recipient-unavailable") && upstream.ends_with(FOOTER), "{upstream}");
    assert!(rig.session.held_bytes() < 2000, "{}", rig.session.held_bytes());
    let got = rig.ask(101, body(101));
    assert!(got[0].body.contains("remote-stream-error") && got[0].body.contains(error), "{got:?}");
    assert!(!got[0].body.contains("yyy"));

    let mut rig = Rig::bound();
    rig.ask(101, body(101));
    let got = rig.handle(overloaded(true));
    assert!(got[0].body.contains("remote-stream-error") && got[0].body.contains(error), "{got:?}");
    // Behind half an element nothing can be said.
    assert_eq!((rig.upstream(), rig.session.server()), (String::new(), ServerSide::Gone));
    assert!(rig.session.is_over());
}

/// SEC-17: even the dead keep nothing then.
#[test]
fn the_dead_give_up_what_they_keep() {
    let mut rig = Rig::bound();
    rig.server(&message(&"y".repeat(50_000)));
    rig.handle(Event::ServerGone);
    assert!(rig.session.is_zombie() && rig.session.held_bytes() > 50_000);
    rig.handle(Event::Overloaded { server_waits: false });
    assert!(rig.session.is_over() && rig.session.held_bytes() < 2000);
    assert_eq!(rig.session.ended(), Some(Fault::ServerLost));
}

/// BOSH-77: the condition is for a client that can hear it.
#[test]
fn last_words_survive_a_request_that_is_gone() {
    let mut rig = Rig::bound();
    rig.server(&message("hi"));
    rig.handle(Event::ServerGone);
    assert!(rig.session.is_zombie());
    // Posted on a connection that broke right away; the client repeats it on another.
    rig.step(Event::Request { id: RequestId(1), body: body(101) });
    rig.out.responses.retain(|respond| respond.id.0 != 1);
    rig.step(Event::Gone { id: RequestId(1) });
    rig.flush();
    let got = rig.ask(2, body(101));
    assert!(got[0].body.contains("remote-connection-failed"), "{got:?}");
    assert!(got[0].body.contains("hi"), "{got:?}");
}

/// BOSH-77: the dead keep little.
#[test]
fn a_dead_session_keeps_no_half_element() {
    let mut rig = Rig::bound();
    rig.server(&format!("<message xmlns='jabber:client'><body>{}", "x".repeat(900_000)));
    rig.handle(Event::ServerGone);
    assert!(rig.session.is_zombie());
    let held = rig.session.held_bytes();
    assert!(held < 200_000, "{held}");
}
