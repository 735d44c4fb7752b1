//! One account's roster: contacts, and who may see whose presence (RFC 6121 §2, §3). Pure state;
//! `presence` carries what comes of it to the sessions.

use std::collections::BTreeMap;

use minidom::Element;
use xmpp_parsers::jid::BareJid;
use xmpp_parsers::roster::{Ask, Group, Item, Roster as Query, Subscription};

use super::{limits, stanza};

/// The four presences that change a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// May I see you?
    Subscribe,
    /// You may see me.
    Subscribed,
    /// I do not want to see you any more.
    Unsubscribe,
    /// You may not see me (any more).
    Unsubscribed,
}

impl Change {
    /// By the `type` of a presence.
    pub(super) fn of(kind: &str) -> Option<Self> {
        Some(match kind {
            "subscribe" => Self::Subscribe,
            "subscribed" => Self::Subscribed,
            "unsubscribe" => Self::Unsubscribe,
            "unsubscribed" => Self::Unsubscribed,
            _ => return None,
        })
    }

    /// The `type` of a presence.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Subscribe => "subscribe",
            Self::Subscribed => "subscribed",
            Self::Unsubscribe => "unsubscribe",
            Self::Unsubscribed => "unsubscribed",
        }
    }
}

/// What a [`Change`] means for one side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// The roster changed: push the item.
    pub(super) push: bool,
    /// The presence goes on: to the contact if we sent it, to our sessions if it was received.
    pub(super) pass: bool,
    /// What we allow was changed: the contact gains sight of us, or loses it.
    pub(super) sight: bool,
    /// It needs no asking: answer this.
    pub(super) answer: Option<Change>,
}

/// One contact.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Contact {
    name: Option<String>,
    groups: Vec<String>,
    /// We see them.
    to: bool,
    /// They see us.
    from: bool,
    /// We have asked to see them.
    ask: bool,
}

/// The roster.
#[derive(Debug, Default)]
pub(super) struct Roster {
    contacts: BTreeMap<BareJid, Contact>,
    /// Who asked to see us and has no answer yet, and how.
    requests: BTreeMap<BareJid, Element>,
}

/// A set of a roster item that is not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// Too many contacts, groups, or letters.
    TooMuch,
    /// To be removed, and not there.
    Missing,
}

impl Roster {
    /// The answer to a `get`.
    pub(super) fn query(&self) -> Element {
        query(self.contacts.iter().map(|(jid, contact)| item(jid, contact)).collect())
    }

    /// What to push about a contact; `remove` if it is gone.
    pub(super) fn push(&self, jid: &BareJid) -> Element {
        let item = match self.contacts.get(jid) {
            Some(contact) => item(jid, contact),
            None => Item { subscription: Subscription::Remove, ..item(jid, &Contact::default()) },
        };
        query(vec![item])
    }

    /// A `set` that does not remove: name and groups (RFC 6121 §2.3, §2.4).
    pub(super) fn set(&mut self, item: Item) -> Result<(), Refused> {
        let groups: Vec<String> = item.groups.into_iter().map(|Group(name)| name).collect();
        let too_long = |text: &String| text.len() > limits::ROSTER_NAME;
        if item.name.as_ref().is_some_and(too_long)
            || groups.len() > limits::ROSTER_GROUPS
            || groups.iter().any(too_long)
        {
            return Err(Refused::TooMuch);
        }
        let contact = self.contact(&item.jid).ok_or(Refused::TooMuch)?;
        (contact.name, contact.groups) = (item.name, groups);
        Ok(())
    }

    /// Takes a contact out (RFC 6121 §2.5); the subscriptions are to be ended before.
    pub(super) fn remove(&mut self, jid: &BareJid) -> Result<(), Refused> {
        self.contacts.remove(jid).map(|_| ()).ok_or(Refused::Missing)
    }

    /// Makes both see each other without asking; `false` if there is no room or they are contacts.
    pub(super) fn introduce(&mut self, jid: &BareJid, name: Option<&str>) -> bool {
        if self.contacts.len() >= limits::EVERYONE || self.contacts.contains_key(jid) {
            return false;
        }
        let name = name.map(str::to_owned);
        let contact = Contact { name, to: true, from: true, ..Contact::default() };
        self.contacts.insert(jid.clone(), contact);
        true
    }

    /// Whether a contact is in it.
    pub(super) fn contains(&self, jid: &BareJid) -> bool {
        self.contacts.contains_key(jid)
    }

    /// Who sees us.
    pub(super) fn watchers(&self) -> Vec<BareJid> {
        let from = self.contacts.iter().filter(|(_, contact)| contact.from);
        from.map(|(jid, _)| jid.clone()).collect()
    }

    /// Whom we see.
    pub(super) fn watched(&self) -> Vec<BareJid> {
        let to = self.contacts.iter().filter(|(_, contact)| contact.to);
        to.map(|(jid, _)| jid.clone()).collect()
    }

    /// Whether a contact sees us.
    pub(super) fn watched_by(&self, jid: &BareJid) -> bool {
        self.contacts.get(jid).is_some_and(|contact| contact.from)
    }

    /// Requests without an answer.
    pub(super) fn requests(&self) -> Vec<Element> {
        self.requests.values().cloned().collect()
    }

    /// We sent a change to a contact (RFC 6121 §3, the user's server).
    pub(super) fn sent(&mut self, change: Change, to: &BareJid) -> Outcome {
        let mut outcome = Outcome { pass: true, ..Outcome::default() };
        match change {
            Change::Subscribe => match self.contact(to) {
                Some(contact) if !contact.to => {
                    contact.ask = true;
                    outcome.push = true;
                }
                Some(_) => {}
                None => outcome.pass = false,
            },
            Change::Subscribed => {
                // Pre-approval (§3.4) is not offered: who did not ask is not told.
                outcome.pass = self.requests.remove(to).is_some();
                if outcome.pass
                    && let Some(contact) = self.contact(to)
                {
                    contact.from = true;
                    (outcome.push, outcome.sight) = (true, true);
                }
            }
            Change::Unsubscribe => outcome.push = self.see_no_more(to),
            Change::Unsubscribed => {
                outcome.pass = self.requests.remove(to).is_some();
                outcome.push = self.hide(to);
                outcome.sight = outcome.push;
                outcome.pass |= outcome.push;
            }
        }
        outcome
    }

    /// A contact sent a change to us (RFC 6121 §3, the contact's server).
    pub(super) fn received(&mut self, change: Change, from: &BareJid, stanza: &Element) -> Outcome {
        let mut outcome = Outcome::default();
        match change {
            Change::Subscribe if self.watched_by(from) => {
                outcome.answer = Some(Change::Subscribed);
            }
            Change::Subscribe => {
                outcome.pass =
                    self.requests.contains_key(from) || self.requests.len() < limits::ROSTER_ITEMS;
                if outcome.pass {
                    self.requests.insert(from.clone(), stanza.clone());
                }
            }
            Change::Subscribed => {
                if let Some(contact) = self.contacts.get_mut(from).filter(|contact| contact.ask) {
                    (contact.to, contact.ask) = (true, false);
                    (outcome.push, outcome.pass) = (true, true);
                }
            }
            Change::Unsubscribe => {
                outcome.pass = self.requests.remove(from).is_some();
                outcome.push = self.hide(from);
                outcome.sight = outcome.push;
                outcome.pass |= outcome.push;
            }
            Change::Unsubscribed => {
                outcome.push = self.see_no_more(from);
                outcome.pass = outcome.push;
            }
        }
        outcome
    }

    fn see_no_more(&mut self, jid: &BareJid) -> bool {
        self.contacts.get_mut(jid).is_some_and(|contact| {
            let before = contact.to || contact.ask;
            (contact.to, contact.ask) = (false, false);
            before
        })
    }

    fn hide(&mut self, jid: &BareJid) -> bool {
        self.contacts.get_mut(jid).is_some_and(|contact| std::mem::take(&mut contact.from))
    }

    /// The contact, made if there is room.
    fn contact(&mut self, jid: &BareJid) -> Option<&mut Contact> {
        if self.contacts.len() >= limits::ROSTER_ITEMS && !self.contacts.contains_key(jid) {
            return None;
        }
        Some(self.contacts.entry(jid.clone()).or_default())
    }
}

/// xmpp-parsers leaves out `none`, which is said here as every server says it.
fn query(items: Vec<Item>) -> Element {
    let mut query: Element = Query { ver: None, items }.into();
    for item in query.children_mut().filter(|item| item.attr("subscription").is_none()) {
        stanza::set(item, "subscription", "none");
    }
    query
}

fn item(jid: &BareJid, contact: &Contact) -> Item {
    Item {
        jid: jid.clone(),
        name: contact.name.clone(),
        subscription: match (contact.to, contact.from) {
            (true, true) => Subscription::Both,
            (true, false) => Subscription::To,
            (false, true) => Subscription::From,
            (false, false) => Subscription::None,
        },
        ask: if contact.ask { Ask::Subscribe } else { Ask::None },
        groups: contact.groups.iter().cloned().map(Group).collect(),
        approved: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bob() -> BareJid {
        stanza::own("bob@localhost")
    }

    fn request() -> Element {
        stanza::stanza("presence", &[("type", "subscribe"), ("from", "bob@localhost")])
    }

    fn subscription(roster: &Roster) -> (Subscription, Ask) {
        let query = Query::try_from(roster.push(&bob())).expect("a query");
        let item = query.items.into_iter().next().expect("an item");
        (item.subscription, item.ask)
    }

    /// RFC 6121 §3.1: none → none and asked → to; and back by §3.3.
    #[test]
    fn the_asker_sees_once_it_is_allowed() {
        let mut roster = Roster::default();
        assert_eq!(roster.received(Change::Subscribed, &bob(), &request()), Outcome::default());
        assert!(roster.sent(Change::Subscribe, &bob()).pass);
        assert_eq!(subscription(&roster), (Subscription::None, Ask::Subscribe));
        assert!(roster.received(Change::Subscribed, &bob(), &request()).pass);
        assert_eq!(subscription(&roster), (Subscription::To, Ask::None));
        assert!(roster.sent(Change::Unsubscribe, &bob()).push);
        assert_eq!(subscription(&roster), (Subscription::None, Ask::None));
    }

    /// RFC 6121 §3.1.4 to §3.1.6, §3.2: a request changes no roster; the answer does.
    #[test]
    fn the_asked_decides() {
        let mut roster = Roster::default();
        assert!(!roster.sent(Change::Subscribed, &bob()).pass, "nobody asked");
        assert!(roster.received(Change::Subscribe, &bob(), &request()).pass);
        assert!(!roster.contains(&bob()));
        assert_eq!(roster.requests().len(), 1);
        let outcome = roster.sent(Change::Subscribed, &bob());
        assert!(outcome.pass && outcome.push && outcome.sight);
        assert_eq!(subscription(&roster), (Subscription::From, Ask::None));
        assert!(roster.requests().is_empty());
        let again = roster.received(Change::Subscribe, &bob(), &request());
        assert_eq!(again, Outcome { answer: Some(Change::Subscribed), ..Outcome::default() });
        assert!(roster.sent(Change::Unsubscribed, &bob()).sight);
        assert_eq!(subscription(&roster), (Subscription::None, Ask::None));
    }

    #[test]
    fn a_roster_has_an_end() {
        let mut roster = Roster::default();
        for number in 0..limits::ROSTER_ITEMS {
            let jid = stanza::own(&format!("user{number}@localhost"));
            assert!(roster.sent(Change::Subscribe, &jid).pass);
            roster.received(Change::Subscribe, &jid, &request());
        }
        assert_eq!(roster.sent(Change::Subscribe, &bob()), Outcome::default());
        assert!(!roster.received(Change::Subscribe, &bob(), &request()).pass);
        let item = item(&bob(), &Contact::default());
        assert_eq!(roster.set(item), Err(Refused::TooMuch));
        assert_eq!(roster.remove(&bob()), Err(Refused::Missing));
    }
}
