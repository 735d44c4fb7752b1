//! What a session remembers, and which open request is answered when and with what.
//!
//! The rules for what comes in are in [`super::request`] and [`super::server`], those for the end in
//! [`super::ending`].
//!
//! A client that reads slowly, or not at all, is not cut off after 30 s as a WebSocket is (SEC-17):
//! it takes what waits for it by requests, so the measure of its patience is `inactivity`, or the
//! pause it asked for. Until then memory is bounded, because the server is no longer read once
//! `pending_bytes` or `pending_stanzas` wait ([`Core::has_room`]).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::super::c2s::OpenRequest;
use super::super::domain::Domain;
use super::super::fault::Fault;
use super::super::limit::Limit;
use super::super::seam::FeatureRules;
use super::super::stream::{Phase, ServerSide};
use super::keys::Chain;
use super::queue::{Allowance, Load, Queue, Waiting};
use super::response::{self, Head, Terms, Words};
use super::session::{Out, Respond};
use super::sid::Sid;
use super::window::{Answered, Open, Role, Window};
use super::{Content, Reply, RequestId, Settings, Why};

/// What a gap may last beyond `wait` (BOSH-36): clients resend at 1.1 × `wait`.
const GAP_GRACE: Duration = Duration::from_secs(30);

/// How many of the largest answers may be on their way at once: those of a connection that has died
/// unnoticed, and their repetitions, leave room for the next.
const ANSWERS_ON_THEIR_WAY: usize = 4;

/// Everything but the server's parser, so that an element may be borrowed from that while the rest
/// changes.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) settings: Arc<Settings>,
    pub(super) sid: Sid,
    pub(super) terms: Negotiated,
    pub(super) client: ClientSide,
    pub(super) server: ServerSide,
    /// The first reason; later ones are consequences.
    pub(super) ended: Option<Fault>,
    /// The limit that was reached, where `ended` alone does not say.
    pub(super) limit: Option<Limit>,
    pub(super) domain: Domain,
    pub(super) request: Option<Box<OpenRequest>>,
    /// What a restart says of the client unless it says otherwise; until a resource is bound.
    pub(super) address: Option<Box<Address>>,
    /// What the client is told with the first features, until then.
    pub(super) words: Option<Box<Words>>,
    /// The request that made the session, until another shows that somebody learnt the sid.
    pub(super) creation: Option<RequestId>,
    /// Payload that came before the server's stream stood.
    pub(super) early: Vec<u8>,
    pub(super) features: FeatureRules,
    pub(super) phase: Phase,
    /// The server's parser has to start over.
    pub(super) reader_due: bool,
    pub(super) window: Window,
    pub(super) keys: Option<Chain>,
    pub(super) queue: Queue,
    /// Bytes of answers that were given and that no connection has taken whole.
    pub(super) untaken: usize,
    pub(super) assigned: Assigned,
    /// The rid whose response was reported as missed last (BOSH-55).
    pub(super) reported: u64,
    pub(super) previous: Previous,
    pub(super) created: Instant,
    pub(super) last_upstream: Instant,
    /// Since when no request is open (BOSH-57).
    pub(super) idle_since: Option<Instant>,
    /// The inactivity the client asked for (BOSH-58).
    pub(super) pause: Option<Duration>,
    /// Since when more requests are open than may be held (BOSH-37).
    pub(super) forced_since: Option<Instant>,
    pub(super) straggler: Option<Straggler>,
}

/// A request whose rid is too old (BOSH-47). It may be the copy of one whose connection broke, read
/// only after the client had repeated it and gone on: then its connection is about to end, and
/// nobody has done wrong.
#[derive(Clone, Copy, Debug)]
pub(super) struct Straggler {
    pub(super) rid: u64,
    pub(super) id: RequestId,
    /// Until then its connection may end.
    pub(super) until: Instant,
}

/// What the creation request and the settings made of each other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Negotiated {
    pub(super) wait: Duration,
    pub(super) hold: u32,
    pub(super) inactivity: Duration,
    pub(super) ver: Option<(u32, u32)>,
    pub(super) content: Content,
    /// `wait` or `hold` is 0 (BOSH-60).
    pub(super) polling: bool,
    /// The client acknowledges responses (BOSH-27).
    pub(super) acks: bool,
    /// The gateway restarts the stream itself (XB-12).
    pub(super) auto_restart: bool,
}

impl Negotiated {
    /// The mode of a client that named no `ver` (BOSH-79).
    pub(super) fn legacy(&self) -> bool {
        self.ver.is_none()
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Address {
    pub(super) from: Option<Box<str>>,
    pub(super) lang: Option<Box<str>>,
}

/// How far the client's side is.
#[derive(Clone, Debug)]
pub(super) enum ClientSide {
    Open,
    /// It said `terminate`; what the server still says may go into the answer until then (BOSH-65).
    Terminating(Instant),
    /// It does not know of the end yet; the next request is answered with `words` (BOSH-77).
    Zombie {
        until: Instant,
        words: Bytes,
        /// The request that was told, which may yet turn out to be gone.
        told: Option<RequestId>,
        /// Elements of the server's that are in `words`.
        elements: u32,
    },
    Gone,
}

/// The payloads that were given to a response last, which can be taken back as long as it turns
/// out that the response was never handed over.
#[derive(Debug, Default)]
pub(super) struct Assigned {
    pub(super) id: Option<RequestId>,
    pub(super) rid: u64,
    pub(super) from: usize,
    pub(super) bytes: usize,
    pub(super) parts: VecDeque<Waiting>,
    pub(super) words: Option<Box<Words>>,
    /// When they were read, for the reply that is made next.
    pub(super) read: Vec<Instant>,
    /// One of them is the first stanza since a resource was bound.
    pub(super) first: bool,
}

impl Assigned {
    /// They were just taken.
    pub(super) fn note(&mut self) {
        // For the metrics alone.
        if cfg!(not(feature = "no-metrics")) {
            self.read = self.parts.iter().filter_map(|part| part.read).collect();
            self.first = self.parts.iter().any(|part| part.first);
        }
    }

    /// The response has left, for all that is known.
    pub(super) fn settle(&mut self) {
        self.id = None;
        self.words = None;
        self.parts.clear();
        // A burst leaves no memory behind.
        self.parts.shrink_to(16);
    }
}

/// The last request that was taken in order, for what comes too soon behind it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Previous {
    pub(super) rid: u64,
    pub(super) arrived: Instant,
    pub(super) is_empty: bool,
}

impl Core {
    pub(super) fn is_open(&self) -> bool {
        matches!(self.client, ClientSide::Open)
    }

    /// Whether the client can still be told what the server says.
    pub(super) fn hears(&self) -> bool {
        matches!(self.client, ClientSide::Open | ClientSide::Terminating(_))
    }

    /// Whether the server's stream is still read.
    pub(super) fn takes_items(&self) -> bool {
        self.hears() && matches!(self.server, ServerSide::Open | ServerSide::Closing(_))
    }

    pub(super) fn server_is_done(&self) -> bool {
        matches!(self.server, ServerSide::Absent | ServerSide::Gone)
    }

    pub(super) fn held_bytes(&self) -> usize {
        let words = match &self.client {
            ClientSide::Zombie { words, .. } => words.len(),
            _ => 0,
        };
        self.queue.held_bytes() + self.window.held_bytes() + self.early.capacity() + words
    }

    /// SEC-17, UP-24: whether another element of the server can be kept.
    pub(super) fn has_room(&self) -> bool {
        self.is_full().is_none()
    }

    /// The limit that what waits for the client has reached.
    pub(super) fn is_full(&self) -> Option<Limit> {
        let (room, limit) = if self.phase.authenticated {
            (self.settings.pending_bytes, Limit::PendingBytes)
        } else {
            (self.settings.unauthenticated_bytes, Limit::UnauthenticatedBytes)
        };
        if self.queue.bytes() >= room {
            Some(limit)
        } else if self.queue.len() >= self.settings.pending_stanzas as usize {
            Some(Limit::PendingStanzas)
        } else {
            None
        }
    }

    /// BOSH-53: the highest rid without gaps, in the answer to another.
    pub(super) fn ack(&self, rid: u64) -> Option<u64> {
        let last = self.window.last();
        (last != rid).then_some(last)
    }

    /// How many requests may be held; in a polling session none (BOSH-60).
    fn held_at_most(&self) -> usize {
        if self.terms.polling { 0 } else { self.terms.hold as usize }
    }

    /// When an ordinary request that came at `arrived` has to be answered. A poll is answered at
    /// once, but what the server says to its payload may ride on the answer, as in BOSH-37.
    pub(super) fn due(&self, arrived: Instant) -> Instant {
        let wait = if self.terms.polling { self.settings.linger } else { self.terms.wait };
        arrived + wait
    }

    /// BOSH-43: no other response can be kept, and none that was not acknowledged is forgotten.
    pub(super) fn is_replay_full(&self) -> bool {
        self.terms.acks && self.window.kept() >= self.settings.replay_responses
    }

    /// What a response may carry now (BOSH-41): nothing while too much is on its way that nobody
    /// takes (SEC-17). A client that acknowledges gets no more at a time than is kept for it
    /// (BOSH-43); the rest waits for its next acknowledgement. An element that is larger than all
    /// that is kept goes while next to nothing else is: it would wait for ever.
    fn allowance(&self) -> Allowance {
        let parts = self.settings.response_elements as usize;
        let most = self.settings.pending_bytes;
        let room = most.saturating_mul(ANSWERS_ON_THEIR_WAY).saturating_sub(self.untaken);
        let bytes = most.min(room);
        if !self.terms.acks || room == 0 {
            return Allowance { parts, bytes, at_least_one: room > 0 };
        }
        let kept = self.window.kept_bytes();
        let left = self.settings.replay_bytes.saturating_sub(kept);
        Allowance {
            parts,
            bytes: bytes.min(left),
            at_least_one: kept < self.settings.replay_bytes / 16,
        }
    }

    /// Answers all that can be answered now, in rid order (BOSH-35).
    pub(super) fn flush(&mut self, out: &mut Out, now: Instant) {
        while self.is_open()
            && let Some((rid, open)) = self.oldest()
        {
            let Some((why, load)) = self.reason(open, now) else { break };
            self.answer(rid, open, why, load, out, now);
        }
        if self.is_open() && self.excess() == 0 {
            self.forced_since = None;
        }
        self.last_payloads(out, now);
    }

    /// BOSH-65: what the server still says behind a `terminate` goes into the answer to a request
    /// before that, as long as there is one, and only else into the end's own: there are clients
    /// that read no payload there (Strophe), or fail if they do (stanza.js).
    pub(super) fn last_payloads(&mut self, out: &mut Out, now: Instant) {
        while matches!(self.client, ClientSide::Terminating(_))
            && !self.queue.is_empty()
            && !self.is_replay_full()
            && self.window.opened().count() > 1
            && let Some((rid, open)) = self.oldest()
            && open.role == Role::Ordinary
        {
            let load = self.queue.plan(self.allowance());
            if load.parts == 0 {
                break;
            }
            self.answer(rid, open, Why::Payload, load, out, now);
        }
    }

    fn oldest(&self) -> Option<(u64, Open)> {
        self.window.opened().next().map(|(rid, open)| (rid, *open))
    }

    /// How many requests are open that may not be held.
    fn excess(&self) -> usize {
        if self.terms.polling {
            // They are due, each at its own time.
            return 0;
        }
        let ordinary = self.window.opened().filter(|(_, open)| open.role != Role::Creation);
        ordinary.count().saturating_sub(self.held_at_most())
    }

    /// Why the oldest open request is answered now, and with how much; `None` if it is held.
    fn reason(&mut self, open: Open, now: Instant) -> Option<(Why, Load)> {
        let load = match open.role {
            Role::Pause => Load::default(),
            Role::Creation | Role::Ordinary | Role::Report(..) => self.queue.plan(self.allowance()),
        };
        let why = match open.role {
            Role::Creation => Why::Created,
            Role::Report(..) => Why::Report,
            Role::Ordinary if load.parts > 0 => Why::Payload,
            Role::Ordinary => Why::WaitElapsed,
            Role::Pause => Why::Pause,
        };
        if load.parts > 0 || open.due <= now {
            return Some((why, load));
        }
        // BOSH-35: before a later one that is due.
        let later =
            self.window.opened().find(|(_, open)| open.due <= now).map(|(_, open)| open.role);
        if let Some(role) = later {
            let why = match (why, role) {
                (Why::Created, _) => Why::Created,
                (_, Role::Pause) => Why::Pause,
                _ => why,
            };
            return Some((why, load));
        }
        if self.excess() == 0 {
            return None;
        }
        // BOSH-37: what the server says to the request that came last may ride on the oldest.
        let since = *self.forced_since.get_or_insert(now);
        let why = if why == Why::Created { why } else { Why::HoldExceeded };
        (since + self.settings.linger <= now).then_some((why, load))
    }

    /// One more request comes: those that may not even be held without it are answered, whatever
    /// still might have ridden on them. So never more than `hold` + 1 are open.
    pub(super) fn make_room(&mut self, out: &mut Out, now: Instant) {
        while self.is_open()
            && self.window.opened().count() > self.held_at_most()
            && let Some((rid, open)) = self.oldest()
        {
            let load = match open.role {
                Role::Pause => Load::default(),
                _ => self.queue.plan(self.allowance()),
            };
            let why = match open.role {
                Role::Creation => Why::Created,
                Role::Pause => Why::Pause,
                Role::Report(..) => Why::Report,
                Role::Ordinary if load.parts > 0 => Why::Payload,
                Role::Ordinary if self.terms.polling => Why::WaitElapsed,
                Role::Ordinary => Why::HoldExceeded,
            };
            self.answer(rid, open, why, load, out, now);
            self.forced_since = None;
        }
    }

    /// Answers the oldest open request.
    fn answer(&mut self, rid: u64, open: Open, why: Why, load: Load, out: &mut Out, now: Instant) {
        debug_assert_eq!(self.oldest().map(|(rid, _)| rid), Some(rid), "BOSH-35");
        if self.is_replay_full() {
            self.fail(Fault::ReplayFull, None, out, now);
            return;
        }
        let words = if load.features { self.words.take() } else { None };
        let ack = self.ack(rid);
        let is_plain = load.parts == 0 && matches!(open.role, Role::Ordinary | Role::Pause);
        let body = if is_plain {
            response::empty(ack)
        } else {
            self.write(rid, open, load, ack, words.as_deref())
        };
        // SEC-13: the sid and the stream's id are never compressed together with what others say.
        let compressible = open.role != Role::Creation && words.is_none();
        if load.parts > 0 {
            self.assigned.id = Some(open.id);
            self.assigned.rid = rid;
            self.assigned.words = words;
        }
        self.window.answer(
            rid,
            Answered {
                body: body.clone(),
                sent: now,
                compressible,
                has_payload: load.parts > 0,
                is_pause: open.role == Role::Pause,
            },
        );
        if !self.terms.acks {
            self.window.prune();
        }
        let reply = self.reply(body, compressible);
        out.responses.push(Respond { id: open.id, reply, why });
    }

    /// Writes a body that says something.
    fn write(
        &mut self,
        rid: u64,
        open: Open,
        load: Load,
        ack: Option<u64>,
        words: Option<&Words>,
    ) -> Bytes {
        let mut bytes = response::with_room_for(load.bytes);
        let report = match open.role {
            Role::Report(rid, time) => Some((rid, time)),
            _ => None,
        };
        let head = Head { ack, report, stream: load.stream, words };
        if open.role == Role::Creation {
            // BOSH-28: this one always says it.
            let head = Head { ack: Some(ack.unwrap_or(rid)), ..head };
            let sid = self.sid.expose();
            // BOSH-21.
            let told = words.or(self.words.as_deref()).and_then(|words| words.from.as_deref());
            let terms = Terms {
                sid: &sid,
                wait: self.terms.wait.as_secs(),
                hold: self.terms.hold,
                requests: self.terms.hold.saturating_add(1),
                polling: self.settings.polling.as_secs(),
                inactivity: self.terms.inactivity.as_secs(),
                maxpause: self.settings.maxpause.as_secs(),
                accept: self.settings.accept_gzip,
                ver: self.terms.ver,
                from: told.unwrap_or(self.domain.as_str()),
            };
            response::begin_creation(&head, &terms, &mut bytes);
        } else {
            response::begin(&head, &mut bytes);
        }
        if load.parts > 0 {
            response::payload(&mut bytes);
            self.assigned.from = bytes.len();
            self.assigned.bytes = load.bytes;
            self.queue.take(load, &mut bytes, &mut self.assigned.parts);
            self.assigned.note();
        }
        response::end(load.parts > 0, &mut bytes);
        bytes.into()
    }

    pub(super) fn reply(&mut self, body: Bytes, compressible: bool) -> Reply {
        let read = std::mem::take(&mut self.assigned.read);
        let first = std::mem::take(&mut self.assigned.first);
        Reply { status: 200, content: self.terms.content, body, compressible, read, first }
    }

    /// The HTTP request `id` has ended, before its answer was started or before it was handed over
    /// (BOSH-48, BOSH-50).
    pub(super) fn gone(&mut self, id: RequestId, out: &mut Out, now: Instant) {
        if self.is_open() && self.creation == Some(id) {
            // Nobody knows the sid, and nobody can learn it.
            self.window.lose(id);
            self.fail(Fault::ClientLost, None, out, now);
            return;
        }
        if let ClientSide::Zombie { told, .. } = &mut self.client {
            // The words are for one that can hear them (BOSH-77).
            told.take_if(|told| *told == id);
        } else if self.straggler.is_some_and(|straggler| straggler.id == id) {
            self.straggler = None;
        } else if self.window.lose(id) {
            self.bury(now);
        } else if self.assigned.id == Some(id) && self.hears() {
            // Its payloads were given to no other response since, nor was it repeated or
            // acknowledged: they are the first of those that wait again.
            let rid = self.assigned.rid;
            if let Some(answered) = self.window.take_back(rid) {
                let load = self.assigned.from..self.assigned.from + self.assigned.bytes;
                self.queue.put_back(&answered.body[load], &self.assigned.parts);
                if let Some(words) = self.assigned.words.take() {
                    self.words = Some(words);
                }
            }
            self.assigned.settle();
            self.bury(now);
        }
    }

    /// BOSH-48: a dead rid counts as answered with an empty body once a later one has come.
    pub(super) fn bury(&mut self, now: Instant) {
        while let Some(rid) = self.window.overtaken() {
            let body = response::empty(self.ack(rid));
            self.window.answer(
                rid,
                Answered {
                    body,
                    sent: now,
                    compressible: true,
                    has_payload: false,
                    is_pause: false,
                },
            );
        }
        if !self.terms.acks {
            self.window.prune();
        }
    }

    /// Keeps the inactivity timer in step with the open requests (BOSH-57).
    pub(super) fn mind_idleness(&mut self, now: Instant) {
        if self.is_open() {
            if self.window.is_live() {
                self.idle_since = None;
            } else {
                self.idle_since.get_or_insert(now);
            }
        }
    }

    pub(super) fn patience(&self) -> Duration {
        self.pause.unwrap_or(self.terms.inactivity)
    }

    /// When a parked request has waited too long for the ones before it (BOSH-36).
    fn gap_at(&self) -> Option<Instant> {
        let first = self.window.parked().map(|parked| parked.first).min()?;
        Some(first + self.terms.wait + GAP_GRACE)
    }

    fn keepalive_at(&self) -> Option<Instant> {
        let interval = self.settings.whitespace_keepalive;
        let due = !interval.is_zero()
            && self.server == ServerSide::Open
            && self.phase.settled
            && !self.phase.header_due;
        due.then(|| self.last_upstream + interval)
    }

    fn lifetime_at(&self) -> Option<Instant> {
        let at = || self.created + self.settings.unauthenticated_lifetime;
        (!self.phase.authenticated).then(at)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let client = match &self.client {
            ClientSide::Open => {
                let due = self.window.opened().map(|(_, open)| open.due).min();
                let forced = self.forced_since.map(|since| since + self.settings.linger);
                let idle = self.idle_since.map(|since| since + self.patience());
                let straggler = self.straggler.map(|straggler| straggler.until);
                let others = [self.gap_at(), self.lifetime_at()];
                [due, forced, idle, straggler].into_iter().chain(others).flatten().min()
            }
            ClientSide::Terminating(until) | ClientSide::Zombie { until, .. } => Some(*until),
            ClientSide::Gone => None,
        };
        let server = match self.server {
            ServerSide::Closing(until) | ServerSide::Finishing(until) => Some(until),
            ServerSide::Open => self.keepalive_at(),
            ServerSide::Absent | ServerSide::Connecting | ServerSide::Gone => None,
        };
        [client, server].into_iter().flatten().min()
    }

    pub(super) fn tick(&mut self, out: &mut Out, now: Instant) {
        let is_past = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        match &self.client {
            ClientSide::Open if is_past(self.lifetime_at()) => {
                self.fail(Fault::Unauthenticated, None, out, now);
            }
            ClientSide::Open if is_past(self.gap_at()) => self.fail(Fault::Gap, None, out, now),
            ClientSide::Open if is_past(self.idle_since.map(|since| since + self.patience())) => {
                self.lose_client(out, now);
            }
            ClientSide::Open => match self.straggler {
                Some(Straggler { rid, id, until }) if until <= now => {
                    self.straggler = None;
                    self.fail(Fault::BadRid, Some((rid, id)), out, now);
                }
                _ => self.flush(out, now),
            },
            ClientSide::Terminating(until) if *until <= now => self.terminated(out, now),
            ClientSide::Zombie { until, told, elements, .. } if *until <= now => {
                if told.is_none() {
                    out.counts.undelivered += *elements;
                }
                self.leave();
            }
            ClientSide::Terminating(_) | ClientSide::Zombie { .. } | ClientSide::Gone => {}
        }
        match self.server {
            ServerSide::Closing(until) | ServerSide::Finishing(until) if until <= now => {
                self.server = ServerSide::Gone;
            }
            _ => {}
        }
        if is_past(self.keepalive_at()) {
            out.server.push(b' ');
            self.last_upstream = now;
        }
    }
}
