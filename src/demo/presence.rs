//! Presence (RFC 6121 §3, §4): to everyone, to one, and the four that change subscriptions.

use minidom::Element;
use xmpp_parsers::jid::{BareJid, Jid};
use xmpp_parsers::ns;
use xmpp_parsers::stanza_error::DefinedCondition;

use super::roster::Change;
use super::router::{Place, Router, SessionId};
use super::{ECHO, limits, stanza};

impl Router {
    /// A presence of a client.
    pub(super) fn presence(&mut self, id: SessionId, presence: Element, to: Option<Jid>) {
        let Some(session) = self.sessions.get(&id) else { return };
        let (jid, own) = (session.jid.clone(), session.account.clone());
        let kind = presence.attr("type").map(str::to_owned);
        let Some(to) = to else {
            match kind.as_deref() {
                None => self.appear(id, presence),
                Some("unavailable") => self.leave(id, Some(&presence)),
                Some(_) => {}
            }
            return;
        };
        let change = kind.as_deref().and_then(Change::of);
        match (Place::of(&to), change) {
            (Place::Rooms, None) => match self.room.presence(&jid, &to, &presence) {
                Ok(stanzas) => self.deliver_all(stanzas),
                Err(condition) => self.refuse(&presence, condition),
            },
            (Place::Account | Place::Echo, Some(change)) => {
                self.change(&own, change, &to.to_bare(), presence);
            }
            (Place::Account, None) => match kind.as_deref() {
                None => {
                    let session = self.sessions.get_mut(&id);
                    if let Some(session) = session
                        && session.directed.len() < limits::DIRECTED
                    {
                        session.directed.insert(to.clone());
                    }
                    self.presence_to(&to, &presence);
                }
                Some("unavailable") => {
                    if let Some(session) = self.sessions.get_mut(&id) {
                        session.directed.remove(&to);
                    }
                    self.presence_to(&to, &presence);
                }
                Some("error") => self.presence_to(&to, &presence),
                Some(_) => {}
            },
            (Place::Foreign, Some(Change::Subscribe)) => {
                self.refuse(&presence, DefinedCondition::RemoteServerNotFound);
            }
            _ => {}
        }
    }

    /// Available presence to everyone (RFC 6121 §4.2, §4.4).
    fn appear(&mut self, id: SessionId, presence: Element) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let first = session.presence.replace(presence.clone()).is_none();
        let own = session.account.clone();
        let jid = session.jid.to_string();
        let reachable = session.priority().is_some_and(|priority| priority >= 0);
        self.broadcast(&own, &presence);
        if first {
            let Some(roster) = self.accounts.get(&own).map(|account| &account.roster) else {
                return;
            };
            let (mut seen, requests) = (roster.watched(), roster.requests());
            seen.push(own);
            for contact in seen {
                for presence in self.presences(&contact) {
                    // The broadcast has brought it its own.
                    if presence.attr("from") != Some(&jid) {
                        self.deliver(id, stanza::addressed(&presence, &jid));
                    }
                }
            }
            for request in requests {
                self.deliver(id, request);
            }
        }
        if reachable {
            self.flush_offline(id);
        }
    }

    /// The end of a session's availability: said by the client, or by the server for it.
    pub(super) fn leave(&mut self, id: SessionId, presence: Option<&Element>) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let jid = session.jid.clone();
        let own = session.account.clone();
        let was_available = session.presence.take().is_some();
        let directed = std::mem::take(&mut session.directed);
        let stanzas = self.room.leave(&jid, presence);
        self.deliver_all(stanzas);
        let gone = presence.cloned().unwrap_or_else(|| {
            let attributes = [("type", "unavailable"), ("from", jid.as_str())];
            stanza::stanza("presence", &attributes)
        });
        if was_available {
            self.broadcast(&own, &gone);
        }
        for to in directed {
            self.presence_to(&to, &gone);
        }
    }

    /// To all who may see the account, its own sessions among them.
    fn broadcast(&mut self, own: &BareJid, presence: &Element) {
        let Some(account) = self.accounts.get(own) else { return };
        let mut watchers = account.roster.watchers();
        watchers.push(own.clone());
        for watcher in watchers {
            self.presence_to(&watcher.into(), presence);
        }
    }

    /// To one address: a session, or all available ones of an account.
    fn presence_to(&mut self, to: &Jid, presence: &Element) {
        let sessions = match to.try_as_full() {
            Ok(full) => self.session_at(full).into_iter().collect(),
            Err(bare) => self.available(bare),
        };
        for id in sessions {
            self.deliver(id, stanza::addressed(presence, to.as_str()));
        }
    }

    /// What a contact shows to those who may see it.
    fn presences(&self, contact: &BareJid) -> Vec<Element> {
        if contact.as_str() == ECHO {
            return vec![echo_presence()];
        }
        let available = self.available(contact);
        available.iter().filter_map(|id| self.sessions.get(id)?.presence.clone()).collect()
    }

    /// A change of subscription sent by a user (RFC 6121 §3).
    pub(super) fn change(
        &mut self,
        own: &BareJid,
        change: Change,
        contact: &BareJid,
        mut presence: Element,
    ) {
        if own == contact {
            return;
        }
        stanza::set(&mut presence, "from", own.as_str());
        stanza::set(&mut presence, "to", contact.as_str());
        let Some(account) = self.accounts.get_mut(own) else { return };
        let outcome = account.roster.sent(change, contact);
        if outcome.push {
            self.push_item(own, contact);
        }
        if !outcome.pass {
            return;
        }
        if contact.as_str() == ECHO {
            self.change_by_echo(own, change);
            return;
        }
        self.receive_change(contact, change, own, &presence);
        if outcome.sight {
            self.show(own, contact, change == Change::Subscribed);
        }
        if change == Change::Unsubscribe {
            self.show(contact, own, false);
        }
    }

    /// The other side of [`Router::change`].
    fn receive_change(
        &mut self,
        own: &BareJid,
        change: Change,
        contact: &BareJid,
        presence: &Element,
    ) {
        let Some(account) = self.account(own) else { return };
        // What waits for an answer waits without what came along: it may wait long.
        let kept = plain(change, contact, own);
        let outcome = account.roster.received(change, contact, &kept);
        if outcome.push {
            self.push_item(own, contact);
        }
        if outcome.pass {
            let sessions = match change {
                Change::Subscribe => self.available(own),
                _ => self.sessions_of(own, |session| session.interested),
            };
            for id in sessions {
                self.deliver(id, presence.clone());
            }
        }
        if let Some(answer) = outcome.answer {
            // §3.1.3: the server answers for a contact who has agreed before.
            let answered = plain(answer, own, contact);
            self.receive_change(contact, answer, own, &answered);
            self.show(own, contact, true);
        }
    }

    /// Shows all of an account's presence to a contact, or its end.
    fn show(&mut self, own: &BareJid, contact: &BareJid, visible: bool) {
        for mut presence in self.presences(own) {
            if !visible {
                let from = presence.attr("from").unwrap_or_default().to_owned();
                presence = stanza::stanza("presence", &[("type", "unavailable"), ("from", &from)]);
            }
            self.presence_to(&contact.clone().into(), &presence);
        }
    }

    /// The echo allows everyone to see it, and looks at nobody.
    fn change_by_echo(&mut self, to: &BareJid, change: Change) {
        let echo = stanza::own(ECHO);
        match change {
            Change::Subscribe => {
                let answer = plain(Change::Subscribed, &echo, to);
                self.receive_change(to, Change::Subscribed, &echo, &answer);
                self.show(&echo, to, true);
            }
            Change::Unsubscribe => self.show(&echo, to, false),
            Change::Subscribed | Change::Unsubscribed => {}
        }
    }

    /// RFC 6121 §2.1.6: tells every session that asked for the roster about one contact.
    pub(super) fn push_item(&mut self, own: &BareJid, contact: &BareJid) {
        let Some(account) = self.accounts.get(own) else { return };
        let query = account.roster.push(contact);
        for id in self.sessions_of(own, |session| session.interested) {
            let Some(session) = self.sessions.get(&id) else { continue };
            let attributes = [
                ("type", "set"),
                ("id", &*format!("push-{}", stanza::token().unwrap_or_default())),
                ("to", session.jid.as_str()),
            ];
            let mut push = stanza::stanza("iq", &attributes);
            push.append_child(query.clone());
            self.deliver(id, push);
        }
    }
}

/// A change without what a client may have put into it.
fn plain(change: Change, from: &BareJid, to: &BareJid) -> Element {
    let attributes = [("type", change.name()), ("from", from.as_str()), ("to", to.as_str())];
    stanza::stanza("presence", &attributes)
}

/// Always there.
fn echo_presence() -> Element {
    let mut presence = stanza::stanza("presence", &[("from", &format!("{ECHO}/echo"))]);
    let mut status = Element::bare("status", ns::JABBER_CLIENT);
    status.append_text("I repeat what you say.");
    presence.append_child(status);
    presence
}
