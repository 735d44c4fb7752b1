//! Messages (RFC 6121 §5, §8): to sessions, to accounts, copies (XEP-0280), those that wait
//! (XEP-0160), and the echo.

use minidom::Element;
use xmpp_parsers::jid::{BareJid, Jid};
use xmpp_parsers::ns;
use xmpp_parsers::stanza_error::DefinedCondition;

use super::router::{Place, Router, SessionId};
use super::{DOMAIN, ECHO, limits, stanza};

/// XEP-0334, which xmpp-parsers does not have.
const HINTS: &str = "urn:xmpp:hints";

impl Router {
    /// A message of a client.
    pub(super) fn message(&mut self, id: SessionId, mut message: Element, to: Option<Jid>) {
        let Some(session) = self.sessions.get(&id) else { return };
        let (jid, own) = (session.jid.clone(), session.account.clone());
        // RFC 6120 §10.3.1: to nobody is to oneself.
        let to = to.unwrap_or_else(|| own.clone().into());
        let copied = is_copied(&message);
        message.remove_child("private", ns::CARBONS);
        if copied && to.to_bare() != own {
            self.copy(&own, "sent", &message, &[id]);
        }
        match Place::of(&to) {
            Place::Account => self.message_to(message, &to, copied),
            Place::Echo => self.echo(&message),
            Place::Rooms => match self.room.message(&jid, &to, &message) {
                Ok(stanzas) => self.deliver_all(stanzas),
                Err(condition) => self.refuse(&message, condition),
            },
            Place::Server => self.refuse(&message, DefinedCondition::ServiceUnavailable),
            Place::Foreign => self.refuse(&message, DefinedCondition::RemoteServerNotFound),
        }
    }

    /// RFC 6121 §8.5: to a session, else to the account.
    fn message_to(&mut self, message: Element, to: &Jid, copied: bool) {
        let kind = message.attr("type").unwrap_or("normal").to_owned();
        if let Ok(full) = to.try_as_full() {
            if let Some(id) = self.session_at(full) {
                if copied {
                    let sender = stanza::sender(&message).map(|jid| jid.to_bare());
                    let mut except = vec![id];
                    if sender.as_ref() == Some(&full.to_bare()) {
                        // To another session of one's own: who sent it need not be told.
                        let from = message.attr("from").map(str::to_owned);
                        let sent =
                            |it: &super::session::Session| Some(it.jid.as_str()) == from.as_deref();
                        except.extend(self.sessions_of(&full.to_bare(), sent));
                    }
                    self.copy(&full.to_bare(), "received", &message, &except);
                }
                self.deliver(id, message);
                return;
            }
            if kind == "headline" || kind == "error" {
                return;
            }
        }
        self.message_to_account(message, &to.to_bare(), &kind);
    }

    fn message_to_account(&mut self, message: Element, to: &BareJid, kind: &str) {
        match kind {
            "error" => return,
            "groupchat" => return self.refuse(&message, DefinedCondition::ServiceUnavailable),
            _ => {}
        }
        let reachable = self.sessions_of(to, |it| it.priority().is_some_and(|it| it >= 0));
        if reachable.is_empty() && kind != "headline" {
            return self.keep(message, to);
        }
        for id in reachable {
            self.deliver(id, message.clone());
        }
    }

    /// XEP-0160: keeps a message for an account without sessions. What says nothing (chat states,
    /// receipts) is not kept.
    fn keep(&mut self, message: Element, to: &BareJid) {
        if !message.has_child("body", ns::JABBER_CLIENT) {
            return;
        }
        let message = stanza::delayed(message, DOMAIN);
        let weight = stanza::weight(&message);
        let fits = self.offline_weight + weight <= limits::OFFLINE_BYTES_ALL;
        let kept = self.account(to).is_some_and(|account| {
            let held: usize = account.offline.iter().map(|(_, weight)| weight).sum();
            let fits = fits
                && account.offline.len() < limits::OFFLINE_STANZAS
                && held + weight <= limits::OFFLINE_BYTES;
            if fits {
                account.offline.push_back((message.clone(), weight));
            }
            fits
        });
        if kept {
            self.offline_weight += weight;
        } else {
            self.refuse(&message, DefinedCondition::ServiceUnavailable);
        }
    }

    /// Gives a session what was kept for its account.
    pub(super) fn flush_offline(&mut self, id: SessionId) {
        let account = self.sessions.get(&id).map(|session| session.account.clone());
        let Some(account) = account.and_then(|name| self.accounts.get_mut(&name)) else { return };
        for (message, weight) in std::mem::take(&mut account.offline) {
            self.offline_weight -= weight;
            self.deliver(id, message);
        }
    }

    /// What a session has left unseen: messages go to the account's others or wait, requests are
    /// refused, the rest is void.
    pub(super) fn reroute(&mut self, element: Element) {
        match (element.name(), element.attr("type")) {
            ("message", None | Some("chat" | "normal")) => {
                let to = element.attr("to").and_then(|to| Jid::new(to).ok());
                if let Some(to) = to.filter(|to| Place::of(to) == Place::Account) {
                    let kind = element.attr("type").unwrap_or("normal").to_owned();
                    let element = stanza::delayed(element, DOMAIN);
                    self.message_to_account(element, &to.to_bare(), &kind);
                }
            }
            ("iq", Some("get" | "set")) => {
                self.refuse(&element, DefinedCondition::ServiceUnavailable);
            }
            _ => {}
        }
    }

    /// XEP-0280 §6, §7: a copy for each session that wants one. `which` is `sent` or `received`.
    fn copy(&mut self, own: &BareJid, which: &str, message: &Element, except: &[SessionId]) {
        for id in self.sessions_of(own, |session| session.carbons) {
            if except.contains(&id) {
                continue;
            }
            let Some(session) = self.sessions.get(&id) else { continue };
            let kind = message.attr("type").unwrap_or("normal");
            let attributes = [("type", kind), ("from", own.as_str()), ("to", session.jid.as_str())];
            let mut copy = stanza::stanza("message", &attributes);
            let mut forwarded = Element::bare("forwarded", ns::FORWARD);
            forwarded.append_child(message.clone());
            let mut wrapper = Element::bare(which, ns::CARBONS);
            wrapper.append_child(forwarded);
            copy.append_child(wrapper);
            self.deliver(id, copy);
        }
    }

    /// Answers a message with its body.
    fn echo(&mut self, message: &Element) {
        let kind = message.attr("type").unwrap_or("normal");
        let (Some(to), true) = (stanza::sender(message), matches!(kind, "chat" | "normal")) else {
            return;
        };
        if !message.has_child("body", ns::JABBER_CLIENT) {
            return;
        }
        let from = format!("{ECHO}/echo");
        let attributes = [("type", kind), ("from", &*from), ("to", to.as_str())];
        let mut answer = stanza::stanza("message", &attributes);
        if let Some(id) = message.attr("id") {
            stanza::set(&mut answer, "id", id);
        }
        for child in message.children() {
            if child.is("body", ns::JABBER_CLIENT) || child.is("thread", ns::JABBER_CLIENT) {
                answer.append_child(child.clone());
            }
        }
        self.message_to(answer, &to, true);
    }
}

/// XEP-0280 §6.1: a chat message, or one with a body, that does not forbid it and is no room's.
fn is_copied(message: &Element) -> bool {
    let talk = match message.attr("type") {
        Some("chat") => true,
        None | Some("normal") => message.has_child("body", ns::JABBER_CLIENT),
        Some(_) => false,
    };
    talk && !message.has_child("private", ns::CARBONS)
        && !message.has_child("no-copy", HINTS)
        && !message.has_child("x", ns::MUC_USER)
}
