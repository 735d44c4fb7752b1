//! The one room (XEP-0045): open, public, not anonymous, and nobody moderates it. Pure state: each
//! call returns the stanzas that come of it and their recipients.

use std::collections::VecDeque;

use minidom::Element;
use xmpp_parsers::jid::{FullJid, Jid};
use xmpp_parsers::muc::user::{Affiliation, Item, Role, Status};
use xmpp_parsers::muc::{Muc, MucUser};
use xmpp_parsers::ns;
use xmpp_parsers::stanza_error::DefinedCondition;

use super::{ROOM, limits, stanza};

/// Stanzas and to whom they go.
pub(super) type Stanzas = Vec<(FullJid, Element)>;

/// The room.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// In the order in which they came.
    occupants: Vec<Occupant>,
    history: VecDeque<Element>,
    subject: Option<Element>,
}

#[derive(Debug)]
struct Occupant {
    nick: String,
    jid: FullJid,
    /// What they last said of themselves, to be addressed.
    presence: Element,
}

impl Occupant {
    fn address(&self) -> String {
        format!("{ROOM}/{}", self.nick)
    }

    fn item(&self) -> Item {
        Item::new(Affiliation::None, Role::Participant).with_jid(self.jid.clone())
    }

    /// Their presence as `to` sees it.
    fn shown(&self, to: &FullJid, item: Item, statuses: Vec<Status>) -> (FullJid, Element) {
        let mut presence = stanza::addressed(&self.presence, to.as_str());
        stanza::set(&mut presence, "from", &self.address());
        let role = if item.role == Role::None { "none" } else { "participant" };
        let mut user: Element =
            MucUser::new().with_items(vec![item]).with_statuses(statuses).into();
        if let Some(item) = user.get_child_mut("item", ns::MUC_USER) {
            // xmpp-parsers leaves out what is its default, and cannot read it then.
            stanza::set(item, "affiliation", "none");
            stanza::set(item, "role", role);
        }
        presence.append_child(user);
        (to.clone(), presence)
    }
}

/// §7.2.2: a presence without what it says to the room only.
fn bare_presence(presence: &Element) -> Element {
    let mut presence = presence.clone();
    while presence.remove_child("x", ns::MUC).is_some() {}
    while presence.remove_child("x", ns::MUC_USER).is_some() {}
    presence
}

impl Room {
    /// A presence sent to the rooms: to come (§7.2), to change the nickname (§7.6) or what one
    /// says of oneself (§7.7), to go (§7.14).
    pub(super) fn presence(
        &mut self,
        from: &FullJid,
        to: &Jid,
        presence: &Element,
    ) -> Result<Stanzas, DefinedCondition> {
        if to.to_bare().as_str() != ROOM {
            return Err(DefinedCondition::NotAllowed);
        }
        match presence.attr("type") {
            None => {}
            Some("unavailable") => return Ok(self.leave(from, Some(presence))),
            Some(_) => return Ok(Vec::new()),
        }
        let nick = to.resource().ok_or(DefinedCondition::JidMalformed)?.as_str();
        let holder = self.occupants.iter().find(|occupant| occupant.nick == nick);
        if holder.is_some_and(|holder| holder.jid != *from) {
            return Err(DefinedCondition::Conflict);
        }
        let known = self.occupants.iter().position(|occupant| occupant.jid == *from);
        let joins = presence.get_child("x", ns::MUC).cloned();
        let Some(at) = known else {
            if self.occupants.len() >= limits::OCCUPANTS {
                return Err(DefinedCondition::ServiceUnavailable);
            }
            self.occupants.push(Occupant {
                nick: nick.to_owned(),
                jid: from.clone(),
                presence: bare_presence(presence),
            });
            return Ok(self.welcome(self.occupants.len() - 1, true, joins));
        };
        let mut stanzas = Vec::new();
        if self.occupants[at].nick != nick {
            stanzas = self.announce(at, Some(nick), |presence| {
                *presence = stanza::stanza("presence", &[("type", "unavailable")]);
            });
            self.occupants[at].nick = nick.to_owned();
        }
        self.occupants[at].presence = bare_presence(presence);
        if joins.is_some() && stanzas.is_empty() {
            // §7.2: a client that lost its state joins again, and is told everything again.
            return Ok(self.welcome(at, false, joins));
        }
        stanzas.append(&mut self.announce(at, None, |_| {}));
        Ok(stanzas)
    }

    /// §7.14: an occupant goes, with its own words or none.
    pub(super) fn leave(&mut self, from: &FullJid, presence: Option<&Element>) -> Stanzas {
        let Some(at) = self.occupants.iter().position(|occupant| occupant.jid == *from) else {
            return Vec::new();
        };
        let gone = match presence {
            Some(presence) => bare_presence(presence),
            None => stanza::stanza("presence", &[("type", "unavailable")]),
        };
        let stanzas = self.announce(at, None, |presence| *presence = gone);
        self.occupants.remove(at);
        stanzas
    }

    /// A message to the room (§7.4), its subject (§8.1), or one occupant (§7.5).
    pub(super) fn message(
        &mut self,
        from: &FullJid,
        to: &Jid,
        message: &Element,
    ) -> Result<Stanzas, DefinedCondition> {
        let sender = self.relay(from, to)?;
        let mut copy = message.clone();
        stanza::set(&mut copy, "from", &sender);
        match (message.attr("type"), to.resource()) {
            (Some("error"), _) => Ok(Vec::new()),
            (Some("groupchat"), None) => {
                let says = message.has_child("body", ns::JABBER_CLIENT);
                if message.has_child("subject", ns::JABBER_CLIENT) && !says {
                    self.subject = Some(copy.clone());
                } else if says {
                    if self.history.len() == limits::HISTORY {
                        self.history.pop_front();
                    }
                    self.history.push_back(stanza::delayed(copy.clone(), ROOM));
                }
                let everyone = self.occupants.iter();
                Ok(everyone
                    .map(|it| (it.jid.clone(), stanza::addressed(&copy, it.jid.as_str())))
                    .collect())
            }
            (Some("groupchat"), Some(_)) => Err(DefinedCondition::BadRequest),
            (_, Some(nick)) => {
                let recipient = self.occupant(nick.as_str())?;
                stanza::set(&mut copy, "to", recipient.as_str());
                if !copy.has_child("x", ns::MUC_USER) {
                    copy.append_child(MucUser::new().into());
                }
                Ok(vec![(recipient, copy)])
            }
            // Invitations and requests for voice.
            (_, None) => Err(DefinedCondition::FeatureNotImplemented),
        }
    }

    /// The address under which an occupant is known in the room; `to` is the room or somebody in
    /// it.
    pub(super) fn relay(&self, from: &FullJid, to: &Jid) -> Result<String, DefinedCondition> {
        if to.to_bare().as_str() != ROOM {
            return Err(DefinedCondition::ItemNotFound);
        }
        let sender = self.occupants.iter().find(|occupant| occupant.jid == *from);
        sender.map(Occupant::address).ok_or(DefinedCondition::NotAcceptable)
    }

    /// Who has this nickname.
    pub(super) fn occupant(&self, nick: &str) -> Result<FullJid, DefinedCondition> {
        let occupant = self.occupants.iter().find(|occupant| occupant.nick == nick);
        occupant.map(|occupant| occupant.jid.clone()).ok_or(DefinedCondition::ItemNotFound)
    }

    /// All nicknames.
    pub(super) fn nicks(&self) -> impl Iterator<Item = &str> {
        self.occupants.iter().map(|occupant| &*occupant.nick)
    }

    /// §7.2: who is there, then oneself, then what was said, then the subject.
    fn welcome(&self, at: usize, is_new: bool, joins: Option<Element>) -> Stanzas {
        let guest = &self.occupants[at];
        let others = self.occupants.iter().enumerate().filter(|(index, _)| *index != at);
        let mut stanzas: Stanzas =
            others.map(|(_, other)| other.shown(&guest.jid, other.item(), Vec::new())).collect();
        if is_new {
            for (_, other) in self.occupants.iter().enumerate().filter(|(index, _)| *index != at) {
                stanzas.push(guest.shown(&other.jid, guest.item(), Vec::new()));
            }
        }
        let statuses = vec![Status::NonAnonymousRoom, Status::SelfPresence];
        stanzas.push(guest.shown(&guest.jid, guest.item(), statuses));
        let wish = joins.and_then(|x| Muc::try_from(x).ok()).and_then(|muc| muc.history);
        let wanted = match wish {
            Some(history) if history.maxchars == Some(0) || history.seconds == Some(0) => 0,
            Some(history) => history.maxstanzas.unwrap_or(u32::MAX),
            None => u32::MAX,
        };
        let skipped = self.history.len().saturating_sub(wanted as usize);
        for message in self.history.iter().skip(skipped) {
            stanzas.push((guest.jid.clone(), stanza::addressed(message, guest.jid.as_str())));
        }
        let subject = self.subject.clone().unwrap_or_else(|| {
            let mut none = stanza::stanza("message", &[("type", "groupchat"), ("from", ROOM)]);
            none.append_child(Element::bare("subject", ns::JABBER_CLIENT));
            none
        });
        stanzas.push((guest.jid.clone(), stanza::addressed(&subject, guest.jid.as_str())));
        stanzas
    }

    /// Shows everyone the presence of one, as `edit` leaves it; `renamed` is the nickname to come.
    fn announce(
        &self,
        at: usize,
        renamed: Option<&str>,
        edit: impl FnOnce(&mut Element),
    ) -> Stanzas {
        let occupant = &self.occupants[at];
        let mut shown = Occupant {
            nick: occupant.nick.clone(),
            jid: occupant.jid.clone(),
            presence: occupant.presence.clone(),
        };
        edit(&mut shown.presence);
        let mut item = shown.item();
        if shown.presence.attr("type") == Some("unavailable") && renamed.is_none() {
            item.role = Role::None;
        }
        if let Some(nick) = renamed {
            item = item.with_nick(nick);
        }
        let to = self.occupants.iter().map(|to| {
            let mut statuses = Vec::new();
            if renamed.is_some() {
                statuses.push(Status::NewNick);
            }
            if to.jid == shown.jid {
                statuses.push(Status::SelfPresence);
            }
            shown.shown(&to.jid, item.clone(), statuses)
        });
        to.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jid(name: &str) -> FullJid {
        FullJid::new(&format!("{name}@localhost/x")).expect("a JID")
    }

    fn place(nick: &str) -> Jid {
        Jid::new(&format!("{ROOM}/{nick}")).expect("a JID")
    }

    fn join(room: &mut Room, name: &str, nick: &str) -> Result<Stanzas, DefinedCondition> {
        let mut presence = stanza::stanza("presence", &[]);
        presence.append_child(Muc::new().into());
        room.presence(&jid(name), &place(nick), &presence)
    }

    fn say(room: &mut Room, name: &str, child: &str, text: &str) -> Stanzas {
        let mut message = stanza::stanza("message", &[("type", "groupchat")]);
        let mut body = Element::bare(child, ns::JABBER_CLIENT);
        body.append_text(text);
        message.append_child(body);
        let to = Jid::new(ROOM).expect("a JID");
        room.message(&jid(name), &to, &message).expect("an occupant")
    }

    fn statuses(presence: &Element) -> Vec<Status> {
        let user = presence.get_child("x", ns::MUC_USER).expect("muc#user").clone();
        MucUser::try_from(user).expect("muc#user").status
    }

    /// §7.2.2, §7.2.3, §7.2.15: occupants, oneself with 110, history, subject, in this order.
    #[test]
    fn who_joins_is_told_what_the_room_is() {
        let mut room = Room::default();
        assert_eq!(join(&mut room, "a", "Anna").map(|it| it.len()), Ok(2));
        say(&mut room, "a", "body", "hello");
        say(&mut room, "a", "subject", "weather");
        let stanzas = join(&mut room, "b", "Bora").expect("room");
        let told: Vec<_> = stanzas.iter().filter(|(to, _)| *to == jid("b")).collect();
        assert_eq!(told[0].1.attr("from"), Some("room@rooms.localhost/Anna"));
        assert_eq!(told[1].1.attr("from"), Some("room@rooms.localhost/Bora"));
        assert!(statuses(&told[1].1).contains(&Status::SelfPresence));
        assert!(
            told[2].1.has_child("delay", ns::DELAY)
                && told[2].1.has_child("body", ns::JABBER_CLIENT)
        );
        assert!(told[3].1.has_child("subject", ns::JABBER_CLIENT));
        let seen: Vec<_> = stanzas.iter().filter(|(to, _)| *to == jid("a")).collect();
        assert_eq!(seen.len(), 1);
        assert!(statuses(&seen[0].1).is_empty());
    }

    /// §7.2.8, §7.6.
    #[test]
    fn a_nickname_belongs_to_one() {
        let mut room = Room::default();
        join(&mut room, "a", "Anna").expect("room");
        join(&mut room, "b", "Bora").expect("room");
        assert_eq!(join(&mut room, "c", "Anna"), Err(DefinedCondition::Conflict));
        let presence = stanza::stanza("presence", &[]);
        let taken = room.presence(&jid("b"), &place("Anna"), &presence);
        assert_eq!(taken, Err(DefinedCondition::Conflict));
        let stanzas = room.presence(&jid("b"), &place("Bahar"), &presence).expect("free");
        assert_eq!(stanzas.len(), 4, "each sees the old one go and the new one come");
        assert_eq!(statuses(&stanzas[1].1), [Status::NewNick, Status::SelfPresence]);
        assert_eq!(room.nicks().collect::<Vec<_>>(), ["Anna", "Bahar"]);
    }

    #[test]
    fn who_is_not_there_is_not_heard() {
        let mut room = Room::default();
        join(&mut room, "a", "Anna").expect("room");
        assert_eq!(room.leave(&jid("a"), None).len(), 1);
        let message = stanza::stanza("message", &[("type", "groupchat")]);
        let said = room.message(&jid("a"), &Jid::new(ROOM).expect("a JID"), &message);
        assert_eq!(said, Err(DefinedCondition::NotAcceptable));
        assert!(room.leave(&jid("a"), None).is_empty());
    }

    #[test]
    fn a_room_remembers_no_more_than_it_may() {
        let mut room = Room::default();
        join(&mut room, "a", "Anna").expect("room");
        for number in 0..=limits::HISTORY {
            say(&mut room, "a", "body", &number.to_string());
        }
        assert_eq!(room.history.len(), limits::HISTORY);
        for number in 1..limits::OCCUPANTS {
            let name = format!("user{number}");
            join(&mut room, &name, &name).expect("room");
        }
        assert_eq!(join(&mut room, "z", "Zeki"), Err(DefinedCondition::ServiceUnavailable));
    }
}
