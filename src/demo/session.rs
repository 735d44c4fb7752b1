//! One session: what waits for its socket, what waits for its acknowledgement (XEP-0198), what it
//! has said of itself.

use std::cell::Cell;
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;

use minidom::Element;
use tokio::sync::Notify;
use xmpp_parsers::jid::{BareJid, FullJid, Jid};
use xmpp_parsers::sm::HandledCountTooHigh;
use xmpp_parsers::stream_error::DefinedCondition;

use super::{limits, stanza};

/// What a connection and its session share: the session wakes the connection, or ends it.
#[derive(Debug, Default)]
pub(super) struct Link {
    notify: Notify,
    end: Cell<Option<End>>,
}

/// Why a session ends its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Another connection took the resource, or resumed the stream.
    Conflict,
    /// Too much waited for the client.
    Overflow,
    /// The server stops.
    Shutdown,
}

impl End {
    /// The stream error that says so.
    pub(super) fn condition(self) -> DefinedCondition {
        match self {
            Self::Conflict => DefinedCondition::Conflict,
            Self::Overflow => DefinedCondition::ResourceConstraint,
            Self::Shutdown => DefinedCondition::SystemShutdown,
        }
    }
}

impl Link {
    /// Waits until there is something to do.
    pub(super) async fn woken(&self) {
        self.notify.notified().await;
    }

    /// Why the connection is to end, if it is.
    pub(super) fn end(&self) -> Option<End> {
        self.end.get()
    }

    /// Ends the connection.
    pub(super) fn finish(&self, end: End) {
        self.end.set(Some(end));
        self.notify.notify_one();
    }
}

/// A stanza and what it weighs.
#[derive(Debug)]
struct Queued(Element, usize);

/// More than [`limits::QUEUE_STANZAS`] or [`limits::QUEUE_BYTES`] would wait.
#[derive(Debug)]
pub(super) struct Overflow;

/// Stream management (XEP-0198).
#[derive(Debug)]
struct Management {
    /// What resumes the stream; `None` if it may not be resumed.
    token: Option<String>,
    /// Stanzas received since it was enabled.
    received: u32,
    /// Stanzas that the client has acknowledged.
    acknowledged: u32,
    /// Those sent after them.
    sent: VecDeque<Queued>,
}

/// A bound resource.
#[derive(Debug)]
pub(super) struct Session {
    /// The full address.
    pub(super) jid: FullJid,
    /// The address without the resource.
    pub(super) account: BareJid,
    /// The connection, or the last one.
    pub(super) link: Rc<Link>,
    /// Seconds left to resume it; `None` while it has a connection.
    pub(super) detached: Option<u32>,
    /// The last presence sent to everyone; `None` while unavailable.
    pub(super) presence: Option<Element>,
    /// RFC 6121 §2.1.6: it has asked for the roster.
    pub(super) interested: bool,
    /// XEP-0280: it wants copies.
    pub(super) carbons: bool,
    /// Who was sent presence directly (RFC 6121 §4.6).
    pub(super) directed: BTreeSet<Jid>,
    waiting: VecDeque<Queued>,
    weight: usize,
    management: Option<Management>,
}

impl Session {
    /// One that has just been bound.
    pub(super) fn new(jid: FullJid, link: Rc<Link>) -> Self {
        Self {
            account: jid.to_bare(),
            jid,
            link,
            detached: None,
            presence: None,
            interested: false,
            carbons: false,
            directed: BTreeSet::new(),
            waiting: VecDeque::new(),
            weight: 0,
            management: None,
        }
    }

    /// RFC 6121 §4.7.2.3; 0 if it says none.
    pub(super) fn priority(&self) -> Option<i8> {
        let presence = self.presence.as_ref()?;
        let priority = presence.get_child("priority", xmpp_parsers::ns::JABBER_CLIENT);
        Some(priority.and_then(|priority| priority.text().trim().parse().ok()).unwrap_or(0))
    }

    /// Queues a stanza for the client.
    pub(super) fn push(&mut self, element: Element) -> Result<(), Overflow> {
        let weight = stanza::weight(&element);
        let sent = self.management.as_ref().map_or(0, |management| management.sent.len());
        if self.waiting.len() + sent >= limits::QUEUE_STANZAS
            || self.weight + weight > limits::QUEUE_BYTES
        {
            return Err(Overflow);
        }
        self.weight += weight;
        self.waiting.push_back(Queued(element, weight));
        if self.detached.is_none() {
            self.link.notify.notify_one();
        }
        Ok(())
    }

    /// The next stanza to write. With stream management it is kept until it is acknowledged.
    pub(super) fn pop(&mut self) -> Option<Element> {
        let Queued(element, weight) = self.waiting.pop_front()?;
        match &mut self.management {
            Some(management) => management.sent.push_back(Queued(element.clone(), weight)),
            None => self.weight -= weight,
        }
        Some(element)
    }

    /// Whether stanzas were sent that are not acknowledged.
    pub(super) fn wants_acknowledgement(&self) -> bool {
        self.management.as_ref().is_some_and(|management| !management.sent.is_empty())
    }

    /// Counts from here on (XEP-0198 §3); `token` if the stream may be resumed. `false` if it
    /// counted already.
    pub(super) fn manage(&mut self, token: Option<String>) -> bool {
        if self.management.is_some() {
            return false;
        }
        let sent = VecDeque::new();
        self.management = Some(Management { token, received: 0, acknowledged: 0, sent });
        true
    }

    /// A stanza of the client was taken.
    pub(super) fn count(&mut self) {
        if let Some(management) = &mut self.management {
            management.received = management.received.wrapping_add(1);
        }
    }

    /// Our `h`; `None` without stream management.
    pub(super) fn height(&self) -> Option<u32> {
        self.management.as_ref().map(|management| management.received)
    }

    /// What resumes it.
    pub(super) fn token(&self) -> Option<&str> {
        self.management.as_ref()?.token.as_deref()
    }

    /// The client's `h` (XEP-0198 §4), which counts modulo 2^32.
    pub(super) fn acknowledge(&mut self, h: u32) -> Result<(), HandledCountTooHigh> {
        let Some(management) = &mut self.management else { return Ok(()) };
        let fresh = h.wrapping_sub(management.acknowledged) as usize;
        if fresh > management.sent.len() {
            let sent = u32::try_from(management.sent.len()).unwrap_or(u32::MAX);
            let send_count = management.acknowledged.wrapping_add(sent);
            return Err(HandledCountTooHigh { h, send_count });
        }
        let weight: usize = management.sent.drain(..fresh).map(|Queued(_, weight)| weight).sum();
        management.acknowledged = h;
        self.weight -= weight;
        Ok(())
    }

    /// Another connection goes on with it: what was not acknowledged is to be sent again, first.
    pub(super) fn attach(&mut self, link: Rc<Link>) {
        self.link.finish(End::Conflict);
        link.notify.notify_one();
        self.link = link;
        self.detached = None;
        if let Some(management) = &mut self.management {
            let mut again = std::mem::take(&mut management.sent);
            again.append(&mut self.waiting);
            self.waiting = again;
        }
    }

    /// All that the client may not have seen.
    pub(super) fn leftovers(self) -> impl Iterator<Item = Element> {
        let sent = self.management.map(|management| management.sent).unwrap_or_default();
        sent.into_iter().chain(self.waiting).map(|Queued(element, _)| element)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Session {
        let jid = FullJid::new("a@localhost/x").expect("a JID");
        let mut session = Session::new(jid, Rc::default());
        assert!(session.manage(Some("token".to_owned())));
        session
    }

    fn message(id: &str) -> Element {
        stanza::stanza("message", &[("id", id)])
    }

    fn ids(elements: impl Iterator<Item = Element>) -> Vec<String> {
        elements.map(|element| element.attr("id").unwrap_or_default().to_owned()).collect()
    }

    #[test]
    fn a_resumed_session_sends_again_what_was_not_acknowledged() {
        let mut session = session();
        for id in ["1", "2", "3"] {
            session.push(message(id)).expect("room");
        }
        assert_eq!(ids(std::iter::from_fn(|| session.pop())), ["1", "2", "3"]);
        session.acknowledge(1).expect("one of three");
        session.push(message("4")).expect("room");
        session.attach(Rc::default());
        assert_eq!(ids(std::iter::from_fn(|| session.pop())), ["2", "3", "4"]);
        session.acknowledge(4).expect("all");
        assert_eq!(session.weight, 0);
        assert_eq!(session.leftovers().count(), 0);
    }

    #[test]
    fn more_cannot_be_acknowledged_than_was_sent() {
        let mut session = session();
        session.push(message("1")).expect("room");
        assert!(session.pop().is_some());
        assert_eq!(session.acknowledge(2).map_err(|error| error.send_count), Err(1));
        assert_eq!(session.acknowledge(0).map_err(|error| error.send_count), Ok(()));
        assert_eq!(session.acknowledge(u32::MAX).map_err(|error| error.send_count), Err(1));
    }

    #[test]
    fn acknowledgements_count_over_the_end_of_the_numbers() {
        let mut session = session();
        let management = session.management.as_mut().expect("managed");
        management.acknowledged = u32::MAX;
        session.push(message("1")).expect("room");
        assert!(session.pop().is_some());
        assert!(session.acknowledge(0).is_ok());
        assert_eq!(session.leftovers().count(), 0);
    }

    #[test]
    fn a_queue_has_an_end() {
        let mut session = session();
        for _ in 0..limits::QUEUE_STANZAS {
            session.push(message("1")).expect("room");
        }
        assert!(session.push(message("1")).is_err());
        // Written is not yet acknowledged.
        while session.pop().is_some() {}
        assert!(session.push(message("1")).is_err());
    }

    #[test]
    fn a_queue_has_a_weight() {
        let mut session = session();
        let mut large = message("1");
        large.append_text("x".repeat(limits::QUEUE_BYTES / 2));
        session.push(large.clone()).expect("room");
        assert!(session.push(large).is_err());
    }
}
