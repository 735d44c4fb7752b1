//! One WebSocket session as a machine without sockets, clocks or randomness.
//!
//! In go the bytes that were read from either side and the time; out come the bytes to write to
//! either side, what to do with the two connections ([`Session::client`], [`Session::server`]),
//! and the time at which to call again ([`Session::deadline`]). The shell that drives it is
//! `session::run`.
//!
//! The two sides close independently of each other: a client may be gone while the server still
//! gets its `</stream:stream>` and the grace to answer it, and the other way round. The session is
//! over when both are.

use std::sync::Arc;
use std::time::Instant;

use super::super::c2s::OpenRequest;
use super::super::fault::Fault;
use super::super::frame::{FrameEvent, FrameReader};
use super::super::item::{Item, StreamHeader};
use super::super::limit::Limit;
use super::super::seam::FeatureRules;
use super::super::stream::{Phase, ServerSide, Stage, Tally};
use super::super::xml::{ItemReader, Policy, Scratch};
use super::core::{Core, Flags};
use super::{Framing, Settings};

/// Bytes to write, and the counts that belong to them. Reused between wake-ups.
#[derive(Debug, Default)]
pub struct Out {
    /// WebSocket frames for the client.
    pub client: Vec<u8>,
    /// XML for the server.
    pub server: Vec<u8>,
    /// What was counted.
    pub tally: Tally,
}

/// What the shell has to do with the client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientSide {
    /// Read and write.
    Open,
    /// Our `<close/>` was sent after the client's; its Close frame is awaited until the time
    /// (WS-35). Read and write.
    AwaitingClose(Instant),
    /// Our Close frame was written. Until the time, read for the client's; if `shut`, end the
    /// write side as soon as all is flushed (WS-44).
    Closing {
        /// When patience ends.
        until: Instant,
        /// Whether the write side ends at once.
        shut: bool,
    },
    /// Flush what can be flushed until the time, then close.
    Finishing(Instant),
    /// Drop it.
    Gone,
}

/// How the client's connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// End of file or a socket error.
    Lost,
    /// It took no byte for `limits.stall_timeout`.
    Stalled,
}

/// A client and its stream.
#[derive(Debug)]
pub struct Session {
    frames: FrameReader,
    reader: ItemReader,
    core: Core,
}

impl Session {
    /// A session whose 101 has just been sent. `id` is any number that is not guessable enough
    /// to matter: it only appears in an `<open/>` that is followed by an error (WS-31).
    #[must_use]
    pub fn new(settings: Arc<Settings>, id: u64, now: Instant) -> Self {
        Self {
            frames: FrameReader::new(settings.frames),
            reader: ItemReader::new(settings.server_xml, Policy::Tolerant),
            core: Core {
                framing: None,
                client: ClientSide::Open,
                server: ServerSide::Absent,
                ended: None,
                limit: None,
                domain: None,
                request: None,
                scope: None,
                lang: None,
                id,
                flags: Flags::default(),
                phase: Phase::default(),
                features: settings.features,
                created: now,
                last_frame: now,
                next_ping: now + settings.ping_interval,
                last_upstream: now,
                mid_message_since: None,
                discarded: 0,
                settings,
            },
        }
    }

    /// What to do with the client's connection.
    #[must_use]
    pub fn client(&self) -> ClientSide {
        self.core.client
    }

    /// What to do with the server's connection.
    #[must_use]
    pub fn server(&self) -> ServerSide {
        self.core.server
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

    /// Whether both sides are done.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.core.client == ClientSide::Gone
            && matches!(self.core.server, ServerSide::Absent | ServerSide::Gone)
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

    /// The framing, once the first message told it.
    #[must_use]
    pub fn framing(&self) -> Option<Framing> {
        self.core.framing
    }

    /// The stream the client asked for; given once, when the connection has to be made.
    pub fn take_request(&mut self) -> Option<Box<OpenRequest>> {
        self.core.request.take()
    }

    /// Whether input of the client is taken now. While the upstream is being opened it is not:
    /// what a hasty client sends has to wait.
    #[must_use]
    pub fn wants_client(&self) -> bool {
        match self.core.client {
            ClientSide::Open => self.core.server != ServerSide::Connecting,
            ClientSide::AwaitingClose(_) | ClientSide::Closing { .. } => true,
            ClientSide::Finishing(_) | ClientSide::Gone => false,
        }
    }

    /// Whether input of the server is taken now.
    #[must_use]
    pub fn wants_server(&self) -> bool {
        matches!(
            self.core.server,
            ServerSide::Open | ServerSide::Closing(_) | ServerSide::Finishing(_)
        )
    }

    /// Bytes that are kept because an element or a message is incomplete, and of the names that a legacy
    /// header declared.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        let scope = self.core.scope.as_ref().map_or(0, |scope| scope.held_bytes());
        self.frames.held_bytes() + self.reader.held_bytes() + scope
    }

    /// When [`Session::tick`] has to be called next.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.core.deadline()
    }

    /// Takes bytes of the client, as many as there is room for; the rest stays in `input`.
    pub fn from_client(
        &mut self,
        scratch: &mut Scratch,
        input: &mut &mut [u8],
        out: &mut Out,
        now: Instant,
    ) {
        while !input.is_empty() && self.wants_client() && self.core.has_room_to_server(out) {
            if self.core.flags.deaf {
                self.core.discard(input.len());
                *input = &mut [];
                return;
            }
            let before = input.len();
            match self.frames.next(input) {
                Ok(None) => {
                    if matches!(self.core.client, ClientSide::Closing { .. }) {
                        self.core.discard(before - input.len());
                    }
                    break;
                }
                Ok(Some(event)) => {
                    self.core.last_frame = now;
                    if matches!(event, FrameEvent::Text(_)) {
                        // SEC-18: what is unfinished after this is another message.
                        self.core.mid_message_since = None;
                    }
                    let restart = self.core.frame(scratch, event, out, now);
                    if restart {
                        self.reader.reset();
                    }
                    if matches!(self.core.client, ClientSide::Closing { .. }) {
                        self.core.discard(before - input.len());
                    }
                }
                Err(error) => {
                    self.core.frame_error(error, out, now);
                }
            }
        }
        // The loop ends with the input, perhaps before the reader could give a message's memory back.
        self.frames.release();
        self.core.mid_message_since = match self.core.mid_message_since {
            _ if !self.frames.is_mid_message() => None,
            None => Some(now),
            since => since,
        };
    }

    /// The client is not read because the server takes nothing: its silence is not its fault.
    pub fn client_not_read(&mut self, now: Instant) {
        self.core.last_frame = now;
        if self.core.mid_message_since.is_some() {
            self.core.mid_message_since = Some(now);
        }
    }

    /// What is for the client waits for its socket, and every ping behind it. So it cannot answer
    /// one; whether it takes anything is for `limits.stall_timeout` to judge.
    pub fn client_not_told(&mut self, now: Instant) {
        self.core.last_frame = now;
    }

    /// The client's connection ended.
    pub fn client_gone(&mut self, loss: Loss, now: Instant) {
        let fault = match loss {
            Loss::Lost => Fault::ClientLost,
            Loss::Stalled => Fault::ClientStalled,
        };
        self.core.lose_client(fault, now);
        self.core.client = ClientSide::Gone;
    }

    /// The upstream stream stands: `header` is the server's final one. `secure` says whether it
    /// goes over TLS, `certified` whether we showed a certificate of our own (UP-16).
    pub fn connected(
        &mut self,
        header: &StreamHeader,
        secure: bool,
        certified: bool,
        out: &mut Out,
        now: Instant,
    ) {
        let core = &mut self.core;
        if core.server != ServerSide::Connecting {
            return;
        }
        core.server = ServerSide::Open;
        core.last_upstream = now;
        core.phase.secure = secure;
        core.features = FeatureRules { strip_external: certified, ..core.settings.features };
        self.reader = ItemReader::with_scope(
            core.settings.server_xml,
            Policy::Tolerant,
            header.scope.clone(),
        );
        core.server_header(header, out);
    }

    /// The upstream stream cannot be had, for this reason.
    pub fn connect_failed(&mut self, fault: Fault, out: &mut Out, now: Instant) {
        if self.core.server == ServerSide::Connecting {
            self.core.server = ServerSide::Absent;
            self.core.fail(fault, out, now);
        }
    }

    /// Takes bytes of the server, as many as there is room for; the rest stays in `input`.
    pub fn from_server(
        &mut self,
        scratch: &mut Scratch,
        input: &mut &[u8],
        out: &mut Out,
        now: Instant,
    ) {
        self.core.last_upstream = now;
        while !input.is_empty() && self.wants_server() && self.core.has_room_to_client(out) {
            if self.core.client_is_deaf() || matches!(self.core.server, ServerSide::Finishing(_)) {
                // Nobody is left to read it; only the end of the connection is awaited.
                *input = &[];
                return;
            }
            match self.reader.next(scratch, input) {
                Ok(None) => return,
                Ok(Some(Item::Header(header))) => self.core.restarted(&header, out, now),
                Ok(Some(Item::Element(element))) => self.core.server_element(&element, out, now),
                Ok(Some(Item::End)) => self.core.server_closed(out, now),
                Err(violation) => {
                    self.core.reached(violation.server_limit());
                    self.core.server_garbage(out, now);
                    *input = &[];
                    return;
                }
            }
        }
    }

    /// The server's connection ended, with or without a socket error.
    pub fn server_gone(&mut self, out: &mut Out, now: Instant) {
        match self.core.server {
            ServerSide::Open => {
                self.core.server = ServerSide::Gone;
                self.core.fail(Fault::ServerLost, out, now);
            }
            ServerSide::Closing(_) => self.core.server_closed(out, now),
            _ => {}
        }
        self.core.server = ServerSide::Gone;
    }

    /// The server took no byte for `limits.stall_timeout`.
    pub fn server_stalled(&mut self, out: &mut Out, now: Instant) {
        // Its socket buffer is full: no footer could reach it.
        let was_closing = matches!(self.core.server, ServerSide::Closing(_));
        self.core.server = ServerSide::Gone;
        if was_closing {
            self.core.finish_client_close(out, now);
        } else {
            self.core.fail(Fault::ServerStalled, out, now);
        }
    }

    /// The session holds more memory than any other, and there is too much of that: it ends, and
    /// gives up what it holds of either side's input. `server_waits` says whether the server's
    /// socket has not taken all that was for it.
    pub fn overloaded(&mut self, server_waits: bool, out: &mut Out, now: Instant) {
        self.frames = FrameReader::new(self.core.settings.frames);
        self.reader.reset();
        self.core.mid_message_since = None;
        // Half a message is lost: what the client still sends cannot be framed.
        self.core.flags.deaf = true;
        if server_waits {
            // Nor can a footer reach the server behind half an element.
            self.core.server = ServerSide::Gone;
        }
        self.core.fail(Fault::Memory, out, now);
    }

    /// Whatever is due at `now`.
    pub fn tick(&mut self, out: &mut Out, now: Instant) {
        self.core.tick(out, now);
    }

    /// The process begins to drain: a stream that is opened from now on is sent to
    /// [`Settings::see_other_uri`], if there is one (WS-38).
    pub fn redirect(&mut self) {
        self.core.flags.redirected = true;
    }

    /// The process is shutting down (WS-39).
    pub fn drain(&mut self, out: &mut Out, now: Instant) {
        self.core.drain(out, now);
    }

    /// An operator ends the session; nothing if it ends already.
    pub fn kick(&mut self, out: &mut Out, now: Instant) {
        self.core.kick(out, now);
    }

    /// All bytes for the client have been taken by its socket.
    pub fn client_flushed(&mut self) {
        if matches!(self.core.client, ClientSide::Finishing(_)) {
            self.core.client = ClientSide::Gone;
        }
    }
}
