//! Holding, waiting, inactivity, pauses, overactivity: XEP-0124 §8, §10 to §12.

use super::*;

/// BOSH-37: the oldest is answered when one more comes; an empty answer may wait a little.
#[test]
fn at_most_hold_requests_are_held() {
    let mut rig = Rig::bound();
    assert_eq!(rig.ask(101, body(101)), []);
    rig.until(s(1));
    assert_eq!(rig.ask(102, body(102)), []);
    assert_eq!(rig.until(ms(1009)), []);
    told(&rig.until(ms(1010)), &[(101, Why::HoldExceeded, &acked(102, ""))]);
    assert_eq!(rig.until(s(56) - ms(1)), []);
    told(&rig.until(s(56)), &[(102, Why::WaitElapsed, EMPTY)]);
}

/// BOSH-37: data that comes meanwhile rides on the forced answer, so that an iq and its result
/// cost one request.
#[test]
fn data_rides_on_the_forced_answer() {
    let mut rig = Rig::bound();
    rig.ask(101, body(101));
    rig.ask(102, body(102).say("<iq type='get' id='1'/>"));
    rig.now += ms(3);
    let result = "<iq xmlns='jabber:client' type='result' id='1'/>";
    told(&rig.server(result), &[(101, Why::Payload, &acked(102, result))]);
    assert_eq!(rig.until(s(1)), []);
    assert_eq!(rig.open, [102]);
}

/// BOSH-37: data is never delayed for it.
#[test]
fn waiting_data_goes_at_once() {
    let mut rig = Rig::bound();
    rig.server(&message("x"));
    told(&rig.ask(101, body(101)), &[(101, Why::Payload, &with(&message("x")))]);
}

/// BOSH-37: as many as `hold` says; BOSH-35: the oldest first.
#[test]
fn more_may_be_held_if_asked() {
    let mut rig = Rig::bound_with(
        |settings| settings.hold_max = 3,
        creation(|creation| creation.hold = Some(3)),
    );
    for rid in 101..104 {
        assert_eq!(rig.ask(rid, body(rid)), []);
    }
    assert_eq!(rig.until(s(10)), []);
    told(&rig.server(&message("x")), &[(101, Why::Payload, &acked(103, &message("x")))]);
    rig.ask(104, body(104));
    rig.ask(105, body(105));
    told(&rig.until(s(11)), &[(102, Why::HoldExceeded, &acked(105, ""))]);
}

/// BOSH-38: not before `wait`, and not after it.
#[test]
fn a_held_request_is_answered_after_wait() {
    let mut rig = Rig::bound_with(|_| {}, creation(|creation| creation.wait = Some(5)));
    rig.until(s(1));
    rig.ask(101, body(101));
    assert_eq!(rig.until(ms(5999)), []);
    told(&rig.until(s(6)), &[(101, Why::WaitElapsed, EMPTY)]);
}

/// BOSH-38, BOSH-35: an older rid that was repeated is answered with the later one that is due.
#[test]
fn a_later_rid_that_is_due_answers_those_before_it() {
    let mut rig = Rig::bound_with(
        |settings| settings.hold_max = 2,
        creation(|creation| (creation.hold, creation.wait) = (Some(2), Some(20))),
    );
    rig.ask(101, body(101));
    rig.ask(102, body(102));
    rig.until(s(10));
    rig.ask(1, body(101));
    told(
        &rig.until(s(20)),
        &[(1, Why::WaitElapsed, &acked(102, "")), (102, Why::WaitElapsed, EMPTY)],
    );
}

/// BOSH-39: everything of one wake-up shares a body, and goes at once.
#[test]
fn one_wake_up_is_one_body() {
    let mut rig = Rig::bound();
    rig.ask(101, body(101));
    let five: String = (0..5).map(|n| message(&n.to_string())).collect();
    rig.feed(&five[..100]);
    rig.feed(&five[100..]);
    assert_eq!(rig.out.responses, []);
    told(&rig.flush(), &[(101, Why::Payload, &with(&five))]);
    assert_eq!(rig.tally.to_client.elements, [5, 0, 0, 0]);
}

/// BOSH-40: what comes between requests leaves with the next, in order.
#[test]
fn what_waits_leaves_with_the_next_request() {
    let mut rig = Rig::bound();
    rig.server(&message("1"));
    rig.now += s(3);
    rig.server(&message("2"));
    let both = with(&(message("1") + &message("2")));
    told(&rig.ask(101, body(101)), &[(101, Why::Payload, &both)]);
}

/// BOSH-41: a body holds so many payloads; the rest follows.
#[test]
fn a_body_is_bounded() {
    let mut rig = Rig::bound();
    let many: String = (0..300).map(|n| message(&n.to_string())).collect();
    rig.server(&many);
    let got = rig.ask(101, body(101));
    assert_eq!(got[0].body.matches("<message").count(), 256);
    let got = rig.ask(102, body(102));
    assert_eq!(got[0].body.matches("<message").count(), 44);
}

/// BOSH-41, SEC-17: bytes are bounded too; a larger single element passes; the server is not read
/// while there is no room, and no 30-s stall ends the session, but inactivity does.
#[test]
fn a_slow_client_stops_the_server() {
    let mut rig = Rig::bound_with(|settings| settings.pending_bytes = 1000, creation(|_| {}));
    rig.ask(101, body(101));
    rig.server(&message(&"x".repeat(2000)));
    assert!(rig.session.wants_server());
    let flood: String = (0..100).map(|_| message("0123456789")).collect();
    let mut input = flood.as_bytes();
    rig.session.server_bytes(&mut rig.scratch, &mut input, &mut rig.out, rig.now);
    assert!(!input.is_empty() && !rig.session.wants_server());
    assert!(rig.session.held_bytes() < 6000, "{}", rig.session.held_bytes());
    assert_eq!(rig.until(s(74)), []);
    let got = rig.ask(102, body(102));
    assert!((900..1200).contains(&got[0].body.len()), "{}", got[0].body.len());
    assert!(rig.session.wants_server());
    rig.until(s(148));
    assert_eq!(rig.session.ended(), None);
    rig.until(s(149));
    assert_eq!(rig.session.ended(), Some(Fault::Inactive));
}

/// SEC-17: nothing more is given while four of the largest answers are on their way that nobody takes,
/// whether the client acknowledges or not; what was not given waits, and so does the server.
#[test]
fn answers_that_nobody_takes_stop_the_session() {
    for acks in [false, true] {
        let change = |settings: &mut Settings| settings.pending_bytes = 1000;
        let first = if acks { creation(|_| {}).ack(1) } else { creation(|_| {}) };
        let mut rig = Rig::bound_with(change, first);
        let next = |rid: u64| if acks { body(rid).ack(rid - 1) } else { body(rid) };
        rig.session.untaken(3500);
        rig.server(&message(&"x".repeat(500)));
        let got = rig.ask(101, next(101));
        assert!(got[0].body.contains("xxx"), "one that is small enough: {got:?}");
        rig.session.untaken(4000);
        rig.server(&message(&"y".repeat(2000)));
        assert_eq!(rig.ask(102, next(102)), []);
        assert!(!rig.session.wants_server());
        rig.session.untaken(3999);
        let got = rig.flush();
        assert!(got[0].id == 102 && got[0].body.contains("yyy"), "{got:?}");
        assert!(rig.session.wants_server());
    }
}

/// SEC-17: stanzas are bounded as bytes are; UP-24: less before the login.
#[test]
fn stanzas_and_logins_are_bounded() {
    let mut rig = Rig::bound_with(|settings| settings.pending_stanzas = 3, creation(|_| {}));
    rig.feed(&message("x").repeat(3));
    assert!(!rig.session.wants_server());
    let mut rig = Rig::new();
    rig.feed(&message(&"x".repeat(65_536)));
    assert!(!rig.session.wants_server());
}

/// BOSH-57: without an open request for `inactivity` the session ends, and nobody is told; answers
/// and replays begin it anew.
#[test]
fn inactivity_ends_silently() {
    let mut rig = Rig::bound();
    rig.until(s(60));
    rig.ask(101, body(101));
    rig.until(s(115));
    assert_eq!(rig.session.ended(), None);
    rig.until(s(180));
    told(&rig.ask(1, body(101)), &[(1, Why::Replay, EMPTY)]);
    rig.until(s(254));
    assert_eq!(rig.session.ended(), None);
    assert_eq!(rig.until(s(255)), []);
    assert_eq!(rig.session.ended(), Some(Fault::Inactive));
    told(&rig.ask(102, body(102)), &[(102, Why::Terminate, NOT_FOUND)]);
}

/// BOSH-57: a parked request keeps the session, too: its HTTP connection is open.
#[test]
fn a_parked_request_is_open() {
    let mut rig = Rig::bound_with(|settings| settings.inactivity = s(20), creation(|_| {}));
    rig.ask(102, body(102));
    rig.until(s(80));
    assert_eq!(rig.session.ended(), None);
}

/// BOSH-58: example 9.6.
#[test]
fn a_pause_answers_everything_and_lengthens_inactivity() {
    let mut rig = Rig::bound();
    rig.ask(101, body(101));
    let got = rig.ask(102, body(102).pause(100).say(&message("up")));
    told(&got, &[(101, Why::Pause, &acked(102, "")), (102, Why::Pause, EMPTY)]);
    assert_eq!(rig.upstream(), message("up"));
    assert_eq!(rig.server(&message("x")), []);
    rig.until(s(99));
    assert_eq!(rig.session.ended(), None);
    told(&rig.ask(103, body(103)), &[(103, Why::Payload, &with(&message("x")))]);
    rig.until(s(174));
    assert_eq!(rig.session.ended(), Some(Fault::Inactive));
    let mut rig = Rig::bound();
    rig.ask(101, body(101).pause(20));
    rig.until(s(20));
    assert_eq!(rig.session.ended(), Some(Fault::Inactive));
}

/// BOSH-58: the answer to a pause holds no payload even if one waits; an older request takes it.
#[test]
fn a_pause_is_answered_without_payload() {
    let mut rig = Rig::bound();
    rig.server(&message("x"));
    told(&rig.ask(101, body(101).pause(60)), &[(101, Why::Pause, EMPTY)]);
    told(&rig.ask(102, body(102)), &[(102, Why::Payload, &with(&message("x")))]);
    rig.ask(103, body(103));
    rig.feed(&message("y"));
    let got = rig.ask(104, body(104).pause(60));
    told(&got, &[(103, Why::Payload, &acked(104, &message("y"))), (104, Why::Pause, EMPTY)]);
}

/// BOSH-43, BOSH-58: an answer to a pause does not push out another that is kept; repeated, it is
/// empty again, and the pause goes on.
#[test]
fn pauses_are_not_counted_among_the_kept() {
    let mut rig = Rig::bound();
    for rid in [101, 102] {
        rig.ask(rid, body(rid));
        rig.server(&message(&rid.to_string()));
    }
    rig.ask(103, body(103).pause(100));
    assert_eq!(rig.ask(1, body(101))[0].why, Why::Replay);
    rig.ask(104, body(104).pause(100));
    told(&rig.ask(2, body(104).pause(100)), &[(2, Why::Replay, EMPTY)]);
    rig.until(s(99));
    assert_eq!(rig.session.ended(), None);
    // But they are bounded.
    for rid in 105..200 {
        rig.ask(rid, body(rid).pause(100));
    }
    assert_eq!(rig.ask_late(3, body(190).pause(100))[0].body, NOT_FOUND);
}

/// BOSH-59: a pause beyond `maxpause`, or none.
#[test]
fn a_bad_pause_ends_the_session() {
    for pause in [Ok(121), Ok(0), Err(NotANumber)] {
        let mut rig = Rig::bound();
        let request = Body { pause: Some(pause), ..body(101) }.say(&message("x"));
        told(&rig.ask(101, request), &[(101, Why::Terminate, &term("policy-violation"))]);
        assert_eq!((rig.upstream(), rig.session.ended()), (FOOTER.into(), Some(Fault::BadPause)));
    }
    let mut rig = Rig::bound();
    told(&rig.ask(101, body(101).pause(120)), &[(101, Why::Pause, EMPTY)]);
}

fn polling(wait: u32, hold: u32) -> Rig {
    Rig::bound_with(|_| {}, creation(|c| (c.wait, c.hold) = (Some(wait), Some(hold))))
}

/// BOSH-60: in a polling session every request is answered at once; what the server says to it
/// rides on the answer (BOSH-37).
#[test]
fn polls_are_answered_at_once() {
    for (wait, hold) in [(0, 1), (60, 0)] {
        let mut rig = polling(wait, hold);
        rig.ask(101, body(101));
        told(&rig.until(ms(10)), &[(101, Why::WaitElapsed, EMPTY)]);
        rig.until(s(6));
        rig.ask(102, body(102).say("<iq type='get' id='1'/>"));
        let result = "<iq xmlns='jabber:client' type='result' id='1'/>";
        told(&rig.server(result), &[(102, Why::Payload, &with(result))]);
    }
}

/// BOSH-63: two empty polls within `polling`, the first of them answered with nothing.
#[test]
fn hasty_polls_end_the_session() {
    let mut rig = polling(60, 0);
    rig.ask(101, body(101));
    rig.until(s(1));
    told(&rig.ask(102, body(102)), &[(102, Why::Terminate, &term("policy-violation"))]);
    assert_eq!(rig.session.ended(), Some(Fault::Overactive));
    assert_eq!(rig.counts.overactive, 1);
}

/// BOSH-63: half a second of tolerance; an answer with payload, a payload, and repeats are fine.
#[test]
fn other_polls_are_fine() {
    let mut rig = polling(60, 0);
    rig.ask(101, body(101));
    rig.until(ms(4500));
    rig.ask(102, body(102));
    rig.until(s(5));
    rig.ask(103, body(103).say(&message("x")));
    rig.until(s(6));
    rig.ask(104, body(104));
    rig.server(&message("y"));
    rig.until(s(7));
    rig.ask(105, body(105));
    rig.until(s(8));
    rig.ask(1, body(105));
    assert_eq!(rig.session.ended(), None);
}

/// BOSH-62: counted, or with `strict_overactivity` the end.
#[test]
fn overactivity_is_counted_or_ends() {
    let hasty = |strict, second: Body| {
        let mut rig =
            Rig::bound_with(|settings| settings.strict_overactivity = strict, creation(|_| {}));
        rig.until(s(10));
        rig.ask(101, body(101));
        rig.until(s(11));
        let got = rig.ask(102, second);
        (rig.session.ended(), rig.counts.overactive, got.len())
    };
    assert_eq!(hasty(true, body(102)), (Some(Fault::Overactive), 1, 2));
    assert_eq!(hasty(false, body(102)), (None, 1, 0));
    assert_eq!(hasty(true, body(102).say(&message("x"))), (None, 0, 0));
    assert_eq!(hasty(true, body(102).pause(9)), (None, 0, 2));
    // The first was answered.
    let mut rig = Rig::bound_with(|settings| settings.strict_overactivity = true, creation(|_| {}));
    rig.until(s(10));
    rig.ask(101, body(101));
    rig.server(&message("x"));
    rig.ask(102, body(102));
    assert_eq!((rig.session.ended(), rig.counts.overactive), (None, 0));
}

/// UP-24: a session that does not log in ends after its time.
#[test]
fn a_session_without_a_login_ends() {
    let mut rig = Rig::new();
    rig.ask(101, body(101));
    rig.until(s(55));
    rig.ask(102, body(102));
    assert_eq!(rig.until(ms(59_999)), []);
    told(&rig.until(s(60)), &[(102, Why::Terminate, &term("policy-violation"))]);
    assert_eq!(rig.session.ended(), Some(Fault::Unauthenticated));
    let mut rig = Rig::bound();
    rig.ask(101, body(101));
    rig.until(s(70));
    assert_eq!(rig.session.ended(), None);
}

/// UP-10: blanks to the server, if configured, on a stream that stands.
#[test]
fn blanks_keep_the_upstream_alive() {
    let mut rig = Rig::with(|settings| settings.whitespace_keepalive = s(10), creation(|_| {}));
    rig.ask(101, body(101));
    rig.until(s(11));
    assert_eq!(rig.upstream(), "");
    rig.server("<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>");
    rig.ask(102, body(102).restart());
    rig.server(HEADER);
    rig.server("<stream:features/>");
    rig.ask(103, body(103));
    rig.upstream();
    rig.until(s(32));
    assert_eq!(rig.upstream(), "  ");
}

/// BOSH-58: a pause that came twice at once is a pause.
#[test]
fn a_pause_repeated_at_once_is_one() {
    let mut rig = Rig::bound();
    rig.step(Event::Request { id: RequestId(1), body: body(101).pause(120) });
    rig.step(Event::Request { id: RequestId(2), body: body(101).pause(120) });
    rig.flush();
    rig.until(s(100));
    assert_eq!(rig.session.ended(), None);
}

/// SEC-17: a burst leaves no memory behind.
#[test]
fn a_burst_leaves_no_memory() {
    let mut rig = Rig::bound();
    let burst = message("x").repeat(999);
    let mut rid = 101;
    for _ in 0..3 {
        rig.server(&burst);
        for _ in 0..4 {
            rig.ask(rid, body(rid));
            rid += 1;
        }
        // Replayed responses are pushed out by small ones.
        for _ in 0..4 {
            rig.ask(rid, body(rid));
            rig.server(&message("y"));
            rid += 1;
        }
    }
    let held = rig.session.held_bytes();
    assert!(held < 2500, "{held}");
}
