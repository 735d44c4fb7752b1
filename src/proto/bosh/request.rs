//! What the client's requests mean: their order, repeats, keys and acknowledgements, and which of
//! their payloads go on to the server.

use std::time::{Duration, Instant};

use super::super::c2s;
use super::super::domain::Domain;
use super::super::fault::Fault;
use super::super::item::Kind;
use super::super::limit::Limit;
use super::super::ns;
use super::super::stream::ServerSide;
use super::body::{Ack, Body, Payload};
use super::core::{ClientSide, Core, Previous, Straggler};
use super::keys::{Chain, are_same};
use super::response;
use super::session::{Counts, Out, Respond};
use super::window::{Open, Parked, Place, Role, State};
use super::{RequestId, Why};

/// How much sooner than `polling` a request may come (section 0.1 of the catalogue).
const TOLERANCE: Duration = Duration::from_millis(500);
/// How old a response has to be before it is reported as missed (BOSH-55).
const REPORT_AFTER: Duration = Duration::from_secs(1);

/// How soon the end of a connection is noticed, at the latest, when its last bytes are read.
const STRAGGLING: Duration = Duration::from_millis(250);

/// How long the words that end a session may turn out not to have been handed over (BOSH-77).
const HANDOVER: Duration = Duration::from_secs(1);

/// A request whose turn it is.
struct Turn {
    rid: u64,
    /// Its HTTP request, unless that is gone.
    id: Option<RequestId>,
    arrived: Instant,
    /// The highest rid that had been answered when it came.
    answered: u64,
}

impl Core {
    /// Takes a request, in any order of rid (BOSH-32, BOSH-33).
    pub(super) fn request(&mut self, id: RequestId, body: Body, out: &mut Out, now: Instant) {
        let rid = body.rid;
        self.creation = None;
        let place = self.window.place(rid, body.terminate || body.pause.is_some());
        match &self.client {
            ClientSide::Open => {}
            ClientSide::Zombie { .. } => return self.exhume(id, place, &body, out, now),
            // What is repeated can still be answered (BOSH-45), what is new comes too late.
            ClientSide::Terminating(_) if place == Place::Repeat => {}
            ClientSide::Terminating(_) | ClientSide::Gone => return self.refuse(id, out),
        }
        match place {
            Place::Outside if rid <= self.window.answered() && self.straggler.is_none() => {
                self.straggler = Some(Straggler { rid, id, until: now + STRAGGLING });
            }
            Place::Outside => self.fail(Fault::BadRid, Some((rid, id)), out, now),
            Place::Repeat => self.repeat(id, body, out, now),
            Place::Early => {
                self.pause = None;
                let parked = Parked { id: Some(id), body, first: now, arrived: now };
                self.window.park(rid, Box::new(parked));
            }
            Place::Next => {
                self.pause = None;
                let answered = self.window.answered();
                self.window.advance();
                self.turn(Turn { rid, id: Some(id), arrived: now, answered }, body, out, now);
                let mut rid = rid + 1;
                while self.is_open()
                    && let Some(parked) = self.window.unpark(rid)
                {
                    let Parked { id, body, arrived, .. } = *parked;
                    self.turn(Turn { rid, id, arrived, answered }, body, out, now);
                    rid += 1;
                }
            }
        }
    }

    /// A rid that came before (XEP-0124 §14.3).
    fn repeat(&mut self, id: RequestId, body: Body, out: &mut Out, now: Instant) {
        let rid = body.rid;
        let due = self.due(now);
        let content = self.terms.content;
        let Some(slot) = self.window.slot_mut(rid) else { return };
        let is_one_too_many = !slot.repeat();
        let first = match &slot.state {
            State::Parked(parked) => parked.body.keys.as_deref(),
            _ => slot.keys.as_deref(),
        };
        // BOSH-83: else a listener could fetch a kept response.
        if !are_same(first, body.keys.as_deref()) {
            return self.fail(Fault::BadKey, Some((rid, id)), out, now);
        }
        if is_one_too_many {
            return self.fail(Fault::Repeated, Some((rid, id)), out, now);
        }
        out.counts.repeats += 1;
        let mut is_pause = false;
        let older = match &mut slot.state {
            State::Answered(answered) => {
                let reply = super::Reply {
                    status: 200,
                    content,
                    body: answered.body.clone(),
                    compressible: answered.compressible,
                    read: Vec::new(),
                    first: false,
                };
                is_pause = answered.is_pause;
                out.responses.push(Respond { id, reply, why: Why::Replay });
                if self.assigned.rid == rid {
                    // Now it may be that it has arrived.
                    self.assigned.settle();
                }
                self.idle_since = Some(now);
                None
            }
            // BOSH-45: the hold moves to the newer connection.
            State::Open(open) => {
                if open.role == Role::Ordinary {
                    open.due = due;
                }
                is_pause = open.role == Role::Pause;
                Some(std::mem::replace(&mut open.id, id))
            }
            State::Parked(parked) => {
                parked.arrived = now;
                parked.id.replace(id)
            }
            // BOSH-49. A pause that died is one still (BOSH-58).
            state @ State::Dead => {
                is_pause = body.pause.is_some();
                let (role, due) = if is_pause { (Role::Pause, now) } else { (Role::Ordinary, due) };
                *state = State::Open(Open { id, due, role });
                None
            }
            State::Missing => {
                debug_assert!(false, "a repeat of what never came");
                None
            }
        };
        if let Some(older) = older {
            let reply = self.reply(response::recoverable(), true);
            out.responses.push(Respond { id: older, reply, why: Why::Recoverable });
        }
        if !is_pause {
            self.pause = None;
        }
    }

    /// The turn of a request has come.
    fn turn(&mut self, turn: Turn, mut body: Body, out: &mut Out, now: Instant) {
        let culprit = turn.id.map(|id| (turn.rid, id));
        if let Err(fault) = self.judge(&body) {
            return self.fail(fault, culprit, out, now);
        }
        let is_empty = body.payload.parts.is_empty()
            && body.restart.is_none()
            && body.pause.is_none()
            && !body.terminate;
        if self.is_overactive(is_empty, turn.arrived, &mut out.counts) {
            return self.fail(Fault::Overactive, culprit, out, now);
        }
        self.previous = Previous { rid: turn.rid, arrived: turn.arrived, is_empty };
        out.counts.requests += 1;
        let report = self.acknowledge(&turn, body.ack, &mut out.counts, now);
        self.bury(now);
        if self.is_replay_full() {
            return self.fail(Fault::ReplayFull, culprit, out, now);
        }
        self.make_room(out, now);
        if !self.is_open() {
            // It became full by that.
            if let Some(id) = turn.id {
                self.refuse(id, out);
            }
            return;
        }

        if let Some(restart) = body.restart.take().filter(|_| !body.terminate) {
            out.counts.restart_payloads += u32::try_from(body.payload.parts.len()).unwrap_or(0);
            let kept = self.address.take().unwrap_or_default();
            let from = restart.from.or(kept.from);
            let lang = restart.lang.or(kept.lang);
            self.restart(from.as_deref(), lang.as_deref(), out, now);
        } else if !body.payload.parts.is_empty() {
            self.forward(body.payload, turn.arrived, out, now);
        }

        let pause = body.pause.and_then(Result::ok);
        let role = match (pause, report) {
            (Some(_), _) => Role::Pause,
            (None, Some(report)) => report,
            (None, None) => Role::Ordinary,
        };
        let due = if role == Role::Ordinary { self.due(turn.arrived) } else { turn.arrived };
        let open = turn.id.map(|id| Open { id, due, role });
        self.window.open(turn.rid, open, body.keys);
        self.pause = pause.map(|seconds| Duration::from_secs(seconds.into()));
        if body.terminate {
            self.terminate(out, now);
        }
    }

    /// Whether a request may have its turn; nothing of it has been done yet.
    fn judge(&mut self, body: &Body) -> Result<(), Fault> {
        // BOSH-81, BOSH-82.
        let keys = body.keys.as_deref();
        let key_fits = match &mut self.keys {
            Some(chain) => chain.advance(keys),
            None => keys.is_none_or(|keys| keys.key.is_none() && keys.newkey.is_none()),
        };
        if !key_fits {
            return Err(Fault::BadKey);
        }
        // BOSH-59.
        match body.pause {
            None => {}
            Some(Ok(seconds))
                if seconds > 0 && u64::from(seconds) <= self.settings.maxpause.as_secs() => {}
            Some(pause) => {
                // Else it is 0, or no number.
                let is_longer = pause.is_ok_and(|seconds| seconds > 0);
                self.reached(is_longer.then_some(Limit::MaxPause));
                return Err(Fault::BadPause);
            }
        }
        // XB-09, XB-11.
        if let Some(restart) = body.restart.as_deref().filter(|_| !body.terminate) {
            let to = restart.to.as_deref();
            let is_same = to.is_none_or(|to| Domain::parse(to).ok().as_ref() == Some(&self.domain));
            let is_due = self.phase.restart_due && self.server == ServerSide::Open;
            return if is_due && is_same { Ok(()) } else { Err(Fault::BadFormat) };
        }
        for part in &body.payload.parts {
            match part.kind {
                // SEC-09: whatever its prefix.
                Kind::StreamError => return Err(Fault::ClientError),
                Kind::Features
                | Kind::StreamOther
                | Kind::FramingOpen
                | Kind::FramingClose
                | Kind::FramingOther => return Err(Fault::BadFormat),
                // UP-20.
                Kind::Tls => {
                    self.say_failure(ns::TLS, "");
                    return Err(Fault::ClientTls);
                }
                Kind::Compress => {}
                // WS-29, XB-11: between the server's success and the restart.
                Kind::Message
                | Kind::Presence
                | Kind::Iq
                | Kind::Sasl
                | Kind::Sasl2
                | Kind::Sm
                | Kind::Other
                    if self.phase.restart_due =>
                {
                    return Err(Fault::BadFormat);
                }
                Kind::Message
                | Kind::Presence
                | Kind::Iq
                | Kind::Sasl
                | Kind::Sasl2
                | Kind::Sm
                | Kind::Other => {}
            }
        }
        // What we answer ourselves is bounded as what the server says is (SEC-17).
        if body.payload.parts.iter().any(|part| part.kind == Kind::Compress)
            && let Some(limit) = self.is_full()
        {
            self.reached(Some(limit));
            return Err(Fault::XmlLimit);
        }
        // UP-24.
        if self.server == ServerSide::Connecting
            && self.early.len() + body.payload.bytes.len() > self.settings.unauthenticated_bytes
        {
            return Err(Fault::EarlyData);
        }
        Ok(())
    }

    /// XEP-0124 §11, §12. More requests at a time than `requests` cannot come to pass: the oldest
    /// are answered before another is taken, and a rid that is too high for that is outside the
    /// window (BOSH-61, BOSH-34).
    fn is_overactive(&self, is_empty: bool, arrived: Instant, counts: &mut Counts) -> bool {
        let previous = self.previous;
        let interval = self.settings.polling.saturating_sub(TOLERANCE);
        // One that came before its turn says nothing of how fast they were sent.
        let is_soon = arrived >= previous.arrived && arrived < previous.arrived + interval;
        if !is_empty || !is_soon {
            return false;
        }
        if self.terms.polling {
            // BOSH-63.
            let said_nothing = match self.window.slot(previous.rid).map(|slot| &slot.state) {
                Some(State::Answered(answered)) => !answered.has_payload,
                Some(State::Open(_)) => self.queue.is_empty(),
                _ => false,
            };
            let is_overactive = previous.is_empty && said_nothing;
            counts.overactive += u32::from(is_overactive);
            return is_overactive;
        }
        // BOSH-62.
        let unanswered = self.window.opened().count() + 1;
        let is_overactive = unanswered > self.terms.hold as usize;
        counts.overactive += u32::from(is_overactive);
        is_overactive && self.settings.strict_overactivity
    }

    /// XEP-0124 §9.2: forgets what the client has got; says what it has missed (BOSH-55).
    ///
    /// Nothing is confirmed that was not answered before the request came.
    fn acknowledge(
        &mut self,
        turn: &Turn,
        ack: Option<Ack>,
        counts: &mut Counts,
        now: Instant,
    ) -> Option<Role> {
        if !self.terms.acks {
            return None;
        }
        match ack {
            // BOSH-54.
            None => self.confirm(turn.answered.min(turn.rid - 1)),
            Some(Ack::Rid(rid)) if rid <= turn.answered => {
                self.confirm(rid);
                let missed = rid.checked_add(1).filter(|missed| *missed <= turn.answered)?;
                let State::Answered(answered) = &self.window.slot(missed)?.state else {
                    return None;
                };
                let age = now.saturating_duration_since(answered.sent);
                let time = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
                // Once: a client that does not ask for it again would have all its requests
                // answered at once for ever.
                if age < REPORT_AFTER || self.reported == missed {
                    return None;
                }
                self.reported = missed;
                return Some(Role::Report(missed, time));
            }
            // BOSH-56.
            Some(Ack::Rid(_) | Ack::Nonsense) => counts.bad_acks += 1,
        }
        None
    }

    fn confirm(&mut self, rid: u64) {
        self.window.confirm(rid);
        if self.assigned.rid <= rid {
            self.assigned.settle();
        }
    }

    /// Passes on payloads of a request that came then (BOSH-42).
    fn forward(&mut self, payload: Payload, arrived: Instant, out: &mut Out, now: Instant) {
        let Payload { bytes, parts } = payload;
        let to = if self.server == ServerSide::Connecting {
            &mut self.early
        } else {
            self.last_upstream = now;
            &mut out.server
        };
        let (mut from, mut at) = (0, 0);
        let (mut passed, mut refused) = (0, 0);
        for part in parts {
            let len = part.len as usize;
            if part.kind == Kind::Compress {
                to.extend_from_slice(&bytes[from..at]);
                from = at + len;
                refused += 1;
            } else {
                if let Some(note) = part.note {
                    self.phase.note(note);
                }
                out.tally.to_server.count(part.kind, len);
                passed += 1;
            }
            at += len;
        }
        to.extend_from_slice(&bytes[from..at]);
        if self.server != ServerSide::Connecting {
            out.forwarded.push((arrived, passed));
        }
        for _ in 0..refused {
            // UP-20.
            self.say_failure(ns::COMPRESS, "<unsupported-method/>");
        }
    }

    fn say_failure(&mut self, namespace: &str, condition: &str) {
        self.queue.push(Kind::Other, None, |bytes| {
            let (middle, end) = if condition.is_empty() { ("/>", "") } else { (">", "</failure>") };
            for part in ["<failure xmlns=\"", namespace, "\"", middle, condition, end] {
                bytes.extend_from_slice(part.as_bytes());
            }
        });
    }

    /// A new header on the same stream (XB-08, XB-12).
    pub(super) fn restart(
        &mut self,
        from: Option<&str>,
        lang: Option<&str>,
        out: &mut Out,
        now: Instant,
    ) {
        self.phase.restart_due = false;
        self.phase.header_due = true;
        self.reader_due = true;
        self.last_upstream = now;
        // UP-05: only where nobody can listen.
        let from = from.filter(|_| self.phase.secure);
        c2s::write_header(&mut out.server, &self.domain, from, lang);
    }

    /// A request that belongs to no session any more (BOSH-66).
    pub(super) fn refuse(&self, id: RequestId, out: &mut Out) {
        let fault = Fault::UnknownSid;
        let reply = response::refusal(fault, self.terms.legacy(), self.terms.content);
        out.responses.push(Respond { id, reply, why: Why::Terminate });
    }

    /// A request to a session that has ended without being able to say so (BOSH-77).
    fn exhume(&mut self, id: RequestId, place: Place, body: &Body, out: &mut Out, now: Instant) {
        let keys = body.keys.as_deref();
        let key_fits = match place {
            Place::Outside => false,
            Place::Next => self.keys.is_none_or(|chain: Chain| chain.accepts(keys)),
            // Its key cannot be judged before its turn, which will not come.
            Place::Early => self.keys.is_none(),
            Place::Repeat => {
                self.window.slot(body.rid).is_some_and(|slot| are_same(slot.keys.as_deref(), keys))
            }
        };
        if !key_fits {
            return self.refuse(id, out);
        }
        if let Some(State::Answered(answered)) = self.window.slot(body.rid).map(|slot| &slot.state)
        {
            let reply = self.reply(answered.body.clone(), answered.compressible);
            out.counts.repeats += 1;
            out.responses.push(Respond { id, reply, why: Why::Replay });
            return;
        }
        let ClientSide::Zombie { until, words, told, .. } = &mut self.client else { return };
        if told.is_some() {
            return self.refuse(id, out);
        }
        *told = Some(id);
        *until = (*until).min(now + HANDOVER);
        let words = words.clone();
        out.responses.push(Respond { id, reply: self.reply(words, true), why: Why::Terminate });
    }
}
