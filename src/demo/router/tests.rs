//! What tests from outside would wait minutes for, or fill the machine for.

use super::*;
use xmpp_parsers::ns;

fn bare(name: &str) -> BareJid {
    stanza::own(&format!("{name}@localhost"))
}

/// A session that is available, and its link.
fn online(router: &mut Router, name: &str) -> (SessionId, Rc<Link>) {
    let link = Rc::<Link>::default();
    assert!(router.login(&bare(name), false));
    let (id, _) = router.bind(&bare(name), None, Rc::clone(&link)).expect("a session");
    router.stanza(id, stanza::stanza("presence", &[]));
    (id, link)
}

fn chat(to: &str, body: &str) -> Element {
    let mut message = stanza::stanza("message", &[("type", "chat"), ("to", to)]);
    let mut inner = Element::bare("body", ns::JABBER_CLIENT);
    inner.append_text(body);
    message.append_child(inner);
    message
}

/// The bodies of the messages that wait for a session.
fn bodies(router: &mut Router, id: SessionId, link: &Rc<Link>) -> Vec<String> {
    let all = std::iter::from_fn(|| router.pop(id, link));
    all.filter_map(|element| Some(element.get_child("body", ns::JABBER_CLIENT)?.text())).collect()
}

/// XEP-0198 §5: a session that nobody resumes ends, and what it has not acknowledged goes to the
/// account's next.
#[test]
fn what_a_lost_session_has_not_seen_waits_for_the_next() {
    let mut router = Router::new(Settings::default());
    let (alice, _) = online(&mut router, "alice");
    let (bob, link) = online(&mut router, "bob");
    router.enable(bob, true).expect("not yet enabled");
    router.stanza(alice, chat("bob@localhost", "written"));
    assert_eq!(bodies(&mut router, bob, &link), ["written"]);
    router.lost(bob, &link);
    router.stanza(alice, chat("bob@localhost", "queued"));
    for _ in 1..limits::RESUME_SECONDS {
        router.tick();
    }
    assert!(router.sessions.contains_key(&bob), "too early");
    router.tick();
    assert!(!router.sessions.contains_key(&bob), "too late");
    let (bob, link) = online(&mut router, "bob");
    assert_eq!(bodies(&mut router, bob, &link), ["written", "queued"]);
    assert_eq!(router.offline_weight, 0);
}

#[test]
fn a_session_without_stream_management_goes_with_its_connection() {
    let mut router = Router::new(Settings::default());
    let (bob, link) = online(&mut router, "bob");
    router.lost(bob, &Rc::default());
    assert!(router.sessions.contains_key(&bob), "another connection was lost");
    router.abandon(None, &link);
    assert!(router.sessions.is_empty());
}

/// A client that takes nothing is cut off; what it was sent is kept as far as there is room, and
/// its sender hears of the rest.
#[test]
fn who_takes_nothing_is_cut_off() {
    let mut router = Router::new(Settings::default());
    let (alice, alice_link) = online(&mut router, "alice");
    let (_, link) = online(&mut router, "bob");
    let body = "x".repeat(100 * 1024);
    let mut sent = 0;
    while link.end().is_none() {
        router.stanza(alice, chat("bob@localhost", &body));
        sent += 1;
        assert!(sent < 1000, "no bound");
    }
    assert_eq!(link.end(), Some(End::Overflow));
    assert!(router.offline_weight <= limits::OFFLINE_BYTES);
    let kept = router.accounts[&bare("bob")].offline.len();
    let errors = std::iter::from_fn(|| router.pop(alice, &alice_link))
        .filter(|element| element.attr("type") == Some("error"))
        .count();
    // The one that was too much is lost with the session it was given to.
    assert!((sent - 1..=sent).contains(&(kept + errors)), "{sent} sent, {kept} + {errors}");
}

/// Contacts elsewhere are names in a roster and no more.
#[test]
fn a_contact_elsewhere_makes_no_account() {
    let mut router = Router::new(Settings::default());
    let (alice, link) = online(&mut router, "alice");
    for subscription in ["none", "remove"] {
        let mut item = Element::bare("item", ns::ROSTER);
        stanza::set(&mut item, "jid", "bob@example.org");
        stanza::set(&mut item, "subscription", subscription);
        let mut query = Element::bare("query", ns::ROSTER);
        query.append_child(item);
        let mut iq = stanza::stanza("iq", &[("type", "set"), ("id", subscription)]);
        iq.append_child(query);
        router.stanza(alice, iq);
    }
    let answers: Vec<_> = std::iter::from_fn(|| router.pop(alice, &link))
        .filter(|element| element.name() == "iq")
        .filter_map(|element| element.attr("type").map(str::to_owned))
        .collect();
    assert_eq!(answers, ["result", "result"]);
    assert_eq!(router.accounts.len(), 1);
}

/// Who has no session makes room for who comes, first of all who has only been written to.
#[test]
fn accounts_are_bounded() {
    let mut router = Router::new(Settings { roster_of_everyone: true });
    let (alice, _) = online(&mut router, "alice");
    router.stanza(alice, chat("nobody@localhost", "hello"));
    for number in 1..limits::ACCOUNTS {
        assert!(router.login(&bare(&format!("user{number}")), false), "{number}");
    }
    assert_eq!(router.offline_weight, 0, "what waited for nobody is gone with it");
    let roster = router.accounts[&bare("alice")].roster.watchers();
    assert_eq!(roster.len(), limits::EVERYONE);
    assert!(router.login(&bare("late"), false), "nobody else is there");
    assert_eq!(router.accounts.len(), limits::ACCOUNTS);
    assert!(router.accounts.contains_key(&bare("alice")), "who is there stays");
    let gone = (1..limits::ACCOUNTS).map(|number| bare(&format!("user{number}")));
    let gone = gone.filter(|jid| !router.accounts.contains_key(jid)).collect::<Vec<_>>();
    assert_eq!(gone.len(), 1);
    router.bind(&gone[0], None, Rc::default()).expect("room for who had just logged in");

    let mut full = Router::new(Settings::default());
    for number in 0..limits::ACCOUNTS {
        online(&mut full, &format!("user{number}"));
    }
    assert!(!full.login(&bare("late"), false));
    assert!(full.login(&bare("user0"), false), "who is known may always come");
}

/// RFC 4505: who never gets as far as a session leaves nothing, either.
#[test]
fn a_temporary_account_goes_with_its_connection() {
    let mut router = Router::new(Settings::default());
    for (name, temporary) in [("someone", true), ("alice", false)] {
        assert!(router.login(&bare(name), temporary));
        router.abandon(Some(&bare(name)), &Rc::default());
        assert_eq!(router.accounts.contains_key(&bare(name)), !temporary, "{name}");
    }
}

/// RFC 4505: nothing is left of the anonymous.
#[test]
fn a_temporary_account_goes_with_its_last_session() {
    let mut router = Router::new(Settings { roster_of_everyone: true });
    let link = Rc::<Link>::default();
    assert!(router.login(&bare("someone"), true));
    let (id, _) = router.bind(&bare("someone"), None, Rc::clone(&link)).expect("a session");
    online(&mut router, "alice");
    let contacts = router.accounts[&bare("alice")].roster.watchers();
    assert_eq!(contacts, [stanza::own(ECHO)], "the anonymous are nobody's contacts");
    router.close(id, &link);
    assert!(!router.accounts.contains_key(&bare("someone")));
}

/// RFC 6120 §7.5: one account has an end of resources.
#[test]
fn sessions_of_an_account_are_bounded() {
    let mut router = Router::new(Settings::default());
    for _ in 0..limits::RESOURCES {
        online(&mut router, "alice");
    }
    let refused = router.bind(&bare("alice"), None, Rc::default());
    assert_eq!(refused.err(), Some(DefinedCondition::ResourceConstraint));
}
