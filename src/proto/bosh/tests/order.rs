//! Order, window, keys and acknowledgements: XEP-0124 §9, §11, §14, §15.

use super::*;

fn say(rid: u64, text: &str) -> Body {
    body(rid).say(&message(text))
}

/// BOSH-32, BOSH-33, BOSH-35, BOSH-42, BOSH-53, BOSH-34, BOSH-76: example 9.3, to the byte.
#[test]
fn requests_out_of_order_are_taken_in_order() {
    let mut rig = Rig::bound_with(|settings| settings.linger = ms(0), creation(|_| {}));
    assert_eq!(rig.ask(101, body(101)), []);
    assert_eq!(rig.ask(103, say(103, "second")), []);
    assert_eq!(rig.upstream(), "");
    let got = rig.ask(102, say(102, "first"));
    assert_eq!(rig.upstream(), message("first") + &message("second"));
    told(
        &got,
        &[(101, Why::HoldExceeded, &acked(103, "")), (102, Why::HoldExceeded, &acked(103, ""))],
    );
    let got = rig.ask(106, body(106));
    told(&got, &[(103, Why::Terminate, OTHER_REQUEST), (106, Why::Terminate, NOT_FOUND)]);
    assert_eq!(rig.upstream(), FOOTER);
    assert_eq!(rig.session.ended(), Some(Fault::BadRid));
}

/// BOSH-33: the window is `requests` wide, and one wider for a pause or a terminate.
#[test]
fn the_window_ends_where_it_should() {
    for (rid, late, fits) in [
        (102, body(102), true),
        (103, body(103), false),
        (103, body(103).terminate(), true),
        (103, body(103).pause(60), true),
        (104, body(104).terminate(), false),
        (u64::MAX, body(u64::MAX), false),
    ] {
        let mut rig = Rig::bound();
        let got = rig.ask(1, late);
        let ended = rig.session.ended();
        assert_eq!((got.is_empty(), ended.is_none()), (fits, fits), "{rid}");
        if !fits {
            told(&got, &[(1, Why::Terminate, NOT_FOUND)]);
        }
    }
}

/// BOSH-35: data is not given to a parked request, nor to anything behind an open one.
#[test]
fn a_parked_request_gets_nothing() {
    let mut rig = Rig::bound();
    rig.ask(102, body(102));
    assert_eq!(rig.server(&message("x")), []);
    let got = rig.ask(101, body(101));
    told(&got, &[(101, Why::Payload, &acked(102, &message("x")))]);
    told(&rig.server(&message("y")), &[(102, Why::Payload, &with(&message("y")))]);
}

/// BOSH-33: the body of a parked request counts even if its connection is gone.
#[test]
fn a_parked_body_survives_its_connection() {
    let mut rig = Rig::bound();
    rig.ask(102, say(102, "second"));
    rig.gone(102);
    assert_eq!(rig.ask(101, say(101, "first")), []);
    assert_eq!(rig.upstream(), message("first") + &message("second"));
    // 102 is dead: what comes is for 101.
    told(&rig.server(&message("x")), &[(101, Why::Payload, &acked(102, &message("x")))]);
    assert_eq!(rig.ask(1, say(102, "again")), []);
    assert_eq!(rig.upstream(), "");
    told(&rig.server(&message("y")), &[(1, Why::Payload, &with(&message("y")))]);
}

/// BOSH-36: a gap ends the session 30 s after `wait`; the parked request's own `wait` does not
/// answer it.
#[test]
fn a_gap_does_not_stay_open() {
    let mut rig = Rig::bound();
    rig.ask(102, say(102, "x"));
    assert_eq!(rig.until(ms(84_999)), []);
    let got = rig.until(s(85));
    told(&got, &[(102, Why::Terminate, NOT_FOUND)]);
    assert_eq!(rig.session.ended(), Some(Fault::Gap));
    // A repeat does not keep the gap open.
    let mut rig = Rig::bound();
    rig.ask(102, say(102, "x"));
    rig.until(s(60));
    told(
        &rig.ask(1, say(102, "x")),
        &[(
            102,
            Why::Recoverable,
            "<body type='error' xmlns='http://jabber.org/protocol/httpbind'/>",
        )],
    );
    told(&rig.until(s(85)), &[(1, Why::Terminate, NOT_FOUND)]);
}

/// BOSH-61: more requests at a time than `requests` are outside the window, or answered first.
#[test]
fn there_are_never_more_than_requests() {
    let mut rig = Rig::bound();
    for rid in 101..140 {
        let got = rig.ask(rid, say(rid, "x"));
        assert!(rig.open.len() <= 2, "{:?}", rig.open);
        if rid > 102 {
            told(&got, &[(rid - 2, Why::HoldExceeded, &acked(rid, ""))]);
        }
    }
}

/// BOSH-28, BOSH-53: `ack` is the highest rid without gaps, unless that is the rid answered.
#[test]
fn ack_is_said_where_it_tells_something() {
    let mut rig = Rig::bound();
    rig.ask(101, body(101));
    told(&rig.server(&message("a")), &[(101, Why::Payload, &with(&message("a")))]);
    rig.ask(102, body(102));
    rig.ask(103, body(103));
    told(&rig.server(&message("b")), &[(102, Why::Payload, &acked(103, &message("b")))]);
    told(&rig.server(&message("c")), &[(103, Why::Payload, &with(&message("c")))]);
}

fn acking() -> Rig {
    let mut rig = Rig::bound_with(|_| {}, creation(|_| {}).ack(1));
    // Nothing is kept but the answer to 101.
    rig.ask(101, body(101));
    rig.server(&message("101"));
    rig
}

/// BOSH-52: what is acknowledged leaves the buffer.
#[test]
fn acknowledged_responses_are_forgotten() {
    let mut rig = acking();
    let got = rig.ask(1, body(101));
    told(&got, &[(1, Why::Replay, &with(&message("101")))]);
    rig.ask(102, body(102).ack(101));
    let got = rig.ask_late(2, body(101));
    told(&got, &[(2, Why::Terminate, NOT_FOUND), (102, Why::Terminate, OTHER_REQUEST)]);
}

/// BOSH-52: what is not acknowledged stays, beyond the number that is kept without acks (BOSH-43).
#[test]
fn unacknowledged_responses_are_kept() {
    let mut rig = acking();
    for rid in 102..120 {
        rig.ask(rid, body(rid).ack(100));
        rig.server(&message(&rid.to_string()));
    }
    for rid in 101..120 {
        let got = rig.ask(rid + 1000, body(rid));
        assert_eq!(got[0].why, Why::Replay, "{rid}");
        assert!(got[0].body.contains(&message(&rid.to_string())), "{rid}");
    }
}

/// BOSH-54: no `ack` confirms everything below.
#[test]
fn no_ack_confirms_all() {
    let mut rig = acking();
    rig.ask(102, body(102));
    let got = rig.ask_late(1, body(101));
    assert_eq!(got[0].body, NOT_FOUND);
}

/// BOSH-54: what was answered only after the request was sent is not confirmed by it.
#[test]
fn a_request_confirms_nothing_it_could_not_know() {
    let mut rig = acking();
    rig.ask(102, body(102));
    rig.ask(103, body(103).ack(101));
    // Without an `ack`, but it came before 102 was answered by its own coming.
    let got = rig.ask(104, body(104));
    told(&got, &[(102, Why::HoldExceeded, &acked(104, ""))]);
    told(&rig.ask(1, body(102)), &[(1, Why::Replay, &acked(104, ""))]);
}

/// BOSH-55: a response that seems to be missed is reported, once it is a second old.
#[test]
fn missed_responses_are_reported() {
    let mut rig = acking();
    rig.now += s(2);
    let got = rig.ask(102, body(102).ack(100));
    told(
        &got,
        &[(
            102,
            Why::Report,
            "<body report='101' time='2000' xmlns='http://jabber.org/protocol/httpbind'/>",
        )],
    );
    let got = rig.ask(1, body(101));
    told(&got, &[(1, Why::Replay, &with(&message("101")))]);
    // Once: who does not ask for it again is not answered at once for ever.
    rig.now += s(2);
    assert_eq!(rig.ask(103, body(103).ack(100)), []);

    let mut rig = acking();
    rig.now += ms(999);
    assert_eq!(rig.ask(102, body(102).ack(100)), []);
}

/// BOSH-55, BOSH-35: a report is the next response, but not before those of lower rids.
#[test]
fn a_report_waits_for_its_turn() {
    let mut rig = Rig::bound_with(|settings| settings.hold_max = 2, {
        creation(|creation| creation.hold = Some(2)).ack(1)
    });
    rig.ask(101, body(101));
    rig.server(&message("101"));
    rig.ask(102, body(102).ack(101));
    rig.ask(103, body(103).ack(101));
    rig.server(&message("102"));
    rig.now += s(3);
    let got = rig.ask(104, body(104).ack(101));
    assert_eq!(
        got.iter().map(|got| (got.id, got.why)).collect::<Vec<_>>(),
        [(103, Why::WaitElapsed), (104, Why::Report)]
    );
    assert!(got[1].body.starts_with("<body report='102' time='3000' xmlns"));
}

/// BOSH-56: an `ack` that cannot be is counted, and confirms nothing.
#[test]
fn impossible_acks_are_ignored() {
    let mut rig = acking();
    assert_eq!(rig.ask(102, body(102).ack(999)), []);
    rig.ask(103, Body { ack: Some(Ack::Nonsense), ..body(103) });
    assert_eq!(rig.counts.bad_acks, 2);
    assert_eq!(rig.ask(1, body(101))[0].why, Why::Replay);
}

/// BOSH-27: without acknowledgements `ack` means nothing.
#[test]
fn without_acks_ack_means_nothing() {
    let mut rig = Rig::bound();
    rig.ask(101, body(101));
    rig.server(&message("x"));
    rig.now += s(2);
    assert_eq!(rig.ask(102, body(102).ack(50)), []);
    assert_eq!(rig.ask(1, body(101))[0].why, Why::Replay);
    assert_eq!(rig.counts.bad_acks, 0);
}

/// BOSH-43: more than is kept ends the session; nothing unacknowledged is forgotten.
#[test]
fn a_full_buffer_ends_the_session() {
    let mut rig = acking();
    let mut rid = 101;
    let last = loop {
        rid += 1;
        rig.ask(rid, body(rid).ack(100));
        let got = rig.server(&message("x"));
        if rig.session.ended().is_some() {
            break got;
        }
        assert!(rid < 200, "it never ended");
    };
    assert_eq!(rid - 101, 32);
    assert_eq!(last, []);
    assert_eq!(rig.session.ended(), Some(Fault::ReplayFull));
}

/// BOSH-43: bytes count too. What has no room waits for the next acknowledgement.
#[test]
fn unacknowledged_bytes_are_bounded() {
    let mut rig = Rig::bound_with(|settings| settings.replay_bytes = 2000, creation(|_| {}).ack(1));
    let big = message(&"x".repeat(1200));
    rig.ask(101, body(101));
    rig.ask(102, body(102).ack(100));
    rig.feed(&big);
    let got = rig.server(&big);
    assert_eq!(got.iter().map(|got| got.id).collect::<Vec<_>>(), [101]);
    // 102 is held: it could not carry the second, and then another.
    let got = rig.ask(103, body(103).ack(101));
    assert_eq!(got.iter().map(|got| (got.id, got.why)).collect::<Vec<_>>(), [(102, Why::Payload)]);
    assert!(got[0].body.contains(&big));
}

const K: [&str; 4] = [
    "93c81f9001ac4d3aea60e3fe622c88f858e8d0b3",
    "01fd4dc44bbee522ded8987ee4fde07e35c9daf4",
    "a932def6e5d361adc571134e2dee5e78cd53d771",
    "3d3e77fc2e73912de6215365bd7ff8e6ec560d23",
];
const M: [&str; 2] =
    ["dde49264d302d1ce4dc03e2e471a107cdb2b9275", "513e28785e616d84f227475485d18c8f77e7a02b"];

fn keyed() -> Rig {
    Rig::with(|_| {}, creation(|_| {}).newkey(K[3]))
}

/// BOSH-80, BOSH-81, BOSH-83: example 9.7.
#[test]
fn a_key_sequence_is_followed() {
    let mut rig = keyed();
    rig.ask(101, body(101).key(K[2]));
    rig.ask(102, body(102).key(K[1]));
    rig.ask(103, body(103).key(K[0]).newkey(M[1]));
    rig.ask(104, body(104).key(M[0]));
    told(&rig.server(&message("x")), &[(103, Why::Payload, &acked(104, &message("x")))]);
    rig.server(&message("y"));
    let got = rig.ask(1, body(104).key(M[0]));
    told(&got, &[(1, Why::Replay, &with(&message("y")))]);
    rig.upstream();
    let got = rig.ask(105, say(105, "unkeyed"));
    told(&got, &[(105, Why::Terminate, NOT_FOUND)]);
    assert_eq!((rig.upstream(), rig.session.ended()), (FOOTER.into(), Some(Fault::BadKey)));
}

/// BOSH-81: wrong, missing or unexpected, and nothing of the request is forwarded.
#[test]
fn a_wrong_key_ends_the_session() {
    for wrong in [say(101, "x").key(K[1]), say(101, "x"), say(101, "x").newkey(K[2])] {
        let mut rig = keyed();
        told(&rig.ask(101, wrong), &[(101, Why::Terminate, NOT_FOUND)]);
        assert_eq!(rig.upstream(), FOOTER);
    }
    for unexpected in [say(101, "x").key(K[1]), say(101, "x").newkey(K[1])] {
        let mut rig = Rig::new();
        told(&rig.ask(101, unexpected), &[(101, Why::Terminate, NOT_FOUND)]);
        assert_eq!(rig.upstream(), FOOTER);
    }
}

/// BOSH-82: keys are judged in rid order.
#[test]
fn keys_are_judged_in_order() {
    let mut rig = keyed();
    rig.ask(102, say(102, "second").key(K[1]));
    rig.ask(101, say(101, "first").key(K[2]));
    assert_eq!(rig.upstream(), message("first") + &message("second"));
    assert_eq!(rig.session.ended(), None);
    // A parked request with a wrong key fails at its turn; the one before it has passed.
    let mut rig = keyed();
    assert_eq!(rig.ask(102, say(102, "second").key(K[2])), []);
    let got = rig.ask(101, say(101, "first").key(K[2]));
    told(&got, &[(101, Why::Terminate, OTHER_REQUEST), (102, Why::Terminate, NOT_FOUND)]);
    assert_eq!(rig.upstream(), message("first") + FOOTER);
}

/// BOSH-83: a repeat shows the keys of the first time, whether open, parked, dead or answered.
#[test]
fn repeats_show_their_keys() {
    let states: [fn(&mut Rig); 3] = [
        |_| {},
        |rig| {
            rig.gone(101);
        },
        |rig| {
            rig.server(&message("x"));
        },
    ];
    for state in states {
        for (again, fits) in
            [(body(101).key(K[2]), true), (body(101).key(K[1]), false), (body(101), false)]
        {
            let mut rig = keyed();
            rig.ask(101, body(101).key(K[2]));
            state(&mut rig);
            rig.ask(1, again);
            assert_eq!(rig.session.ended().is_none(), fits);
        }
    }
    let mut rig = keyed();
    rig.ask(102, body(102).key(K[1]));
    let got = rig.ask(1, body(102).key(K[0]));
    told(&got, &[(102, Why::Terminate, OTHER_REQUEST), (1, Why::Terminate, NOT_FOUND)]);
}

/// BOSH-39, BOSH-43: with acks, too, a large element leaves at once.
#[test]
fn a_large_element_leaves_at_once_with_acks() {
    let mut rig = Rig::bound_with(|_| {}, Body { ack: Some(Ack::Rid(1)), ..creation(|_| {}) });
    rig.ask(101, body(101).ack(100));
    // A stanza of the client; the held request is answered for it, and is not acknowledged yet.
    rig.ask(102, body(102).ack(100).say(&message("q")));
    rig.until(ms(50));
    let got = rig.server(&message(&"x".repeat((1 << 20) - 100)));
    assert_eq!(got.len(), 1, "held back though a request is open");
}
