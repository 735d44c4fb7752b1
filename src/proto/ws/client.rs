//! What a client's messages mean: the framing, the opening and the restart of its stream, and
//! which of its elements go on to the server.

use std::sync::Arc;
use std::time::Instant;

use super::super::c2s::{self, OpenRequest};
use super::super::domain::Domain;
use super::super::fault::Fault;
use super::super::frame::{self, FrameError, FrameEvent};
use super::super::item::{Element, Kind, StreamHeader};
use super::super::limit::Limit;
use super::super::stream::{self, ServerSide};
use super::super::xml::{self, Scope, Scratch};
use super::super::{ns, seam};
use super::core::{Core, text};
use super::session::{ClientSide, Out};
use super::{Framing, Settings};

impl Core {
    /// Handles one event of the frame reader; true if the server's reader has to start over.
    pub(super) fn frame(
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

    pub(super) fn frame_error(&mut self, error: FrameError, out: &mut Out, now: Instant) {
        self.flags.deaf = true;
        if error == FrameError::TooManyFragments {
            self.reached(Some(Limit::MaxFragments));
        }
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
                self.client =
                    ClientSide::Closing { until: now + self.settings.close_grace, shut: true };
            }
            // The closing handshake is under way: the rest is thrown away.
            ClientSide::Closing { .. } | ClientSide::Finishing(_) | ClientSide::Gone => {}
        }
    }

    pub(super) fn close_frame(&mut self, code: Option<u16>, out: &mut Out, now: Instant) {
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

    pub(super) fn text(
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
                        self.violated(violation, out, now);
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
    pub(super) fn legacy_text(
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
                self.violated(violation, out, now);
                return false;
            }
        };
        let (mut restart, mut blank) = (false, true);
        let before = out.server.len();
        while self.client == ClientSide::Open {
            if out.server.len() - before > settings.pending_bytes {
                // Declarations of the header, repeated on every element, made so much of it.
                self.reached(Some(Limit::PendingBytes));
                self.fail(Fault::XmlLimit, out, now);
                break;
            }
            match messages.next(scratch) {
                Ok(Some(message)) => restart |= self.message(message, out, now),
                Ok(None) => break,
                Err(violation) => {
                    self.violated(violation, out, now);
                    break;
                }
            }
            blank = false;
        }
        out.tally.blank += u32::from(blank);
        restart
    }

    /// WSL-01: the first message decides the framing.
    pub(super) fn first_text(
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
                self.framing =
                    Some(if legacy { Framing::Legacy { closed: false } } else { Framing::Rfc7395 });
                self.violated(violation, out, now);
            }
        }
        false
    }

    /// One message after the first; true if the server's reader has to start over.
    pub(super) fn message(
        &mut self,
        message: xml::Message<'_>,
        out: &mut Out,
        now: Instant,
    ) -> bool {
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
    pub(super) fn client_element(
        &mut self,
        element: &Element<'_>,
        out: &mut Out,
        now: Instant,
    ) -> bool {
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
            _ if self.phase.restart_due => self.fail(Fault::BadFormat, out, now),
            _ if self.flags.client_closed => {}
            Kind::Message
            | Kind::Presence
            | Kind::Iq
            | Kind::Sasl
            | Kind::Sasl2
            | Kind::Sm
            | Kind::Other => {
                self.phase.client_sent(element, kind);
                let start = out.server.len();
                seam::to_server(element, &mut out.server);
                out.tally.to_server.count(kind, out.server.len() - start);
                self.last_upstream = now;
            }
        }
        false
    }

    pub(super) fn open(&mut self, element: &Element<'_>, out: &mut Out, now: Instant) {
        let to = element.attribute("to");
        let version = element.attribute("version");
        let from = element.attribute("from").map(|from| from.into_owned().into_boxed_str());
        let lang = element.lang().map(|lang| lang.into_owned().into_boxed_str());
        self.open_stream(to.as_deref(), version.as_deref(), from, lang, out, now);
    }

    pub(super) fn legacy_open(&mut self, header: StreamHeader, out: &mut Out, now: Instant) {
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

    pub(super) fn open_stream(
        &mut self,
        to: Option<&str>,
        version: Option<&str>,
        from: Option<Box<str>>,
        lang: Option<Box<str>>,
        out: &mut Out,
        now: Instant,
    ) {
        let domain = self.settings.served.addressed(to);
        self.domain.clone_from(&domain);
        if !stream::is_version_1(version) {
            self.fail(Fault::UnsupportedVersion, out, now);
            return;
        }
        let Some(domain) = domain.filter(|domain| self.settings.served.serves(domain)) else {
            self.fail(Fault::HostUnknown, out, now);
            return;
        };
        if self.flags.redirected {
            let settings = Arc::clone(&self.settings);
            match (&settings.see_other_uri, self.framing) {
                (Some(uri), Some(Framing::Rfc7395)) => self.see_other(uri, out, now),
                // The older framing has no words for it.
                _ => self.fail(Fault::Drain, out, now),
            }
            return;
        }
        self.server = ServerSide::Connecting;
        let [from, lang] = [from, lang].map(|text| text.filter(|text| c2s::may_be_told(text)));
        self.request = Some(Box::new(OpenRequest { domain, from, lang }));
    }

    /// WS-27, WS-28: a second `<open/>`.
    pub(super) fn restart(&mut self, element: &Element<'_>, out: &mut Out, now: Instant) -> bool {
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

    pub(super) fn legacy_restart(
        &mut self,
        header: StreamHeader,
        out: &mut Out,
        now: Instant,
    ) -> bool {
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

    pub(super) fn restart_stream(
        &mut self,
        to: Option<&str>,
        version: Option<&str>,
        from: Option<&str>,
        lang: Option<&str>,
        out: &mut Out,
        now: Instant,
    ) -> bool {
        if !self.phase.restart_due || self.flags.client_closed || self.server != ServerSide::Open {
            self.fail(Fault::BadFormat, out, now);
            return false;
        }
        if !stream::is_version_1(version) {
            self.fail(Fault::UnsupportedVersion, out, now);
            return false;
        }
        // One stream, one domain: the connection was routed and verified for the first.
        let same = to.is_none_or(|to| Domain::parse(to).ok() == self.domain);
        let (true, Some(domain)) = (same, self.domain.clone()) else {
            self.fail(Fault::HostUnknown, out, now);
            return false;
        };
        self.phase.restart_due = false;
        self.phase.header_due = true;
        // UP-05: only where nobody can listen.
        let from = from.filter(|_| self.phase.secure);
        c2s::write_header(&mut out.server, &domain, from, lang);
        self.last_upstream = now;
        true
    }
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
