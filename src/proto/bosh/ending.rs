//! How a session ends, towards either side (XEP-0124 §10, §13, §17, XEP-0206 §6, §7).

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::super::c2s;
use super::super::fault::Fault;
use super::super::item::{Element, Kind};
use super::super::limit::Limit;
use super::super::ns;
use super::super::seam::escape_attribute;
use super::super::stream::ServerSide;
use super::super::xml::{self, Message, Scope, Scratch};
use super::core::{ClientSide, Core};
use super::response;
use super::session::{Out, Respond};
use super::{Condition, RequestId, Why};

/// How long the answer to `terminate` waits for what the server still says (BOSH-65). A server
/// that is there closes its stream within milliseconds; one that is not shall not keep a page that
/// is being left (XEP-0124 §13 wants the answer at once).
const LAST_WORDS: Duration = Duration::from_secs(1);
/// What a dead session may keep for the next request (BOSH-77): the response that ends it with
/// what waited, and as much of responses that may be asked for again. What is more is given up.
const ZOMBIE_BYTES: usize = 64 * 1024;

impl Core {
    /// Records the reason; the first one stands.
    fn end(&mut self, fault: Fault) {
        self.ended.get_or_insert(fault);
    }

    /// Remembers the limit that is about to end the session, if it has not ended yet.
    pub(super) fn reached(&mut self, limit: Option<Limit>) {
        if self.ended.is_none() {
            self.limit = limit;
        }
    }

    /// The client's `terminate` has its turn (BOSH-64).
    pub(super) fn terminate(&mut self, out: &mut Out, now: Instant) {
        self.end(Fault::Closed);
        match self.server {
            ServerSide::Open => {
                self.close_server(out, now);
                let until = now + self.settings.close_grace.min(LAST_WORDS);
                self.client = ClientSide::Terminating(until);
            }
            ServerSide::Connecting => {
                self.close_server(out, now);
                self.terminated(out, now);
            }
            ServerSide::Absent
            | ServerSide::Closing(_)
            | ServerSide::Finishing(_)
            | ServerSide::Gone => self.terminated(out, now),
        }
    }

    /// Answers a `terminate`: the oldest request with the end and all that waits, the others with
    /// nothing.
    pub(super) fn terminated(&mut self, out: &mut Out, now: Instant) {
        self.last_payloads(out, now);
        self.tell_end(Fault::Closed, None, out);
        self.give_up(out);
        self.leave();
    }

    /// A clean end towards the server: the footer, then its grace (UP-35).
    fn close_server(&mut self, out: &mut Out, now: Instant) {
        match self.server {
            ServerSide::Open => {
                out.server.extend_from_slice(c2s::FOOTER);
                self.server = ServerSide::Closing(now + self.settings.close_grace);
            }
            ServerSide::Connecting => {
                self.server = ServerSide::Absent;
                self.request = None;
            }
            ServerSide::Absent
            | ServerSide::Closing(_)
            | ServerSide::Finishing(_)
            | ServerSide::Gone => {}
        }
    }

    /// An end that lets the server keep the session: no footer (SM-04, WS-37).
    fn drop_server(&mut self, now: Instant) {
        if self.server == ServerSide::Open {
            self.server = ServerSide::Finishing(now + self.settings.close_grace);
        }
    }

    /// Ends the session towards both sides. `culprit` is the request that caused it, if one did and
    /// it is not in the window (BOSH-76).
    pub(super) fn fail(
        &mut self,
        fault: Fault,
        culprit: Option<(u64, RequestId)>,
        out: &mut Out,
        now: Instant,
    ) {
        match &self.client {
            ClientSide::Open => {}
            ClientSide::Terminating(_) => {
                // The end is under way; only this request has gone wrong.
                if let Some((_, id)) = culprit {
                    self.refuse(id, out);
                }
                return;
            }
            ClientSide::Zombie { .. } | ClientSide::Gone => return,
        }
        self.end(fault);
        let is_told = self.tell_end(fault, culprit, out);
        if !is_told && is_remembered(fault) {
            let (words, elements) = self.last_words(fault, out);
            self.early = Vec::new();
            let until = now + self.settings.zombie;
            self.client = ClientSide::Zombie { until, words, told: None, elements };
            self.queue.clear();
            self.window.shrink(ZOMBIE_BYTES);
            self.idle_since = None;
        } else {
            self.give_up(out);
            self.leave();
        }
        if fault == Fault::Drain && self.phase.sm {
            // WS-39: the client resumes elsewhere.
            self.drop_server(now);
        }
        self.close_server(out, now);
    }

    /// A request that cannot be understood (BOSH-68).
    pub(super) fn unreadable(
        &mut self,
        id: RequestId,
        rid: Option<u64>,
        fault: Fault,
        out: &mut Out,
        now: Instant,
    ) {
        if self.is_open() {
            self.fail(fault, Some((rid.unwrap_or(u64::MAX), id)), out, now);
        } else {
            let reply = response::refusal(fault, self.terms.legacy(), self.terms.content);
            out.responses.push(Respond { id, reply, why: Why::Terminate });
        }
    }

    /// No request was open for too long: the client is taken to be gone, and is told nothing
    /// (BOSH-57, XB-16).
    pub(super) fn lose_client(&mut self, out: &mut Out, now: Instant) {
        self.end(Fault::Inactive);
        self.refuse_straggler(out);
        self.give_up(out);
        if self.phase.sm {
            self.drop_server(now);
        }
        self.close_server(out, now);
        self.leave();
    }

    /// The session ends before it is known whether anybody waits for this answer (BOSH-70).
    fn refuse_straggler(&mut self, out: &mut Out) {
        if let Some(straggler) = self.straggler.take() {
            self.refuse(straggler.id, out);
        }
    }

    /// The process is shutting down (BOSH-74).
    pub(super) fn drain(&mut self, out: &mut Out, now: Instant) {
        if self.is_open() {
            self.fail(Fault::Drain, None, out, now);
        }
    }

    /// An operator wants the session to end. The client is told by a stream error as if it were the
    /// server's (XB-14), which has room for the reason; the stream ends for the server as well.
    pub(super) fn kick(&mut self, out: &mut Out, now: Instant) {
        if self.is_open() {
            let fault = Fault::AdminKick;
            if let Some(error) = fault.stream_error() {
                self.queue.push(Kind::StreamError, None, |bytes| error.write(bytes));
            }
            self.fail(fault, None, out, now);
        }
    }

    /// The session holds too much memory: nothing of that is kept, and instead of what waited the
    /// client is told a stream error.
    pub(super) fn overloaded(&mut self, server_waits: bool, out: &mut Out, now: Instant) {
        if server_waits {
            // Nothing can reach the server behind half an element.
            self.server = ServerSide::Gone;
        }
        self.give_up(out);
        self.early = Vec::new();
        match self.client {
            ClientSide::Open => {
                if let Some(error) = Fault::Memory.stream_error() {
                    self.queue.push(Kind::StreamError, None, |bytes| error.write(bytes));
                }
                self.fail(Fault::Memory, None, out, now);
                // Nobody asks for what was said before, and that is what has to go.
                self.window.shrink(0);
            }
            ClientSide::Terminating(_) => self.terminated(out, now),
            ClientSide::Zombie { told, elements, .. } => {
                if told.is_none() {
                    out.counts.undelivered += elements;
                }
                self.leave();
            }
            ClientSide::Gone => {}
        }
    }

    /// Answers every request that waits (BOSH-76); false if none does.
    fn tell_end(&mut self, fault: Fault, culprit: Option<(u64, RequestId)>, out: &mut Out) -> bool {
        let condition = fault.condition();
        self.refuse_straggler(out);
        let mut live = self.window.drain_live();
        let mut told = 0;
        if let Some(culprit) = culprit {
            let at = live.partition_point(|(rid, _)| *rid <= culprit.0);
            live.insert(at, culprit);
            // An end that is no error is the oldest's to tell (BOSH-64).
            told = if condition.is_some() { at } else { 0 };
        }
        for (n, (rid, id)) in live.iter().enumerate() {
            let reply = match condition {
                _ if n == told && carries_payload(condition) => {
                    let ack = if condition.is_none() { self.ack(*rid) } else { None };
                    let body = self.write_end(fault, ack);
                    self.reply(body, true)
                }
                Some(condition) => {
                    let (condition, reason) = if n == told {
                        (condition, response::reason(fault))
                    } else {
                        (Condition::OtherRequest, None)
                    };
                    let (legacy, content) = (self.terms.legacy(), self.terms.content);
                    response::terminal(Some(condition), reason, legacy, content)
                }
                None => self.reply(response::empty(self.ack(*rid)), true),
            };
            out.responses.push(Respond { id: *id, reply, why: Why::Terminate });
        }
        !live.is_empty()
    }

    /// The response that ends the session, with all that waits, however much that is: there is no
    /// other that could follow (looser than BOSH-41).
    fn write_end(&mut self, fault: Fault, ack: Option<u64>) -> Bytes {
        let (condition, reason) = (fault.condition(), response::reason(fault));
        let load = self.queue.everything();
        if load.parts == 0 {
            return response::ending(condition, reason, ack);
        }
        let mut bytes = response::with_room_for(load.bytes);
        response::begin_ending(condition, reason, ack, load.stream, &mut bytes);
        response::payload(&mut bytes);
        self.queue.take(load, &mut bytes, &mut self.assigned.parts);
        self.assigned.note();
        self.assigned.settle();
        response::end(true, &mut bytes);
        bytes.into()
    }

    /// What the next request will be told (BOSH-77), and how many of the server's elements that has.
    fn last_words(&mut self, fault: Fault, out: &mut Out) -> (Bytes, u32) {
        if self.queue.bytes() > ZOMBIE_BYTES {
            self.give_up(out);
        }
        let elements = self.queue.elements();
        let words = self.write_end(fault, None);
        // When somebody asks for them is not known.
        self.assigned.read = Vec::new();
        self.assigned.first = false;
        (words, elements)
    }

    /// Nobody will take what waits for the client.
    fn give_up(&mut self, out: &mut Out) {
        // SM-06: the server still has it.
        if self.server == ServerSide::Open && !self.phase.sm {
            let mut scratch = Scratch::new();
            for (kind, bytes) in self.queue.iter() {
                out.counts.bounced += u32::from(bounce(
                    &mut scratch,
                    &self.settings.server_xml,
                    kind,
                    bytes,
                    &mut out.server,
                ));
            }
        }
        out.counts.undelivered += self.queue.elements();
        self.queue.clear();
    }

    /// The client's side is done; nothing is kept for it.
    pub(super) fn leave(&mut self) {
        self.client = ClientSide::Gone;
        self.window.shrink(0);
        self.queue.clear();
        self.assigned.settle();
        self.early = Vec::new();
        self.words = None;
        self.address = None;
    }
}

/// Whether what waits for the client goes with the end. An answer to a request that broke a rule
/// holds nothing: it may be anybody's (BOSH-70), or a mere status (BOSH-79).
fn carries_payload(condition: Option<Condition>) -> bool {
    !matches!(
        condition,
        Some(Condition::BadRequest | Condition::ItemNotFound | Condition::PolicyViolation)
    )
}

/// BOSH-77: the ends by BOSH-72 to BOSH-74.
fn is_remembered(fault: Fault) -> bool {
    match fault.condition() {
        None => fault == Fault::ServerClosed,
        condition => carries_payload(condition),
    }
}

/// XB-15: answers a stanza that its receiver will not get; false if nobody has to be told.
fn bounce(
    scratch: &mut Scratch,
    limits: &xml::Limits,
    kind: Kind,
    bytes: &[u8],
    out: &mut Vec<u8>,
) -> bool {
    // What the seam inserted may pass a limit that the element kept.
    let limits =
        xml::Limits { element_bytes: usize::MAX, attributes: 1000, namespaces: 500, ..*limits };
    let scope = Scope::client();
    let Ok(Message::Element(element)) = xml::message(scratch, &limits, &scope, bytes) else {
        return false;
    };
    let stanza_type = element.attribute("type");
    let condition = match (kind, stanza_type.as_deref()) {
        (Kind::Message, Some("error" | "groupchat" | "headline")) => return false,
        (Kind::Message, _) if is_carbon(&element) => return false,
        (Kind::Message, _) => "wait'><recipient-unavailable",
        (Kind::Iq, Some("get" | "set")) => "cancel'><service-unavailable",
        _ => return false,
    };
    let name: &[u8] = if kind == Kind::Iq { b"iq" } else { b"message" };
    out.push(b'<');
    out.extend_from_slice(name);
    out.extend_from_slice(b" type='error'");
    for (ours, theirs) in [("to", "from"), ("id", "id")] {
        if let Some(value) = element.attribute(theirs) {
            out.push(b' ');
            out.extend_from_slice(ours.as_bytes());
            out.extend_from_slice(b"='");
            escape_attribute(&value, out);
            out.push(b'\'');
        }
    }
    for part in ["><error type='", condition, " xmlns='", ns::STANZA_ERRORS, "'/></error></"] {
        out.extend_from_slice(part.as_bytes());
    }
    out.extend_from_slice(name);
    out.push(b'>');
    true
}

/// A copy of a message that another resource has got (XEP-0280).
fn is_carbon(element: &Element<'_>) -> bool {
    element.children().iter().any(|child| child.namespace == ns::CARBONS)
}
