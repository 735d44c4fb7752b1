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
use std::time::{Duration, Instant};

use super::super::c2s::{self, OpenRequest};
use super::super::domain::Domain;
use super::super::fault::Fault;
use super::super::frame::{self, FrameError, FrameEvent, FrameReader};
use super::super::item::{Element, Item, Kind, StreamHeader};
use super::super::ns;
use super::super::seam::{self, FeatureRules, Rewrite};
use super::super::xml::{self, ItemReader, Policy, Scope, Scratch};
use super::{Framing, Settings, write_error};

/// Bytes of a client that are thrown away while its close is awaited (WS-44).
const DISCARD_LIMIT: usize = 1024 * 1024;

/// Counts of what passed in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// `message`, `presence`, `iq`, and all other top-level elements.
    pub elements: [u32; 4],
    /// Bytes of those elements as they left the gateway, without frame heads.
    pub bytes: u64,
}

impl Flow {
    fn count(&mut self, kind: Kind, bytes: usize) {
        let slot = match kind {
            Kind::Message => 0,
            Kind::Presence => 1,
            Kind::Iq => 2,
            _ => 3,
        };
        self.elements[slot] += 1;
        self.bytes += bytes as u64;
    }

    /// Elements of all kinds.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.elements.iter().sum()
    }
}

/// What happened in one wake-up, for the shell to count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Elements passed to the server.
    pub to_server: Flow,
    /// Elements passed to the client.
    pub to_client: Flow,
    /// Stanzas repaired (UP-36).
    pub repaired: u32,
    /// Stanzas emptied (UP-36).
    pub emptied: u32,
    /// Broken nonzas dropped (UP-36).
    pub dropped: u32,
    /// Blank messages dropped (WS-12).
    pub blank: u32,
    /// Failed logins with a `-PLUS` mechanism (UP-27).
    pub binding_plus: u32,
    /// Failed logins whose GS2 header begins `p` or `y` (UP-27).
    pub binding_gs2: u32,
}

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

/// What the shell has to do with the server's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerSide {
    /// There is none.
    Absent,
    /// Being opened.
    Connecting,
    /// Read and write.
    Open,
    /// `</stream:stream>` was written; the server's end is awaited until the time.
    Closing(Instant),
    /// Flush, end the write side, read to the end, until the time.
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

/// Where channel binding was asked for (UP-27).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Binding {
    Plus,
    Gs2,
}

/// A client and its stream.
#[derive(Debug)]
pub struct Session {
    frames: FrameReader,
    reader: ItemReader,
    core: Core,
}

/// Everything but the two parsers, so that an element may be borrowed from one of them while the
/// rest changes.
#[derive(Debug)]
struct Core {
    settings: Arc<Settings>,
    framing: Option<Framing>,
    client: ClientSide,
    server: ServerSide,
    /// The first reason; later ones are consequences.
    ended: Option<Fault>,
    domain: Option<Domain>,
    request: Option<Box<OpenRequest>>,
    /// The legacy header's names, in scope of all later messages (WSL-06).
    scope: Option<Box<Scope>>,
    /// `xml:lang` of the server's header, when it is stamped (UP-30).
    lang: Option<Box<str>>,
    /// For the `id` of an `<open/>` of our own.
    id: u64,
    flags: Flags,
    features: FeatureRules,
    binding: Option<Binding>,
    created: Instant,
    last_frame: Instant,
    next_ping: Instant,
    last_upstream: Instant,
    mid_message_since: Option<Instant>,
    discarded: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Flags {
    /// An `<open/>` of ours is on its way to the client.
    opened: bool,
    /// The server accepted the client's credentials.
    authenticated: bool,
    /// A SASL1 success passed; only `<open/>` may follow (WS-29).
    restart_due: bool,
    /// Our new header is on its way, the server's is awaited.
    header_due: bool,
    /// A resource is bound: no restart any more.
    bound: bool,
    /// The client uses XEP-0198 (SM-02).
    sm: bool,
    /// The client sent `<close/>`.
    client_closed: bool,
    /// Input of the client can no longer be framed.
    deaf: bool,
    /// The features that end the negotiation after authentication have passed.
    settled: bool,
    /// Upstream goes over TLS or never leaves the host.
    secure: bool,
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
                domain: None,
                request: None,
                scope: None,
                lang: None,
                id,
                flags: Flags::default(),
                features: settings.features,
                binding: None,
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

    /// Bytes that are kept because an element or a message is incomplete.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.frames.held_bytes() + self.reader.held_bytes()
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
    /// goes over TLS or does not leave the host, `certified` whether we showed a certificate of
    /// our own (UP-16).
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
        core.flags.secure = secure;
        core.features = FeatureRules { strip_external: certified, ..core.settings.features };
        self.reader = ItemReader::with_scope(
            core.settings.server_xml,
            Policy::Tolerant,
            header.scope.clone(),
        );
        core.server_header(header, out);
    }

    /// The upstream stream cannot be had.
    pub fn connect_failed(&mut self, out: &mut Out, now: Instant) {
        if self.core.server == ServerSide::Connecting {
            self.core.server = ServerSide::Absent;
            self.core.fail(Fault::ServerUnreachable, out, now);
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
                Err(_) => {
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

    /// Whatever is due at `now`.
    pub fn tick(&mut self, out: &mut Out, now: Instant) {
        self.core.tick(out, now);
    }

    /// The process is shutting down (WS-39).
    pub fn drain(&mut self, out: &mut Out, now: Instant) {
        self.core.drain(out, now);
    }

    /// All bytes for the client have been taken by its socket.
    pub fn client_flushed(&mut self) {
        if matches!(self.core.client, ClientSide::Finishing(_)) {
            self.core.client = ClientSide::Gone;
        }
    }
}

impl Core {
    fn has_room_to_server(&self, out: &Out) -> bool {
        out.server.len() < self.room() && out.tally.to_server.total() < self.settings.pending_stanzas
    }

    fn has_room_to_client(&self, out: &Out) -> bool {
        out.client.len() < self.room() && out.tally.to_client.total() < self.settings.pending_stanzas
    }

    fn room(&self) -> usize {
        if self.flags.authenticated {
            self.settings.pending_bytes
        } else {
            self.settings.unauthenticated_bytes
        }
    }

    /// Whether the client would not take another element.
    fn client_is_deaf(&self) -> bool {
        self.client != ClientSide::Open
    }

    fn discard(&mut self, bytes: usize) {
        self.discarded += bytes;
        if self.discarded > DISCARD_LIMIT {
            self.client = ClientSide::Gone;
        }
    }

    // ---- the client's frames -------------------------------------------------------------

    /// Handles one event of the frame reader; true if the server's reader has to start over.
    fn frame(
        &mut self,
        scratch: &mut Scratch,
        event: FrameEvent<'_>,
        out: &mut Out,
        now: Instant,
    ) -> bool {
        match event {
            FrameEvent::Text(text) => {
                if self.client == ClientSide::Open {
                    return self.text(scratch, text, out, now);
                }
            }
            FrameEvent::Ping(payload) => {
                if matches!(self.client, ClientSide::Open | ClientSide::AwaitingClose(_)) {
                    frame::pong(&mut out.client, payload);
                }
            }
            FrameEvent::Pong(_) => {}
            FrameEvent::Close { code, .. } => self.close_frame(code, out, now),
        }
        false
    }

    fn frame_error(&mut self, error: FrameError, out: &mut Out, now: Instant) {
        self.flags.deaf = true;
        let fault = match error {
            FrameError::Binary => Fault::Binary,
            FrameError::Protocol(_) => Fault::BadFrame,
            FrameError::BadUtf8 => Fault::BadUtf8,
            FrameError::TooBig | FrameError::TooManyFragments => Fault::FrameTooBig,
        };
        match self.client {
            ClientSide::Open => self.fail(fault, out, now),
            ClientSide::AwaitingClose(_) => {
                frame::close(&mut out.client, fault.close_code(), "");
                self.client = ClientSide::Closing { until: now + self.settings.close_grace, shut: true };
            }
            // The closing handshake is under way: the rest is thrown away.
            ClientSide::Closing { .. } | ClientSide::Finishing(_) | ClientSide::Gone => {}
        }
    }

    fn close_frame(&mut self, code: Option<u16>, out: &mut Out, now: Instant) {
        match self.client {
            ClientSide::Open => {
                // A Close frame after `<close/>` is a clean end that did not wait (WS-34);
                // without it the server must be able to keep the session (WS-37).
                frame::close(&mut out.client, code.unwrap_or(1000), "");
                if !self.flags.client_closed {
                    self.lose_client(Fault::ClientLeft, now);
                }
                self.client = ClientSide::Finishing(now + self.settings.close_grace);
            }
            ClientSide::AwaitingClose(_) => {
                frame::close(&mut out.client, code.unwrap_or(1000), "");
                self.client = ClientSide::Finishing(now + self.settings.close_grace);
            }
            ClientSide::Closing { .. } => {
                self.client = ClientSide::Finishing(now + self.settings.close_grace);
            }
            ClientSide::Finishing(_) | ClientSide::Gone => {}
        }
    }

    fn text(
        &mut self,
        scratch: &mut Scratch,
        text: &[u8],
        out: &mut Out,
        now: Instant,
    ) -> bool {
        let Some(framing) = self.framing else {
            return self.first_text(scratch, text, out, now);
        };
        let settings = Arc::clone(&self.settings);
        match framing {
            Framing::Rfc7395 => {
                let scope = Scope::client();
                match xml::message(scratch, &settings.client_xml, &scope, text) {
                    Ok(message) => self.message(message, out, now),
                    Err(xml::Violation::InvalidNamespace) => {
                        // A stream header, which has no place here whatever its namespaces.
                        self.fail(Fault::BadFormat, out, now);
                        false
                    }
                    Err(violation) => {
                        self.fail(violation.into(), out, now);
                        false
                    }
                }
            }
            Framing::Legacy { .. } => {
                let scope = self.scope.take();
                let none = Scope::client();
                let in_scope = scope.as_deref().unwrap_or(&none);
                let restart = self.legacy_text(scratch, &settings, in_scope, text, out, now);
                // A restart brought a header of its own.
                if self.scope.is_none() {
                    self.scope = scope;
                }
                restart
            }
        }
    }

    /// WSL-11: several whole elements in a message are accepted in order, once all of them have
    /// been proven; a partial one never is.
    fn legacy_text(
        &mut self,
        scratch: &mut Scratch,
        settings: &Settings,
        scope: &Scope,
        text: &[u8],
        out: &mut Out,
        now: Instant,
    ) -> bool {
        let mut messages = match xml::messages(scratch, &settings.client_xml, scope, text) {
            Ok(messages) => messages,
            Err(violation) => {
                self.fail(violation.into(), out, now);
                return false;
            }
        };
        let (mut restart, mut blank) = (false, true);
        while self.client == ClientSide::Open {
            match messages.next(scratch) {
                Ok(Some(message)) => restart |= self.message(message, out, now),
                Ok(None) => break,
                Err(violation) => {
                    self.fail(violation.into(), out, now);
                    break;
                }
            }
            blank = false;
        }
        out.tally.blank += u32::from(blank);
        restart
    }

    /// WSL-01: the first message decides the framing.
    fn first_text(
        &mut self,
        scratch: &mut Scratch,
        text: &[u8],
        out: &mut Out,
        now: Instant,
    ) -> bool {
        let settings = Arc::clone(&self.settings);
        let scope = Scope::client();
        match xml::message(scratch, &settings.client_xml, &scope, text) {
            Ok(xml::Message::Blank | xml::Message::Declaration) => out.tally.blank += 1,
            Ok(xml::Message::StreamOpen(header)) => {
                if settings.legacy_framing {
                    self.framing = Some(Framing::Legacy { closed: header.closed });
                    self.legacy_open(header, out, now);
                } else {
                    // WSL-12: answered in the style of the RFC.
                    self.framing = Some(Framing::Rfc7395);
                    self.fail(Fault::BadFormat, out, now);
                }
            }
            Ok(xml::Message::Element(element)) => {
                self.framing = Some(Framing::Rfc7395);
                match element.kind() {
                    Kind::FramingOpen => self.open(&element, out, now),
                    Kind::FramingClose => self.client_close(out, now),
                    // WS-20: the right name in a wrong namespace.
                    _ if element.local() == "open" => {
                        self.fail(Fault::InvalidNamespace, out, now);
                    }
                    _ => self.fail(Fault::BadFormat, out, now),
                }
            }
            Ok(xml::Message::NotXml | xml::Message::StreamClose) => {
                self.framing = Some(Framing::Rfc7395);
                self.fail(Fault::BadFormat, out, now);
            }
            Err(violation) => {
                let legacy = settings.legacy_framing && looks_legacy(text);
                self.framing = Some(if legacy {
                    Framing::Legacy { closed: false }
                } else {
                    Framing::Rfc7395
                });
                self.fail(violation.into(), out, now);
            }
        }
        false
    }

    /// One message after the first; true if the server's reader has to start over.
    fn message(&mut self, message: xml::Message<'_>, out: &mut Out, now: Instant) -> bool {
        let legacy = matches!(self.framing, Some(Framing::Legacy { .. }));
        match message {
            xml::Message::Blank | xml::Message::Declaration => out.tally.blank += 1,
            xml::Message::NotXml => self.fail(Fault::BadFormat, out, now),
            xml::Message::StreamOpen(header) if legacy => {
                return self.legacy_restart(header, out, now);
            }
            xml::Message::StreamClose if legacy => self.client_close(out, now),
            xml::Message::StreamOpen(_) | xml::Message::StreamClose => {
                self.fail(Fault::BadFormat, out, now);
            }
            xml::Message::Element(element) => return self.client_element(&element, out, now),
        }
        false
    }

    /// One proven element of the client on a running stream.
    fn client_element(&mut self, element: &Element<'_>, out: &mut Out, now: Instant) -> bool {
        let legacy = matches!(self.framing, Some(Framing::Legacy { .. }));
        let kind = element.kind();
        match kind {
            Kind::FramingOpen if !legacy => return self.restart(element, out, now),
            Kind::FramingClose if !legacy => self.client_close(out, now),
            // SEC-09: whatever its prefix.
            Kind::StreamError => self.client_error(out, now),
            Kind::FramingOpen
            | Kind::FramingClose
            | Kind::FramingOther
            | Kind::Features
            | Kind::StreamOther => self.fail(Fault::BadFormat, out, now),
            // UP-20.
            Kind::Tls => {
                text(out, |bytes| {
                    for part in ["<failure xmlns=\"", ns::TLS, "\"/>"] {
                        bytes.extend_from_slice(part.as_bytes());
                    }
                });
                self.fail(Fault::ClientTls, out, now);
            }
            Kind::Compress => text(out, |bytes| {
                for part in
                    ["<failure xmlns=\"", ns::COMPRESS, "\"><unsupported-method/></failure>"]
                {
                    bytes.extend_from_slice(part.as_bytes());
                }
            }),
            // WS-29.
            _ if self.flags.restart_due => self.fail(Fault::BadFormat, out, now),
            _ if self.flags.client_closed => {}
            Kind::Message
            | Kind::Presence
            | Kind::Iq
            | Kind::Sasl
            | Kind::Sasl2
            | Kind::Sm
            | Kind::Other => {
                if matches!(kind, Kind::Sasl | Kind::Sasl2) && !self.flags.authenticated {
                    self.note_binding(element);
                }
                let start = out.server.len();
                seam::to_server(element, &mut out.server);
                out.tally.to_server.count(kind, out.server.len() - start);
                self.last_upstream = now;
            }
        }
        false
    }

    // ---- opening, restarting, closing ----------------------------------------------------

    fn open(&mut self, element: &Element<'_>, out: &mut Out, now: Instant) {
        let to = element.attribute("to");
        let version = element.attribute("version");
        let from = element.attribute("from").map(|from| from.into_owned().into_boxed_str());
        let lang = element.lang().map(|lang| lang.into_owned().into_boxed_str());
        self.open_stream(to.as_deref(), version.as_deref(), from, lang, out, now);
    }

    fn legacy_open(&mut self, header: StreamHeader, out: &mut Out, now: Instant) {
        self.open_stream(
            header.to.as_deref(),
            header.version.as_deref(),
            header.from,
            header.lang,
            out,
            now,
        );
        self.scope = Some(Box::new(header.scope));
    }

    fn open_stream(
        &mut self,
        to: Option<&str>,
        version: Option<&str>,
        from: Option<Box<str>>,
        lang: Option<Box<str>>,
        out: &mut Out,
        now: Instant,
    ) {
        let domain = match to {
            Some(to) => Domain::parse(to).ok(),
            None => self.settings.default_domain.clone(),
        };
        self.domain.clone_from(&domain);
        if !is_version_1(version) {
            self.fail(Fault::UnsupportedVersion, out, now);
            return;
        }
        let Some(domain) = domain.filter(|domain| self.settings.serves(domain)) else {
            self.fail(Fault::HostUnknown, out, now);
            return;
        };
        self.server = ServerSide::Connecting;
        self.request = Some(Box::new(OpenRequest { domain, from, lang }));
    }

    /// WS-27, WS-28: a second `<open/>`.
    fn restart(&mut self, element: &Element<'_>, out: &mut Out, now: Instant) -> bool {
        let to = element.attribute("to");
        let version = element.attribute("version");
        let lang = element.lang();
        let from = element.attribute("from");
        self.restart_stream(
            to.as_deref(),
            version.as_deref(),
            from.as_deref(),
            lang.as_deref(),
            out,
            now,
        )
    }

    fn legacy_restart(&mut self, header: StreamHeader, out: &mut Out, now: Instant) -> bool {
        self.framing = Some(Framing::Legacy { closed: header.closed });
        let restarted = self.restart_stream(
            header.to.as_deref(),
            header.version.as_deref(),
            header.from.as_deref(),
            header.lang.as_deref(),
            out,
            now,
        );
        self.scope = Some(Box::new(header.scope));
        restarted
    }

    fn restart_stream(
        &mut self,
        to: Option<&str>,
        version: Option<&str>,
        from: Option<&str>,
        lang: Option<&str>,
        out: &mut Out,
        now: Instant,
    ) -> bool {
        if !self.flags.restart_due || self.flags.client_closed || self.server != ServerSide::Open {
            self.fail(Fault::BadFormat, out, now);
            return false;
        }
        if !is_version_1(version) {
            self.fail(Fault::UnsupportedVersion, out, now);
            return false;
        }
        // One stream, one domain: the connection was routed and verified for the first.
        let same = to.is_none_or(|to| Domain::parse(to).ok() == self.domain);
        let (true, Some(domain)) = (same, self.domain.clone()) else {
            self.fail(Fault::HostUnknown, out, now);
            return false;
        };
        self.flags.restart_due = false;
        self.flags.header_due = true;
        // UP-05: only where nobody can listen.
        let from = from.filter(|_| self.flags.secure);
        c2s::write_header(&mut out.server, &domain, from, lang);
        self.last_upstream = now;
        true
    }

    /// The client's `<close/>` (WS-34).
    fn client_close(&mut self, out: &mut Out, now: Instant) {
        if self.flags.client_closed {
            return;
        }
        self.flags.client_closed = true;
        self.end(Fault::Closed);
        match self.server {
            ServerSide::Open => self.close_server(out, now),
            ServerSide::Closing(_) | ServerSide::Finishing(_) => {}
            ServerSide::Absent | ServerSide::Connecting | ServerSide::Gone => {
                self.server = ServerSide::Gone;
                self.finish_client_close(out, now);
            }
        }
    }

    /// A clean end towards the server: the footer, then its grace (UP-35).
    fn close_server(&mut self, out: &mut Out, now: Instant) {
        if self.server == ServerSide::Open {
            out.server.extend_from_slice(c2s::FOOTER);
            self.server = ServerSide::Closing(now + self.settings.close_grace);
        }
    }

    /// The server ended its half: answers the client's `<close/>` or closes it (WS-34, WS-36).
    fn finish_client_close(&mut self, out: &mut Out, now: Instant) {
        if self.client != ClientSide::Open {
            return;
        }
        let framing = self.framing.unwrap_or(Framing::Rfc7395);
        let until = now + self.settings.close_grace;
        text(out, |bytes| bytes.extend_from_slice(framing.close().as_bytes()));
        if self.flags.client_closed {
            self.client = ClientSide::AwaitingClose(until);
        } else {
            frame::close(&mut out.client, 1000, "");
            self.client = ClientSide::Closing { until, shut: false };
        }
    }

    fn client_error(&mut self, out: &mut Out, now: Instant) {
        self.fail(Fault::ClientError, out, now);
    }

    /// Records the reason; the first one stands.
    fn end(&mut self, fault: Fault) {
        self.ended.get_or_insert(fault);
    }

    /// Ends the session towards both sides (WS-31, WS-33, WSL-09).
    fn fail(&mut self, fault: Fault, out: &mut Out, now: Instant) {
        self.end(fault);
        if self.client == ClientSide::Open {
            self.tell(fault, out);
            frame::close(&mut out.client, fault.close_code(), "");
            // What the client still sends cannot be understood after a frame error, and closing
            // with unread input would reset the connection before the error arrives (WS-44).
            let shut = self.flags.deaf;
            self.client = ClientSide::Closing { until: now + self.settings.close_grace, shut };
        }
        match self.server {
            ServerSide::Open => self.close_server(out, now),
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

    /// The stream error and the stream end, behind an `<open/>` of our own if there was none.
    fn tell(&mut self, fault: Fault, out: &mut Out) {
        let framing = self.framing.unwrap_or(Framing::Rfc7395);
        let header = (!self.flags.opened).then(|| StreamHeader {
            from: self.domain.as_ref().map(|domain| domain.as_str().into()),
            id: Some(format!("{:016x}", self.id).into_boxed_str()),
            to: None,
            version: None,
            lang: None,
            scope: Scope::client(),
            closed: false,
        });
        self.flags.opened = true;
        match framing {
            Framing::Rfc7395 => {
                if let Some(header) = header {
                    text(out, |bytes| framing.write_open(&header, bytes));
                }
                if let Some(error) = fault.stream_error() {
                    text(out, |bytes| write_error(error, bytes));
                }
                text(out, |bytes| bytes.extend_from_slice(framing.close().as_bytes()));
            }
            Framing::Legacy { .. } => match (header, fault.stream_error()) {
                (Some(header), error) => text(out, |bytes| {
                    Framing::Legacy { closed: false }.write_open(&header, bytes);
                    if let Some(error) = error {
                        write_error(error, bytes);
                    }
                    bytes.extend_from_slice(framing.close().as_bytes());
                }),
                (None, error) => {
                    if let Some(error) = error {
                        text(out, |bytes| write_error(error, bytes));
                    }
                    text(out, |bytes| bytes.extend_from_slice(framing.close().as_bytes()));
                }
            },
        }
    }

    /// The client is lost without a `<close/>`: no stream end to the server (WS-37, SM-04).
    fn lose_client(&mut self, fault: Fault, now: Instant) {
        if !self.flags.client_closed {
            self.end(fault);
        }
        match self.server {
            ServerSide::Open => {
                self.server = ServerSide::Finishing(now + self.settings.close_grace);
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

    // ---- the server ----------------------------------------------------------------------

    fn server_header(&mut self, header: &StreamHeader, out: &mut Out) {
        if self.settings.stamp_lang {
            self.lang.clone_from(&header.lang);
        }
        if self.client != ClientSide::Open {
            return;
        }
        let framing = self.framing.unwrap_or(Framing::Rfc7395);
        text(out, |bytes| framing.write_open(header, bytes));
        self.flags.opened = true;
    }

    /// The header that answers our restart.
    fn restarted(&mut self, header: &StreamHeader, out: &mut Out, now: Instant) {
        if !self.flags.header_due {
            self.server_garbage(out, now);
            return;
        }
        self.flags.header_due = false;
        self.server_header(header, out);
    }

    fn server_element(&mut self, element: &Element<'_>, out: &mut Out, now: Instant) {
        let kind = element.kind();
        match kind {
            Kind::Features => {
                if self.flags.authenticated {
                    self.flags.settled = true;
                }
                let rules = self.features;
                text(out, |bytes| seam::features_to_client(element, &rules, bytes));
            }
            Kind::StreamError => {
                // WS-32, UP-34: forwarded whole, then both streams are closed.
                text(out, |bytes| {
                    seam::to_client(element, bytes);
                });
                self.end(Fault::ServerError);
                self.close_server(out, now);
                self.finish_client_close(out, now);
                return;
            }
            Kind::StreamOther | Kind::FramingOpen | Kind::FramingClose | Kind::FramingOther => {
                // Nothing of these may reach a client: it would take them for ours.
                self.server_garbage(out, now);
                return;
            }
            Kind::Tls | Kind::Compress => {
                // WS-43: TLS is settled before the client sees anything.
                self.server_garbage(out, now);
                return;
            }
            _ => {
                let start = out.client.len();
                let mark = frame::begin_text(&mut out.client);
                let at = out.client.len();
                let rewrite = seam::to_client(element, &mut out.client);
                if let Some(lang) = &self.lang
                    && kind.is_stanza()
                    && element.lang().is_none()
                {
                    stamp_lang(&mut out.client, at, lang);
                }
                frame::end_text(&mut out.client, mark);
                match rewrite {
                    Rewrite::AsIs | Rewrite::Completed => {}
                    Rewrite::Repaired => out.tally.repaired += 1,
                    Rewrite::Emptied => out.tally.emptied += 1,
                    Rewrite::Dropped => {
                        out.tally.dropped += 1;
                        return;
                    }
                }
                out.tally.to_client.count(kind, out.client.len() - start);
            }
        }
        if !(self.flags.bound && self.flags.authenticated && self.flags.sm) {
            self.observe(element, kind, out);
        }
    }

    /// UP-23, SM-02: the phase follows what the server says.
    fn observe(&mut self, element: &Element<'_>, kind: Kind, out: &mut Out) {
        match (kind, element.local()) {
            (Kind::Sasl, "success") if !self.flags.authenticated => {
                self.flags.authenticated = true;
                self.flags.restart_due = true;
            }
            (Kind::Sasl | Kind::Sasl2, "failure") => match self.binding.take() {
                Some(Binding::Plus) => out.tally.binding_plus += 1,
                Some(Binding::Gs2) => out.tally.binding_gs2 += 1,
                None => {}
            },
            (Kind::Sasl2, "success") => {
                self.flags.authenticated = true;
                if let Ok(success) = element.to_dom() {
                    self.observe_sasl2(&success);
                }
            }
            (Kind::Sm, "enabled") => self.flags.sm = true,
            (Kind::Sm, "resumed") => {
                self.flags.sm = true;
                self.flags.bound = true;
            }
            (Kind::Iq, _) if !self.flags.bound => {
                let is_result = element.attribute("type").as_deref() == Some("result");
                if is_result
                    && element.children().iter().any(|child| child.namespace == ns::BIND)
                {
                    self.flags.bound = true;
                    // XEP-0078 and SASL-less servers never send a success.
                    self.flags.authenticated = true;
                }
            }
            _ => {}
        }
    }

    fn observe_sasl2(&mut self, success: &minidom::Element) {
        for child in success.children() {
            match (child.name(), child.ns().as_str()) {
                ("authorization-identifier", ns::SASL2) if child.text().contains('/') => {
                    self.flags.bound = true;
                }
                ("resumed", ns::SM3) => {
                    self.flags.bound = true;
                    self.flags.sm = true;
                }
                ("bound", ns::BIND2 | ns::BIND2_DRAFT) => {
                    self.flags.bound = true;
                    if child.get_child("enabled", ns::SM3).is_some() {
                        self.flags.sm = true;
                    }
                }
                _ => {}
            }
        }
    }

    /// UP-27: remembers whether the login asks for channel binding, never what it says.
    fn note_binding(&mut self, element: &Element<'_>) {
        if !matches!(element.local(), "auth" | "authenticate") {
            return;
        }
        let plus = element
            .attribute("mechanism")
            .is_some_and(|mechanism| mechanism.ends_with("-PLUS"));
        let asks = |text: &str| text.starts_with("eSw") || text.starts_with("cD0");
        self.binding = if plus {
            Some(Binding::Plus)
        } else {
            // Base64 of "y," and of "p=": the first characters of a GS2 header (RFC 5802 §7).
            element.to_dom().ok().and_then(|dom| {
                let inner = dom.get_child("initial-response", ns::SASL2).map(|child| child.text());
                asks(inner.unwrap_or_else(|| dom.text()).trim()).then_some(Binding::Gs2)
            })
        };
    }

    /// `</stream:stream>` of the server, or its end of file after ours.
    fn server_closed(&mut self, out: &mut Out, now: Instant) {
        let until = now + self.settings.close_grace;
        match self.server {
            ServerSide::Open => {
                self.end(Fault::ServerClosed);
                // RFC 6120 §4.4: the other stream is closed too.
                out.server.extend_from_slice(c2s::FOOTER);
                self.server = ServerSide::Finishing(until);
            }
            ServerSide::Closing(_) => self.server = ServerSide::Finishing(until),
            _ => {}
        }
        self.finish_client_close(out, now);
    }

    /// XML that proves nothing (UP-36), or none at all (UP-25).
    fn server_garbage(&mut self, out: &mut Out, now: Instant) {
        let fault = if self.flags.restart_due || self.flags.header_due {
            Fault::ServerSecurityLayer
        } else {
            Fault::ServerBadXml
        };
        if matches!(self.server, ServerSide::Closing(_)) {
            // Ours is closed already: what follows cannot matter to the client any more.
            self.server = ServerSide::Finishing(now + self.settings.close_grace);
            self.finish_client_close(out, now);
            return;
        }
        self.fail(fault, out, now);
        // Its stream cannot be read any further, so its end cannot be awaited in it.
        if let ServerSide::Closing(until) = self.server {
            self.server = ServerSide::Finishing(until);
        }
    }

    // ---- time ----------------------------------------------------------------------------

    fn silent_at(&self) -> Instant {
        let interval = self.settings.ping_interval;
        // Half an interval beyond the last ping that counts, so that it can be answered.
        self.last_frame + interval * self.settings.missed_pongs + interval / 2
    }

    fn keepalive_at(&self) -> Option<Instant> {
        let interval = self.settings.whitespace_keepalive;
        let due = !interval.is_zero()
            && self.server == ServerSide::Open
            && self.flags.settled
            && !self.flags.header_due;
        due.then(|| self.last_upstream + interval)
    }

    fn deadline(&self) -> Option<Instant> {
        let client = match self.client {
            ClientSide::Open => {
                let mut at = self.next_ping.min(self.silent_at());
                if !self.flags.authenticated {
                    at = at.min(self.created + self.settings.unauthenticated_lifetime);
                }
                if let Some(since) = self.mid_message_since {
                    at = at.min(since + self.settings.message_timeout);
                }
                Some(at)
            }
            ClientSide::AwaitingClose(until)
            | ClientSide::Closing { until, .. }
            | ClientSide::Finishing(until) => Some(until),
            ClientSide::Gone => None,
        };
        let server = match self.server {
            ServerSide::Closing(until) | ServerSide::Finishing(until) => Some(until),
            ServerSide::Open => self.keepalive_at(),
            ServerSide::Absent | ServerSide::Connecting | ServerSide::Gone => None,
        };
        match (client, server) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    fn tick(&mut self, out: &mut Out, now: Instant) {
        if self.client == ClientSide::Open {
            self.tick_open(out, now);
        }
        match self.client {
            ClientSide::AwaitingClose(until) if until <= now => {
                frame::close(&mut out.client, 1000, "");
                let until = now + self.settings.close_grace;
                self.client = ClientSide::Closing { until, shut: false };
            }
            ClientSide::Closing { until, .. } | ClientSide::Finishing(until) if until <= now => {
                self.client = ClientSide::Gone;
            }
            _ => {}
        }
        match self.server {
            ServerSide::Closing(until) if until <= now => {
                self.server = ServerSide::Gone;
                self.finish_client_close(out, now);
            }
            ServerSide::Finishing(until) if until <= now => self.server = ServerSide::Gone,
            _ => {}
        }
        if self.keepalive_at().is_some_and(|at| at <= now) {
            out.server.push(b' ');
            self.last_upstream = now;
        }
    }

    fn tick_open(&mut self, out: &mut Out, now: Instant) {
        if !self.flags.authenticated
            && !self.flags.client_closed
            && self.created + self.settings.unauthenticated_lifetime <= now
        {
            self.fail(Fault::Unauthenticated, out, now);
        } else if self
            .mid_message_since
            .is_some_and(|since| since + self.settings.message_timeout <= now)
        {
            self.flags.deaf = true;
            self.fail(Fault::SlowMessage, out, now);
        } else if self.silent_at() <= now {
            self.lose_client(Fault::ClientSilent, now);
            self.client = ClientSide::Gone;
        } else if self.next_ping <= now {
            frame::ping(&mut out.client, b"");
            self.next_ping = now + self.settings.ping_interval.max(Duration::from_millis(1));
        }
    }

    fn drain(&mut self, out: &mut Out, now: Instant) {
        if self.client != ClientSide::Open || self.flags.client_closed {
            return;
        }
        if self.flags.sm {
            // WS-39: it resumes elsewhere, so neither side gets a stream end.
            self.lose_client(Fault::Drain, now);
            frame::close(&mut out.client, Fault::Drain.close_code(), "");
            let until = now + self.settings.close_grace;
            self.client = ClientSide::Closing { until, shut: false };
        } else {
            self.fail(Fault::Drain, out, now);
        }
    }
}

/// Puts one text message in a frame of its own.
fn text(out: &mut Out, write: impl FnOnce(&mut Vec<u8>)) {
    let mark = frame::begin_text(&mut out.client);
    write(&mut out.client);
    frame::end_text(&mut out.client, mark);
}

/// WS-26: absent is 1.0; any minor version of 1 is spoken with.
fn is_version_1(version: Option<&str>) -> bool {
    version.is_none_or(|version| version.split('.').next() == Some("1"))
}

/// UP-30: puts the stream's language on the element that begins at `at`, behind its name.
fn stamp_lang(out: &mut Vec<u8>, at: usize, lang: &str) {
    let name = out[at..].iter().position(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | b'/' | b'>'));
    let Some(name) = name else { return };
    let mut attribute = b" xml:lang=\"".to_vec();
    seam::escape_attribute(lang, &mut attribute);
    attribute.push(b'"');
    out.splice(at + name..at + name, attribute);
}

/// Whether a broken first message was meant as a legacy header.
fn looks_legacy(text: &[u8]) -> bool {
    let text = text.trim_ascii();
    let text = match text.strip_prefix(b"<?xml") {
        Some(rest) => match memchr::memmem::find(rest, b"?>") {
            Some(at) => rest[at + 2..].trim_ascii_start(),
            None => rest,
        },
        None => text,
    };
    text.starts_with(b"<stream:stream")
}
