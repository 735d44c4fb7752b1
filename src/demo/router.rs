//! Who is there, and what goes to whom: accounts, sessions, delivery. One per server, on one
//! thread; nothing here waits. `presence`, `message` and `iq` are the rest of [`Router`].

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use minidom::Element;
use xmpp_parsers::jid::{BareJid, FullJid, Jid};
use xmpp_parsers::sm::HandledCountTooHigh;
use xmpp_parsers::stanza_error::DefinedCondition;

use super::muc::Room;
use super::roster::Roster;
use super::session::{End, Link, Session};
use super::{DOMAIN, ECHO, ROOMS, Settings, limits, stanza};

/// Names a session for its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SessionId(u64);

/// Everything the server knows.
#[derive(Debug)]
pub(super) struct Router {
    settings: Settings,
    pub(super) accounts: BTreeMap<BareJid, Account>,
    pub(super) sessions: BTreeMap<SessionId, Session>,
    pub(super) room: Room,
    /// The weight of all that waits for accounts without sessions.
    pub(super) offline_weight: usize,
    /// Connections that have no session yet.
    entering: Vec<Rc<Link>>,
    /// Sessions that too much waits for.
    doomed: Vec<SessionId>,
    last: u64,
}

/// What belongs to a user.
#[derive(Debug, Default)]
pub(super) struct Account {
    pub(super) sessions: Vec<SessionId>,
    pub(super) roster: Roster,
    /// Messages that wait for a session, and what each weighs.
    pub(super) offline: VecDeque<(Element, usize)>,
    /// It has logged in, not just been written to.
    seen: bool,
    /// It goes with its last session.
    temporary: bool,
}

/// Who an address belongs to.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Place {
    /// The server itself.
    Server,
    /// The contact that echoes.
    Echo,
    /// The rooms: their domain, a room, an occupant.
    Rooms,
    /// A user.
    Account,
    /// Another domain.
    Foreign,
}

impl Place {
    pub(super) fn of(jid: &Jid) -> Self {
        match (jid.domain().as_str(), jid.node()) {
            (DOMAIN, None) => Self::Server,
            (DOMAIN, Some(_)) if jid.to_bare().as_str() == ECHO => Self::Echo,
            (DOMAIN, Some(_)) => Self::Account,
            (ROOMS, _) => Self::Rooms,
            _ => Self::Foreign,
        }
    }
}

impl Router {
    /// A server where nobody has been yet.
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            accounts: BTreeMap::new(),
            sessions: BTreeMap::new(),
            room: Room::default(),
            offline_weight: 0,
            entering: Vec::new(),
            doomed: Vec::new(),
            last: 0,
        }
    }

    /// A connection begins to negotiate.
    pub(super) fn enter(&mut self, link: &Rc<Link>) {
        self.entering.push(Rc::clone(link));
    }

    /// It has ended to do so, with a session or without.
    pub(super) fn entered(&mut self, link: &Rc<Link>) {
        self.entering.retain(|other| !Rc::ptr_eq(other, link));
    }

    /// Somebody proved to be this user; `false` if there is no room for another.
    pub(super) fn login(&mut self, jid: &BareJid, temporary: bool) -> bool {
        let Some(account) = self.account(jid) else { return false };
        if std::mem::replace(&mut account.seen, true) {
            return true;
        }
        account.temporary = temporary;
        if self.settings.roster_of_everyone {
            self.introduce(jid, &stanza::own(ECHO));
        }
        if self.settings.roster_of_everyone && !temporary {
            let others: Vec<BareJid> = self
                .accounts
                .iter()
                .filter(|(other, account)| {
                    account.seen && !account.temporary && account.roster.has_room() && *other != jid
                })
                .map(|(other, _)| other.clone())
                .take(limits::EVERYONE - 1)
                .collect();
            for other in others {
                self.introduce(&other, jid);
                self.introduce(jid, &other);
            }
        }
        self.bury();
        true
    }

    /// Puts a contact into a roster.
    fn introduce(&mut self, owner: &BareJid, contact: &BareJid) {
        let name = contact.node().map(|node| node.as_str().to_owned());
        let Some(account) = self.accounts.get_mut(owner) else { return };
        if account.roster.introduce(contact, name) {
            self.push_item(owner, contact);
        }
    }

    /// Binds a resource (RFC 6120 §7). One that is taken goes to the newcomer.
    pub(super) fn bind(
        &mut self,
        account: &BareJid,
        resource: Option<&str>,
        link: Rc<Link>,
    ) -> Result<(SessionId, FullJid), DefinedCondition> {
        let resource = match resource {
            Some(resource) if !resource.is_empty() => resource.to_owned(),
            _ => stanza::token().ok_or(DefinedCondition::InternalServerError)?,
        };
        let jid = account.with_resource_str(&resource).map_err(|_| DefinedCondition::BadRequest)?;
        if let Some(id) = self.session_at(&jid) {
            self.remove(id, Some(End::Conflict));
        }
        // Another may have taken its place since the login.
        if !self.accounts.contains_key(account) && !self.login(account, false) {
            return Err(DefinedCondition::ResourceConstraint);
        }
        let place = self.accounts.get(account).ok_or(DefinedCondition::ResourceConstraint)?;
        if place.sessions.len() >= limits::RESOURCES {
            return Err(DefinedCondition::ResourceConstraint);
        }
        self.last += 1;
        let id = SessionId(self.last);
        if let Some(place) = self.accounts.get_mut(account) {
            place.sessions.push(id);
        }
        self.sessions.insert(id, Session::new(jid.clone(), link));
        self.bury();
        Ok((id, jid))
    }

    /// A stanza of a client: its `from` is set here (RFC 6120 §8.1.2.1).
    pub(super) fn stanza(&mut self, id: SessionId, mut element: Element) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.count();
        stanza::set(&mut element, "from", session.jid.as_str());
        match element.attr("to").map(Jid::new).transpose() {
            Ok(to) => match element.name() {
                "message" => self.message(id, element, to),
                "presence" => self.presence(id, element, to),
                _ => self.iq(id, element, to),
            },
            Err(_) => {
                // An address that is none cannot answer.
                stanza::unset(&mut element, "to");
                self.refuse(&element, DefinedCondition::JidMalformed);
            }
        }
        self.bury();
    }

    /// The next stanza for the client of this connection.
    pub(super) fn pop(&mut self, id: SessionId, link: &Rc<Link>) -> Option<Element> {
        self.owned(id, link)?.pop()
    }

    /// Whether the client of this connection should be asked for an acknowledgement.
    pub(super) fn wants_acknowledgement(&self, id: SessionId) -> bool {
        self.sessions.get(&id).is_some_and(Session::wants_acknowledgement)
    }

    /// `h` for the client.
    pub(super) fn height(&self, id: SessionId) -> Option<u32> {
        self.sessions.get(&id)?.height()
    }

    /// `h` of the client.
    pub(super) fn acknowledge(&mut self, id: SessionId, h: u32) -> Result<(), HandledCountTooHigh> {
        self.sessions.get_mut(&id).map_or(Ok(()), |session| session.acknowledge(h))
    }

    /// XEP-0198 §3. `Err` if it is enabled already; `Ok(Some(_))` is what resumes it.
    pub(super) fn enable(
        &mut self,
        id: SessionId,
        resume: bool,
    ) -> Result<Option<String>, DefinedCondition> {
        let token = if resume { stanza::token() } else { None };
        let managed = self.sessions.get_mut(&id).is_some_and(|it| it.manage(token.clone()));
        managed.then_some(token).ok_or(DefinedCondition::UnexpectedRequest)
    }

    /// XEP-0198 §5: goes on with a session of this account through another connection. Returns our
    /// `h`.
    pub(super) fn resume(
        &mut self,
        account: &BareJid,
        token: &str,
        h: u32,
        link: &Rc<Link>,
    ) -> Result<(SessionId, u32), Resume> {
        let sessions = self.accounts.get(account).map_or(&[][..], |account| &account.sessions);
        let found = sessions.iter().copied().find(|id| {
            self.sessions.get(id).and_then(Session::token).is_some_and(|known| known == token)
        });
        let id = found.ok_or(Resume::NotFound)?;
        let session = self.sessions.get_mut(&id).ok_or(Resume::NotFound)?;
        session.acknowledge(h).map_err(Resume::TooHigh)?;
        session.attach(Rc::clone(link));
        Ok((id, session.height().unwrap_or_default()))
    }

    /// The client closed its stream.
    pub(super) fn close(&mut self, id: SessionId, link: &Rc<Link>) {
        if self.owned(id, link).is_some() {
            self.remove(id, None);
            self.bury();
        }
    }

    /// The connection is gone without a word: a session that can be resumed waits.
    pub(super) fn lost(&mut self, id: SessionId, link: &Rc<Link>) {
        match self.owned(id, link) {
            Some(session) if session.token().is_some() => {
                session.detached = Some(limits::RESUME_SECONDS);
            }
            Some(_) => self.close(id, link),
            None => {}
        }
    }

    /// The connection of who may have logged in is gone before it was known to have a session.
    pub(super) fn abandon(&mut self, account: Option<&BareJid>, link: &Rc<Link>) {
        let found = self.sessions.iter().find(|(_, session)| Rc::ptr_eq(&session.link, link));
        if let Some(id) = found.map(|(id, _)| *id) {
            self.lost(id, link);
        }
        if let Some(account) = account {
            self.forget_temporary(account);
        }
    }

    /// Nothing is left of the anonymous without a session.
    fn forget_temporary(&mut self, jid: &BareJid) {
        if self.accounts.get(jid).is_some_and(|it| it.temporary && it.sessions.is_empty()) {
            self.forget(jid);
        }
    }

    /// A second has passed for those who wait.
    pub(super) fn tick(&mut self) {
        let mut over = Vec::new();
        for (id, session) in &mut self.sessions {
            if let Some(left) = &mut session.detached {
                *left = left.saturating_sub(1);
                if *left == 0 {
                    over.push(*id);
                }
            }
        }
        for id in over {
            self.remove(id, None);
        }
        self.bury();
    }

    /// The server stops: every connection is told.
    pub(super) fn shutdown(&mut self) {
        let sessions = self.sessions.values().map(|session| &session.link);
        for link in sessions.chain(&self.entering) {
            link.finish(End::Shutdown);
        }
    }

    fn owned(&mut self, id: SessionId, link: &Rc<Link>) -> Option<&mut Session> {
        self.sessions.get_mut(&id).filter(|session| Rc::ptr_eq(&session.link, link))
    }

    /// The account of a name of ours, made if there is room: every name may log in.
    pub(super) fn account(&mut self, jid: &BareJid) -> Option<&mut Account> {
        if self.accounts.len() >= limits::ACCOUNTS && !self.accounts.contains_key(jid) {
            // Who has no session makes room; first who was only written to.
            let idle = self.accounts.iter().filter(|(_, account)| account.sessions.is_empty());
            let idle = idle.min_by_key(|(_, account)| account.seen);
            let idle = idle.map(|(jid, _)| jid.clone())?;
            self.forget(&idle);
        }
        Some(self.accounts.entry(jid.clone()).or_default())
    }

    fn forget(&mut self, jid: &BareJid) {
        if let Some(account) = self.accounts.remove(jid) {
            let weight: usize = account.offline.iter().map(|(_, weight)| weight).sum();
            self.offline_weight -= weight;
        }
    }

    /// The session with exactly this address.
    pub(super) fn session_at(&self, jid: &FullJid) -> Option<SessionId> {
        let account = self.accounts.get(&jid.to_bare())?;
        account
            .sessions
            .iter()
            .copied()
            .find(|id| self.sessions.get(id).is_some_and(|session| session.jid == *jid))
    }

    /// The sessions of an account that pass a test.
    pub(super) fn sessions_of(
        &self,
        account: &BareJid,
        test: impl Fn(&Session) -> bool,
    ) -> Vec<SessionId> {
        let sessions = self.accounts.get(account).map_or(&[][..], |account| &account.sessions);
        let passes = |id: &SessionId| self.sessions.get(id).is_some_and(&test);
        sessions.iter().copied().filter(passes).collect()
    }

    /// Those of them that are available.
    pub(super) fn available(&self, account: &BareJid) -> Vec<SessionId> {
        self.sessions_of(account, |session| session.presence.is_some())
    }

    /// Gives a stanza to a session as it is.
    pub(super) fn deliver(&mut self, id: SessionId, element: Element) {
        if self.sessions.get_mut(&id).is_some_and(|session| session.push(element).is_err()) {
            self.doomed.push(id);
        }
    }

    /// Gives stanzas to the sessions they are addressed to.
    pub(super) fn deliver_all(&mut self, stanzas: Vec<(FullJid, Element)>) {
        for (to, element) in stanzas {
            if let Some(id) = self.session_at(&to) {
                self.deliver(id, element);
            }
        }
    }

    /// Answers a stanza with an error, if it is one to answer and its sender is there.
    pub(super) fn refuse(&mut self, element: &Element, condition: DefinedCondition) {
        let sender = stanza::sender(element).and_then(|jid| jid.try_into_full().ok());
        if let Some(id) = sender.and_then(|jid| self.session_at(&jid))
            && let Some(error) = stanza::error(element, condition)
        {
            self.deliver(id, error);
        }
    }

    /// Ends a session: others see it leave, its connection is told why, and what it has not seen
    /// goes where it can (XEP-0198 §5, XEP-0160).
    fn remove(&mut self, id: SessionId, end: Option<End>) {
        self.leave(id, None);
        let Some(session) = self.sessions.remove(&id) else { return };
        if let Some(end) = end {
            session.link.finish(end);
        }
        let name = session.account.clone();
        if let Some(account) = self.accounts.get_mut(&name) {
            account.sessions.retain(|other| *other != id);
        }
        self.forget_temporary(&name);
        for element in session.leftovers() {
            self.reroute(element);
        }
    }

    /// Ends the sessions that too much waits for. Each end may overflow another's queue, but there
    /// is one session less each time.
    fn bury(&mut self) {
        while let Some(id) = self.doomed.pop() {
            self.remove(id, Some(End::Overflow));
        }
    }
}

#[cfg(test)]
mod tests;

/// Why a stream is not resumed.
#[derive(Debug)]
pub(super) enum Resume {
    /// There is no such session (any more).
    NotFound,
    /// The client claims to have seen more than was sent.
    TooHigh(HandledCountTooHigh),
}
