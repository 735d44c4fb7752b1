//! What the sessions of one worker thread share.
//!
//! A session is only ever polled on the thread that accepted it, and never while another one is:
//! so one set of buffers serves them all, and a session owns memory only for what is incomplete.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

use tracing::{Span, debug, error, info, warn};

use super::addresses::{Addresses, SessionPlace};
use super::budget::Budget;
use super::fallbacks::Fallbacks;
use super::recorder::Recorder;
use super::recorder::record::{Record, Recording};
use super::registry::Registry;
use super::returns::{Returns, User};
use crate::metrics::{Direction, Limit, Local, Metrics, Transport};
use crate::proto::fault::{Blame, Fault, Level};
use crate::proto::stream::Tally;
use crate::proto::ws::session::Out;
use crate::proto::xml::Scratch;
use crate::proto::{bosh, origins, ws};
use crate::upstream::{Client, Connector};

/// Bytes read from a socket at a time.
pub const READ_CHUNK: usize = 64 * 1024;

/// What a buffer has room for from the start and keeps: most stanzas are far smaller, and what a
/// burst made of it is given back, so that it does not stay in the resident set.
const KEEP: usize = 16 * 1024;

/// What a process has once; cheap to clone into every worker.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// The BOSH sessions by sid.
    pub registry: Arc<Registry>,
    /// Sessions of the process, all listeners together.
    pub sessions: Arc<Sessions>,
    /// What happened to each of them last.
    pub recorder: Arc<Recorder>,
}

/// What sessions are made with. A reload of the configuration puts another in its place; a session
/// keeps the one it began with.
#[derive(Debug)]
pub struct Live {
    /// The way to the servers.
    pub connector: Connector,
    /// The numbers of the WebSocket's machine.
    pub settings: Arc<ws::Settings>,
    /// The numbers of BOSH's machine.
    pub bosh: Arc<bosh::Settings>,
    /// Which pages may open streams of which domain over WebSocket.
    pub websocket_origins: origins::ByDomain,
    /// The same over BOSH.
    pub bosh_origins: origins::ByDomain,
    /// How long a socket may take no byte while there are some for it.
    pub stall_timeout: Duration,
}

/// The number of sessions, bounded.
#[derive(Debug)]
pub struct Sessions {
    open: AtomicUsize,
    limit: AtomicUsize,
    addresses: Arc<Addresses>,
    returns: Returns,
    fallbacks: Fallbacks,
    budget: Budget,
    draining: tokio::sync::watch::Sender<Option<Drain>>,
}

/// The end of the process, as its sessions see it.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// When it began.
    pub begun: Instant,
    /// The time over which the sessions end; with zero all end at once.
    pub window: Duration,
}

impl Drain {
    /// When the session of this number ends. Numbers that follow each other are spread evenly over
    /// the window, however many there are (Fibonacci hashing), so that the clients do not come back
    /// all at once.
    #[must_use]
    pub fn turn(&self, id: u64) -> Instant {
        const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
        // Of 2^16; both fit, so that the product does.
        let share = u32::from((id.wrapping_mul(GOLDEN) >> 48) as u16);
        self.begun + self.window / (1 << 16) * share
    }

    /// When the window has passed.
    #[must_use]
    pub fn end(&self) -> Instant {
        self.begun + self.window
    }
}

/// Why there is no place for another session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPlace {
    /// The process is shutting down.
    Draining,
    /// A limit was reached.
    Limit(Limit),
}

impl NoPlace {
    /// The word in the log: the key of the limit, if it is one.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Draining => "drain",
            Self::Limit(limit) => limit.key(),
        }
    }
}

impl Sessions {
    /// None yet, and never more than `limit`, nor more than `addresses` allows each, nor one more
    /// while they hold more than `budget`.
    #[must_use]
    pub fn new(limit: usize, addresses: Arc<Addresses>, budget: Budget) -> Self {
        Self {
            open: AtomicUsize::new(0),
            limit: AtomicUsize::new(limit),
            addresses,
            returns: Returns::default(),
            fallbacks: Fallbacks::default(),
            budget,
            draining: tokio::sync::watch::Sender::new(None),
        }
    }

    /// Another limit from now on. Who is there stays, though they be too many now.
    pub fn limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Release);
    }

    /// A place for one more session of `client`, if that has an address that counts; given back
    /// when the permit is dropped.
    ///
    /// # Errors
    /// [`NoPlace`]
    pub fn admit(
        self: &Arc<Self>,
        client: Option<IpAddr>,
        now: Instant,
    ) -> Result<Permit, NoPlace> {
        if self.is_draining() {
            return Err(NoPlace::Draining);
        }
        self.admit_to_redirect(client, now)
    }

    /// The same while draining, too: for a client that will be sent elsewhere as soon as it has
    /// opened its stream (WS-38).
    ///
    /// # Errors
    /// [`NoPlace::Limit`]
    pub fn admit_to_redirect(
        self: &Arc<Self>,
        client: Option<IpAddr>,
        now: Instant,
    ) -> Result<Permit, NoPlace> {
        if self.budget.is_exceeded() {
            return Err(NoPlace::Limit(Limit::Memory));
        }
        let limit = self.limit.load(Ordering::Acquire);
        self.open
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| {
                (open < limit).then_some(open + 1)
            })
            .map_err(|_| NoPlace::Limit(Limit::Sessions))?;
        let mut permit = Permit { sessions: Arc::clone(self), place: None };
        permit.place = self.addresses.session(client, now).map_err(NoPlace::Limit)?;
        Ok(permit)
    }

    /// Who comes back soon.
    #[must_use]
    pub fn returns(&self) -> &Returns {
        &self.returns
    }

    /// Where WebSockets come to nothing.
    #[must_use]
    pub fn fallbacks(&self) -> &Fallbacks {
        &self.fallbacks
    }

    /// What each address has.
    #[must_use]
    pub fn addresses(&self) -> &Arc<Addresses> {
        &self.addresses
    }

    /// What they hold, and may.
    #[must_use]
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Sessions open now, those that are closing included.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Whether [`Sessions::drain`] was called.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.borrow().is_some()
    }

    /// No further session is admitted, and every worker ends its own within the window.
    pub fn drain(&self, drain: Drain) {
        self.draining.send_replace(Some(drain));
    }
}

/// The right to be a session.
#[derive(Debug)]
pub struct Permit {
    sessions: Arc<Sessions>,
    place: Option<SessionPlace>,
}

impl Permit {
    /// The session is more than a stranger's from now on (SEC-16).
    pub(crate) fn authenticated(&mut self) {
        self.place.iter_mut().for_each(SessionPlace::authenticated);
    }

    /// The server has refused so many logins.
    pub(crate) fn failed(&self, logins: u32, now: Instant) {
        self.place.iter().for_each(|place| place.failed(logins, now));
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.sessions.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What counts as one address: an IPv4 address, or the /64 that one IPv6 customer has (SEC-16).
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let prefix = address.to_bits() & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from_bits(prefix))
        }
        address @ IpAddr::V4(_) => address,
    }
}

/// The buffers of one thread.
#[derive(Debug)]
pub struct Buffers {
    /// What was read last.
    pub read: Vec<u8>,
    /// What a WebSocket session writes.
    pub out: Out,
    /// What a BOSH session writes and answers.
    pub bosh: bosh::session::Out,
    /// The scanner's working memory.
    pub scratch: Scratch,
}

impl Buffers {
    fn new() -> Self {
        let mut buffers = Self {
            read: vec![0; READ_CHUNK],
            out: Out::default(),
            bosh: bosh::session::Out::default(),
            scratch: Scratch::default(),
        };
        buffers.written().into_iter().for_each(|buffer| buffer.reserve_exact(KEEP));
        buffers
    }

    /// Those that are written into.
    fn written(&mut self) -> [&mut Vec<u8>; 3] {
        [&mut self.out.client, &mut self.out.server, &mut self.bosh.server]
    }

    /// Starts a poll. The buffers are empty unless a session panicked in the middle of its own,
    /// and then what it left must not reach another's peers.
    pub fn begin(&mut self) {
        self.out.client.clear();
        self.out.server.clear();
        self.out.tally = Tally::default();
        self.bosh.server.clear();
        self.bosh.responses.clear();
        self.bosh.forwarded.clear();
        self.bosh.tally = Tally::default();
        self.bosh.counts = bosh::session::Counts::default();
    }

    /// Gives back what one large burst made grow.
    pub fn trim(&mut self) {
        for buffer in self.written() {
            buffer.clear();
            if buffer.capacity() > KEEP {
                buffer.shrink_to(KEEP);
            }
        }
        self.scratch.release();
    }
}

/// Lets one warning of a kind through in a second: when a server goes down, ten thousand sessions
/// have the same to say.
#[derive(Debug, Default)]
pub struct Throttle {
    last: Cell<Option<Instant>>,
    held_back: Cell<u64>,
}

impl Throttle {
    /// `Some` if it may be said at `now`, with how many were held back since the last one.
    pub fn admit(&self, now: Instant) -> Option<u64> {
        let is_due = self.last.get().is_none_or(|last| last + Duration::from_secs(1) <= now);
        if is_due {
            self.last.set(Some(now));
            Some(self.held_back.take())
        } else {
            self.held_back.set(self.held_back.get() + 1);
            None
        }
    }
}

/// A session, as its worker knows it.
#[derive(Debug)]
struct Known {
    waker: Waker,
    recording: Recording,
}

/// One worker thread.
#[derive(Debug)]
pub struct Worker {
    /// What the process has once.
    pub shared: Shared,
    /// What this thread counts for itself.
    pub local: Arc<Local>,
    /// Borrowed for the length of one poll of one session.
    pub buffers: RefCell<Buffers>,
    /// For warnings about the servers.
    pub server_warnings: Throttle,
    /// For warnings about too many clients.
    pub overload_warnings: Throttle,
    known: RefCell<HashMap<u64, Known>>,
    /// Sessions that an operator wants to end, until they have heard of it.
    kicked: RefCell<Vec<u64>>,
    next: Cell<u64>,
    /// The thread's own copy, since every session looks at it whenever something happens.
    draining: Cell<Option<Drain>>,
}

impl Worker {
    /// A worker, with tasks on the current thread that wake its sessions when the drain begins and
    /// answer what is asked of them.
    #[must_use]
    pub fn start(shared: Shared, first_id: u64) -> Rc<Self> {
        let worker = Rc::new(Self {
            local: shared.metrics.local(),
            buffers: RefCell::new(Buffers::new()),
            server_warnings: Throttle::default(),
            overload_warnings: Throttle::default(),
            known: RefCell::new(HashMap::new()),
            kicked: RefCell::new(Vec::new()),
            next: Cell::new(first_id),
            draining: Cell::new(None),
            shared,
        });
        let mut draining = worker.shared.sessions.draining.subscribe();
        let weak = Rc::downgrade(&worker);
        actix_rt::spawn(async move {
            let drain = draining.wait_for(Option::is_some).await.map(|drain| *drain);
            if let (Ok(drain), Some(worker)) = (drain, weak.upgrade()) {
                worker.draining.set(drain);
                for session in worker.known.borrow().values() {
                    session.waker.wake_by_ref();
                }
            }
        });
        let mut questions = worker.shared.recorder.enlist();
        let weak = Rc::downgrade(&worker);
        actix_rt::spawn(async move {
            while let Some(question) = questions.recv().await
                && let Some(worker) = weak.upgrade()
            {
                question(&worker);
            }
        });
        worker
    }

    /// The drain, once it has begun and this thread has heard of it; its sessions are woken then.
    pub(crate) fn draining(&self) -> Option<Drain> {
        self.draining.get()
    }

    /// A number for the log, unlike any other of this process.
    pub fn next_id(&self) -> u64 {
        let id = self.next.get();
        self.next.set(id.wrapping_add(1));
        id
    }

    /// Adds what a session of `transport` has counted; without one, nothing of it has passed yet.
    pub(crate) fn count(&self, transport: Option<Transport>, tally: &Tally) {
        if tally.is_empty() {
            return;
        }
        if let Some(transport) = transport {
            self.local.passed(transport, Direction::ToServer, &tally.to_server);
            self.local.passed(transport, Direction::ToClient, &tally.to_client);
        }
        let metrics = &self.shared.metrics;
        for (counter, count) in [
            (&metrics.repaired, tally.repaired),
            (&metrics.emptied, tally.emptied),
            (&metrics.dropped, tally.dropped),
            (&metrics.blank_messages, tally.blank),
            (&metrics.channel_binding_plus, tally.binding_plus),
            (&metrics.channel_binding_gs2, tally.binding_gs2),
        ] {
            if count > 0 {
                counter.inc_by(u64::from(count));
            }
        }
    }

    /// A client has been given this JID, by which it is known until its end.
    pub(crate) fn identified(&self, transport: Transport, jid: &str, now: Instant) -> User {
        let returns = self.shared.sessions.returns();
        let user = returns.user(jid);
        if returns.is_back(user, now) {
            self.local.returned(transport);
        }
        user
    }

    /// The session of `user` is about to end for this reason: he may be back before it is over.
    pub(crate) fn ends(&self, user: Option<User>, fault: Fault, now: Instant) {
        if let Some(user) = user.filter(|_| fault.blame() != Blame::Nobody) {
            self.shared.sessions.returns().dropped(user, now);
        }
    }

    /// Counts the end of a session that was opened at `opened`, and logs it as loud as it is.
    pub(crate) fn session_ended(
        &self,
        span: &Span,
        transport: Transport,
        fault: Fault,
        opened: Instant,
        now: Instant,
    ) {
        self.shared.metrics.transport(transport).ended(fault);
        let seconds = now.duration_since(opened).as_secs_f64();
        let (reason, blame) = (fault.label(), fault.blame().label());
        span.in_scope(|| match fault.level() {
            Level::Debug => debug!(reason, blame, seconds, "session_ended"),
            Level::Info => info!(reason, blame, seconds, "session_ended"),
            Level::Warn => match self.server_warnings.admit(now) {
                Some(held_back) => {
                    warn!(reason, blame, seconds, held_back, "session_ended");
                }
                None => debug!(reason, blame, seconds, "session_ended"),
            },
            Level::Error => error!(reason, blame, seconds, "session_ended"),
        });
    }

    /// Counts a limit that ended a session.
    pub(crate) fn hit(&self, limit: Limit) {
        self.shared.metrics.limits.hit(limit);
    }

    /// Registers a session for the drain, and for who asks about it.
    pub(crate) fn register(&self, id: u64, waker: Waker, recording: Recording) {
        self.known.borrow_mut().insert(id, Known { waker, recording });
    }

    /// Forgets a session.
    pub fn unregister(&self, id: u64) {
        let mut known = self.known.borrow_mut();
        known.remove(&id);
        if known.capacity() > 64 && known.len() * 4 < known.capacity() {
            known.shrink_to_fit();
        }
        drop(known);
        // It ended before it could be.
        self.is_kicked(id);
    }

    /// A recording of a session of `client` that begins now, if there is to be one.
    pub(crate) fn record(
        &self,
        client: &Client,
        transport: Option<Transport>,
        now: Instant,
    ) -> Recording {
        match self.shared.recorder.events() {
            0 => Recording::none(),
            events => Recording::new(Record::new(client, transport, events, now)),
        }
    }

    /// The session `id` has ended: what was recorded of it is kept.
    pub(crate) fn archive(&self, id: u64, recording: &mut Recording, fault: Fault, now: Instant) {
        if let Some(known) = self.known.borrow_mut().get_mut(&id) {
            known.recording = Recording::none();
        }
        if let Some(record) = recording.finish(fault, now) {
            self.shared.recorder.archive(record, now);
        }
    }

    /// Shows what is recorded of each session that lives.
    pub(crate) fn records(&self, mut look: impl FnMut(&Record)) {
        for session in self.known.borrow().values() {
            session.recording.look(&mut look);
        }
    }

    /// What is recorded of the session `id`, if it lives.
    pub(crate) fn record_of(&self, id: u64) -> Option<Record> {
        self.known.borrow().get(&id)?.recording.look(Record::clone)
    }

    /// An operator wants the session `id` to end; false if it ends already, `None` if it is not
    /// here.
    pub(crate) fn kick(&self, id: u64) -> Option<bool> {
        let known = self.known.borrow();
        let session = known.get(&id)?;
        let is_live = session.recording.look(|record| record.fault.is_none())?;
        if is_live {
            self.kicked.borrow_mut().push(id);
            session.waker.wake_by_ref();
        }
        Some(is_live)
    }

    /// Whether the session `id` was kicked; said once.
    pub(crate) fn is_kicked(&self, id: u64) -> bool {
        let mut kicked = self.kicked.borrow_mut();
        let before = kicked.len();
        if before > 0 {
            kicked.retain(|kicked| *kicked != id);
        }
        kicked.len() < before
    }
}

#[cfg(test)]
mod tests {
    use super::super::addresses;
    use super::*;

    /// A place is free again when its permit is dropped, and a refused session takes none.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
    fn permits_are_bounded_and_given_back() {
        let limits = addresses::Limits { sessions: Some(1), ..addresses::Limits::default() };
        let metrics = Metrics::register().unwrap();
        let budget = Budget::new(1 << 20, Arc::clone(&metrics));
        let sessions = Arc::new(Sessions::new(3, Arc::new(Addresses::new(limits)), budget));
        let now = Instant::now();
        let admit = |client: &str| sessions.admit(client.parse().ok(), now);
        let of_address = Err(NoPlace::Limit(Limit::SessionsPerAddress));
        let one = admit("192.0.2.1");
        assert!(one.is_ok());
        assert_eq!(admit("192.0.2.1").map(drop), of_address, "the second of one address");
        assert_eq!(admit("::ffff:192.0.2.1").map(drop), of_address, "the same, mapped");
        let two = admit("2001:db8::1");
        assert!(two.is_ok());
        assert_eq!(admit("2001:db8::2").map(drop), of_address, "the same /64");
        let three = admit("2001:db8:0:1::1");
        assert!(three.is_ok());
        let fourth = admit("192.0.2.2");
        assert_eq!(fourth.map(drop), Err(NoPlace::Limit(Limit::Sessions)));
        assert_eq!(sessions.open(), 3);
        drop(one);
        assert!(admit("192.0.2.1").is_ok());
        drop((two, three));
        assert_eq!(sessions.open(), 0);
        sessions.limit(1);
        let one = admit("192.0.2.1");
        assert!(one.is_ok() && admit("192.0.2.9").is_err(), "the limit is another");
        drop(one);
        metrics.limits.held.add(Transport::Bosh, (1 << 20) + 1);
        let over_budget = Err(NoPlace::Limit(Limit::Memory));
        assert_eq!(admit("192.0.2.9").map(drop), over_budget, "what there is takes all memory");
        metrics.limits.held.add(Transport::Bosh, -1);
        assert!(admit("192.0.2.9").is_ok());
        sessions.drain(Drain { begun: now, window: Duration::ZERO });
        assert_eq!(sessions.admit(None, now).map(drop), Err(NoPlace::Draining));
        assert!(sessions.admit_to_redirect(None, now).is_ok(), "to be sent elsewhere");
    }

    /// All sessions end within the window, and no tenth of it sees much more than a tenth of them,
    /// whether they are of one worker or of several.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
    fn a_drain_is_spread_over_its_window() {
        let drain = Drain { begun: Instant::now(), window: Duration::from_secs(10) };
        let mut tenths = [0; 10];
        for id in (0..500).flat_map(|n| [(1 << 40) + n, (2 << 40) + n]) {
            let after = drain.turn(id) - drain.begun;
            assert!(after < drain.window);
            tenths[usize::try_from(after.as_secs()).unwrap()] += 1;
        }
        assert!(tenths.iter().all(|count| (90..=110).contains(count)), "{tenths:?}");
        let at_once = Drain { window: Duration::ZERO, ..drain };
        assert_eq!((at_once.turn(7), at_once.end()), (drain.begun, drain.begun));
    }

    /// One a second; the next one says how many there were meanwhile.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the first")]
    fn warnings_are_throttled() {
        let (throttle, now) = (Throttle::default(), Instant::now());
        assert_eq!(throttle.admit(now), Some(0));
        for _ in 0..3 {
            assert_eq!(throttle.admit(now + Duration::from_millis(999)), None);
        }
        assert_eq!(throttle.admit(now + Duration::from_secs(1)), Some(3));
        assert_eq!(throttle.admit(now + Duration::from_secs(2)), Some(0));
    }
}
