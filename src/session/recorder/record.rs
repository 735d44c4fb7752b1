//! What is recorded of one session, and the hand that its task writes it with.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::rc::Rc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::event::{Event, Rid, Ring, Side, What, millis};
use crate::metrics::Transport;
use crate::proto::domain::Domain;
use crate::proto::fault::Fault;
use crate::proto::stream::{Stage, Tally};
use crate::upstream::Client;

/// A peer that takes its bytes sooner has not stalled.
const STALL: u32 = 1000;

/// One session, as it is shown.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its number in the log.
    pub id: u64,
    /// When it began, in milliseconds since 1970.
    pub begun: u64,
    /// How it is reached; unknown until a WebSocket's first message.
    pub transport: Option<Transport>,
    /// The client's address, as far as it can be trusted.
    pub address: Option<SocketAddr>,
    /// The client has TLS.
    pub secure: bool,
    /// The domain of its stream.
    pub domain: Option<Domain>,
    /// What the server calls the client.
    pub jid: Option<Box<str>>,
    /// How far its stream came.
    pub stage: Stage,
    /// Why it ends, or has ended.
    pub fault: Option<Fault>,
    /// It is over, after so many milliseconds, one at the least.
    pub over: Option<NonZeroU32>,
    /// Elements and bytes that passed to the server.
    pub to_server: Passed,
    /// Elements and bytes that passed to the client.
    pub to_client: Passed,
    /// When the client was heard last, in milliseconds since it began.
    pub client_heard: u32,
    /// The same of the server, once its stream stands; one at the least.
    pub server_heard: Option<NonZeroU32>,
    /// What happened last.
    pub events: Ring,
    /// BOSH: the rid it began with.
    pub first_rid: u64,
    opened: Instant,
    /// Since when bytes wait for either side, if they do.
    waiting: [u32; 2],
}

/// What passed in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Stanzas and all else.
    pub elements: u32,
    /// Their bytes.
    pub bytes: u64,
}

/// How far a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It goes on.
    Live,
    /// It has a reason to end, and both sides are being told.
    Ending,
    /// It is over.
    Ended,
}

impl State {
    /// The word for it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Ending => "ending",
            Self::Ended => "ended",
        }
    }
}

impl Record {
    /// Of a session of `client` that begins now; it keeps `events`.
    pub(crate) fn new(
        client: &Client,
        transport: Option<Transport>,
        events: usize,
        now: Instant,
    ) -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            id: client.id,
            begun: u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX),
            transport,
            address: client.address,
            secure: client.secure,
            domain: None,
            jid: None,
            stage: Stage::default(),
            fault: None,
            over: None,
            to_server: Passed::default(),
            to_client: Passed::default(),
            client_heard: 0,
            server_heard: None,
            events: Ring::new(events),
            first_rid: 0,
            opened: now,
            waiting: [0; 2],
        }
    }

    /// How far it is.
    #[must_use]
    pub fn state(&self) -> State {
        match (self.over, self.fault) {
            (Some(_), _) => State::Ended,
            (None, Some(_)) => State::Ending,
            (None, None) => State::Live,
        }
    }

    /// Milliseconds that it has lasted, at `now` if it goes on.
    #[must_use]
    pub fn lasted(&self, now: Instant) -> u32 {
        self.over.map_or_else(|| millis(self.opened, now), NonZeroU32::get)
    }

    /// The rid that is told in this way.
    #[must_use]
    pub fn rid(&self, rid: Rid) -> Option<u64> {
        rid.map(|rid| self.first_rid + u64::from(rid.get()) - 1)
    }

    /// All of it but its events.
    pub(crate) fn summary(&self) -> Self {
        let Self { address, stage, fault, over, to_server, to_client, .. } = *self;
        let Self { id, begun, transport, secure, client_heard, server_heard, .. } = *self;
        Self {
            id,
            begun,
            transport,
            address,
            secure,
            domain: self.domain.clone(),
            jid: self.jid.clone(),
            stage,
            fault,
            over,
            to_server,
            to_client,
            client_heard,
            server_heard,
            events: Ring::default(),
            first_rid: self.first_rid,
            opened: self.opened,
            waiting: self.waiting,
        }
    }

    fn at_least_one(&self, now: Instant) -> u32 {
        millis(self.opened, now).max(1)
    }

    fn note(&mut self, what: What, now: Instant) {
        self.events.push(Event { at: millis(self.opened, now), what });
    }

    fn ends(&mut self, fault: Fault, now: Instant) {
        if self.fault.is_none() {
            self.fault = Some(fault);
            let silent = millis(self.opened, now).saturating_sub(self.client_heard);
            self.note(What::Ending { fault, silent }, now);
        }
    }
}

/// Which sessions are meant: those that fit all that is asked.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// A JID, with a resource or without.
    pub jid: Option<String>,
    /// A client's address.
    pub address: Option<IpAddr>,
    /// That address's port.
    pub port: Option<u16>,
    /// The domain of the stream.
    pub domain: Option<Domain>,
    /// The transport.
    pub transport: Option<Transport>,
    /// How far it is.
    pub state: Option<State>,
}

impl Filter {
    /// Whether `record` is meant.
    #[must_use]
    pub fn fits(&self, record: &Record) -> bool {
        let fits_address = |address: IpAddr| {
            record.address.is_some_and(|known| known.ip().to_canonical() == address.to_canonical())
        };
        self.jid.as_deref().is_none_or(|jid| fits_jid(jid, record.jid.as_deref()))
            && self.address.is_none_or(fits_address)
            && self.port.is_none_or(|port| record.address.is_some_and(|at| at.port() == port))
            && self.domain.as_ref().is_none_or(|domain| record.domain.as_ref() == Some(domain))
            && self.transport.is_none_or(|transport| record.transport == Some(transport))
            && self.state.is_none_or(|state| record.state() == state)
    }
}

/// Whether a session with the JID `known` is meant by `asked`, which may be bare. Servers prepare
/// JIDs and people do not, so that letters count as equal in either case, but in a resource.
fn fits_jid(asked: &str, known: Option<&str>) -> bool {
    let Some(known) = known else { return false };
    let split = |jid: &str| jid.find('/').unwrap_or(jid.len());
    let (asked, resource) = asked.split_at(split(asked));
    let (known, known_resource) = known.split_at(split(known));
    known.eq_ignore_ascii_case(asked) && (resource.is_empty() || resource == known_resource)
}

/// The hand of a session's task: a plain store in memory of its own thread for each event, and
/// nothing at all where nothing is recorded.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recording(Option<Rc<RefCell<Record>>>);

impl Recording {
    /// Of nothing.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    pub(crate) fn new(record: Record) -> Self {
        Self(Some(Rc::new(RefCell::new(record))))
    }

    /// Looks at what is recorded.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&Record) -> T) -> Option<T> {
        self.0.as_ref().map(|record| look(&record.borrow()))
    }

    fn write(&self, write: impl FnOnce(&mut Record)) {
        if let Some(record) = &self.0 {
            write(&mut record.borrow_mut());
        }
    }

    /// Something has happened.
    pub(crate) fn note(&self, what: What, now: Instant) {
        self.write(|record| record.note(what, now));
    }

    /// The transport is known.
    pub(crate) fn transport(&self, transport: Transport) {
        self.write(|record| record.transport = Some(transport));
    }

    /// A BOSH session was created by a request with this rid.
    pub(crate) fn created(&self, rid: u64, now: Instant) {
        self.write(|record| {
            record.first_rid = rid;
            record.note(What::Created, now);
        });
    }

    /// The client has opened a stream to this domain.
    pub(crate) fn opening(&self, domain: &Domain, now: Instant) {
        self.write(|record| {
            record.domain = Some(domain.clone());
            record.note(What::Opening, now);
        });
    }

    /// This rid as events tell it.
    pub(crate) fn rid(&self, rid: u64) -> Rid {
        self.look(|record| {
            let far = rid.checked_sub(record.first_rid)?.checked_add(1)?;
            NonZeroU32::new(u32::try_from(far).ok()?)
        })
        .flatten()
    }

    /// The client said something.
    pub(crate) fn client_heard(&self, now: Instant) {
        self.write(|record| record.client_heard = millis(record.opened, now));
    }

    /// The server said something.
    pub(crate) fn server_heard(&self, now: Instant) {
        self.write(|record| record.server_heard = NonZeroU32::new(record.at_least_one(now)));
    }

    /// So much has passed.
    pub(crate) fn count(&self, tally: &Tally, now: Instant) {
        let (up, down) = (&tally.to_server, &tally.to_client);
        if up.bytes == 0 && down.bytes == 0 && tally.failures == 0 {
            return;
        }
        self.write(|record| {
            for (passed, flow) in [(&mut record.to_server, up), (&mut record.to_client, down)] {
                passed.elements = passed.elements.saturating_add(flow.total());
                passed.bytes = passed.bytes.saturating_add(flow.bytes);
            }
            if tally.failures > 0 {
                record.note(What::LoginFailed(tally.failures), now);
            }
        });
    }

    /// Whether bytes wait for that side now, and did before.
    pub(crate) fn waits(&self, side: Side, before: bool, waits: bool, now: Instant) {
        if before == waits {
            return;
        }
        self.write(|record| {
            let at = millis(record.opened, now);
            let since = &mut record.waiting[side as usize];
            if waits {
                *since = at;
                return;
            }
            let ms = at.saturating_sub(*since);
            if ms >= STALL {
                record.note(What::Stalled { side, ms }, now);
            }
        });
    }

    /// The stream has come so far.
    pub(crate) fn stage(&self, stage: Stage, now: Instant) {
        self.write(|record| {
            let was = std::mem::replace(&mut record.stage, stage);
            for (is, was, what) in [
                (stage.authenticated, was.authenticated, What::Authenticated),
                (stage.resumed, was.resumed, What::Resumed),
                (stage.bound && !stage.resumed, was.bound, What::Bound),
                (stage.managed && !stage.resumed, was.managed, What::Managed),
            ] {
                if is && !was {
                    record.note(what, now);
                }
            }
        });
    }

    /// The server calls the client so.
    pub(crate) fn jid(&self, jid: Box<str>) {
        self.write(|record| record.jid = Some(jid));
    }

    /// The session has a reason to end.
    pub(crate) fn ends(&self, fault: Fault, now: Instant) {
        self.write(|record| record.ends(fault, now));
    }

    /// The session is over, for that reason, and so is the recording, which no other hand may have
    /// any more.
    pub(crate) fn finish(&mut self, fault: Fault, now: Instant) -> Option<Record> {
        let record = Rc::into_inner(self.0.take()?);
        debug_assert!(record.is_some(), "somebody else writes, too");
        let mut record = record?.into_inner();
        if record.fault != Some(fault) {
            // What the log and the metrics say, which is another thing where a task panicked.
            record.fault = None;
            record.ends(fault, now);
        }
        record.over = NonZeroU32::new(record.at_least_one(now));
        record.events.shrink();
        Some(record)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
mod tests {
    use super::*;
    use std::time::Duration;

    fn record(now: Instant) -> Record {
        let address = "192.0.2.1:5000".parse().ok();
        let client = Client { address, id: 7, ..Client::default() };
        Record::new(&client, Some(Transport::Bosh), 4, now)
    }

    #[test]
    fn a_record_fits_what_is_asked() {
        let mut record = record(Instant::now());
        record.jid = Some("ayse@example.org/Kitchen".into());
        record.domain = Domain::parse("example.org").ok();
        let jid = |jid: &str| Filter { jid: Some(jid.to_owned()), ..Filter::default() };
        for yes in [
            Filter::default(),
            jid("ayse@example.org"),
            jid("Ayse@Example.org/Kitchen"),
            Filter { address: "::ffff:192.0.2.1".parse().ok(), ..Filter::default() },
            Filter { port: Some(5000), ..Filter::default() },
            Filter { domain: Domain::parse("EXAMPLE.org").ok(), ..Filter::default() },
            Filter { transport: Some(Transport::Bosh), ..jid("ayse@example.org") },
            Filter { state: Some(State::Live), ..Filter::default() },
        ] {
            assert!(yes.fits(&record), "{yes:?}");
        }
        for no in [
            jid("ayse@example.org/kitchen"),
            jid("ayse@example.or"),
            jid("ayse"),
            jid("example.org"),
            jid(""),
            Filter { address: "192.0.2.2".parse().ok(), ..Filter::default() },
            Filter { port: Some(5001), ..Filter::default() },
            Filter { domain: Domain::parse("example.net").ok(), ..Filter::default() },
            Filter { transport: Some(Transport::Websocket), ..jid("ayse@example.org") },
            Filter { state: Some(State::Ended), ..Filter::default() },
        ] {
            assert!(!no.fits(&record), "{no:?}");
        }
        record.jid = None;
        assert!(!jid("ayse@example.org").fits(&record));
    }

    /// The first reason stands; how long the client was silent before is said with it.
    #[test]
    fn a_record_ends_once() {
        let now = Instant::now();
        let after = |ms| now + Duration::from_millis(ms);
        let mut recording = Recording::new(record(now));
        recording.created(1 << 52, now);
        recording.client_heard(after(100));
        recording.ends(Fault::Inactive, after(350));
        assert_eq!(recording.look(Record::state), Some(State::Ending));
        recording.ends(Fault::Closed, after(400));
        let record = recording.finish(Fault::Inactive, after(500)).unwrap();
        assert_eq!((record.state(), record.over), (State::Ended, NonZeroU32::new(500)));
        assert_eq!(record.lasted(after(9000)), 500);
        let ending = What::Ending { fault: Fault::Inactive, silent: 250 };
        let events: Vec<_> = record.events.iter().copied().collect();
        assert_eq!(events, [Event { at: 0, what: What::Created }, Event { at: 350, what: ending }]);
        assert!(recording.finish(Fault::Bug, after(501)).is_none());
        assert_eq!(recording.look(|_| ()), None, "nothing is written any more");

        let mut recording = Recording::new(self::record(now));
        recording.ends(Fault::Inactive, now);
        let record = recording.finish(Fault::Bug, now).unwrap();
        assert_eq!(record.fault, Some(Fault::Bug), "a panic has the last word");
    }

    /// Rids are told as they were sent, as far as they can be the session's.
    #[test]
    fn rids_come_back() {
        let now = Instant::now();
        let first = (1 << 53) - 5;
        let mut recording = Recording::new(record(now));
        recording.created(first, now);
        for (rid, told) in [
            (first, Some(first)),
            (first + 4, Some(first + 4)),
            (first - 1, None),
            (0, None),
            (u64::MAX, None),
        ] {
            let rid = recording.rid(rid);
            assert_eq!(recording.look(|record| record.rid(rid)), Some(told));
        }
        assert_eq!(Recording::none().rid(first), None);
        assert!(recording.finish(Fault::Closed, now).is_some());
    }

    /// What each session has of it in memory, its events and names not among it.
    #[test]
    fn a_record_is_small() {
        let shared = size_of::<RefCell<Record>>() + 2 * size_of::<usize>();
        assert!(shared <= 224, "{shared} bytes");
    }

    /// Only a peer that lets bytes wait for long has stalled.
    #[test]
    fn stalls_are_long() {
        let now = Instant::now();
        let after = |ms| now + Duration::from_millis(ms);
        let recording = Recording::new(record(now));
        for (from, to) in [(10, 20), (100, 1099), (2000, 5000)] {
            recording.waits(Side::Client, false, true, after(from));
            recording.waits(Side::Client, true, true, after(from + 1));
            recording.waits(Side::Client, true, false, after(to));
        }
        let stalled = What::Stalled { side: Side::Client, ms: 3000 };
        let events = recording.look(|record| record.events.iter().copied().collect::<Vec<_>>());
        assert_eq!(events, Some(vec![Event { at: 5000, what: stalled }]));
    }
}
