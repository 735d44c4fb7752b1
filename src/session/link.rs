//! The server's half of a session: its connection, from the first lookup to the last byte.
//!
//! Everything is a poll, and nothing here waits. Whether the server is read at all is for the loop
//! to say, which knows if there is room for what would come.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, ReadBuf};
use tracing::{Span, debug, warn};

use super::delivery::Taken;
use super::pending::Pending;
use super::recorder::event::{ConnectFailure, What, in_millis};
use super::recorder::record::Recording;
use super::timer::clock;
use super::worker::{Live, Worker};
use crate::proto::fault::Fault;
use crate::proto::origins::ByDomain;
use crate::proto::stream::ServerSide;
use crate::proto::xml::Scratch;
use crate::upstream::{Client, ConnectFault, Connector, Established, Io, OpenRequest};

type Connecting = Pin<Box<dyn Future<Output = (Result<Established, ConnectFault>, Duration)>>>;

/// What a link asks and tells the machine behind it; each is a word of every machine.
pub(crate) trait Machine {
    /// What the machine writes into.
    type Out;

    /// What to do with the connection.
    fn server(&self) -> ServerSide;
    /// Whether input is taken now.
    fn wants_server(&self) -> bool;
    /// The stream stands.
    fn connected(&mut self, stream: &Established, out: &mut Self::Out, now: Instant);
    /// The stream cannot be had, for this reason.
    fn connect_failed(&mut self, fault: Fault, out: &mut Self::Out, now: Instant);
    /// Takes bytes, as many as there is room for; the rest stays in `input`.
    fn server_bytes(
        &mut self,
        scratch: &mut Scratch,
        input: &mut &[u8],
        out: &mut Self::Out,
        now: Instant,
    );
    /// The connection ended.
    fn server_gone(&mut self, out: &mut Self::Out, now: Instant);
    /// The server took no byte for `limits.stall_timeout`.
    fn server_stalled(&mut self, out: &mut Self::Out, now: Instant);
}

/// The server's connection.
enum Server {
    None,
    /// None will be made: the client is a page that may not ask for this domain.
    Refused,
    Connecting(Connecting),
    Open(Io),
}

/// The server's connection and what waits for it.
pub(crate) struct ServerLink {
    server: Server,
    /// Whose connection it is, and the origin of his page where that matters; kept until it is
    /// opened.
    client: Option<Box<(Client, Option<Box<str>>)>>,
    to_server: Pending,
    /// Input the machine had no room for.
    held: Vec<u8>,
    /// A write failed. What the server sent before is still read, since it may say why: only the
    /// end of its stream, which is due, ends this side.
    deaf: Option<Instant>,
}

impl ServerLink {
    /// No connection yet, but one for this client, on a page of this origin.
    pub(crate) fn new(client: Client, origin: Option<Box<str>>) -> Self {
        Self { client: Some(Box::new((client, origin))), ..Self::closed() }
    }

    /// No connection any more.
    pub(crate) fn closed() -> Self {
        Self {
            server: Server::None,
            client: None,
            to_server: Pending::default(),
            held: Vec::new(),
            deaf: None,
        }
    }

    /// Bytes wait for the server's socket: whoever they come from is not read meanwhile.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.to_server.is_empty()
    }

    /// What became of the elements that were written to it.
    pub(crate) fn taken(&self) -> Taken {
        match (&self.server, self.deaf) {
            (Server::Open(_), None) if self.is_waiting() => Taken::Some,
            (Server::Open(_), None) => Taken::All,
            _ => Taken::Nothing,
        }
    }

    /// Memory in use, for the account.
    pub(crate) fn held_bytes(&self) -> usize {
        self.to_server.held_bytes() + self.held.capacity()
    }

    /// Gives up what waits for either side; to the server nothing can be said any more if something
    /// did.
    pub(crate) fn give_up(&mut self) {
        self.to_server.clear();
        self.held = Vec::new();
    }

    /// How many they are.
    pub(crate) fn waiting(&self) -> usize {
        self.to_server.len()
    }

    /// Starts the connection the client asked for, if its page may (SEC-01).
    pub(crate) fn open(
        &mut self,
        request: Box<OpenRequest>,
        connector: &Connector,
        origins: &ByDomain,
    ) {
        let (client, origin) = *self.client.take().unwrap_or_default();
        if !origins.allow(&request.domain, origin.as_deref()) {
            self.server = Server::Refused;
            return;
        }
        let connector = connector.clone();
        self.server = Server::Connecting(Box::pin(async move {
            let begun = tokio::time::Instant::from_std(clock());
            let result = connector.open(&request, &client).await;
            (result, begun.elapsed())
        }));
    }

    /// Sees whether the connection stands or has failed; true if so.
    pub(crate) fn poll_connect<M: Machine>(
        &mut self,
        machine: &mut M,
        worker: &Worker,
        (span, recording): (&Span, &Recording),
        out: &mut M::Out,
        now: Instant,
        cx: &mut Context<'_>,
    ) -> bool {
        if matches!(self.server, Server::Refused) {
            self.server = Server::None;
            machine.connect_failed(Fault::ForeignOrigin, out, now);
            return true;
        }
        let Server::Connecting(connecting) = &mut self.server else { return false };
        if machine.server() != ServerSide::Connecting {
            // The client left: nobody waits for this connection.
            self.server = Server::None;
            return true;
        }
        let Poll::Ready((result, took)) = connecting.as_mut().poll(cx) else { return false };
        let metrics = &worker.shared.metrics;
        metrics.upstream_connect_seconds.observe(took.as_secs_f64());
        match result {
            Ok(established) => {
                metrics.upstream_connect("ok");
                let (ms, secure) = (in_millis(took), established.secure);
                recording.note(What::ServerConnected { ms, secure }, now);
                machine.connected(&established, out, now);
                self.server = Server::Open(established.io);
                self.held = established.unread;
            }
            Err(fault) => {
                metrics.upstream_connect(fault.label());
                let (ms, why) = (in_millis(took), ConnectFailure::of(fault.label()));
                recording.note(What::ServerFailed { ms, why }, now);
                self.server = Server::None;
                span.in_scope(|| {
                    let reason = fault.label();
                    match worker.server_warnings.admit(now) {
                        Some(held_back) => {
                            warn!(reason, %fault, held_back, "server_connect_failed");
                        }
                        None => debug!(reason, %fault, "server_connect_failed"),
                    }
                });
                machine.connect_failed(Fault::ServerUnreachable, out, now);
            }
        }
        true
    }

    /// Reads once; false if there was nothing, or nothing is wanted.
    pub(crate) fn read<M: Machine>(
        &mut self,
        machine: &mut M,
        buffer: &mut [u8],
        scratch: &mut Scratch,
        out: &mut M::Out,
        now: Instant,
        cx: &mut Context<'_>,
    ) -> bool {
        let Server::Open(io) = &mut self.server else { return false };
        if !machine.wants_server() {
            return false;
        }
        if !self.held.is_empty() {
            let held = std::mem::take(&mut self.held);
            let mut input = held.as_slice();
            machine.server_bytes(scratch, &mut input, out, now);
            if !input.is_empty() {
                self.held = input.to_vec();
            }
            return true;
        }
        match read_some(io, buffer, cx) {
            Poll::Pending => false,
            Poll::Ready(Ok(0) | Err(_)) => {
                machine.server_gone(out, now);
                true
            }
            Poll::Ready(Ok(n)) => {
                let mut input = &buffer[..n];
                machine.server_bytes(scratch, &mut input, out, now);
                if !input.is_empty() {
                    self.held = input.to_vec();
                }
                true
            }
        }
    }

    /// Writes what waits and then `fresh`, and ends the connection as far as `side` says.
    pub(crate) fn write(
        &mut self,
        fresh: &mut Vec<u8>,
        side: ServerSide,
        now: Instant,
        cx: &mut Context<'_>,
    ) {
        let Server::Open(io) = &mut self.server else {
            fresh.clear();
            return;
        };
        if self.deaf.is_some() {
            fresh.clear();
        } else if !(fresh.is_empty() && self.to_server.is_empty())
            && self.to_server.write(io, fresh, now, cx).is_err()
        {
            fresh.clear();
            self.to_server.clear();
            self.deaf = Some(now);
        }
        if matches!(side, ServerSide::Finishing(_)) && self.to_server.is_empty() {
            // close_notify and FIN; what the server still sends is read to its end.
            self.to_server.shut(io, cx);
        }
        if matches!(side, ServerSide::Gone) {
            self.server = Server::None;
            self.to_server.clear();
            self.held = Vec::new();
        }
    }

    /// Tells the machine of a server that is deaf or takes nothing, when it is time to.
    pub(crate) fn tick<M: Machine>(
        &mut self,
        machine: &mut M,
        live: &Live,
        out: &mut M::Out,
        now: Instant,
    ) {
        // A server that only stopped reading (a Unix socket can) would swallow what is sent to it.
        let grace = live.settings.close_grace;
        if self.deaf.is_some_and(|since| since + grace <= now) {
            machine.server_gone(out, now);
        }
        if self.to_server.since.is_some_and(|since| since + live.stall_timeout <= now) {
            self.to_server.clear();
            machine.server_stalled(out, now);
        }
    }

    /// When [`ServerLink::tick`] has something to say.
    pub(crate) fn deadline(&self, live: &Live) -> Option<Instant> {
        let stalled = self.to_server.since.map(|since| since + live.stall_timeout);
        let deaf = self
            .deaf
            .filter(|_| matches!(self.server, Server::Open(_)))
            .map(|since| since + live.settings.close_grace);
        stalled.into_iter().chain(deaf).min()
    }
}

/// One read; zero is the end of the stream.
pub(crate) fn read_some<R: AsyncRead + Unpin>(
    io: &mut R,
    buffer: &mut [u8],
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    let mut buffer = ReadBuf::new(buffer);
    match Pin::new(io).poll_read(cx, &mut buffer) {
        Poll::Ready(Ok(())) => Poll::Ready(Ok(buffer.filled().len())),
        Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        Poll::Pending => Poll::Pending,
    }
}
