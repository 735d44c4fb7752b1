//! One BOSH session as a machine: requests, the server's bytes and the time go in; responses, bytes
//! for the server and a deadline come out.

use std::sync::Arc;
use std::time::Instant;

use super::super::c2s::OpenRequest;
use super::super::fault::Fault;
use super::super::item::{Item, StreamHeader};
use super::super::limit::Limit;
use super::super::stream::{ServerSide, Stage, Tally};
use super::super::xml::{ItemReader, Policy, Scratch};
use super::body::Body;
use super::core::{ClientSide, Core};
use super::sid::Sid;
use super::{Reply, RequestId, Settings, Why};

/// What happens to a session.
#[derive(Debug)]
pub enum Event<'a> {
    /// A request came, in any order of rid.
    Request {
        /// Chosen by the shell, never used twice in a session.
        id: RequestId,
        /// What it says.
        body: Body,
    },
    /// A request came that names this session but cannot be understood (BOSH-68).
    Unreadable {
        /// As above.
        id: RequestId,
        /// Its rid, if it could be read.
        rid: Option<u64>,
        /// What is wrong.
        fault: Fault,
        /// The limit that was reached, if that is it.
        limit: Option<Limit>,
    },
    /// The HTTP connection of an open request ended before an answer was started (BOSH-48); also
    /// said of a request whose [`Respond`] the shell could not hand over.
    Gone {
        /// The request.
        id: RequestId,
    },
    /// The upstream stream stands: as in [`crate::proto::ws::session::Session::connected`].
    Connected {
        /// The server's final header.
        header: &'a StreamHeader,
        /// It goes over TLS.
        secure: bool,
        /// We showed a certificate of our own (UP-16).
        identified: bool,
    },
    /// The upstream stream cannot be had.
    ConnectFailed {
        /// Why.
        fault: Fault,
    },
    /// An item of the server's stream.
    Server(Item<'a>),
    /// What the server sent has no provable end (UP-36).
    ServerBroken,
    /// The server's connection ended.
    ServerGone,
    /// The server took no byte for `limits.stall_timeout`.
    ServerStalled,
    /// [`Session::deadline`] has come.
    Deadline,
    /// All that was ready has been given: what can be answered is answered now (BOSH-39).
    Flush,
    /// The session holds more memory than any other, and there is too much of that.
    Overloaded {
        /// The server's socket has not taken all that was for it, and what was left is given up.
        server_waits: bool,
    },
    /// The process is shutting down.
    Drain,
    /// An operator ends the session; nothing if it ends already.
    Kick,
}

/// The answer to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Respond {
    /// The request.
    pub id: RequestId,
    /// What it is told.
    pub reply: Reply,
    /// Why now.
    pub why: Why,
}

/// What is to be done. Reused between wake-ups.
#[derive(Debug, Default)]
pub struct Out {
    /// XML for the server.
    pub server: Vec<u8>,
    /// When requests came whose payloads are in `server`, and how many.
    pub forwarded: Vec<(Instant, u32)>,
    /// Answers, in the order in which they have to leave.
    pub responses: Vec<Respond>,
    /// What was counted.
    pub tally: Tally,
    /// What was counted of BOSH alone.
    pub counts: Counts,
}

/// Counts of one wake-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that were taken in rid order.
    pub requests: u32,
    /// Repeated rids.
    pub repeats: u32,
    /// Requests that came too soon (BOSH-62).
    pub overactive: u32,
    /// Values of `ack` that make no sense (BOSH-56).
    pub bad_acks: u32,
    /// Payloads of restart requests, which are not forwarded (XB-10).
    pub restart_payloads: u32,
    /// Stanzas answered to the server in the client's place (XB-15).
    pub bounced: u32,
    /// Stanzas to the client that were given up at the end.
    pub undelivered: u32,
}

/// A client and its stream.
#[derive(Debug)]
pub struct Session {
    reader: ItemReader,
    core: Core,
}

impl Session {
    /// A session made by `body`, whose request `id` is open until the features have come or
    /// `first_response_timeout` has passed (BOSH-29).
    ///
    /// # Errors
    /// The answer to a request that makes none (BOSH-13, BOSH-31, BOSH-69).
    pub fn create(
        settings: Arc<Settings>,
        sid: Sid,
        id: RequestId,
        body: Body,
        now: Instant,
    ) -> Result<Self, (Fault, Reply)> {
        let reader = ItemReader::new(settings.server_xml, Policy::Tolerant);
        Ok(Self { reader, core: Core::create(settings, sid, id, body, now)? })
    }

    /// Takes one event. Responses to what the server said are held back until [`Event::Flush`], so
    /// that all of one wake-up shares a body.
    pub fn handle(&mut self, event: Event<'_>, out: &mut Out, now: Instant) {
        let core = &mut self.core;
        match event {
            Event::Request { id, body } => core.request(id, body, out, now),
            Event::Unreadable { id, rid, fault, limit } => {
                core.reached(limit);
                core.unreadable(id, rid, fault, out, now);
            }
            Event::Gone { id } => core.gone(id, out, now),
            Event::Connected { header, secure, identified } => {
                if core.server == ServerSide::Connecting {
                    let scope = header.scope.clone();
                    self.reader =
                        ItemReader::with_scope(core.settings.server_xml, Policy::Tolerant, scope);
                    core.connected(header, secure, identified, out, now);
                }
            }
            Event::ConnectFailed { fault } => {
                if core.server == ServerSide::Connecting {
                    core.server = ServerSide::Absent;
                    core.request = None;
                    core.fail(fault, None, out, now);
                }
            }
            Event::Server(item) => {
                if core.takes_items() {
                    core.server_item(item, out, now);
                }
            }
            Event::ServerBroken => {
                if core.takes_items() {
                    core.server_broken(out, now);
                }
            }
            Event::ServerGone => core.server_gone(out, now),
            Event::ServerStalled => core.server_stalled(out, now),
            Event::Deadline => core.tick(out, now),
            Event::Flush => core.flush(out, now),
            Event::Overloaded { server_waits } => {
                self.reader.reset();
                core.overloaded(server_waits, out, now);
            }
            Event::Drain => core.drain(out, now),
            Event::Kick => core.kick(out, now),
        }
        self.settle(now);
    }

    /// Takes bytes of the server, as many as there is room for; the rest stays in `input`.
    pub fn server_bytes(
        &mut self,
        scratch: &mut Scratch,
        input: &mut &[u8],
        out: &mut Out,
        now: Instant,
    ) {
        self.core.last_upstream = now;
        while !input.is_empty() && self.wants_server() {
            if !self.core.takes_items() {
                // Nobody is left to read it; only the end of the connection is awaited.
                *input = &[];
                break;
            }
            match self.reader.next(scratch, input) {
                Ok(None) => break,
                Ok(Some(item)) => self.core.server_item(item, out, now),
                Err(violation) => {
                    *input = &[];
                    self.core.reached(violation.server_limit());
                    self.core.server_broken(out, now);
                }
            }
            self.settle(now);
        }
        self.settle(now);
    }

    /// So many bytes of answers were given and not taken by their connections (SEC-17). To be told
    /// before [`Event::Flush`].
    pub fn untaken(&mut self, bytes: usize) {
        self.core.untaken = bytes;
    }

    /// What has to be in step after every event.
    fn settle(&mut self, now: Instant) {
        if std::mem::take(&mut self.core.reader_due) {
            self.reader.reset();
        }
        if !self.core.hears() {
            // Nobody is left to read it: half an element may be as large as a whole one.
            self.reader.reset();
        }
        self.core.mind_idleness(now);
    }

    /// The stream the client asked for; given once, when the connection has to be made.
    pub fn take_request(&mut self) -> Option<Box<OpenRequest>> {
        self.core.request.take()
    }

    /// What to do with the server's connection.
    #[must_use]
    pub fn server(&self) -> ServerSide {
        self.core.server
    }

    /// Whether input of the server is taken now: there is room in the queue, and the stream stands.
    #[must_use]
    pub fn wants_server(&self) -> bool {
        let stands = matches!(
            self.core.server,
            ServerSide::Open | ServerSide::Closing(_) | ServerSide::Finishing(_)
        );
        stands && (self.core.has_room() || !self.core.hears())
    }

    /// When [`Event::Deadline`] is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.core.deadline()
    }

    /// Why the session ends, once it does.
    #[must_use]
    pub fn ended(&self) -> Option<Fault> {
        self.core.ended
    }

    /// The limit that was reached, if that is why it ends.
    #[must_use]
    pub fn limit(&self) -> Option<Limit> {
        self.core.limit.or_else(|| Limit::of(self.core.ended?))
    }

    /// The session has ended towards the client and the server, and only keeps its condition for
    /// the next request until its deadline (BOSH-77).
    #[must_use]
    pub fn is_zombie(&self) -> bool {
        matches!(self.core.client, ClientSide::Zombie { .. }) && self.core.server_is_done()
    }

    /// Whether the server has accepted the client's credentials.
    #[must_use]
    pub fn is_authenticated(&self) -> bool {
        self.core.phase.authenticated
    }

    /// How far the stream has come.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.core.phase.stage()
    }

    /// The JID that the server has given the client, told once after each change.
    pub fn take_jid(&mut self) -> Option<Box<str>> {
        self.core.phase.jid.take()
    }

    /// Nothing is left to do: the sid is unknown from now on (BOSH-66).
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.core.client, ClientSide::Gone) && self.core.server_is_done()
    }

    /// Bytes kept for the client and the server, for the memory account.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.core.held_bytes() + self.reader.held_bytes()
    }
}
