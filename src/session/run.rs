//! The loop of a WebSocket session: read, let the machine handle it, write.
//!
//! Its one law is that it never waits for one peer while the other could be served: everything
//! below is a poll. Backpressure is one sentence: *while bytes for one side wait for its socket,
//! the other side is not read.* So what a session holds is bounded by one read chunk, one element
//! and what a chunk of elements turns into, and a peer that takes nothing for
//! `limits.stall_timeout` ends the session.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::time::Sleep;
use tracing::{Span, debug};

use super::budget::{Account, Owner};
use super::delivery::{Delivery, Taken};
use super::link::{Machine, ServerLink, read_some};
use super::meter::Meter;
use super::newcomer::Newcomer;
use super::pending::Pending;
use super::recorder::event::{Side, What};
use super::recorder::record::Recording;
use super::returns::User;
use super::timer::{arm, clock};
use super::worker::{Buffers, Live, Permit, READ_CHUNK, Worker};
use crate::io::Io;
use crate::metrics::{Direction, Limit, MEASURES, Transport, Upgrade};
use crate::proto::fault::Fault;
use crate::proto::stream::{ServerSide, Stage};
use crate::proto::ws::Framing;
use crate::proto::ws::session::{ClientSide, Loss, Out, Session};
use crate::proto::xml::Scratch;
use crate::upstream::{self, Established};

/// Read chunks handled in one poll before other sessions of the thread get their turn.
pub(super) const TURNS: u32 = 16;

/// The most that is kept of a frame which a client has begun to read, when its session ends for its
/// memory: what is told at the end comes behind that. For the sake of a larger one it is not told.
const LAST_FRAME: usize = 64 * 1024;

/// One session, from the 101 to the end of both connections.
pub struct Run {
    worker: Rc<Worker>,
    live: Arc<Live>,
    machine: Session,
    client: Option<Io>,
    link: ServerLink,
    to_client: Pending,
    /// What the server's socket, and the client's, has not taken whole.
    delivering: [Delivery; 2],
    meter: Rc<Meter>,
    /// Whose it is, once that is known.
    user: Option<User>,
    /// Who it is of, until it has bound a resource.
    newcomer: Option<Box<Newcomer>>,
    /// When the client began.
    begun: Instant,
    /// When the last byte of the client came.
    heard: Instant,
    /// Input the machine had no room for, or that came before it wanted any.
    held_client: Vec<u8>,
    sleep: Pin<Box<Sleep>>,
    span: Span,
    transport: Option<Transport>,
    /// A write failed. What the client sent before is still read, since it may say why: only the
    /// end of its stream, which is due, ends that side.
    client_deaf: bool,
    /// The timer knows whom to wake.
    armed: bool,
    /// The machine knows that streams are not opened any more.
    closed: bool,
    drained: bool,
    registered: bool,
    /// The recording says why it ends.
    ending: bool,
    /// The first stanza since a resource was bound is among what the client's socket has not taken.
    first: bool,
    stage: Stage,
    recording: Recording,
    /// What it holds.
    account: Account,
    id: u64,
    opened: Instant,
    permit: Permit,
}

impl Run {
    /// A session over `client`, which is `who`, on a page of `origin` if that matters, and to which the 101 was written; `early` is what
    /// came behind the upgrade request.
    #[expect(clippy::too_many_arguments, reason = "all that a session is made of, once")]
    pub fn new(
        worker: Rc<Worker>,
        live: Arc<Live>,
        client: Io,
        early: Vec<u8>,
        permit: Permit,
        span: Span,
        (who, origin, newcomer): (upstream::Client, Option<Box<str>>, Option<Box<Newcomer>>),
        (meter, begun): (Rc<Meter>, Instant),
        now: Instant,
    ) -> Self {
        let id = who.id;
        let machine = Session::new(Arc::clone(&live.settings), id, now);
        let at = machine.deadline().unwrap_or(now);
        let recording = worker.record(&who, None, now);
        recording.note(What::Connected, now);
        Self {
            machine,
            client: Some(client),
            link: ServerLink::new(who, origin),
            to_client: Pending::framed(),
            delivering: Default::default(),
            meter,
            user: None,
            newcomer,
            begun,
            heard: now,
            held_client: early,
            sleep: Box::pin(tokio::time::sleep_until(at.into())),
            span,
            transport: None,
            client_deaf: false,
            armed: false,
            closed: false,
            drained: false,
            registered: false,
            ending: false,
            first: false,
            stage: Stage::default(),
            recording,
            account: Account::default(),
            id,
            opened: now,
            worker,
            live,
            permit,
        }
    }

    /// Whether there may be more to do, and then what time it is.
    fn turn(
        &mut self,
        buffers: &mut Buffers,
        mut now: Instant,
        cx: &mut Context<'_>,
    ) -> Option<Instant> {
        if !self.closed && self.worker.draining().is_some() {
            self.closed = true;
            self.machine.redirect();
        }
        let mut progress = self.read_client(buffers, now, cx);
        self.open_stream(now);
        progress |= self.poll_connect(buffers, now, cx);
        // Counted before it is written: whoever has received a stanza finds it in the metrics.
        let passed = self.count(buffers, now);
        let (more, taken) = self.write_both(buffers, now, cx);
        progress |= more;
        // The clock that tells how long a delivery took tells as well when the next thing is read.
        let delivered = self.settle(passed, taken, now);
        now = delivered.unwrap_or(now);
        let has_read = self.read_server(buffers, now, cx);
        self.machine_tick(buffers, now);
        let passed = self.count(buffers, now);
        let (more, taken) = self.write_both(buffers, now, cx);
        let last = self.settle(passed, taken, now).or(delivered.filter(|_| !has_read));
        if !(progress | has_read | more) {
            return None;
        }
        Some(last.unwrap_or_else(|| if MEASURES { clock() } else { now }))
    }

    // ---- the client ----------------------------------------------------------------------

    /// Whether the client is not read: the server does not take what was read, or the client does
    /// not take what is for it, where every ping puts a pong.
    fn client_waits(&self) -> bool {
        self.link.is_waiting() || self.to_client.len() >= self.live.settings.pending_bytes
    }

    fn read_client(&mut self, buffers: &mut Buffers, now: Instant, cx: &mut Context<'_>) -> bool {
        let client_waits = self.client_waits();
        let Some(client) = &mut self.client else { return false };
        if matches!(self.machine.client(), ClientSide::Gone) {
            return false;
        }
        if client_waits {
            return false;
        }
        if !self.machine.wants_client() {
            // While the upstream is opened the client may leave or hurry; the latter is bounded.
            if self.held_client.len() >= READ_CHUNK || self.machine.client() != ClientSide::Open {
                return false;
            }
            return match read_some(client, &mut buffers.read, cx) {
                Poll::Pending => false,
                Poll::Ready(Ok(0) | Err(_)) => {
                    self.machine.client_gone(Loss::Lost, now);
                    true
                }
                Poll::Ready(Ok(n)) => {
                    self.heard = now;
                    self.recording.client_heard(now);
                    self.held_client.extend_from_slice(&buffers.read[..n]);
                    true
                }
            };
        }
        if !self.held_client.is_empty() {
            let mut held = std::mem::take(&mut self.held_client);
            let mut input = held.as_mut_slice();
            self.machine.from_client(&mut buffers.scratch, &mut input, &mut buffers.out, now);
            let left = input.len();
            if left > 0 {
                let used = held.len() - left;
                held.drain(..used);
                self.held_client = held;
            }
            return true;
        }
        match read_some(client, &mut buffers.read, cx) {
            Poll::Pending => false,
            Poll::Ready(Ok(0) | Err(_)) => {
                self.machine.client_gone(Loss::Lost, now);
                true
            }
            Poll::Ready(Ok(n)) => {
                self.heard = now;
                self.recording.client_heard(now);
                let mut input = &mut buffers.read[..n];
                self.machine.from_client(&mut buffers.scratch, &mut input, &mut buffers.out, now);
                if !input.is_empty() {
                    self.held_client = input.to_vec();
                }
                true
            }
        }
    }

    // ---- the server ----------------------------------------------------------------------

    /// Starts the connection the client's `<open/>` asked for.
    fn open_stream(&mut self, now: Instant) {
        if self.transport.is_none()
            && let Some(framing) = self.machine.framing()
        {
            let transport = match framing {
                Framing::Rfc7395 => Transport::Websocket,
                Framing::Legacy { .. } => Transport::WebsocketLegacy,
            };
            let metrics = self.worker.shared.metrics.transport(transport);
            metrics.opened.inc();
            metrics.sessions.inc();
            self.span.record("transport", transport.label());
            self.recording.transport(transport);
            self.transport = Some(transport);
            self.meter.websocket(transport);
        }
        let Some(request) = self.machine.take_request() else { return };
        self.span.record("domain", request.domain.as_str());
        self.recording.opening(&request.domain, now);
        self.newcomer.iter_mut().for_each(|newcomer| newcomer.opens(&request.domain));
        self.link.open(request, &self.live.connector, &self.live.websocket_origins);
    }

    fn poll_connect(&mut self, buffers: &mut Buffers, now: Instant, cx: &mut Context<'_>) -> bool {
        let Self { link, machine, worker, span, recording, .. } = self;
        link.poll_connect(machine, worker, (span, recording), &mut buffers.out, now, cx)
    }

    fn read_server(&mut self, buffers: &mut Buffers, now: Instant, cx: &mut Context<'_>) -> bool {
        let Buffers { read, scratch, out, .. } = buffers;
        let has_read = self.to_client.is_empty()
            && self.link.read(&mut self.machine, read, scratch, out, now, cx);
        if has_read {
            self.recording.server_heard(now);
        }
        has_read
    }

    // ---- writing, time, the end ------------------------------------------------------------

    /// True if a socket has taken all that waited for it: the other side, which was not read
    /// meanwhile and so will not wake this task, has to be looked at again.
    fn write_both(
        &mut self,
        buffers: &mut Buffers,
        now: Instant,
        cx: &mut Context<'_>,
    ) -> (bool, Taken) {
        let (server_waits, client_waits) = (self.link.is_waiting(), !self.to_client.is_empty());
        self.link.write(&mut buffers.out.server, self.machine.server(), now, cx);
        let taken = self.write_client(buffers, now, cx);
        let (server_waited, client_waited) = (server_waits, client_waits);
        let (server_waits, client_waits) = (self.link.is_waiting(), !self.to_client.is_empty());
        self.recording.waits(Side::Server, server_waited, server_waits, now);
        self.recording.waits(Side::Client, client_waited, client_waits, now);
        (server_waited && !server_waits || client_waited && !client_waits, taken)
    }

    /// What the client has taken of what there was for it.
    fn write_client(&mut self, buffers: &mut Buffers, now: Instant, cx: &mut Context<'_>) -> Taken {
        let fresh = &mut buffers.out.client;
        let Some(client) = &mut self.client else {
            fresh.clear();
            return Taken::Nothing;
        };
        if self.client_deaf {
            fresh.clear();
        } else if !(fresh.is_empty() && self.to_client.is_empty())
            && self.to_client.write(client, fresh, now, cx).is_err()
        {
            fresh.clear();
            self.to_client.clear();
            self.client_deaf = true;
        }
        // Before the client's side is given up: it may have taken all that was for it.
        let taken = match self.client_deaf {
            true => Taken::Nothing,
            false if self.to_client.is_empty() => Taken::All,
            false => Taken::Some,
        };
        if self.to_client.is_empty() {
            let shut = match self.machine.client() {
                ClientSide::Closing { shut, .. } => shut,
                ClientSide::Finishing(_) => true,
                _ => false,
            };
            if shut && self.to_client.shut(client, cx) {
                self.machine.client_flushed();
            }
        }
        if self.machine.client() == ClientSide::Gone {
            self.client = None;
            self.to_client.clear();
            self.held_client = Vec::new();
        }
        if self.client.is_none() && taken == Taken::Some { Taken::Nothing } else { taken }
    }

    fn machine_tick(&mut self, buffers: &mut Buffers, now: Instant) {
        if self.turn_to_end().is_some_and(|at| at <= now) {
            self.drained = true;
            self.machine.drain(&mut buffers.out, now);
        }
        if self.worker.is_kicked(self.id) {
            self.machine.kick(&mut buffers.out, now);
        }
        if self.client_waits() {
            self.machine.client_not_read(now);
        }
        if !self.to_client.is_empty() {
            self.machine.client_not_told(now);
        }
        let stall = self.live.stall_timeout;
        if self.to_client.since.is_some_and(|since| since + stall <= now) {
            self.to_client.clear();
            self.machine.client_gone(Loss::Stalled, now);
        }
        self.link.tick(&mut self.machine, &self.live, &mut buffers.out, now);
        if self.machine.deadline().is_some_and(|at| at <= now) {
            self.machine.tick(&mut buffers.out, now);
        }
    }

    /// When this session ends for the sake of the drain, if it has begun and that is still to come.
    /// A client that is to be sent elsewhere has until the end of the window to open its stream.
    fn turn_to_end(&self) -> Option<Instant> {
        if self.drained {
            return None;
        }
        let drain = self.worker.draining()?;
        let unopened = self.machine.framing().is_none();
        let redirected = unopened && self.live.settings.see_other_uri.is_some();
        Some(if redirected { drain.end() } else { drain.turn(self.id) })
    }

    fn deadline(&self) -> Option<Instant> {
        let stall = self.live.stall_timeout;
        [
            self.machine.deadline(),
            self.to_client.since.map(|since| since + stall),
            self.link.deadline(&self.live),
            self.turn_to_end(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn held_bytes(&self) -> usize {
        self.machine.held_bytes()
            + self.to_client.held_bytes()
            + self.held_client.capacity()
            + self.link.held_bytes()
    }

    /// Ends it, if it does not end anyway, and gives up what it holds.
    fn end_for_memory(&mut self, buffers: &mut Buffers, now: Instant) {
        if self.machine.ended().is_none() {
            self.worker.shared.metrics.limits.hit(Limit::Memory);
        }
        let server_waits = self.link.is_waiting();
        self.link.give_up();
        self.held_client = Vec::new();
        let can_be_told = self.to_client.cut(LAST_FRAME);
        self.first = false;
        let lost = self.delivering[1].settle(std::iter::empty(), Taken::Nothing, clock, |_, _| {});
        if let Some(transport) = self.transport {
            self.worker.local.undelivered(transport, lost);
        }
        self.machine.overloaded(server_waits, &mut buffers.out, now);
        if !can_be_told {
            // Nothing may follow what was cut off.
            buffers.out.client.clear();
            self.machine.client_gone(Loss::Lost, now);
        }
    }

    /// The number of elements that passed to the server, and to the client.
    fn count(&mut self, buffers: &mut Buffers, now: Instant) -> [u32; 2] {
        if buffers.out.tally.is_empty() {
            return [0; 2];
        }
        let tally = std::mem::take(&mut buffers.out.tally);
        self.first |= tally.first;
        self.worker.count(self.transport, &tally);
        self.recording.count(&tally, now);
        if tally.failures > 0 {
            self.permit.failed(tally.failures, clock());
        }
        [tally.to_server.total(), tally.to_client.total()]
    }

    /// After a write: elements that passed, and were read at `now`, have arrived or wait. Returns
    /// the time that it is, if it was needed.
    fn settle(
        &mut self,
        [to_server, to_client]: [u32; 2],
        client: Taken,
        now: Instant,
    ) -> Option<Instant> {
        if to_server | to_client == 0 && self.delivering.iter().all(Delivery::is_settled) {
            return None;
        }
        let transport = self.transport?;
        let mut then = None;
        if self.first && client != Taken::Some {
            self.first = false;
            if client == Taken::All {
                let time = then.get_or_insert_with(clock).saturating_duration_since(self.begun);
                self.worker.local.first(transport, time);
            }
        }
        let [server_delivery, client_delivery] = &mut self.delivering;
        let local = &self.worker.local;
        for (delivery, passed, taken, direction) in [
            (server_delivery, to_server, self.link.taken(), Direction::ToServer),
            (client_delivery, to_client, client, Direction::ToClient),
        ] {
            let fresh = [(now, passed)].into_iter();
            let read_clock = || *then.get_or_insert_with(clock);
            let lost = delivery.settle(fresh, taken, read_clock, |time, elements| {
                local.delivered(transport, direction, time, elements);
            });
            if direction == Direction::ToClient {
                local.undelivered(transport, lost);
            }
        }
        then
    }

    /// It ends, and was of no use.
    fn came_to(&self, outcome: Upgrade, now: Instant) {
        self.worker.shared.metrics.upgrades.came_to(outcome);
        self.newcomer.iter().for_each(|newcomer| newcomer.failed(outcome, &self.worker, now));
    }

    /// Records how far the session has come.
    fn follow(&mut self, now: Instant) {
        if let Some(jid) = self.machine.take_jid() {
            if let (None, Some(transport)) = (self.user, self.transport) {
                self.user = Some(self.worker.identified(transport, &jid, now));
            }
            self.recording.jid(jid);
        }
        let stage = self.machine.stage();
        if stage != self.stage {
            if let (true, Some(transport)) = (stage.bound && !self.stage.bound, self.transport) {
                self.worker.local.bound(transport, clock().saturating_duration_since(self.begun));
                if let Some(newcomer) = self.newcomer.take() {
                    newcomer.bound(transport, &self.live.websocket_origins, &self.worker, now);
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
            if let (true, Some(transport)) = (fault.is_loss(), self.transport) {
                self.worker.local.lost(transport, now.saturating_duration_since(self.heard));
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
        Self::connected(self, &stream.header, stream.secure, stream.identified, out, now);
    }

    fn connect_failed(&mut self, fault: Fault, out: &mut Out, now: Instant) {
        Self::connect_failed(self, fault, out, now);
    }

    fn server_bytes(
        &mut self,
        scratch: &mut Scratch,
        input: &mut &[u8],
        out: &mut Out,
        now: Instant,
    ) {
        self.from_server(scratch, input, out, now);
    }

    fn server_gone(&mut self, out: &mut Out, now: Instant) {
        Self::server_gone(self, out, now);
    }

    fn server_stalled(&mut self, out: &mut Out, now: Instant) {
        Self::server_stalled(self, out, now);
    }
}

impl Future for Run {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if !this.registered {
            this.registered = true;
            this.worker.register(this.id, cx.waker().clone(), this.recording.clone());
        }
        let mut now = clock();
        let worker = Rc::clone(&this.worker);
        let mut buffers = worker.buffers.borrow_mut();
        buffers.begin();
        let budget = worker.shared.sessions.budget();
        if this.account.is_marked() {
            let held = this.held_bytes();
            if this.account.is_due(budget, held, this.id) {
                this.end_for_memory(&mut buffers, now);
            }
        }
        let mut turns = 0;
        while let Some(later) = this.turn(&mut buffers, now, cx) {
            // What is read next is as old as this, not as the chunk before.
            now = later;
            turns += 1;
            if turns == TURNS {
                cx.waker().wake_by_ref();
                break;
            }
        }
        buffers.trim();
        drop(buffers);
        this.meter.count();
        this.meter.passing(now);
        this.follow(now);
        let transport = this.transport.unwrap_or(Transport::Websocket);
        let owner = Owner { id: this.id, born: this.opened, transport, waker: cx.waker() };
        let held = this.held_bytes();
        this.account.publish(budget, held, &owner);
        if this.machine.is_authenticated() {
            this.permit.authenticated();
        }
        if this.machine.is_over() {
            return Poll::Ready(());
        }
        let Some(at) = this.deadline() else { return Poll::Pending };
        arm(&mut this.sleep, &mut this.armed, at, cx);
        Poll::Pending
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.account.close(self.worker.shared.sessions.budget(), self.id);
        let now = clock();
        let fault = if std::thread::panicking() { Some(Fault::Bug) } else { self.machine.ended() };
        match (self.transport, fault) {
            // A session dropped alive is one of a worker that was stopped.
            (Some(transport), fault) => {
                let fault = fault.unwrap_or(Fault::Drain);
                self.worker.session_ended(&self.span, transport, fault, self.opened, now);
                let outcome = Upgrade::before_login(fault);
                if let Some(outcome) = outcome.filter(|_| !self.machine.is_authenticated()) {
                    self.came_to(outcome, now);
                }
            }
            (None, fault) => {
                self.came_to(Upgrade::NeverOpened, now);
                let reason = fault.map_or("drain", |fault| fault.label());
                let seconds = now.duration_since(self.opened).as_secs_f64();
                self.span.in_scope(|| debug!(reason, seconds, "session_never_opened"));
            }
        }
        let fault = fault.unwrap_or(Fault::Drain);
        self.worker.archive(self.id, &mut self.recording, fault, now);
        self.worker.unregister(self.id);
    }
}
