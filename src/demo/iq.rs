//! Requests (RFC 6120 §8.2.3): those the server answers, and the way of the others.

use minidom::Element;
use xmpp_parsers::disco::{DiscoInfoResult, DiscoItemsResult, Identity, Item};
use xmpp_parsers::jid::{BareJid, Jid};
use xmpp_parsers::ns;
use xmpp_parsers::roster::{Roster as Query, Subscription};
use xmpp_parsers::stanza_error::DefinedCondition;
use xmpp_parsers::version::VersionResult;

use super::roster::{Change, Refused};
use super::router::{Place, Router, SessionId};
use super::{DOMAIN, ROOM, ROOMS, stanza};

/// RFC 3921 §3, which does nothing any more.
pub(super) const SESSION: &str = "urn:ietf:params:xml:ns:xmpp-session";

type Answer = Result<Option<Element>, DefinedCondition>;

impl Router {
    /// An iq of a client.
    pub(super) fn iq(&mut self, id: SessionId, iq: Element, to: Option<Jid>) {
        let Some(session) = self.sessions.get(&id) else { return };
        let (jid, own) = (session.jid.clone(), session.account.clone());
        let children = iq.children().count();
        let (is_request, is_valid) = match iq.attr("type") {
            Some("get" | "set") => (true, children == 1),
            Some("result") => (false, children <= 1),
            Some("error") => (false, true),
            _ => (true, false),
        };
        if !is_valid || iq.attr("id").is_none_or(str::is_empty) {
            return self.refuse(&iq, DefinedCondition::BadRequest);
        }
        let to = to.unwrap_or_else(|| own.clone().into());
        if Place::of(&to) == Place::Rooms && to.resource().is_some() {
            return match self.room_iq(&jid, &to, &iq) {
                Ok(()) => {}
                Err(condition) => self.refuse(&iq, condition),
            };
        }
        if let Ok(full) = to.try_as_full()
            && Place::of(&to) == Place::Account
        {
            return match self.session_at(full) {
                Some(target) => self.deliver(target, iq),
                None => self.refuse(&iq, DefinedCondition::ServiceUnavailable),
            };
        }
        if !is_request {
            return;
        }
        let answer = match Place::of(&to) {
            Place::Foreign => Err(DefinedCondition::RemoteServerNotFound),
            Place::Account if to == own => self.own_iq(id, &own, &iq),
            Place::Account => Err(DefinedCondition::ServiceUnavailable),
            Place::Server => self.server_iq(&iq),
            Place::Echo => echo_iq(&iq),
            Place::Rooms => self.rooms_iq(&to, &iq),
        };
        match answer {
            Ok(payload) => {
                let pushed = self.after(&own, &iq);
                self.deliver(id, stanza::result(&iq, payload));
                if let Some(contact) = pushed {
                    self.push_item(&own, &contact);
                }
            }
            Err(condition) => self.refuse(&iq, condition),
        }
    }

    /// The contact that a roster set which was taken is about.
    fn after(&self, own: &BareJid, iq: &Element) -> Option<BareJid> {
        let query = iq.get_child("query", ns::ROSTER).filter(|_| iq.attr("type") == Some("set"))?;
        self.accounts.get(own)?;
        BareJid::new(query.children().next()?.attr("jid")?).ok()
    }

    /// To one's own account, or to nobody.
    fn own_iq(&mut self, id: SessionId, own: &BareJid, iq: &Element) -> Answer {
        let payload = iq.children().next().ok_or(DefinedCondition::BadRequest)?;
        let is_set = iq.attr("type") == Some("set");
        match (payload.name(), &*payload.ns(), is_set) {
            ("query", ns::ROSTER, false) => {
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.interested = true;
                }
                let account = self.accounts.get(own).ok_or(DefinedCondition::ItemNotFound)?;
                Ok(Some(account.roster.query()))
            }
            ("query", ns::ROSTER, true) => self.roster_set(own, payload),
            ("enable" | "disable", ns::CARBONS, true) => {
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.carbons = payload.name() == "enable";
                }
                Ok(None)
            }
            ("bind", ns::BIND, true) => Err(DefinedCondition::NotAllowed),
            ("query", ns::DISCO_INFO, false) => info(payload, "account", "registered", own, &[]),
            _ => self.server_iq(iq),
        }
    }

    /// RFC 6121 §2.3 to §2.5: one item, set or removed.
    fn roster_set(&mut self, own: &BareJid, payload: &Element) -> Answer {
        let query = Query::try_from(payload.clone()).map_err(|_| DefinedCondition::BadRequest)?;
        let [item] = <[_; 1]>::try_from(query.items).map_err(|_| DefinedCondition::BadRequest)?;
        let account = self.accounts.get_mut(own).ok_or(DefinedCondition::ItemNotFound)?;
        let done = if item.subscription == Subscription::Remove {
            if !account.roster.contains(&item.jid) {
                return Err(DefinedCondition::ItemNotFound);
            }
            for change in [Change::Unsubscribe, Change::Unsubscribed] {
                self.change(
                    own,
                    change,
                    &item.jid,
                    stanza::stanza("presence", &[("type", change.name())]),
                );
            }
            let account = self.accounts.get_mut(own).ok_or(DefinedCondition::ItemNotFound)?;
            account.roster.remove(&item.jid)
        } else if item.jid == *own {
            return Err(DefinedCondition::NotAllowed);
        } else {
            account.roster.set(item)
        };
        match done {
            Ok(()) => Ok(None),
            Err(Refused::Missing) => Err(DefinedCondition::ItemNotFound),
            Err(Refused::TooMuch) => Err(DefinedCondition::NotAcceptable),
        }
    }

    /// To the server.
    fn server_iq(&self, iq: &Element) -> Answer {
        let payload = iq.children().next().ok_or(DefinedCondition::BadRequest)?;
        match (payload.name(), &*payload.ns(), iq.attr("type")) {
            ("query", ns::DISCO_INFO, Some("get")) => {
                let features = [ns::ROSTER, ns::CARBONS, ns::VERSION, "msgoffline"];
                info(payload, "server", "im", &stanza::own(DOMAIN), &features)
            }
            ("query", ns::DISCO_ITEMS, Some("get")) => items(&[(ROOMS, "Rooms")]),
            ("query", ns::VERSION, Some("get")) => version(),
            ("ping", ns::PING, Some("get")) | ("session", SESSION, Some("set")) => Ok(None),
            _ => Err(DefinedCondition::ServiceUnavailable),
        }
    }

    /// To the rooms' domain or to a room.
    fn rooms_iq(&self, to: &Jid, iq: &Element) -> Answer {
        let payload = iq.children().next().ok_or(DefinedCondition::BadRequest)?;
        let is_room = match to.as_str() {
            ROOMS => false,
            ROOM => true,
            _ => return Err(DefinedCondition::ItemNotFound),
        };
        match (payload.name(), &*payload.ns(), iq.attr("type")) {
            ("query", ns::DISCO_INFO, Some("get")) => {
                let room = [
                    ns::MUC,
                    "muc_public",
                    "muc_open",
                    "muc_unmoderated",
                    "muc_nonanonymous",
                    "muc_unsecured",
                    "muc_persistent",
                ];
                let features = if is_room { &room[..] } else { &room[..1] };
                info(payload, "conference", "text", &to.to_bare(), features)
            }
            ("query", ns::DISCO_ITEMS, Some("get")) if is_room => {
                let occupants: Vec<String> =
                    self.room.nicks().map(|nick| format!("{ROOM}/{nick}")).collect();
                let named: Vec<_> = occupants.iter().map(|jid| (&**jid, "")).collect();
                items(&named)
            }
            ("query", ns::DISCO_ITEMS, Some("get")) => items(&[(ROOM, "The room")]),
            ("ping", ns::PING, Some("get")) => Ok(None),
            _ => Err(DefinedCondition::ServiceUnavailable),
        }
    }

    /// From one occupant to another, under their addresses in the room (XEP-0045 §17.4); to
    /// oneself it is a question whether one is still there (XEP-0410).
    fn room_iq(
        &mut self,
        from: &xmpp_parsers::jid::FullJid,
        to: &Jid,
        iq: &Element,
    ) -> Result<(), DefinedCondition> {
        let sender = self.room.relay(from, to)?;
        let nick = to.resource().ok_or(DefinedCondition::ItemNotFound)?;
        let target = self.room.occupant(nick.as_str())?;
        if target == *from {
            if iq.children().next().is_some_and(|child| child.is("ping", ns::PING)) {
                self.deliver_all(vec![(target, stanza::result(iq, None))]);
                return Ok(());
            }
            return Err(DefinedCondition::ServiceUnavailable);
        }
        let mut relayed = stanza::addressed(iq, target.as_str());
        stanza::set(&mut relayed, "from", &sender);
        self.deliver_all(vec![(target, relayed)]);
        Ok(())
    }
}

/// To the echo.
fn echo_iq(iq: &Element) -> Answer {
    let payload = iq.children().next().ok_or(DefinedCondition::BadRequest)?;
    match (payload.name(), &*payload.ns(), iq.attr("type")) {
        ("query", ns::DISCO_INFO, Some("get")) => {
            info(payload, "client", "bot", &stanza::own(super::ECHO), &[ns::VERSION])
        }
        ("query", ns::VERSION, Some("get")) => version(),
        ("ping", ns::PING, Some("get")) => Ok(None),
        _ => Err(DefinedCondition::ServiceUnavailable),
    }
}

/// XEP-0030 §3. No entity here has nodes.
fn info(
    payload: &Element,
    category: &str,
    kind: &str,
    whose: &BareJid,
    features: &[&str],
) -> Answer {
    if payload.attr("node").is_some_and(|node| !node.is_empty()) {
        return Err(DefinedCondition::ItemNotFound);
    }
    let common = [ns::DISCO_INFO, ns::DISCO_ITEMS, ns::PING];
    let result = DiscoInfoResult {
        node: None,
        identities: vec![Identity::new(category, kind, "en", whose.as_str())],
        features: common.iter().chain(features).map(|&feature| feature.to_owned()).collect(),
        extensions: Vec::new(),
    };
    Ok(Some(result.into()))
}

/// XEP-0030 §4.
fn items(items: &[(&str, &str)]) -> Answer {
    let items = items.iter().filter_map(|(jid, name)| {
        let name = (!name.is_empty()).then(|| (*name).to_owned());
        Some(Item { jid: Jid::new(jid).ok()?, node: None, name })
    });
    Ok(Some(DiscoItemsResult { node: None, items: items.collect(), rsm: None }.into()))
}

/// XEP-0092.
fn version() -> Answer {
    let result = VersionResult {
        name: "Bosphorus demo server".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        os: None,
    };
    Ok(Some(result.into()))
}
