//! One BOSH session as a machine: requests, the server's bytes and the time go in; responses, bytes
//! for the server and a deadline come out.

use std::sync::Arc;
use std::time::Instant;

use super::super::c2s::OpenRequest;
use super::super::fault::Fault;
use super::super::item::{Item, StreamHeader};
use super::super::stream::{ServerSide, Tally};
use super::super::xml::Scratch;
use super::body::Body;
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
    ConnectFailed,
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
    /// The process is shutting down.
    Drain,
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
pub struct Session {}

impl Session {
    /// A session made by `body`, whose request `id` is open until the features have come or
    /// `first_response_timeout` has passed (BOSH-29).
    ///
    /// # Errors
    /// The answer to a request that makes none (BOSH-13, BOSH-31, BOSH-69).
    pub fn create(
        _settings: Arc<Settings>,
        _sid: Sid,
        _id: RequestId,
        _body: Body,
        _now: Instant,
    ) -> Result<Self, (Fault, Reply)> {
        unimplemented!("to be written")
    }

    /// Takes one event. Responses to what the server said are held back until [`Event::Flush`], so
    /// that all of one wake-up shares a body.
    pub fn handle(&mut self, _event: Event<'_>, _out: &mut Out, _now: Instant) {
        unimplemented!("to be written")
    }

    /// Takes bytes of the server, as many as there is room for; the rest stays in `input`.
    pub fn server_bytes(
        &mut self,
        _scratch: &mut Scratch,
        _input: &mut &[u8],
        _out: &mut Out,
        _now: Instant,
    ) {
        unimplemented!("to be written")
    }

    /// The stream the client asked for; given once, when the connection has to be made.
    pub fn take_request(&mut self) -> Option<Box<OpenRequest>> {
        unimplemented!("to be written")
    }

    /// What to do with the server's connection.
    #[must_use]
    pub fn server(&self) -> ServerSide {
        unimplemented!("to be written")
    }

    /// Whether input of the server is taken now: there is room in the queue, and the stream stands.
    #[must_use]
    pub fn wants_server(&self) -> bool {
        unimplemented!("to be written")
    }

    /// When [`Event::Deadline`] is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        unimplemented!("to be written")
    }

    /// Why the session ends, once it does.
    #[must_use]
    pub fn ended(&self) -> Option<Fault> {
        unimplemented!("to be written")
    }

    /// The session has ended towards the client and the server, and only keeps its condition for
    /// the next request until its deadline (BOSH-77).
    #[must_use]
    pub fn is_zombie(&self) -> bool {
        unimplemented!("to be written")
    }

    /// Nothing is left to do: the sid is unknown from now on (BOSH-66).
    #[must_use]
    pub fn is_over(&self) -> bool {
        unimplemented!("to be written")
    }

    /// Bytes kept for the client and the server, for the memory account.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        unimplemented!("to be written")
    }
}
