//! The loop of a BOSH session: take requests, let the machine handle them, answer.
//!
//! Its law is that of [`super::run`]: everything is a poll, and it never waits for one peer while
//! another could be served. Requests come through a mailbox ([`super::registry`]) with the way
//! back to whoever waits for the answer; they are taken while there is room for what they would
//! add to the bytes that wait for the server. All that is ready is taken before anything is
//! answered, so that what came together leaves together (BOSH-39).
//!
//! An answer whose reader has gone is never counted as given (BOSH-48 to BOSH-50): the machine is
//! told that the request is gone, and says what is to be said instead.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::oneshot;
use tokio::time::Sleep;
use tracing::{Span, debug, error, info_span};

use super::budget::{Account, Owner};
use super::delivery::Delivery;
use super::link::{Machine, ServerLink};
use super::newcomer::Newcomer;
use super::recorder::event::{Order, Rid, Side, What};
use super::recorder::record::Recording;
use super::registry::{Exchange, Mailbox, Registered};
use super::returns::User;
use super::run::TURNS;
use super::timed::{self, Timed};
use super::timer::{arm, clock};
use super::untaken::Untaken;
use super::worker::{Buffers, Live, Permit, Worker};
use crate::metrics::{Direction, Limit, MEASURES, Transport};
use crate::proto::bosh::body::{Body, Unreadable};
use crate::proto::bosh::session::{Counts, Event, Out, Respond, Session};
use crate::proto::bosh::{Content, Reply, RequestId, response};
use crate::proto::fault::Fault;
use crate::proto::stream::{ServerSide, Stage};
use crate::proto::xml::Scratch;
use crate::upstream::{Client, Established, OpenRequest};

/// The request that creates a session.
const FIRST: RequestId = RequestId(0);
/// Its rid, which is the first: [`Recording::rid`] of it.
const FIRST_RID: Rid = Some(std::num::NonZeroU32::MIN);

/// Makes the session that `body` asks for on behalf of `client` (its `id` is given here), who began
/// at `begun`, and is a `newcomer`, and starts its task on this worker; `origin` is that of the page
/// which asks, if one does. The receiver gets the creation response. If the client's connection is TLS, those of all
/// its further requests have to be (BOSH-89).
///
/// # Errors
/// The answer to a request that makes no session; nothing is left of it.
pub fn create(
    worker: &Rc<Worker>,
    live: &Arc<Live>,
    body: Body,
    permit: Permit,
    (client, begun, newcomer): (Client, Instant, Box<Newcomer>),
    origin: Option<&str>,
) -> Result<oneshot::Receiver<Reply>, Reply> {
    let now = clock();
    let rid = body.rid;
    let shared = &worker.shared;
    let sid = shared.registry.new_sid().map_err(|fault| {
        error!(%fault, "the system gives no random bytes");
        refusal(Fault::Bug)
    })?;
    let machine = Session::create(Arc::clone(&live.bosh), sid, FIRST, body, now).map_err(
        |(fault, reply)| {
            debug!(
                peer = client.address.map(tracing::field::display),
                reason = fault.label(),
                "bosh_session_refused"
            );
            reply
        },
    )?;
    // A sid of 160 random bits that is taken is none: the system's randomness is broken.
    let (place, mailbox) =
        shared.registry.insert(sid, client.secure).ok_or_else(|| refusal(Fault::Bug))?;
    let at = (Rc::clone(worker), Arc::clone(live));
    let origin = live.bosh_origins.of_interest(origin);
    let (run, answer) =
        Run::new(at, machine, (place, mailbox), permit, (client, origin, newcomer, begun), now);
    run.recording.created(rid, now);
    actix_rt::spawn(Timed::new(run, timed::Bosh(Arc::clone(&worker.local))));
    Ok(answer)
}

/// What the loop asks of a machine besides what the server's link does; the words of [`Session`].
trait Driven: Machine<Out = Out> + Unpin {
    fn handle(&mut self, event: Event<'_>, out: &mut Out, now: Instant);
    fn take_request(&mut self) -> Option<Box<OpenRequest>>;
    fn deadline(&self) -> Option<Instant>;
    fn ended(&self) -> Option<Fault>;
    fn limit(&self) -> Option<Limit>;
    fn stage(&self) -> Stage;
    fn take_jid(&mut self) -> Option<Box<str>>;
    fn is_authenticated(&self) -> bool;
    fn is_zombie(&self) -> bool;
    fn is_over(&self) -> bool;
    fn held_bytes(&self) -> usize;
    fn untaken(&mut self, bytes: usize);
}

/// One session, from its creation until its sid is unknown again.
struct Run<M: Driven> {
    worker: Rc<Worker>,
    live: Arc<Live>,
    machine: M,
    mailbox: Mailbox,
    /// Requests that are not answered yet, oldest first.
    open: Vec<(RequestId, Rid, oneshot::Sender<Reply>)>,
    /// The number of the next request.
    next: u64,
    link: ServerLink,
    /// What the server's socket has not taken whole.
    delivering: Delivery,
    /// What connections have not taken whole, once they were given much.
    untaken: Option<Arc<Untaken>>,
    /// Whose it is, once that is known.
    user: Option<User>,
    /// Who it is of, until it has bound a resource.
    newcomer: Option<Box<Newcomer>>,
    /// When the client began.
    begun: Instant,
    /// When the last request came.
    heard: Instant,
    sleep: Pin<Box<Sleep>>,
    span: Span,
    /// The timer knows whom to wake.
    armed: bool,
    drained: bool,
    registered: bool,
    /// Its end was counted and logged.
    accounted: bool,
    /// The recording says why it ends.
    ending: bool,
    stage: Stage,
    recording: Recording,
    /// What it holds.
    account: Account,
    id: u64,
    opened: Instant,
    place: Option<Registered>,
    permit: Option<Permit>,
}

impl<M: Driven> Run<M> {
    /// A session whose first request is open: the receiver gets its answer.
    fn new(
        (worker, live): (Rc<Worker>, Arc<Live>),
        machine: M,
        (place, mailbox): (Registered, Mailbox),
        permit: Permit,
        (client, origin, newcomer, begun): (Client, Option<Box<str>>, Box<Newcomer>, Instant),
        now: Instant,
    ) -> (Self, oneshot::Receiver<Reply>) {
        let (reply, answer) = oneshot::channel();
        let id = worker.next_id();
        let span = info_span!(
            parent: None,
            "session",
            id = format_args!("{id:012x}"),
            peer = client.address.map(tracing::field::display),
            transport = Transport::Bosh.label(),
            domain = tracing::field::Empty,
        );
        let metrics = worker.shared.metrics.transport(Transport::Bosh);
        metrics.opened.inc();
        metrics.sessions.inc();
        let at = machine.deadline().unwrap_or(now);
        let client = Client { id, ..client };
        let recording = worker.record(&client, Some(Transport::Bosh), now);
        let run = Self {
            machine,
            mailbox,
            open: vec![(FIRST, FIRST_RID, reply)],
            next: FIRST.0 + 1,
            link: ServerLink::new(client, origin),
            delivering: Delivery::default(),
            untaken: None,
            user: None,
            newcomer: Some(newcomer),
            begun,
            heard: now,
            sleep: Box::pin(tokio::time::sleep_until(at.into())),
            span,
            armed: false,
            drained: false,
            registered: false,
            accounted: false,
            ending: false,
            stage: Stage::default(),
            recording,
            account: Account::default(),
            id,
            opened: now,
            worker,
            live,
            place: Some(place),
            permit: Some(permit),
        };
        (run, answer)
    }

    fn turn(&mut self, buffers: &mut Buffers, now: Instant, cx: &mut Context<'_>) -> bool {
        // Before the requests: one that repeats a request whose connection broke takes its place
        // (BOSH-49), and is no repeat of one that is open (BOSH-45).
        self.notice_gone(&mut buffers.bosh, now, cx);
        let mut progress = self.receive(&mut buffers.bosh, now, cx);
        if let Some(request) = self.machine.take_request() {
            self.span.record("domain", request.domain.as_str());
            self.recording.opening(&request.domain, now);
            self.newcomer.iter_mut().for_each(|newcomer| newcomer.opens(&request.domain));
            self.link.open(request, &self.live.connector, &self.live.bosh_origins);
        }
        let Self { link, machine, worker, span, recording, .. } = self;
        let seen = (&*span, &*recording);
        progress |= link.poll_connect(machine, worker, seen, &mut buffers.bosh, now, cx);
        progress |= self.write(&mut buffers.bosh, now, cx);
        let Buffers { read, scratch, bosh: out, .. } = buffers;
        if self.link.read(&mut self.machine, read, scratch, out, now, cx) {
            self.recording.server_heard(now);
            progress = true;
        }
        let wanted = self.machine.wants_server();
        self.tick(out, now);
        // At its end a session reads the server again, even if its queue was full until then.
        progress |= !wanted && self.machine.wants_server();
        progress |= self.write(out, now, cx);
        progress
    }

    // ---- requests --------------------------------------------------------------------------

    /// Requests whose connection has ended (BOSH-48).
    fn notice_gone(&mut self, out: &mut Out, now: Instant, cx: &mut Context<'_>) {
        let Self { machine, recording, .. } = self;
        self.open.retain_mut(|(id, rid, reply)| {
            let is_gone = reply.poll_closed(cx).is_ready();
            if is_gone {
                // An answer of this wake-up, perhaps, which then was never given.
                out.responses.retain(|respond| respond.id != *id);
                machine.handle(Event::Gone { id: *id }, out, now);
                recording.note(What::Unanswered { rid: *rid }, now);
            }
            !is_gone
        });
    }

    /// Whether requests are taken: a client that sends faster than the server reads waits in the
    /// mailbox, which bounds what it can make us keep.
    fn has_room(&self, out: &Out) -> bool {
        self.link.waiting() + out.server.len() < self.live.bosh.pending_bytes
    }

    /// Takes the requests that wait in the mailbox; true if there were any.
    fn receive(&mut self, out: &mut Out, now: Instant, cx: &mut Context<'_>) -> bool {
        let mut some = false;
        while self.has_room(out) && !self.machine.is_over() {
            let Poll::Ready(Some(exchange)) = self.mailbox.poll_recv(cx) else { break };
            some = true;
            self.place.iter().for_each(|place| place.queued().remove(exchange.held_bytes()));
            let Exchange { request, received, reply } = *exchange;
            let id = RequestId(self.next);
            self.next += 1;
            self.recording.client_heard(now);
            self.heard = received;
            let before = out.forwarded.len();
            match request {
                Ok(body) => self.request(id, body, reply, out, now),
                Err(Unreadable { rid, fault, limit, .. }) => {
                    let told = rid.and_then(|rid| self.recording.rid(rid));
                    self.recording.note(What::Unreadable { rid: told, fault }, now);
                    self.open.push((id, told, reply));
                    self.machine.handle(Event::Unreadable { id, rid, fault, limit }, out, now);
                }
            }
            // It may have waited in the mailbox; those that it has brought along have not.
            for (arrived, _) in &mut out.forwarded[before..] {
                if *arrived == now {
                    *arrived = received;
                }
            }
        }
        some
    }

    /// Hands a request to the machine. What that made of it shows in what it counted.
    fn request(
        &mut self,
        id: RequestId,
        body: Body,
        reply: oneshot::Sender<Reply>,
        out: &mut Out,
        now: Instant,
    ) {
        let rid = self.recording.rid(body.rid);
        let bytes = u32::try_from(body.payload.bytes.len()).unwrap_or(u32::MAX);
        let elements = u16::try_from(body.payload.parts.len()).unwrap_or(u16::MAX);
        let next = match &body {
            Body { terminate: true, .. } => Order::Terminate,
            Body { restart: Some(_), .. } => Order::Restart,
            Body { pause: Some(_), .. } => Order::Pause,
            _ => Order::Next,
        };
        let pause = body.pause.and_then(Result::ok);
        self.open.push((id, rid, reply));
        let (requests, repeats) = (out.counts.requests, out.counts.repeats);
        let had_ended = self.machine.ended().is_some();
        self.machine.handle(Event::Request { id, body }, out, now);
        let order = if out.counts.requests > requests {
            next
        } else if out.counts.repeats > repeats {
            Order::Repeat
        } else if had_ended || self.machine.ended().is_some() {
            Order::Refused
        } else {
            Order::OutOfOrder
        };
        self.recording.note(What::Request { rid, bytes, elements, order }, now);
        if let Some(seconds) = pause.filter(|_| order == Order::Pause) {
            self.recording.note(What::Pause(seconds), now);
        }
    }

    /// Lets the machine answer what it can; true if it may take now what it could not before.
    fn answer(&mut self, out: &mut Out, now: Instant, cx: &mut Context<'_>) -> bool {
        let wanted = self.machine.wants_server();
        self.flush(out, now);
        // Before the answers that tell it.
        self.follow(now);
        // Each time around is one open request less.
        while self.respond(out, now, cx) {
            self.flush(out, now);
        }
        self.write(out, now, cx) || !wanted && self.machine.wants_server()
    }

    fn flush(&mut self, out: &mut Out, now: Instant) {
        self.machine.untaken(self.untaken_bytes());
        self.machine.handle(Event::Flush, out, now);
    }

    fn untaken_bytes(&self) -> usize {
        self.untaken.as_ref().map_or(0, |untaken| untaken.bytes())
    }

    /// Hands the answers over; true if one had no taker, and so has to be thought over.
    fn respond(&mut self, out: &mut Out, now: Instant, cx: &mut Context<'_>) -> bool {
        let mut untaken = false;
        let mut responses = std::mem::take(&mut out.responses);
        for Respond { id, mut reply, why } in responses.drain(..) {
            let Some(at) = self.open.iter().position(|(open, ..)| *open == id) else {
                debug_assert!(false, "an answer to a request that is not open");
                continue;
            };
            let (_, rid, sender) = self.open.remove(at);
            let bytes = u32::try_from(reply.body.len()).unwrap_or(u32::MAX);
            if reply.first {
                reply.read.insert(0, self.begun);
            }
            reply.body = Untaken::give(&mut self.untaken, reply.body, cx.waker());
            if sender.send(reply).is_ok() {
                self.worker.local.responded(why);
                self.recording.note(What::Answer { rid, bytes, why }, now);
            } else {
                untaken = true;
                self.recording.note(What::Unanswered { rid }, now);
                self.machine.handle(Event::Gone { id }, out, now);
            }
        }
        if out.responses.is_empty() {
            // Its memory is used again.
            out.responses = responses;
        }
        untaken
    }

    // ---- the server, time, the end -----------------------------------------------------------

    /// True if there is room again for requests, which were not looked at meanwhile.
    fn write(&mut self, out: &mut Out, now: Instant, cx: &mut Context<'_>) -> bool {
        // Counted before it is written: whoever has received a stanza finds it in the metrics.
        self.count(out, now);
        let had_room = self.has_room(out);
        let waited = self.link.is_waiting();
        self.link.write(&mut out.server, self.machine.server(), now, cx);
        self.recording.waits(Side::Server, waited, self.link.is_waiting(), now);
        if !out.forwarded.is_empty() || !self.delivering.is_settled() {
            let (local, fresh) = (&self.worker.local, out.forwarded.drain(..));
            self.delivering.settle(fresh, self.link.taken(), clock, |time, elements| {
                local.delivered(Transport::Bosh, Direction::ToServer, time, elements);
            });
        }
        !had_room && self.has_room(out)
    }

    fn tick(&mut self, out: &mut Out, now: Instant) {
        if self.turn_to_end().is_some_and(|at| at <= now) {
            self.drained = true;
            self.machine.handle(Event::Drain, out, now);
        }
        if self.worker.is_kicked(self.id) {
            self.machine.handle(Event::Kick, out, now);
        }
        self.link.tick(&mut self.machine, &self.live, out, now);
        if self.machine.deadline().is_some_and(|at| at <= now) {
            self.machine.handle(Event::Deadline, out, now);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let link = self.link.deadline(&self.live);
        self.machine.deadline().into_iter().chain(link).chain(self.turn_to_end()).min()
    }

    /// When this session ends for the sake of the drain, if it has begun and that is still to come.
    fn turn_to_end(&self) -> Option<Instant> {
        let drain = self.worker.draining().filter(|_| !self.drained)?;
        Some(drain.turn(self.id))
    }

    /// The machine keeps nothing but its condition for the next request (BOSH-77). So does the
    /// session: it is none any more to limits, metrics and log. False if too many do so already.
    fn rest(&mut self, now: Instant) -> bool {
        if self.permit.take().is_some() {
            self.link = ServerLink::closed();
            self.newcomer = None;
            self.account(now);
        }
        self.place.as_mut().is_some_and(Registered::die)
    }

    // ---- accounts ----------------------------------------------------------------------------

    fn held_bytes(&self) -> usize {
        let queued = self.place.as_ref().map_or(0, |place| place.queued().bytes());
        self.machine.held_bytes() + self.link.held_bytes() + queued + self.untaken_bytes()
    }

    /// Ends it, if it does not end anyway, and gives up what it holds.
    fn end_for_memory(&mut self, out: &mut Out, now: Instant) {
        if self.machine.ended().is_none() {
            self.worker.shared.metrics.limits.hit(Limit::Memory);
        }
        let server_waits = self.link.is_waiting();
        self.link.give_up();
        self.machine.handle(Event::Overloaded { server_waits }, out, now);
    }

    fn count(&self, out: &mut Out, now: Instant) {
        if out.tally.is_empty() && out.counts == Counts::default() {
            return;
        }
        let (tally, counts) = (std::mem::take(&mut out.tally), std::mem::take(&mut out.counts));
        self.worker.count(Some(Transport::Bosh), &tally);
        self.recording.count(&tally, now);
        if tally.failures > 0 {
            self.permit.iter().for_each(|permit| permit.failed(tally.failures, clock()));
        }
        self.worker.local.undelivered(Transport::Bosh, counts.undelivered);
        self.worker.local.taken_in_order(counts.requests);
        self.worker.shared.metrics.bosh.count(&counts);
    }

    fn account(&mut self, now: Instant) {
        if std::mem::replace(&mut self.accounted, true) {
            return;
        }
        // A session dropped alive is one of a worker that was stopped.
        let alive = if std::thread::panicking() { Fault::Bug } else { Fault::Drain };
        let fault = self.machine.ended().unwrap_or(alive);
        self.worker.shared.metrics.bosh.terminated(fault.condition());
        self.worker.session_ended(&self.span, Transport::Bosh, fault, self.opened, now);
        self.worker.archive(self.id, &mut self.recording, fault, now);
    }

    /// Records how far the session has come.
    fn follow(&mut self, now: Instant) {
        if let Some(jid) = self.machine.take_jid() {
            if self.user.is_none() {
                self.user = Some(self.worker.identified(Transport::Bosh, &jid, now));
            }
            self.recording.jid(jid);
        }
        let stage = self.machine.stage();
        if stage != self.stage {
            if stage.bound && !self.stage.bound {
                let time = clock().saturating_duration_since(self.begun);
                self.worker.local.bound(Transport::Bosh, time);
                if let Some(newcomer) = self.newcomer.take() {
                    let origins = &self.live.bosh_origins;
                    newcomer.bound(Transport::Bosh, origins, &self.worker, now);
                }
            }
            self.stage = stage;
            self.recording.stage(stage, now);
        }
        if !self.ending
            && let Some(fault) = self.machine.ended()
        {
            self.ending = true;
            self.recording.ends(fault, now);
            self.machine.limit().into_iter().for_each(|limit| self.worker.hit(limit));
            self.worker.ends(self.user, fault, now);
            if fault.is_loss() {
                let silence = now.saturating_duration_since(self.heard);
                self.worker.local.lost(Transport::Bosh, silence);
            }
        }
    }
}

impl Machine for Session {
    type Out = Out;

    fn server(&self) -> ServerSide {
        Self::server(self)
    }

    fn wants_server(&self) -> bool {
        Self::wants_server(self)
    }

    fn connected(&mut self, stream: &Established, out: &mut Out, now: Instant) {
        let (header, secure) = (&stream.header, stream.secure);
        let identified = stream.identified;
        self.handle(Event::Connected { header, secure, identified }, out, now);
    }

    fn connect_failed(&mut self, fault: Fault, out: &mut Out, now: Instant) {
        self.handle(Event::ConnectFailed { fault }, out, now);
    }

    fn server_bytes(
        &mut self,
        scratch: &mut Scratch,
        input: &mut &[u8],
        out: &mut Out,
        now: Instant,
    ) {
        Self::server_bytes(self, scratch, input, out, now);
    }

    fn server_gone(&mut self, out: &mut Out, now: Instant) {
        self.handle(Event::ServerGone, out, now);
    }

    fn server_stalled(&mut self, out: &mut Out, now: Instant) {
        self.handle(Event::ServerStalled, out, now);
    }
}

impl Driven for Session {
    fn handle(&mut self, event: Event<'_>, out: &mut Out, now: Instant) {
        Self::handle(self, event, out, now);
    }

    fn take_request(&mut self) -> Option<Box<OpenRequest>> {
        Self::take_request(self)
    }

    fn deadline(&self) -> Option<Instant> {
        Self::deadline(self)
    }

    fn ended(&self) -> Option<Fault> {
        Self::ended(self)
    }

    fn limit(&self) -> Option<Limit> {
        Self::limit(self)
    }

    fn stage(&self) -> Stage {
        Self::stage(self)
    }

    fn take_jid(&mut self) -> Option<Box<str>> {
        Self::take_jid(self)
    }

    fn is_authenticated(&self) -> bool {
        Self::is_authenticated(self)
    }

    fn is_zombie(&self) -> bool {
        Self::is_zombie(self)
    }

    fn is_over(&self) -> bool {
        Self::is_over(self)
    }

    fn held_bytes(&self) -> usize {
        Self::held_bytes(self)
    }

    fn untaken(&mut self, bytes: usize) {
        Self::untaken(self, bytes);
    }
}

impl<M: Driven> Future for Run<M> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if !this.registered {
            this.registered = true;
            this.worker.register(this.id, cx.waker().clone(), this.recording.clone());
            this.place.iter().for_each(|place| place.queued().wakes(cx.waker()));
        }
        let mut now = clock();
        let worker = Rc::clone(&this.worker);
        let mut buffers = worker.buffers.borrow_mut();
        buffers.begin();
        let budget = worker.shared.sessions.budget();
        if this.account.is_marked() {
            let held = this.held_bytes();
            if this.account.is_due(budget, held, this.id) {
                this.end_for_memory(&mut buffers.bosh, now);
            }
        }
        let mut turns = 0;
        loop {
            turns += 1;
            let spent = turns >= TURNS;
            if this.turn(&mut buffers, now, cx) && !spent {
                if MEASURES {
                    // What is read next is as old as this.
                    now = clock();
                }
                continue;
            }
            let more = this.answer(&mut buffers.bosh, now, cx);
            if spent {
                cx.waker().wake_by_ref();
                break;
            }
            if !more {
                break;
            }
        }
        this.count(&mut buffers.bosh, now);
        buffers.trim();
        drop(buffers);
        this.follow(now);
        let owner =
            Owner { id: this.id, born: this.opened, transport: Transport::Bosh, waker: cx.waker() };
        let held = this.held_bytes();
        this.account.publish(budget, held, &owner);
        if this.machine.is_authenticated() {
            this.permit.iter_mut().for_each(Permit::authenticated);
        }
        if this.machine.is_over() || this.machine.is_zombie() && !this.rest(now) {
            debug_assert!(this.open.is_empty(), "a session has ended without all its answers");
            return Poll::Ready(());
        }
        if let Some(at) = this.deadline() {
            arm(&mut this.sleep, &mut this.armed, at, cx);
        }
        Poll::Pending
    }
}

impl<M: Driven> Drop for Run<M> {
    fn drop(&mut self) {
        self.account.close(self.worker.shared.sessions.budget(), self.id);
        // From here on the sid is unknown; what is in the mailbox came too late (BOSH-66).
        self.place = None;
        self.mailbox.close();
        while let Ok(exchange) = self.mailbox.try_recv() {
            let _ = exchange.reply.send(refusal(Fault::UnknownSid));
        }
        for (.., reply) in self.open.drain(..) {
            let _ = reply.send(refusal(Fault::Bug));
        }
        self.account(clock());
        self.worker.unregister(self.id);
    }
}

/// The answer to a request that no machine answers.
fn refusal(fault: Fault) -> Reply {
    response::refusal(fault, false, Content::default())
}

#[cfg(test)]
mod tests;
