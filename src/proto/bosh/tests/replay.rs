//! Broken connections: XEP-0124 §14.3.

use super::*;

const RECOVERABLE: &str = "<body type='error' xmlns='http://jabber.org/protocol/httpbind'/>";

/// BOSH-43, BOSH-44, BOSH-47: example 9.4: the same bytes again, at once, and nothing upstream.
#[test]
fn an_answered_rid_gets_the_same_bytes() {
    let mut rig = Rig::bound();
    rig.ask(101, body(101).say(&message("up")));
    rig.upstream();
    let first = rig.server(&message("hi"));
    told(&first, &[(101, Why::Payload, &with(&message("hi")))]);
    let again = rig.ask(1, body(101).say(&message("something else")));
    told(&again, &[(1, Why::Replay, &first[0].body)]);
    assert_eq!((rig.upstream(), rig.counts.repeats), (String::new(), 1));
    for rid in 102..105 {
        rig.ask(rid, body(rid));
        rig.server(&message("x"));
    }
    told(&rig.ask_late(2, body(102)), &[(2, Why::Terminate, NOT_FOUND)]);
    assert_eq!(rig.session.ended(), Some(Fault::BadRid));
}

/// BOSH-43: the last `max(requests, 2)` answers are kept.
#[test]
fn as_many_are_kept_as_may_be_open() {
    for (hold, kept) in [(0, 2), (1, 2), (2, 3), (3, 4)] {
        for (rid, fits) in [(110 - kept + 1, true), (110 - kept, false)] {
            let mut rig = Rig::bound_with(
                |settings| {
                    settings.hold_max = 3;
                    settings.polling = ms(0);
                },
                creation(|creation| creation.hold = Some(hold)),
            );
            for rid in 101..=110 {
                rig.ask(rid, body(rid));
                rig.server(&message(&rid.to_string()));
            }
            let got = if fits { rig.ask(1, body(rid)) } else { rig.ask_late(1, body(rid)) };
            assert_eq!(got[0].why == Why::Replay, fits, "hold {hold}, rid {rid}");
        }
    }
}

/// BOSH-47: a rid that is too old is no fault if its connection ends at once: it is the copy of a
/// request that was cut, read after the client had repeated it and gone on.
#[test]
fn a_copy_that_comes_late_is_no_fault() {
    let mut rig = Rig::bound();
    for rid in 101..106 {
        rig.ask(rid, body(rid));
        rig.server(&message("x"));
    }
    assert_eq!(rig.ask(1, body(101).say(&message("again"))), []);
    assert_eq!(rig.gone(1), []);
    assert_eq!(rig.until(s(1)), []);
    assert_eq!((rig.session.ended(), rig.upstream()), (None, String::new()));
    // One of which nobody knows yet does not cover for another.
    assert_eq!(rig.ask(2, body(101)), []);
    told(&rig.ask(3, body(102)), &[(2, Why::Terminate, NOT_FOUND), (3, Why::Terminate, NOT_FOUND)]);
    assert_eq!(rig.session.ended(), Some(Fault::BadRid));
}

/// BOSH-45, BOSH-78: the older request is told that it may be repeated, the newer one is held.
#[test]
fn a_repeat_of_an_open_rid_takes_its_place() {
    let mut rig = Rig::bound();
    rig.ask(101, body(101).say(&message("once")));
    rig.now += s(50);
    told(&rig.ask(1, body(101).say(&message("once"))), &[(101, Why::Recoverable, RECOVERABLE)]);
    assert_eq!(rig.upstream(), message("once"));
    // Its `wait` is its own (BOSH-38).
    assert_eq!(rig.until(s(60)), []);
    told(&rig.server(&message("x")), &[(1, Why::Payload, &with(&message("x")))]);
}

/// BOSH-46: ten repeats are borne.
#[test]
fn the_eleventh_repeat_ends_the_session() {
    let mut rig = Rig::bound();
    rig.ask(101, body(101));
    for n in 1..=10 {
        let got = rig.ask(n, body(101));
        assert_eq!(got[0].why, Why::Recoverable, "{n}");
    }
    let got = rig.ask(11, body(101));
    told(
        &got,
        &[(10, Why::Terminate, OTHER_REQUEST), (11, Why::Terminate, &term("policy-violation"))],
    );
    assert_eq!(rig.session.ended(), Some(Fault::Repeated));
}

/// BOSH-48, BOSH-50: nothing is given to a dead request, and its rid counts as answered once a
/// later one came.
#[test]
fn nothing_is_given_to_the_dead() {
    let mut rig = Rig::bound();
    rig.ask(101, body(101));
    assert_eq!(rig.gone(101), []);
    assert_eq!(rig.server(&message("x")), []);
    told(&rig.ask(102, body(102)), &[(102, Why::Payload, &with(&message("x")))]);
    told(&rig.ask(1, body(101)), &[(1, Why::Replay, &acked(102, ""))]);
}

/// BOSH-49: a repeat of a dead rid, before any later one, takes over the hold.
#[test]
fn a_dead_rid_may_come_back() {
    let mut rig = Rig::bound();
    rig.ask(101, body(101).say(&message("once")));
    rig.gone(101);
    assert_eq!(rig.ask(1, body(101).say(&message("once"))), []);
    assert_eq!(rig.upstream(), message("once"));
    told(&rig.server(&message("x")), &[(1, Why::Payload, &with(&message("x")))]);
}

/// BOSH-48, BOSH-57: a dead request does not keep the session alive.
#[test]
fn the_dead_do_not_count_as_open() {
    let mut rig = Rig::bound();
    rig.ask(101, body(101));
    rig.until(s(10));
    rig.gone(101);
    assert_eq!(rig.until(s(84)), []);
    assert_eq!(rig.session.ended(), None);
    rig.until(s(85));
    assert_eq!(rig.session.ended(), Some(Fault::Inactive));
}

/// BOSH-45, BOSH-49: whatever died, each rid has one slot: 101 and 102 die, both come again.
#[test]
fn the_whole_window_may_die_and_come_back() {
    let mut rig = Rig::bound();
    rig.ask(101, body(101).say(&message("a")));
    rig.ask(102, body(102).say(&message("b")));
    rig.gone(102);
    rig.gone(101);
    told(&rig.ask(1, body(101).say(&message("a"))), &[(1, Why::Replay, &acked(102, ""))]);
    assert_eq!(rig.ask(2, body(102).say(&message("b"))), []);
    assert_eq!(rig.upstream(), message("a") + &message("b"));
    told(&rig.server(&message("x")), &[(2, Why::Payload, &with(&message("x")))]);
}

/// BOSH-50: what could not be handed over at all waits again, in its place.
#[test]
fn a_response_that_never_left_is_taken_back() {
    let mut rig = Rig::bound();
    rig.ask(101, body(101));
    rig.server(&message("1"));
    assert_eq!(rig.gone(101), []);
    assert_eq!(rig.server(&message("2")), []);
    let both = with(&(message("1") + &message("2")));
    told(&rig.ask(102, body(102)), &[(102, Why::Payload, &both)]);
    told(&rig.ask(1, body(101)), &[(1, Why::Replay, &acked(102, ""))]);
    // A later one is there already.
    let mut rig = Rig::bound();
    rig.ask(101, body(101));
    rig.ask(102, body(102));
    rig.server(&message("1"));
    told(&rig.gone(101), &[(102, Why::Payload, &with(&message("1")))]);
    told(&rig.ask(1, body(101)), &[(1, Why::Replay, &acked(102, ""))]);
    // The repeat of the same rid gets it.
    let mut rig = Rig::bound();
    rig.ask(101, body(101));
    rig.server(&message("1"));
    rig.gone(101);
    told(&rig.ask(1, body(101)), &[(1, Why::Payload, &with(&message("1")))]);
}

/// The first stanza behind the one that binds the resource is told from others, also where the
/// response that it was in never left.
#[test]
fn the_first_stanza_is_told() {
    let mut rig = Rig::bound();
    let firsts = |rig: &mut Rig, id: u64, rid: u64| {
        rig.step(Event::Request { id: RequestId(id), body: body(rid) });
        rig.session.handle(Event::Flush, &mut rig.out, rig.now);
        let responses = std::mem::take(&mut rig.out.responses);
        rig.open.retain(|open| responses.iter().all(|respond| respond.id.0 != *open));
        responses.iter().map(|respond| respond.reply.first).collect::<Vec<_>>()
    };
    rig.feed("<a xmlns='urn:xmpp:sm:3' h='0'/>");
    assert_eq!(firsts(&mut rig, 101, 101), [false], "no stanza");
    rig.feed(&(message("1") + &message("2")));
    assert_eq!(firsts(&mut rig, 102, 102), [true]);
    assert_eq!(rig.gone(102), []);
    assert_eq!(firsts(&mut rig, 103, 103), [true], "it waits again");
    rig.feed(&message("3"));
    assert_eq!(firsts(&mut rig, 104, 104), [false]);
    assert_eq!(firsts(&mut rig, 1, 103), [false], "repeated");
}

/// BOSH-50: once it may have left, it belongs to its rid for good.
#[test]
fn what_may_have_left_is_never_taken_back() {
    let mut rig = Rig::bound();
    rig.ask(101, body(101));
    rig.server(&message("1"));
    // It was repeated, so another copy is under way.
    rig.ask(1, body(101));
    rig.gone(101);
    assert_eq!(rig.ask(102, body(102)), []);
    // A later payload was given to another.
    rig.server(&message("2"));
    rig.gone(101);
    rig.gone(1);
    assert_eq!(rig.ask(103, body(103)), []);
    told(&rig.ask(3, body(102)), &[(3, Why::Replay, &with(&message("2")))]);
}

/// BOSH-50, XB-04: features that never left are the first again.
#[test]
fn first_features_that_never_left_are_first_again() {
    let mut rig = Rig::create(settings(), creation(|_| {}));
    rig.until(s(10));
    rig.ask(101, body(101));
    rig.connect(HEADER);
    let first = rig.server(FEATURES);
    rig.gone(101);
    let again = rig.ask(102, body(102));
    assert!(again[0].body.contains(" authid='q7' xmpp:version='1.0'>"), "{}", again[0].body);
    assert_eq!(first[0].body, again[0].body);
}

/// BOSH-48: what is gone already and what never was does no harm.
#[test]
fn strangers_may_be_gone() {
    let mut rig = Rig::bound();
    assert_eq!(rig.gone(4711), []);
    rig.ask(101, body(101));
    rig.gone(101);
    assert_eq!(rig.gone(101), []);
    assert_eq!(rig.session.ended(), None);
}

/// BOSH-46: more repeats than can be counted do no harm while the end is under way.
#[test]
fn repeats_while_terminating_are_counted_without_end() {
    let mut rig = Rig::bound();
    rig.ask(101, body(101));
    rig.ask(102, body(102).terminate());
    for n in 0..300 {
        rig.ask(1000 + n, body(101));
    }
}
